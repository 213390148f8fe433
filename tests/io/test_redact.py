"""Secrets are replaced in all text that a process writes, and text that only resembles a secret is unchanged."""

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from yolor_ray.errors import ConfigError
from yolor_ray.io.redact import hide_secrets, redact, refuse_credentials

ROOT = Path(__file__).resolve().parents[2]
SECRET = "ca+nary/sec=ret"

LOGGING = """
import logging, os, sys, threading
from yolor_ray.io.redact import hide_secrets
SECRET = os.environ["AWS_SECRET_ACCESS_KEY"]
early = logging.StreamHandler(sys.stderr)
hide_secrets()
logger = logging.getLogger("a.library")
logger.addHandler(early)
logger.propagate = False
logger.error("text %s", SECRET)
logger.error(f"format {SECRET}")
logger.error("does not fit %d", SECRET)
logger.error("fits %s of %d", "three", 3)
class NoStr:
    def __str__(self): raise RuntimeError("no text")
class NoStrWithSecret:
    def __str__(self): raise RuntimeError(f"no text of {SECRET}") from OSError(SECRET)
class NoRepr(NoStr):
    __repr__ = NoStr.__str__
logger.error("no str %s", NoStr())
logger.error("beside %s %s", SECRET, NoStr())
logger.error("no str with secret %s", NoStrWithSecret())
logger.error(f"no repr {SECRET} %s", NoRepr())
logger.error(NoRepr())
try:
    raise OSError(5, f"refused {SECRET}", "file")
except OSError as error:
    logger.exception("caught %s", error)
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
def test_the_value_of_a_variable_with_a_secret_name_is_replaced_by_the_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "canary1234")
    assert redact("key=canary1234, canary1234") == f"key=<{name}>, <{name}>"


@pytest.mark.parametrize("name", ["AWS_REGION", "MONKEY", "COMPASS", "PATH", "PWD", "TOKENIZERS_PARALLELISM", "RAY_AUTH_MODE"])
def test_the_value_of_any_other_variable_is_unchanged(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "canary1234")
    assert redact("key=canary1234") == "key=canary1234"


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
def test_a_number_or_a_path_in_a_variable_with_a_secret_name_is_unchanged(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert redact(f"found {value}") == f"found {value}"


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
    assert redact(f"found {value}") == f"found <{name}>"


def test_a_short_value_is_no_secret_because_words_contain_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "")
    assert redact("s3://test-bucket") == "s3://test-bucket"


@pytest.mark.parametrize("spelling", [SECRET, quote(SECRET), quote(SECRET, safe=""), quote_plus(SECRET), quote_plus(SECRET).lower()])
def test_a_url_encoded_secret_is_replaced(secret: str, spelling: str) -> None:
    assert redact(f"?key={spelling}&x=1") == "?key=<AWS_SECRET_ACCESS_KEY>&x=1"


def test_two_secrets_with_the_same_beginning_are_replaced_completely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "canary12")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary123456")
    assert redact("canary123456 canary12") == "<AWS_SECRET_ACCESS_KEY> <AWS_ACCESS_KEY_ID>"


def test_a_password_in_the_url_of_a_variable_is_replaced_without_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://me:can%2Fary12@s3.example:9000")
    assert redact("resolve me:can%2Fary12 or can/ary12") == "resolve me:<AWS_ENDPOINT_URL> or <AWS_ENDPOINT_URL>"
    assert redact("at s3.example:9000") == "at s3.example:9000"


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
def test_text_like_a_credential_is_replaced_and_a_second_redaction_changes_nothing(text: str) -> None:
    assert "canary" not in redact(text)
    assert redact(redact(text)) == redact(text)


def test_the_key_id_of_a_machines_role_is_replaced_by_its_pattern() -> None:
    assert redact("Credential ASIAIOSFODNN7EXAMPLE refused") == "Credential <AWS_ACCESS_KEY_ID> refused"


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
def test_text_that_only_resembles_a_credential_is_unchanged(text: str) -> None:
    assert redact(text) == text
    refuse_credentials("setting", text)


def test_secrets_in_the_files_of_aws_and_ray_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert redact("canary1234") == "canary1234", "absent files are no error"
    file.write_text("[default]\nregion = us-east-1\n[work]\naws_secret_access_key = canary1234\nAWS_SESSION_TOKEN=canary5678\n")
    (tmp_path / "token").write_text("canary9999\n")
    assert redact("canary1234 canary5678 canary9999") == "<AWS_SECRET_ACCESS_KEY> <AWS_SESSION_TOKEN> <RAY_AUTH_TOKEN>"
    assert redact("us-east-1") == "us-east-1"
    file.write_text("[default]\naws_secret_access_key = another-canary\n")
    assert redact("another-canary") == "<AWS_SECRET_ACCESS_KEY>", "renewed keys are replaced at once"


def test_no_log_record_of_any_handler_and_no_traceback_has_a_secret() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AWS_SECRET_ACCESS_KEY": SECRET}
    process = subprocess.run([sys.executable, "-c", LOGGING], capture_output=True, text=True, env=environment, timeout=60)
    output = process.stderr
    assert process.returncode == 1
    assert SECRET not in output
    for line in (
        "text <AWS_SECRET_ACCESS_KEY>",
        "format <AWS_SECRET_ACCESS_KEY>",
        "'does not fit %d' ('<AWS_SECRET_ACCESS_KEY>',)",
        "fits three of 3",
        "--- Logging error ---",
        "Message: 'no str %s'",
        "'beside %s %s' ('<AWS_SECRET_ACCESS_KEY>', ",
        "RuntimeError: no text of <AWS_SECRET_ACCESS_KEY>",
        "OSError: <AWS_SECRET_ACCESS_KEY>",
        "no repr <AWS_SECRET_ACCESS_KEY> %s",
        "caught [Errno 5] refused <AWS_SECRET_ACCESS_KEY>: 'file'",
        "OSError: [Errno 5] refused <AWS_SECRET_ACCESS_KEY>: 'file'",
        "Exception in thread reader:",
        "KeyError: '<AWS_SECRET_ACCESS_KEY>'",
        "Exception ignored:",
        "WARNING:late:root <AWS_SECRET_ACCESS_KEY>",
        "ValueError: <AWS_SECRET_ACCESS_KEY>",
        "RuntimeError: outer",
    ):
        assert line in output, line


def test_hiding_secrets_twice_installs_the_hooks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, hook in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(module, hook, getattr(module, hook))
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
def test_settings_with_credentials_in_a_url_are_refused_by_name_without_the_value(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^data\.train 2: found credentials in a URL") as caught:
        refuse_credentials("", {"run": {"name": "x"}, "data": {"train": ["s3://plain", url]}})
    assert "canary" not in str(caught.value)
