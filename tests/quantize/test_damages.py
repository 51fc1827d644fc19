"""Damages of single layers: means kept, the layer that matters found, other widths predicted from one."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnx_graphs import N, build, rand
from roadworthy.model import graph as g
from roadworthy.model.model import Model, load
from roadworthy.model.units import units
from roadworthy.quantize.bias import mean_shift
from roadworthy.quantize.damages import MEASURED, damages, rounded, without_shift
from roadworthy.quantize.sensitivity import noise_over_signal
from roadworthy.quantize.weights import Wish

WIDTHS = (3, 4, 5, 6, 8)


def shapes() -> list[tuple[str, onnx.ModelProto, int]]:
    """Every kind of layer that has a mean to keep: name, model, input channels."""
    conv = build([N("Conv", ["x", "w"], ["y"], name="l", pads=[1] * 4)], {"w": rand(6, 4, 3, 3)}, (1, 4, 8, 8))
    groups = build([N("Conv", ["x", "w"], ["y"], name="l", group=2)], {"w": rand(6, 2, 3, 3)}, (1, 4, 8, 8))
    depth = build([N("Conv", ["x", "w"], ["y"], name="l", group=4)], {"w": rand(4, 1, 3, 3)}, (1, 4, 8, 8))
    gemm = build([N("Gemm", ["x", "w"], ["y"], name="l")], {"w": rand(4, 7)}, (1, 4))
    turned = build([N("Gemm", ["x", "w"], ["y"], name="l", transB=1)], {"w": rand(7, 4)}, (1, 4))
    product = build([N("MatMul", ["x", "w"], ["y"], name="l")], {"w": rand(4, 7)}, (1, 4))
    return [("conv", conv, 4), ("groups", groups, 4), ("depthwise", depth, 4), ("gemm", gemm, 4),
            ("gemm, transposed", turned, 4), ("matmul", product, 4)]  # fmt: skip


@pytest.mark.parametrize("name, proto, channels", shapes(), ids=[s[0] for s in shapes()])
def test_the_mean_of_the_output_stays(name: str, proto: onnx.ModelProto, channels: int):
    unit = units(load(proto).ir)[0]
    mean = np.abs(rand(channels, seed=3)).astype(np.float64)
    weight = g.constant(unit.weight)
    assert weight is not None
    made = rounded(unit, 3, Wish(), "mse")
    before = mean_shift(unit, made.astype(np.float64) - weight, mean)
    kept = without_shift(unit, made, mean)
    after = mean_shift(unit, kept.astype(np.float64) - weight, mean)
    # float32 rounds each of at most 36 weights of size below 4 by 2^-22, times means below 4.
    assert np.abs(after).max() < 36 * 4 * 2.0**-22 < 0.01 * np.abs(before).max()
    assert np.array_equal(without_shift(unit, made, None), made)
    assert np.array_equal(without_shift(unit, made, np.zeros(channels)), made)


def two_branches() -> Model:
    """y = stem + a hundredth of a large branch: what is large does not matter."""
    weights = {"w": rand(8, 4, 3, 3), "big": rand(8, 4, 3, 3, seed=1), "small": rand(8, 8, 1, 1, seed=2) / 100}
    nodes = [
        N("Conv", ["x", "w"], ["a"], name="stem", pads=[1] * 4),
        N("Conv", ["x", "big"], ["b"], name="branch", pads=[1] * 4),
        N("Conv", ["b", "small"], ["c"], name="tail"),
        N("Add", ["a", "c"], ["y"], name="sum"),
    ]
    return load(build(nodes, weights, (1, 4, 12, 12)))


def inputs() -> Iterable[NDArray]:
    return (rand(1, 4, 12, 12, seed=10 + k) for k in range(4))


def found(model: Model, means: dict[str, Any], widths: tuple[int, ...] = WIDTHS) -> dict[tuple[str, int], float]:
    return dict(damages(model, inputs, noise_over_signal, means, widths, Wish()))


def test_the_layer_that_matters_is_found_and_other_widths_are_predicted():
    model = two_branches()
    table = found(model, {})
    assert table["stem", 4] > 100 * max(table["branch", 4], table["tail", 4])
    from roadworthy.quantize.sensitivity import sqnr

    measured = sqnr(model, inputs, WIDTHS)
    for layer in ("stem", "branch", "tail"):
        assert table[layer, MEASURED] == pytest.approx(measured[layer, MEASURED], rel=1e-6)
        # The noise is a draw of some hundred weights: energies of two widths agree within a few tenths.
        for bits in (4, 5, 6):
            assert table[layer, bits] == pytest.approx(measured[layer, bits], rel=0.35)
        assert all(table[layer, a] > table[layer, b] for a, b in ((3, 4), (4, 5), (5, 6), (6, 8)))


def test_a_shift_that_bias_correction_takes_back_is_no_damage():
    """Inputs around 20 make every rounding a shift of the mean; without it little is left. Around 0 nothing changes."""
    model = two_branches()

    def far() -> Iterable[NDArray]:
        return (20 + t for t in inputs())

    here = {str(u.input.name): SimpleNamespace(channel_mean=np.full(4, 20.0)) for u in units(model.ir)[:1]}
    plain = damages(model, far, noise_over_signal, {}, (3,), Wish())
    kept = damages(model, far, noise_over_signal, here, (3,), Wish())  # type: ignore[arg-type]
    assert kept["stem", 3] < plain["stem", 3] / 5
    centred = {name: SimpleNamespace(channel_mean=np.zeros(4)) for name in here}
    assert found(model, centred, (3,)) == found(model, {}, (3,))


def test_weights_that_lie_on_the_grid_do_no_damage_at_any_width():
    weights = {"w": np.sign(rand(8, 4, 1, 1)).astype(np.float32)}
    model = load(build([N("Conv", ["x", "w"], ["y"], name="l")], weights, (1, 4, 12, 12)))
    assert set(found(model, {}).values()) == {0.0}
