"""Start HAProxy with settings for one machine; Ray Serve runs this file in place of HAProxy's binary.

Ray's template binds the statistics pages to all interfaces, nothing stops HAProxy when Ray is killed, and HAProxy's errors are plain
text. This file corrects all three between the writing of the configuration and the start of the binary. This file runs without
site-packages, because every reload of HAProxy waits for this file.
"""

import ctypes
import json
import os
import re
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
ERROR_FILE = "500.http"
NO_REPLICA = {"code": "not_ready", "message": "no replica is ready; try again later", "request_id": ""}


def bind_statistics_to_loopback(text: str) -> str:
    """Return an HAProxy configuration whose statistics listen on loopback; the address of the service is unchanged."""
    return re.sub(r"(?m)^(\s*bind )\*?:(\d+)", r"\g<1>127.0.0.1:\2", text)


def no_replica_response() -> str:
    """Return the complete HTTP response to a request that no replica can take."""
    body = json.dumps(NO_REPLICA)
    head = "HTTP/1.1 503 Service Unavailable", "Content-Type: application/json", f"Content-Length: {len(body)}", "Retry-After: 1"
    return "\r\n".join((*head, "Connection: close", "", body))


def main(binary: str, arguments: list[str]) -> None:
    """Replace this process by HAProxy; `arguments` are those of Ray and contain `-f CONFIGURATION`."""
    path = Path(arguments[arguments.index("-f") + 1])
    path.write_text(bind_statistics_to_loopback(path.read_text()))
    (path.parent / ERROR_FILE).write_text(no_replica_response())
    if sys.platform == "linux":
        # The kernel sends the signal when the parent thread ends; the setting survives exec.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
