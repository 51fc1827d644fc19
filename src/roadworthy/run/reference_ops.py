"""ONNX operators in NumPy, float32 in and out: `OPERATORS[op_type](node, inputs) -> outputs`.

Functions of one value are not here: `arithmetic.function_of_node` knows them. Pairs follow the engine's float32
sequences bit for bit; sums of products and averages are taken in float64 and rounded once. Operators that only move
values take codes as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import erf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.run import arithmetic as ar

Array = NDArray[Any]
Inputs = Sequence[Array | None]
Operator = Callable[[g.Node, Inputs], list[Array]]


def run_node(node: g.Node, inputs: Inputs) -> list[Array]:
    """The outputs of one node. Raises UnsupportedError for an operator without a row, by name."""
    operator = OPERATORS.get(node.op_type)
    if operator is None or node.domain not in ("", "ai.onnx"):
        raise UnsupportedError(f"{node.op_type} {node.name!r} is an operator that the reference does not know")
    return operator(node, inputs)


def have(array: Array | None) -> Array:
    """An input that must be there."""
    assert array is not None
    return array


def ints(array: Array | None) -> list[int]:
    return [int(v) for v in np.asarray(array).reshape(-1)]


# Convolutions, pools.


def convolve(x: Array, w: Array, at: ar.Windows, groups: int) -> NDArray[np.float64]:
    """Sums of products in float64: x (N, C, H, W) already padded, w (O, C / groups, kh, kw) -> (N, O, h, w).

    On codes it is exact: every product and partial sum is an integer below 2^53.
    """
    n, c = x.shape[:2]
    out, h, wide = len(w), *at.size
    kernels = w.astype(np.float64).reshape(groups, out // groups, c // groups, *at.kernel)
    total = np.zeros((n, groups, out // groups, h * wide))
    for i in range(at.kernel[0]):
        for j in range(at.kernel[1]):
            tap = tap_of(x, at, i, j).astype(np.float64).reshape(n, groups, c // groups, -1)
            k = kernels[..., i, j]
            total += k * tap if c == groups else k @ tap
    return total.reshape(n, out, h, wide)


def tap_of(x: Array, at: ar.Windows, i: int, j: int) -> Array:
    """The pixel (i, j) of every window: (N, C, h, w)."""
    top, left = i * at.dilations[0], j * at.dilations[1]
    down, right = (at.size[0] - 1) * at.strides[0], (at.size[1] - 1) * at.strides[1]
    return x[:, :, top : top + down + 1 : at.strides[0], left : left + right + 1 : at.strides[1]]


def pad_image(x: Array, at: ar.Windows, fill: Array | float, overhang: bool = False) -> Array:
    """x (N, C, H, W) with `fill` (a number, or one per channel) around it."""
    more = at.overhang if overhang else (0, 0)
    n, c, h, w = x.shape
    (top, left), (bottom, right) = at.pads_begin, at.pads_end
    padded = np.empty((n, c, top + h + bottom + more[0], left + w + right + more[1]), x.dtype)
    padded[:] = np.reshape(np.asarray(fill), (1, -1, 1, 1))
    padded[:, :, top : top + h, left : left + w] = x
    return padded


def image_of(node: g.Node, x: Array) -> Array:
    if x.ndim != 4:
        raise UnsupportedError(f"{node.op_type} {node.name!r} is not over two dimensions; only images are supported")
    return x


def _conv(node: g.Node, inputs: Inputs) -> list[Array]:
    x, w = image_of(node, have(inputs[0])), have(inputs[1])
    at = ar.windows(node, x.shape[2:], w.shape[2:])
    total = convolve(pad_image(x, at, 0.0), w, at, g.attribute(node, "group", 1))
    if len(inputs) > 2 and inputs[2] is not None:
        total += have(inputs[2]).astype(np.float64).reshape(1, -1, 1, 1)
    return [total.astype(np.float32)]


def _conv_transpose(node: g.Node, inputs: Inputs) -> list[Array]:
    """Each input pixel adds its multiple of the kernel; what reaches over the result's edge is cut off."""
    x, w = image_of(node, have(inputs[0])), have(inputs[1]).astype(np.float64)
    groups, strides = g.attribute(node, "group", 1), g.attribute(node, "strides", (1, 1))
    dilations, shape = g.attribute(node, "dilations", (1, 1)), g.static_shape(node.outputs[0])
    if shape is None:
        raise UnsupportedError(f"ConvTranspose {node.name!r} has no static output shape")
    n, c, h, wide = x.shape
    kernel = w.reshape(groups, c // groups, *w.shape[1:])
    pixels = x.astype(np.float64).reshape(n, groups, c // groups, h * wide)
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations)]
    full = np.zeros((n, shape[1], *((length - 1) * s + r for length, s, r in zip((h, wide), strides, reach))))
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            top, left = i * dilations[0], j * dilations[1]
            part = (kernel[..., i, j].transpose(0, 2, 1) @ pixels).reshape(n, shape[1], h, wide)
            rows = slice(top, top + (h - 1) * strides[0] + 1, strides[0])
            full[:, :, rows, left : left + (wide - 1) * strides[1] + 1 : strides[1]] += part
    made = np.zeros(shape)
    cut = cut_pixels(node, full.shape[2:], shape[2:])
    kept = full[:, :, cut[0] : cut[0] + shape[2], cut[1] : cut[1] + shape[3]]
    made[:, :, : kept.shape[2], : kept.shape[3]] = kept
    if len(inputs) > 2 and inputs[2] is not None:
        made += have(inputs[2]).astype(np.float64).reshape(1, -1, 1, 1)
    return [made.astype(np.float32)]


def cut_pixels(node: g.Node, full: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, int]:
    """Pixels that a ConvTranspose leaves out at the top and left."""
    auto = g.attribute(node, "auto_pad", "NOTSET")
    if g.attribute(node, "output_shape", None) is None and auto in ("NOTSET", "VALID"):
        stated = g.attribute(node, "pads", (0, 0, 0, 0)) if auto == "NOTSET" else (0, 0)
        return int(stated[0]), int(stated[1])
    extra = g.attribute(node, "output_padding", (0, 0))
    total = [max(f + e - w, 0) for f, e, w in zip(full, extra, wanted)]
    upper = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total]
    return upper[0], upper[1]


def _max_pool(node: g.Node, inputs: Inputs) -> list[Array]:
    x = image_of(node, have(inputs[0]))
    at = ar.windows(node, x.shape[2:], g.attribute(node, "kernel_shape"))
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    padded = pad_image(x, at, lowest, overhang=True)
    taps = [tap_of(padded, at, i, j) for i in range(at.kernel[0]) for j in range(at.kernel[1])]
    return [np.maximum.reduce(taps)]


def window_sums(node: g.Node, x: Array) -> tuple[Array, NDArray[np.int64]]:
    """Sums over the windows of an AveragePool, and how many positions each of them counts (h, w)."""
    at = ar.windows(node, x.shape[2:], g.attribute(node, "kernel_shape"))
    padded = pad_image(x, at, 0, overhang=True)
    inside = np.zeros((1, 1, *padded.shape[2:]), np.int64)
    (top, left), (bottom, right) = at.pads_begin, at.pads_end
    if g.attribute(node, "count_include_pad", 0):
        inside[:, :, : top + x.shape[2] + bottom, : left + x.shape[3] + right] = 1
    else:
        inside[:, :, top : top + x.shape[2], left : left + x.shape[3]] = 1
    taps = [(i, j) for i in range(at.kernel[0]) for j in range(at.kernel[1])]
    total = sum(tap_of(padded, at, i, j) for i, j in taps)
    count = sum(tap_of(inside, at, i, j) for i, j in taps)
    return np.asarray(total), np.asarray(count)[0, 0]


def _average_pool(node: g.Node, inputs: Inputs) -> list[Array]:
    total, count = window_sums(node, image_of(node, have(inputs[0])).astype(np.float64))
    return [(total / np.maximum(count, 1)).astype(np.float32)]


# Matrices.


def _matmul(node: g.Node, inputs: Inputs) -> list[Array]:
    a, b = (have(v).astype(np.float64) for v in inputs)
    return [np.asarray(a @ b, np.float32)]


def _gemm(node: g.Node, inputs: Inputs) -> list[Array]:
    a, b = (have(v).astype(np.float64) for v in inputs[:2])
    a = a.T if g.attribute(node, "transA", 0) else a
    b = b.T if g.attribute(node, "transB", 0) else b
    total = g.attribute(node, "alpha", 1.0) * (a @ b)
    if len(inputs) > 2 and inputs[2] is not None:
        total = total + g.attribute(node, "beta", 1.0) * have(inputs[2]).astype(np.float64)
    return [np.asarray(total, np.float32)]


# Elementwise.


def _pair(node: g.Node, inputs: Inputs) -> list[Array]:
    """Add, Sub, ...: pair by pair, left to right."""
    arrays = [have(v) for v in inputs]
    if any(a.dtype.kind != "f" for a in arrays):
        raise UnsupportedError(f"{node.op_type} {node.name!r} computes with integers at run time")
    result = arrays[0]
    for array in arrays[1:]:
        result = ar.evaluate_pair(_PAIRS[node.op_type], result, array)
    return [result]


_PAIRS = {"Add": "add", "Sum": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Max": "max", "Min": "min",
          "Pow": "pow"}  # fmt: skip


def _prelu(node: g.Node, inputs: Inputs) -> list[Array]:
    x, slope = have(inputs[0]), have(inputs[1])
    return [np.where(x > 0, x, x * slope).astype(np.float32)]


def _softmax(node: g.Node, inputs: Inputs) -> list[Array]:
    axis = g.attribute(node, "axis", -1)
    return [np.moveaxis(ar.softmax(np.moveaxis(have(inputs[0]), axis, -1)), -1, axis)]


def _erf(node: g.Node, inputs: Inputs) -> list[Array]:
    x = have(inputs[0])
    return [np.array([erf(float(v)) for v in x.reshape(-1)], np.float32).reshape(x.shape)]


def _batch_norm(node: g.Node, inputs: Inputs) -> list[Array]:
    x, *rest = (have(v).astype(np.float64) for v in inputs)
    scale, shift, mean, variance = (v.reshape(-1, *[1] * (x.ndim - 2)) for v in rest)
    made = (x - mean) / np.sqrt(variance + g.attribute(node, "epsilon", 1e-5)) * scale + shift
    return [made.astype(np.float32)]


# Reductions.


def _reduce(take: Callable[..., Any]) -> Operator:
    def reduce(node: g.Node, inputs: Inputs) -> list[Array]:
        x = have(inputs[0])
        axes = ar.reduced_axes(node)
        if not axes:
            return [x]
        made = take(x.astype(np.float64), axis=axes, keepdims=bool(g.attribute(node, "keepdims", 1)))
        return [np.asarray(made, np.float32)]

    return reduce


def _global(take: Callable[..., Any]) -> Operator:
    def pool(node: g.Node, inputs: Inputs) -> list[Array]:
        x = image_of(node, have(inputs[0]))
        if x.dtype.kind != "f":
            return [np.asarray(take(x, axis=(2, 3), keepdims=True), x.dtype)]
        return [np.asarray(take(x.astype(np.float64), axis=(2, 3), keepdims=True), np.float32)]

    return pool


def _operators() -> dict[str, Operator]:
    from roadworthy.run.reference_moves import MOVES

    return {
        **dict.fromkeys(_PAIRS, _pair),
        **MOVES,
        "Conv": _conv,
        "ConvTranspose": _conv_transpose,
        "MatMul": _matmul,
        "Gemm": _gemm,
        "MaxPool": _max_pool,
        "AveragePool": _average_pool,
        "GlobalAveragePool": _global(np.mean),
        "GlobalMaxPool": _global(np.max),
        "ReduceMean": _reduce(np.mean),
        "ReduceSum": _reduce(np.sum),
        "ReduceMax": _reduce(np.max),
        "ReduceMin": _reduce(np.min),
        "PRelu": _prelu,
        "Softmax": _softmax,
        "Erf": _erf,
        "BatchNormalization": _batch_norm,
        "Floor": lambda n, i: [np.floor(have(i[0]))],
        "Ceil": lambda n, i: [np.ceil(have(i[0]))],
        "Round": lambda n, i: [np.rint(have(i[0]))],
    }


OPERATORS: dict[str, Operator] = _operators()
