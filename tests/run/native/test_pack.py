"""Packed weights: the file, against plain code; plans with them, against plans without."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from interpreter import Interpreter

from onnx_graphs import N, build, rand
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model, load
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import place
from roadworthy.quantize.quantize import activation_encodings, quantize_units
from roadworthy.quantize.weights import Wish
from roadworthy.run.native.lower import lower
from roadworthy.run.native.pack import pack, packed_operation, unpack
from roadworthy.run.native.plan import Op, Plan
from roadworthy.run.reference import ReferenceRunner
from roadworthy.run.targets import TARGETS

try:
    from roadworthy import _native as native
except ImportError:
    native = None  # type: ignore[assignment]

RNG = np.random.default_rng(4)
X = {"x": rand(1, 3, 16, 16)}


def by_hand(blob: bytes, count: int, size: int) -> list[int]:
    """One bit after the other, as docs/engine.md says."""
    bits, entries = blob[0], int.from_bytes(blob[2:4], "little")
    palette = [int.from_bytes(blob[4 + k * size : 4 + (k + 1) * size], "little", signed=True) for k in range(entries)]
    start = 4 + entries * size
    start += -start % 4
    found = []
    for k in range(count):
        places = range(k * bits, (k + 1) * bits)
        index = sum((blob[start + p // 8] >> p % 8 & 1) << j for j, p in enumerate(places))
        found.append(palette[index])
    return found


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
@pytest.mark.parametrize("distinct", [1, 2, 3, 4, 5, 15, 16, 17, 63, 128])
@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_there_and_back(dtype: type, distinct: int, count: int):
    limit = np.iinfo(dtype).max
    values = RNG.choice(np.arange(-limit, limit), distinct, replace=False)
    codes = RNG.choice(values, count).astype(dtype)
    blob = pack(codes)
    assert blob is not None
    assert np.array_equal(unpack(blob, count, dtype), codes) and unpack(blob, count, dtype).dtype == dtype
    assert by_hand(blob, count, codes.itemsize) == codes.tolist()
    bits = max((len(np.unique(codes)) - 1).bit_length(), 1)
    assert len(blob) == -(-(4 + len(np.unique(codes)) * codes.itemsize) // 4) * 4 + -(-count * bits // 8)


def test_what_cannot_be_packed_or_is_no_smaller_stays():
    assert pack(np.arange(-64, 65, dtype=np.int8)) is None
    few = RNG.integers(-1, 2, 64).astype(np.int8).tobytes()
    attributes, scale = (*range(17), 0), b"\0\0\0\0"
    assert packed_operation(Op.CONV, attributes, (few, b"", scale)) == (attributes, (few, b"", scale))  # one line each
    many = few * 4
    changed, blobs = packed_operation(Op.CONV, attributes, (many, b"", scale))
    assert changed == (*range(17), 16) and len(blobs[0]) == 8 + 64
    floats = np.zeros(256, np.float32).tobytes()
    assert packed_operation(Op.CONV, attributes, (floats, b"", b"")) == (attributes, (floats, b"", b""))
    assert packed_operation(Op.GATHER, (), (many,)) == ((), (many,))


@pytest.mark.parametrize("damage", [lambda b: b[:3], lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"\0" + b[1:],
                                    lambda b: b"\x09" + b[1:], lambda b: b[:1] + b"\1" + b[2:],
                                    lambda b: b[:2] + b"\2" + b[3:], lambda b: b[:-1] + b"\xff"])  # fmt: skip
def test_a_damaged_blob_is_refused(damage):
    blob = pack(np.array([5, -3, 0, 5, 5, 0, -3, 0, 0], np.int8))
    assert blob is not None and len(unpack(blob, 9, np.int8)) == 9
    with pytest.raises(ValueError, match="packed"):
        unpack(damage(blob), 9, np.int8)


def network() -> Model:
    nodes = [
        N("Conv", ["x", "w", "b"], ["a"], pads=[1, 1, 1, 1]), N("Relu", ["a"], ["r"]),
        N("Conv", ["r", "d"], ["e"], pads=[1, 1, 1, 1], group=32), N("Relu", ["e"], ["s"]),
        N("Conv", ["s", "v", "c"], ["y"]),
    ]  # fmt: skip
    weights = {
        "w": rand(32, 3, 3, 3) / 5,
        "b": rand(32),
        "d": rand(32, 1, 3, 3),
        "v": rand(64, 32, 1, 1),
        "c": rand(64),
    }
    return load(build(nodes, weights, (1, 3, 16, 16)))


def quantized(wish: Wish, keep: frozenset[str] = frozenset()) -> Model:
    model, target = network(), TARGETS["native"]
    placement = place(model.ir, target, keep)
    statistics = calibrate(model, placement.observed, [X["x"]], 1, per_channel=placement.channels)
    activations = activation_encodings(placement, statistics, target, "minmax")
    return quantize_units(model, placement, activations, "mse", dict.fromkeys(placement.why_float, wish.bits), wish)


def plain(plan: Plan) -> Plan:
    """The same plan with its weights expanded."""
    ops = []
    for op in plan.ops:
        if op.code in (Op.CONV, Op.DEPTHWISE) and op.attributes[17] >= 16:
            kh, kw, cin, cout = op.attributes[0], op.attributes[1], op.attributes[8], op.attributes[9]
            count = kh * kw * cout * (1 if op.code == Op.DEPTHWISE else cin)
            codes = unpack(op.blobs[0], count, np.int16 if op.attributes[17] == 18 else np.int8)
            attributes = (*op.attributes[:17], op.attributes[17] - 16)
            op = replace(op, attributes=attributes, blobs=(codes.tobytes(), *op.blobs[1:]))
        ops.append(op)
    return replace(plan, ops=tuple(ops))


ALL = frozenset({"Conv:a", "Conv:e", "Conv:y"})
CASES = {"3 bits": (Wish(3), frozenset()), "log2": (Wish(4, grid="log2"), frozenset()),
         "kmeans": (Wish(5, grid="kmeans"), frozenset()), "6 bits": (Wish(6), frozenset()),
         "stored": (Wish(4), ALL), "stored log2 of 16 bits": (Wish(5, grid="log2"), ALL)}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_packed_or_not_the_results_are_the_same(case: str):
    model = quantized(*CASES[case])
    plan = lower(model)
    kinds = {op.attributes[17] for op in plan.ops if op.code in (Op.CONV, Op.DEPTHWISE)}
    wanted_kind = 16 if case in ("3 bits", "log2", "kmeans", "6 bits") else 18 if "16" in case else 17
    assert wanted_kind in kinds
    expanded = plain(plan)
    assert len(plan.to_bytes()) < len(expanded.to_bytes())
    assert Plan.from_bytes(plan.to_bytes()) == plan
    results = [Interpreter(p).run(X)["y"] for p in (plan, expanded)]
    assert np.array_equal(*results)
    if native is not None:
        found = [native.Session(p.to_bytes(), 1).run([X["x"]])[0] for p in (plan, expanded)]
        assert np.array_equal(*found)
        wanted = ReferenceRunner(model).run(X)["y"]
        np.testing.assert_allclose(found[0], wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_four_bits_are_half_of_eight():
    nodes = [N("Conv", ["x", "w"], ["r"]), N("Conv", ["r", "v"], ["y"])]
    model = load(build(nodes, {"w": rand(256, 64, 1, 1), "v": rand(256, 256, 1, 1)}, (1, 64, 4, 4)))
    x = {"x": Encoding(np.float32(0.02), np.int64(128)), "r": Encoding(np.float32(0.2), np.int64(128))}
    placement = place(model.ir, TARGETS["native"])
    sizes = {b: len(lower(quantize_units(model, placement, x, "mse", {}, Wish(b))).to_bytes()) for b in (8, 4, 2)}
    rest = sizes[8] - 64 * 256 - 256 * 256  # biases, multipliers, records
    assert (sizes[4] - rest) / (sizes[8] - rest) == pytest.approx(0.5, abs=0.01)
    assert (sizes[2] - rest) / (sizes[8] - rest) == pytest.approx(0.25, abs=0.01)
