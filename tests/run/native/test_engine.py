"""The engine against the reference, with ==: random networks and real ones, every path, 1 to 4 threads.

The arena is filled with garbage before each run, and work is cut into the smallest pieces.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from random_graphs import random_int8_model
from roadworthy.model.model import Model, load
from roadworthy.optimize import fold
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import place
from roadworthy.quantize.quantize import activation_encodings, quantize_units
from roadworthy.run.native.lower import lower
from roadworthy.run.reference import ReferenceRunner
from roadworthy.run.targets import TARGETS

native = pytest.importorskip("roadworthy._native", reason="needs the compiled engine (make native)")

ISAS = native.isas()


def equal_everywhere(model: Model, threads: range, seed: int = 0, scale: float = 1.0) -> None:
    plan = lower(model)
    rng = np.random.default_rng(seed)
    feeds = {p.name: (rng.normal(size=p.dims) * scale).astype(np.float32) for p in plan.inputs}
    wanted = ReferenceRunner(model).run(feeds)
    data = plan.to_bytes()
    for isa in ISAS:
        for count in threads:
            session = native.Session(data, count, isa, poison=True, chunk_ns=1.0)
            assert (session.isa, session.threads) == (isa, count)
            for _ in range(2):
                got = session.run(list(feeds.values()))
                for port, array in zip(plan.outputs, got):
                    assert array.shape == wanted[port.name].shape
                    assert np.array_equal(array, wanted[port.name]), f"{port.name} on {isa} with {count} threads"


@pytest.mark.parametrize("seed", range(0, 60))
def test_random_networks(seed: int):
    equal_everywhere(random_int8_model(seed), range(1 + seed % 2, 5, 2), seed)


@pytest.mark.assets
@pytest.mark.parametrize("name", ["cifar10_resnet56", "fastestdet", "mobilenet_v1_075", "yolox_nano"])
def test_real_networks(name: str, assets: Path):
    target = TARGETS["native"]
    model = fold(load(assets / "models" / f"{name}.onnx"))
    placement = place(model.ir, target)
    noise = np.random.default_rng(0).normal(size=model.input_shape).astype(np.float32)
    statistics = calibrate(model, placement.observed, [noise], 2, per_channel=placement.channels)
    activations = activation_encodings(placement, statistics, target, "minmax")
    small = quantize_units(model, placement, activations, "minmax", {n: 8 for n in placement.why_float})
    equal_everywhere(small, range(1, 4, 2))


def test_another_weight_gives_another_result():
    """The comparison above could be blind; one flipped weight is not one too few to see."""
    model = random_int8_model(3)
    plan = lower(model)
    data = bytearray(plan.to_bytes())
    conv = next(op for op in plan.ops if op.code.name == "CONV" and op.attributes[17] == 0)
    at = bytes(data).index(conv.blobs[0])
    feeds = [np.random.default_rng(0).normal(size=p.dims).astype(np.float32) for p in plan.inputs]
    before = native.Session(bytes(data), 1).run(feeds)
    for k in range(len(conv.blobs[0])):
        data[at + k] = 127 if data[at + k] < 128 else 129
    sealed = seal(data)
    try:
        after = native.Session(sealed, 1).run(feeds)
    except ValueError:
        return
    assert not all(np.array_equal(a, b) for a, b in zip(before, after))


def seal(data: bytearray) -> bytes:
    """With the checksum that belongs to the bytes."""
    import struct
    import zlib

    struct.pack_into("<I", data, 16, zlib.crc32(bytes(data[20:])))
    return bytes(data)


def test_profile_names_every_operation():
    plan = lower(random_int8_model(1))
    session = native.Session(plan.to_bytes(), 2)
    feeds = [np.zeros(p.dims, np.float32) for p in plan.inputs]
    rows = session.profile(feeds, 3)
    assert [(name, code) for name, code, _, _ in rows] == [(op.name, op.code.name) for op in plan.ops]
    assert all(ns >= 0 for _, _, ns, _ in rows) and any(macs > 0 for _, _, _, macs in rows)


def test_opcodes_are_those_of_the_writer():
    from roadworthy.run.native.plan import Op

    assert {name: row[0] for name, row in native.opcodes().items()} == {op.name: int(op) for op in Op}
