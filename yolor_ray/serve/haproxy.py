"""Start HAProxy the way one machine wants it; Ray Serve runs this file in place of the binary.

Ray's template binds the statistics pages to all interfaces, nothing ends HAProxy when Ray is killed, and its errors are
plain text. All three are mended here, between the writing of the configuration and the start of the binary. Runs without
site-packages: it is on the way of every reload.
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


def confine(text: str) -> str:
    """Return an HAProxy configuration whose statistics listen on loopback; the service's own address stays."""
    return re.sub(r"(?m)^(\s*bind )\*?:(\d+)", r"\g<1>127.0.0.1:\2", text)


def error_answer() -> str:
    """Return the whole HTTP answer for requests that no replica can take."""
    body = json.dumps(NO_REPLICA)
    head = "HTTP/1.1 503 Service Unavailable", "Content-Type: application/json", f"Content-Length: {len(body)}", "Retry-After: 1"
    return "\r\n".join((*head, "Connection: close", "", body))


def main(binary: str, arguments: list[str]) -> None:
    """Replace this process by HAProxy; `arguments` are those that Ray gave, with `-f CONFIGURATION` among them."""
    path = Path(arguments[arguments.index("-f") + 1])
    path.write_text(confine(path.read_text()))
    (path.parent / ERROR_FILE).write_text(error_answer())
    # The signal comes when the thread that started us ends, and survives exec.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
