"""Redact credentials in logs and error messages, and refuse credentials in settings that are written to files.

Secrets are found by source: environment variables with the name of a secret, passwords in URLs of other variables, and the
credential files of AWS and Ray. Secrets are also found by pattern: AWS keys, user and password in a URL, parameters of a presigned
URL. Temporary keys of a machine's role are found by pattern alone, because no Python code holds them.
"""

import functools
import json
import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

from yolor_ray.errors import ConfigError

MIN_SECRET_LENGTH = 8
"""Fewest characters of a secret: shorter values, such as `test`, are parts of ordinary words."""
SECRET_NAME = re.compile(
    r"(?:^|_)(?:(?:API|ACCESS)?KEY|KEY_ID|TOKEN|SECRET|PASS|PASSWD|PASSPHRASE|PAT|CREDENTIAL)S?$|PASSWORD$", re.IGNORECASE
)
ALWAYS_SECRET_NAME = re.compile(r"^AWS_|SECRET|PASS", re.IGNORECASE)
"""Variables matching this and SECRET_NAME hold a secret even if the value looks plain: passwords may be numbers, AWS keys have slashes."""
# MAX_TOKENS=10000000, SSH_KEY=~/key, S3_KEY=coco/train2017. Random text has capitals or digits between letters; Base64 has + or =.
PLAIN_VALUE = re.compile(r"\d+|(?:~[\w.-]*)?/[^+=]*|(?:[a-z._-]+\d{0,4}/)+(?:[a-z._-]+\d{0,4})?")
AWS_FILE_LINE = re.compile(r"^\s*(aws_(?:access_key_id|secret_access_key|session_token))\s*=\s*(\S+)", re.MULTILINE | re.IGNORECASE)

URL_END = r"\s\"'<>"
"""Characters that end a URL, for use in a character class."""
# A secret access key may contain slashes. s3:// URLs have no port, so a colon separates user and password.
USER_IN_S3_URL = re.compile(rf"(s3a?://)[^/:@,{URL_END}]+:(?!//)[^@,{URL_END}]+@", re.IGNORECASE)
USER_IN_URL = re.compile(rf"([a-z][a-z0-9+.-]{{0,15}}://)[^/?#@{URL_END}]+@", re.IGNORECASE)
SIGNATURE = re.compile(
    r"\b(X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|(?<=[?&])(?:Signature|sig))"
    rf"(=|%3D|\\u003d|: ?)[^&;,\\{URL_END}]+",
    re.IGNORECASE,
)
PATTERNS = (
    (USER_IN_S3_URL, r"\1<CREDENTIALS>@"),
    (USER_IN_URL, r"\1<CREDENTIALS>@"),
    (SIGNATURE, r"\1\2<\1>"),
    # "basic" in lower case and without the header's name is an English word.
    (re.compile(r"\b(Basic|(?i:Bearer|Authorization\W{1,5}Basic)) [A-Za-z0-9+/._~-]{16,}=*"), r"\1 <CREDENTIALS>"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), "<AWS_ACCESS_KEY_ID>"),
)


def redact(text: str) -> str:
    """Replace each secret in the text, plain or URL-encoded, by `<NAME>` of the variable that holds the secret."""
    secret_pattern, names = _secret_pattern(frozenset(_secrets()))
    if names:
        text = secret_pattern.sub(lambda match: f"<{names[match.group()]}>", text)
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def refuse_credentials(name: str, value: Any) -> None:
    """Raise ConfigError if a URL with user, password or signature is in a setting or in nested settings.

    The message has the setting's name, but not the value.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            refuse_credentials(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value, start=1):
            refuse_credentials(f"{name} {number}", item)
    elif isinstance(value, str) and any(pattern.search(value) for pattern in (USER_IN_S3_URL, USER_IN_URL, SIGNATURE)):
        expected = "expected them in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        raise ConfigError(f"{name}: found credentials in a URL, {expected}: settings are written to files and logs")


@functools.cache
def hide_secrets() -> None:
    """Redact the log records of all handlers and the tracebacks of uncaught exceptions in this process; further calls do nothing."""
    make_record = logging.getLogRecordFactory()

    def make_redacted_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        return _redact_record(make_record(*args, **kwargs))

    logging.setLogRecordFactory(make_redacted_record)
    _redact_tracebacks()


def _redact_record(record: logging.LogRecord) -> logging.LogRecord:
    """Redact a record in place. Message and traceback change only where they hold a secret, as some formatters need the arguments."""
    try:
        message = record.getMessage()
    except Exception as error:  # noqa: BLE001 - an argument's __str__ may raise anything; logging shows the error and continues
        message = f"{_unformatted_message(record)}\n{_format_traceback(error)}"
    redacted = redact(message)
    if redacted != message:
        record.msg, record.args = redacted, None
    if record.exc_info and record.exc_info[1]:
        record.exc_text = redact(_format_traceback(record.exc_info[1]))
    return record


def _unformatted_message(record: logging.LogRecord) -> str:
    """Return message and arguments of a record that cannot be formatted, as logging writes them to standard error."""
    try:
        return f"{record.msg!r} {record.args}"
    except Exception:  # noqa: BLE001 - an argument's __repr__ may raise anything, too; logging then shows neither of them
        return record.msg if isinstance(record.msg, str) else ""


def _redact_tracebacks() -> None:
    default_hook, default_thread_hook, default_unraisable_hook = sys.excepthook, threading.excepthook, sys.unraisablehook

    def hook(error_type: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not _write_redacted("", error):
            default_hook(error_type, error, trace)

    def thread_hook(event: threading.ExceptHookArgs) -> None:
        if not _write_redacted(f"Exception in thread {event.thread.name if event.thread else '?'}:\n", event.exc_value):
            default_thread_hook(event)

    def unraisable_hook(event: Any) -> None:
        if not _write_redacted("Exception ignored:\n", event.exc_value):
            default_unraisable_hook(event)

    sys.excepthook, threading.excepthook, sys.unraisablehook = hook, thread_hook, unraisable_hook


def _write_redacted(title: str, error: BaseException | None) -> bool:
    """Write the redacted traceback to standard error if the traceback holds a secret. Return True if it was written."""
    if error is None:
        return False
    text = _format_traceback(error)
    redacted = redact(text)
    if redacted == text:
        return False
    sys.stderr.write(f"{title}{redacted}\n")
    return True


def _format_traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip("\n")


def _secrets() -> Iterator[tuple[str, str]]:
    """Yield each known secret with the name that replaces the secret."""
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and (ALWAYS_SECRET_NAME.search(name) or not PLAIN_VALUE.fullmatch(value.strip())):
            yield value.strip(), name
        elif "://" in value and "@" in value:
            yield from ((secret, name) for secret in _credentials_in(value))
    for variable, default in (("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config")):
        yield from ((value, name.upper()) for name, value in AWS_FILE_LINE.findall(_file_text(os.environ.get(variable) or default)))
    yield _file_text(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").strip(), "RAY_AUTH_TOKEN"


def _credentials_in(url: str) -> tuple[str, ...]:
    """Return the password in a URL, or the user if there is no password: some services take a token as the user."""
    try:
        user_and_password = urlsplit(url).netloc.rpartition("@")[0]
    except ValueError:
        return ()
    user, _, password = user_and_password.partition(":")
    return (password or user, unquote(password or user))


def _file_text(path: str) -> str:
    """Return the text of a small file; empty if the file is absent or unreadable."""
    try:
        file = Path(path).expanduser()
        status = file.stat()
        return _read_cached(file, status.st_mtime_ns, status.st_size)
    except (OSError, RuntimeError):
        return ""


@functools.lru_cache(maxsize=8)
def _read_cached(file: Path, _modified_ns: int, _size: int) -> str:
    return file.read_text(errors="replace")


@functools.lru_cache(maxsize=8)
def _secret_pattern(secrets: frozenset[tuple[str, str]]) -> tuple[re.Pattern[str], dict[str, str]]:
    """Return a pattern of all spellings of the secrets, the longest first, and the name for each spelling."""
    names: dict[str, str] = {}
    for secret, name in sorted(secrets):
        if len(secret) >= MIN_SECRET_LENGTH:
            names |= dict.fromkeys(_spellings(secret), name)
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))), names


def _spellings(secret: str) -> set[str]:
    """Return the secret itself, URL-encoded with capital and small hex digits, and escaped as in JSON and in Python's repr."""
    encoded = {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    lower_hex = {re.sub("%[0-9A-F]{2}", lambda byte: byte.group().lower(), text) for text in encoded}
    return {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]} | encoded | lower_hex
