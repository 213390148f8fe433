"""Paint the built-in scenes: grounds and clutter, the looks of individuals, shadows, light, blur and noise.

A canvas is (3, S, S) float32 RGB from 0 to 1. Planes come first, because a field of light or coverage then multiplies them fast.
"""

import colorsys
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from yolor_ray.data.synthetic.shapes import Outline

GROUNDS = (
    ((0.30, 0.42, 0.20), (0.52, 0.58, 0.30)),  # grass
    ((0.74, 0.64, 0.46), (0.86, 0.80, 0.62)),  # sand
    ((0.42, 0.42, 0.43), (0.60, 0.59, 0.57)),  # asphalt
    ((0.46, 0.33, 0.23), (0.63, 0.48, 0.34)),  # wood
    ((0.78, 0.82, 0.86), (0.92, 0.94, 0.95)),  # snow
    ((0.28, 0.40, 0.50), (0.44, 0.58, 0.64)),  # water
    ((0.50, 0.30, 0.28), (0.68, 0.48, 0.42)),  # brick
)
GAIN = {"day": (0.85, 1.08), "dusk": (0.52, 0.72), "night": (0.34, 0.48)}
TINT = {"day": (1.0, 1.0, 1.0), "dusk": (1.22, 0.94, 0.76), "night": (0.74, 0.92, 1.28)}
NOISE = {"day": (0.008, 0.025), "dusk": (0.012, 0.03), "night": (0.02, 0.04)}


@dataclass(frozen=True)
class Look:
    """Appearance of an individual: two body colours in a pattern, and an accent colour."""

    first: np.ndarray
    """(3, 1, 1) float32."""
    second: np.ndarray
    """(3, 1, 1) float32."""
    accent: np.ndarray
    """(3, 1, 1) float32."""
    pattern: int
    """0 plain, 1 stripes, 2 checks, 3 dots."""
    waves: float
    """Half-periods of the pattern per unit of the shape's frame."""
    turn: float
    """Radians of the pattern within the shape's frame."""


@lru_cache(maxsize=4096)
def look(seed: int, identity: int) -> Look:
    """Return the look of an individual; the same arguments give the same look."""
    rng = np.random.default_rng((seed, identity, 1))
    hue, value = rng.random(), rng.uniform(0.6, 0.95)
    first = colorsys.hsv_to_rgb(hue, rng.uniform(0.55, 0.95), value)
    second = colorsys.hsv_to_rgb((hue + rng.uniform(-0.12, 0.12)) % 1, rng.uniform(0.3, 0.8), value * rng.uniform(0.45, 0.75))
    accent = colorsys.hsv_to_rgb((hue + rng.uniform(0.3, 0.7)) % 1, rng.uniform(0.2, 0.8), rng.uniform(0.75, 1.0))
    first, second, accent = np.array((first, second, accent), np.float32)[..., None, None]
    return Look(first, second, accent, int(rng.integers(4)), rng.uniform(2.5, 5.0), rng.uniform(0, np.pi))


def ground(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Draw a ground with clutter, (S, S, 3) uint8: two colours mixed by noise of several octaves."""
    noise = np.zeros((size_px, size_px), np.float32)
    for cells in (3, 8, 24, 72, 200):
        octave = rng.random((cells, cells), np.float32) - np.float32(0.5)
        octave *= np.float32(cells**-0.3)
        noise += cv2.resize(octave, (size_px, size_px), interpolation=cv2.INTER_LINEAR if cells > 24 else cv2.INTER_CUBIC)
    mix = cv2.convertScaleAbs(noise * np.float32(rng.uniform(0.8, 1.6)) + np.float32(0.5), alpha=255)
    dark, light = np.array(GROUNDS[rng.integers(len(GROUNDS))]) + rng.normal(0, 0.03, 3)
    palette = np.linspace(dark, light, 256).clip(0, 1) * 255
    drawn = palette.astype(np.uint8)[mix]
    _clutter(rng, drawn)
    return drawn


def _clutter(rng: np.random.Generator, drawn: np.ndarray) -> None:
    """Draw distractors that resemble objects, in place: wedges, open arcs, strokes, flat ovals."""
    size_px = len(drawn)
    for _ in range(rng.integers(4, 13)):
        centre = rng.uniform(0, size_px, 2)
        near = drawn[int(centre[1]), int(centre[0])] * 0.4
        colour = near + 153 * np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 0.8), rng.uniform(0.3, 0.9)))
        _draw_clutter(rng, drawn, centre, size_px * rng.uniform(0.02, 0.13), tuple(colour.tolist()))


def _draw_clutter(rng: np.random.Generator, drawn: np.ndarray, centre: np.ndarray, half: float, colour: tuple[float, ...]) -> None:
    # OpenCV takes coordinates in sixteenths of a pixel here (shift = 4).
    position, turn, shape = (int(16 * centre[0]), int(16 * centre[1])), rng.uniform(0, 360), rng.integers(4)
    if shape == 0:
        corners = np.radians(turn + np.array((0, 115, 240)) + rng.uniform(-25, 25, 3))
        _fill(drawn, np.stack((np.cos(corners), np.sin(corners)), axis=1) * half + centre, colour)
    elif shape == 1:
        axes = (int(16 * half), int(16 * half * rng.uniform(0.7, 1.0)))
        end, thickness = rng.uniform(90, 200), max(1, int(half * rng.uniform(0.15, 0.4)))
        cv2.ellipse(drawn, position, axes, turn, 0, end, colour, thickness, cv2.LINE_AA, 4)
    elif shape == 2:
        points = np.cumsum(rng.normal(0, half * 0.7, (5, 2)), axis=0) + centre
        cv2.polylines(drawn, [(points * 16).astype(np.int32)], False, colour, max(1, int(half * 0.2)), cv2.LINE_AA, 4)
    else:
        axes = (int(16 * half), int(16 * half * rng.uniform(0.2, 0.45)))
        cv2.ellipse(drawn, position, axes, turn, 0, 360, colour, -1, cv2.LINE_AA, 4)


def _fill(drawn: np.ndarray, points: np.ndarray, colour: tuple[float, ...]) -> None:
    cv2.fillPoly(drawn, [(points * 16).astype(np.int32)], colour, cv2.LINE_AA, 4)  # in sixteenths of a pixel


def blades(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Draw the coverage, (S, S) float32 from 0 to 1, of a few thin blades of grass in front of all objects; empty in most scenes."""
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
    """Darken the ground beside an object in place, away from the light."""
    shift = np.array(((1, 0, -light[0] * half * 0.16), (0, 1, -light[1] * half * 0.16)), np.float64)
    shadow = cv2.warpAffine(shape.alpha, shift, shape.alpha.shape[::-1])
    blur = int(half * 0.12) * 2 + 1
    canvas[:, shape.rows, shape.columns] *= 1 - np.float32(0.5) * cv2.blur(shadow, (blur, blur))


def paint(canvas: np.ndarray, shape: Outline, look: Look, light: tuple[float, float], half: float) -> None:
    """Paint one object in place, in its look, lit from one side, with a darker rim."""
    colour = look.first + (look.second - look.first) * _pattern(shape.u, shape.v, look)
    colour += (look.accent - colour) * np.clip(shape.accent * np.float32(half) + np.float32(0.5), 0, 1)
    rows, columns = shape.alpha.shape
    shade = np.linspace(-light[0], light[0], columns, dtype=np.float32) + np.linspace(-light[1], light[1], rows, dtype=np.float32)[:, None]
    rim = np.clip(shape.inside / np.float32(max(1.5, 0.07 * half)), 0, 1)
    colour *= (1 + np.float32(0.2) * shade) * (np.float32(0.6) + np.float32(0.4) * rim)
    region = canvas[:, shape.rows, shape.columns]
    region += (colour - region) * shape.alpha


def _pattern(u: np.ndarray, v: np.ndarray, look: Look) -> np.ndarray:
    """Return the share of the second colour, (h, w) from 0 to 1."""
    if look.pattern == 0:
        return np.zeros_like(u)
    cos, sin, waves = np.float32(np.cos(look.turn)), np.float32(np.sin(look.turn)), np.float32(look.waves * np.pi / 2)
    along = np.sin((u * cos + v * sin) * waves)
    across = np.sin((v * cos - u * sin) * waves) if look.pattern > 1 else np.float32(1)
    wave = along * across - np.float32(0.25 if look.pattern == 3 else 0)
    return np.clip(wave * 4 + np.float32(0.5), 0, 1)


def photograph(rng: np.random.Generator, canvas: np.ndarray, light: str) -> np.ndarray:
    """Photograph a canvas, (S, S, 3) uint8, with the brightness, tint, uneven light, blur and noise of a time of day.

    The canvas is overwritten.
    """
    size_px = canvas.shape[1]
    gain = rng.uniform(*GAIN[light]) * np.array(TINT[light]) * (1 + rng.normal(0, 0.03, 3)) * 255
    canvas *= _uneven_light(rng, size_px, light) * gain.astype(np.float32)[:, None, None]
    sigma = size_px / 320 * rng.uniform(0.5, 1.1) if rng.random() < 0.35 else 0
    grain = rng.standard_normal((size_px, size_px), np.float32) * np.float32(255 * rng.uniform(*NOISE[light]))
    for plane, noise in zip(canvas, (grain, grain[::-1], grain[:, ::-1]), strict=True):
        if sigma:
            cv2.GaussianBlur(plane, (0, 0), sigma, dst=plane)
        plane += noise
    return np.rint(cv2.merge(list(canvas))).clip(0, 255).astype(np.uint8)


def _uneven_light(rng: np.random.Generator, size_px: int, light: str) -> np.ndarray:
    """Return the brightness of each pixel, (S, S): a slope, plus a lamp at night."""
    steps = np.linspace(-1, 1, size_px, dtype=np.float32)
    slope_x, slope_y = rng.uniform(-0.2, 0.2, 2).astype(np.float32)
    field = 1 + slope_x * steps + slope_y * steps[:, None]
    if light == "night":
        x, y = rng.uniform(-0.8, 0.8, 2).astype(np.float32)
        spread, power = np.float32(rng.uniform(0.3, 0.7)), np.float32(rng.uniform(0.6, 1.4))
        field += power * np.exp(-(((steps - x) / spread) ** 2)) * np.exp(-(((steps - y) / spread) ** 2))[:, None]
    return field
