"""Every row of RULES: outputs stay the same; the rewrite happens where it may, and is refused in words elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from onnx_graphs import N, build, ort, rand
from random_graphs import random_network
from roadworthy.model import graph as g
from roadworthy.model.model import Model, load
from roadworthy.optimize import RULES, fold

NORM = {"g": rand(4) + 2, "b": rand(4, seed=1), "m": rand(4, seed=2), "s": np.abs(rand(4, seed=3)) + 0.3}
BN = N("BatchNormalization", ["c", "g", "b", "m", "s"], ["y"], epsilon=0.01)
W = {"w": rand(4, 3, 3, 3)}
PAD = {"p": np.array([0, 0, 1, 2, 0, 0, 3, 0]), "zero": np.float32(0), "one": np.float32(1)}
PADDED = N("Pad", ["x", "p", "zero"], ["q"])

FOLDED = {
    "conv": ([N("Conv", ["x", "w"], ["c"]), BN], {**W, **NORM}),
    "conv with bias": ([N("Conv", ["x", "w", "o"], ["c"]), BN], {**W, **NORM, "o": rand(4)}),
    "grouped conv": ([N("Conv", ["x", "w"], ["c"], group=2), BN], {"w": rand(4, 3, 3, 3), **NORM}),
    "depthwise": (
        [N("Conv", ["x", "w"], ["c"], group=6), BN],
        {"w": rand(6, 1, 3, 3), **{k: np.resize(v, 6) for k, v in NORM.items()}},
    ),
    "transposed": ([N("ConvTranspose", ["x", "w"], ["c"], strides=[2, 2]), BN], {"w": rand(6, 4, 2, 2), **NORM}),
    "shared weights": (
        [
            N("Conv", ["x", "w"], ["c"]),
            N("Conv", ["x", "w"], ["d"]),
            N("BatchNormalization", ["c", "g", "b", "m", "s"], ["n"]),
            N("Add", ["n", "d"], ["y"]),
        ],
        {"w": rand(4, 6, 3, 3), **NORM},
    ),
    "pad": ([PADDED, N("Conv", ["q", "w"], ["y"], pads=[1, 0, 0, 1])], {"w": rand(4, 6, 3, 3), **PAD}),
    "pad without value": (
        [N("Pad", ["x", "p"], ["q"]), N("Conv", ["q", "w"], ["y"], auto_pad="VALID")],
        {"w": rand(4, 6, 3, 3), **PAD},
    ),
    "pad for two": (
        [PADDED, N("Conv", ["q", "w"], ["a"]), N("Conv", ["q", "w"], ["e"]), N("Add", ["a", "e"], ["y"])],
        {"w": rand(4, 6, 3, 3), **PAD},
    ),
    "pad and norm": (
        [PADDED, N("Conv", ["q", "w"], ["c"], strides=[2, 2]), BN],
        {"w": rand(4, 6, 3, 3), **PAD, **NORM},
    ),
}


def channels(weights: dict, nodes: list) -> int:
    if nodes[0].op_type == "ConvTranspose":
        return weights["w"].shape[0]
    group = next((a.i for n in nodes for a in n.attribute if a.name == "group"), 1)
    return weights["w"].shape[1] * group


@pytest.mark.parametrize("case", FOLDED)
def test_folded_and_the_same(case: str):
    nodes, weights = FOLDED[case]
    x = rand(1, channels(weights, nodes), 8, 8)
    model = load(build(nodes, weights, x.shape))
    small = fold(model)
    assert not {"BatchNormalization", "Pad"} & {n.op_type for n in g.nodes(small.ir)}
    assert small.output_names == model.output_names and len(small.history) == 1
    wanted = ort(model.float_bytes(), x)["y"]
    # Weights and sums are rounded once more to float32: 54 products, each off by 2^-24 of values up to ten.
    assert_allclose(ort(small.float_bytes(), x)["y"], wanted, atol=2e-5 * max(1, np.abs(wanted).max()))
    assert "BatchNormalization" in str(model.ir.graph) or "Pad" in str(model.ir.graph)  # the original is untouched


REFUSED = {
    "no convolution": (
        [N("Relu", ["x"], ["c"]), BN],
        {k: np.resize(v, 3) for k, v in NORM.items()},
        "no convolution in front",
    ),
    "read twice": (
        [
            N("Conv", ["x", "w"], ["c"]),
            N("BatchNormalization", ["c", "g", "b", "m", "s"], ["n"]),
            N("Add", ["n", "c"], ["y"]),
        ],
        {**W, **NORM},
        "something else reads c",
    ),
    "computed": (
        [
            N("Conv", ["x", "w"], ["c"]),
            N("ReduceMax", ["c"], ["r"], axes=[0, 2, 3], keepdims=0),
            N("BatchNormalization", ["c", "g", "r", "m", "s"], ["y"]),
        ],
        {**W, **NORM},
        "",
    ),
    "reflected": (
        [N("Pad", ["x", "p"], ["q"], mode="reflect"), N("Conv", ["q", "w"], ["y"])],
        {**W, **PAD},
        "does not pad with a constant",
    ),
    "ones": (
        [N("Pad", ["x", "p", "one"], ["q"]), N("Conv", ["q", "w"], ["y"])],
        {**W, **PAD},
        "does not pad with zero",
    ),
    "cropped": (
        [N("Pad", ["x", "p"], ["q"]), N("Conv", ["q", "w"], ["y"])],
        {**W, "p": np.array([0, 0, -1, 0, 0, 0, 0, 0])},
        "or crops",
    ),
    "pooled": ([PADDED, N("MaxPool", ["q"], ["y"], kernel_shape=[2, 2])], PAD, "something other than a convolution"),
    "same": ([PADDED, N("Conv", ["q", "w"], ["y"], auto_pad="SAME_UPPER")], {**W, **PAD}, "pads automatically"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_words_and_left_alone(case: str):
    nodes, weights, said = REFUSED[case]
    model = load(build(nodes, weights))
    ir = g.clone(model.ir)
    notes = [line for rule in RULES.values() for line in rule(ir)]
    assert len(notes) == 1 and "not folded" in notes[0] and said in notes[0]
    assert [n.op_type for n in g.nodes(ir)] == [n.op_type for n in g.nodes(model.ir)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rule", RULES)
def test_a_rule_leaves_other_networks_as_they_are(rule: str, seed: int):
    rng = np.random.default_rng(seed)
    model = load(random_network(lambda n: int(rng.integers(n)), seed))
    ir = g.clone(model.ir)
    assert RULES[rule](ir) == [] and g.to_bytes(ir) == model.float_bytes()
    assert fold(model) is model


def test_an_output_keeps_its_name_and_what_it_means():
    proto = build([N("Conv", ["x", "w"], ["c"]), BN], {**W, **NORM}, outputs=("y", "c"))
    model: Model = load(proto)
    x = rand(1, 3, 8, 8)
    for name, wanted in ort(proto, x).items():
        assert_allclose(ort(fold(model).float_bytes(), x)[name], wanted, atol=1e-5)
