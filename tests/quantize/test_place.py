"""Placement: which values get an encoding, and which share one."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_graphs import N, build, rand
from roadworthy.model.model import Model, load
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import Placement, place
from roadworthy.quantize.quantize import incompatible_merges
from roadworthy.run.targets import TARGETS

ORT, OPENVINO = TARGETS["ort"], TARGETS["openvino"]
BOTH = pytest.mark.parametrize("target", [ORT, OPENVINO], ids=lambda t: t.name)
STEM = N("Conv", ["x", "w"], ["a"], name="stem")
LAST = N("Conv", ["b", "v"], ["y"], name="last")


def network(*nodes, weights: dict | None = None, outputs: tuple = ("y",), channels: int = 3, **others) -> Model:
    """stem (1x1, 3 channels in and out), the nodes, and `last` on b."""
    known = {"w": rand(3, 3, 1, 1), "v": rand(6, channels, 1, 1), **(weights or {})}
    return load(build([STEM, *nodes], known, outputs=outputs, **others))


def encoded(model: Model, target, **others) -> dict:
    return dict(place(model.ir, target, **others).source)


@BOTH
def test_two_convolutions_with_relu(target):
    found = place(network(N("Relu", ["a"], ["b"]), LAST).ir, target)
    assert found.int8 == {"stem", "last"} and not found.why_float
    # ONNX Runtime quantizes every result; OpenVINO leaves the last one in float.
    assert dict(found.source) == {"x": "x", "b": "b", **({"y": "y"} if target is ORT else {})}


def test_silu_is_one_layer_for_openvino_and_three_for_onnx_runtime():
    model = network(N("Sigmoid", ["a"], ["s"]), N("Mul", ["a", "s"], ["b"]), LAST)
    assert set(encoded(model, OPENVINO)) == {"x", "b"}
    assert set(encoded(model, ORT)) == {"x", "a", "s", "b", "y"}


MOVES = {
    "maxpool": [N("MaxPool", ["a"], ["b"], kernel_shape=[2, 2])],
    "slice": [N("Slice", ["a", "from", "to", "axis"], ["b"])],
    "transpose": [N("Transpose", ["a"], ["b"], perm=[0, 1, 3, 2])],
    "nearest": [N("Resize", ["a", "", "twice"], ["b"], mode="nearest")],
    "linear": [N("Resize", ["a", "", "twice"], ["b"], mode="linear")],
    "two in a row": [N("MaxPool", ["a"], ["m"], kernel_shape=[2, 2]), N("Transpose", ["m"], ["b"], perm=[0, 1, 3, 2])],
}
NUMBERS = {
    "from": np.array([0]),
    "to": np.array([4]),
    "axis": np.array([2]),
    "twice": np.array([1, 1, 2, 2], np.float32),
    "parts": np.array([1, 2]),
}


@BOTH
@pytest.mark.parametrize("case", MOVES)
def test_operators_that_move_values_share_one_encoding(case: str, target):
    source = encoded(network(*MOVES[case], LAST, weights=NUMBERS), target)
    assert source["b"] == source["a"] == "a"


@BOTH
def test_a_cubic_resize_overshoots_and_a_pool_with_positions_counts(target):
    cubic = network(N("Resize", ["a", "", "twice"], ["b"], mode="cubic"), LAST, weights=NUMBERS)
    assert encoded(cubic, target)["b"] == "b"
    counted = network(
        N("MaxPool", ["a"], ["b", "at"], kernel_shape=[1, 1]),
        N("Cast", ["at"], ["f"], to=1),
        LAST,
        outputs=("y", "f"),
    )
    source = encoded(counted, target)
    assert "at" not in source and "f" not in source and source["b"] == "b"


@BOTH
def test_split_gives_every_part_that_is_read_the_encoding_of_the_whole(target):
    nodes = [N("Split", ["a", "parts"], ["p", "b"], axis=1), N("Conv", ["b", "v"], ["y"], name="last")]
    model = network(*nodes, weights={**NUMBERS, "v": rand(6, 2, 1, 1)})
    source = encoded(model, target)
    assert source["b"] == "a" and "p" not in source


@BOTH
def test_residual_sum_with_relu(target):
    nodes = [
        N("Conv", ["a", "u"], ["c"], name="middle"),
        N("Add", ["a", "c"], ["s"]),
        N("Relu", ["s"], ["b"]),
        LAST,
    ]
    source = encoded(network(*nodes, weights={"u": rand(3, 3, 1, 1)}), target)
    assert {"a", "c", "b"} <= set(source) and "s" not in source


@BOTH
def test_the_concatenation_at_the_tail_is_wanted_by_nobody(target):
    nodes = [
        N("Conv", ["a", "u"], ["boxes"], name="box"),
        N("Conv", ["a", "v"], ["z"], name="score"),
        N("Sigmoid", ["z"], ["scores"]),
        N("Concat", ["boxes", "scores"], ["y"], axis=1),
    ]
    source = encoded(network(*nodes, weights={"u": 300 * rand(4, 3, 1, 1)}), target)
    assert "y" not in source
    if target is ORT:
        assert source["boxes"] == "boxes" and source["z"] == "z"


@BOTH
@pytest.mark.parametrize("factor", [1.0, 400.0])
def test_the_inputs_of_a_concatenation_in_the_middle(factor: float, target):
    nodes = [
        N("Relu", ["a"], ["r"]),
        N("Conv", ["r", "u"], ["c"], name="wide"),
        N("Concat", ["r", "c"], ["b"], axis=1),
        LAST,
    ]
    model = network(*nodes, weights={"u": factor * rand(3, 3, 1, 1)}, channels=6)
    first = place(model.ir, target)
    assert first.merges == {"b": ("r", "c")}
    assert len({first.source[v] for v in ("r", "c", "b")}) == 3  # each keeps a scale of its own
    statistics = calibrate(model, first.observed, [rand(1, 3, 8, 8, seed=1)], 1)
    apart = incompatible_merges(first, statistics)
    assert apart == (["b"] if factor > 1 else [])
    second = place(model.ir, target, apart=frozenset(apart))
    assert set(second.merges) == ({"b"} if factor == 1 else set())
    assert second.source["b"] == "b"


@BOTH
def test_layers_kept_in_float(target):
    model = network(N("Relu", ["a"], ["b"]), LAST)
    found = place(model.ir, target, keep_float=frozenset({"stem"}))
    assert found.int8 == {"last"} and found.why_float == {"stem": "kept in float"}
    assert "x" not in found.source and found.source["b"] == "b"


def test_reasons_for_float():
    up = network(N("ConvTranspose", ["a", "t"], ["b"], name="up"), LAST, weights={"t": rand(3, 3, 2, 2)})
    assert place(up.ir, ORT).why_float["up"].endswith("no int8 ConvTranspose")
    flat = N("Flatten", ["a"], ["f"])
    stack = network(N("MatMul", ["a", "k"], ["b"], name="stack"), LAST, weights={"k": rand(3, 8, 8)})
    assert "one scale per output channel" in place(stack.ir, ORT).why_float["stack"]
    rows = network(
        flat, N("Gemm", ["f", "k", "o"], ["y"], beta=2.0, name="rows"), weights={"k": rand(192, 5), "o": rand(1)}
    )
    assert not place(rows.ir, ORT).why_float  # alpha and beta went into the weights on loading
    tiny = network(
        N("Conv", ["a", "u"], ["c"]),
        N("GlobalAveragePool", ["c"], ["b"]),
        N("Conv", ["b", "t"], ["y"], name="tiny"),
        weights={"u": rand(64, 3, 3, 3), "t": rand(1, 64, 1, 1)},
        x=(1, 3, 32, 32),
    )
    assert place(tiny.ir, ORT).why_float == {"tiny": "a last layer too small to gain"}


def test_nothing_to_do():
    assert place(load(build([N("Relu", ["x"], ["y"])])).ir, ORT) == Placement(frozenset(), {}, {}, {})


@BOTH
def test_a_constant_operand_is_not_an_activation(target):
    nodes = [N("Mul", ["a", "k"], ["b"]), LAST]
    source = encoded(network(*nodes, weights={"k": np.float32(2)}), target)
    assert "k" not in source and source["b"] == "b"
