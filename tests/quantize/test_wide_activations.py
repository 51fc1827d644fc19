"""Activations of 16 bits: where 8 are too few, where they are not needed, and what cannot have them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_graphs import N, build, ort, rand
from roadworthy.errors import InputError, UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.model import Model, load
from roadworthy.model.opset import raise_opset
from roadworthy.model.qdq import from_qdq, to_qdq
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import place
from roadworthy.quantize.quantize import activation_encodings, quantize_units
from roadworthy.run.native.lower import lower
from roadworthy.run.targets import TARGETS
from roadworthy.steps.quantize import Quantize

RUNTIMES = pytest.mark.parametrize("target", ["ort", "openvino"])
LOUD = np.ones((8, 1, 1, 1), np.float32)
LOUD[0] = 3000  # one channel of the value `a` is so loud that 8 bits leave nothing of the others


def planted() -> Model:
    """`second` reads the quiet channels of a value whose range the loud one spans, 3000 times as wide."""
    nodes = [N("Conv", ["x", "w"], ["a"], name="first"), N("MaxPool", ["a"], ["m"], kernel_shape=[2, 2]),
             N("Conv", ["m", "v"], ["y"], name="second")]  # fmt: skip
    v = rand(4, 8, 1, 1)
    v[:, 0] = 0
    return load(build(nodes, {"w": rand(8, 3, 1, 1) * LOUD, "v": v}))


X = [rand(1, 3, 8, 8, seed=k) for k in range(3)]


def quantized(model: Model, target: str, wide: tuple[str, ...] = ()) -> Model:
    placement = place(model.ir, TARGETS[target])
    statistics = calibrate(model, placement.observed, X, 1)
    activations = activation_encodings(placement, statistics, TARGETS[target], "mse", wide)
    return quantize_units(model, placement, activations, "mse", {n: 8 for n in placement.why_float})


def noise(model: Model, data: bytes, target: str) -> float:
    wanted = ort(model.float_bytes(), X[0])["y"]
    found = TARGETS[target].runner(data, 1).run({"x": X[0]})["y"]
    return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


@RUNTIMES
def test_sixteen_bits_where_eight_leave_nothing(target: str):
    model = planted()
    narrow, wide = (to_qdq(quantized(model, target, names)) for names in ((), ("a",)))
    assert noise(model, narrow, target) > 0.5
    assert noise(model, wide, target) < 0.02


@RUNTIMES
def test_no_harm_where_eight_are_enough(target: str):
    nodes = [N("Conv", ["x", "w"], ["a"]), N("Relu", ["a"], ["r"]), N("Conv", ["r", "v"], ["y"])]
    model = load(build(nodes, {"w": rand(8, 3, 1, 1), "v": rand(4, 8, 1, 1)}))
    everything = tuple(place(model.ir, TARGETS[target]).source)
    narrow, wide = (noise(model, to_qdq(quantized(model, target, names)), target) for names in ((), everything))
    assert wide < narrow < 0.03


def test_what_the_file_looks_like_and_that_it_comes_back():
    model = quantized(planted(), "ort", ("m",))
    assert {n: e.bits for n, e in model.encodings.items() if n in "xamy"} == {"x": 8, "a": 16, "m": 16, "y": 8}
    assert model.encodings["a"] == model.encodings["m"]  # what only moves values shares their codes
    data = to_qdq(model)
    proto = onnx.load_model_from_string(data)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.opset_import[0].version == 21 and proto.ir_version >= 10
    kinds = {t.name: t.data_type for t in proto.graph.initializer}
    zero = {n.input[0]: kinds[n.input[2]] for n in proto.graph.node if n.op_type == "QuantizeLinear"}
    assert zero["a"] == onnx.TensorProto.UINT16 and zero["x"] == onnx.TensorProto.UINT8
    back = from_qdq(load(data))
    assert dict(back.encodings) == dict(model.encodings) and to_qdq(back) == data
    before = onnx.load_model_from_string(to_qdq(quantized(planted(), "ort")))
    assert before.opset_import[0].version < 21  # a file without 16 bits stays as it was


def test_the_engine_names_what_it_cannot_hold():
    with pytest.raises(UnsupportedError, match="'a' has codes of 16 bits"):
        lower(quantized(planted(), "ort", ("a",)))


def placement_of(step: Quantize, model: Model) -> set[str]:
    return step._wide_values(model, place(model.ir, TARGETS[step.target]))


def test_names_of_layers_and_of_values():
    model = planted()
    assert placement_of(Quantize(wide_activations=("first",)), model) == {"a"}
    assert placement_of(Quantize(wide_activations=("m", "x")), model) == {"m", "x"}
    assert placement_of(Quantize(activation_bits=16), model) == {"x", "a", "m", "y"}
    assert placement_of(Quantize(), model) == set()
    with pytest.raises(InputError, match=r"names 'nobody', which is no value"):
        placement_of(Quantize(wide_activations=("nobody",)), model)
    for step in (Quantize("native", activation_bits=16), Quantize("native", wide_activations=("a",))):
        with pytest.raises(InputError, match="the target native has no 16-bit activations"):
            placement_of(step, model)


W = rand(6, 3, 3, 3)
CASES = {
    "reduce mean": ([N("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)], {}),
    "reduce all": ([N("ReduceMax", ["x"], ["y"])], {}),
    "split": ([N("Split", ["x"], ["a", "b", "c"], axis=1), N("Concat", ["c", "a", "b"], ["y"], axis=1)], {}),
    "resize": ([N("Resize", ["x", "", "s"], ["y"], mode="linear")], {"s": np.float32([1, 1, 2, 1.5])}),
    "resize nearest": ([N("Resize", ["x", "", "s"], ["y"], mode="nearest", coordinate_transformation_mode="asymmetric",
                          nearest_mode="floor")], {"s": np.float32([1, 1, 2, 2])}),
    "pool": ([N("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])], {}),
    "pad": ([N("Pad", ["x", "p"], ["y"])], {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1])}),
    "activations": ([N("Conv", ["x", "w"], ["a"]), N("LeakyRelu", ["a"], ["b"], alpha=0.2),
                     N("PRelu", ["b", "k"], ["c"]),
                     N("Relu", ["c"], ["d"]), N("Clip", ["d", "", "six"], ["e"]), N("Sigmoid", ["e"], ["f"]),
                     N("Mul", ["e", "f"], ["h"]), N("HardSigmoid", ["h"], ["i"]), N("Softplus", ["i"], ["j"]),
                     N("Add", ["j", "k"], ["l"]), N("Div", ["l", "six"], ["m"]), N("Sub", ["m", "k"], ["n"]),
                     N("Pow", ["n", "two"], ["y"])],
                    {"w": W, "k": rand(6, 1, 1), "six": np.float32(6), "two": np.float32(2)}),
    "moves": ([N("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]), N("Reshape", ["a", "s"], ["b"]),
               N("Flatten", ["b"], ["c"]),
               N("Unsqueeze", ["c", "o"], ["d"]), N("Squeeze", ["d", "o"], ["e"]), N("Softmax", ["e"], ["y"])],
              {"s": np.array([1, -1, 3]), "o": np.array([1])}),
    "normalization": ([N("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])],
                      {"s": rand(3), "b": rand(3), "m": rand(3), "v": np.abs(rand(3)) + 1}),
}  # fmt: skip


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("case", CASES)
def test_a_raised_operator_set_means_the_same(case: str, opset: int):
    proto = build(*CASES[case])
    proto.opset_import[0].version = opset
    model = load(proto)
    ir = g.clone(model.ir)
    raise_opset(ir, 21)
    raised = g.to_proto(ir)
    onnx.checker.check_model(raised, full_check=True)
    assert raised.opset_import[0].version == 21
    before, after = (ort(d, X[0])["y"] for d in (model.float_bytes(), raised.SerializeToString()))
    # The newer kernel adds the nine numbers of a window in another order.
    np.testing.assert_allclose(before, after, rtol=0, atol=9 * 2**-24 * np.abs(X[0]).max() if case == "pool" else 0)


@pytest.mark.parametrize(("opset", "node", "word"), [
    (13, N("Resize", ["x", "", "s"], ["y"], coordinate_transformation_mode="tf_half_pixel_for_nn"), "Resize"),
    (13, N("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), "AveragePool"),
])  # fmt: skip
def test_what_changed_its_meaning_is_refused_by_name(opset: int, node: onnx.NodeProto, word: str):
    proto = build([node], {"s": np.float32([1, 1, 2, 2])})
    proto.opset_import[0].version = opset
    ir = g.clone(load(proto).ir)
    with pytest.raises(UnsupportedError, match=f"is of a kind, {word}, whose meaning differs"):
        raise_opset(ir, 21)


@pytest.mark.assets
@pytest.mark.parametrize("name", ["cifar10_resnet56", "fastestdet", "mobilenet_v1_075", "yolox_nano"])
def test_real_networks_of_set_21(name: str, assets):
    model = load(assets / "models" / f"{name}.onnx")
    ir = g.clone(model.ir)
    raise_opset(ir, 21)
    x = rand(*model.input_shape)
    before, after = (
        TARGETS["ort"].runner(d, 1).run({model.input_name: x}) for d in (model.float_bytes(), g.to_bytes(ir))
    )
    for key, value in before.items():
        np.testing.assert_array_equal(value, after[key])
