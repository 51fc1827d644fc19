"""The light of a street scene: weather, texture, lamps and their bloom, the lens and the sensor.

image = blur(painted * gain * texture + lamps + bloom) + noise
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from roadworthy.data.street_canvas import HEIGHT, WIDTH, Camera, Canvas, Color
from roadworthy.data.street_objects import Rng


@dataclass(frozen=True)
class Weather:
    """The light of a scene; gains are B,G,R factors on the painted colours."""

    gain: Color
    sky_top: Color
    sky_low: Color
    haze_per_m: float
    shadow: float
    lamps: bool
    noise: float


def weather_of(rng: Rng) -> Weather:
    """Draw a weather: day, overcast, dusk, night or fog."""
    kind = rng.choice(["day", "overcast", "dusk", "night", "fog"], p=[0.36, 0.18, 0.16, 0.2, 0.1])
    jitter = rng.uniform(0.85, 1.15)
    if kind == "day":
        gain, top, low = (1.0, 1.05, 1.08), (235, 180, 120), (240, 225, 205)
        return Weather(_times(gain, jitter), top, low, 0.002, rng.uniform(0.3, 0.6), False, rng.uniform(1, 5))
    if kind == "overcast":
        gain, top, low = (0.88, 0.85, 0.84), (200, 195, 190), (215, 212, 210)
        return Weather(_times(gain, jitter), top, low, rng.uniform(0.004, 0.012), 0.15, False, rng.uniform(2, 7))
    if kind == "dusk":
        gain, top, low = (0.5, 0.48, 0.56), (140, 90, 70), (120, 150, 230)
        return Weather(_times(gain, jitter), top, low, 0.005, 0.12, True, rng.uniform(3, 9))
    if kind == "night":
        gain, top, low = (0.3, 0.25, 0.24), (50, 35, 30), (75, 60, 60)
        return Weather(_times(gain, jitter), top, low, 0.004, 0.0, True, rng.uniform(5, 12))
    gain, top, low = (0.82, 0.82, 0.82), (205, 205, 205), (205, 205, 205)
    return Weather(_times(gain, jitter), top, low, rng.uniform(0.02, 0.045), 0.0, False, rng.uniform(2, 6))


def _times(color: Color, factor: float) -> Color:
    return color[0] * factor, color[1] * factor, color[2] * factor


@lru_cache(maxsize=1)
def _noise_bank() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Texture (smooth, about -1..1) and sensor noise (unit variance), twice the image in size; cut out at random."""
    rng = np.random.default_rng(20)
    shape = (2 * HEIGHT, 2 * WIDTH)
    texture = np.zeros(shape, np.float32)
    for cells, weight in ((4, 0.35), (2, 0.35), (16, 0.4), (64, 0.4)):
        coarse = rng.normal(0, 1, (shape[0] // cells + 1, shape[1] // cells + 1)).astype(np.float32)
        texture += weight * cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_LINEAR)
    return np.clip(texture, -2, 2), rng.normal(0, 1, (*shape, 3)).astype(np.float32)


def _cut(bank: NDArray[np.float32], rng: Rng) -> NDArray[np.float32]:
    y, x = int(rng.integers(HEIGHT)), int(rng.integers(WIDTH))
    return bank[y : y + HEIGHT, x : x + WIDTH]


def ground_texture(canvas: Canvas, camera: Camera, rng: Rng) -> None:
    """Grain on asphalt and grass, before anything stands on it."""
    top = int(np.clip(camera.horizon, 1, HEIGHT - 1))
    grain = 1 + rng.uniform(0.03, 0.14) * _cut(_noise_bank()[0], rng)[top:, :, None]
    canvas.image[top:] = np.clip(canvas.image[top:] * grain, 0, 255).astype(np.uint8)


def expose(canvas: Canvas, camera: Camera, rng: Rng, weather: Weather) -> NDArray[np.uint8]:
    """Turn the painted canvas into the picture a camera would take, (H, W, 3) uint8."""
    texture, grain = _noise_bank()
    field = np.array(weather.gain, np.float32) * (1 + rng.uniform(0.02, 0.09) * _cut(texture, rng)[:, :, None])
    if weather.lamps:
        field += rng.uniform(0.35, 0.8) * _headlights(camera)[:, :, None]
    out: NDArray[np.floating] = canvas.image.astype(np.float32) * field
    if canvas.light is not None:
        half = cv2.resize(canvas.light, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
        bloom = cv2.GaussianBlur(half, (0, 0), rng.uniform(2, 4))
        out += canvas.light
        out += rng.uniform(0.5, 1.2) * cv2.resize(bloom, (WIDTH, HEIGHT)).astype(np.float32)
    if rng.random() < 0.25:  # low contrast
        low = rng.uniform(0.45, 0.8)
        out = out * low + 110 * (1 - low) * rng.uniform(0.4, 1.2)
    if rng.random() < 0.35:
        out = np.asarray(cv2.GaussianBlur(out, (0, 0), rng.uniform(0.4, 1.0)))
    if rng.random() < 0.08:  # motion
        out = np.asarray(cv2.blur(out, (3, 1)))
    out += weather.noise * _cut(grain, rng)
    return np.clip(out, 0, 255).astype(np.uint8)


def _headlights(camera: Camera) -> NDArray[np.float32]:
    """The gain of our own headlights, (H, W): two lobes on the road, fading upwards."""
    v, u = np.mgrid[0:HEIGHT:8, 0:WIDTH:8].astype(np.float32)
    down = (v - camera.horizon - 22) / 34
    side = (u - camera.cx) / (60 + 1.1 * np.maximum(v - camera.horizon, 0))
    beam = np.exp(-(down**2) / 2) * np.exp(-(side**2) / 2) + 0.35 * np.exp(-(side**2)) * np.exp(-((down + 0.6) ** 2))
    return cv2.resize(beam.astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
