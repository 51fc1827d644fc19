"""The graph: the only importer of onnx_ir. Everything else handles its nodes and values, and builds them through here.

A graph is edited only by the function that has just cloned it; `Model` treats its graph as a value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common as passes

IrModel = ir.Model
Node = ir.Node
Value = ir.Value


def parse(proto: onnx.ModelProto) -> IrModel:
    """An onnx_ir model of a ModelProto."""
    return ir.from_proto(proto)


def to_proto(model: IrModel) -> onnx.ModelProto:
    return ir.to_proto(model)


def to_bytes(model: IrModel) -> bytes:
    """Serialized; the same graph gives the same bytes."""
    return to_proto(model).SerializeToString(deterministic=True)


def clone(model: IrModel) -> IrModel:
    """A copy that can be edited without the original noticing; tensors are shared, as they are never written to."""
    return model.clone()


def nodes(model: IrModel) -> list[Node]:
    """All nodes of the main graph in execution order."""
    return list(model.graph)


def inputs(model: IrModel) -> list[Value]:
    """The inputs a caller has to feed: initializers listed as inputs are not among them."""
    names = set(model.graph.initializers)
    return [v for v in model.graph.inputs if v.name not in names]


def outputs(model: IrModel) -> list[Value]:
    return list(model.graph.outputs)


def values(model: IrModel) -> dict[str, Value]:
    """Every value of the main graph by name: inputs, initializers and node outputs."""
    found: dict[str, Value] = {v.name: v for v in model.graph.inputs if v.name}
    found.update({n: v for n, v in model.graph.initializers.items()})
    for node in model.graph:
        found.update({v.name: v for v in node.outputs if v.name})
    return found


def node_proto(node: Node) -> onnx.NodeProto:
    """A node as protobuf, with its values by name."""
    return ir.serde.serialize_node(node)


def constant(value: Value | None) -> NDArray | None:
    """The array of an initializer or Constant, or None when the value is computed at run time."""
    if value is None:
        return None
    if value.is_initializer() and value.const_value is not None:
        return value.const_value.numpy()
    producer = value.producer()
    if producer is not None and producer.op_type == "Constant" and producer.domain in ("", "ai.onnx"):
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()
    return None


def is_read(value: Value) -> bool:
    """Whether a node or the caller reads the value."""
    return bool(list(value.uses())) or value.is_graph_output()


def static_shape(value: Value | None) -> tuple[int, ...] | None:
    """The shape when every dimension is a known number, else None."""
    if value is None or value.shape is None:
        return None
    dims = [d if isinstance(d, int) else None for d in value.shape]
    return None if any(d is None for d in dims) else tuple(int(d) for d in dims if d is not None)


def attribute(node: Node, name: str, default: Any = None) -> Any:
    """An attribute's plain value (int, float, str, tuple), or the default."""
    found = node.attributes.get(name)
    if found is None:
        return default
    value = found.value
    if isinstance(value, bytes):
        return value.decode()
    return tuple(value) if isinstance(value, list | tuple) else value


def set_attribute(node: Node, name: str, value: Any) -> None:
    node.attributes[name] = ir.convenience.convert_attribute(name, value)


def drop_attribute(node: Node, name: str) -> None:
    node.attributes.pop(name, None)


def add_constant(model: IrModel, name: str, array: NDArray) -> Value:
    """Register an initializer; a taken name raises ValueError."""
    if name in model.graph.initializers:
        raise ValueError(f"the name {name} is taken")
    array = np.asarray(array)
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def set_constant(value: Value, array: NDArray) -> None:
    """Replace the array of an initializer, in a graph that was just cloned, by a copy of this one."""
    array = np.array(array, order="C")  # a parameter in training, say, goes on changing
    # `ir.tensor` looks long at what it is given; training does this for every layer at each step.
    tensor = ir.Tensor(array, name=value.name) if array.dtype.kind in "fiub" else ir.tensor(array, name=value.name)
    value.const_value = tensor
    value.shape = ir.Shape(array.shape)
    value.dtype = tensor.dtype


def drop_constant(model: IrModel, name: str) -> None:
    """Remove an initializer that nobody reads any more."""
    value = model.graph.initializers.get(name)
    if value is not None and not value.uses():
        del model.graph.initializers[name]


def make_node(
    op_type: str,
    node_inputs: Sequence[Value | None],
    output_names: Sequence[str],
    *,
    name: str = "",
    domain: str = "",
    **attributes: Any,
) -> Node:
    """A node that is not in a graph yet; its outputs are new values of the given names."""
    made = [ir.Value(name=n) for n in output_names]
    return ir.node(op_type, list(node_inputs), attributes or None, domain=domain, outputs=made, name=name or None)


def insert_before(model: IrModel, anchor: Node | None, new: Iterable[Node]) -> None:
    """Insert nodes in front of a node, or at the end of the graph."""
    if anchor is None:
        model.graph.extend(list(new))
    else:
        model.graph.insert_before(anchor, list(new))


def insert_after(model: IrModel, anchor: Node, new: Iterable[Node]) -> None:
    model.graph.insert_after(anchor, list(new))


def insert_first(model: IrModel, new: Iterable[Node]) -> None:
    first = next(iter(model.graph), None)
    insert_before(model, first, new)


def remove_node(model: IrModel, node: Node) -> None:
    """Remove a node whose outputs nobody reads."""
    model.graph.remove(node, safe=True)


def replace_uses(old: Value, new: Value, *, outputs_too: bool = True) -> None:
    """Let every reader of `old` read `new`; the graph output as well, unless told otherwise."""
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=outputs_too)


def replace_output(model: IrModel, old: Value, new: Value) -> None:
    """Let `new` be the graph output in place of `old`."""
    for index, value in enumerate(model.graph.outputs):
        if value is old:
            model.graph.outputs[index] = new


def add_input(model: IrModel, name: str, like: Value) -> Value:
    """A new graph input with the type and shape of another value."""
    made = ir.Value(name=name, shape=like.shape, type=like.type or ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(made)
    return made


def set_shape(value: Value, shape: Sequence[int]) -> None:
    value.shape = ir.Shape(tuple(shape))


def drop_inferred_shapes(model: IrModel) -> None:
    """Forget the shapes of computed values, so that inference can state them anew for fixed input sizes."""
    for node in model.graph:
        for value in node.outputs:
            value.shape = None


def opset(model: IrModel) -> int:
    """Version of the standard operator set."""
    return int(model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0)))


def set_opset(model: IrModel, version: int, ir_version: int) -> None:
    """Declare another standard operator set, and the version of the file format that it needs at least."""
    model.opset_imports.pop("ai.onnx", None)
    model.opset_imports[""] = version
    model.ir_version = max(int(model.ir_version or 0), ir_version)


def metadata(model: IrModel) -> dict[str, str]:
    """The model's metadata; write into it only on a clone."""
    return model.metadata_props


def infer_shapes(model: IrModel) -> IrModel:
    """Static shapes and types of all values, by ONNX's own inference with data propagation."""
    passes.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    return model


def tidy(model: IrModel) -> IrModel:
    """Functions inlined, constants as initializers, initializers out of the inputs, dead nodes gone, all named."""
    for step in (
        passes.InlinePass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.RemoveInitializersFromInputsPass(),
    ):
        model = step(model).model
    _drop_identities(model)
    return passes.TopologicalSortPass()(passes.RemoveUnusedNodesPass()(model).model).model


def _drop_identities(model: IrModel) -> None:
    """Remove Identity nodes; one that makes an output gives its name to the value that it reads.

    It stays where that value has a name to keep: inputs, initializers, values of an outer graph, and outputs (of two
    outputs that are one value, onnx_ir's own pass loses the first one's name).
    """
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.op_type != "Identity" or node.domain not in ("", "ai.onnx") or node.inputs[0] is None:
            continue
        source, out = node.inputs[0], node.outputs[0]
        if out.is_graph_output():
            producer = source.producer()
            if producer is None or producer.graph is not node.graph or source.is_graph_output():
                continue
        if source.type is None:
            source.type = out.type
        if source.shape is None:
            source.shape = out.shape
        name = out.name if out.is_graph_output() else source.name
        replace_uses(out, source)
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        source.name = name


def drop_dead(model: IrModel) -> IrModel:
    """Remove nodes and initializers that no output needs."""
    return passes.RemoveUnusedNodesPass()(model).model


def strip_docs(model: IrModel) -> IrModel:
    """Remove doc strings and per-node metadata, which only cost bytes; the model's own metadata stays."""
    kept = dict(model.metadata_props)
    model = passes.ClearMetadataAndDocStringPass()(model).model
    model.metadata_props.update(kept)
    return model


def name_nodes(model: IrModel) -> None:
    """Give every node a unique name: its own, or operator and first output."""
    taken: set[str] = set()
    for node in model.graph:
        base = node.name or f"{node.op_type}:{node.outputs[0].name}"
        name, k = base, 1
        while name in taken:
            name, k = f"{base}.{k}", k + 1
        node.name = name
        taken.add(name)
