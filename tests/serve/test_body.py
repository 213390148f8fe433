"""Reading the encoded image of a request body, and the errors of bodies that hold none."""

import base64
import gzip
import json
import time
import zlib

import pytest

from red_engine import encode_image

JPEG = encode_image()


def post_base64(client, text):
    return client.post(json.dumps({"image": text}), "application/json")


def error_of(response):
    body = response.json()
    assert set(body) == {"code", "message", "request_id"}
    assert "Traceback" not in response.text
    return response.status_code, body["code"]


def test_the_three_encodings_of_one_image_give_the_same_boxes(client):
    raw = client.post(JPEG).json()
    multipart = client.upload({"file": ("any name.jpg", JPEG)}).json()
    document = post_base64(client, base64.b64encode(JPEG).decode()).json()
    assert len(raw["detections"]) == 1
    assert raw["detections"] == multipart["detections"] == document["detections"]


@pytest.mark.parametrize("media_type", ["application/octet-stream", "IMAGE/PNG; q=1", "image/anything"])
def test_the_declared_image_type_is_ignored(client, media_type):
    assert client.post(JPEG, media_type).status_code == 200


def test_an_image_without_content_type_is_accepted(client):
    assert client.post(JPEG, media_type=None).status_code == 200


@pytest.mark.parametrize(
    "encode",
    [
        lambda data: base64.encodebytes(data).decode(),
        lambda data: base64.urlsafe_b64encode(data).decode(),
        lambda data: "data:image/jpeg;base64," + base64.b64encode(data).decode(),
        lambda data: " \t\n" + base64.b64encode(data).decode() + "\r\n",
    ],
    ids=["line breaks", "URL-safe alphabet", "data URI", "surrounding whitespace"],
)
def test_base64_is_accepted_with(client, encode):
    assert post_base64(client, encode(JPEG)).status_code == 200


@pytest.mark.parametrize("text", ["abcde", "ab=c", "ab==cd==", "a*b=", "é", "\ud800", "data:image/png,abcd", "data:image/png;base64"])
def test_broken_base64_is_refused(client, text):
    assert error_of(post_base64(client, text)) == (400, "bad_base64")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[1, 2]",
        b'"image"',
        b"null",
        b"\xff\xfe",
        b"[" * 10_000,
        b'{"image": ' * 10_000,
        b'{"image": "YQ==", "image": "Yg=="}',
        b'{"image": 1e400}',
        b'{"image": "YQ==", "url": "http://169.254.169.254/"}',
        b'{"url": "http://169.254.169.254/"}',
        b'{"\\ud800": 1}',
    ],
)
def test_json_that_is_not_one_base64_image_is_refused(client, body):
    assert error_of(client.post(body, "application/json")) == (400, "bad_json")


@pytest.mark.parametrize("media_type", ["image/jpeg", "application/json", "multipart/form-data; boundary=b", "text/plain"])
def test_an_empty_body_is_an_empty_image(client, media_type):
    assert error_of(client.post(b"", media_type)) == (400, "empty_image")


def test_an_empty_image_inside_a_body_is_refused(client):
    assert error_of(post_base64(client, "")) == (400, "empty_image")
    assert error_of(client.upload({"file": ("empty.jpg", b"")})) == (400, "empty_image")


@pytest.mark.parametrize("media_type", ["text/html", "video/mp4", "<script>"])
def test_other_content_types_are_refused(client, media_type):
    assert error_of(client.post(JPEG, media_type)) == (415, "unsupported_media_type")


@pytest.mark.parametrize("media_type", ["", "application/x-www-form-urlencoded"])
def test_the_bytes_decide_where_the_client_declares_no_content_type(client, media_type):
    expected = client.post(JPEG).json()["detections"]
    assert client.post(JPEG, media_type).json()["detections"] == expected
    document = json.dumps({"image": base64.b64encode(JPEG).decode()}).encode()
    assert client.post(document, media_type).json()["detections"] == expected


def test_a_form_that_is_no_image_is_refused(client):
    assert error_of(client.post(b"file=photo.jpg", "application/x-www-form-urlencoded")) == (415, "unsupported_media_type")


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("br", bytes)])
def test_a_compressed_body_is_refused_and_not_inflated(client, encoding, compress):
    answer = client.post(compress(b"\0" * 400_000), **{"Content-Encoding": encoding})
    assert error_of(answer) == (415, "unsupported_encoding")


def test_a_body_over_the_limit_is_refused_by_its_declared_length(client):
    answer = client.post(b"\0" * 600_001)
    assert error_of(answer) == (413, "body_too_large")
    assert "600001" in answer.json()["message"] and "600000" in answer.json()["message"]


def test_a_body_without_declared_length_is_refused_at_the_limit(client):
    assert error_of(client.post(b"\0" * 1000 for _ in range(700))) == (413, "body_too_large")


def test_a_body_in_one_byte_chunks_is_read_completely(client):
    assert client.post(JPEG[i : i + 1] for i in range(len(JPEG))).status_code == 200


def test_a_body_that_stalls_is_answered_408(serve):
    def body():
        yield JPEG[:100]
        time.sleep(2.0)
        yield JPEG[100:]

    with serve(request_timeout_s=1.5) as client:
        assert error_of(client.post(body())) == (408, "body_timeout")


def multipart(*parts):
    lines = b"".join(b"--b\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + data + b"\r\n" for head, data in parts)
    return lines + b"--b--\r\n"


FILE = b'name="file"; filename="a.jpg"'


@pytest.mark.parametrize(
    "body",
    [
        multipart((FILE, JPEG), (FILE, JPEG)),
        multipart((b'name="picture"; filename="a.jpg"', JPEG)),
        multipart((b'name="file"', b"text")),
        multipart((b'filename="a.jpg"', JPEG)),
        multipart(*[(b'name="x"', b"")] * 10_000),
        multipart((b'name="' + b"n" * 400_000 + b'"; filename="a"', JPEG)),
        multipart((b'name="x"', b"\0" * 100_000)),
        b"--b\r\n",
        b"no boundary here",
        multipart((FILE, JPEG))[:-40],
    ],
    ids=["two files", "other name", "no file name", "no name", "10 000 parts", "giant name", "giant field", "nothing", "garbage", "cut"],
)
def test_multipart_that_does_not_hold_one_file_is_refused(client, body):
    assert error_of(client.post(body, "multipart/form-data; boundary=b")) == (400, "bad_multipart")


def test_multipart_without_boundary_is_refused(client):
    assert error_of(client.post(multipart((FILE, JPEG)), "multipart/form-data")) == (400, "bad_multipart")


def test_a_file_name_with_markup_and_line_breaks_is_not_in_the_response(client):
    answer = client.upload({"file": ("<script>\x1b[31m\n.jpg", JPEG)})
    assert answer.status_code == 200
    assert "script" not in answer.text
