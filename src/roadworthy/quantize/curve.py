"""The function that a layer's activation is, read off the graph: whatever nodes it consists of, no table of names."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from roadworthy.model import graph as g
from roadworthy.model.units import Unit
from roadworthy.run.ort import OrtRunner


class Curve:
    """y = f(x), elementwise, as ONNX Runtime computes it in float32."""

    def __init__(self, ir: g.IrModel, unit: Unit, start: g.Value) -> None:
        """unit: the layer.   start: the value in front of its activation."""
        nodes = [n for n in unit.nodes if n is not unit.anchor and start not in n.outputs]
        constants = {
            str(v.name): g.constant(v) for n in nodes for v in n.inputs if v is not None and g.constant(v) is not None
        }
        x, y = str(start.name), str(unit.output.name)
        graph = helper.make_graph(
            [g.node_proto(n) for n in nodes],
            "curve",
            [helper.make_tensor_value_info(x, onnx.TensorProto.FLOAT, ["n"])],
            [helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, ["n"])],
            [numpy_helper.from_array(a, n) for n, a in constants.items() if a is not None],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", g.opset(ir))])
        proto.ir_version = 10
        self._x, self._y = x, y
        self._runner = OrtRunner(proto.SerializeToString(), 1)

    def __call__(self, x: NDArray) -> NDArray[np.float64]:
        """f of an array of any shape."""
        flat = np.ascontiguousarray(x, np.float32).reshape(-1)
        return self._runner.run({self._x: flat})[self._y].astype(np.float64).reshape(np.shape(x))
