"""Units: every spelling of an activation is found with its convolution, and nothing that merely looks like one."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_graphs import N, build, rand
from roadworthy.model.model import load
from roadworthy.model.units import Unit, units

CONV = N("Conv", ["x", "w"], ["c"], name="layer")
SCALARS = {"three": 3.0, "zero": 0.0, "six": 6.0, "sixth": 1 / 6, "half": 0.5, "five": 5.0}
WEIGHTS = {"w": rand(4, 3, 1, 1), "slope": rand(4, 1, 1), **{k: np.float32(v) for k, v in SCALARS.items()}}
PLUS3, CLIP6 = N("Add", ["c", "three"], ["a"]), N("Clip", ["a", "zero", "six"], ["k"])

# name -> (activation, nodes behind the convolution); the last node makes y
SPELLINGS = {
    "none": (None, []),
    "relu": ("Relu", [N("Relu", ["c"], ["y"])]),
    "relu6": ("Clip", [N("Clip", ["c", "zero", "six"], ["y"])]),
    "leaky relu": ("LeakyRelu", [N("LeakyRelu", ["c"], ["y"], alpha=0.1)]),
    "prelu": ("PRelu", [N("PRelu", ["c", "slope"], ["y"])]),
    "silu": ("SiLU", [N("Sigmoid", ["c"], ["s"]), N("Mul", ["c", "s"], ["y"])]),
    "silu turned": ("SiLU", [N("Sigmoid", ["c"], ["s"]), N("Mul", ["s", "c"], ["y"])]),
    "mish": ("Mish", [N("Softplus", ["c"], ["p"]), N("Tanh", ["p"], ["t"]), N("Mul", ["c", "t"], ["y"])]),
    "hard-swish by HardSigmoid": (
        "HardSwish",
        [N("HardSigmoid", ["c"], ["s"], alpha=1 / 6, beta=0.5), N("Mul", ["c", "s"], ["y"])],
    ),
    "hard-swish, division first": (
        "HardSwish",
        [PLUS3, CLIP6, N("Div", ["k", "six"], ["d"]), N("Mul", ["c", "d"], ["y"])],
    ),
    "hard-swish, division last": (
        "HardSwish",
        [PLUS3, CLIP6, N("Mul", ["c", "k"], ["m"]), N("Div", ["m", "six"], ["y"])],
    ),
    "hard-swish, product with a sixth": (
        "HardSwish",
        [N("Add", ["three", "c"], ["a"]), CLIP6, N("Mul", ["k", "c"], ["m"]), N("Mul", ["sixth", "m"], ["y"])],
    ),
    "hard-swish as one operator": ("HardSwish", [N("HardSwish", ["c"], ["y"])]),
}


def only_unit(nodes: list, **others) -> Unit:
    (unit,) = units(load(build([CONV, *nodes], WEIGHTS, **others)).ir)
    return unit


@pytest.mark.parametrize("case", SPELLINGS)
def test_every_spelling_of_an_activation(case: str):
    activation, nodes = SPELLINGS[case]
    unit = only_unit(nodes, outputs=("y" if nodes else "c",))
    assert (unit.name, unit.activation) == ("layer", activation)
    assert [n.op_type for n in unit.nodes] == ["Conv", *(n.op_type for n in nodes)]
    assert unit.output.name == ("y" if nodes else "c")
    assert {v.name for v in unit.inner} == {"c", *(n.output[0] for n in nodes)} - {unit.output.name}


def test_a_swish_that_keeps_reading_behind_it_is_still_one_unit():
    nodes = [N("Sigmoid", ["c"], ["s"]), N("Mul", ["c", "s"], ["m"]), N("Add", ["m", "m"], ["y"])]
    unit = only_unit(nodes)
    assert unit.activation == "SiLU" and unit.output.name == "m"


LOOKALIKES = {
    "gate of another value": [N("Sigmoid", ["c"], ["s"]), N("Neg", ["c"], ["n"]), N("Mul", ["n", "s"], ["y"])],
    "a third reader": [N("Sigmoid", ["c"], ["s"]), N("Mul", ["c", "s"], ["m"]), N("Add", ["m", "c"], ["y"])],
    "the gate is read elsewhere": [
        N("Sigmoid", ["c"], ["s"]),
        N("Mul", ["c", "s"], ["m"]),
        N("Add", ["m", "s"], ["y"]),
    ],
    "plus five": [N("Add", ["c", "five"], ["a"]), CLIP6, N("Div", ["k", "six"], ["d"]), N("Mul", ["c", "d"], ["y"])],
    "clipped at five": [
        PLUS3,
        N("Clip", ["a", "zero", "five"], ["k"]),
        N("Div", ["k", "six"], ["d"]),
        N("Mul", ["c", "d"], ["y"]),
    ],
    "divided by five": [PLUS3, CLIP6, N("Div", ["k", "five"], ["d"]), N("Mul", ["c", "d"], ["y"])],
    "six over x": [PLUS3, CLIP6, N("Div", ["six", "k"], ["d"]), N("Mul", ["c", "d"], ["y"])],
    "default HardSigmoid": [N("HardSigmoid", ["c"], ["s"]), N("Mul", ["c", "s"], ["y"])],
    "never divided": [PLUS3, CLIP6, N("Mul", ["c", "k"], ["y"])],
    "squared": [N("Mul", ["c", "c"], ["y"])],
}


@pytest.mark.parametrize("case", LOOKALIKES)
def test_lookalikes_are_not_units(case: str):
    unit = only_unit(LOOKALIKES[case])
    assert unit.activation is None and unit.output.name == "c"


def test_a_value_that_is_an_output_of_the_network_ends_the_unit():
    for nodes in ([N("Relu", ["c"], ["y"])], [N("Sigmoid", ["c"], ["s"]), N("Mul", ["c", "s"], ["y"])]):
        assert only_unit(nodes, outputs=("y", "c")).activation is None


def test_matmul_with_its_bias():
    nodes = [
        N("Flatten", ["x"], ["f"]),
        N("MatMul", ["f", "k"], ["m"]),
        N("Add", ["o", "m"], ["a"]),
        N("Relu", ["a"], ["y"]),
    ]
    (unit,) = units(load(build(nodes, {"k": rand(192, 5), "o": rand(5)})).ir)
    assert [n.op_type for n in unit.nodes] == ["MatMul", "Add", "Relu"] and unit.activation == "Relu"
    assert unit.weight_axis == 1 and unit.per_channel and unit.bias is None


def test_matmul_of_two_computed_values_owns_no_weights():
    assert units(load(build([N("MatMul", ["x", "x"], ["y"])])).ir) == []


def test_a_stack_of_matrices_has_no_one_scale_per_channel():
    (unit,) = units(load(build([N("MatMul", ["x", "k"], ["y"])], {"k": rand(3, 8, 5)})).ir)
    assert not unit.per_channel


@pytest.mark.parametrize(
    ("node", "shape", "axis", "per_channel"),
    [
        (N("Conv", ["x", "w"], ["y"], group=3), (6, 1, 3, 3), 0, True),
        (N("ConvTranspose", ["x", "w"], ["y"]), (3, 5, 2, 2), 1, True),
        (N("ConvTranspose", ["x", "w"], ["y"], group=3), (3, 2, 2, 2), 1, False),
        (N("ConvTranspose", ["x", "w"], ["y"], group=3), (3, 1, 2, 2), 1, False),
    ],
)
def test_where_the_output_channels_lie(node, shape: tuple, axis: int, per_channel: bool):
    (unit,) = units(load(build([node], {"w": rand(*shape)})).ir)
    assert (unit.weight_axis, unit.per_channel) == (axis, per_channel)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int):
    nodes = [N("Flatten", ["x"], ["f"]), N("Gemm", ["f", "k", "o"], ["y"], transB=transposed)]
    (unit,) = units(load(build(nodes, {"k": rand(*((5, 192) if transposed else (192, 5))), "o": rand(5)})).ir)
    assert unit.weight_axis == (0 if transposed else 1) and unit.bias is not None


def test_two_layers_may_share_their_weights():
    nodes = [N("Conv", ["x", "w"], ["a"]), N("Relu", ["a"], ["b"]), N("Conv", ["b", "w"], ["y"])]
    first, second = units(load(build(nodes, {"w": rand(3, 3, 1, 1)})).ir)
    assert first.weight is second.weight and first.name != second.name
