"""Stored weights mean the same on both runtimes, also where OpenVINO would take them for its own compressed form."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from roadworthy.data.samples import Samples
from roadworthy.model.model import load
from roadworthy.model.qdq import to_qdq
from roadworthy.recipe import StoreWeights
from roadworthy.run import openvino
from roadworthy.run.ort import OrtRunner


def test_pointwise_convolution_in_front_of_transpose_and_softmax() -> None:
    if not openvino.available():
        pytest.skip("OpenVINO is not installed")
    rng = np.random.default_rng(4)
    weight = onnx.numpy_helper.from_array(rng.normal(0, 0.3, (80, 96, 1, 1)).astype(np.float32), "w")
    nodes = [
        oh.make_node("Conv", ["x", "w"], ["a"]),
        oh.make_node("Transpose", ["a"], ["b"], perm=[0, 3, 2, 1]),
        oh.make_node("Softmax", ["b"], ["c"], axis=3),
        oh.make_node("Transpose", ["c"], ["y"], perm=[0, 3, 2, 1]),
    ]
    graph = oh.make_graph(
        nodes,
        "head",
        [oh.make_tensor_value_info("x", 1, [1, 96, 6, 6])],
        [oh.make_tensor_value_info("y", 1, [1, 80, 6, 6])],
        [weight],
    )
    model = load(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=8))
    data = to_qdq(StoreWeights()(model, Samples(())))
    assert len(data) < 0.4 * len(model.float_bytes())
    x = rng.normal(0, 1, (1, 96, 6, 6)).astype(np.float32)
    want = OrtRunner(data).run({"x": x})["y"]
    found = openvino.OpenVinoRunner(data, precision="f32").run({"x": x})["y"]
    np.testing.assert_allclose(found, want, atol=1e-4)
    np.testing.assert_allclose(want, OrtRunner(model.float_bytes()).run({"x": x})["y"], atol=0.05)
