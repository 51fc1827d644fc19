"""The audit: one value rounded at a time, and which of them to give up."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_graphs import N, build, ort, rand
from roadworthy.check.audit import damages, harmful, rounded_at
from roadworthy.data.preprocess import Preprocess
from roadworthy.detect.spec import DecodeSpec
from roadworthy.model.encoding import QuantSpec, encoding_of_range, encoding_of_ranges
from roadworthy.model.model import Model, load
from roadworthy.model.task import Task
from roadworthy.run.ort import OrtRunner

RAW = Task(Preprocess((8, 8), "stretch", scale=1 / 255), DecodeSpec("raw"))


def branches() -> Model:
    """Two values that an output hangs on, the second a hundred times as much."""
    weights = {"w": rand(4, 3, 1, 1), "v": rand(4, 3, 1, 1, seed=1), "big": np.float32(100)}
    nodes = [
        N("Conv", ["x", "w"], ["quiet"], name="first"),
        N("Conv", ["x", "v"], ["loud"], name="second"),
        N("Mul", ["loud", "big"], ["amplified"]),
        N("Add", ["quiet", "amplified"], ["y"]),
    ]
    return load(build(nodes, weights), RAW)


@pytest.mark.parametrize("axis", [None, 1])
def test_only_the_named_value_is_rounded_to_its_codes(axis: int | None):
    model, x = branches(), rand(1, 3, 8, 8)
    plain = OrtRunner(model.float_bytes()).run({"x": x}, ["quiet", "loud"])
    if axis is None:
        encoding = encoding_of_range(-1.0, 0.7, QuantSpec())
    else:
        encoding = encoding_of_ranges(-np.arange(1.0, 5.0), np.arange(1.0, 5.0), QuantSpec(axis=1))
    found = ort(rounded_at(model, {"loud": encoding}), x)["y"]
    wanted = plain["quiet"] + encoding.fake(plain["loud"]) * np.float32(100)
    assert np.abs(wanted - plain["y"]).max() > 0.1, "the rounding is visible"
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_the_input_can_be_rounded_too():
    model, x = branches(), rand(1, 3, 8, 8)
    encoding = encoding_of_range(-2.0, 2.0, QuantSpec())
    same = ort(model.float_bytes(), encoding.fake(x))["y"]
    assert np.abs(ort(rounded_at(model, {"x": encoding}), x)["y"] - same).max() <= 1e-4 * np.abs(same).max()


def test_the_value_that_matters_is_found():
    model = branches()
    tensors = [rand(1, 3, 8, 8, seed=k) for k in range(3)]
    probes = [(t, ort(model.float_bytes(), t)) for t in tensors]
    coarse = encoding_of_range(-6.0, 6.0, QuantSpec(bits=4))
    found = damages(model, RAW, probes, {"quiet": coarse, "loud": coarse}, ["quiet", "loud"])
    # The same rounding error, seen through a factor of 100: 10,000 times the energy.
    assert found["loud"] > 1000 * found["quiet"] > 0
    assert harmful(found, base=found["quiet"], share=0.5) == ["loud"]


def test_the_fewest_are_given_up():
    alone = {"a": 0.3, "b": 0.04, "c": 0.03, "d": 0.0}
    assert harmful(alone, base=0.1, share=0.2) == ["a"]  # sqrt(0.1^2 + 0.04^2 + 0.03^2) = 0.112
    assert harmful(alone, base=0.1, share=0.1) == ["a", "b"]
    assert harmful(alone, base=10.0, share=0.05) == []
    assert harmful(alone, base=0.0, share=0.05) == ["a", "b", "c"]
    assert harmful({}, base=0.0, share=0.05) == []
