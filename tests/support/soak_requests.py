"""Steady requests to a service of which one in a hundred is bad, and the answers."""

import json
import threading
import time
from dataclasses import dataclass

import numpy as np
import requests

BAD_SHARE = 0.01
THREADS = 4
INTERVAL_S = 1.0
"""Time from one request of a thread to its next one (s)."""
TIMEOUT_S = 30
NO_CONNECTION = 0
"""Status of a request without an answer."""


@dataclass(frozen=True)
class Request:
    """A request and the answer that is right: its status, and for a refused one the code of the error."""

    body: bytes
    media_type: str = "image/jpeg"
    query: str = ""
    status: int = 200
    code: str = ""


@dataclass(frozen=True)
class Answer:
    """Answer to a request; `ended_at` is a time of `time.monotonic`."""

    ended_at: float
    seconds: float
    status: int
    code: str
    """Code of the error; empty in right answers to photos."""
    is_bad_request: bool
    is_right: bool
    model: str
    """Name of the weights that answered; empty in errors."""


def bad_requests(photo: bytes) -> list[Request]:
    """Return requests that the service refuses, each with the right refusal."""
    return [
        Request(photo[: len(photo) // 2], status=422, code="truncated_image"),
        Request(b"", status=400, code="empty_image"),
        Request(b"no image" * 100, status=415, code="unsupported_image"),
        Request(b"{", "application/json", status=400, code="bad_json"),
        Request(json.dumps({"image": "%%"}).encode(), "application/json", status=400, code="bad_base64"),
        Request(photo, query="?iou=0", status=422, code="bad_parameter"),
        Request(b"\0" * 21_000_000, status=413, code="body_too_large"),
    ]


class Load:
    """Threads that send requests, `with Load(address, photo, seed) as load:`; `load.answers` grows."""

    def __init__(self, address: str, photo: bytes, seed: int) -> None:
        self._address, self._photo, self._bad = address, Request(photo), bad_requests(photo)
        self.answers: list[Answer] = []
        self._stop = threading.Event()
        generators = np.random.default_rng(seed).spawn(THREADS)
        self._threads = [threading.Thread(target=self._send, args=(generator,)) for generator in generators]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self, random: np.random.Generator) -> None:
        next_at = time.monotonic() + random.uniform(0, INTERVAL_S)
        with requests.Session() as session:
            while not self._stop.wait(max(next_at - time.monotonic(), 0)):
                is_bad = random.random() < BAD_SHARE
                request = self._bad[random.integers(len(self._bad))] if is_bad else self._photo
                self.answers.append(post(session, self._address, request))
                next_at = max(next_at + INTERVAL_S, time.monotonic())

    def newest_model(self) -> str:
        """Return the name of the weights in the newest right answer; empty without one."""
        return next((answer.model for answer in reversed(self.answers) if answer.model), "")


def post(session: requests.Session, address: str, request: Request) -> Answer:
    started_at, headers = time.monotonic(), {"Content-Type": request.media_type}
    status, code, model = NO_CONNECTION, "", ""
    try:
        answer = session.post(f"{address}/v1/detect{request.query}", data=request.body, headers=headers, timeout=TIMEOUT_S)
        status, found = answer.status_code, answer.json()
        code, model = found.get("code", ""), found.get("model", {}).get("name", "")
    except requests.RequestException:
        # A body that is not JSON is an exception, too, after its status is known.
        code = "no JSON"
    ended_at = time.monotonic()
    is_right = (status, code) == (request.status, request.code)
    return Answer(ended_at, ended_at - started_at, status, code, request.status != 200, is_right, model)
