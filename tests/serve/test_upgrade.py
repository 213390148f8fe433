"""Requests that offer another protocol by `Upgrade`, over one socket: answered as without the offer (RFC 9110, section 7.8)."""

import json
import socket
import time

import pytest

from red_engine import RECTANGLE, encode_image

JPEG = encode_image()
LENGTH = f"Content-Length: {len(JPEG)}\r\n"
CHUNKED = b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (1000, JPEG[:1000], len(JPEG) - 1000, JPEG[1000:])
WEBSOCKET = "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nUpgrade: websocket\r\n"
OFFERS = {
    "Java's HttpClient": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
    "curl --http2": "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    "several protocols": "Connection: keep-alive, Upgrade\r\nUpgrade: TLS/1.0, HTTP/2.0\r\n",
    "TLS": "Upgrade: TLS/1.0\r\nConnection: Upgrade\r\n",
    "WebSocket by POST": WEBSOCKET,
    "two headers": "Connection: Upgrade\r\nConnection: keep-alive\r\nUpgrade: h2c\r\nUpgrade: foo/2\r\n",
    "empty": "Connection: Upgrade\r\nUpgrade: \r\n",
}


def post(headers, version="1.1"):
    return f"POST /v1/detect?confidence=0.5 HTTP/{version}\r\nHost: a\r\nContent-Type: image/jpeg\r\n{headers}\r\n".encode()


@pytest.fixture
def stream(client):
    host, port = client.base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection.makefile("rwb", buffering=0) as stream:
            yield stream


def read_answer(stream):
    """Read status and body of one response, whose length is in its head."""
    status = int(stream.readline().split()[1])
    headers = dict(line.lower().split(b": ") for line in iter(lambda: stream.readline().strip(), b""))
    if status == 100:
        return read_answer(stream)
    body = b""
    while len(body) < int(headers[b"content-length"]):
        body += stream.read(int(headers[b"content-length"]) - len(body))
    return status, body


def assert_detected(stream):
    status, body = read_answer(stream)
    assert status == 200, body
    [detection] = json.loads(body)["detections"]
    assert detection["box"] == pytest.approx(RECTANGLE, abs=2)


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize(("framing", "body"), [(LENGTH, JPEG), ("Transfer-Encoding: chunked\r\n", CHUNKED)], ids=["length", "chunked"])
def test_the_image_is_read_whichever_protocol_is_offered(stream, offer, framing, body):
    stream.write(post(offer + framing) + body)
    assert_detected(stream)
    # The connection stays, for requests with and without the offer.
    stream.write(post(framing) + body)
    assert_detected(stream)
    stream.write(post(framing + offer) + body)
    assert_detected(stream)


@pytest.mark.parametrize("framing", [LENGTH, LENGTH + "Expect: 100-continue\r\n"], ids=["plain", "expect"])
def test_head_and_body_may_arrive_in_any_pieces(stream, framing):
    message = post(OFFERS["TLS"] + framing) + JPEG
    head = len(message) - len(JPEG)
    for start, end in ((0, 5), (5, head - 30), (head - 30, head - 1), (head - 1, head), (head, head + 1), (head + 1, None)):
        stream.write(message[start:end])
        time.sleep(0.01)
    assert_detected(stream)


def test_requests_sent_at_once_are_answered_in_their_order(stream):
    health = f"GET /healthz HTTP/1.1\r\nHost: a\r\n{OFFERS['curl --http2']}\r\n".encode()
    stream.write(health + post(OFFERS["TLS"] + LENGTH) + JPEG + health * 2 + post(LENGTH) + JPEG)
    answers = [read_answer(stream) for _ in range(5)]
    assert [status for status, _ in answers] == [200] * 5
    assert [b"detections" in body for _, body in answers] == [False, True, False, False, True]


@pytest.mark.parametrize(("offer", "version"), [("Java's HttpClient", "1.0"), ("several protocols", "1.1")])
def test_a_client_that_closes_gets_its_answer_and_the_end_of_the_connection(stream, offer, version):
    stream.write(post(OFFERS[offer].replace("keep-alive", "close") + LENGTH, version) + JPEG)
    status, body = read_answer(stream)
    assert status == 200 and b"detections" in body
    assert stream.read() == b""


def test_websocket_by_get_is_still_taken_to_uvicorns_websocket(stream):
    stream.write(f"GET / HTTP/1.1\r\nHost: a\r\n{WEBSOCKET}\r\n".encode())
    # The page / has no WebSocket, and 403 is uvicorn's refusal of a handshake.
    assert read_answer(stream)[0] == 403


@pytest.mark.parametrize(
    "message", [b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", post(OFFERS["TLS"] + "Content-Length: x\r\n")], ids=["connect", "length"]
)
def test_a_bad_request_is_refused_and_the_service_lives(client, stream, message):
    stream.write(message)
    assert 400 <= read_answer(stream)[0] < 500
    assert client.post(JPEG).status_code == 200
