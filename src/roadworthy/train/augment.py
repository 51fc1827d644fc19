"""Changes of an image that keep its labels true: boxes follow. Made on the image, before it is preprocessed.

A window is laid over the image and becomes the new image: smaller than it to zoom in, larger to zoom out (the rest is
padding), anywhere to shift. So no pixel is resampled here; the preprocessing resizes once, as it would anyway.

    v' = clip((v - 128) * contrast + 128 + brightness)       per image;   gains: times one factor per colour

AUGMENTS is the table. What is drawn is a function of the generator that is handed in, and of the image's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roadworthy.detect.detections import Truth
from roadworthy.errors import InputError

Image = NDArray[np.uint8]
KEPT_AREA = 0.25
"""A box of which less lies in the window is there, but not to be learned: it is marked `ignore`."""


@dataclass(frozen=True)
class Augment:
    """Each change and the share of images that get it.

    zoom: how far, least and most; 0.5 shows the image at half its size, 2 shows a quarter of its area.
    brightness: in levels of 0..255, contrast and gain as a share: the most in either direction.
    """

    mirror: float = 0.0
    window: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    light: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gain: float = 0.0

    def __call__(
        self, image: Image, truth: Truth | None, rng: np.random.Generator, fill: int | None
    ) -> tuple[Image, Truth | None]:
        """Image (H, W, 3) uint8 BGR and boxes in its pixels -> the same, changed; both new where they change.

        fill: level of the padding around an image that is zoomed out; None: no zooming out (for tasks whose images
        never have borders).
        """
        draws = rng.random(16)  # always as many, so that one setting does not move the draws of another
        if draws[0] < self.mirror:
            image, truth = np.ascontiguousarray(image[:, ::-1]), mirrored(truth, image.shape[1])
        if draws[1] < self.window:
            lo, hi = np.log(self.zoom[0] if fill is not None else max(self.zoom[0], 1.0)), np.log(self.zoom[1])
            zoom = float(np.exp(lo + (hi - lo) * draws[2]))
            h, w = image.shape[:2]
            size = max(round(h / zoom), 1), max(round(w / zoom), 1)
            top, left = (_between(draw, whole - part) for draw, whole, part in zip(draws[3:5], (h, w), size))
            image, truth = through_window(image, truth, (top, left), size, fill or 0)
        if draws[5] < self.light:
            signed = 2 * draws[6:11] - 1
            gains = 1 + self.gain * signed[2:5]
            levels = (np.arange(256) - 128) * (1 + self.contrast * signed[0]) + 128 + self.brightness * signed[1]
            image = look_up(image, levels[:, None] * gains)
        return image, truth


def mirrored(truth: Truth | None, width: int) -> Truth | None:
    if truth is None:
        return None
    x1, y1, x2, y2 = truth.boxes_xyxy.T
    return Truth(np.stack([width - x2, y1, width - x1, y2], 1), truth.classes, truth.areas, truth.ignore)


def through_window(
    image: Image, truth: Truth | None, corner: tuple[int, int], size_hw: tuple[int, int], fill: int
) -> tuple[Image, Truth | None]:
    """What a window shows.   corner: its (top, left) in the image, negative outside of it."""
    (top, left), (height, width) = corner, size_hw
    canvas = np.full((height, width, 3), fill, np.uint8)
    h, w = image.shape[:2]
    rows, columns = slice(max(top, 0), min(top + height, h)), slice(max(left, 0), min(left + width, w))
    shown = image[rows, columns]
    canvas[rows.start - top : rows.start - top + shown.shape[0],
           columns.start - left : columns.start - left + shown.shape[1]] = shown  # fmt: skip
    return canvas, None if truth is None else _moved(truth, (top, left), size_hw)


def _moved(truth: Truth, corner: tuple[int, int], size_hw: tuple[int, int]) -> Truth:
    """Boxes in pixels of the window, cut at its sides; those that it does not show are gone."""
    (top, left), (height, width) = corner, size_hw
    moved = truth.boxes_xyxy - np.array([left, top, left, top], np.float32)
    cut = np.clip(moved, 0, np.array([width, height, width, height], np.float32)).astype(np.float32)
    before, after = _areas(moved), _areas(cut)
    share = after / np.maximum(before, 1e-9)
    seen = after > 0
    ignore = truth.ignore | (share < KEPT_AREA)
    return Truth(cut[seen], truth.classes[seen], (truth.areas * share).astype(np.float32)[seen], ignore[seen])


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    return np.maximum(sides, 0).prod(1)


def look_up(image: Image, levels: NDArray[np.float64]) -> Image:
    """Every value replaced by that of its level.   levels: (256, 3), one column for each of B, G, R."""
    import cv2

    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8).reshape(256, 1, 3)
    return cv2.LUT(image, table)  # type: ignore[return-value]


def _between(draw: float, room: int) -> int:
    """From 0 to room, or from room to 0 where it is negative: both ends, and all whole numbers alike."""
    steps = int(draw * (abs(room) + 1))
    return steps if room >= 0 else -steps


AUGMENTS: Mapping[str, Augment] = {
    "none": Augment(),
    "light": Augment(mirror=0.5, window=0.5, zoom=(0.8, 1.25), light=0.5, brightness=16, contrast=0.15),
    "strong": Augment(
        mirror=0.5, window=0.9, zoom=(0.5, 2.0), light=0.8, brightness=40, contrast=0.4, gain=0.1
    ),
}  # fmt: skip


def augment_named(name: str) -> Augment:
    """A row of AUGMENTS. Raises InputError for another name."""
    if name not in AUGMENTS:
        raise InputError(f"augment is {name!r}; use one of {', '.join(AUGMENTS)}")
    return AUGMENTS[name]
