"""The names of an exported module: outputs, nodes by the path of the module that made them, and tensors by their own.

Works on what PyTorch's exporter hands out, and needs no PyTorch itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from roadworthy.model import graph as g
from roadworthy.model import state
from roadworthy.model.model import Model, load

_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where the exporter says which modules made a node: a list of paths, outermost first, then the operation."""


def name_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """Each output behind an Identity of its own, which the canonical form drops where it can: a module may return one
    tensor twice, or its input. What bears such a name inside gives it up."""
    taken = {o: f"{o}.inner" for node in proto.graph.node for o in node.output if o in names}
    for node in proto.graph.node:
        for values in (node.input, node.output):
            values[:] = [taken.get(v, v) for v in values]
    for value, name in zip(proto.graph.output, names):
        proto.graph.node.append(onnx.helper.make_node("Identity", [taken.get(value.name, value.name)], [name]))
        value.name = name
    del proto.graph.value_info[:]


def name_nodes(proto: onnx.ModelProto) -> None:
    """`backbone.stage1.0/Conv`: the path of the module, then the operator; a number where it occurs again."""
    count: dict[str, int] = {}
    made_by: dict[str, str] = {}
    for node in proto.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), None)
        paths = [s for s in re.findall(r"'([^']*)'", scopes or "")[:-1] if s]
        path = paths[-1] if paths else "module"
        if scopes is None:  # a node of the exporter's own: of the module that made what it reads
            path = next((made_by[i] for i in node.input if i in made_by), path)
        made_by.update(dict.fromkeys(node.output, path))
        name = f"{path}/{node.op_type}"
        count[name] = count.get(name, 0) + 1
        node.name = name if count[name] == 1 else f"{name}.{count[name]}"


def named(model: Model, proto: onnx.ModelProto, parameters: set[str], buffers: set[str]) -> Model:
    """The model with every tensor of the module under its name, and the note that says where each lies.

    A transposed or reshaped parameter is folded into a constant of another name. Which one is which is found by a
    second model whose parameters are random numbers: equal content then means equal origin. The proto is used up.
    """
    shapes = {t.name: tuple(t.dims) for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    own = parameters | buffers
    shapes = {name: shape for name, shape in shapes.items() if name in own}
    ir = g.clone(model.ir)
    _drop_zero_biases(ir, own)
    notes: dict[str, state.Note | None] = {}
    values = g.values(ir)
    lost = {}
    for name, shape in shapes.items():
        trained = {"trained": True} if name in parameters else {}
        array = g.constant(values.get(name))
        if array is not None and array.shape == shape:
            notes[name] = {"at": name, "shape": list(shape), **trained}
        else:
            notes[name], lost[name] = None, trained
    if lost:
        marks = _marks(proto, lost)
        marked = {n: a for n, v in g.values(load(proto).ir).items() if (a := g.constant(v)) is not None}
        for name, trained in lost.items():
            shape = shapes[name]
            matches = [(at, perm) for at, a in marked.items() if (perm := _layout(marks[name], a)) is not None]
            if len(matches) == 1:  # in several layouts they would be trained apart
                at, perm = matches[0]
                values[at].name = name
                notes[name] = {"at": name, "shape": list(shape), **({"perm": perm} if perm else {}), **trained}
    state.set_notes(ir, notes)
    return replace(model, ir=ir)


def _drop_zero_biases(ir: g.IrModel, own: set[str]) -> None:
    """The exporter gives every convolution a bias; one that the module does not have would be trained for nothing."""
    for node in g.nodes(ir):
        bias = node.inputs[2] if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) > 2 else None
        array = g.constant(bias)
        if bias is not None and array is not None and bias.name not in own and not array.any():
            node.resize_inputs(2)
            g.drop_constant(ir, str(bias.name))


def _marks(proto: onnx.ModelProto, names: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Random numbers in place of the named initializers, which the proto is given."""
    rng, marks = np.random.default_rng(0), {}
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            marks[tensor.name] = 1 + rng.random(tuple(tensor.dims)).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(marks[tensor.name], tensor.name))
    return marks


def _layout(mark: NDArray, array: NDArray) -> list[int] | None:
    """How the axes of a parameter lie in a constant: [] in order, or a permutation; None where they do not."""
    if array.size != mark.size or array.dtype != mark.dtype:
        return None
    if np.array_equal(mark.reshape(-1), array.reshape(-1)):
        return []
    for perm in permutations(range(mark.ndim)) if mark.ndim <= 4 else ():
        if np.array_equal(mark.transpose(perm).reshape(-1), array.reshape(-1)):
            return list(perm)
    return None
