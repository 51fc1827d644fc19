"""Weights of few bits and of grids, written as Q/DQ nodes and read back."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from onnx_graphs import N, build, ort, rand
from random_graphs import random_network
from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.encoding import narrow_codes
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import from_qdq, to_qdq
from roadworthy.model.qdq_notes import ENCODINGS_KEY
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import place
from roadworthy.quantize.quantize import activation_encodings, quantize_units
from roadworthy.quantize.weights import Wish
from roadworthy.run.native.runner import NativeRunner
from roadworthy.run.reference import ReferenceRunner
from roadworthy.run.targets import TARGETS

X = [rand(1, 3, 8, 8, seed=k) for k in range(3)]
WISHES = [Wish(4), Wish(3, grid="log2"), Wish(4, grid="kmeans"), Wish(6, per_tensor=True), Wish(5, grid="log2"),
          Wish(2, grid="kmeans", per_tensor=True, power_of_two=True)]  # fmt: skip


def quantized(model: Model, wish: Wish, target: str = "ort", keep: frozenset[str] = frozenset()) -> Model:
    placement = place(model.ir, TARGETS[target], keep)
    statistics = calibrate(model, placement.observed, X, 1, per_channel=placement.channels)
    activations = activation_encodings(placement, statistics, TARGETS[target], "minmax")
    store = {n: wish.bits for n in placement.why_float}
    return quantize_units(model, placement, activations, "mse", store, wish)


def codes(model: Model) -> dict[str, list[int]]:
    weights = {n: g.constant(v) for n, v in g.values(model.ir).items() if n in model.encodings}
    return {n: narrow_codes(w, model.encodings[n]).ravel().tolist() for n, w in weights.items() if w is not None}


def notes(data: bytes) -> str | None:
    return next((p.value for p in onnx.load_from_string(data).metadata_props if p.key == ENCODINGS_KEY), None)


@pytest.mark.parametrize("target", ["ort", "native"])
@pytest.mark.parametrize("seed", range(10))
def test_any_grid_goes_out_and_comes_back(seed: int, target: str):
    wish = WISHES[seed % len(WISHES)]
    rng = np.random.default_rng(seed)
    model = quantized(load(random_network(lambda n: int(rng.integers(n)), seed=seed)), wish, target)
    exported = to_qdq(model)
    back = from_qdq(load(exported))
    assert dict(back.encodings) == dict(model.encodings)
    assert codes(back) == codes(model)
    assert to_qdq(back) == exported
    if target == "ort":
        assert all(np.isfinite(v).all() for v in ort(exported, X[0]).values())
    else:  # the engine knows nothing of grids: int8 codes are int8 codes
        found, wanted = (r.run({"x": X[0]}) for r in (NativeRunner(exported, 1), ReferenceRunner(model)))
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4 * np.abs(value).max())


NODES = [N("Conv", ["x", "w", "b"], ["a"]), N("Relu", ["a"], ["r"]), N("Conv", ["r", "v"], ["y"])]
WEIGHTS = {"w": rand(16, 3, 3, 3) / 5, "b": rand(16), "v": rand(8, 16, 1, 1) / 2}


def test_only_what_nodes_cannot_say_is_noted():
    model = load(build(NODES, WEIGHTS))
    assert notes(to_qdq(quantized(model, Wish()))) is None
    assert json.loads(notes(to_qdq(quantized(model, Wish(4)))) or "") == {"w": {"bits": 4}, "v": {"bits": 4}}
    mixed = quantized(model, Wish(8, own=(("Conv:a", 3),), grid="log2"))
    found = json.loads(notes(to_qdq(mixed)) or "")
    assert found["w"] == {"levels": [-64, -32, -16, 0, 16, 32, 64]}
    # A network that was read back and quantized anew does not keep what was noted of the old codes.
    again = quantized(from_qdq(load(to_qdq(mixed))), Wish())
    assert notes(to_qdq(again)) is None


def test_codes_are_the_same_without_the_note():
    model = quantized(load(build(NODES, WEIGHTS)), Wish(4, grid="kmeans"))
    proto = onnx.load_from_string(to_qdq(model))
    del proto.metadata_props[:]
    back = from_qdq(load(proto))
    assert codes(back) == codes(model) and back.encodings["w"].levels is None


@pytest.mark.parametrize("note", ['{"w": {"bits": 2}}', '{"w": {"levels": [0, 3]}}', '{"w": {"levels": [3, 0]}}',
                                  '{"w": {"bits": 12}}', '{"nobody": {"bits": 4}}'])  # fmt: skip
def test_the_nodes_count_where_the_note_does_not_fit(note: str):
    model = quantized(load(build(NODES, WEIGHTS)), Wish(4))
    proto = onnx.load_from_string(to_qdq(model))
    proto.metadata_props[0].value = note
    back = from_qdq(load(proto))
    assert codes(back) == codes(model)
    assert back.encodings["w"].bits == 8 and back.encodings["w"].levels is None


@pytest.mark.parametrize("note", ["{", "3", '{"w": 4}', '{"w": {"bits": true}}', '{"w": {"levels": []}}',
                                  '{"w": {"levels": [99999]}}', '{"w": {"bits": 4, "levels": [1]}}',
                                  "[" * 90000])  # fmt: skip
def test_a_damaged_note_is_refused(note: str):
    proto = onnx.load_from_string(to_qdq(quantized(load(build(NODES, WEIGHTS)), Wish(4))))
    proto.metadata_props[0].value = note
    with pytest.raises(InputError, match=r"the metadata entry `roadworthy.encodings` of .* is damaged"):
        from_qdq(load(proto))
