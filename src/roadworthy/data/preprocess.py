"""From an image to an input tensor, and from input coordinates back to the image.

    tensor   = (image * scale - mean) / std        per channel, after resizing and colour order
    input_xy = image_xy * ratio + offset           per axis, pixel edges (not centres)
    image_xy = (input_xy - offset) / ratio         per axis, the way back for boxes

An image has 256 levels, so the first line is a table of 256 floats per channel: converting is looking up, in one
pass from the resized bytes into the tensor.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import InputError

RESIZES = ("letterbox", "stretch", "crop", "none")
ANCHORS = ("topleft", "center")
COLORS = ("bgr", "rgb", "gray")
LAYOUTS = ("nchw", "nhwc")
INTERPOLATIONS = {"nearest": 0, "linear": 1, "cubic": 2, "area": 3}  # OpenCV's numbers; kept here so cv2 loads late


@dataclass(frozen=True)
class Geometry:
    """Where the image lies in the input tensor: input_xy = image_xy * ratio_xy + offset_xy.

    ratio_xy: input pixels per image pixel, (x, y).   offset_xy: input pixels, negative where the image is cropped.
    image_hw: (height, width) of the original image in pixels.

    The ratio is the one the resize really has (resized side / original side), so that the two axes differ slightly
    where a letterbox rounds the resized side to whole pixels.
    """

    ratio_xy: tuple[float, float]
    offset_xy: tuple[float, float]
    image_hw: tuple[int, int]

    def to_image(self, boxes_xyxy: NDArray) -> NDArray[np.float32]:
        """(N, 4) corners in input pixels -> (N, 4) float32 corners in image pixels, clipped to the image."""
        ratio, offset = self._as_arrays()
        boxes = (np.asarray(boxes_xyxy, np.float64).reshape(-1, 4) - offset) / ratio
        height, width = self.image_hw
        return np.clip(boxes, 0.0, (width, height, width, height)).astype(np.float32)

    def to_input(self, boxes_xyxy: NDArray) -> NDArray[np.float32]:
        """(N, 4) corners in image pixels -> (N, 4) float32 corners in input pixels, not clipped."""
        ratio, offset = self._as_arrays()
        return (np.asarray(boxes_xyxy, np.float64).reshape(-1, 4) * ratio + offset).astype(np.float32)

    def _as_arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.tile(np.asarray(self.ratio_xy), 2), np.tile(np.asarray(self.offset_xy), 2)


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the input tensor; plain values only, so that it can be written as YAML or JSON.

    size_hw: (height, width) of the input tensor in pixels.
    resize: "letterbox" (keep aspect, pad), "stretch", "crop" (short side to `short_side`, then centre crop), or "none".
    anchor: where letterbox puts the image: "topleft" (resized sides rounded down, as YOLOX does) or "center"
        (resized sides rounded to nearest, as YOLOv5 does).
    pad_value: grey level 0..255 of the letterbox border.
    short_side: pixels of the short side before the centre crop; 0 means the smallest that covers the input size.
    color: "bgr" or "rgb", the channel order the network expects (images are read as BGR); "gray" for one channel.
    layout: "nchw" or "nhwc".
    scale: factor on 0..255 values, before mean and std.
    mean, std: per channel in the order of `color`, applied after `scale`; one value serves all channels.
    interpolation: "linear", "area", "cubic" or "nearest" (OpenCV's).

    Raises InputError for a value outside these.
    """

    size_hw: tuple[int, int]
    resize: str = "letterbox"
    anchor: str = "topleft"
    pad_value: int = 114
    short_side: int = 0
    color: str = "bgr"
    layout: str = "nchw"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "linear"

    def __post_init__(self) -> None:
        one_of = (
            ("resize", RESIZES),
            ("anchor", ANCHORS),
            ("color", COLORS),
            ("layout", LAYOUTS),
            ("interpolation", tuple(INTERPOLATIONS)),
        )
        for field, allowed in one_of:
            if getattr(self, field) not in allowed:
                raise InputError(f"preprocess {field} is {getattr(self, field)!r}; use one of {', '.join(allowed)}")
        size = self.size_hw
        if not isinstance(size, Sequence) or isinstance(size, str) or len(size) != 2:
            raise InputError(f"preprocess size_hw is {size!r}; give two whole numbers, height and width in pixels")
        self._set("size_hw", tuple(_whole("size_hw", side, 1, 1 << 15) for side in size))
        self._set("pad_value", _whole("pad_value", self.pad_value, 0, 255))
        self._set("short_side", _whole("short_side", self.short_side, 0, 1 << 15))
        if self.resize == "crop" and 0 < self.short_side < max(self.size_hw):
            raise InputError(
                f"preprocess short_side is {self.short_side}, smaller than the input of "
                f"{self.size_hw[0]}x{self.size_hw[1]}; use 0 or at least {max(self.size_hw)}"
            )
        self._set("scale", _finite("scale", self.scale))
        self._set("mean", self._per_channel("mean"))
        self._set("std", self._per_channel("std"))
        if self.scale == 0.0 or 0.0 in self.std:
            raise InputError("preprocess scale and std must not be zero")

    @property
    def channels(self) -> int:
        return 1 if self.color == "gray" else 3

    def __call__(self, image_bgr: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Geometry]:
        """(H, W, 3) uint8 BGR -> float32 tensor (1, C, H, W) or (1, H, W, C), and where the image lies in it.

        Raises InputError for another shape or type, and where resize="none" meets an image of another size.
        """
        import cv2

        if image_bgr.dtype != np.uint8 or image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or not image_bgr.size:
            raise InputError(
                f"an image is {image_bgr.dtype} of shape {image_bgr.shape}; "
                "give uint8 of shape (height, width, 3) in BGR"
            )
        canvas: Any  # OpenCV's annotations are wider than what it returns
        canvas, geometry = self._resized(image_bgr)
        if self.color == "gray":
            canvas = cv2.cvtColor(canvas, cv2.COLOR_BGR2GRAY)[..., None]
        elif self.color == "rgb":
            canvas = cv2.cvtColor(canvas, cv2.COLOR_BGR2RGB)
        tables = self._tables()
        height, width = self.size_hw
        if self.layout == "nhwc":
            table = np.ascontiguousarray(tables.T).reshape(1, 256, self.channels)
            looked_up: Any = cv2.LUT(canvas, table)
            return looked_up.reshape(1, height, width, self.channels), geometry
        tensor = np.empty((1, self.channels, height, width), np.float32)
        for plane, table, out in zip(cv2.split(canvas), tables, tensor[0]):
            cv2.LUT(plane, table.reshape(1, 256), dst=out)
        return tensor, geometry

    def _resized(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Geometry]:
        """The image resized, padded or cropped to size_hw, still (H, W, 3) uint8 BGR."""
        import cv2

        canvas: Any
        (in_h, in_w), (h, w) = self.size_hw, image.shape[:2]
        interpolation = INTERPOLATIONS[self.interpolation]
        if self.resize == "none" and (h, w) != (in_h, in_w):
            raise InputError(
                f"an image is {h}x{w} but the model takes {in_h}x{in_w} (height x width) and resize is 'none'; "
                "set resize to letterbox, stretch or crop"
            )
        if self.resize in ("none", "stretch"):
            canvas = image if (h, w) == (in_h, in_w) else cv2.resize(image, (in_w, in_h), interpolation=interpolation)
            return np.ascontiguousarray(canvas), Geometry((in_w / w, in_h / h), (0.0, 0.0), (h, w))
        if self.resize == "crop":
            ratio = self.short_side / min(h, w) if self.short_side else max(in_h / h, in_w / w)
            # A short side of 256 is 256 whatever the ratio rounds to: 107 * (256 / 107) is just below.
            new_h, new_w = max(int(h * ratio + 1e-6), in_h), max(int(w * ratio + 1e-6), in_w)
            top, left = round((new_h - in_h) / 2), round((new_w - in_w) / 2)
            resized = cv2.resize(image, (new_w, new_h), interpolation=interpolation)
            canvas = np.ascontiguousarray(resized[top : top + in_h, left : left + in_w])
            return canvas, Geometry((new_w / w, new_h / h), (float(-left), float(-top)), (h, w))
        ratio = min(in_h / h, in_w / w)
        if self.anchor == "center":
            new_h, new_w = max(round(h * ratio), 1), max(round(w * ratio), 1)
            top, left = round((in_h - new_h) / 2 - 0.1), round((in_w - new_w) / 2 - 0.1)  # odd rest: below and right
        else:
            new_h, new_w = max(int(h * ratio), 1), max(int(w * ratio), 1)
            top, left = 0, 0
        if (new_h, new_w) == (in_h, in_w):
            canvas = cv2.resize(image, (new_w, new_h), interpolation=interpolation)
        else:
            canvas = np.full((in_h, in_w, 3), self.pad_value, np.uint8)
            inside = canvas[top : top + new_h, left : left + new_w]
            cv2.resize(image, (new_w, new_h), dst=inside, interpolation=interpolation)  # straight into its place
        return canvas, Geometry((new_w / w, new_h / h), (float(left), float(top)), (h, w))

    def _tables(self) -> NDArray[np.float32]:
        return _tables(self.scale, self.mean, self.std)

    def _per_channel(self, field: str) -> tuple[float, ...]:
        value = getattr(self, field)
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        numbers = tuple(_finite(field, number) for number in values)
        if len(numbers) == 3 and self.channels == 1 and len(set(numbers)) == 1:
            numbers = numbers[:1]
        if len(numbers) == 1:
            numbers *= self.channels
        if len(numbers) != self.channels:
            raise InputError(
                f"preprocess {field} has {len(numbers)} values; give one for each of the {self.channels} channels "
                f"of color {self.color!r}, or a single one for all"
            )
        return numbers

    def _set(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)


@functools.lru_cache(maxsize=32)
def _tables(scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """(C, 256): the tensor value of every level, computed in double and rounded once."""
    levels = np.arange(256, dtype=np.float64)
    tables = np.stack([(levels * scale - m) / s for m, s in zip(mean, std)]).astype(np.float32)
    tables.flags.writeable = False
    return tables


def _whole(field: str, value: object, lowest: int, highest: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = lowest - 1
    if isinstance(value, bool) or not lowest <= number <= highest:
        raise InputError(f"preprocess {field} is {value!r}; use a whole number from {lowest} to {highest}")
    return number


def _finite(field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InputError(f"preprocess {field} is {value!r}; use a number")
    if not math.isfinite(value):
        raise InputError(f"preprocess {field} is {value!r}; use a finite number")
    return float(value)
