"""From any valid ONNX file to the one form that everything else reads.

Initializers are not inputs, constants are initializers, functions are inlined, the operator set is at least
`MIN_OPSET`, every dimension is a number, whatever can be computed ahead is computed, and every node has a name.
The numbers that come out are the same as before, up to the order of float additions.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.lift import MIN_OPSET as MIN_OPSET
from roadworthy.model.lift import lift

MAX_FOLDED_ELEMENTS = 1 << 24


def canonicalize(proto: onnx.ModelProto, where: str, input_hw: tuple[int, int] | None = None) -> g.IrModel:
    """The canonical form of a checked model.

    input_hw: height and width for an image input whose size is dynamic.
    Raises InputError when a dynamic size is not given, UnsupportedError when the operator set cannot be lifted.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    _initializers_out_of_inputs(fixed)
    _fix_sizes(fixed, where, input_hw)
    fixed = lift(fixed, where)
    model = g.tidy(g.parse(fixed))
    _drop_training_ops(model)
    g.drop_inferred_shapes(model)
    for value in g.outputs(model):
        value.shape = None
    for _ in range(8):
        g.infer_shapes(model)
        while _drop_late_window(model):
            g.drop_inferred_shapes(model)
            g.infer_shapes(model)
        if not (_plain_casts(model) | _fold_constants(model)):
            break
    _plain_gemms(model)
    model = g.drop_dead(model)
    g.infer_shapes(model)
    g.name_nodes(model)
    return model


def _initializers_out_of_inputs(proto: onnx.ModelProto) -> None:
    """Old exporters list every weight as an input, too; IR version 4 made that optional."""
    names = {t.name for t in proto.graph.initializer}
    kept = [v for v in proto.graph.input if v.name not in names]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    proto.ir_version = max(proto.ir_version, 8)


def _fix_sizes(proto: onnx.ModelProto, where: str, input_hw: tuple[int, int] | None) -> None:
    """Batch 1, and the given height and width where the file leaves them open."""
    if not proto.graph.input:
        raise InputError(f"{where} has no input; a model that takes an image is needed")
    changed = False
    for value in proto.graph.input:
        shape = value.type.tensor_type.shape
        if not value.type.tensor_type.HasField("shape"):
            raise InputError(f"{where}: the input {value.name!r} states no shape; export it with one")
        dims = list(shape.dim)
        known = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in dims]
        wanted: list[int | None] = list(known)
        if len(dims) == 4:
            if known[0] != 1:
                wanted[0] = 1
            space = (2, 3) if known[3] not in (1, 3) or known[1] in (1, 3) else (1, 2)
            for axis, size in zip(space, input_hw or (None, None)):
                if size is not None and known[axis] not in (None, size):
                    fixed = "x".join(str(known[a]) for a in reversed(space))
                    raise InputError(
                        f"{where}: the input {value.name!r} has the fixed size {fixed} (width x height),"
                        f" not {(input_hw or (0, 0))[1]}x{(input_hw or (0, 0))[0]}; leave --size out"
                    )
                if size is not None:
                    wanted[axis] = size
            channel = 1 if space == (2, 3) else 3
            if wanted[channel] is None:
                wanted[channel] = 3
        elif dims and known[0] is None:
            wanted[0] = 1
        if any(w is None for w in wanted):
            raise InputError(
                f"{where}: the size of the input {value.name!r} is dynamic; give it with --size, as in --size 640x640"
            )
        for dim, size in zip(dims, wanted):
            if not dim.HasField("dim_value") or dim.dim_value != size:
                changed = True
                dim.dim_value = int(size)  # type: ignore[arg-type]
    if changed:
        del proto.graph.value_info[:]
        for out in proto.graph.output:
            out.type.tensor_type.ClearField("shape")


def _drop_training_ops(model: g.IrModel) -> None:
    """Dropout is the identity at inference."""
    for node in g.nodes(model):
        if node.op_type == "Dropout" and (len(node.outputs) < 2 or not list(node.outputs[1].uses())):
            source = node.inputs[0]
            out = node.outputs[0]
            if source is None or out.is_graph_output():
                continue
            g.replace_uses(out, source)
            g.remove_node(model, node)


def _drop_late_window(model: g.IrModel) -> bool:
    """Of the first pool with ceil_mode whose last window would start behind image and front padding: say without
    ceil_mode what runtimes compute; true when there was one.

    They leave that window out, as PyTorch does, but ONNX's shape inference (1.23) counts it. The windows that are left
    end inside the padding, so the pool can be written with ceil_mode 0 and end padding that reaches just as far.
    """
    for node in g.nodes(model):
        shape = g.static_shape(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
        ceil = node.op_type in ("MaxPool", "AveragePool", "LpPool") and g.attribute(node, "ceil_mode", 0)
        if not ceil or shape is None or g.attribute(node, "auto_pad", "NOTSET") != "NOTSET":
            continue
        sides, kernel = shape[2:], g.attribute(node, "kernel_shape")
        strides, dilations = (g.attribute(node, k, (1,) * len(sides)) for k in ("strides", "dilations"))
        pads = list(g.attribute(node, "pads", (0,) * 2 * len(sides)))
        late, counts = False, []
        for k, side in enumerate(sides):
            reach, before = dilations[k] * (kernel[k] - 1) + 1, pads[k]
            count = -(-(side + before + pads[k + len(sides)] - reach) // strides[k]) + 1
            starts_behind = (count - 1) * strides[k] >= side + before
            counts.append(count - starts_behind)
            late |= starts_behind
        if late and _without_ceil(node, sides, pads, counts):
            return True
    return False


def _without_ceil(node: g.Node, sides: tuple[int, ...], pads: list[int], counts: list[int]) -> bool:
    """Write a pool's number of windows as end padding; false where windows hang over padding that counts."""
    kernel, rank = g.attribute(node, "kernel_shape"), len(sides)
    strides, dilations = (g.attribute(node, k, (1,) * rank) for k in ("strides", "dilations"))
    ends = []
    for k, side in enumerate(sides):
        reach = dilations[k] * (kernel[k] - 1) + 1
        end = max((counts[k] - 1) * strides[k] + reach - side - pads[k], 0)
        if end > pads[k + rank] and g.attribute(node, "count_include_pad", 0):
            return False
        ends.append(end)
    g.set_attribute(node, "pads", [*pads[:rank], *ends])
    g.drop_attribute(node, "ceil_mode")
    return True


def _plain_casts(model: g.IrModel) -> bool:
    """CastLike, whose second input only lends its type, is nothing, or a Cast; true when there was one."""
    changed = False
    for node in g.nodes(model):
        if node.op_type != "CastLike" or node.outputs[0].is_graph_output():
            continue
        source, like = node.inputs
        if source is None or source.dtype is None or like is None or like.dtype is None:
            continue
        made, out = source, node.outputs[0]
        if source.dtype != like.dtype:
            cast = g.make_node("Cast", [source], [f"{out.name}.cast"], name=f"{node.name}.cast", to=int(like.dtype))
            made = cast.outputs[0]
            made.dtype, made.shape = like.dtype, out.shape
            g.insert_before(model, node, [cast])
        g.replace_uses(out, made)
        g.remove_node(model, node)
        changed = True
    return changed


def _plain_gemms(model: g.IrModel) -> None:
    """alpha * A * B + beta * C with constant B and C is A * (alpha * B) + (beta * C), C one number per column."""
    for node in g.nodes(model):
        weight = g.constant(node.inputs[1]) if node.op_type == "Gemm" else None
        if weight is None or weight.dtype != np.float32:
            continue
        bias_value = node.inputs[2] if len(node.inputs) > 2 else None
        bias = g.constant(bias_value)
        if bias_value is not None and bias is None:
            continue
        alpha, beta = g.attribute(node, "alpha", 1.0), g.attribute(node, "beta", 1.0)
        columns = weight.shape[0 if g.attribute(node, "transB", 0) else 1]
        if alpha != 1.0:
            scaled = g.add_constant(model, f"{node.outputs[0].name}.weight", (alpha * weight).astype(np.float32))
            node.replace_input_with(1, scaled)
        per_column = bias is None or bias.shape[:-1] == (1,) * (bias.ndim - 1)
        if bias is not None and per_column and (beta != 1.0 or bias.shape != (columns,)):
            made = np.broadcast_to(beta * bias.reshape(-1), (columns,)).astype(np.float32)
            node.replace_input_with(2, g.add_constant(model, f"{node.outputs[0].name}.bias", made))
        g.drop_attribute(node, "alpha")
        if per_column:
            g.drop_attribute(node, "beta")


_NEVER_FOLDED = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial",
                           "Bernoulli", "If", "Loop", "Scan", "QuantizeLinear", "DequantizeLinear"})  # fmt: skip


_GROWING = frozenset({"ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "OneHot", "EyeLike"})
"""Operators whose small inputs can ask for a huge result: computed ahead only when its size is known."""


def _fold_constants(model: g.IrModel) -> bool:
    """Compute what depends on constants and static shapes only; true when anything was."""
    changed = False
    for node in g.nodes(model):
        if node.domain not in ("", "ai.onnx") or node.op_type in _NEVER_FOLDED or _expands_stored(node):
            continue
        results = _evaluate(model, node)
        if results is None:
            continue
        for value, array in zip(node.outputs, results):
            if value.is_graph_output():
                break
            name = f"{value.name}.folded"
            made = g.add_constant(model, name, array)
            g.replace_uses(value, made)
            changed = True
        else:
            g.remove_node(model, node)
    return changed


def _expands_stored(node: g.Node) -> bool:
    """A Cast of weights that are stored as integers: folding it would undo the compression."""
    if node.op_type != "Cast":
        return False
    array = g.constant(node.inputs[0])
    return array is not None and array.dtype in (np.int8, np.int16)


def _evaluate(model: g.IrModel, node: g.Node) -> list[NDArray] | None:
    if any(v.is_graph_output() for v in node.outputs):
        return None
    if node.op_type == "Shape":
        shape = g.static_shape(node.inputs[0])
        if shape is None:
            return None
        start, end = g.attribute(node, "start", 0), g.attribute(node, "end", None)
        return [np.asarray(shape, np.int64)[start:end]]
    if node.op_type == "Size":
        shape = g.static_shape(node.inputs[0])
        return None if shape is None else [np.asarray(int(np.prod(shape)), np.int64)]
    feeds = [(v, g.constant(v)) for v in node.inputs if v is not None]
    if not feeds or any(array is None for _, array in feeds):
        return None
    if sum(array.size for _, array in feeds if array is not None) > MAX_FOLDED_ELEMENTS:
        return None
    sizes = [g.static_shape(v) for v in node.outputs]
    if node.op_type in _GROWING and any(s is None or np.prod(s, dtype=float) > MAX_FOLDED_ELEMENTS for s in sizes):
        return None
    return _run_alone(model, node, {v.name: a for v, a in feeds if v.name and a is not None})


def _run_alone(model: g.IrModel, node: g.Node, feeds: dict[str, NDArray]) -> list[NDArray] | None:
    """One node by ONNX's reference implementation; None when it has none for this operator."""
    from onnx.reference import ReferenceEvaluator

    single = g.node_proto(node)
    graph = onnx.helper.make_graph(
        [single],
        "alone",
        [
            onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in feeds.items()
        ],
        [onnx.helper.make_empty_tensor_value_info(o) for o in single.output],
    )
    imports = [onnx.helper.make_opsetid("", g.opset(model))]
    try:
        results = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=imports)).run(None, feeds)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError, KeyError):
        return None
    arrays = [np.asarray(r) for r in results]
    return None if any(a.size > MAX_FOLDED_ELEMENTS or a.dtype == object for a in arrays) else arrays
