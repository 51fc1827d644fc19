"""ONNX operators that only move values, or blend neighbours (Resize), in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.run.arithmetic.geometry import linear_taps, nearest_pixels, positions, resize_scale

Inputs = Sequence[Tensor | None]
Operator = Callable[[g.Node, Inputs], list[Tensor]]


def have(value: Tensor | None) -> Tensor:
    """An input that must be there."""
    assert value is not None
    return value


def given(inputs: Inputs, index: int) -> bool:
    return len(inputs) > index and inputs[index] is not None


def ints(value: Tensor | None) -> list[int]:
    return [int(v) for v in have(value).reshape(-1).tolist()]


def _axes(node: g.Node, inputs: Inputs) -> list[int] | None:
    """Axes as an input (opset 13 and newer) or as an attribute."""
    if given(inputs, 1):
        return ints(inputs[1])
    stated = g.attribute(node, "axes", None)
    return None if stated is None else [int(a) for a in stated]


def _pick(x: Tensor, axis: int, pixels: NDArray | Sequence[int]) -> Tensor:
    index = np.asarray(pixels, np.int64)
    if np.array_equal(index, np.arange(x.shape[axis])):
        return x
    return x.index_select(axis, torch.from_numpy(index).to(x.device))


def _reshape(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, wanted = have(inputs[0]), ints(inputs[1])
    if not g.attribute(node, "allowzero", 0):
        wanted = [x.shape[k] if v == 0 else v for k, v in enumerate(wanted)]
    return [x.reshape(wanted)]


def _transpose(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x = have(inputs[0])
    return [x.permute(g.attribute(node, "perm", None) or tuple(reversed(range(x.ndim))))]


def _flatten(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, axis = have(inputs[0]), g.attribute(node, "axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return [x.reshape(math.prod(x.shape[:axis]), -1)]


def _squeeze(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, axes = have(inputs[0]), _axes(node, inputs)
    return [x.squeeze() if axes is None else x.squeeze(tuple(axes))]


def _unsqueeze(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, axes = have(inputs[0]), _axes(node, inputs) or []
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return [x]


def _slice(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x = have(inputs[0])
    starts, ends = ints(inputs[1]), ints(inputs[2])
    axes = ints(inputs[3]) if given(inputs, 3) else list(range(len(starts)))
    steps = ints(inputs[4]) if given(inputs, 4) else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps):
        length = x.shape[axis]
        stop = None if step < 0 and end < -length else end  # down to the first, which Python writes as None
        x = _pick(x, axis, range(length)[start:stop:step])
    return [x]


def _split(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, axis = have(inputs[0]), g.attribute(node, "axis", 0)
    if given(inputs, 1):
        sizes = ints(inputs[1])
    else:
        parts = len(node.outputs)
        each = -(-x.shape[axis] // parts)
        sizes = [each] * (parts - 1) + [x.shape[axis] - each * (parts - 1)]
    return list(x.split(sizes, axis))


def _gather(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, index, axis = have(inputs[0]), have(inputs[1]).long(), g.attribute(node, "axis", 0)
    axis = axis % x.ndim
    length = x.shape[axis]
    taken = x.index_select(axis, torch.where(index < 0, index + length, index).reshape(-1))
    return [taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])]


def _gather_elements(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, index, axis = have(inputs[0]), have(inputs[1]).long(), g.attribute(node, "axis", 0)
    return [torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index))]


def _pad(node: g.Node, inputs: Inputs) -> list[Tensor]:
    """A negative amount takes pixels away."""
    x, amounts = have(inputs[0]), ints(inputs[1])
    axes = [a % x.ndim for a in ints(inputs[3])] if given(inputs, 3) else list(range(x.ndim))
    mode = g.attribute(node, "mode", "constant")
    if mode not in ("constant", "edge", "reflect", "wrap"):
        raise UnsupportedError(f"Pad {node.name!r} has the unknown mode {mode!r}")
    flat = [0] * (2 * x.ndim)
    for k, axis in enumerate(axes):
        before, behind = amounts[k], amounts[k + len(axes)]
        if mode == "constant":
            at = 2 * (x.ndim - 1 - axis)
            flat[at : at + 2] = before, behind
        else:
            kept = np.arange(max(-before, 0), x.shape[axis] - max(-behind, 0))
            x = _pick(x, axis, np.pad(kept, (max(before, 0), max(behind, 0)), mode))
    if mode != "constant":
        return [x]
    fill = float(have(inputs[2]).reshape(-1)[0]) if given(inputs, 2) else 0.0
    return [torch.nn.functional.pad(x, flat, value=fill)]


def _depth_to_space(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, b = have(inputs[0]), g.attribute(node, "blocksize")
    n, c, h, w = x.shape
    if g.attribute(node, "mode", "DCR") == "DCR":
        parts = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return [parts.reshape(n, c // b**2, h * b, w * b)]


def _space_to_depth(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, b = have(inputs[0]), g.attribute(node, "blocksize")
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return [parts.reshape(n, c * b**2, h // b, w // b)]


def _expand(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x = have(inputs[0])
    return [x.expand(torch.broadcast_shapes(x.shape, tuple(ints(inputs[1]))))]


_TYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64,
          9: torch.bool, 10: torch.float16, 11: torch.float64}  # fmt: skip


def _cast(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, to = have(inputs[0]), g.attribute(node, "to")
    if to not in _TYPES:
        raise UnsupportedError(f"Cast {node.name!r} is to the type {to}, which the PyTorch bridge does not know")
    if to in (1, 11) and x.dtype in (torch.float32, torch.float64):  # a module stays in its own precision
        return [x]
    return [x.to(_TYPES[to])]


def _resize(node: g.Node, inputs: Inputs) -> list[Tensor]:
    """Axis by axis: every output pixel is a weighted sum of one, two or four input pixels."""
    x, shape = have(inputs[0]), g.static_shape(node.outputs[0])
    mode = g.attribute(node, "mode", "nearest")
    if shape is None or mode not in _TAPS:
        raise UnsupportedError(f"Resize {node.name!r} has the mode {mode!r} or no static size, which is not supported")
    for axis, size in enumerate(shape):
        if size == x.shape[axis] and resize_scale(node, axis, size, size) == 1:
            continue
        pixels, weights = _TAPS[mode](node, axis, x.shape[axis], size)
        along = [1] * x.ndim
        along[axis] = size
        shares = [torch.from_numpy(np.array(w)).to(x).reshape(along) for w in weights]
        parts = [_pick(x, axis, p) for p in pixels]
        x = parts[0] if mode == "nearest" else sum((p * w for p, w in zip(parts[1:], shares[1:])), parts[0] * shares[0])
    return [x]


Weighted = tuple[list[NDArray], list[NDArray]]
"""Pixels, and their weights, each as long as the output."""


def _nearest(node: g.Node, axis: int, source: int, target: int) -> Weighted:
    return [nearest_pixels(node, axis, source, target)], [np.ones(target)]


def _linear(node: g.Node, axis: int, source: int, target: int) -> Weighted:
    taps = linear_taps(node, axis, source, target)
    return [taps.low, taps.high], [1 - taps.weight, taps.weight]


def _cubic(node: g.Node, axis: int, source: int, target: int) -> Weighted:
    """Keys' convolution kernel over four pixels; beyond the edge the last pixel counts (Keys 1981)."""
    at, a = positions(node, axis, source, target).astype(np.float64), g.attribute(node, "cubic_coeff_a", -0.75)
    first = np.floor(at)
    t = at - first
    pixels, weights = [], []
    for k in range(-1, 3):
        d = np.abs(t - k)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        weights.append(np.where(d <= 1, near, far))
        pixels.append(np.clip(first + k, 0, source - 1).astype(np.int64))
    return pixels, weights


_TAPS: dict[str, Callable[[g.Node, int, int, int], Weighted]] = {
    "nearest": _nearest,
    "linear": _linear,
    "cubic": _cubic,
}

MOVES: dict[str, Operator] = {
    "Reshape": _reshape, "Transpose": _transpose, "Flatten": _flatten, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Slice": _slice, "Split": _split, "Gather": _gather, "GatherElements": _gather_elements, "Pad": _pad,
    "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth, "Expand": _expand, "Cast": _cast,
    "Concat": lambda node, inputs: [torch.cat([have(v) for v in inputs], g.attribute(node, "axis"))],
    "Tile": lambda node, inputs: [have(inputs[0]).repeat(ints(inputs[1]))],
    "Resize": _resize,
    "Identity": lambda node, inputs: [have(inputs[0])],
    "Dropout": lambda node, inputs: [have(inputs[0])],
}  # fmt: skip
