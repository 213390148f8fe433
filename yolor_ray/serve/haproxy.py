"""Start HAProxy with settings for one machine; Ray Serve runs this file in place of HAProxy's binary.

Ray's template has one address for HAProxy and for the replicas, which speak plain HTTP. The statistics pages listen on all interfaces, and
there is no TLS. Nothing stops HAProxy when Ray is killed, HAProxy's errors are plain text, and before there is an application HAProxy
answers 404. A replica refuses what it has no place for, but spends on each refusal time that its answers need. This file corrects all that
between the writing of the configuration and the start of the binary. This file runs without site-packages, because every reload of HAProxy
waits for this file.
"""

import ctypes
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
ERROR_FILE = "500.http"
CERTIFICATE_FILE = "tls.pem"
"""Certificates in the folder of HAProxy's files, with the key in a file of the same name and `.key`; absent without TLS."""
NO_REPLICA = {"code": "not_ready", "message": "no replica is ready; try again later", "request_id": ""}
OVERLOADED = {
    "code": "overloaded",
    "message": "found no place in the queue of any replica; try again later",
    "request_id": "%[var(txn.id)]",
}
"""Answer to a request that no replica has a place for; HAProxy writes the id of the request into it."""
REQUEST_ID = "[A-Za-z0-9._-]{1,64}"
"""Pattern of a client's request id that the answer repeats."""


def bind_statistics_to_loopback(text: str) -> str:
    """Return an HAProxy configuration whose statistics listen on loopback."""
    return re.sub(r"(?m)^(\s*bind )\*?:(\d+)", r"\g<1>127.0.0.1:\2", text)


def answer_503_without_application(text: str) -> str:
    """Return an HAProxy configuration that answers 503 in JSON, not 404, where no application takes the path."""
    answer = f"http-request return status 503 content-type application/json string '{json.dumps(NO_REPLICA)}' hdr Retry-After 1"
    return re.sub(r"(?m)(^backend default_backend\n\s*)http-request return status 404 .*$", lambda found: found[1] + answer, text)


def refuse_beyond_queue(text: str, places: int, origins: Sequence[str] = ()) -> str:
    """Return an HAProxy configuration that answers 429 to a POST when all replicas have as many requests in work as they have places.

    Args:
        text: configuration of HAProxy.
        places: images that a replica takes at a time, in work or waiting.
        origins: origins of the web pages that may read the answer in a browser; `*` for all.
    """
    is_refused = "METH_POST { nbsrv gt 0 } { var(txn.free) -m int lt 0 }"
    answer_v2 = OVERLOADED | {"error": OVERLOADED["message"]}
    headers = "hdr Retry-After 1 hdr Cache-Control no-store hdr X-Request-ID %[var(txn.id)]"
    refuse = f"http-request return status 429 content-type application/json {headers}"
    rules = (
        "http-request set-var(txn.in_work) be_conn",
        f"http-request set-var(txn.free) nbsrv,mul({places}),sub(txn.in_work)",
        f"http-request set-var(txn.id) uuid() if {is_refused}",
        f"http-request set-var(txn.id) req.hdr(x-request-id) if {is_refused} {{ req.hdr(x-request-id) -m reg ^{REQUEST_ID}$ }}",
        *_allow_origins(origins, is_refused),
        f"{refuse} lf-string '{json.dumps(answer_v2)}' if {is_refused} {{ path_sub /v2/models/ }}",
        f"{refuse} lf-string '{json.dumps(OVERLOADED)}' if {is_refused}",
    )
    lines = "".join(f"\n    {rule}" for rule in rules)
    return re.sub(r"(?m)^backend (?!default_backend$)\S+$", lambda found: found[0] + lines, text)


def _allow_origins(origins: Sequence[str], is_refused: str) -> list[str]:
    """Return the rules that let web pages read a refusal: the headers that a replica's answers have for the origin of the request."""
    if not origins:
        return []
    allowed = "{ req.hdr(origin) -m found }" if "*" in origins else f"{{ req.hdr(origin) -m str {shlex.join(origins)} }}"
    value = "str(*)" if "*" in origins else "req.hdr(origin)"
    headers = {"Allow-Origin": "%[var(txn.origin)]", "Expose-Headers": '"X-Request-ID, Retry-After"'}
    return [
        f"http-request set-var(txn.origin) {value} if {is_refused} {allowed}",
        *(
            f"http-after-response set-header Access-Control-{name} {text} if {{ var(txn.origin) -m found }}"
            for name, text in headers.items()
        ),
        "http-after-response set-header Vary Origin if { var(txn.origin) -m found }",
    ]


def listen_on(text: str, host: str, certificate: Path) -> str:
    """Return an HAProxy configuration whose service listens on a host; it speaks TLS with the certificate if there is one."""
    # A link whose file has gone stays TLS: HAProxy then refuses the configuration, and does not speak plain HTTP.
    tls = f" ssl crt {certificate} alpn h2,http/1.1" if os.path.lexists(certificate) else ""
    served, count = re.subn(r"(?m)(^frontend http_frontend\n\s*bind )\S+:(\d+)$", rf"\g<1>{host}:\g<2>{tls}", text)
    if not count:
        raise ValueError("found no frontend of Ray Serve in HAProxy's configuration, expected one: the service would listen elsewhere")
    return served


def no_replica_response() -> str:
    """Return the complete HTTP response to a request that no replica can take."""
    body = json.dumps(NO_REPLICA)
    head = "HTTP/1.1 503 Service Unavailable", "Content-Type: application/json", f"Content-Length: {len(body)}", "Retry-After: 1"
    return "\r\n".join((*head, "Connection: close", "", body))


def main(binary: str, host: str, places: int, origins: Sequence[str], arguments: list[str]) -> None:
    """Replace this process by HAProxy for a service.

    Args:
        binary: HAProxy's program.
        host: address to listen on.
        places: images that a replica takes at a time, in work or waiting.
        origins: origins of the web pages that may read answers in a browser.
        arguments: arguments of Ray, with `-f CONFIGURATION`.
    """
    path = Path(arguments[arguments.index("-f") + 1])
    text = answer_503_without_application(bind_statistics_to_loopback(path.read_text()))
    text = refuse_beyond_queue(text, places, origins)
    # Ray writes the configuration into a folder of the node, inside the folder that it was told.
    path.write_text(listen_on(text, host, path.parent.parent / CERTIFICATE_FILE))
    (path.parent / ERROR_FILE).write_text(no_replica_response())
    if sys.platform == "linux":
        # The kernel sends the signal when the parent thread ends; the setting survives exec.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execvp(binary, [binary, *arguments])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].split(), sys.argv[5:])
