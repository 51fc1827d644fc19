"""The fixed-point form in NumPy: integers only, in 64 bits; docs/engine.md, "Fixed point".

`FIXED[form](operation, operand, encodings) -> codes` for the operations that are no layers and differ from the float
form; all others only move codes or look them up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding
from roadworthy.run import arithmetic as ar
from roadworthy.run import reference_ops as ops

Codes = NDArray[np.uint8]
Operand = Callable[[g.Value | None], tuple[Codes, Encoding]]
Form = Callable[[ar.Operation, Operand, Mapping[str, Encoding]], NDArray[np.int64]]


def finish_fixed(e: ar.FixedEpilogue, acc: NDArray[np.int64], axis: int) -> NDArray[Any]:
    """Accumulators (bias included) to codes u8; to float32 where they leave the device.   axis: of the channels."""

    def channel(values: NDArray[Any] | None) -> NDArray[Any]:
        shape = [1] * acc.ndim
        shape[axis] = -1
        return np.asarray(values).reshape(shape)

    if e.real is not None:
        return ar.evaluate(e.function, acc.astype(np.float32) * channel(e.real.scale))
    q = ar.scale32(acc, channel(e.m), channel(e.shift)) + channel(e.zero)
    if e.kind == "fixed_table":
        return np.asarray(e.table)[np.clip(q, 0, 255)]
    if e.kind == "fixed_curve":
        v = ar.interpolate(np.asarray(e.table), np.clip(q, -32768, 32767))
        q = ar.scale32(v, channel(e.m2), channel(e.shift2)) + channel(e.zero2)
    return np.clip(q, e.lo, e.hi).astype(np.uint8)


def _add(operation: ar.Operation, operand: Operand, encodings: Mapping[str, Encoding]) -> NDArray[np.int64]:
    node, target = operation.nodes[0], encodings[str(operation.output.name)]
    (a, a_code), (b, b_code) = (operand(v) for v in node.inputs)
    channels = 1 if target.axis is None else len(target.scale)
    k = ar.fixed_add(str(node.name), a_code, b_code, target, channels, operation.clamp)
    m_a, m_b, shift, zero = (
        v.astype(np.int64).reshape(-1, 1, 1) if channels > 1 else v.astype(np.int64)
        for v in (k.a, k.b, k.shift, k.zero)
    )
    total = (a.astype(np.int64) - k.z_a) * m_a + (b.astype(np.int64) - k.z_b) * m_b
    return np.asarray(np.clip(((total + (1 << (shift - 1))) >> shift) + zero, k.lo, k.hi))


def _mul(operation: ar.Operation, operand: Operand, encodings: Mapping[str, Encoding]) -> NDArray[np.int64]:
    node, target = operation.nodes[0], encodings[str(operation.output.name)]
    (a, a_code), (b, b_code) = (operand(v) for v in node.inputs)
    k = ar.fixed_mul(str(node.name), a_code, b_code, target, operation.clamp)
    product = (a.astype(np.int64) - k.z_a) * (b.astype(np.int64) - k.z_b)
    return np.clip(ar.scale32(product, np.asarray(k.m), np.asarray(k.shift)) + k.z_y, k.lo, k.hi)


def _average(operation: ar.Operation, operand: Operand, encodings: Mapping[str, Encoding]) -> NDArray[np.int64]:
    node, target = operation.nodes[0], encodings[str(operation.output.name)]
    x, source = operand(node.inputs[0])
    centred = x.astype(np.int64) - int(source.zero_point)
    if node.op_type == "AveragePool":
        total, count = ops.window_sums(node, centred)
    else:
        total, count = centred.sum((2, 3), keepdims=True), np.array([[x.shape[2] * x.shape[3]]])
    m, shift = ar.fixed_average(str(node.name), source, target, int(count.max()))
    q = np.clip(ar.scale32(total, m[count], shift[count]) + int(target.zero_point), 0, 255)
    flat = node.op_type == "ReduceMean" and not g.attribute(node, "keepdims", 1)
    return q[:, :, 0, 0] if flat else q


def _linear(operation: ar.Operation, operand: Operand, encodings: Mapping[str, Encoding]) -> NDArray[np.int64]:
    node, shape = operation.nodes[0], g.static_shape(operation.output)
    x, _ = operand(node.inputs[0])
    if shape is None or x.ndim != 4 or shape[:2] != x.shape[:2]:
        raise UnsupportedError(f"Resize {node.name!r} is neither nearest nor linear over height and width")
    rows, columns = (ar.linear_taps(node, axis, x.shape[axis], shape[axis]) for axis in (2, 3))
    wx, wy = (ar.fixed_weights(taps).astype(np.int64) for taps in (columns, rows))
    codes, wy = x.astype(np.int64), wy[:, None]
    upper, lower = codes[:, :, rows.low], codes[:, :, rows.high]
    top = upper[..., columns.low] * (2048 - wx) + upper[..., columns.high] * wx
    bottom = lower[..., columns.low] * (2048 - wx) + lower[..., columns.high] * wx
    v: NDArray[np.int64] = np.asarray(top * (2048 - wy) + bottom * wy, np.int64)
    return (v + (1 << 21)) >> 22


FIXED: dict[str, Form] = {"add": _add, "mul": _mul, "average": _average, "linear": _linear}
