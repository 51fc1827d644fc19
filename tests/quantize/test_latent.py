"""Weights as they were before rounding: taken where the codes are the same, and nothing that is computed changes."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_graphs import N, build
from roadworthy.data.samples import Samples
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, narrow_codes
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import from_qdq, to_qdq
from roadworthy.quantize.latent import unrounded
from roadworthy.recipe import StoreWeights


def network(seed: int = 0, channels: int = 4) -> Model:
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.normal(size=(channels, 3, 3, 3)).astype(np.float32),
        "v": rng.normal(size=(3, channels, 1, 1)).astype(np.float32),
    }
    return load(build([N("Conv", ["x", "w"], ["a"]), N("Conv", ["a", "v"], ["y"])], weights, (1, 3, 8, 8)))


def weight(model: Model, name: str) -> np.ndarray:
    found = g.constant(g.values(model.ir)[name])
    assert found is not None
    return found


def codes(model: Model, name: str) -> np.ndarray:
    encoding = model.encodings[name]
    assert isinstance(encoding, Encoding)
    return narrow_codes(weight(model, name), encoding)


@pytest.mark.parametrize("bits", [3, 8])
def test_a_file_gets_its_weights_back_and_computes_the_same(bits: int):
    original = network()
    written = to_qdq(StoreWeights(weight_bits=bits)(original, Samples(())))
    read = from_qdq(load(written))
    assert not np.array_equal(weight(read, "w"), weight(original, "w"))
    back, share = unrounded(read, original)
    assert "w" in read.encodings
    for name in read.encodings:
        assert np.array_equal(weight(back, name), weight(original, name))
        assert np.array_equal(codes(back, name), codes(read, name))
    assert share == 1.0 and to_qdq(back) == to_qdq(read)


def test_a_weight_with_another_code_stays(planted: int = 5):
    original = network()
    read = from_qdq(load(to_qdq(StoreWeights()(original, Samples(())))))
    ir = g.clone(original.ir)
    changed = weight(original, "w").copy()
    changed.reshape(-1)[:planted] += 0.5  # far more than a step
    g.set_constant(g.values(ir)["w"], changed)
    back, share = unrounded(read, original.with_ir(ir, "changed"))
    assert np.array_equal(codes(back, "w"), codes(read, "w"))
    assert np.array_equal(weight(back, "w").reshape(-1)[:planted], weight(read, "w").reshape(-1)[:planted])
    assert share == 1 - planted / sum(weight(read, name).size for name in read.encodings)


def test_another_network_gives_nothing():
    read = from_qdq(load(to_qdq(StoreWeights()(network(), Samples(())))))
    back, share = unrounded(read, network(channels=5))
    assert back is read and share == 0.0
