"""Read frames of a video as images, by PyAV, which is optional and imported where it is used.

A part is a stretch of time: each reading task seeks to its own stretch. A frame is named after its video and its time, as in
`clip.mp4#t=12.000`. Times count from the start of the video.
"""

import importlib.util
import math
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from yolor_ray.errors import ConfigError, DataError
from yolor_ray.io.filesystem import call_with_retries, filesystem
from yolor_ray.pack.annotations.faults import Fault
from yolor_ray.predict.sources import PART_BYTES, PART_IMAGES, EncodedImage, Part

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")


@dataclass(frozen=True)
class VideoPart:
    """Frames of a video in a stretch of time."""

    url: str
    bytes: int
    """Size of the file."""
    start_s: float
    stop_s: float
    """End of the stretch, which is not in it."""
    every_s: float
    """Time from a frame to the next; 0 takes all frames."""
    fit_px: int
    """Long side to which larger frames are reduced; 0 keeps them."""
    is_inside: bool
    """The whole stretch lies in the video, so that it has a frame."""

    def read(self, names: Collection[str] | None = None) -> Iterator[EncodedImage]:
        """Yield the frames in order, as BMP files; a stretch that cannot be decoded ends with a fault."""
        import av

        count = 0
        try:
            for time_s, frame in self._frames():
                count += 1
                name = f"{self.url.rpartition('/')[2]}#t={time_s:.3f}"
                if names is None or name in names:
                    yield self._image(name, f"{self.url}#t={time_s:.3f}", frame)
        except av.error.FFmpegError as error:
            yield self._fault(f"found frames that cannot be decoded after {count} frames: {error}")
            return
        if not count and self.is_inside:
            yield self._fault("found no frame, expected some: the video ends before its stated duration")

    def _fault(self, message: str) -> EncodedImage:
        name = f"{self.url.rpartition('/')[2]}#t={self.start_s:.3f},{self.stop_s:.3f}"
        url = f"{self.url}#t={self.start_s:.3f},{self.stop_s:.3f}"
        return EncodedImage(name, url, fault=Fault("broken_image", message, url, image=name))

    def _frames(self) -> Iterator[tuple[float, Any]]:
        """Yield time in seconds and frame of each frame to predict."""
        with _open_video(self.url) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            first_s = float((stream.start_time or 0) * stream.time_base)
            if self.start_s:
                container.seek(int((self.start_s + first_s) / stream.time_base), stream=stream)
            next_s = self.start_s
            for frame in container.decode(stream):
                # Times are rounded, so that a frame at 2.9999 s is that of 3 s, for this part and for the next one.
                time_s = round(float(frame.time or 0) - first_s, 3)
                if time_s >= self.stop_s:
                    return
                if time_s >= next_s:
                    yield time_s, frame
                    next_s = round((math.floor(time_s / self.every_s + 1e-6) + 1) * self.every_s, 6) if self.every_s else 0.0

    def _image(self, name: str, url: str, frame: Any) -> EncodedImage:
        scale = min(self.fit_px / max(frame.width, frame.height), 1.0) if self.fit_px else 1.0
        width, height = (max(round(side * scale), 1) for side in (frame.width, frame.height))
        pixels = frame.reformat(width=width, height=height, format="bgr24", interpolation="AREA").to_ndarray()
        turns = round(frame.rotation / 90) % 4
        encoded = cv2.imencode(".bmp", np.rot90(pixels, turns))[1].tobytes()
        displayed = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
        return EncodedImage(name, url, encoded, None if scale == 1 else displayed)


def video_parts(url: str, every_s: float, fit_px: int) -> list[Part]:
    """Return the parts of a video.

    Args:
        url: URL of the video.
        every_s: time from a predicted frame to the next; 0 predicts all frames.
        fit_px: long side to which larger frames are reduced; 0 keeps them.

    Raises:
        ConfigError: the package av is not installed.
        DataError: the file is no video that can be read.

    """
    if importlib.util.find_spec("av") is None:
        raise ConfigError("images: found a video and no package av, expected it; install with: pip install av")
    import av

    size, _ = _open_file(url)
    try:
        with _open_video(url) as container:
            stream = container.streams.video[0]
            duration_s = _duration_s(container, stream)
            interval_s = max(every_s, 1 / float(stream.average_rate or 25))
            pixels = stream.codec_context.width * stream.codec_context.height
    except (av.error.FFmpegError, IndexError) as error:
        raise DataError(f"{url}: found no video that can be read, expected one: {error}") from error
    reduced = min(pixels, fit_px**2) if fit_px else pixels
    stretch_s = max(1, min(PART_IMAGES, PART_BYTES // max(3 * reduced, 1))) * interval_s
    starts = [index * stretch_s for index in range(max(1, math.ceil(duration_s / stretch_s)))]
    ends = [*starts[1:], math.inf]
    return [VideoPart(url, size, a, b, every_s, fit_px, b <= duration_s) for a, b in zip(starts, ends, strict=True)]


def _duration_s(container: Any, stream: Any) -> float:
    """Return the duration of a video: as the file states it, or else by the last packet."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if container.duration:
        return float(container.duration) / 1e6
    first_s = float((stream.start_time or 0) * stream.time_base)
    times = [float(packet.pts * stream.time_base) for packet in container.demux(stream) if packet.pts is not None]
    return max(times, default=first_s) - first_s


def _open_video(url: str) -> AbstractContextManager[Any]:
    import av

    opened: AbstractContextManager[Any] = av.open(_open_file(url)[1])
    return opened


def _open_file(url: str) -> tuple[int, Any]:
    """Return size and open file of a URL."""

    def open_file() -> tuple[int, Any]:
        system, path = filesystem(url)
        file = system.open_input_file(path)
        return file.size(), file

    return call_with_retries(url, "open", open_file)
