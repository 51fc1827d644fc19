"""Small ONNX models, built in a line or two, and ONNX Runtime as the witness of what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

N = helper.make_node
onnxruntime.set_default_logger_severity(4)


def rand(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def build(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, Any] | None = None,
    x: Sequence[int | str] = (1, 3, 8, 8),
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    ir: int = 8,
    weights_are_inputs: bool = False,
    kind: int = TensorProto.FLOAT,
    **others: Any,
) -> onnx.ModelProto:
    """A model of one input `x`; arrays of `weights` become initializers."""
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()]
    inputs = [helper.make_tensor_value_info("x", kind, list(x))]
    if weights_are_inputs:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in tensors]
    outs = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
    imports = [helper.make_opsetid("", opset), *others.pop("imports", [])]
    graph = helper.make_graph(list(nodes), "small", inputs, outs, tensors)
    model = helper.make_model(graph, opset_imports=imports, **others)
    model.ir_version = ir
    return model


def ort(model: bytes | onnx.ModelProto, x: NDArray, optimize: bool = True) -> dict[str, NDArray]:
    """All outputs by name, by ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model if isinstance(model, bytes) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: x})
    return dict(zip((o.name for o in session.get_outputs()), outputs))


def const(name: str, array: Any) -> onnx.NodeProto:
    """A Constant node."""
    return N("Constant", [], [name], value=numpy_helper.from_array(np.asarray(array)))
