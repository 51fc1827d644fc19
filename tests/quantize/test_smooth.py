"""Smooth: planted outliers of activations are moved away, the function stays, and without outliers nothing suffers."""

from __future__ import annotations

import numpy as np
import pytest
from equalizing import error, images, measure, network, pictures

from onnx_graphs import N, build, ort, rand
from roadworthy.errors import InputError
from roadworthy.model.model import Model, load
from roadworthy.model.units import units
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import place
from roadworthy.quantize.quantize import activation_encodings, quantize_units
from roadworthy.quantize.rescale import rescale, walk
from roadworthy.quantize.smooth import smooth
from roadworthy.recipe import Smooth
from roadworthy.run.targets import TARGETS


def loud(model: Model, factor: float = 64.0) -> Model:
    """The same function with one channel of every layer's result `factor` times as loud."""
    found = walk(model, False)
    factors = np.ones(found.count)
    for layer in found.layers[:-1]:
        factors[layer.outs[3]] = 1 / factor
    return rescale(model, found, factors, "loud")


def int8(model: Model) -> Model:
    """Weights per channel, activations per tensor."""
    target = TARGETS["ort"]
    placement = place(model.ir, target)
    statistics = calibrate(model, placement.observed, images(), 1)
    return quantize_units(model, placement, activation_encodings(placement, statistics, target, "minmax"), "minmax", {})


def test_planted_outliers_are_moved_into_the_weights():
    exact = network()
    broken = loud(exact)
    mended = smooth(broken, measure(broken), 0.5)
    for x in images(2, seed=1):
        a, b = ort(exact.float_bytes(), x, False)["y"], ort(mended.float_bytes(), x, False)["y"]
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()
    clean, before, after = (error(int8(m), exact) for m in (exact, broken, mended))
    assert before > 20 * clean  # the fault matters
    assert after < 4 * clean
    assert mended.history[-1] == "smooth: 3 layers with their readers, 0 left alone"


def test_it_does_no_harm_without_outliers():
    exact = network()
    assert error(int8(smooth(exact, measure(exact), 0.5)), exact) < 1.25 * error(int8(exact), exact)


def test_before_depthwise_layers_all_channels_become_equally_loud():
    broken = loud(network())
    made = smooth(broken, measure(broken), 0.25)
    found = walk(made, True)
    statistics = measure(made)({"a1": 1, "a2": 1})
    one, two = (statistics[name].channels for name in ("a1", "a2"))
    assert one is not None and two is not None
    assert one.hi.max() / one.hi.min() < 1.01 and two.hi.max() / two.hi.min() > 2
    assert [u.name for u in units(made.ir)] == [y.unit.name for y in found.layers]


def test_alpha_0_leaves_the_loudness_to_the_weights_alone():
    model = loud(network())
    quiet, full = (smooth(model, measure(model), a, a) for a in (0.0, 1.0))
    spans = []
    for m in (quiet, full):
        channels = measure(m)({"a3": 1})["a3"].channels
        assert channels is not None
        spans.append(channels.hi.max() / channels.hi.min())
    assert spans[1] < 1.01 < spans[0]


def test_where_the_maker_cannot_divide_it_is_left_alone():
    nodes = [N("Conv", ["x", "w1"], ["c"], name="first"), N("Sigmoid", ["c"], ["s"]), N("Mul", ["c", "s"], ["a"]),
             N("Conv", ["a", "w2"], ["y"], name="last")]  # fmt: skip
    model = load(build(nodes, {"w1": rand(8, 3, 1, 1), "w2": rand(5, 8, 1, 1)}, (1, 3, 16, 16)))
    made = smooth(model, measure(model), 0.5)
    assert made.history[-1] == "smooth: 0 layers with their readers, 1 left alone"
    assert made.float_bytes() == model.float_bytes()


def test_the_step_gives_the_same_bytes_and_wants_images():
    model = loud(network())
    assert Smooth()(model, pictures()).float_bytes() == Smooth()(model, pictures()).float_bytes()
    with pytest.raises(InputError, match="no images"):
        Smooth()(model, pictures(0))
