"""What is known to be secret, or looks it, is replaced wherever a process writes text; what only resembles it stays."""

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from yolor_ray.errors import ConfigError
from yolor_ray.io.redact import hide_secrets, redacted, refuse_credentials

ROOT = Path(__file__).resolve().parents[2]
SECRET = "ca+nary/sec=ret"

LOGGING = """
import logging, os, sys, threading
from yolor_ray.redact import hide_secrets
SECRET = os.environ["AWS_SECRET_ACCESS_KEY"]
early = logging.StreamHandler(sys.stderr)
hide_secrets()
log = logging.getLogger("a.library")
log.addHandler(early)
log.propagate = False
log.error("text %s", SECRET)
log.error(f"format {SECRET}")
log.error("does not fit %d", SECRET)
log.error("fits %s of %d", "three", 3)
class Mute:
    def __str__(self): raise RuntimeError("mute")
class Telling:
    def __str__(self): raise RuntimeError(f"telling {SECRET}") from OSError(SECRET)
class Dumb(Mute):
    __repr__ = Mute.__str__
log.error("mute %s", Mute())
log.error("beside %s %s", SECRET, Mute())
log.error("told %s", Telling())
log.error(f"dumb {SECRET} %s", Dumb())
log.error(Dumb())
try:
    raise OSError(5, f"refused {SECRET}", "file")
except OSError as error:
    log.exception("caught %s", error)
def fail(): raise KeyError(SECRET)
threading.Thread(target=fail, name="reader").start()
class Closes:
    def __del__(self): raise ValueError(SECRET)
Closes()
logging.basicConfig()
logging.getLogger("late").warning("root %s", SECRET)
try:
    raise ValueError(SECRET)
except ValueError as error:
    raise RuntimeError("outer") from error
"""


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return SECRET


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SESSION_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "RAY_AUTH_TOKEN",
        "MY_API_KEY",
        "Pg_Password",
        "PGPASSWORD",
        "client_secret",
        "DB_PASS",
        "GITHUB_PAT",
    ],
)
def test_the_value_of_a_variable_whose_name_says_secret_is_replaced_by_the_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "canary1234")
    assert redacted("key=canary1234, canary1234") == f"key=<{name}>, <{name}>"


@pytest.mark.parametrize("name", ["AWS_REGION", "MONKEY", "COMPASS", "PATH", "PWD", "TOKENIZERS_PARALLELISM", "RAY_AUTH_MODE"])
def test_the_value_of_any_other_variable_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "canary1234")
    assert redacted("key=canary1234") == "key=canary1234"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_TOKENS", "10000000"),
        ("SSH_KEY", "/home/me/Keys/id_2"),
        ("SSH_KEY", "~/.ssh/id_ed25519"),
        ("S3_KEY", "datasets/train"),
        ("S3_KEY", "datasets/coco/train2017/"),
    ],
)
def test_a_number_or_a_path_in_a_variable_that_may_hold_a_secret_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert redacted(f"found {value}") == f"found {value}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "/canary/canary"),
        ("AWS_SESSION_TOKEN", "canary/canary"),
        ("S3_SECRET_KEY", "canary/canary"),
        ("DB_PASS", "12345678"),
        ("DB_PASSWORD", "~canary/canary"),
        ("MY_API_TOKEN", "canary/c4n4ry"),
        ("MY_API_TOKEN", "canary/Canary"),
        ("MY_API_TOKEN", "/canaryCanary+canary="),
        ("MY_API_TOKEN", "~canaryCanary"),
    ],
)
def test_a_secret_that_resembles_a_number_or_a_path_is_replaced(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert redacted(f"found {value}") == f"found <{name}>"


def test_a_short_value_is_no_secret_for_it_is_part_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "")
    assert redacted("s3://test-bucket") == "s3://test-bucket"


@pytest.mark.parametrize("spelling", [SECRET, quote(SECRET), quote(SECRET, safe=""), quote_plus(SECRET), quote_plus(SECRET).lower()])
def test_a_secret_is_found_url_encoded_too(secret: str, spelling: str) -> None:
    assert redacted(f"?key={spelling}&x=1") == "?key=<AWS_SECRET_ACCESS_KEY>&x=1"


def test_of_two_secrets_that_begin_alike_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canary12")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary123456")
    assert redacted("canary123456 canary12") == "<AWS_SECRET_ACCESS_KEY> <AWS_ACCESS_KEY_ID>"


def test_a_password_in_the_url_of_a_variable_is_found_without_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://me:can%2Fary12@s3.example:9000")
    assert redacted("resolve me:can%2Fary12 or can/ary12") == "resolve me:<AWS_ENDPOINT_URL> or <AWS_ENDPOINT_URL>"
    assert redacted("at s3.example:9000") == "at s3.example:9000"


@pytest.mark.parametrize(
    "text",
    [
        "https://me:canary@host:9000/path",
        "https://canary@host/path",
        "s3://AKIA:canary@bucket/key",
        "s3://AKIA:can/canary/ary@bucket/key",
        "a,S3://k:canary@b",
        "https://h/k?X-Amz-Signature=canary&X-Amz-Date=1",
        "https://h/k?X-Amz-Credential=canary%2Fus-east-1",
        "https://h/k?a=1&Signature=canary",
        "X-Amz-Security-Token: canary",
        '{"url": "https://h/k?X-Goog-Signature=canary"}',
        "https://h/k?AWSAccessKeyId=canary",
        "Authorization: Bearer canarycanarycanary",
        "Authorization: Basic canarycanarycanary==",
        "authorization: bearer canarycanarycanary",
        "{'authorization': 'basic canarycanarycanary=='}",
    ],
)
def test_what_looks_like_a_credential_is_replaced_once_and_for_all(text: str) -> None:
    assert "canary" not in redacted(text)
    assert redacted(redacted(text)) == redacted(text)


def test_the_key_id_of_a_machines_role_is_known_by_its_looks() -> None:
    assert redacted("Credential ASIAIOSFODNN7EXAMPLE refused") == "Credential <AWS_ACCESS_KEY_ID> refused"


PLAIN = [
    "s3://bucket/a:b@c",
    "s3://a/b,s3://c/d@2x.jpg",
    "http://host:8265/a@b",
    "/data/me@home/x.jpg",
    "file:///a:b@c",
    "event=done url=s3://runs/photos/weights AP=0.5",
    "Basic training of tokens",
    "in basic /data/photos/JPEGImages",
]


@pytest.mark.parametrize("text", PLAIN)
def test_what_only_resembles_a_credential_stays(text: str) -> None:
    assert redacted(text) == text
    refuse_credentials("place", text)


def test_secrets_of_awss_and_rays_own_files_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert redacted("canary1234") == "canary1234", "files that are absent are no fault"
    file.write_text("[default]\nregion = us-east-1\n[work]\naws_secret_access_key = canary1234\nAWS_SESSION_TOKEN=canary5678\n")
    (tmp_path / "token").write_text("canary9999\n")
    assert redacted("canary1234 canary5678 canary9999") == "<AWS_SECRET_ACCESS_KEY> <AWS_SESSION_TOKEN> <RAY_AUTH_TOKEN>"
    assert redacted("us-east-1") == "us-east-1"
    file.write_text("[default]\naws_secret_access_key = another-canary\n")
    assert redacted("another-canary") == "<AWS_SECRET_ACCESS_KEY>", "renewed keys are known at once"


def test_no_log_by_any_handler_and_no_traceback_of_a_process_shows_a_secret() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AWS_SECRET_ACCESS_KEY": SECRET}
    done = subprocess.run([sys.executable, "-c", LOGGING], capture_output=True, text=True, env=environment, timeout=60)
    shown = done.stderr
    assert done.returncode == 1
    assert SECRET not in shown
    for line in (
        "text <AWS_SECRET_ACCESS_KEY>",
        "format <AWS_SECRET_ACCESS_KEY>",
        "'does not fit %d' ('<AWS_SECRET_ACCESS_KEY>',)",
        "fits three of 3",
        "--- Logging error ---",
        "Message: 'mute %s'",
        "'beside %s %s' ('<AWS_SECRET_ACCESS_KEY>', ",
        "RuntimeError: telling <AWS_SECRET_ACCESS_KEY>",
        "OSError: <AWS_SECRET_ACCESS_KEY>",
        "dumb <AWS_SECRET_ACCESS_KEY> %s",
        "caught [Errno 5] refused <AWS_SECRET_ACCESS_KEY>: 'file'",
        "OSError: [Errno 5] refused <AWS_SECRET_ACCESS_KEY>: 'file'",
        "Exception in thread reader:",
        "KeyError: '<AWS_SECRET_ACCESS_KEY>'",
        "Exception ignored:",
        "WARNING:late:root <AWS_SECRET_ACCESS_KEY>",
        "ValueError: <AWS_SECRET_ACCESS_KEY>",
        "RuntimeError: outer",
    ):
        assert line in shown, line


def test_hiding_twice_is_hiding_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, hook in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(place, hook, getattr(place, hook))
    before = logging.getLogRecordFactory(), sys.excepthook
    hide_secrets.cache_clear()
    try:
        hide_secrets()
        once = logging.getLogRecordFactory(), sys.excepthook
        hide_secrets()
        assert once == (logging.getLogRecordFactory(), sys.excepthook)
        assert once[0] is not before[0] and once[1] is not before[1]
    finally:
        logging.setLogRecordFactory(before[0])
        hide_secrets.cache_clear()


@pytest.mark.parametrize("url", ["s3://AKIA:canary@bucket/k", "https://h/k?X-Amz-Signature=canary", "s3://a,s3://k:canary@b"])
def test_settings_with_credentials_in_a_url_are_refused_by_place_alone(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^data\.train 2: found credentials in a URL") as caught:
        refuse_credentials("", {"run": {"name": "x"}, "data": {"train": ["s3://plain", url]}})
    assert "canary" not in str(caught.value)
