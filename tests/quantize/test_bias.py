"""CorrectBias: both methods take planted shifts back, and leave alone what is right."""

from __future__ import annotations

import numpy as np
import pytest
from equalizing import error, images, network, pictures

from onnx_graphs import N, build, rand
from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import to_qdq
from roadworthy.model.units import units
from roadworthy.quantize.bias import add_to_bias, channel_axes, correct_bias
from roadworthy.quantize.bias_measured import correct_by_measurement, depths
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import before_activation, multiplications, place
from roadworthy.quantize.quantize import activation_encodings, quantize_units
from roadworthy.recipe import CorrectBias, Fold, Quantize, Recipe
from roadworthy.run.targets import TARGETS


def int8(model: Model, target: str = "ort") -> Model:
    placement = place(model.ir, TARGETS[target])
    statistics = calibrate(model, placement.observed, images(), 1, None, None, placement.channels)
    activations = activation_encodings(placement, statistics, TARGETS[target], "minmax")
    return quantize_units(model, placement, activations, "minmax", {})


def shifted(model: Model, by: float = 0.3) -> Model:
    """The model with wrong biases in two layers."""
    ir = g.clone(model.ir)
    for unit in units(ir):
        if unit.name in ("conv1", "conv3"):
            add_to_bias(ir, unit, np.full(12, by) * np.where(np.arange(12) % 2, 1, -1))
    return model.with_ir(ir, "shifted")


@pytest.mark.parametrize("act, target", [("Relu", "ort"), ("HardSwish", "native")])
def test_shifted_results_are_measured_and_brought_back(act: str, target: str):
    exact = network(act)
    small = int8(exact, target)
    broken = shifted(small)
    mended = correct_by_measurement(small, broken, images(8, seed=2))
    clean, before, after = (error(m, exact) for m in (small, broken, mended))
    assert before > 10 * clean  # the fault matters
    assert after < 0.25 * before  # one step along the activation's mean slope, which a shift of ReLU bends


def test_it_does_no_harm_where_biases_are_right():
    exact = network()
    small = int8(exact)
    assert error(correct_by_measurement(small, small, images(8, seed=2)), exact) < 1.1 * error(small, exact)


def test_a_correction_that_does_not_hold_on_the_other_half_is_dropped():
    small = int8(network())
    # The second half is the first, negated: what was fitted to one does not fit the other.
    few = images(2, seed=2)
    once = correct_by_measurement(small, small, [few[0], few[1], -4 * few[0], -4 * few[1]])
    kept, tried = (int(w) for w in once.history[-1].split(": ")[1].split(" layers")[0].split(" of "))
    assert tried == 4 and kept < 4


def test_layers_of_one_depth_are_corrected_together():
    assert depths(int8(network())) == [{"conv1"}, {"conv2"}, {"conv3"}, {"conv4"}]


def test_analytic_means_take_back_the_shift_of_rounded_weights():
    exact = network()
    ir = g.clone(exact.ir)
    small = int8(exact)
    broken = small.with_encodings(
        {n: coarse(e) if e.signed else e for n, e in small.encodings.items()}, "weights of few levels"
    )
    statistics = calibrate(exact, (), images(), 1, None, channel_axes(exact))
    assert error(correct_bias(broken, statistics), exact) < 0.7 * error(broken, exact)
    assert len(units(ir)) == 4


def coarse(encoding):  # type: ignore[no-untyped-def]
    from dataclasses import replace

    return replace(encoding, scale=encoding.scale * 16)


def test_analytic_is_the_default_and_empirical_goes_on_from_it():
    model = network("HardSwish")
    base = Recipe((Fold(), Quantize("native"), CorrectBias()), images=8)
    assert to_qdq(base.apply(model, pictures())) == to_qdq(
        Recipe((Fold(), Quantize("native"), CorrectBias("analytic")), images=8).apply(model, pictures())
    )
    other = Recipe((Fold(), Quantize("native"), CorrectBias("empirical")), images=8)
    made = other.apply(model, pictures())
    assert made.history[-1].startswith("correct bias by measurement")
    assert to_qdq(made) == to_qdq(other.apply(model, pictures()))
    with pytest.raises(InputError, match="method"):
        CorrectBias("guess")(model, pictures())
    with pytest.raises(InputError, match="4 images"):
        Recipe((Quantize("ort"), CorrectBias("empirical"))).apply(model, pictures(3))


def test_the_three_of_a_hard_swish_is_no_bias():
    """A MatMul without a bias, with a hard-swish in its parts behind it: the Add of 3 is the activation's."""
    nodes = [
        N("MatMul", ["x", "w"], ["a"], name="product"),
        N("Add", ["a", "three"], ["b"]), N("Clip", ["b", "zero", "six"], ["c"]),
        N("Mul", ["a", "c"], ["d"]), N("Div", ["d", "six"], ["y"]),
    ]  # fmt: skip
    weights = {"w": rand(8, 4), "three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}
    model = load(build(nodes, weights, (5, 8)))
    unit = units(model.ir)[0]
    assert unit.activation == "HardSwish" and unit.bias_add is None
    ir = g.clone(model.ir)
    add_to_bias(ir, units(ir)[0], np.full(4, 0.1))
    assert float(g.constant(g.values(ir)["three"])) == 3.0
    assert before_activation(unit).name == "a"


def test_a_vector_of_weights_is_counted():
    nodes = [N("MatMul", ["x", "w"], ["y"], name="product")]
    model = load(build(nodes, {"w": rand(8)}, (5, 8)))
    assert multiplications(units(model.ir)[0]) == 5 * 8
