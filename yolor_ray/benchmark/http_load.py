"""Measure a running service over HTTP: closed loops, where each client waits for its answer, then open loops at multiples of their goodput.

An open loop sends at fixed times, whether answers come or not, as independent users do. The seconds of an answer count from the time
at which its request was due: a service that makes requests wait is not measured at its own pace.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

from yolor_ray.benchmark.plain_server import plain_server
from yolor_ray.config import ServeConfig
from yolor_ray.config.benchmark import HttpConfig
from yolor_ray.errors import ConfigError, DataError
from yolor_ray.inference.timing import spread
from yolor_ray.io.storage import absolute
from yolor_ray.io.weights_url import absolute_weights
from yolor_ray.pack.scenes_url import SCENES_PREFIX, temporary_dataset_urls
from yolor_ray.predict.sources import list_parts
from yolor_ray.report.provenance import machine

KEY_VARIABLE = "YOLOR_API_KEY"
"""Environment variable with the API key of a service that needs one."""
TIMEOUT_S = 60.0
WARM_UP_S = 2.0
"""Seconds of requests before the first measurement."""
ROUNDS = 3
"""Closed loops of the service and of the plain server for each number of clients."""
MAX_IMAGES = 256
NO_ANSWER = 0
"""Status of a request without an answer."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """Status of an answer, and the seconds from the time at which its request was due."""

    status: int
    seconds: float


def http_load(config: HttpConfig) -> dict[str, Any]:
    """Measure each closed loop, and each open loop at its multiple of the largest goodput; return their rows and ratios.

    Raises:
        ConfigError: no service answers at the URL, or it refuses an image before the measurement.
        DataError: there is no usable image.
    """
    before = machine()
    rows, plain = asyncio.run(_measure(config, _read_images(config.images)))
    full = max((row for row in rows if row["loop"] == "closed"), key=lambda row: row["goodput_per_s"])
    for row in rows:
        row["goodput_ratio"] = _ratio(row["goodput_per_s"], full["goodput_per_s"])
        row["p99_ratio"] = _ratio(row["accepted_s"]["p99"], full["accepted_s"]["p99"])
    settings = {name: getattr(config, name) for name in ("url", "images", "query", "seconds", "plain_weights", "compute_threads")}
    return {
        "rows": rows,
        "full": {"clients": full["clients"], "goodput_per_s": full["goodput_per_s"]},
        **({"plain": plain} if plain else {}),
        "settings": settings,
        "machine": before,
    }


def _ratio(value: float | None, reference: float | None) -> float | None:
    return round(value / reference, 3) if value is not None and reference else None


def _read_images(url: str) -> list[bytes]:
    """Return the bytes of at most MAX_IMAGES images."""
    with contextlib.ExitStack() as stack:
        if url.startswith(SCENES_PREFIX):
            url = stack.enter_context(temporary_dataset_urls(url))
        images = (image.data for part in list_parts(absolute(url)) for image in part.read() if not image.fault)
        found = list(itertools.islice(images, MAX_IMAGES))
    if not found:
        raise DataError(f"images: found no readable image at {url}, expected one or more")
    return found


async def _measure(config: HttpConfig, images: list[bytes]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of the service, and those of the comparison with a plain server."""
    key = os.environ.get(KEY_VARIABLE, "")
    headers = {"Content-Type": "image/jpeg"} | ({"Authorization": f"Bearer {key}"} if key else {})
    timeout, connector = aiohttp.ClientTimeout(TIMEOUT_S), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
        sender = _Sender(session, f"{config.url.rstrip('/')}/v1/detect{config.query}", itertools.cycle(images))
        await sender.check()
        await sender.closed_loop(1, WARM_UP_S)
        rows = []
        for clients in config.clients:
            rows.append(_row("closed", {"clients": clients}, await sender.closed_loop(clients, config.seconds), config.seconds))
        full_per_s = max(row["goodput_per_s"] for row in rows)
        for load in config.loads if full_per_s else ():
            rate = load * full_per_s
            answers = await sender.open_loop(rate, config.seconds)
            rows.append(_row("open", {"load": load, "sent_per_s": round(rate, 1)}, answers, config.seconds))
        plain = await _compare(config, sender, session, images) if config.plain_weights else []
    return rows, plain


async def _compare(config: HttpConfig, service: "_Sender", session: aiohttp.ClientSession, images: list[bytes]) -> list[dict[str, Any]]:
    """Return the goodput of the service and of a plain server by clients, in turns."""
    card_url = f"{config.url.rstrip('/')}/v1/model"
    async with session.get(card_url) as answer:
        if answer.status != 200:
            raise ConfigError(f"url: found status {answer.status} at {card_url}, expected 200 and the settings of the service")
        card = await answer.json()
    same = {"engine": card["engine"], "precision": card["precision"], **card["defaults"]}
    settings = ServeConfig(weights=absolute_weights(config.plain_weights), compute_threads=config.compute_threads, **same)
    rows = []
    with plain_server(settings) as url:
        senders = {"service": service, "plain": _Sender(session, f"{url}/v1/detect", itertools.cycle(images))}
        await senders["plain"].check()
        for clients in config.clients:
            rates: dict[str, list[float]] = {name: [] for name in senders}
            for name in [*senders] * ROUNDS:
                answers = await senders[name].closed_loop(clients, config.seconds)
                rates[name].append(_row("closed", {"server": name, "clients": clients}, answers, config.seconds)["goodput_per_s"])
            ratios = [ours / plain for ours, plain in zip(rates["service"], rates["plain"], strict=True)]
            medians = {name: statistics.median(values) for name, values in rates.items()}
            rows.append({"clients": clients, "goodput_per_s": medians, "ratio": statistics.median(ratios), "ratio_spread": spread(ratios)})
    return rows


class _Sender:
    """Sends requests with images in turn."""

    def __init__(self, session: aiohttp.ClientSession, url: str, images: Iterator[bytes]) -> None:
        self._session, self._url, self._images = session, url, images

    async def check(self) -> None:
        """Raise ConfigError unless one image is answered."""
        try:
            async with self._session.post(self._url, data=next(self._images)) as answer:
                if answer.status != 200:
                    text = (await answer.text())[:300]
                    raise ConfigError(f"url: found status {answer.status} at {self._url}, expected 200: {text}")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ConfigError(f"url: found no answer at {self._url} ({error}), expected a running service") from error

    async def send(self, due: float) -> Answer:
        """Send a request that was due at a time of `time.perf_counter`."""
        try:
            async with self._session.post(self._url, data=next(self._images)) as answer:
                await answer.read()
                status = answer.status
        except (aiohttp.ClientError, TimeoutError):
            status = NO_ANSWER
        return Answer(status, time.perf_counter() - due)

    async def closed_loop(self, clients: int, seconds: float) -> list[Answer]:
        """Return the answers to clients of which each sends its next request after its answer."""
        end = time.perf_counter() + seconds

        async def send_in_turn() -> list[Answer]:
            answers = []
            while (now := time.perf_counter()) < end:
                answers.append(await self.send(now))
            return answers

        return [answer for answers in await asyncio.gather(*(send_in_turn() for _ in range(clients))) for answer in answers]

    async def open_loop(self, rate: float, seconds: float) -> list[Answer]:
        """Return the answers to requests that are sent at fixed times, `rate` per second."""
        tasks = [asyncio.create_task(self.send(due)) async for due in _due_times(rate, seconds)]
        return await asyncio.gather(*tasks)


async def _due_times(rate: float, seconds: float) -> AsyncIterator[float]:
    """Yield the time of each request once it has come."""
    started = time.perf_counter()
    for number in range(max(int(rate * seconds), 1)):
        due = started + number / rate
        # Also without a wait the event loop has to read answers.
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        yield due


def _row(loop: str, load: dict[str, Any], answers: list[Answer], seconds: float) -> dict[str, Any]:
    """Return the numbers of one loop; `seconds` is the time in which requests were sent."""
    accepted = [answer.seconds for answer in answers if answer.status == 200]
    refused = [answer.seconds for answer in answers if answer.status not in (200, NO_ANSWER)]
    statuses = Counter(str(answer.status) for answer in answers)
    row = {
        "loop": loop,
        **load,
        "requests": len(answers),
        "statuses": dict(sorted(statuses.items())),
        "goodput_per_s": round(len(accepted) / seconds, 2),
        "accepted_s": _percentiles(accepted),
        "refused_s": _percentiles(refused),
    }
    logger.info("event=loop_measured kind=%s load='%s' requests=%d goodput_per_s=%.1f", loop, load, len(answers), row["goodput_per_s"])
    return row


def _percentiles(seconds: list[float]) -> dict[str, float | None]:
    names = ("p50", "p99", "max")
    values = np.percentile(seconds, (50, 99, 100)).tolist() if seconds else (None, None, None)
    return {name: value if value is None else round(value, 4) for name, value in zip(names, values, strict=True)}
