"""Raising the operator set of a graph, where a file needs operators that the graph's own set does not have.

Most operators of sets 13 to 20 mean the same in set 21; some say it in another way and are rewritten; what changed its
meaning, or is not known here, is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g

HIGHEST = 21
_IR_VERSION = 10
"""Of the file format that came with set 21."""

_SAME = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Cast", "Constant", "ConstantOfShape", "CumSum", "DequantizeLinear",
    "QuantizeLinear", "Equal", "Flatten", "GreaterOrEqual", "LessOrEqual", "Identity", "LeakyRelu", "PRelu", "Relu",
    "Pad", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze", "Transpose", "Where", "BatchNormalization",
    "ScatterND", "ScatterElements", "LpPool", "IsNaN", "IsInf",
})  # fmt: skip
"""What gained types, or settings whose default is what it did before."""


def raise_opset(ir: g.IrModel, version: int) -> None:
    """Edit a graph of set 13 or newer in place so that it is of set `version` (to HIGHEST) at least.

    Raises UnsupportedError naming the node that cannot be said in that set as it is meant.
    """
    own = g.opset(ir)
    if own >= version:
        return
    assert own >= 13 and version <= HIGHEST
    for node in g.nodes(ir):
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            before, after = (_since(node.op_type, v) for v in (own, version))
        except onnx.defs.SchemaError:
            before, after = 0, 1
        if before == after or node.op_type in _SAME:
            continue
        rewrite = _REWRITTEN.get(node.op_type)
        if rewrite is None or not rewrite(ir, node):
            raise UnsupportedError(
                f"{node.name!r} is of a kind, {node.op_type}, whose meaning differs between operator sets {own} and"
                f" {version}, and 16-bit codes need the latter; quantize without them"
            )
    g.set_opset(ir, version, _IR_VERSION)


def _since(op_type: str, version: int) -> int:
    return int(onnx.defs.get_schema(op_type, version, "").since_version)


def _reduce(ir: g.IrModel, node: g.Node) -> bool:
    """Axes became an input."""
    axes = g.attribute(node, "axes")
    if axes is not None:
        name = f"{node.name}/axes"
        g.drop_attribute(node, "axes")
        node.resize_inputs(2)
        node.replace_input_with(1, g.add_constant(ir, name, np.array(axes, np.int64)))
    return True


def _split(ir: g.IrModel, node: g.Node) -> bool:
    """Equal parts are asked for by their number."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        g.set_attribute(node, "num_outputs", len(node.outputs))
    return True


def _resize(ir: g.IrModel, node: g.Node) -> bool:
    return g.attribute(node, "coordinate_transformation_mode", "half_pixel") != "tf_half_pixel_for_nn"


def _average_pool(ir: g.IrModel, node: g.Node) -> bool:
    """How a window beyond the padding counts was settled in set 19."""
    return not g.attribute(node, "ceil_mode", 0)


def _grid_sample(ir: g.IrModel, node: g.Node) -> bool:
    """The modes have other names."""
    mode = g.attribute(node, "mode", "bilinear")
    g.set_attribute(node, "mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))
    return True


_REWRITTEN: dict[str, Callable[[g.IrModel, g.Node], bool]] = {
    "ReduceMean": _reduce, "ReduceMax": _reduce, "ReduceMin": _reduce, "ReduceProd": _reduce, "ReduceL1": _reduce,
    "ReduceL2": _reduce, "ReduceLogSum": _reduce, "ReduceLogSumExp": _reduce, "ReduceSumSquare": _reduce,
    "Split": _split, "Resize": _resize, "AveragePool": _average_pool, "GridSample": _grid_sample,
}  # fmt: skip
