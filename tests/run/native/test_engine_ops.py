"""One operation at a time on random strides, sizes and borders: the engine equals the NumPy interpreter byte for byte.

Every plan copies a pattern into the arena, runs the operation, and returns the whole arena as codes; so a byte that
the operation should have left alone shows as well. Functions of floats have one exact sequence (docs/engine.md).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from interpreter import Interpreter
from numpy.typing import NDArray

from roadworthy.run import arithmetic as ar
from roadworthy.run.native.plan import ARENA, CONSTANT, F32, OUTPUT, U8, Op, Plan, PlanOp, PlanTensor, Port, float_bits

native = pytest.importorskip("roadworthy._native", reason="needs the compiled engine (make native)")

ISAS = native.isas()
SEEDS = range(40)
ITEM = {U8: 1, F32: 4}


class Scene:
    """Constants, an arena, and tensors in both."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.constants = bytearray()
        self.arena = 0
        self.positive = False
        self.tensors: list[PlanTensor] = []

    def size(self, most: int = 9) -> int:
        return int(self.rng.integers(1, 40 if self.rng.random() < 0.15 else most))

    def dims(self, rank: int | None = None) -> tuple[int, ...]:
        rank = rank or int(self.rng.integers(1, 6))
        return tuple(self.size(9 if rank < 4 else 4) for _ in range(rank))

    def codes(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        return self.rng.integers(0, 256, shape, dtype=np.uint8)

    def floats(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        values = self.rng.normal(size=shape) * 10 ** self.rng.uniform(-2, 2)
        return (np.abs(values) if self.positive else values).astype(np.float32)

    def strides(self, dims: tuple[int, ...], image: bool, free: bool) -> tuple[tuple[int, ...], int, int]:
        """Strides in elements, the offset of element 0 and the elements taken.   free: broadcast and reversed too."""
        order = list(range(len(dims))) if image else [int(i) for i in self.rng.permutation(len(dims))]
        strides, step, first = [0] * len(dims), 1, 0
        for axis in reversed(order):
            if free and not image and self.rng.random() < 0.15:
                continue
            strides[axis] = step
            step = step * dims[axis] + (int(self.rng.integers(0, 4)) if self.rng.random() < 0.4 else 0)
            if free and not image and self.rng.random() < 0.1:
                first += strides[axis] * (dims[axis] - 1)
                strides[axis] *= -1
        return tuple(strides), first, step

    def source(self, dims: tuple[int, ...], dtype: int, image: bool = False) -> int:
        strides, first, elements = self.strides(dims, image, True)
        data = self.codes((elements,)) if dtype == U8 else self.floats((elements,))
        self.constants += bytes(-len(self.constants) % 4)
        at = len(self.constants)
        self.constants += data.tobytes()
        return self._add(PlanTensor(dtype, CONSTANT, at + first * ITEM[dtype], dims, strides))

    def result(self, dims: tuple[int, ...], dtype: int, image: bool = False) -> int:
        """A tensor in the arena; where it is an image, often with a border."""
        border, fill = (0, 0, 0, 0), b""
        if image and self.rng.random() < 0.6:
            border = tuple(int(b) for b in self.rng.integers(0, 3, 4))
            count = dims[2] if self.rng.random() < 0.5 else 1
            fill = (self.codes((count,)) if dtype == U8 else self.floats((count,))).tobytes() if any(border) else b""
        grown = (dims[0] + border[0] + border[2], dims[1] + border[1] + border[3], dims[2]) if image else dims
        strides, _, elements = self.strides(grown, image, False)
        self.arena += -self.arena % 4 + 4 * int(self.rng.integers(0, 3))
        first = border[0] * strides[0] + border[1] * strides[1] if any(border) else 0
        offset = self.arena + first * ITEM[dtype]
        self.arena += elements * ITEM[dtype]
        return self._add(PlanTensor(dtype, ARENA, offset, dims, strides, 0, border, fill))

    def _add(self, tensor: PlanTensor) -> int:
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def plan(self, op: PlanOp) -> Plan:
        self.arena += int(self.rng.integers(0, 9))
        pattern = len(self.constants)
        self.constants += self.codes((self.arena,)).tobytes()
        flat = (self.arena,)
        before = self._add(PlanTensor(U8, CONSTANT, pattern, flat, (1,)))
        arena = self._add(PlanTensor(U8, ARENA, 0, flat, (1,)))
        out = self._add(PlanTensor(F32, OUTPUT, 0, flat, (1,)))
        scale, zero = np.float32(1).tobytes(), np.int32(0).tobytes()
        ops = (PlanOp(Op.COPY, (before, arena)), op, PlanOp(Op.DEQUANTIZE, (arena, out), (-1,), (scale, zero)))
        return Plan(tuple(self.tensors), ops, (), (Port(out, flat, "arena"),), self.arena, bytes(self.constants))


def some_function(scene: Scene, table: dict[str, int]) -> int:
    """A function's code. Where negative numbers give NaN, whose bits are nobody's promise, there will be none."""
    name = str(scene.rng.choice(sorted(table)))
    scene.positive = name in ("pow", "sqrt", "log")
    return table[name]


def scales(scene: Scene, dims: tuple[int, ...]) -> tuple[int, bytes, bytes]:
    axis = int(scene.rng.integers(-1, len(dims)))
    count = 1 if axis < 0 else dims[axis]
    scale = scene.rng.uniform(0.01, 2, count).astype(np.float32)
    return axis, scale.tobytes(), scene.rng.integers(0, 256, count).astype(np.int32).tobytes()


def copy(scene: Scene) -> PlanOp:
    dtype, image = [U8, F32][int(scene.rng.integers(2))], scene.rng.random() < 0.4
    dims = scene.dims(3 if image else None)
    return PlanOp(Op.COPY, (scene.source(dims, dtype), scene.result(dims, dtype, image)))


def quantize(scene: Scene) -> PlanOp:
    image = scene.rng.random() < 0.5
    dims = scene.dims(3 if image else None)
    axis, scale, zero = scales(scene, dims)
    return PlanOp(Op.QUANTIZE, (scene.source(dims, F32), scene.result(dims, U8, image)), (axis,), (scale, zero))


def dequantize(scene: Scene) -> PlanOp:
    image = scene.rng.random() < 0.3
    dims = scene.dims(3 if image else None)
    axis, scale, zero = scales(scene, dims)
    return PlanOp(Op.DEQUANTIZE, (scene.source(dims, U8), scene.result(dims, F32, image)), (axis,), (scale, zero))


def table(scene: Scene) -> PlanOp:
    image = scene.rng.random() < 0.5
    dims = scene.dims(3 if image else None)
    tensors = scene.source(dims, U8, image), scene.result(dims, U8, image)
    return PlanOp(Op.TABLE, tensors, (), (scene.codes((256,)).tobytes(),))


def unary(scene: Scene) -> PlanOp:
    image = scene.rng.random() < 0.3
    dims = scene.dims(3 if image else None)
    numbers = (some_function(scene, ar.UNARY), float_bits(0.25), float_bits(0.75))
    return PlanOp(Op.UNARY, (scene.source(dims, F32), scene.result(dims, F32, image)), numbers)


def binary(scene: Scene) -> PlanOp:
    dims = scene.dims()
    numbers = (some_function(scene, ar.BINARY), 0 if scene.rng.random() < 0.7 else 4, 0, 0)
    return PlanOp(Op.BINARY, (scene.source(dims, F32), scene.source(dims, F32), scene.result(dims, F32)), numbers)


def softmax(scene: Scene) -> PlanOp:
    dims = scene.dims()
    return PlanOp(Op.SOFTMAX, (scene.source(dims, F32), scene.result(dims, F32)))


def gather(scene: Scene) -> PlanOp:
    dims, dtype = scene.dims(3), [U8, F32][int(scene.rng.integers(2))]
    index = scene.rng.integers(0, dims[2], scene.size()).astype(np.int32)
    y = scene.result((dims[0], dims[1], index.size), dtype, True)
    return PlanOp(Op.GATHER, (scene.source(dims, dtype, True), y), (), (index.tobytes(),))


def nearest(scene: Scene) -> PlanOp:
    dims, dtype = scene.dims(3), [U8, F32][int(scene.rng.integers(2))]
    row = np.sort(scene.rng.integers(0, dims[0], scene.size())).astype(np.int32)
    column = np.sort(scene.rng.integers(0, dims[1], scene.size())).astype(np.int32)
    y = scene.result((row.size, column.size, dims[2]), dtype, True)
    return PlanOp(Op.RESIZE_NEAREST, (scene.source(dims, dtype, True), y), (), (row.tobytes(), column.tobytes()))


def maxpool(scene: Scene) -> PlanOp:
    dims, dtype = scene.dims(3), [U8, F32][int(scene.rng.integers(2))]
    kernel, stride = scene.rng.integers(1, 4, 2), scene.rng.integers(1, 3, 2)
    pad = [int(scene.rng.integers(0, k)) for k in kernel]
    size = [max(1, math.ceil((d + p) / s)) for d, p, s in zip(dims, pad, stride)]
    y = scene.result((size[0], size[1], dims[2]), dtype, True)
    return PlanOp(Op.MAXPOOL, (scene.source(dims, dtype, True), y), tuple(int(v) for v in (*kernel, *stride, *pad)))


def ints(scene: Scene, low: int, high: int, count: int) -> bytes:
    return scene.rng.integers(low, high, count, dtype=np.int32, endpoint=True).tobytes()


def multipliers(scene: Scene, count: int, bits: int) -> tuple[bytes, bytes]:
    """M and S that bring numbers of so many bits to about eight; some shifts anywhere from 2 to 62."""
    shift = np.full(count, 31 + bits - 8) + scene.rng.integers(-1, 3, count)
    anywhere = scene.rng.integers(2, 63, count)
    shift = np.where(scene.rng.random(count) < 0.1, anywhere, shift).astype(np.int32)
    return ints(scene, 1 << 30, 2**31 - 1, count), shift.tobytes()


def clamp(scene: Scene) -> tuple[int, int]:
    return (
        (0, 255) if scene.rng.random() < 0.5 else (int(scene.rng.integers(0, 100)), int(scene.rng.integers(150, 256)))
    )


def add_fixed(scene: Scene) -> PlanOp:
    dims = scene.dims(3)
    c = dims[2]
    shift = ints(scene, 19, 23, c) if scene.rng.random() < 0.7 else ints(scene, 1, 46, c)
    blobs = ints(scene, 0, 1 << 21, c), ints(scene, 0, 1 << 21, c), ints(scene, 0, 255, c), shift
    tensors = scene.source(dims, U8, True), scene.source(dims, U8, True), scene.result(dims, U8, True)
    zeros = (int(z) for z in scene.rng.integers(0, 256, 2))
    return PlanOp(Op.ADD_FIXED, tensors, (*zeros, *clamp(scene)), blobs)


def mul_fixed(scene: Scene) -> PlanOp:
    dims = scene.dims(3)
    tensors = scene.source(dims, U8, True), scene.source(dims, U8, True), scene.result(dims, U8, True)
    zeros = (int(z) for z in scene.rng.integers(0, 256, 3))
    m, s = (int(np.frombuffer(b, np.int32)[0]) for b in multipliers(scene, 1, 16))
    return PlanOp(Op.MUL_FIXED, tensors, (*zeros, *clamp(scene), m, s))


def avgpool_fixed(scene: Scene) -> PlanOp:
    dims = scene.dims(3)
    kernel, stride = scene.rng.integers(1, 4, 2), scene.rng.integers(1, 3, 2)
    pad = [int(scene.rng.integers(0, k)) for k in kernel]
    size = [max(1, math.ceil((d + p) / s)) for d, p, s in zip(dims, pad, stride)]
    m, s = multipliers(scene, int(np.prod(kernel)) + 1, 10)
    tensors = scene.source(dims, U8, True), scene.result((size[0], size[1], dims[2]), U8, True)
    numbers = (*kernel, *stride, *pad, scene.rng.integers(0, 2), *scene.rng.integers(0, 256, 2))
    return PlanOp(Op.AVGPOOL_FIXED, tensors, tuple(int(v) for v in numbers), (m, s))


def linear_fixed(scene: Scene) -> PlanOp:
    dims, size = scene.dims(3), (scene.size(), scene.size())
    blobs = tuple(
        ints(scene, 0, most, count)
        for most, count in zip(
            (dims[0] - 1, dims[0] - 1, 2048, dims[1] - 1, dims[1] - 1, 2048), (size[0],) * 3 + (size[1],) * 3
        )
    )
    tensors = scene.source(dims, U8, True), scene.result((*size, dims[2]), U8, True)
    return PlanOp(Op.RESIZE_LINEAR_FIXED, tensors, (), blobs)


def conv_fixed(scene: Scene) -> PlanOp:
    """Dense or depthwise, every epilogue of the fixed-point form; up to 130 channels, more than a block of any path."""
    kernel, stride, size = scene.rng.integers(1, 4, 2), scene.rng.integers(1, 3, 2), scene.rng.integers(1, 9, 2)
    depthwise, kind = bool(scene.rng.integers(2)), int(scene.rng.integers(5, 8))
    cin = int(scene.rng.integers(1, 131) if depthwise else scene.rng.integers(1, 20))
    cout = cin if depthwise else int(scene.rng.integers(1, 131))
    x = scene.source((*((size - 1) * stride + kernel).tolist(), cin), U8, True)
    y = scene.result((int(size[0]), int(size[1]), cout), U8, True)
    taps = int(np.prod(kernel))
    bits = 14 + int(math.log2(taps * (1 if depthwise else cin)) / 2)
    weights = scene.rng.integers(-127, 128, taps * cout * (1 if depthwise else cin)).astype(np.int8).tobytes()
    m, s = multipliers(scene, cout, bits - 8 if kind == 7 else bits)
    table = {5: b"", 6: scene.codes((256,)).tobytes(), 7: scene.codes((1026,)).tobytes()}[kind]
    zero = ints(scene, -32768, 32767, cout) if kind == 7 else ints(scene, 0, 255, cout)
    second = b"".join(multipliers(scene, cout, 22)) if kind == 7 else b""
    out = ints(scene, 0, 255, cout) if kind == 7 else b""
    numbers = (*kernel, *stride, 0, 0, 1, 1, cin, cout, kind, *clamp(scene), 0, 0, 0, 0, 0)
    blobs = (weights, ints(scene, -20000, 20000, cout), m, zero, table, s, second, out)
    return PlanOp(Op.DEPTHWISE if depthwise else Op.CONV, (x, y), tuple(int(v) for v in numbers), blobs)


FLOAT = (copy, quantize, dequantize, table, unary, binary, softmax, gather, nearest, maxpool)
FIXED = (add_fixed, mul_fixed, avgpool_fixed, linear_fixed, conv_fixed)
MAKERS = FLOAT + FIXED


@pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
def test_equals_the_interpreter(make):
    for seed in SEEDS:
        scene = Scene(seed)
        plan = scene.plan(make(scene))
        wanted = Interpreter(plan).run({})["arena"]
        data = plan.to_bytes()
        for k, isa in enumerate(ISAS):
            # A piece of a nanosecond splits whatever can be split.
            session = native.Session(data, 1 + (seed + k) % 3, isa, poison=True, chunk_ns=0.01)
            got = session.run([])[0]
            wrong = np.flatnonzero(got != wanted)
            assert wrong.size == 0, f"seed {seed} on {isa}: bytes {wrong[:5]} of {plan.describe()}"


def test_notices_a_changed_byte():
    scene = Scene(3)
    plan = scene.plan(table(scene))
    scene = Scene(3)
    op = table(scene)
    other = bytes([op.blobs[0][0] ^ 1]) + bytes(b ^ 1 for b in op.blobs[0][1:])
    changed = scene.plan(PlanOp(op.code, op.tensors, (), (other,)))
    assert not np.array_equal(native.Session(changed.to_bytes(), 1).run([])[0], Interpreter(plan).run({})["arena"])


@pytest.mark.parametrize("number", [5, 6, 7])
def test_notices_a_shift_that_is_one_off(number: int):
    """In the epilogue of a convolution, whatever its kind."""
    seed = next(s for s in range(99) if conv_fixed(Scene(s)).attributes[10] == number)
    scene, other = Scene(seed), Scene(seed)
    op, changed = conv_fixed(scene), conv_fixed(other)
    shift = np.frombuffer(changed.blobs[5], np.int32).copy()
    shift[0] += 1 if shift[0] < 62 else -1
    changed = replace(changed, blobs=(*changed.blobs[:5], shift.tobytes(), *changed.blobs[6:]))
    wanted = Interpreter(scene.plan(op)).run({})["arena"]
    data = other.plan(changed).to_bytes()
    for isa in ISAS:
        assert not np.array_equal(native.Session(data, 1, isa).run([])[0], wanted)
