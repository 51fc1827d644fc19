"""A plan executed in plain NumPy, straight from docs/engine.md: strided views over one bytearray, one function per
operation. The arena starts as garbage, so that a border or a pixel that nobody wrote shows."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from roadworthy.run import arithmetic as ar
from roadworthy.run.native.pack import PACKED, unpack
from roadworthy.run.native.plan import Op, Plan, PlanOp, PlanTensor, bits_float

NAMES = {code: name for name, code in ar.UNARY.items()}
PAIRS = {code: name for name, code in ar.BINARY.items()}
DTYPES = (np.uint8, np.float32, np.int32)
F = np.float32


class Interpreter:
    """Runs a plan; every view is checked against its space first."""

    def __init__(self, plan: Plan, seed: int = 0) -> None:
        self.plan = plan
        self.seed = seed

    def run(self, feeds: Mapping[str, NDArray]) -> dict[str, NDArray]:
        plan = self.plan
        arena = np.random.default_rng(self.seed).integers(0, 256, plan.arena_bytes).astype(np.uint8)
        inputs = [np.ascontiguousarray(feeds[p.name], np.float32).view(np.uint8).reshape(-1) for p in plan.inputs]
        outputs = [np.full(4 * int(np.prod(p.dims)), 255, np.uint8) for p in plan.outputs]
        constants = np.frombuffer(plan.constants, np.uint8)
        self.spaces = ([arena], inputs, outputs, [constants])
        self.written: set[int] = set()
        with np.errstate(all="ignore"):
            for op in plan.ops:
                operation = OPERATIONS[op.code]
                views = [self.view(plan.tensors[t]) for t in op.tensors]
                operation(op, views, [plan.tensors[t] for t in op.tensors])
                self.fill_border(plan.tensors[op.tensors[-1]])
        return {p.name: o.view(np.float32).reshape(p.dims) for p, o in zip(plan.outputs, outputs)}

    def memory(self, tensor: PlanTensor) -> NDArray[np.uint8]:
        return self.spaces[tensor.space][tensor.index]

    def view(self, tensor: PlanTensor, grow: tuple[int, int, int, int] = (0, 0, 0, 0)) -> NDArray:
        """The tensor as an array, grown by a border of pixels."""
        size = np.dtype(DTYPES[tensor.dtype]).itemsize
        top, left, bottom, right = grow
        dims = list(tensor.dims)
        start = tensor.offset
        if any(grow):
            start -= size * (top * tensor.strides[0] + left * tensor.strides[1])
            dims[0] += top + bottom
            dims[1] += left + right
        memory = self.memory(tensor)
        reach = [(d - 1) * s * size for d, s in zip(dims, tensor.strides)]
        low, high = start + sum(min(r, 0) for r in reach), start + sum(max(r, 0) for r in reach) + size
        assert low >= 0 and high <= len(memory), f"{tensor} leaves its space of {len(memory)} bytes"
        assert start % size == 0, f"{tensor} is not aligned"
        base = memory[start:high].view(DTYPES[tensor.dtype]) if (high - start) % size == 0 else None
        assert base is not None
        return np.lib.stride_tricks.as_strided(base, dims, [s * size for s in tensor.strides])

    def fill_border(self, tensor: PlanTensor) -> None:
        top, left, bottom, right = tensor.border
        if not any(tensor.border):
            return
        whole = self.view(tensor, tensor.border)
        fill = np.frombuffer(tensor.fill, DTYPES[tensor.dtype])
        assert fill.size in (1, tensor.dims[2])
        whole[:top], whole[:, :left] = fill, fill
        whole[whole.shape[0] - bottom :], whole[:, whole.shape[1] - right :] = fill, fill


def conv(op: PlanOp, views: list[NDArray], tensors: list[PlanTensor]) -> None:
    (x, y), (source, _) = views, tensors
    kh, kw, sh, sw, top, left, dh, dw, cin, cout, kind, lo, hi, unary, ua, ub, pb, weight_kind = op.attributes
    weights, bias, scale, zero, table, poly, out_scale, weight_scale = op.blobs
    depthwise = op.code == Op.DEPTHWISE
    assert (x.shape[2] == cin and y.shape[2] == cout and x.strides[2] in (x.itemsize, 0)) or cin == 1
    floats = x.dtype == np.float32
    packed, weight_kind = weight_kind >= PACKED, weight_kind % PACKED
    dtype = (np.float32 if floats else np.int8) if weight_kind == 0 else (np.int8, np.int16)[weight_kind - 1]
    shape = (kh, kw, cin) if depthwise else (cout, kh, kw, cin)
    w = (unpack(weights, math.prod(shape), dtype) if packed else np.frombuffer(weights, dtype)).reshape(shape)
    if weight_kind:
        s = np.frombuffer(weight_scale, np.float32)
        w = w.astype(np.float32) * (s if depthwise else s[:, None, None, None])
    h, width = y.shape[:2]
    bottom = max((h - 1) * sh + (kh - 1) * dh + 1 - top - x.shape[0], 0)
    right = max((width - 1) * sw + (kw - 1) * dw + 1 - left - x.shape[1], 0)
    assert all(have >= need for have, need in zip(source.border, (top, left, bottom, right))), f"{op.name}: border"
    padded = np.lib.stride_tricks.as_strided(
        x, (x.shape[0] + top + bottom, x.shape[1] + left + right, x.shape[2]), x.strides
    )
    if top or left:
        address = x.__array_interface__["data"][0] - top * x.strides[0] - left * x.strides[1]
        padded = _at(address, padded.shape, x.strides, x.dtype)
    total = np.zeros((h * width, cout))
    for i in range(kh):
        for j in range(kw):
            rows = padded[i * dh : i * dh + (h - 1) * sh + 1 : sh, j * dw : j * dw + (width - 1) * sw + 1 : sw]
            tap = rows.astype(np.float64).reshape(h * width, cin)
            total += tap * w[i, j].astype(np.float64) if depthwise else (w[:, i, j].astype(np.float64) @ tap.T).T
    numbers = np.frombuffer(bias, np.float32 if floats else np.int32)
    function = ar.Function(NAMES[unary], bits_float(ua), bits_float(ub))
    if floats:
        assert kind == 3 and y.dtype == np.float32
        y[:] = ar.evaluate(function, (total + numbers).astype(np.float32)).reshape(y.shape)
        return
    acc = total.astype(np.int64) + numbers
    if kind >= 5:
        y[:] = fixed(kind, acc, lo, hi, op.blobs).reshape(y.shape)
        return
    v = acc.astype(np.float32) * np.frombuffer(scale, np.float32)
    if kind == 3:
        y[:] = ar.evaluate(function, v).reshape(y.shape)
        return
    if kind == 2:
        made = np.frombuffer(poly, np.float32).reshape(3, 32)
        v = ar.polynomial(made, bits_float(pb), v) * np.frombuffer(out_scale, np.float32)
    q = rounded(v) + np.frombuffer(zero, np.int32)
    codes = np.frombuffer(table, np.uint8)
    assert len(codes) == {1: 256, 4: 1024}.get(kind, 0)
    made = codes[np.clip(q, 0, len(codes) - 1)] if kind in (1, 4) else np.clip(q, lo, hi)
    assert y.dtype == np.uint8
    y[:] = made.reshape(y.shape)


def scale32(v: NDArray, m: NDArray, s: NDArray) -> NDArray:
    assert (np.abs(v) < 2**31).all() and (m >= 0).all() and (s >= 2).all() and (s <= 62).all()
    return (v * m.astype(np.int64) + (np.int64(1) << (s.astype(np.int64) - 1))) >> s


def ints(blob: bytes) -> NDArray[np.int64]:
    return np.frombuffer(blob, np.int32).astype(np.int64)


def fixed(kind: int, acc: NDArray, lo: int, hi: int, blobs: tuple[bytes, ...]) -> NDArray:
    _, _, m, zero, table, shift, second, out = blobs
    q = scale32(acc, ints(m), ints(shift)) + ints(zero)
    if kind == 6:
        return np.frombuffer(table, np.uint8)[np.clip(q, 0, 255)]
    if kind == 7:
        t, p = np.frombuffer(table, np.int16).astype(np.int64), np.clip(q, -32768, 32767)
        assert len(t) == 513
        i, f = (p >> 7) + 256, p & 127
        m2, s2 = ints(second).reshape(2, -1)
        q = scale32(t[i] * 128 + (t[i + 1] - t[i]) * f, m2, s2) + ints(out)
    else:
        assert not (table or second or out)
    return np.clip(q, lo, hi)


def _at(address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype) -> NDArray:
    """An array at an address; the border in front of an image lies before the view that NumPy knows."""
    interface = {"data": (address, False), "shape": shape, "strides": strides, "typestr": dtype.str, "version": 3}
    return np.asarray(type("Memory", (), {"__array_interface__": interface})())


def rounded(v: NDArray) -> NDArray[np.int64]:
    return np.clip(np.rint(v), F(-32768), F(32767)).astype(np.int64)


def add(op: PlanOp, views: list[NDArray], _: object) -> None:
    a, b, y = views
    z_a, z_b, lo, hi = op.attributes
    m_a, m_b = (np.frombuffer(blob, np.float32) for blob in op.blobs[:2])
    assert len(m_a) == y.shape[-1]
    total = (a.astype(np.int64) - z_a).astype(np.float32) * m_a + (b.astype(np.int64) - z_b).astype(np.float32) * m_b
    y[:] = np.clip(rounded(total) + np.frombuffer(op.blobs[2], np.int32), lo, hi)


def mul(op: PlanOp, views: list[NDArray], _: object) -> None:
    a, b, y = views
    z_a, z_b, z_y, lo, hi, m = op.attributes
    product = (a.astype(np.int64) - z_a) * (b.astype(np.int64) - z_b)
    y[:] = np.clip(rounded(product.astype(np.float32) * F(bits_float(m))) + z_y, lo, hi)


def add_fixed(op: PlanOp, views: list[NDArray], _: object) -> None:
    a, b, y = views
    z_a, z_b, lo, hi = op.attributes
    m_a, m_b, zero, s = (ints(blob) for blob in op.blobs)
    assert (m_a <= 2**21).all() and (m_b <= 2**21).all() and (s >= 1).all() and (s <= 46).all()
    total = (a.astype(np.int64) - z_a) * m_a + (b.astype(np.int64) - z_b) * m_b
    y[:] = np.clip(((total + (1 << (s - 1))) >> s) + zero, lo, hi)


def mul_fixed(op: PlanOp, views: list[NDArray], _: object) -> None:
    a, b, y = views
    z_a, z_b, z_y, lo, hi, m, s = op.attributes
    product = (a.astype(np.int64) - z_a) * (b.astype(np.int64) - z_b)
    y[:] = np.clip(scale32(product, np.asarray(m), np.asarray(s)) + z_y, lo, hi)


def avgpool_fixed(op: PlanOp, views: list[NDArray], _: object) -> None:
    x, y = views
    kh, kw, _, _, _, _, counts, z_x, z_y = op.attributes
    m, s = (ints(b) for b in op.blobs)
    result = np.empty(y.shape, y.dtype)
    for i, j, window in windows_of(op, x, y):
        n = kh * kw if counts else window.shape[0] * window.shape[1]
        total = (window.astype(np.int64) - z_x).sum((0, 1))
        result[i, j] = np.clip(scale32(total, m[n], s[n]) + z_y, 0, 255)
    y[:] = result


def linear_fixed(op: PlanOp, views: list[NDArray], _: object) -> None:
    x, y = views
    row0, row1, wy, column0, column1, wx = (ints(b) for b in op.blobs)
    wy, wx, codes = wy[:, None, None], wx[:, None], x.astype(np.int64)
    top = codes[row0][:, column0] * (2048 - wx) + codes[row0][:, column1] * wx
    bottom = codes[row1][:, column0] * (2048 - wx) + codes[row1][:, column1] * wx
    y[:] = (top * (2048 - wy) + bottom * wy + (1 << 21)) >> 22


def windows_of(op: PlanOp, x: NDArray, y: NDArray):
    """For every output pixel, the slices of x that its window covers, and how much of the window lies in x."""
    kh, kw, sh, sw, top, left = op.attributes[:6]
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            r, c = i * sh - top, j * sw - left
            yield i, j, x[max(r, 0) : r + kh, max(c, 0) : c + kw]


def maxpool(op: PlanOp, views: list[NDArray], _: object) -> None:
    x, y = views
    result = np.empty(y.shape, y.dtype)
    for i, j, window in windows_of(op, x, y):
        result[i, j] = window.max((0, 1))
    y[:] = result


def avgpool(op: PlanOp, views: list[NDArray], _: object) -> None:
    x, y = views
    kh, kw, _, _, _, _, counts, z_x, z_y = op.attributes
    result = np.empty(y.shape, y.dtype)
    for i, j, window in windows_of(op, x, y):
        n = kh * kw if counts else window.shape[0] * window.shape[1]
        if x.dtype == np.float32:
            result[i, j] = (window.astype(np.float64).sum((0, 1)) / n).astype(np.float32)
        else:
            m = np.frombuffer(op.blobs[0], np.float32)
            total = (window.astype(np.int64) - z_x).sum((0, 1)).astype(np.float32)
            result[i, j] = np.clip(rounded(total * m[n]) + z_y, 0, 255)
    y[:] = result


def nearest(op: PlanOp, views: list[NDArray], _: object) -> None:
    x, y = views
    rows, columns = (np.frombuffer(b, np.int32) for b in op.blobs)
    y[:] = x[rows][:, columns]


def linear(op: PlanOp, views: list[NDArray], _: object) -> None:
    x, y = views
    row0, row1, column0, column1 = (np.frombuffer(op.blobs[k], np.int32) for k in (0, 1, 3, 4))
    wy, wx = (np.frombuffer(op.blobs[k], np.float32) for k in (2, 5))
    wy, wx, one = wy[:, None, None], wx[:, None], F(1)
    codes = x.astype(np.float32)
    top = codes[row0][:, column0] * (one - wx) + codes[row0][:, column1] * wx
    bottom = codes[row1][:, column0] * (one - wx) + codes[row1][:, column1] * wx
    v = top * (one - wy) + bottom * wy
    y[:] = np.clip(np.rint(v), 0, 255) if y.dtype == np.uint8 else v


def table(op: PlanOp, views: list[NDArray], _: object) -> None:
    views[1][:] = np.frombuffer(op.blobs[0], np.uint8)[views[0]]


def copy(op: PlanOp, views: list[NDArray], _: object) -> None:
    assert views[0].dtype == views[1].dtype
    views[1][:] = views[0].copy()


def gather(op: PlanOp, views: list[NDArray], _: object) -> None:
    views[1][:] = views[0][..., np.frombuffer(op.blobs[0], np.int32)]


def along(op: PlanOp, rank: int, blob: bytes, dtype: type) -> NDArray:
    values, axis = np.frombuffer(blob, dtype), op.attributes[0]
    return values if axis < 0 else values.reshape([-1 if k == axis else 1 for k in range(rank)])


def quantize(op: PlanOp, views: list[NDArray], _: object) -> None:
    x, y = views
    scale, zero = along(op, x.ndim, op.blobs[0], np.float32), along(op, x.ndim, op.blobs[1], np.int32)
    y[:] = np.clip(np.rint(x / scale) + zero, 0, 255)


def dequantize(op: PlanOp, views: list[NDArray], _: object) -> None:
    x, y = views
    scale, zero = along(op, x.ndim, op.blobs[0], np.float32), along(op, x.ndim, op.blobs[1], np.int32)
    y[:] = (x.astype(np.int64) - zero).astype(np.float32) * scale


def unary(op: PlanOp, views: list[NDArray], _: object) -> None:
    code, a, b = op.attributes
    views[1][:] = ar.evaluate(ar.Function(NAMES[code], bits_float(a), bits_float(b)), views[0])


def binary(op: PlanOp, views: list[NDArray], _: object) -> None:
    code, behind, a, b = op.attributes
    made = ar.evaluate_pair(PAIRS[code], views[0], views[1])
    views[2][:] = ar.evaluate(ar.Function(NAMES[behind], bits_float(a), bits_float(b)), made)


def softmax(op: PlanOp, views: list[NDArray], _: object) -> None:
    views[1][:] = ar.softmax(views[0].copy())


OPERATIONS = {
    Op.CONV: conv, Op.DEPTHWISE: conv, Op.ADD: add, Op.MUL: mul, Op.MAXPOOL: maxpool, Op.AVGPOOL: avgpool,
    Op.RESIZE_NEAREST: nearest, Op.RESIZE_LINEAR: linear, Op.TABLE: table, Op.COPY: copy, Op.GATHER: gather,
    Op.QUANTIZE: quantize, Op.DEQUANTIZE: dequantize, Op.UNARY: unary, Op.BINARY: binary, Op.SOFTMAX: softmax,
    Op.ADD_FIXED: add_fixed, Op.MUL_FIXED: mul_fixed, Op.AVGPOOL_FIXED: avgpool_fixed,
    Op.RESIZE_LINEAR_FIXED: linear_fixed,
}  # fmt: skip
