"""A small detector-like network with everything in it that alignment has to survive, and its quantized forms."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from roadworthy.model.model import Model, load
from roadworthy.model.units import units
from roadworthy.quantize.bias import channel_axes, correct_bias
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import Placement, place
from roadworthy.quantize.quantize import activation_encodings, quantize_units
from roadworthy.run.targets import TARGETS

SHAPE = (1, 3, 32, 32)


def images(count: int, seed: int = 1) -> list[np.ndarray]:
    """Smooth random pictures, 0..1."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((count, 1, 3, 8, 8)).astype(np.float32)
    fine = rng.random((count, *SHAPE)).astype(np.float32)
    return list(0.7 * coarse.repeat(4, 3).repeat(4, 4) + 0.3 * fine)


def network(seed: int = 0) -> Model:
    """Nine convolutions (two depthwise), SiLU and ReLU, a residual Add, a Resize, two Concats, and two heads."""
    rng = np.random.default_rng(seed)
    nodes, weights = [], []

    def add(op: str, inputs: list[str], name: str, **attributes) -> str:
        nodes.append(helper.make_node(op, inputs, [name + "_out"], name=name, **attributes))
        return name + "_out"

    def conv(x: str, cin: int, cout: int, name: str, k: int = 3, stride: int = 1, group: int = 1, act: str = "silu"):
        fan = cin // group * k * k
        w = rng.normal(0, np.sqrt(2.0 / fan), (cout, cin // group, k, k)).astype(np.float32)
        b = rng.normal(0, 0.3, cout).astype(np.float32)
        weights.extend([numpy_helper.from_array(w, name + ".w"), numpy_helper.from_array(b, name + ".b")])
        y = add("Conv", [x, name + ".w", name + ".b"], name, kernel_shape=[k, k], strides=[stride] * 2,
                pads=[k // 2] * 4, group=group)  # fmt: skip
        if act == "silu":
            return add("Mul", [y, add("Sigmoid", [y], name + "_sig")], name + "_silu")
        return add("Relu", [y], name + "_relu") if act == "relu" else y

    stem = conv("image", 3, 16, "stem", stride=2)
    dw1 = conv(stem, 16, 16, "dw1", group=16)
    pw1 = conv(dw1, 16, 16, "pw1", k=1)
    res = add("Add", [stem, pw1], "res")
    down = conv(res, 16, 24, "down", stride=2, act="relu")
    dw2 = conv(down, 24, 24, "dw2", group=24, act="relu")
    pw2 = conv(dw2, 24, 16, "pw2", k=1)
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    weights.append(scales)
    up = add("Resize", [pw2, "", "scales"], "up", mode="nearest", nearest_mode="floor",
             coordinate_transformation_mode="asymmetric")  # fmt: skip
    neck = conv(add("Concat", [up, res], "join", axis=1), 32, 24, "neck", k=1)
    boxes = conv(neck, 24, 4, "boxes", k=1, act="")
    scores = add("Sigmoid", [conv(neck, 24, 5, "scores", k=1, act="")], "score_sig")
    add("Concat", [boxes, scores], "head", axis=1)
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("head_out", TensorProto.FLOAT, (1, 9, 16, 16))],
        weights,
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def quantized(model: Model, target: str = "ort", observer: str = "mse") -> Model:
    """int8 with corrected biases, calibrated on other images than `images(k)` gives by default."""
    placement = place(model.ir, TARGETS[target])
    statistics = calibrate(
        model, placement.observed, images(16, seed=7), 1, None, channel_axes(model), placement.channels
    )
    activations = activation_encodings(placement, statistics, TARGETS[target], observer)
    small = quantize_units(model, placement, activations, "mse", {n: 8 for n in placement.why_float})
    return correct_bias(small, statistics)


def stored(model: Model) -> Model:
    """Weights stored with 8 bits, biases as they were."""
    nothing = Placement(frozenset(), {}, {})
    return quantize_units(model, nothing, {}, "mse", {u.name: 8 for u in units(model.ir)})
