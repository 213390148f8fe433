"""Proxy before a real S3 server that injects the faults of S3 on request, and counts them.

`PUT /__faults__` with JSON sets faults while the proxy runs (see `Faults`), `GET /__faults__` returns the count of each fault.
As a program: `python tests/support/faulty_s3.py --listen HOST:PORT --upstream HOST:PORT [--share-503 0.5] [--seed 0]`.
"""

import argparse
import contextlib
import http.client
import json
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

CONTROL = "/__faults__"
CHUNK = 1 << 18
UPSTREAM_TIMEOUT_S = 60
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection", "te", "upgrade"}
ANSWERS = {
    "share_503": (503, "SlowDown", "Please reduce your request rate."),
    "begin_next": (503, "SlowDown", "Please reduce your request rate."),
    "forbid_next": (403, "AccessDenied", "Access Denied"),
    "expire_next": (400, "ExpiredToken", "The provided token has expired."),
}


@dataclass
class Faults:
    """Faults that the proxy injects; each may change while the proxy runs."""

    share_503: float = 0.0
    """Share of requests answered 503 SlowDown."""
    down_s: float = 0.0
    """Time in which every connection is closed without an answer (s)."""
    reset_next: int = 0
    """Reads of objects, starting with the next one, that are reset in the middle of the body."""
    short_next: int = 0
    """Reads of objects that end in the middle of the body, as if the body were complete."""
    flip_next: int = 0
    """Reads of objects in which one bit in the middle of the body is flipped."""
    forbid_next: int = 0
    """Requests answered 403 AccessDenied."""
    expire_next: int = 0
    """Requests answered 400 ExpiredToken."""
    begin_next: int = 0
    """Multipart uploads whose first request is answered 503 SlowDown."""
    delay_s: float = 0.0
    """Wait before every answer (s)."""


class FaultyS3(ThreadingHTTPServer):
    """Proxy to an S3 server, `with FaultyS3(upstream) as proxy:`; `proxy.struck` counts requests and faults."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, upstream: str, listen: str = "127.0.0.1:0", seed: int = 0) -> None:
        host, port = listen.rsplit(":", 1)
        super().__init__((host, int(port)), _Handler)
        self.upstream = upstream
        self.endpoint = f"http://{host}:{self.server_port}"
        self.faults = Faults()
        self.struck: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._up_again = 0.0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()

    def __enter__(self) -> "FaultyS3":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def set_faults(self, **changed: float) -> None:
        """Change some faults; the others stay."""
        unknown = set(changed) - {field.name for field in fields(Faults)}
        if unknown:
            raise ValueError(f"found faults {sorted(unknown)}, expected some of {[field.name for field in fields(Faults)]}")
        with self._lock:
            for name, value in changed.items():
                setattr(self.faults, name, value)
            if "down_s" in changed:
                self._up_again = time.monotonic() + changed["down_s"]

    def strikes(self, fault: str) -> bool:
        """Return True if the fault hits the current request, and count the hit."""
        with self._lock:
            if fault == "share_503":
                hit = self._random.random() < self.faults.share_503
            elif fault == "down_s":
                hit = time.monotonic() < self._up_again
            else:
                left = getattr(self.faults, fault)
                hit = left > 0
                setattr(self.faults, fault, left - hit)
            self.struck[fault] += hit
            return hit

    def count(self, name: str) -> None:
        with self._lock:
            self.struck[name] += 1

    def process_request(self, request: socket.socket, client_address: tuple) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: socket.socket, client_address: tuple) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FaultyS3

    def setup(self) -> None:
        super().setup()
        self.upstream = http.client.HTTPConnection(self.server.upstream, timeout=UPSTREAM_TIMEOUT_S)

    def finish(self) -> None:
        self.upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        """Suppress the log."""

    def handle_one_request(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError, http.client.HTTPException):
            super().handle_one_request()

    def _serve(self) -> None:
        if self.path == CONTROL:
            self._control()
            return
        self.server.count("requests")
        self.server.count(f"{self.command} {'object' if self._names_object() else 'bucket'}")
        if self.command == "PUT" and self.headers.get("Content-Length") == "0":
            self.server.count("PUT of nothing")
        time.sleep(self.server.faults.delay_s)
        if self.server.strikes("down_s"):
            self.close_connection = True
            return
        for fault, (status, code, message) in ANSWERS.items():
            if (fault != "begin_next" or self._begins_upload()) and self.server.strikes(fault):
                for _ in self._body():
                    pass
                xml = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
                self._answer(status, xml.encode(), "application/xml")
                return
        self._forward()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _names_object(self) -> bool:
        return "/" in urlsplit(self.path).path.strip("/")

    def _begins_upload(self) -> bool:
        return self.command == "POST" and urlsplit(self.path).query.startswith("uploads")

    def _control(self) -> None:
        sent = b"".join(self._body())
        if self.command == "PUT":
            try:
                self.server.set_faults(**json.loads(sent))
            except (ValueError, TypeError) as error:
                self._answer(400, str(error).encode(), "text/plain")
                return
        self._answer(200, json.dumps(dict(self.server.struck)).encode(), "application/json")

    def _answer(self, status: int, content: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _body(self) -> Iterator[bytes]:
        """Yield the body of the request as it is on the wire."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            size = 1
            while size:
                line = self.rfile.readline()
                size = int(line.split(b";")[0], 16)
                yield line + self.rfile.read(size + 2)
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            data = self.rfile.read(min(left, CHUNK))
            if not data:
                raise ConnectionResetError("the client went away")
            left -= len(data)
            yield data

    def _forward(self) -> None:
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            # The body is forwarded as it is on the wire, and stays chunked.
            if name.lower() not in HOP_BY_HOP - {"transfer-encoding"}:
                self.upstream.putheader(name, value)
        self.upstream.endheaders()
        for data in self._body():
            self.upstream.send(data)
        with self.upstream.getresponse() as response:
            self._forward_response(response)

    def _forward_response(self, response: http.client.HTTPResponse) -> None:
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        empty = self.command == "HEAD" or response.status in (204, 304)
        if not empty and response.length is None:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for data in iter(lambda: response.read(CHUNK), b""):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.write(b"0\r\n\r\n")
            return
        self.end_headers()
        if not empty:
            self._send_object(response)

    def _send_object(self, response: http.client.HTTPResponse) -> None:
        """Send a body of known length, with the faults in the middle of an object."""
        length = response.length or 0
        target = self.command == "GET" and self._names_object() and response.status in (200, 206) and length > 1
        reset, short, flip = (target and self.server.strikes(fault) for fault in ("reset_next", "short_next", "flip_next"))
        half = sent = length // 2
        self._copy(response, half)
        if reset or short:
            self.close_connection = True
            self.wfile.flush()
            if reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            return
        if flip:
            self.wfile.write(bytes([response.read(1)[0] ^ 1]))
            sent += 1
        self._copy(response, length - sent)

    def _copy(self, response: http.client.HTTPResponse, left: int) -> None:
        while left:
            data = response.read(min(left, CHUNK))
            if not data:
                raise ConnectionResetError("the S3 server went away")
            self.wfile.write(data)
            left -= len(data)


def main() -> None:
    """Run the proxy until SIGINT."""
    parser = argparse.ArgumentParser(description="A proxy before a real S3 server that injects the faults of S3.")
    parser.add_argument("--listen", required=True, help="HOST:PORT to listen on")
    parser.add_argument("--upstream", required=True, help="HOST:PORT of the real server")
    parser.add_argument("--share-503", type=float, default=0.0, help="share of requests answered 503 SlowDown")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw of these requests")
    flags = parser.parse_args()
    proxy = FaultyS3(flags.upstream, flags.listen, flags.seed)
    proxy.set_faults(share_503=flags.share_503)
    with contextlib.suppress(KeyboardInterrupt):
        proxy.serve_forever()


if __name__ == "__main__":
    main()
