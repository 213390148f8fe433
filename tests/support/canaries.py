"""Credentials planted in the environment of jobs, and the search for them in everything that the jobs leave behind."""

import base64
import json
import os
import secrets
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from yolor_ray.io import storage


def plant(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Set secrets of several kinds, and name each that processes started from now on can see: the S3 server's own keys, too."""
    password = secrets.token_hex(12)
    monkeypatch.setenv("MY_API_TOKEN", f"canary/{secrets.token_hex(8)}+{secrets.token_hex(8)}=")
    monkeypatch.setenv("HISTORY_URL", f"https://me:{password}@history.example")
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "MY_API_TOKEN")
    return {"password": password, **{name: os.environ[name] for name in names}}


def spellings(secret: str) -> set[bytes]:
    """Return the spellings of a secret: plain, URL-encoded, escaped in JSON, and in Base64 at each offset in the encoded text."""
    plain = {secret, urllib.parse.quote(secret, safe=""), urllib.parse.quote_plus(secret), json.dumps(secret)[1:-1].replace("/", r"\/")}
    encoded = set()
    for skipped in range(3):
        # The first and the last characters depend on the text beside the secret.
        text = base64.b64encode(b"\0" * skipped + secret.encode())
        encoded.add(text[4 if skipped else 0 : -4])
    return {text.encode() for text in plain} | encoded


def find_canaries(canaries: dict[str, str], contents: Iterable[tuple[str, bytes]]) -> list[str]:
    """Return the name and the location of each canary in the contents, which are pairs of a location and its bytes."""
    searched = [(name, spelling) for name, secret in canaries.items() for spelling in spellings(secret)]
    return [f"{name} in {location}" for location, data in contents for name, spelling in searched if spelling in data]


def lacking(expected: Iterable[tuple[str, bytes]], contents: Mapping[str, bytes]) -> list[str]:
    """Return the pairs of a part of a location and a text in it that no content has; a search of nothing finds nothing."""
    return [f"{text!r} in {name}" for name, text in expected if not any(name in at and text in data for at, data in contents.items())]


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the files below a folder by name; sockets have no bytes."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield str(path), path.read_bytes()


def objects(url: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files below a URL by name."""
    for info in storage.list_files(url, recursive=True):
        if info.is_file:
            yield info.path, storage.read_bytes(f"s3://{info.path}")
