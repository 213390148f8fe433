"""Paint the built-in scenes: grounds and clutter, the looks of individuals, shadows, light, blur and noise.

Colours are float32 RGB from 0 to 1 until the camera's noise is added.
"""

import colorsys
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from yolor_ray.data.scenes_shapes import Outline

GROUNDS = (
    ((0.30, 0.42, 0.20), (0.52, 0.58, 0.30)),  # grass
    ((0.74, 0.64, 0.46), (0.86, 0.80, 0.62)),  # sand
    ((0.42, 0.42, 0.43), (0.60, 0.59, 0.57)),  # asphalt
    ((0.46, 0.33, 0.23), (0.63, 0.48, 0.34)),  # wood
    ((0.78, 0.82, 0.86), (0.92, 0.94, 0.95)),  # snow
    ((0.28, 0.40, 0.50), (0.44, 0.58, 0.64)),  # water
    ((0.50, 0.30, 0.28), (0.68, 0.48, 0.42)),  # brick
)
GAIN = {"day": (0.85, 1.08), "dusk": (0.52, 0.72), "night": (0.30, 0.42)}
TINT = {"day": (1.0, 1.0, 1.0), "dusk": (1.22, 0.94, 0.76), "night": (0.74, 0.92, 1.28)}
NOISE = {"day": (0.008, 0.025), "dusk": (0.012, 0.03), "night": (0.02, 0.04)}


@dataclass(frozen=True)
class Look:
    """What makes an individual: two body colours in a pattern, and the colour of its accent."""

    first: np.ndarray
    second: np.ndarray
    accent: np.ndarray
    pattern: int
    """0 plain, 1 stripes, 2 checks, 3 dots."""
    waves: float
    """Half-periods of the pattern per unit of the shape's frame."""
    turn: float
    """Radians of the pattern within the shape's frame."""


@lru_cache(maxsize=4096)
def look(seed: int, identity: int) -> Look:
    """Return the look of an individual; the same numbers always give the same look."""
    rng = np.random.default_rng((seed, identity, 1))
    hue, value = rng.random(), rng.uniform(0.6, 0.95)
    first = colorsys.hsv_to_rgb(hue, rng.uniform(0.55, 0.95), value)
    second = colorsys.hsv_to_rgb((hue + rng.uniform(-0.12, 0.12)) % 1, rng.uniform(0.3, 0.8), value * rng.uniform(0.45, 0.75))
    accent = colorsys.hsv_to_rgb((hue + rng.uniform(0.3, 0.7)) % 1, rng.uniform(0.2, 0.8), rng.uniform(0.75, 1.0))
    colours = np.array((first, second, accent), np.float32)
    return Look(*colours, pattern=int(rng.integers(4)), waves=rng.uniform(2.5, 5.0), turn=rng.uniform(0, np.pi))


def ground(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Return an (S, S, 3) textured ground: two colours mixed by noise of several octaves."""
    noise = np.zeros((size_px, size_px), np.float32)
    for cells in (3, 8, 24, 72):
        octave = rng.random((cells, cells), np.float32) - np.float32(0.5)
        noise += cv2.resize(octave, (size_px, size_px), interpolation=cv2.INTER_CUBIC) * np.float32(cells**-0.35)
    mix = np.clip(noise * np.float32(rng.uniform(0.8, 1.6)) + np.float32(0.5), 0, 1)[..., None]
    dark, light = np.float32(GROUNDS[rng.integers(len(GROUNDS))]) + rng.normal(0, 0.03, 3).astype(np.float32)
    return dark + (light - dark) * mix


def with_clutter(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Return the canvas with what is no object but looks a little like one: wedges, open arcs, strokes, flat ovals."""
    size_px = len(canvas)
    drawn = (np.clip(canvas, 0, 1) * 255).astype(np.uint8)  # OpenCV smooths edges on bytes alone
    for _ in range(rng.integers(4, 13)):
        centre = rng.uniform(0, size_px, 2)
        near = drawn[int(centre[1]), int(centre[0])] * 0.4
        colour = near + 153 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 0.8), rng.uniform(0.3, 0.9)))
        _draw_clutter(rng, drawn, centre, size_px * rng.uniform(0.02, 0.13), tuple(colour.tolist()))
    return drawn.astype(np.float32) / 255


def _draw_clutter(rng: np.random.Generator, drawn: np.ndarray, centre: np.ndarray, half: float, colour: tuple[float, ...]) -> None:
    at, turn, kind = (int(16 * centre[0]), int(16 * centre[1])), rng.uniform(0, 360), rng.integers(4)
    if kind == 0:
        corners = np.radians(turn + np.array((0, 115, 240)) + rng.uniform(-25, 25, 3))
        _fill(drawn, np.stack((np.cos(corners), np.sin(corners)), axis=1) * half + centre, colour)
    elif kind == 1:
        axes = (int(16 * half), int(16 * half * rng.uniform(0.7, 1.0)))
        cv2.ellipse(drawn, at, axes, turn, 0, rng.uniform(90, 200), colour, max(1, int(half * rng.uniform(0.15, 0.4))), cv2.LINE_AA, 4)
    elif kind == 2:
        points = np.cumsum(rng.normal(0, half * 0.7, (5, 2)), axis=0) + centre
        cv2.polylines(drawn, [np.int32(points * 16)], False, colour, max(1, int(half * 0.2)), cv2.LINE_AA, 4)
    else:
        cv2.ellipse(drawn, at, (int(16 * half), int(16 * half * rng.uniform(0.2, 0.45))), turn, 0, 360, colour, -1, cv2.LINE_AA, 4)


def _fill(drawn: np.ndarray, points: np.ndarray, colour: tuple[float, ...]) -> None:
    cv2.fillPoly(drawn, [np.int32(points * 16)], colour, cv2.LINE_AA, 4)  # four bits of the coordinates are fractions


def blades(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Return the (S, S) coverage of what stands before everything, in some scenes: a few thin blades of grass."""
    cover = np.zeros((size_px, size_px), np.uint8)
    for _ in range(rng.integers(1, 5) if rng.random() < 0.4 else 0):
        foot, tip = rng.uniform(0, size_px), rng.normal(0, 0.15 * size_px)
        height, width = size_px * rng.uniform(0.25, 0.8), size_px * rng.uniform(0.008, 0.02)
        share = np.linspace(0, 1, 8)
        middle = foot + tip * share**2
        edge = np.stack((middle - width * (1 - share), size_px - height * share), axis=1)
        back = np.stack((middle + width * (1 - share), size_px - height * share), axis=1)[::-1]
        _fill(cover, np.concatenate((edge, back)), (255.0,))
    return cover.astype(np.float32) / 255


def cast_shadow(canvas: np.ndarray, shape: Outline, half: float, light: tuple[float, float]) -> None:
    """Darken, in place, the ground beside an object, away from the light."""
    move = np.array(((1, 0, -light[0] * half * 0.16), (0, 1, -light[1] * half * 0.16)), np.float64)
    shadow = cv2.warpAffine(shape.alpha, move, shape.alpha.shape[::-1])
    blur = int(half * 0.12) * 2 + 1
    canvas[shape.rows, shape.columns] *= 1 - np.float32(0.5) * cv2.blur(shadow, (blur, blur))[..., None]


def paint(canvas: np.ndarray, shape: Outline, look: Look, light: tuple[float, float], half: float) -> None:
    """Paint, in place, one object in its look, lit from one side, with a darker rim."""
    tone = _pattern(shape.u, shape.v, look)[..., None]
    colour = look.first + (look.second - look.first) * tone
    soft = np.clip(shape.accent * np.float32(half) + np.float32(0.5), 0, 1)[..., None]
    colour += (look.accent - colour) * soft
    rows, columns = shape.alpha.shape
    shade = np.linspace(-light[0], light[0], columns, dtype=np.float32) + np.linspace(-light[1], light[1], rows, dtype=np.float32)[:, None]
    rim = np.clip(shape.inside / np.float32(max(1.5, 0.07 * half)), 0, 1)
    colour *= ((1 + np.float32(0.2) * shade) * (np.float32(0.6) + np.float32(0.4) * rim))[..., None]
    region = canvas[shape.rows, shape.columns]
    region += (colour - region) * shape.alpha[..., None]


def _pattern(u: np.ndarray, v: np.ndarray, look: Look) -> np.ndarray:
    """Return the share of the second colour, 0 to 1."""
    if look.pattern == 0:
        return np.zeros_like(u)
    cos, sin, waves = np.float32(np.cos(look.turn)), np.float32(np.sin(look.turn)), np.float32(look.waves * np.pi / 2)
    along = np.sin((u * cos + v * sin) * waves)
    across = np.sin((v * cos - u * sin) * waves) if look.pattern > 1 else np.float32(1)
    wave = along * across - np.float32(0.25 if look.pattern == 3 else 0)
    return np.clip(wave * 4 + np.float32(0.5), 0, 1)


def photograph(rng: np.random.Generator, canvas: np.ndarray, light: str) -> np.ndarray:
    """Return the (S, S, 3) uint8 photo of a painted scene: brightness, tint, uneven light, blur and noise of the time of day."""
    size_px = len(canvas)
    gain = rng.uniform(*GAIN[light]) * np.float32(TINT[light]) * (1 + rng.normal(0, 0.03, 3))
    canvas = canvas * (_uneven(rng, size_px, light)[..., None] * gain.astype(np.float32))
    if rng.random() < 0.35:
        canvas = cv2.GaussianBlur(canvas, (0, 0), size_px / 320 * rng.uniform(0.5, 1.1))
    grain = rng.standard_normal((size_px, size_px), np.float32) * np.float32(rng.uniform(*NOISE[light]))
    canvas = canvas + np.stack((grain, grain[::-1], grain[:, ::-1]), axis=2)
    return (np.clip(canvas, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)


def _uneven(rng: np.random.Generator, size_px: int, light: str) -> np.ndarray:
    """Return an (S, S) field of light: a slope, and a lamp at night."""
    steps = np.linspace(-1, 1, size_px, dtype=np.float32)
    slope_x, slope_y = rng.uniform(-0.2, 0.2, 2).astype(np.float32)
    field = 1 + slope_x * steps + slope_y * steps[:, None]
    if light == "night":
        x, y = rng.uniform(-0.8, 0.8, 2).astype(np.float32)
        spread = np.float32(rng.uniform(0.3, 0.7))
        field += (
            np.exp(-(((steps - x) / spread) ** 2)) * np.exp(-(((steps - y) / spread) ** 2))[:, None] * np.float32(rng.uniform(0.6, 1.4))
        )
    return field
