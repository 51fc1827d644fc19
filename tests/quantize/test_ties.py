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
from roadworthy.model.units import units
from roadworthy.optimize import fold
from roadworthy.quantize.equalize import plan
from roadworthy.quantize.rescale import magnitudes, rescale, walk
from roadworthy.quantize.ties import as_rows, bias_of, sites, ties

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
    "Clip at 0": [N("Clip", ["a", "", "zero"], ["m"])],
    "Clip below 0": [N("Clip", ["a", "", "below"], ["m"])],
    "Mul": [N("Mul", ["a", "a"], ["m"])],
    "Transpose": [N("Transpose", ["a"], ["t"], perm=[0, 2, 1, 3]), N("Reshape", ["t", "r"], ["m"])],
}


@pytest.mark.parametrize("op", STOPPED)
def test_what_is_not_known_to_keep_it_stops_it_by_name(op: str):
    more = {"one": np.float32(1), "zero": np.float32(0), "below": np.float32(-0.5)}
    more |= {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1], i64), "r": np.array([1, C, 8, 8], i64)}
    row = plan(between(STOPPED[op], **more))[0]
    assert row.layer == "first" and row.free == 0
    assert row.reason.startswith(op.split()[0]) or (op == "Transpose" and "mixed channels" in row.reason)


def grouped_up(group: int, each: int) -> Model:
    """conv `first` -> ConvTranspose `odd` with groups -> Relu -> conv `last`."""
    nodes = [N("ConvTranspose", ["a", "w3", "b3"], ["u"], name="odd", group=group), N("Relu", ["u"], ["m"])]
    return between(nodes, channels=group * each, w3=rand(C, each, 2, 2), b3=rand(group * each))


def pooled(nodes: list[onnx.NodeProto], **more: np.ndarray) -> Model:
    """conv `first` -> (1, C) `f` -> nodes to `y`."""
    head = [FIRST, N("GlobalAveragePool", ["a"], ["p"]), N("Flatten", ["p"], ["f"])]
    return load(build([*head, *nodes], {**W, **more}))


def two_of_one_weight() -> Model:
    """Convolutions `odd` and `other` share their weights, and both read rows of pixels as channels."""
    nodes = [N("Transpose", ["a"], ["t"], perm=[0, 2, 1, 3]), N("Transpose", ["a"], ["s"], perm=[0, 3, 1, 2])]
    for source, made, name in (("t", "c", "odd"), ("s", "d", "other")):
        nodes += [N("Conv", [source, "w3"], [made], name=name), N("Relu", [made], [f"{made}r"]),
                  N("Conv", [f"{made}r", "w4"], [f"{made}y"])]  # fmt: skip
    nodes += [N("Concat", ["cy", "dy"], ["y"], axis=2)]
    return load(build([FIRST, *nodes], {**W, "w3": rand(8, 8, 1, 1), "w4": rand(5, 8, 1, 1)}))


ODD = {  # model, channels of the layer `odd`, why it is left alone
    "ConvTranspose of 2 groups": (lambda: grouped_up(2, 2), 4, "odd has weights of another layout"),
    "ConvTranspose of 3 groups": (lambda: grouped_up(3, 4), 12, "odd has weights of another layout"),
    "depthwise ConvTranspose": (lambda: grouped_up(C, 1), C, "odd has weights of another layout"),
    "depthwise ConvTranspose with more outputs": (lambda: grouped_up(C, 2), 2 * C, "odd has weights of another layout"),
    "MatMul with a vector": (lambda: pooled([N("MatMul", ["f", "v"], ["y"], name="odd")], v=rand(C)), 1,
                             "odd has weights of another layout"),
    "MatMul of two vectors": (
        lambda: pooled([N("Reshape", ["f", "k"], ["g"]), N("MatMul", ["g", "v"], ["h"], name="odd"),
                        N("Add", ["h", "a"], ["y"])], v=rand(C), k=np.array([C], i64)),
        1, "odd has weights of another layout"),
    "MatMul with a stack of matrices": (
        lambda: between([N("MatMul", ["a", "v"], ["b"], name="odd"), N("Relu", ["b"], ["m"])], v=rand(C, 8, 7)), 7,
        "odd has weights of another layout"),
    "weights shared by layers that mix channels": (two_of_one_weight, 8, "odd shares its weights"),
    "a bias that is computed from a layer": (
        lambda: between([N("ReduceMean", ["a"], ["b"], axes=[0, 2, 3], keepdims=0),
                         N("Transpose", ["a"], ["t"], perm=[0, 2, 1, 3]),
                         N("Conv", ["t", "w3", "b"], ["c"], name="odd"), N("Relu", ["c"], ["m"])], w3=rand(C, 8, 1, 1)),
        C, "odd has no bias of one number per channel"),
    "a bias of one number per row": (
        lambda: pooled([N("Reshape", ["f", "k"], ["g"]), N("MatMul", ["g", "v"], ["h"], name="odd"),
                        N("Add", ["h", "b"], ["i"]), N("Relu", ["i"], ["j"]), N("MatMul", ["j", "u"], ["y"])],
                       v=rand(1, C), b=rand(C, 1), u=rand(C, 3), k=np.array([C, 1], i64)),
        C, "odd has no bias of one number per channel"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_a_form_that_cannot_take_a_factor_is_left_alone_with_the_reason(name: str):
    make, channels, reason = ODD[name]
    model = make()
    found = walk(model, False)
    row = next(r for r in sites(found) if r.layer == "odd")
    assert (row.channels, row.free, row.reason) == (channels, 0, reason)
    assert [magnitudes(y).shape for y in found.layers] == [y.ins.shape for y in found.layers]
    same(model, rescale(model, found, factors_of(model), "scaled"))


STRANGE = {
    "a scalar": [N("ReduceMean", ["a"], ["s"], keepdims=0), N("Mul", ["a", "s"], ["m"])],
    "no channels at all": [N("Slice", ["a", "k", "k", "one"], ["e"]), N("Concat", ["e", "a"], ["m"], axis=1)],
    "no channels behind a pool": [N("Slice", ["a", "k", "k", "one"], ["e"]), N("Relu", ["e"], ["f"]),
                                  N("Concat", ["a", "f"], ["m"], axis=1)],
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("shift", [False, True])
def test_strange_values_stop_the_walk_and_nothing_else(name: str, shift: bool):
    model = between(STRANGE[name], k=np.array([0], i64), one=np.array([1], i64))
    assert ties(model.ir, shift=shift).count
    if not shift:
        assert any(r.layer == "last" and r.reason == "a result of the network" for r in plan(model))
        same(model, rescale(model, walk(model, False), factors_of(model), "scaled"))


def test_what_a_branch_reads_takes_no_factor():
    def branch(op: str) -> onnx.GraphProto:
        out = onnx.helper.make_tensor_value_info(f"{op}_out", onnx.TensorProto.FLOAT, None)
        return onnx.helper.make_graph([N(op, ["a", "one"], [f"{op}_out"])], op, [], [out])

    nodes = [N("ReduceMax", ["x"], ["top"], keepdims=0), N("Greater", ["top", "one"], ["bright"]),
             N("If", ["bright"], ["m"], then_branch=branch("Add"), else_branch=branch("Sub")),
             N("Conv", ["a", "w4"], ["c"]), N("Conv", ["m", "w5"], ["b"]), N("Add", ["c", "b"], ["z"])]  # fmt: skip
    model = between(nodes, "z", 4, w4=rand(4, C, 1, 1), w5=rand(4, C, 1, 1), one=np.float32(1))
    assert plan(model)[0].reason == "a graph inside the graph reads a"
    same(model, rescale(model, walk(model, False), factors_of(model), "scaled"))


def test_a_grouped_transposed_convolution_has_rows_like_a_convolution():
    weight = rand(C, 4, 2, 2)
    unit = next(u for u in units(grouped_up(3, 4).ir) if u.name == "odd")
    rows = as_rows(unit, weight)
    assert rows.shape == (12, 2, 4)
    for out in range(12):
        for index in range(2):
            assert np.array_equal(rows[out, index], weight[2 * (out // 4) + index, out % 4].reshape(-1))


def test_the_first_add_of_a_hard_swish_is_no_bias():
    nodes = [N("MatMul", ["f", "v"], ["c"], name="one"), N("Add", ["c", "three"], ["d"]),
             N("Clip", ["d", "zero", "six"], ["e"]), N("Mul", ["c", "e"], ["h"]),
             N("Div", ["h", "six"], ["y"])]  # fmt: skip
    more = {k: np.float32(v) for k, v in (("zero", 0), ("three", 3), ("six", 6))}
    unit = next(u for u in units(pooled(nodes, v=rand(C, 5), **more).ir) if u.name == "one")
    assert unit.activation == "HardSwish"
    assert bias_of(unit)[0] is unit.anchor and bias_of(unit)[2] is None


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
