"""What the engine refuses: each plan is wrong in one place, and the sentence names the operation and the field."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest

from random_graphs import random_int8_model
from roadworthy.run.native.lower import lower
from roadworthy.run.native.plan import ARENA, CONSTANT, F32, INPUT, OUTPUT, U8, Op, Plan, PlanOp, PlanTensor, Port

native = pytest.importorskip("roadworthy._native", reason="needs the compiled engine (make native)")

F = np.float32


PACKED_ONES = b"\1\0\2\0" + b"\1\2\0\0" + bytes(6) + b"\x20"  # 54 weights of one bit; the last is a two
"""Codes 1, and once 2."""


def conv_plan(**changes: object) -> Plan:
    """Input 1x4x4x2 -> codes with a border of one -> 3x3 convolution to 3 channels -> float output."""
    tensors = {
        "x": PlanTensor(F32, INPUT, 0, (4, 4, 2), (4, 1, 16)),
        "codes": PlanTensor(U8, ARENA, 6 * 2 + 2, (4, 4, 2), (12, 2, 1), 0, (1, 1, 1, 1), b"\x07"),
        "y": PlanTensor(F32, OUTPUT, 0, (4, 4, 3), (12, 3, 1)),
    }
    blobs = {
        "weights": np.ones(3 * 9 * 2, np.int8).tobytes(), "bias": np.zeros(3, np.int32).tobytes(),
        "scale": np.full(3, 0.5, F).tobytes(), "zero": b"", "table": b"", "poly": b"",
        "out scale": b"", "weight scale": b"",
    }  # fmt: skip
    numbers = dict(zip(
        ("kh", "kw", "sh", "sw", "top", "left", "dh", "dw", "cin", "cout", "epilogue", "lo", "hi", "unary", "ua", "ub",
         "b", "kind"),
        (3, 3, 1, 1, 1, 1, 1, 1, 2, 3, 3, 0, 255, 0, 0, 0, 0, 0),
    ))  # fmt: skip
    arena = 6 * 6 * 2
    for key, value in changes.items():
        if key == "arena":
            arena = value  # type: ignore[assignment]
        elif key in tensors:
            tensors[key] = replace(tensors[key], **value)  # type: ignore[arg-type]
        elif key in blobs:
            blobs[key] = value  # type: ignore[assignment]
        else:
            assert key in numbers
            numbers[key] = value  # type: ignore[assignment]
    ops = (
        PlanOp(Op.QUANTIZE, (0, 1), (-1,), (F(0.5).tobytes(), np.int32(7).tobytes()), "in"),
        PlanOp(Op.CONV, (1, 2), tuple(numbers.values()), tuple(blobs.values()), "layer"),
    )
    ports = (Port(0, (1, 2, 4, 4), "x"),), (Port(2, (1, 4, 4, 3), "y"),)
    return Plan(tuple(tensors.values()), ops, *ports, arena)


def ints(*values: int) -> bytes:
    return np.array(values, np.int32).tobytes()


def read_back(plan: Plan) -> Plan:
    """With the codes of the layer as the output."""
    out = PlanTensor(F32, OUTPUT, 0, (4, 4, 3), (12, 3, 1))
    back = PlanOp(Op.DEQUANTIZE, (2, 3), (-1,), (F(1).tobytes(), ints(0)), "back")
    return replace(plan, tensors=(*plan.tensors, out), ops=(*plan.ops, back), outputs=(Port(3, (1, 4, 4, 3), "y"),))


def test_the_plan_is_right_to_begin_with():
    x = np.random.default_rng(0).integers(-3, 4, (1, 2, 4, 4)).astype(F)
    (y,) = native.Session(conv_plan().to_bytes(), 1).run([x])
    padded = np.pad(x[0], ((0, 0), (1, 1), (1, 1)))
    sums = sum(padded[:, i : i + 4, j : j + 4] for i in range(3) for j in range(3)).sum(0) * 2
    # The bias does not take the zero point 7 back: 18 taps of 7 stay.
    assert np.array_equal(y[0], np.repeat(((sums + 18 * 7) * 0.5)[..., None], 3, -1).astype(F))


def test_packed_weights_are_expanded():
    x = np.random.default_rng(0).integers(-3, 4, (1, 2, 4, 4)).astype(F)
    plain = np.ones(54, np.int8)
    plain[-1] = 2
    made = [native.Session(conv_plan(**c).to_bytes(), 1).run([x])[0]
            for c in ({"weights": plain.tobytes()}, {"weights": PACKED_ONES, "kind": 16})]  # fmt: skip
    assert np.array_equal(*made)
    assert not np.array_equal(made[0], native.Session(conv_plan().to_bytes(), 1).run([x])[0])


@pytest.mark.parametrize(
    ("entries", "zero", "word"), [(1024, 1023, None), (256, 0, "table"), (1024, 1024, "zero"), (1024, -1, "zero")]
)
def test_a_table_of_ten_bits_is_checked(entries: int, zero: int, word: str | None):
    plan = conv_plan(
        epilogue=4, table=bytes(entries), zero=np.full(3, zero, np.int32).tobytes(), scale=np.full(3, 0.5, F).tobytes(),
        y={"dtype": U8, "space": ARENA, "offset": 128}, arena=256,
    )  # fmt: skip
    plan = read_back(plan)
    if word is None:
        native.Session(plan.to_bytes(), 1)
        return
    with pytest.raises(ValueError) as caught:
        native.Session(plan.to_bytes(), 1)
    assert word in str(caught.value) and "layer" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top": 2}, ("layer", "CONV", "border")),
        ({"left": 2}, ("layer", "border")),
        ({"dh": 2}, ("layer", "border")),
        ({"sw": 2}, ("layer", "border")),
        ({"kh": 0}, ("layer", "kh = 0")),
        ({"kh": 1 << 30}, ("layer", "kh")),
        ({"cin": 3}, ("layer", "channel counts")),
        ({"cout": 4}, ("layer", "channel counts")),
        ({"epilogue": 5}, ("layer", "epilogue")),
        ({"epilogue": 8}, ("layer", "epilogue = 8", "0..7")),
        ({"epilogue": 4}, ("layer", "epilogue")),
        ({"epilogue": 0}, ("layer", "epilogue")),
        ({"unary": 99}, ("layer", "unary")),
        ({"kind": 1}, ("layer", "stored")),
        ({"ua": 0x7FC00000}, ("layer", "ua")),
        ({"weights": b"\1" * 53}, ("layer", "53 bytes of weights", "54")),
        ({"weights": b"\x80" * 54}, ("layer", "-128")),
        ({"kind": 3}, ("layer", "no known kind")),
        ({"kind": 15}, ("layer", "no known kind")),
        ({"kind": 19}, ("layer", "weight kind")),
        ({"kind": -1}, ("layer", "weight kind")),
        ({"kind": 17, "weights": PACKED_ONES}, ("layer", "stored")),
        ({"kind": 16, "weights": b""}, ("layer", "head")),
        ({"kind": 16, "weights": b"\1\0\2"}, ("layer", "head")),
        ({"kind": 16, "weights": PACKED_ONES[:-1]}, ("layer", "14 bytes of packed weights", "15")),
        ({"kind": 16, "weights": PACKED_ONES + b"\0"}, ("layer", "16 bytes of packed weights", "15")),
        ({"kind": 16, "weights": b"\0" + PACKED_ONES[1:]}, ("layer", "no known form")),
        ({"kind": 16, "weights": b"\x08" + PACKED_ONES[1:]}, ("layer", "no known form")),
        ({"kind": 16, "weights": b"\xff" + PACKED_ONES[1:]}, ("layer", "no known form")),
        ({"kind": 16, "weights": b"\1\1" + PACKED_ONES[2:]}, ("layer", "no known form")),
        ({"kind": 16, "weights": b"\1\0\3\0" + PACKED_ONES[4:]}, ("layer", "palette")),
        ({"kind": 16, "weights": b"\1\0\0\0" + PACKED_ONES[4:]}, ("layer", "palette")),
        ({"kind": 16, "weights": b"\1\0\xff\xff" + PACKED_ONES[4:]}, ("layer", "palette")),
        ({"kind": 16, "weights": b"\1\0\1\0" + PACKED_ONES[4:]}, ("layer", "outside its palette")),
        ({"kind": 16, "weights": PACKED_ONES[:-1] + b"\xff"}, ("layer", "behind the last")),
        ({"kind": 16, "weights": PACKED_ONES[:4] + b"\1\x80" + PACKED_ONES[6:]}, ("layer", "-128")),
        ({"bias": b""}, ("layer", "biases")),
        ({"bias": np.full(3, 2**31 - 1, np.int32).tobytes()}, ("layer", "overflow")),
        ({"scale": np.full(3, np.nan, F).tobytes()}, ("layer", "scales")),
        ({"poly": b"\0"}, ("layer", "polynomial")),
        ({"arena": 71}, ("Tensor 1", "outside")),
        ({"arena": 1 << 40}, ("4 GiB",)),
        ({"codes": {"offset": 13}}, ("Tensor 1", "outside")),
        ({"codes": {"strides": (1 << 40, 2, 1)}}, ("Tensor 1", "stride")),
        ({"codes": {"strides": (12, 2, 2)}}, ("Tensor 1", "channels")),
        ({"codes": {"dims": (4, 4, 0)}}, ("Tensor 1", "dimension")),
        ({"codes": {"border": (1, 1, 1, -1)}}, ("Tensor 1", "border")),
        ({"codes": {"fill": b"\1\2\3"}}, ("Tensor 1", "border")),
        ({"codes": {"space": CONSTANT}}, ("Tensor 1", "arena")),
        ({"y": {"strides": (12, 0, 1)}}, ("layer", "tensor 2", "overlap")),
        ({"y": {"strides": (9, 3, 1)}}, ("layer", "tensor 2", "overlap")),
        ({"y": {"strides": (12, -3, 1), "offset": 36}}, ("layer", "follow each other")),
        ({"y": {"offset": 4}}, ("Tensor 2", "outside")),
        ({"y": {"index": 1}}, ("Tensor 2", "input or output")),
        ({"y": {"dtype": U8}}, ("Tensor 2", "float32")),
        ({"y": {"space": INPUT}}, ("Tensor 2", "outside")),
        ({"x": {"offset": 2}}, ("Tensor 0", "outside")),
        ({"x": {"dims": (4, 4, 1)}}, ("in", "sizes")),
    ],
)  # fmt: skip
def test_one_sentence_names_the_place(changes: dict, words: tuple[str, ...]):
    with pytest.raises(ValueError) as caught:
        native.Session(conv_plan(**changes).to_bytes(), 1)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text
    for word in words:
        assert word in text, text


def fixed_plan(kind: int, /, **changes: object) -> Plan:
    """The plan above with an epilogue of the fixed-point form: 5 FIXED, 6 FIXED_TABLE, 7 FIXED_CURVE."""
    curve = kind == 7
    right = {
        "epilogue": kind, "scale": ints(*[1 << 30] * 3), "zero": ints(7, 7, 7), "poly": ints(2, 40, 62),
        "table": {5: b"", 6: bytes(256), 7: bytes(1026)}[kind],
        "out scale": ints(*[2**31 - 1] * 3, *[40] * 3) if curve else b"",
        "weight scale": ints(0, 128, 255) if curve else b"",
        "y": {"dtype": U8, "space": ARENA, "offset": 128}, "arena": 256,
    }  # fmt: skip
    return read_back(conv_plan(**(right | changes)))


@pytest.mark.parametrize("kind", [5, 6, 7])
def test_the_fixed_plan_is_right_to_begin_with(kind: int):
    x = np.random.default_rng(0).integers(-3, 4, (1, 2, 4, 4)).astype(F)
    (y,) = native.Session(fixed_plan(kind).to_bytes(), 1).run([x])
    padded = np.pad(x[0], ((0, 0), (1, 1), (1, 1)))
    sums = sum(padded[:, i : i + 4, j : j + 4] for i in range(3) for j in range(3)).sum(0) * 2 + 18 * 7
    if kind == 5:  # 2^30 / 2^2, 2^30 / 2^40 and 2^30 / 2^62; halves are rounded up
        wanted = np.stack([np.full((4, 4), 255), np.floor((sums + 2**9) / 2**10) + 7, np.full((4, 4), 7)], -1)
        assert np.array_equal(y[0], np.minimum(wanted, 255))
    else:
        assert np.array_equal(y[0], np.broadcast_to([0, 0, 0] if kind == 6 else [0, 128, 255], (4, 4, 3)))


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        *((kind, {"scale": ints(1 << 30, -1, 1 << 30)}, ("layer", "multiplier -1")) for kind in (5, 6, 7)),
        *((kind, {"scale": ints(1, 1, 1)}, ("layer", "multiplier 1", "shift 2")) for kind in (5, 6, 7)),
        *((kind, {"scale": ints(1 << 30, 1 << 30)}, ("layer", "8 bytes of multipliers")) for kind in (5, 6, 7)),
        *((kind, {"poly": ints(1, 40, 40)}, ("layer", "shift 1 among", "2..62")) for kind in (5, 6, 7)),
        *((kind, {"poly": ints(40, 63, 40)}, ("layer", "shift 63 among", "2..62")) for kind in (5, 6, 7)),
        *((kind, {"poly": b""}, ("layer", "0 bytes of shifts")) for kind in (5, 6, 7)),
        *((kind, {"bias": ints(0, 0, 2**31 - 1)}, ("layer", "overflow")) for kind in (5, 6, 7)),
        *((kind, {"unary": 5}, ("layer", "unary = 5")) for kind in (5, 6, 7)),
        *((kind, {"lo": 9, "hi": 8}, ("layer", "hi = 8")) for kind in (5, 6, 7)),
        *((kind, {"kind": 1}, ("layer", "stored")) for kind in (5, 6, 7)),
        (5, {"zero": ints(0, 256, 0)}, ("layer", "256 among its zero points")),
        (6, {"zero": ints(0, -1, 0)}, ("layer", "-1 among its zero points")),
        (7, {"zero": ints(0, 32768, 0)}, ("layer", "32768 among its zero points")),
        (5, {"table": bytes(256)}, ("layer", "256 bytes of table and needs 0")),
        (6, {"table": bytes(1024)}, ("layer", "1024 bytes of table and needs 256")),
        (7, {"table": bytes(1024)}, ("layer", "1024 bytes of table and needs 1026")),
        (5, {"out scale": ints(*[1 << 30] * 3, *[40] * 3)}, ("layer", "24 bytes of second")),
        (7, {"out scale": b""}, ("layer", "0 bytes of second")),
        (7, {"out scale": ints(*[1 << 30] * 3, 40, 40, 63)}, ("layer", "shift 63 among its second")),
        (7, {"out scale": ints(-5, 1 << 30, 1 << 30, 40, 40, 62)}, ("layer", "multiplier -5")),
        (7, {"weight scale": ints(0, 0, 256)}, ("layer", "256 among its second zero points")),
        (6, {"weight scale": ints(0, 0, 0)}, ("layer", "12 bytes of second zero points")),
    ],
)  # fmt: skip
def test_the_fixed_point_form_is_checked(kind: int, changes: dict, words: tuple[str, ...]):
    with pytest.raises(ValueError) as caught:
        native.Session(fixed_plan(kind, **changes).to_bytes(), 1)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text
    for word in words:
        assert word in text, text


def code_plan(code: Op, attributes: tuple[int, ...], blobs: tuple[bytes, ...], operands: int = 1) -> Plan:
    """One operation on codes of 2 x 2 x 3, all of them constants, into an output of the same size."""
    source = PlanTensor(U8, CONSTANT, 0, (2, 2, 3), (6, 3, 1))
    result, out = PlanTensor(U8, ARENA, 0, (2, 2, 3), (6, 3, 1)), PlanTensor(F32, OUTPUT, 0, (2, 2, 3), (6, 3, 1))
    back = PlanOp(Op.DEQUANTIZE, (1, 2), (-1,), (F(1).tobytes(), ints(0)), "back")
    op = PlanOp(code, (*(0,) * operands, 1), attributes, blobs, "this")
    return Plan((source, result, out), (op, back), (), (Port(2, (2, 2, 3), "y"),), 64, bytes(12))


ADD_BLOBS = (ints(1 << 21, 0, 5), ints(0, 1 << 20, 1 << 21), ints(0, 128, 255), ints(1, 31, 46))
WINDOW, NORMAL = (2, 2, 1, 1, 1, 1, 0, 0, 0), 1 << 30
MEANS = (ints(0, *[NORMAL] * 4), ints(2, 2, 30, 31, 62))
LINES = (ints(0, 1), ints(1, 1), ints(0, 2048)) * 2


def put(values: tuple, at: int, value: object) -> tuple:
    return (*values[:at], value, *values[at + 1 :])


@pytest.mark.parametrize(
    ("code", "attributes", "blobs", "word"),
    [
        (Op.ADD_FIXED, (0, 255, 0, 255), ADD_BLOBS, None),
        (Op.ADD_FIXED, (0, 256, 0, 255), ADD_BLOBS, "z_b"),
        (Op.ADD_FIXED, (0, 0, 9, 8), ADD_BLOBS, "hi"),
        (Op.ADD_FIXED, (0, 0, 0, 255), put(ADD_BLOBS, 0, ints(1 << 21, 0, (1 << 21) + 1)), "multipliers of a"),
        (Op.ADD_FIXED, (0, 0, 0, 255), put(ADD_BLOBS, 1, ints(-1, 0, 0)), "multipliers of b"),
        (Op.ADD_FIXED, (0, 0, 0, 255), put(ADD_BLOBS, 2, ints(0, 0, 256)), "zero points"),
        (Op.ADD_FIXED, (0, 0, 0, 255), put(ADD_BLOBS, 3, ints(0, 20, 20)), "0 among its shifts, outside 1..46"),
        (Op.ADD_FIXED, (0, 0, 0, 255), put(ADD_BLOBS, 3, ints(47, 20, 20)), "47 among its shifts, outside 1..46"),
        (Op.ADD_FIXED, (0, 0, 0, 255), put(ADD_BLOBS, 3, ints(20, 20)), "8 bytes of shifts"),
        (Op.MUL_FIXED, (0, 0, 0, 0, 255, NORMAL, 30), (), None),
        (Op.MUL_FIXED, (0, 0, 0, 0, 255, 0, 62), (), None),
        (Op.MUL_FIXED, (0, 0, 0, 0, 255, NORMAL - 1, 30), (), "multiplier 1073741823 with the shift 30"),
        (Op.MUL_FIXED, (0, 0, 0, 0, 255, NORMAL, 1), (), "shift 1"),
        (Op.MUL_FIXED, (0, 0, 0, 0, 255, NORMAL, 63), (), "shift 63"),
        (Op.MUL_FIXED, (0, 0, 300, 0, 255, NORMAL, 30), (), "z_y"),
        (Op.AVGPOOL_FIXED, WINDOW, MEANS, None),
        (Op.AVGPOOL_FIXED, put(WINDOW, 4, 2), MEANS, "outside its input"),
        (Op.AVGPOOL_FIXED, put(WINDOW, 6, 2), MEANS, "count padding"),
        (Op.AVGPOOL_FIXED, put(WINDOW, 0, 3), MEANS, "20 bytes of multipliers and needs 28"),
        (Op.AVGPOOL_FIXED, (1 << 12, 1 << 12, *WINDOW[2:]), MEANS, "4 million positions"),
        (Op.AVGPOOL_FIXED, WINDOW, put(MEANS, 1, ints(2, 1, 30, 31, 62)), "shift 1"),
        (Op.AVGPOOL_FIXED, WINDOW, put(MEANS, 0, ints(0, 1, NORMAL, NORMAL, NORMAL)), "multiplier 1 with the shift 2"),
        (Op.RESIZE_LINEAR_FIXED, (), LINES, None),
        (Op.RESIZE_LINEAR_FIXED, (), put(LINES, 0, ints(0, 2)), "upper rows"),
        (Op.RESIZE_LINEAR_FIXED, (), put(LINES, 4, ints(-1, 0)), "right columns"),
        (Op.RESIZE_LINEAR_FIXED, (), put(LINES, 2, ints(0, 2049)), "row weights"),
        (Op.RESIZE_LINEAR_FIXED, (), put(LINES, 5, ints(-1, 0)), "column weights"),
        (Op.RESIZE_LINEAR_FIXED, (), put(LINES, 1, b""), "0 bytes of lower rows"),
    ],
)  # fmt: skip
def test_operations_in_fixed_point_are_checked(code: Op, attributes: tuple, blobs: tuple, word: str | None):
    data = code_plan(code, attributes, blobs, 2 if code in (Op.ADD_FIXED, Op.MUL_FIXED) else 1).to_bytes()
    if word is None:
        native.Session(data, 1).run([])
        return
    with pytest.raises(ValueError) as caught:
        native.Session(data, 1)
    assert word in str(caught.value) and "`this`" in str(caught.value) and str(caught.value).endswith(".")


def test_an_output_that_nobody_writes_is_refused():
    plan = conv_plan()
    for ops, written in ((plan.ops[:1], 0), (plan.ops, 48)):
        larger = replace(plan, ops=ops, outputs=(Port(2, (1, 4, 4, 4), "y"),))
        with pytest.raises(ValueError, match=rf"Output 0 `y` \(tensor 2\) has 64 elements.* write {written}\."):
            native.Session(larger.to_bytes(), 1)


@pytest.mark.parametrize("name", ["", "avx9"])
def test_instruction_sets(name: str, monkeypatch: pytest.MonkeyPatch):
    data = conv_plan().to_bytes()
    for isa in native.isas():
        monkeypatch.setenv("ROADWORTHY_ISA", isa)
        assert native.Session(data, 1, name).isa == isa if not name else True
    monkeypatch.setenv("ROADWORTHY_ISA", "avx9")
    with pytest.raises(ValueError, match=r"`avx9` is not available here; choose one of portable"):
        native.Session(data, 1, name)


def test_threads():
    data = conv_plan().to_bytes()
    for count in (-1, 65):
        with pytest.raises(ValueError, match="threads"):
            native.Session(data, count)


def test_inputs():
    session = native.Session(conv_plan().to_bytes(), 1)
    with pytest.raises(ValueError, match="1 inputs, but 0"):
        session.run([])
    with pytest.raises(ValueError, match=r"`x` has shape \[2, 4, 4\]; the network takes \[1, 2, 4, 4\]"):
        session.run([np.zeros((2, 4, 4), F)])


def test_no_file_of_bytes_is_taken_that_is_not_a_plan():
    data = conv_plan().to_bytes()
    for broken in (b"", b"RWPL", data[:-1], data + b"\0", b"\0" + data, data[:300], b"PK" + data[2:]):
        with pytest.raises(ValueError, match="plan"):
            native.Session(broken, 1)
    for at in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[at] ^= 0x10
        with pytest.raises(ValueError):
            native.Session(bytes(flipped), 1)


def test_damage_with_a_right_checksum_never_crashes():
    """A small version of native/tests/fuzz_plan.cc, which runs under the sanitizers (make sanitize)."""
    rng = np.random.default_rng(0)
    originals = [lower(random_int8_model(seed)).to_bytes() for seed in range(4)]
    outcomes = {"refused": 0, "ran": 0}
    for _ in range(400):
        data = bytearray(originals[int(rng.integers(len(originals)))])
        records = struct.unpack_from("<Q", data, 72)[0]
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(20, records if rng.random() < 0.7 else len(data)))
            data[at] = int(rng.integers(256)) if rng.random() < 0.5 else data[at] ^ (1 << int(rng.integers(8)))
        struct.pack_into("<I", data, 16, zlib.crc32(bytes(data[20:])))
        try:
            session = native.Session(bytes(data), 1)
        except ValueError as error:
            assert str(error).endswith(".")
            outcomes["refused"] += 1
            continue
        if session.cost_ns < 1e7 and sum(np.prod(d) for _, d in session.outputs) < 1e6:
            session.run([np.ones(shape, F) for _, shape in session.inputs])
            outcomes["ran"] += 1
    assert outcomes["refused"] > 50 and outcomes["ran"] > 20


def test_constants_that_many_operations_share_do_not_fill_the_memory():
    channels = 1 << 20
    source = PlanTensor(U8, CONSTANT, 0, (1, 1, 1), (0, 0, 1))
    x = PlanTensor(U8, CONSTANT, 0, (1, 1, channels), (channels, channels, 1))
    border = bytes(channels - 1) + b"\x01"
    y = PlanTensor(U8, ARENA, channels, (1, 1, channels), (channels, channels, 1), 0, (1, 0, 0, 0), border)
    out = PlanTensor(F32, OUTPUT, 0, (1,), (1,))
    ops = (PlanOp(Op.COPY, (1, 2)),) * 1500
    plan = Plan((source, x, y, out), ops, (), (Port(3, (1,), "o"),), 2 * channels, bytes(channels))
    with pytest.raises(ValueError, match=r"the same constants so often that they would fill 1500 MB"):
        native.Session(plan.to_bytes(), 1)


def test_outputs_without_bound_are_refused():
    plan = conv_plan()
    huge = PlanTensor(F32, OUTPUT, 0, (1 << 14, 1 << 14), (1 << 14, 1), 1)
    plan = replace(plan, tensors=(*plan.tensors, huge), outputs=(*plan.outputs, Port(3, (1 << 14, 1 << 14), "huge")))
    with pytest.raises(ValueError, match=r"more than 1 GiB together"):
        native.Session(plan.to_bytes(), 1)
