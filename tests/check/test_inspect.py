"""Layer costs against published figures, against an execution with ones, and against sums done by hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from roadworthy.check.inspect import COUNTERS, MOVES, PER_INPUT, PER_OUTPUT, VIEWS, inspect, table_rows, totals
from roadworthy.errors import InputError

ASSETS = Path(os.environ.get("ROADWORTHY_ASSETS", Path(__file__).parents[2].parent / "shared" / "assets"))


def build(nodes, inputs, weights=(), outputs=("y",), opset=17, domains=()):
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in dict(weights).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def asset_model(name):
    path = ASSETS / "models" / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is absent: the real models are not part of the project")
    model = onnx.load(path)
    for value in model.graph.input:
        if value.type.tensor_type.shape.dim[0].dim_param:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    return model


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "convolutions", "million_macs", "million_parameters"),
    [
        # 522.6 M MACs counted from the convolutions' shapes elsewhere; 0.91 M in the YOLOX paper with the
        # batch norms' scale and shift, of which folding leaves the shift as a bias.
        ("yolox_nano", 113, 522.6, 0.904),
        # MobileNetV1 0.75 at 224: 325 M and 2.6 M in the paper's table 6, batch norms folded.
        ("mobilenet_v1_075", 28, 325.4, 2.58),
        # ResNet-56 for CIFAR-10: 0.85 M in the paper's table 6; 125.49 M in the pruning literature (HRank).
        ("cifar10_resnet56", 55, 125.49, 0.85),
        # FastestDet 352: 0.24 M parameters on the authors' page.
        ("fastestdet", 70, None, 0.24),
    ],
)
def test_published_figures(name, convolutions, million_macs, million_parameters):
    total = totals(inspect(asset_model(name)))
    assert total.convolutions == convolutions
    assert total.not_counted == ()
    if million_macs is not None:
        assert total.macs / 1e6 == pytest.approx(million_macs, abs=0.06)
    assert total.parameters / 1e6 == pytest.approx(million_parameters, abs=0.006)
    assert 2 * total.macs < total.flops < 2.2 * total.macs  # elementwise work is small beside the convolutions


ONES = {
    "conv": ("Conv", [1, 6, 11, 9], (8, 6, 3, 3), {}),
    "conv strided, dilated": ("Conv", [1, 4, 15, 13], (5, 4, 3, 2), {"strides": [2, 3], "dilations": [2, 1]}),
    "depthwise": ("Conv", [2, 6, 7, 7], (6, 1, 3, 3), {"group": 6}),
    "grouped": ("Conv", [1, 6, 7, 7], (9, 2, 3, 3), {"group": 3}),
    "conv 1d": ("Conv", [1, 3, 20], (4, 3, 5), {}),
    "transposed": ("ConvTranspose", [1, 6, 5, 4], (6, 3, 2, 3), {"strides": [2, 2]}),
    "transposed, grouped": ("ConvTranspose", [1, 6, 5, 4], (6, 2, 3, 3), {"strides": [2, 2], "group": 3}),
    "gemm": ("Gemm", [3, 7], (7, 5), {}),
    "gemm, transposed weight": ("Gemm", [3, 7], (5, 7), {"transB": 1}),
    "gemm, transposed input": ("Gemm", [7, 3], (7, 5), {"transA": 1}),
    "matmul": ("MatMul", [2, 4, 7], (7, 5), {}),
    "matmul, broadcast": ("MatMul", [2, 4, 7], (2, 7, 5), {}),
}


@pytest.mark.parametrize("case", ONES)
def test_macs_equal_the_sum_of_an_execution_with_ones(case):
    """With ones everywhere and no padding, every multiply-accumulate adds exactly 1 to the sum of the outputs."""
    op, input_shape, weight_shape, attributes = ONES[case]
    weight = np.ones(weight_shape, np.float32)
    model = build([helper.make_node(op, ["x", "w"], ["y"], **attributes)], {"x": input_shape}, {"w": weight})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result = session.run(None, {"x": np.ones(input_shape, np.float32)})[0]
    (layer,) = inspect(model)
    assert layer.macs == int(result.astype(np.float64).sum())
    assert layer.shape == result.shape
    assert layer.flops == 2 * layer.macs
    assert layer.parameters == weight.size
    assert layer.bytes_read == 4 * np.prod(input_shape)
    assert layer.bytes_weights == weight.nbytes
    assert layer.bytes_written == result.nbytes
    assert layer.intensity == pytest.approx(layer.flops / (layer.bytes_read + weight.nbytes + result.nbytes))


def test_bias_and_elementwise_operations_by_hand():
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Mul", ["c", "s"], ["m"]),
        helper.make_node("Add", ["m", "half"], ["y"]),
    ]
    weights = {"w": np.ones((4, 3, 1, 1), np.float32), "b": np.ones(4, np.float32), "half": np.float32([0.5])}
    layers = inspect(build(nodes, {"x": [1, 3, 5, 5]}, weights))
    conv, sigmoid, mul, add = layers
    outputs = 4 * 25
    assert (conv.macs, conv.flops, conv.parameters) == (outputs * 3, 2 * outputs * 3 + outputs, 16)
    assert (sigmoid.flops, mul.flops, add.flops) == (4 * outputs, outputs, outputs)
    assert mul.bytes_read == 2 * 4 * outputs and mul.bytes_written == 4 * outputs
    assert add.parameters == 0 and add.bytes_weights == 4  # a literal is read, but it is not learned
    assert [layer.name for layer in layers] == ["conv", "s", "m", "y"]  # unnamed nodes go by their output


def test_pooling_reduction_resize_and_views():
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Resize", ["p", "", "scales"], ["near"], mode="nearest"),
        helper.make_node("Resize", ["p", "", "scales"], ["line"], mode="linear"),
        helper.make_node("Concat", ["near", "line"], ["cat"], axis=1),
        helper.make_node("GlobalAveragePool", ["cat"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["y"]),
    ]
    weights = {"scales": np.float32([1, 1, 2, 2])}
    pool, near, line, cat, mean, flat = inspect(build(nodes, {"x": [1, 3, 8, 8]}, weights))
    assert pool.flops == 3 * 16 * 4
    assert near.flops == 0 and near.shape == (1, 3, 8, 8)
    assert line.flops == 3 * 64 * 7  # four products and three sums
    assert cat.flops == 0 and cat.bytes_written == 2 * 4 * 3 * 64
    assert mean.flops == 6 * 64
    assert flat.flops == flat.traffic_bytes == 0


def quantized(with_pairs=True):
    """x -> Q/DQ -> Conv(int8 weight behind DQ) -> Relu -> Q/DQ -> y, or the same in float."""
    w = np.ones((8, 4, 3, 3), np.float32)
    weights = {"s": np.float32(0.1), "z": np.uint8(128), "zs": np.int8(0), "w": w.astype(np.int8) if with_pairs else w}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "s", "zs"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["rq"]),
        helper.make_node("DequantizeLinear", ["rq", "s", "z"], ["y"]),
    ]
    if not with_pairs:
        nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Relu", ["c"], ["y"])]
    return build(nodes, {"x": [1, 4, 10, 10]}, weights)


def test_quantized_weights_and_activations_count_one_byte():
    layers = {layer.op if layer.op != "QuantizeLinear" else layer.name: layer for layer in inspect(quantized())}
    floats = {layer.op: layer for layer in inspect(quantized(with_pairs=False))}
    conv, dense = layers["Conv"], floats["Conv"]
    assert (conv.macs, conv.parameters) == (dense.macs, dense.parameters) == (8 * 64 * 36, 288)
    assert (conv.bytes_weights, dense.bytes_weights) == (288, 4 * 288)
    assert (conv.bytes_read, dense.bytes_read) == (400, 1600)
    assert conv.bytes_written == 4 * 512  # a Relu follows, so the value between the two is float
    assert layers["Relu"].bytes_written == 512  # only read by QuantizeLinear, so written as an integer
    assert layers["rq"].flops == layers["rq"].traffic_bytes == 0  # done while Relu writes
    assert (layers["xq"].bytes_read, layers["xq"].bytes_written) == (1600, 400)  # the float input: real work
    assert layers["DequantizeLinear"].bytes_written == 4 * 512  # the float output: real work too


def test_shared_weights_are_held_once_and_read_twice():
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Conv", ["a", "w"], ["y"])]
    first, second = inspect(build(nodes, {"x": [1, 4, 4, 4]}, {"w": np.ones((4, 4, 1, 1), np.float32)}))
    assert (first.parameters, second.parameters) == (16, 0)
    assert first.bytes_weights == second.bytes_weights == 64


def test_constant_branches_are_free_and_open_shapes_are_evaluated():
    """Pads as the PyTorch exporter writes them: shape inference alone stops at this chain."""
    nodes = [
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.int64([2]))),
        helper.make_node("ConstantOfShape", ["two"], ["zeros"], value=numpy_helper.from_array(np.int64([0]))),
        helper.make_node("Concat", ["zeros", "ones", "zeros", "ones"], ["pads"], axis=0),
        helper.make_node("Cast", ["pads"], ["pads64"], to=TensorProto.INT64),
        helper.make_node("Pad", ["x", "pads64"], ["p"]),
        helper.make_node("Conv", ["p", "w"], ["y"]),
    ]
    weights = {"ones": np.int64([1, 1]), "w": np.ones((2, 3, 3, 3), np.float32)}
    pad, conv = inspect(build(nodes, {"x": [1, 3, 6, 6]}, weights))
    assert pad.shape == (1, 3, 8, 8)
    assert conv.macs == 2 * 36 * 27


def test_unknown_operators_are_named_not_guessed():
    nodes = [
        helper.make_node("NonMaxSuppression", ["boxes", "scores"], ["kept"], name="nms"),
        helper.make_node("Frobnicate", ["boxes"], ["odd"], name="odd", domain="acme"),
        helper.make_node("Relu", ["odd"], ["tail"], name="tail"),
        helper.make_node("Relu", ["boxes"], ["y"], name="fine"),
    ]
    model = build(nodes, {"boxes": [1, 9, 4], "scores": [1, 2, 9]}, outputs=("kept", "tail", "y"), domains=("acme",))
    layers = {layer.name: layer for layer in inspect(model)}
    assert "NonMaxSuppression" in layers["nms"].note and "acme.Frobnicate" in layers["odd"].note
    assert "`odd` is unknown" in layers["tail"].note
    assert layers["nms"].flops == layers["odd"].flops == layers["tail"].flops == 0
    total = totals(layers.values())
    assert [line.split(":")[0] for line in total.not_counted] == ["nms", "odd", "tail"]
    assert total.flops == layers["fine"].flops == 36


def test_rows_and_totals_are_plain_json():
    layers = inspect(quantized())
    rows = json.loads(json.dumps(table_rows(layers)))
    assert [row["op"] for row in rows].count("Conv") == 1
    conv = next(row for row in rows if row["op"] == "Conv")
    assert conv["shape"] == [1, 8, 8, 8] and conv["intensity"] > 0
    assert json.loads(json.dumps(totals(layers).to_json()))["parameters"] == 288


def test_a_dynamic_input_is_refused_by_name():
    model = build([helper.make_node("Relu", ["image"], ["y"])], {"image": ["N", 3, 8, 8]})
    with pytest.raises(InputError, match=r"`image`.*'N'"):
        inspect(model)


def test_an_empty_graph_is_refused():
    with pytest.raises(InputError, match="no nodes"):
        inspect(build([], {"x": [1]}, outputs=()))


def test_the_model_is_not_changed():
    model = quantized()
    before = model.SerializeToString()
    inspect(model)
    assert model.SerializeToString() == before


def test_no_operator_stands_in_two_tables():
    tables = [set(VIEWS), set(MOVES), set(PER_OUTPUT), set(PER_INPUT), set(COUNTERS)]
    assert len(set().union(*tables)) == sum(map(len, tables))
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    assert set().union(*tables) <= known  # no misspelt name
