"""Where the windows of convolutions and pools lie, and from which pixels a resize takes its values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.run.arithmetic.functions import F32, F


@dataclass(frozen=True)
class Windows:
    """Windows over an image (pairs are vertical, horizontal).

    pads_begin, pads_end: pixels added in front and behind.   size: number of windows.
    overhang: pixels beyond the padding that the last windows of a pool with ceil_mode reach.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads_begin: tuple[int, int]
    pads_end: tuple[int, int]
    size: tuple[int, int]
    overhang: tuple[int, int]


def windows(node: g.Node, source_hw: tuple[int, int], kernel: tuple[int, int]) -> Windows:
    """The windows of a Conv, MaxPool or AveragePool over an image of source_hw pixels."""
    strides = _pair(node, "strides", 1)
    dilations = _pair(node, "dilations", 1)
    ceil = bool(g.attribute(node, "ceil_mode", 0))
    auto = g.attribute(node, "auto_pad", "NOTSET")
    stated = tuple(int(p) for p in g.attribute(node, "pads", (0, 0, 0, 0)))
    begin, end, size, overhang = [], [], [], []
    for axis in range(2):
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        stride, length = strides[axis], source_hw[axis]
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            total = max((-(-length // stride) - 1) * stride + reach - length, 0)
            small, large = total // 2, total - total // 2
            before, behind = (small, large) if auto == "SAME_UPPER" else (large, small)
        elif auto == "VALID":
            before = behind = 0
        else:
            before, behind = stated[axis], stated[axis + 2]
        free = length + before + behind - reach
        count = (-(-free // stride) if ceil else free // stride) + 1
        if ceil and (count - 1) * stride >= length + before:  # a window must not start behind the image
            count -= 1
        if free < 0 or min(before, behind) < 0:
            raise UnsupportedError(f"{node.op_type} {node.name!r}: a window of {reach} pixels does not fit the image")
        begin.append(before)
        end.append(behind)
        size.append(count)
        overhang.append(max((count - 1) * stride + reach - (length + before + behind), 0))
    return Windows(kernel, strides, dilations, _two(begin), _two(end), _two(size), _two(overhang))


def _pair(node: g.Node, name: str, default: int) -> tuple[int, int]:
    values = g.attribute(node, name, (default, default))
    if len(values) != 2:
        raise UnsupportedError(f"{node.op_type} {node.name!r} is not over two dimensions; only images are supported")
    return int(values[0]), int(values[1])


def _two(values: list[int]) -> tuple[int, int]:
    return values[0], values[1]


@dataclass(frozen=True, eq=False)
class Taps:
    """Linear interpolation along one axis: x[low] * (1 - weight) + x[high] * weight; all as long as the output."""

    low: NDArray[np.int32]
    high: NDArray[np.int32]
    weight: F32


def resize_scale(node: g.Node, axis: int, source: int, target: int) -> np.float32:
    """Output pixels per input pixel along an axis of a Resize."""
    scales = g.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if scales is not None and scales.size:
        axes = g.attribute(node, "axes", None)
        if axes is None:
            return F(scales[axis])
        return F(scales[list(axes).index(axis)]) if axis in axes else F(1)
    return F(target / source)


def nearest_pixels(node: g.Node, axis: int, source: int, target: int) -> NDArray[np.int32]:
    """For each output pixel along an axis, the input pixel that a nearest Resize takes."""
    at = positions(node, axis, source, target)
    mode = g.attribute(node, "nearest_mode", "round_prefer_floor")
    if mode == "round_prefer_floor":
        found = np.ceil(at - F(0.5))
    elif mode == "round_prefer_ceil":
        found = np.floor(at + F(0.5))
    elif mode in ("floor", "ceil"):
        found = np.floor(at) if mode == "floor" else np.ceil(at)
    else:
        raise UnsupportedError(f"Resize {node.name!r} has the unknown nearest_mode {mode!r}; export it anew")
    return np.clip(found, 0, source - 1).astype(np.int32)


def linear_taps(node: g.Node, axis: int, source: int, target: int) -> Taps:
    """For each output pixel along an axis, the two input pixels of a linear Resize and the share of the second."""
    at = np.clip(positions(node, axis, source, target), F(0), F(source - 1))
    low = np.floor(at)
    weight = np.asarray(at - low, np.float32)
    return Taps(low.astype(np.int32), np.minimum(low + 1, source - 1).astype(np.int32), weight)


def positions(node: g.Node, axis: int, source: int, target: int) -> F32:
    """Where the output pixels lie on the input's axis, float32 as other runtimes compute it."""
    mode = g.attribute(node, "coordinate_transformation_mode", "half_pixel")
    refused = {"antialias": 0, "exclude_outside": 0, "keep_aspect_ratio_policy": "stretch"}
    for name, plain in refused.items():
        if g.attribute(node, name, plain) != plain:
            raise UnsupportedError(f"Resize {node.name!r} has {name} set, which is not supported; export it without")
    out = np.arange(target, dtype=np.float32)
    scale = resize_scale(node, axis, source, target)
    if scale == 1 and source == target:
        return out
    if mode == "asymmetric":
        return np.asarray(out / scale, np.float32)
    if mode == "align_corners":
        return out * F(source - 1) / F(target - 1) if target > 1 else np.zeros(1, np.float32)
    if mode == "pytorch_half_pixel" and target == 1:
        return np.zeros(1, np.float32)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return np.asarray((out + F(0.5)) / scale - F(0.5), np.float32)
    raise UnsupportedError(f"Resize {node.name!r} maps coordinates by {mode}, which is not supported; use half_pixel")
