"""Read and write a release folder: complete copies of weights by version, and the events that say which version services answer with.

`versions/0007-3f9a1c2d2b10/` is a weights folder with its manifest; `events/000012-release-5d0c2a11.json` is an event. An event is a file
of its own, which is written once. So two releases at the same time cannot overwrite each other: the later name counts, for all readers.
"""

import hashlib
import json
import logging
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal, TypeAlias, get_args

from yolor_ray.errors import NotFoundError, StorageError
from yolor_ray.io import manifest, storage
from yolor_ray.io.redact import redact

VERSIONS, EVENTS = "versions", "events"
"""Subfolders of a release folder."""
EventKind: TypeAlias = Literal["release", "back", "accepted", "rejected"]
"""`release` publishes a version, and `back` returns to one. Services write `accepted` and `rejected` after they have compared a version."""
VERSION_NAME = re.compile(r"(\d{4,})-[0-9a-f]{12}")
EVENT_NAME = re.compile(rf"(\d{{6,}})-({'|'.join(get_args(EventKind))})-[0-9a-f]{{8}}\.json")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """One event of a release folder."""

    kind: str
    """One of EventKind."""
    version: str
    """Name of the version's folder."""
    reason: str = ""
    """Reason of a rejection in words."""
    allow_changes: bool = False
    """For a release: the version may take longer, and find other things, than the version before."""


@dataclass(frozen=True)
class Releases:
    """State of a release folder at one time."""

    events: tuple[Event, ...] = ()
    """In the order of their numbers."""

    @property
    def rejected(self) -> Mapping[str, str]:
        """Return the reason of each rejected version, by name."""
        return {event.version: event.reason for event in self.events if event.kind == "rejected"}

    @property
    def in_effect(self) -> tuple[Event, ...]:
        """Return releases and returns that are not rejected, oldest first; a return removes the releases that came after its version."""
        stack: list[Event] = []
        for event in self.events:
            if event.kind == "release":
                stack = [*(other for other in stack if other.version != event.version), event]
            elif event.kind == "back":
                versions = [other.version for other in stack]
                stack = [*stack[: versions.index(event.version) if event.version in versions else len(stack)], event]
        return tuple(event for event in stack if event.version not in self.rejected)

    @property
    def target(self) -> Event | None:
        """Return the event whose version services shall answer with; None without a version that is not rejected."""
        return next(reversed(self.in_effect), None)

    @property
    def start(self) -> str | None:
        """Return the version that a new replica answers with: the latest proven one."""
        return next((event.version for event in reversed(self.in_effect) if self.is_proven(event)), None)

    def is_proven(self, event: Event) -> bool:
        """Return True for a version that needs no comparison: an accepted one, one that a user went back to, and the first one."""
        accepted = any(other.kind == "accepted" and other.version == event.version for other in self.events)
        return accepted or event.kind == "back" or event == self.in_effect[0]

    def before(self, version: str) -> str | None:
        """Return the version in effect before another one, which must be in effect; None for the first one."""
        versions = [event.version for event in self.in_effect]
        index = versions.index(version)
        return versions[index - 1] if index else None

    def without(self, versions: Mapping[str, str]) -> "Releases":
        """Return the state with further rejected versions, given with their reasons."""
        return replace(self, events=(*self.events, *(Event("rejected", version, reason) for version, reason in versions.items())))


class ReleaseFolder:
    """Folder of released versions; events that were read once are kept, because no event changes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._events: dict[str, Event] = {}

    def version_url(self, version: str) -> str:
        """Return the weights folder of a version."""
        return storage.join(self.url, VERSIONS, version)

    def read(self) -> Releases:
        """Return the state of the folder; an event that cannot be used is logged and left out.

        Raises:
            StorageError: the folder cannot be read.
        """
        names = self._event_names()
        for name in names:
            if name not in self._events and (event := self._read_event(name)):
                self._events[name] = event
        return Releases(tuple(self._events[name] for name in names if name in self._events))

    def publish(self, files: Mapping[str, bytes]) -> str:
        """Write a new version with these files, and return its name; services ignore the version until `add` releases it."""
        entries = {name: manifest.entry_of(files[name]).sha256 for name in sorted(files)}
        digest = hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:12]
        numbers = _numbers(VERSION_NAME, storage.list_names(storage.join(self.url, VERSIONS)))
        version = f"{max(numbers, default=0) + 1:04d}-{digest}"
        manifest.publish(self.version_url(version), files)
        return version

    def add(self, event: Event) -> None:
        """Append an event; credentials in its reason are hidden."""
        number = max(_numbers(EVENT_NAME, self._event_names()), default=0) + 1
        fields = {"version": event.version, "reason": redact(event.reason), "allow_changes": event.allow_changes}
        content = json.dumps({**fields, "time": datetime.now(UTC).isoformat(timespec="seconds")}, indent=1)
        storage.write_bytes(storage.join(self.url, EVENTS, f"{number:06d}-{event.kind}-{uuid.uuid4().hex[:8]}.json"), content.encode())

    def _event_names(self) -> list[str]:
        names = [name for name in storage.list_names(storage.join(self.url, EVENTS)) if EVENT_NAME.fullmatch(name)]
        return sorted(names, key=lambda name: (int(name.partition("-")[0]), name))

    def _read_event(self, name: str) -> Event | None:
        url = storage.join(self.url, EVENTS, name)
        try:
            fields = json.loads(storage.read_bytes(url))
            event = Event(name.split("-")[1], fields["version"], str(fields.get("reason", "")), fields.get("allow_changes") is True)
            if not VERSION_NAME.fullmatch(event.version):
                raise ValueError(f"found the version {event.version[:80]!r}, expected one such as 0007-3f9a1c2d2b10")
        except NotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            logger.warning("event=release_event_ignored file=%s reason='%s: %s'", url, type(error).__name__, error)
            return None
        return event


def is_release_folder(url: str) -> bool:
    """Return True if a folder has events of releases; a weights folder is not listed, which may need a permission of its own."""
    return not manifest.is_published(url) and any(EVENT_NAME.fullmatch(name) for name in storage.list_names(storage.join(url, EVENTS)))


def starting_weights(url: str) -> str:
    """Return the weights folder that a new replica loads: that of a release folder's latest proven version, or the URL itself.

    Raises:
        StorageError: all versions of the release folder are rejected.
    """
    if not is_release_folder(url):
        return url
    folder = ReleaseFolder(url)
    return folder.version_url(starting_version(folder))


def starting_version(folder: ReleaseFolder) -> str:
    """Return the version that a new replica answers with; raises StorageError if all versions are rejected."""
    version = folder.read().start
    if version is None:
        raise StorageError(f"{folder.url}: found no version that is not rejected, expected one; release another one first")
    return version


def _numbers(pattern: re.Pattern[str], names: Iterable[str]) -> list[int]:
    return [int(match[1]) for match in map(pattern.fullmatch, names) if match]
