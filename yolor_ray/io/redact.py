"""Keep credentials out of what people read: logs, error messages, settings that are written down.

A secret is known by where it is kept (environment variables whose names say so, passwords in the URLs of others, the files in
which AWS and Ray keep theirs) or by how it looks (an AWS key, user and password in a URL, a presigned URL's parameters). Temporary
keys of a machine's role are known by their looks alone: no Python code ever holds them.
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

SHORTEST = 8
"""Fewest characters of a value that is looked for: shorter ones, such as `test`, are part of innocent words."""
SECRET_NAME = re.compile(
    r"(?:^|_)(?:(?:API|ACCESS)?KEY|KEY_ID|TOKEN|SECRET|PASS|PASSWD|PASSPHRASE|PAT|CREDENTIAL)S?$|PASSWORD$", re.IGNORECASE
)
SURE_NAME = re.compile(r"^AWS_|SECRET|PASS", re.IGNORECASE)
"""Variables that hold a secret whatever it looks like, if SECRET_NAME fits: a password may be a number, and AWS's keys have slashes."""
# MAX_TOKENS=10000000, SSH_KEY=~/key, S3_KEY=coco/train2017. Random text has capitals, or digits between letters; Base64 has + or =.
PLAIN_VALUE = re.compile(r"\d+|(?:~[\w.-]*)?/[^+=]*|(?:[a-z._-]+\d{0,4}/)+(?:[a-z._-]+\d{0,4})?")
AWS_FILE_LINE = re.compile(r"^\s*(aws_(?:access_key_id|secret_access_key|session_token))\s*=\s*(\S+)", re.MULTILINE | re.IGNORECASE)

ENDS = r"\s\"'<>"
"""What a URL ends at, as a part of a class of characters."""
# A secret access key may have slashes in it, and s3:// has no port that a colon could belong to.
USER_IN_S3_URL = re.compile(rf"(s3a?://)[^/:@,{ENDS}]+:(?!//)[^@,{ENDS}]+@", re.IGNORECASE)
USER_IN_URL = re.compile(rf"([a-z][a-z0-9+.-]{{0,15}}://)[^/?#@{ENDS}]+@", re.IGNORECASE)
SIGNED = re.compile(
    r"\b(X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|(?<=[?&])(?:Signature|sig))"
    rf"(=|%3D|\\u003d|: ?)[^&;,\\{ENDS}]+",
    re.IGNORECASE,
)
LOOKS = (
    (USER_IN_S3_URL, r"\1<CREDENTIALS>@"),
    (USER_IN_URL, r"\1<CREDENTIALS>@"),
    (SIGNED, r"\1\2<\1>"),
    # In small letters and without its header's name, "basic" is an English word.
    (re.compile(r"\b(Basic|(?i:Bearer|Authorization\W{1,5}Basic)) [A-Za-z0-9+/._~-]{16,}=*"), r"\1 <CREDENTIALS>"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), "<AWS_ACCESS_KEY_ID>"),
)


def redacted(text: str) -> str:
    """Return the text with every secret in it, plain or URL-encoded, replaced by `<NAME>` of what holds it."""
    pattern, names = _finder(frozenset(_secrets()))
    if names:
        text = pattern.sub(lambda found: f"<{names[found.group()]}>", text)
    for looks, replacement in LOOKS:
        text = looks.sub(replacement, text)
    return text


def refuse_credentials(place: str, value: Any) -> None:
    """Raise ConfigError, naming the place alone, if a URL with user, password or signature is in text or in nested settings."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            refuse_credentials(f"{place}.{name}" if place else str(name), item)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value, start=1):
            refuse_credentials(f"{place} {number}", item)
    elif isinstance(value, str) and any(looks.search(value) for looks in (USER_IN_S3_URL, USER_IN_URL, SIGNED)):
        expected = "expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to hold them"
        raise ConfigError(f"{place}: found credentials in a URL, {expected}: settings are shown to many")


@functools.cache
def hide_secrets() -> None:
    """Redact all that this process logs, by whichever handler, and the tracebacks of what nobody catches; once is enough."""
    make = logging.getLogRecordFactory()

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        return _redacted_record(make(*args, **kwargs))

    logging.setLogRecordFactory(record)
    _hide_in_tracebacks()


def _redacted_record(record: logging.LogRecord) -> logging.LogRecord:
    """Return the record; message and traceback are replaced only where they hold a secret, as some formatters want the arguments."""
    try:
        message = record.getMessage()
    except Exception as error:  # noqa: BLE001 - an argument's __str__ may raise anything; logging shows it, and the program goes on
        message = f"{_unformatted(record)}\n{_plain_traceback(error)}"
    clean = redacted(message)
    if clean != message:
        record.msg, record.args = clean, None
    if record.exc_info and record.exc_info[1]:
        record.exc_text = _traceback(record.exc_info[1])
    return record


def _unformatted(record: logging.LogRecord) -> str:
    """Return what logging writes on standard error of a record whose message and arguments do not fit, beside the traceback."""
    try:
        return f"{record.msg!r} {record.args}"
    except Exception:  # noqa: BLE001 - an argument's __repr__ may raise anything, too; logging then shows neither of them
        return record.msg if isinstance(record.msg, str) else ""


def _hide_in_tracebacks() -> None:
    uncaught, in_thread, ignored = sys.excepthook, threading.excepthook, sys.unraisablehook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not _shown_redacted("", error):
            uncaught(kind, error, trace)

    def show_of_thread(what: threading.ExceptHookArgs) -> None:
        if not _shown_redacted(f"Exception in thread {what.thread.name if what.thread else '?'}:\n", what.exc_value):
            in_thread(what)

    def show_ignored(what: Any) -> None:
        if not _shown_redacted("Exception ignored:\n", what.exc_value):
            ignored(what)

    sys.excepthook, threading.excepthook, sys.unraisablehook = show, show_of_thread, show_ignored


def _shown_redacted(title: str, error: BaseException | None) -> bool:
    """Write the traceback and return True if there is a secret in it."""
    if error is None:
        return False
    clean = _traceback(error)
    if clean == _plain_traceback(error):
        return False
    sys.stderr.write(f"{title}{clean}\n")
    return True


def _traceback(error: BaseException) -> str:
    return redacted(_plain_traceback(error))


def _plain_traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip("\n")


def _secrets() -> Iterator[tuple[str, str]]:
    """Yield each secret that this process can know of, and the name to show for it."""
    for name, value in os.environ.items():
        if SECRET_NAME.search(name) and (SURE_NAME.search(name) or not PLAIN_VALUE.fullmatch(value.strip())):
            yield value.strip(), name
        elif "://" in value and "@" in value:
            yield from ((part, name) for part in _credentials_of(value))
    for variable, usual in (("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config")):
        yield from ((value, name.upper()) for name, value in AWS_FILE_LINE.findall(_text_of(os.environ.get(variable) or usual)))
    yield _text_of(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").strip(), "RAY_AUTH_TOKEN"


def _credentials_of(url: str) -> tuple[str, ...]:
    """Return the password in a URL, or the user where there is none: some services take a token for it."""
    try:
        user_and_password = urlsplit(url).netloc.rpartition("@")[0]
    except ValueError:
        return ()
    user, _, password = user_and_password.partition(":")
    return (password or user, unquote(password or user))


def _text_of(path: str) -> str:
    """Return a small file's text; nothing if there is none."""
    try:
        file = Path(path).expanduser()
        state = file.stat()
        return _read(file, state.st_mtime_ns, state.st_size)
    except (OSError, RuntimeError):
        return ""


@functools.lru_cache(maxsize=8)
def _read(file: Path, _changed_ns: int, _size: int) -> str:
    return file.read_text(errors="replace")


@functools.lru_cache(maxsize=8)
def _finder(secrets: frozenset[tuple[str, str]]) -> tuple[re.Pattern[str], dict[str, str]]:
    """Return what finds the secrets in all their spellings, the longest first, and the name of each spelling."""
    names: dict[str, str] = {}
    for secret, name in sorted(secrets):
        if len(secret) >= SHORTEST:
            names |= dict.fromkeys(_spellings(secret), name)
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))), names


def _spellings(secret: str) -> set[str]:
    encoded = {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    small = {re.sub("%[0-9A-F]{2}", lambda byte: byte.group().lower(), text) for text in encoded}
    return {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]} | encoded | small
