"""HTTP/1.1 of uvicorn, which Ray Serve runs, with requests answered that offer another protocol: their bodies are read like all others.

Java's HttpClient offers HTTP/2 in each first request (`Connection: Upgrade, HTTP2-Settings`, `Upgrade: h2c`). A server may ignore the
offer (RFC 9110, section 7.8). The parser httptools stops after the headers of such a request, and uvicorn then loses the body.
uvicorn's other parser, h11, reads the body, but takes 2 to 3 times the CPU for every request. Measured: 140 instead of 60 µs at 100 kB.
"""

from typing import Any

import httptools
import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def ignore_upgrades() -> list[Any]:
    """Make the servers that uvicorn starts in this process ignore offers of other protocols than WebSocket.

    Ray's Python proxy calls this function when it starts, and takes what it returns, an empty list, for its middlewares.
    """
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:UpgradeIgnoringProtocol"
    return []


class _Parser(httptools.HttpRequestParser):
    """Parser of requests. Another one takes its place, from the same head without the offer, where the protocol ignores an offer."""

    def __init__(self, protocol: "UpgradeIgnoringProtocol") -> None:
        super().__init__(protocol)
        self._protocol = protocol
        # As uvicorn does, and for its reason: a client may send its next request before it reads an answer that closes the connection.
        self.set_dangerous_leniencies(lenient_data_after_close=True)

    def feed_data(self, data: Any) -> None:
        """Read the next bytes of the connection, an object with the buffer interface."""
        parser, rest = self, memoryview(data)
        while True:
            try:
                httptools.HttpRequestParser.feed_data(parser, rest)
                return
            except httptools.HttpParserUpgrade as stop:
                if not self._protocol.ignores_upgrade():
                    raise
                rest = rest[stop.args[0] :]
                parser = self._protocol.restart_request()


class UpgradeIgnoringProtocol(HttpToolsProtocol):
    """Connection of a client; WebSocket is the only other protocol that it changes to, and only for GET (RFC 6455, section 4.1)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = _Parser(self)

    def ignores_upgrade(self) -> bool:
        """Return True while the parser is in a head with an offer that is ignored. After CONNECT there is no body."""
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT" and not self._should_upgrade()

    def restart_request(self) -> _Parser:
        """Read the head of the request again without the header `Upgrade`; return the parser that awaits the body."""
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % (name, value) for name, value in self.headers if name != b"upgrade"]
        self.parser = parser = _Parser(self)
        parser.feed_data(b"\r\n".join([*lines, b"", b""]))
        return parser

    def on_headers_complete(self) -> None:
        """Start the answer, unless the parser will read the head again."""
        if not self.ignores_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Pass the end of the body to the answer, unless the parser will read the head again."""
        if not self.ignores_upgrade():
            super().on_message_complete()

    def _should_upgrade(self) -> bool:
        return self.parser.get_method() == b"GET" and super()._should_upgrade()
