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
        ({"y": {"strides": (12, 0, 1)}}, ("layer", "follow each other")),
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
