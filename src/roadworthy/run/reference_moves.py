"""ONNX operators that only move values, or blend neighbours (Resize), in NumPy. They take floats and codes alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.run import arithmetic as ar

Array = NDArray[Any]
Inputs = Sequence[Array | None]


def _first(inputs: Inputs) -> Array:
    assert inputs[0] is not None
    return inputs[0]


def _ints(array: Array | None) -> list[int]:
    return [int(v) for v in np.asarray(array).reshape(-1)]


def _given(inputs: Inputs, index: int) -> bool:
    return len(inputs) > index and inputs[index] is not None


def _axes(node: g.Node, inputs: Inputs) -> list[int] | None:
    """Axes as an input (opset 13 and newer) or as an attribute."""
    if _given(inputs, 1):
        return _ints(inputs[1])
    stated = g.attribute(node, "axes", None)
    return None if stated is None else [int(a) for a in stated]


def _reshape(node: g.Node, inputs: Inputs) -> list[Array]:
    x, wanted = _first(inputs), _ints(inputs[1])
    if not g.attribute(node, "allowzero", 0):
        wanted = [x.shape[k] if v == 0 else v for k, v in enumerate(wanted)]
    return [x.reshape(wanted)]


def _transpose(node: g.Node, inputs: Inputs) -> list[Array]:
    return [_first(inputs).transpose(g.attribute(node, "perm", None))]


def _flatten(node: g.Node, inputs: Inputs) -> list[Array]:
    x, axis = _first(inputs), g.attribute(node, "axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return [x.reshape(int(np.prod(x.shape[:axis])), -1)]


def _squeeze(node: g.Node, inputs: Inputs) -> list[Array]:
    axes = _axes(node, inputs)
    return [np.squeeze(_first(inputs), None if axes is None else tuple(axes))]


def _unsqueeze(node: g.Node, inputs: Inputs) -> list[Array]:
    return [np.expand_dims(_first(inputs), tuple(_axes(node, inputs) or ()))]


def _slice(node: g.Node, inputs: Inputs) -> list[Array]:
    x = _first(inputs)
    starts, ends = _ints(inputs[1]), _ints(inputs[2])
    axes = _ints(inputs[3]) if _given(inputs, 3) else list(range(len(starts)))
    steps = _ints(inputs[4]) if _given(inputs, 4) else [1] * len(starts)
    cut = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps):
        length = x.shape[axis]
        if step < 0 and end < -length:  # everything down to the first, which NumPy writes as None
            cut[axis] = slice(start, None, step)
        else:
            cut[axis] = slice(start, end, step)
    return [x[tuple(cut)]]


def _split(node: g.Node, inputs: Inputs) -> list[Array]:
    x, axis = _first(inputs), g.attribute(node, "axis", 0)
    if _given(inputs, 1):
        sizes = _ints(inputs[1])
    else:
        parts = len(node.outputs)
        each = -(-x.shape[axis] // parts)
        sizes = [each] * (parts - 1) + [x.shape[axis] - each * (parts - 1)]
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def _gather(node: g.Node, inputs: Inputs) -> list[Array]:
    return [np.take(_first(inputs), np.asarray(inputs[1]), g.attribute(node, "axis", 0))]


def _pad(node: g.Node, inputs: Inputs) -> list[Array]:
    x, amounts = _first(inputs), _ints(inputs[1])
    axes = [a % x.ndim for a in _ints(inputs[3])] if _given(inputs, 3) else list(range(x.ndim))
    widths = [(0, 0)] * x.ndim
    for k, axis in enumerate(axes):
        widths[axis] = (amounts[k], amounts[k + len(axes)])
    # A negative amount takes pixels away.
    x = x[tuple(slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(widths, x.shape))]
    widths = [(max(a, 0), max(b, 0)) for a, b in widths]
    mode = g.attribute(node, "mode", "constant")
    if mode == "constant":
        fill = np.asarray(inputs[2]).reshape(-1)[0] if _given(inputs, 2) else 0
        return [np.pad(x, widths, constant_values=fill)]
    if mode not in ("edge", "reflect", "wrap"):
        raise UnsupportedError(f"Pad {node.name!r} has the unknown mode {mode!r}")
    return [np.pad(x, widths, mode)]


def _depth_to_space(node: g.Node, inputs: Inputs) -> list[Array]:
    x, b = _first(inputs), g.attribute(node, "blocksize")
    n, c, h, w = x.shape
    if g.attribute(node, "mode", "DCR") == "DCR":
        parts = x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return [parts.reshape(n, c // b**2, h * b, w * b)]


def _space_to_depth(node: g.Node, inputs: Inputs) -> list[Array]:
    x, b = _first(inputs), g.attribute(node, "blocksize")
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return [parts.reshape(n, c * b**2, h // b, w // b)]


def _concat(node: g.Node, inputs: Inputs) -> list[Array]:
    return [np.concatenate([np.asarray(v) for v in inputs], g.attribute(node, "axis"))]


def _expand(node: g.Node, inputs: Inputs) -> list[Array]:
    x = _first(inputs)
    return [np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(_ints(inputs[1])))).copy()]


def _tile(node: g.Node, inputs: Inputs) -> list[Array]:
    return [np.tile(_first(inputs), _ints(inputs[1]))]


def _cast(node: g.Node, inputs: Inputs) -> list[Array]:
    if g.attribute(node, "to") != 1:
        raise UnsupportedError(f"Cast {node.name!r} is to something else than float32, which is not supported")
    return [_first(inputs).astype(np.float32)]


def resized_shape(node: g.Node, inputs: Inputs) -> tuple[int, ...]:
    x = _first(inputs)
    shape = list(x.shape)
    axes = list(g.attribute(node, "axes", None) or range(x.ndim))
    if _given(inputs, 3) and np.asarray(inputs[3]).size:
        for axis, size in zip(axes, _ints(inputs[3])):
            shape[axis] = size
    else:
        for axis, scale in zip(axes, np.asarray(inputs[2], np.float32).reshape(-1)):
            shape[axis] = int(np.floor(np.float32(x.shape[axis]) * scale))
    return tuple(shape)


def _resize(node: g.Node, inputs: Inputs) -> list[Array]:
    x, shape = _first(inputs), resized_shape(node, inputs)
    mode = g.attribute(node, "mode", "nearest")
    if mode == "nearest":
        for axis, size in enumerate(shape):
            pixels = ar.nearest_pixels(node, axis, x.shape[axis], size)
            if not np.array_equal(pixels, np.arange(x.shape[axis])):
                x = np.take(x, pixels, axis)
        return [x]
    if mode != "linear" or x.ndim != 4 or shape[:2] != x.shape[:2]:
        raise UnsupportedError(f"Resize {node.name!r} is neither nearest nor linear over height and width")
    return [blend(node, x.astype(np.float32), shape)]


def blend(node: g.Node, x: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Linear Resize of x (N, C, H, W) in the engine's order: along the row first, then between the rows."""
    rows = ar.linear_taps(node, 2, x.shape[2], shape[2])
    columns = ar.linear_taps(node, 3, x.shape[3], shape[3])
    wx, wy = columns.weight, rows.weight[:, None]
    one = np.float32(1)
    upper, lower = x[:, :, rows.low], x[:, :, rows.high]
    top = upper[..., columns.low] * (one - wx) + upper[..., columns.high] * wx
    bottom = lower[..., columns.low] * (one - wx) + lower[..., columns.high] * wx
    return np.asarray(top * (one - wy) + bottom * wy, np.float32)


MOVES: dict[str, Callable[[g.Node, Inputs], list[Array]]] = {
    "Reshape": _reshape, "Transpose": _transpose, "Flatten": _flatten, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Slice": _slice, "Split": _split, "Gather": _gather, "Pad": _pad, "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth, "Concat": _concat, "Expand": _expand, "Tile": _tile, "Cast": _cast,
    "Resize": _resize, "Identity": lambda node, inputs: [_first(inputs)],
    "Dropout": lambda node, inputs: [_first(inputs)],
}  # fmt: skip
