"""Which channels may share a factor: for every operator, that it is handed on exactly, or stopped by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_graphs import N, build, ort, rand
from random_graphs import random_network
from roadworthy.errors import InputError
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model, load
from roadworthy.optimize import fold
from roadworthy.quantize.equalize import plan
from roadworthy.quantize.rescale import rescale, walk
from roadworthy.quantize.ties import sites, ties

C = 6
FIRST = N("Conv", ["x", "w1", "b1"], ["a"], name="first", pads=[1, 1, 1, 1])
W = {"w1": rand(C, 3, 3, 3), "b1": rand(C), "w2": rand(5, C, 3, 3), "b2": rand(5, seed=1)}


def between(nodes: list[onnx.NodeProto], end: str = "m", channels: int = C, **more: np.ndarray) -> Model:
    """conv `first` (6 channels, 8x8) -> nodes from `a` to `end` -> conv `last`."""
    weights = {**W, "w2": rand(5, channels, 3, 3), **more}
    return load(build([FIRST, *nodes, N("Conv", [end, "w2", "b2"], ["y"], name="last")], weights))


i64 = np.int64
HANDED_ON = {
    "nothing": ([N("Identity", ["a"], ["m"])], {}),
    "Relu": ([N("Relu", ["a"], ["m"])], {}),
    "LeakyRelu": ([N("LeakyRelu", ["a"], ["m"], alpha=0.1)], {}),
    "PRelu per channel": ([N("PRelu", ["a", "k"], ["m"])], {"k": rand(C, 1, 1)}),
    "MaxPool": ([N("MaxPool", ["a"], ["m"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])], {}),
    "AveragePool": ([N("AveragePool", ["a"], ["m"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])], {}),
    "ReduceMean": ([N("ReduceMean", ["a"], ["g"], axes=[2, 3]), N("Add", ["g", "a"], ["m"])], {}),
    "Pad": ([N("Pad", ["a", "p"], ["m"])], {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1], i64)}),
    "Pad of channels": ([N("Pad", ["a", "p"], ["m"])], {"p": np.array([0, 2, 0, 0, 0, 1, 0, 0], i64), "channels": 9}),
    "nearest Resize": ([N("Resize", ["a", "", "s"], ["m"], mode="nearest")], {"s": np.array([1, 1, 2, 2], np.float32)}),
    "linear Resize": ([N("Resize", ["a", "", "s"], ["m"], mode="linear")], {"s": np.array([1, 1, 2, 2], np.float32)}),
    "Slice": ([N("Slice", ["a", "f", "t", "x1"], ["m"])],
              {"f": np.array([1], i64), "t": np.array([4], i64), "x1": np.array([1], i64), "channels": 3}),
    "Split and Concat": ([N("Split", ["a", "z"], ["p", "q"], axis=1), N("Concat", ["q", "x", "p"], ["m"], axis=1)],
                         {"z": np.array([2, 4], i64), "channels": 9}),
    "shuffle": ([N("Reshape", ["a", "r1"], ["p"]), N("Transpose", ["p"], ["q"], perm=[0, 2, 1, 3, 4]),
                 N("Reshape", ["q", "r2"], ["m"])],
                {"r1": np.array([1, 2, 3, 8, 8], i64), "r2": np.array([1, C, 8, 8], i64)}),
    "Gather": ([N("Gather", ["a", "k"], ["m"], axis=1)], {"k": np.array([5, 0, 0, 2], i64), "channels": 4}),
    "residual sum": ([N("Relu", ["a"], ["r"]), N("Conv", ["r", "w3"], ["c"], pads=[1, 1, 1, 1], name="middle"),
                      N("Add", ["c", "r"], ["m"])], {"w3": rand(C, C, 3, 3)}),
    "depthwise": ([N("Conv", ["a", "w3"], ["m"], group=C, name="deep")], {"w3": rand(C, 1, 3, 3)}),
    "grouped": ([N("Conv", ["a", "w3"], ["m"], group=2, name="deep")], {"w3": rand(C, 3, 3, 3)}),
    "ConvTranspose": ([N("ConvTranspose", ["a", "w3"], ["m"], name="up")], {"w3": rand(C, C, 2, 2)}),
    "Mul by a constant": ([N("Mul", ["a", "k"], ["m"])], {"k": rand(C, 1, 1)}),
    "gate": ([N("GlobalAveragePool", ["x"], ["g"]), N("Conv", ["g", "w3"], ["h"], name="squeeze"),
              N("Sigmoid", ["h"], ["e"]), N("Mul", ["a", "e"], ["m"])], {"w3": rand(C, 3, 1, 1)}),
}  # fmt: skip


def factors_of(model: Model, seed: int = 0) -> np.ndarray:
    """Random factors for all free groups, 2^-5 to 2^5."""
    found = walk(model, False)
    drawn = np.exp2(np.random.default_rng(seed).uniform(-5, 5, found.count))
    return np.where(found.free, drawn, 1.0)


@pytest.mark.parametrize("name", HANDED_ON)
def test_a_factor_is_handed_on(name: str):
    nodes, more = HANDED_ON[name]
    model = between(nodes, **more)
    found = walk(model, False)
    first = sites(found)[[r.layer for r in sites(found)].index("first")]
    assert first.free == first.channels and first.readers, first
    other = rescale(model, found, factors_of(model), "scaled")
    weight = {k: onnx.numpy_helper.to_array(v) for k, v in initializers(other).items()}["w1"]
    assert np.abs(np.log2(np.abs(weight / W["w1"]))).max() > 1  # something was scaled
    same(model, other)


def initializers(model: Model) -> dict[str, onnx.TensorProto]:
    return {t.name: t for t in onnx.load_model_from_string(model.float_bytes()).graph.initializer}


def same(one: Model, other: Model, bound: float = 1e-5) -> None:
    x = rand(*one.input_shape, seed=9)
    wanted, found = ort(one.float_bytes(), x, False), ort(other.float_bytes(), x, False)
    for key, y in wanted.items():
        assert np.abs(found[key] - y).max() <= bound * np.abs(y).max()


STOPPED = {
    "Sigmoid": [N("Sigmoid", ["a"], ["m"])],
    "Exp": [N("Exp", ["a"], ["m"])],
    "Softmax": [N("Softmax", ["a"], ["m"], axis=1)],
    "LRN": [N("LRN", ["a"], ["m"], size=3)],
    "Add": [N("Add", ["a", "one"], ["m"])],
    "Pad": [N("Pad", ["a", "p", "one"], ["m"])],
    "Clip": [N("Clip", ["a", "one"], ["m"])],
    "Mul": [N("Mul", ["a", "a"], ["m"])],
    "Transpose": [N("Transpose", ["a"], ["t"], perm=[0, 2, 1, 3]), N("Reshape", ["t", "r"], ["m"])],
}


@pytest.mark.parametrize("op", STOPPED)
def test_what_is_not_known_to_keep_it_stops_it_by_name(op: str):
    more = {"one": np.float32(1), "p": np.array([0, 0, 1, 1, 0, 0, 1, 1], i64), "r": np.array([1, C, 8, 8], i64)}
    row = plan(between(STOPPED[op], **more))[0]
    assert row.layer == "first" and row.free == 0
    assert row.reason.startswith(op) or (op == "Transpose" and "mixed channels" in row.reason)


def test_a_smooth_activation_and_a_result_and_shared_weights_stop_it():
    silu = between([N("Sigmoid", ["a"], ["s"]), N("Mul", ["a", "s"], ["m"])])
    assert [r.reason for r in plan(silu)] == ["SiLU does not commute with a factor", "a result of the network"]
    shared = load(build([FIRST, N("Conv", ["a", "w3"], ["c"], name="one"), N("Conv", ["c", "w3"], ["y"], name="two")],
                        {**W, "w3": rand(C, C, 1, 1)}))  # fmt: skip
    assert plan(shared)[0].reason == "one shares its weights"


def test_a_sum_ties_its_makers_to_one_factor():
    model = between([N("Conv", ["x", "w3"], ["c"], pads=[1, 1, 1, 1], name="other"), N("Add", ["a", "c"], ["m"])],
                    w3=rand(C, 3, 3, 3))  # fmt: skip
    by_name = {y.unit.name: y for y in ties(model.ir).layers}
    assert np.array_equal(by_name["first"].outs, by_name["other"].outs)
    assert np.array_equal(by_name["last"].ins[0], by_name["first"].outs)


@pytest.mark.parametrize("seed", range(25))
def test_random_networks_compute_the_same_with_any_factors(seed: int):
    rng = np.random.default_rng(seed)
    model = fold(load(random_network(lambda n: int(rng.integers(n)), seed)))
    # One random layer may take off large numbers from each other; hence the wider bound than elsewhere.
    same(model, rescale(model, walk(model, False), factors_of(model, seed), "scaled"), 1e-4)


def test_a_gemm_and_a_biased_matmul_are_layers_too():
    nodes = [FIRST, N("Relu", ["a"], ["r"]), N("GlobalAveragePool", ["r"], ["p"]), N("Flatten", ["p"], ["f"]),
             N("Gemm", ["f", "g", "gb"], ["h"], name="gemm", transB=1), N("Relu", ["h"], ["i"]),
             N("MatMul", ["i", "m1"], ["j"], name="one"), N("Add", ["j", "mb"], ["k"]), N("Relu", ["k"], ["l"]),
             N("MatMul", ["l", "m2"], ["y"], name="two")]  # fmt: skip
    more = {"g": rand(7, C), "gb": rand(7), "m1": rand(7, 4), "mb": rand(4), "m2": rand(4, 3)}
    model = load(build(nodes, {**W, **more}))
    assert [(r.layer, r.free) for r in plan(model)] == [("first", C), ("gemm", 7), ("one", 4), ("two", 0)]
    same(model, rescale(model, walk(model, False), factors_of(model), "scaled"))


def test_a_quantized_model_is_refused():
    model = between([N("Relu", ["a"], ["m"])])
    coded = model.with_encodings({"a": Encoding(np.float32(1), np.int64(0))}, "quantize")
    with pytest.raises(InputError, match="in front of Quantize"):
        walk(coded, True)


@pytest.mark.assets
@pytest.mark.parametrize("name, layers", [("fastestdet", 67), ("mobilenet_v1_075", 27), ("cifar10_resnet56", 55),
                                          ("yolox_nano", 0)])  # fmt: skip
def test_real_networks(name: str, layers: int, assets: Path):
    rows = plan(fold(load(assets / "models" / f"{name}.onnx")), sums=True)
    assert sum(r.free == r.channels and bool(r.readers) for r in rows) == layers
    assert all(r.reason for r in rows if r.free < r.channels)
