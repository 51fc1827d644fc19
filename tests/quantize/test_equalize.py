"""Equalize: planted imbalance is mended, the function stays, and where nothing is wrong nothing is made worse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from equalizing import C, error, images, measure, network, pictures, planted, weights_per_tensor

from onnx_graphs import N, build, ort, rand
from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.model import Model, load
from roadworthy.model.units import units
from roadworthy.optimize import fold
from roadworthy.quantize.equalize import equalize, plan
from roadworthy.quantize.rescale import limits, magnitudes, peaks, walk, wanted
from roadworthy.quantize.smooth import smooth
from roadworthy.recipe import Equalize, Quantize, Recipe


def same(one: Model, other: Model, xs: list[np.ndarray], bound: float = 1e-5) -> None:
    for x in xs:
        wanted, found = ort(one.float_bytes(), x, False), ort(other.float_bytes(), x, False)
        for key, y in wanted.items():
            assert np.abs(found[key] - y).max() <= bound * np.abs(y).max()


@pytest.mark.parametrize("act, fields", [("Relu", {}), ("LeakyRelu", {"alpha": 0.1})])
def test_planted_imbalance_is_mended(act: str, fields: dict[str, float]):
    exact = network(act, **fields)
    broken = planted(exact)
    mended = equalize(broken, None)
    same(exact, mended, images(2, seed=1))
    clean, before, after = (error(weights_per_tensor(m), exact) for m in (exact, broken, mended))
    assert before > 20 * clean  # the fault matters
    assert after < 1.5 * clean
    assert mended.history[-1] == "equalize: 3 layers with their readers, 0 left alone"


def test_it_does_no_harm_to_a_balanced_network():
    exact = network()
    made = equalize(exact, measure(exact))
    same(exact, made, images(2, seed=1))
    assert error(weights_per_tensor(made), exact) < 1.25 * error(weights_per_tensor(exact), exact)


def test_both_ranges_of_a_pair_are_equal_behind_it_and_a_second_time_changes_nothing():
    once = equalize(planted(network()), None)
    found = walk(once, False)
    rows, columns = np.zeros(found.count), np.zeros(found.count)
    for layer in found.layers:
        size = magnitudes(layer)
        np.maximum.at(rows, layer.outs, size.max(1))
        np.maximum.at(columns, layer.ins, size)
    both = found.free & (rows > 0) & (columns > 0)
    assert both.sum() == 3 * C
    assert np.abs(np.log(rows[both] / columns[both])).max() < 0.05
    twice = equalize(once, None)
    for a, b in zip(units(once.ir), units(twice.ir)):
        assert np.allclose(g.constant(a.weight), g.constant(b.weight), rtol=0.05, atol=0)


def test_a_clip_takes_factors_only_where_its_bound_is_far():
    model = planted(network("Clip"), 0)
    # Channel 0 of the first layer runs into the bound, channel 1 stays far below it, and both are out of balance.
    ir = g.clone(model.ir)
    weight = next(u.weight for u in units(ir) if u.name == "conv1")
    array = np.array(g.constant(weight))
    array[0] *= 8
    array[1] /= 8
    g.set_constant(weight, array)
    model = model.with_ir(ir, "unbalanced")
    made = equalize(model, measure(model), absorb=False)
    new = np.asarray(g.constant(next(u.weight for u in units(made.ir) if u.name == "conv1")))
    assert np.array_equal(new[0], array[0])
    assert np.abs(new[1]).max() > 1.5 * np.abs(array[1]).max()
    same(model, made, images())  # the bound is met as before on what was measured
    assert equalize(model, None).history[-1] == "equalize: 0 layers with their readers, 3 left alone"


def test_no_channel_becomes_louder_than_the_loudest_was():
    model = planted(network(), 5)
    found = walk(model, True)
    before, _ = peaks(found, measure(model)(wanted(found)))
    made = equalize(model, measure(model), absorb=False)
    again = walk(made, True)
    after, _ = peaks(again, measure(made)(wanted(again)))
    for layer in found.layers[:3]:
        assert after[layer.outs].max() <= 1.001 * before[layer.outs].max()


def test_a_smooth_activation_takes_no_more_than_a_share_of_a_step():
    nodes = [N("Conv", ["x", "w1"], ["c"], name="first"), N("Sigmoid", ["c"], ["s"]), N("Mul", ["c", "s"], ["a"]),
             N("Conv", ["a", "w2"], ["y"], name="last")]  # fmt: skip
    weights = {"w1": rand(C, 3, 1, 1) * np.exp2(np.arange(C) - 9.0).astype(np.float32)[:, None, None, None],
               "w2": rand(5, C, 1, 1)}  # fmt: skip
    model = load(build(nodes, weights, (1, 3, 16, 16)))
    assert equalize(model, measure(model)).history[-1] == "equalize: 0 layers with their readers, 1 left alone"
    found = walk(model, True, 0.5)
    statistics = measure(model)(wanted(found))
    low, high = limits(model, found, statistics, 0.5)
    channels = statistics["c"].channels
    assert channels is not None
    silu = lambda p: p / (1 + np.exp(-p))  # noqa: E731
    p = channels.lo[:, None] + (channels.hi - channels.lo)[:, None] * np.linspace(0, 1, 300)
    step = (silu(p).max(1) - silu(p).min(1)) / 255
    for factor in (low[found.layers[0].outs], high[found.layers[0].outs]):
        s = factor[:, None]
        assert (np.abs(s * silu(p / s) - silu(p)).max(1) <= 0.505 * step).all()
    # Values so small that SiLU is x / 2 there can be scaled; the others cannot, by much.
    assert high[found.layers[0].outs][0] > 1.5 and high[found.layers[0].outs][-1] < 1.2


def biased(pads: int) -> Model:
    nodes = [N("Conv", ["x", "w1", "b1"], ["c"], name="first"), N("Relu", ["c"], ["a"]),
             N("Conv", ["a", "w2", "b2"], ["y"], name="last", pads=[pads] * 4)]  # fmt: skip
    weights = {"w1": rand(C, 3, 1, 1) / 9, "b1": np.full(C, 20, np.float32), "w2": rand(5, C, 1, 1), "b2": rand(5)}
    return load(build(nodes, weights, (1, 3, 16, 16)))


def test_high_biases_move_to_the_readers_where_nothing_is_padded():
    model = biased(0)
    made = equalize(model, measure(model), absorb=True)
    assert made.history[-1] == f"absorb high biases: {C} channels"
    same(model, made, images())
    x = images(1)[0]
    spans = [np.ptp(np.append(ort(with_tap(m), x)["a"], 0)) for m in (model, made)]
    assert spans[1] < 0.2 * spans[0]
    assert not Equalize().absorb  # only where it is asked for: other images may go lower
    alone = equalize(model, measure(model))
    assert not any("absorb" in line for line in alone.history)
    padded = biased(1)
    assert not any("absorb" in line for line in equalize(padded, measure(padded), absorb=True).history)


POOL = [N("GlobalAveragePool", ["a"], ["p"]), N("Flatten", ["p"], ["f"])]
NO_PLACE = {  # what reads `a`, where no bias could take all of a constant
    "MatMul": [*POOL, N("MatMul", ["f", "m"], ["y"], name="last")],
    "MatMul of a hard-swish": [*POOL, N("MatMul", ["f", "m"], ["k"], name="last"), N("Add", ["k", "three"], ["k3"]),
                               N("Clip", ["k3", "zero", "six"], ["e"]), N("Mul", ["k", "e"], ["h"]),
                               N("Div", ["h", "six"], ["y"])],
    "ConvTranspose": [N("ConvTranspose", ["a", "up", "b"], ["y"], name="last", strides=[2, 2])],
    "counted pixels": [N("AveragePool", ["a"], ["p"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1,
                         count_include_pad=1), N("Conv", ["p", "w", "b"], ["y"], name="last")],
}  # fmt: skip
MATRICES = {"m": rand(C, 5) / 20, "up": rand(C, 5, 3, 3), "w": rand(5, C, 1, 1), "b": rand(5),
            "zero": np.float32(0), "three": np.float32(3), "six": np.float32(6)}  # fmt: skip


def behind(nodes: list[onnx.NodeProto]) -> Model:
    """conv `first` with high biases -> Relu `a` -> nodes."""
    first = [N("Conv", ["x", "w1", "b1"], ["c"], name="first"), N("Relu", ["c"], ["a"])]
    weights = {"w1": rand(C, 3, 1, 1) / 9, "b1": np.full(C, 20, np.float32), **MATRICES}
    return load(build([*first, *nodes], weights, (1, 3, 16, 16)))


@pytest.mark.parametrize("name", NO_PLACE)
def test_no_bias_is_absorbed_where_a_reader_cannot_take_it(name: str):
    model = behind(NO_PLACE[name])
    made = equalize(model, measure(model), absorb=True)
    assert not any("absorb" in line for line in made.history)
    same(model, made, images())


def test_a_reader_that_cannot_take_it_keeps_it_from_the_others_too():
    both = [N("Conv", ["a", "w", "b"], ["z"], name="beside"), N("GlobalAveragePool", ["z"], ["zp"]),
            N("Flatten", ["zp"], ["zf"]), *POOL, N("MatMul", ["f", "m"], ["q"], name="last"),
            N("Add", ["q", "zf"], ["y"])]  # fmt: skip
    model = behind(both)
    same(model, equalize(model, measure(model), absorb=True), images())


def test_a_matmul_with_an_add_takes_it_and_one_without_gives_none():
    takes = behind([*POOL, N("MatMul", ["f", "m"], ["k"], name="last"), N("Add", ["k", "b"], ["y"])])
    made = equalize(takes, measure(takes), absorb=True)
    assert made.history[-1] == f"absorb high biases: {C} channels"
    same(takes, made, images())
    nodes = [N("Flatten", ["a"], ["f"]), N("MatMul", ["f", "big"], ["k"], name="giver"), N("Relu", ["k"], ["r"]),
             N("MatMul", ["r", "m2"], ["q"], name="last"), N("Add", ["q", "b2"], ["y"])]  # fmt: skip
    big = np.abs(rand(C * 256, 4)) / 256
    gives = load(build([N("Conv", ["x", "w1", "b1"], ["a"], name="first", strides=[1, 1]), *nodes],
                       {"w1": rand(C, 3, 1, 1) / 9, "b1": np.full(C, 20, np.float32), "big": big, "m2": rand(4, 3),
                        "b2": rand(3)}, (1, 3, 16, 16)))  # fmt: skip
    made = equalize(gives, measure(gives), absorb=True)
    assert not any("absorb" in line for line in made.history)
    same(gives, made, images())


@pytest.mark.parametrize("bound", [-0.5, 0.0])
def test_a_clip_at_or_below_zero_takes_no_factor(bound: float):
    spread = np.exp2(np.arange(C) - 6.0).astype(np.float32)[:, None, None, None]
    nodes = [N("Conv", ["x", "w1", "b1"], ["c"], name="first"), N("Clip", ["c", "", "most"], ["a"], name="clip"),
             N("Conv", ["a", "w2"], ["y"], name="last")]  # fmt: skip
    weights = {"w1": rand(C, 3, 1, 1) * spread, "b1": rand(C), "w2": rand(5, C, 1, 1), "most": np.float32(bound)}
    model = load(build(nodes, weights, (1, 3, 16, 16)))
    for made in (equalize(model, measure(model)), smooth(model, measure(model), 0.5)):
        same(model, made, images(2, seed=1))
        assert "0 layers with their readers" in made.history[-1]
    assert plan(model)[0].reason.startswith("Clip clip")


def test_layers_of_odd_forms_are_left_alone_by_both_steps():
    nodes = [N("ConvTranspose", ["a", "w3", "b3"], ["u"], name="up", group=2), N("Relu", ["u"], ["v"]),
             N("GlobalAveragePool", ["v"], ["p"]), N("Flatten", ["p"], ["f"]),
             N("MatMul", ["f", "vector"], ["s"], name="score"), N("ReduceMean", ["v"], ["mean"], keepdims=0),
             N("Add", ["s", "mean"], ["y"])]  # fmt: skip
    first = [N("Conv", ["x", "w1", "b1"], ["c"], name="first"), N("Relu", ["c"], ["a"])]
    weights = {"w1": rand(C, 3, 1, 1), "b1": rand(C), "w3": rand(C, 4, 2, 2), "b3": rand(8), "vector": rand(8)}
    model = load(build([*first, *nodes], weights, (1, 3, 16, 16)))
    for made in (equalize(model, measure(model), absorb=True), smooth(model, measure(model), 0.5)):
        assert made.float_bytes() == model.float_bytes()
        assert "0 layers with their readers" in made.history[-1]


def with_tap(model: Model) -> bytes:
    from roadworthy.run.ort import with_outputs

    return with_outputs(model.float_bytes(), ["a"])


def test_the_step_says_what_it_did_and_refuses_a_quantized_model():
    model = planted(network("Clip"), 1)
    made = Equalize()(model, pictures())
    assert made.history[-1].startswith("equalize: 3 layers with their readers")
    assert made.float_bytes() == Equalize()(model, pictures()).float_bytes()  # same images, same bytes
    with pytest.raises(InputError, match="in front of Quantize"):
        Recipe((Quantize("ort"), Equalize()), images=4).apply(model, pictures())


@pytest.mark.assets
@pytest.mark.parametrize("name", ["fastestdet", "cifar10_resnet56"])
def test_real_networks_compute_the_same(name: str, assets: Path):
    model = fold(load(assets / "models" / f"{name}.onnx"))
    xs = [np.random.default_rng(k).random(model.input_shape).astype(np.float32) for k in range(2)]
    same(model, equalize(model, None), xs[:1])


def test_a_residual_sum_is_left_alone_unless_wanted():
    nodes = [
        N("Conv", ["x", "w1"], ["c"], name="first"),
        N("Relu", ["c"], ["a"]),
        N("Conv", ["a", "w2"], ["d"], name="side"),
        N("Add", ["a", "d"], ["s"], name="sum"),
        N("Conv", ["s", "w3"], ["y"], name="last"),
    ]
    weights = {"w1": rand(C, 3, 1, 1), "w2": rand(C, C, 1, 1), "w3": rand(5, C, 1, 1)}
    model = load(build(nodes, weights, (1, 3, 16, 16)))
    assert [row.reason for row in plan(model)] == [*["Add sum sums up layers' results"] * 2, "a result of the network"]
    assert equalize(model, None).float_bytes() == model.float_bytes()
    tied = equalize(model, None, sums=True)
    assert tied.history[-1] == "equalize: 2 layers with their readers, 0 left alone"
    same(model, tied, images(1))
