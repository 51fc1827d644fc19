"""Older operator sets lifted to a recent one, by ONNX's own converter and what it leaves undone.

Four things are ours. Functions are inlined first, as the converter does not look into them. Resize and Upsample
before operator set 11 map an output pixel to input x / scale ("asymmetric"; nearest takes the lower neighbour, and the
upper one when shrinking), while the converter leaves the later default ("half_pixel") in place. Hardmax before operator
set 13 flattened its input, which the converter forgets, so it is refused. Before operator set 7 the second operand of
Add and its like was aligned at an `axis`; the converter aligns it at the wrong one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
from numpy.typing import NDArray

from roadworthy.errors import UnsupportedError

MIN_OPSET = 13
"""The first operator set whose DequantizeLinear takes a scale per channel."""
LIFTED_OPSET = 17
"""Where older models are lifted to."""


def opset_of(proto: onnx.ModelProto) -> int:
    """Version of the standard operator set; 1 where the file states none."""
    return next((int(o.version) for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)


def lift(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """The same network without functions, in operator set MIN_OPSET or newer; proto is not to be used afterwards.

    where: what to call the model in an error.   Raises UnsupportedError when it cannot be lifted.
    """
    version = opset_of(proto)
    try:
        if proto.functions:
            proto = onnx.inliner.inline_local_functions(proto, convert_version=True)
        if version >= MIN_OPSET:
            return proto
        _refuse_hardmax(proto, where, version)
        if version < 7:
            _align_operands(proto, where)
        # The converter infers shapes on the way and trusts stale ones, so it gets none.
        del proto.graph.value_info[:]
        old_resizes = {o for n in proto.graph.node if n.op_type in ("Resize", "Upsample") for o in n.output}
        lifted = onnx.version_converter.convert_version(proto, LIFTED_OPSET)
    except UnsupportedError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise UnsupportedError(
            f"{where}: operator set {version} cannot be lifted to {LIFTED_OPSET} ({line});"
            " export it with opset 13 or newer"
        ) from error
    if version < 11:
        constants = _constants(lifted)
        for node in lifted.graph.node:
            if node.op_type == "Resize" and node.output[0] in old_resizes:
                _as_before_11(node, constants, where)
    return lifted


def _refuse_hardmax(proto: onnx.ModelProto, where: str, version: int) -> None:
    for node in proto.graph.node:
        if node.op_type == "Hardmax":
            raise UnsupportedError(
                f"{where}: Hardmax of operator set {version} cannot be lifted; export the model with opset 13 or newer"
            )


def _align_operands(proto: onnx.ModelProto, where: str) -> None:
    """b of shape S aligned at `axis` of a is b of shape (*S, 1, ..., 1) aligned at the end, the default."""
    shapes = onnx.shape_inference.infer_shapes(proto).graph
    known = {v.name: v.type.tensor_type.shape for v in (*shapes.input, *shapes.value_info, *shapes.output)}
    weights = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        axis = next((a for a in node.attribute if a.name == "axis"), None)
        if axis is None or not any(a.name == "broadcast" and a.i for a in node.attribute):
            continue
        first, second = known.get(node.input[0]), weights.get(node.input[1])
        if first is None or second is None:
            raise UnsupportedError(
                f"{where}: {node.op_type} {node.name or node.output[0]!r} broadcasts along an axis as only operator"
                " sets before 7 do, and its operands are not known; export the model with opset 13 or newer"
            )
        trailing = len(first.dim) - axis.i % len(first.dim) - len(second.dims)
        aligned = onnx.TensorProto()
        aligned.CopyFrom(second)
        aligned.dims.extend([1] * max(trailing, 0))
        aligned.name = f"{second.name}.{node.output[0]}"
        proto.graph.initializer.append(aligned)
        node.input[1] = aligned.name
        node.attribute.remove(axis)


def _constants(proto: onnx.ModelProto) -> dict[str, NDArray]:
    found = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if np.prod(t.dims) < 64}
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value" and np.prod(attribute.t.dims) < 64:
                found[node.output[0]] = onnx.numpy_helper.to_array(attribute.t)
    return found


def _as_before_11(node: onnx.NodeProto, constants: Mapping[str, NDArray], where: str) -> None:
    """Write down the pixel mapping that Resize had before it could be chosen."""
    scales = constants.get(node.input[2]) if len(node.input) > 2 else None
    shrinks = scales is not None and bool((scales < 1).any())
    if scales is not None and shrinks and (scales > 1).any():
        raise UnsupportedError(
            f"{where}: Resize {node.name or node.output[0]!r} enlarges one axis and shrinks another, which operator"
            " sets before 11 leave undefined; export the model with opset 13 or newer"
        )
    mapping = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil" if shrinks else "floor"}
    kept = [a for a in node.attribute if a.name not in mapping]
    del node.attribute[:]
    node.attribute.extend([*kept, *(onnx.helper.make_attribute(k, v) for k, v in mapping.items())])
