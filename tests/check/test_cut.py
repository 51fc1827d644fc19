"""A cut in front of an activation is harmless exactly where the codes behind it do not notice."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from roadworthy.check.cut import harmless_cuts
from roadworthy.model.encoding import QuantSpec, encoding_of_range
from roadworthy.model.model import load
from roadworthy.model.qdq import to_qdq


def silu_layer(p: tuple[float, float], y: tuple[float, float]):
    """A convolution and a SiLU with codes p in front of it and y behind it, as a file would bring them."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["p"], name="c"),
            helper.make_node("Sigmoid", ["p"], ["s"]),
            helper.make_node("Mul", ["p", "s"], ["y"]),
            helper.make_node("Conv", ["y", "w"], ["z"], name="d"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 5, 5])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4, 5, 5])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    ranges = {"x": (-8.0, 8.0), "p": p, "y": y}
    encodings = {name: encoding_of_range(*r, QuantSpec()) for name, r in ranges.items()}
    weight = encoding_of_range(-1.0, 1.0, QuantSpec(signed=True, symmetric=True))
    made = load(model).with_encodings({**encodings, "w": weight}, "by hand")
    return load(onnx.load_model_from_string(to_qdq(made)))


def test_what_the_activation_flattens_may_be_cut_off():
    harmless = harmless_cuts(silu_layer((-7.0, 6.0), (-0.28, 6.0)))
    assert harmless("p", -90.0, 6.0)  # SiLU(-7) = -0.006, a quarter of a step away from 0
    assert harmless("p", -90.0, 30.0)  # the codes of y end at 6 themselves
    assert not harmless("y", -0.28, 30.0)  # nobody flattens y


def test_a_range_that_is_too_narrow_is_not_excused():
    harmless = harmless_cuts(silu_layer((-7.0, 2.0), (-0.28, 6.0)))
    assert not harmless("p", -90.0, 6.0)  # y stops at SiLU(2)
    assert not harmless_cuts(silu_layer((-1.0, 6.0), (-0.28, 6.0)))("p", -9.0, 6.0)  # SiLU(-1) = -0.27, SiLU(-9) = 0
