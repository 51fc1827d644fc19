"""Placement: which layers run in int8 on a target, and which values therefore need an encoding. Topology only.

Two walks over the graph. Forward: a value is *available* in int8 when an int8 layer makes it, when it is the image
itself, or when an operator that only moves or merges values makes it from available ones. Backward: the inputs of int8
layers are *wanted*, and what is wanted and available pulls its own sources in.

A Concat at the tail is wanted by nobody, so boxes and scores of very different range are never forced onto one scale;
one in the middle of the network keeps a scale of its own per input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from roadworthy.model import graph as g
from roadworthy.model.units import Unit, units
from roadworthy.run.runner import Target

TAIL_SHARE = 0.001
"""A last layer with less than this share of all multiplications gains nothing from int8 and stays in float."""


@dataclass(frozen=True)
class Placement:
    """The outcome for one graph and target.

    int8: names of the units that run in int8.   why_float: unit name -> reason, for all others.
    source: value name -> the value whose encoding it uses; a value that is quantized on its own maps to itself.
    merges: Concat output -> its inputs, for Concats that are computed on codes.
    results: values behind which no weighted operator follows on the way to an output.
    channels: values with one scale per channel, as only depthwise convolutions read them.
    tables: value in front of an activation -> value behind it, where the target could compute that by a table.
    """

    int8: frozenset[str]
    why_float: Mapping[str, str]
    source: Mapping[str, str]
    merges: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    results: frozenset[str] = frozenset()
    channels: frozenset[str] = frozenset()
    tables: Mapping[str, str] = field(default_factory=dict)

    @property
    def observed(self) -> tuple[str, ...]:
        """Names of the values that calibration has to look at: those quantized on their own in graph order, then the
        values in front of activations."""
        return tuple(dict.fromkeys((*self.source.values(), *self.tables)))


def multiplications(unit: Unit) -> int:
    """Multiply-accumulates of a unit for one image; 0 where shapes are unknown."""
    weight = g.constant(unit.weight)
    out = g.static_shape(unit.anchor.outputs[0])
    if weight is None or out is None:
        return 0
    if unit.anchor.op_type == "Conv":
        return int(np.prod(out)) * int(np.prod(weight.shape[1:]))
    if unit.anchor.op_type == "ConvTranspose":
        source = g.static_shape(unit.input)
        return 0 if source is None else int(np.prod(source)) * int(np.prod(weight.shape[1:]))
    inner = (0 if unit.weight_axis else 1) if unit.anchor.op_type == "Gemm" else max(weight.ndim - 2, 0)
    return int(np.prod(out)) * int(weight.shape[inner])


def quantized_point(unit: Unit, target: Target) -> g.Value:
    """The value at which an int8 unit's result becomes codes: behind the activation where the target computes it
    inside the layer, else right behind the weighted operator."""
    act = unit.activation
    if act is None or act in target.fused_activations or act in target.unit_activations:
        return unit.output
    return before_activation(unit)


def _behind_bias(unit: Unit) -> g.Value:
    return (unit.bias_add or unit.anchor).outputs[0]


def _needs_output(target: Target) -> bool:
    """Whether an int8 layer must have a quantized output (a target without float output from int8 layers)."""
    return not target.unit_activations


def activation_inputs(node: g.Node) -> list[g.Value]:
    """The inputs of a node that are computed at run time."""
    return [v for v in node.inputs if v is not None and g.constant(v) is None]


def passes_through(node: g.Node, target: Target) -> bool:
    """Whether the node's outputs hold the very codes of its first input, so that they share one encoding."""
    if node.op_type not in target.passthrough_ops:
        return False
    if node.op_type == "MaxPool":  # its second output counts positions, which are no codes
        return len(node.outputs) < 2 or not g.is_read(node.outputs[1])
    if node.op_type == "Resize":  # a cubic overshoots the range of its input, a crop invents values
        cropped = g.attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
        return not cropped and g.attribute(node, "mode", "nearest") in ("nearest", "linear")
    if node.op_type == "Pad":  # zero has a code in every encoding; another number may lie outside the range
        number = node.inputs[2] if len(node.inputs) > 2 else None
        constant = g.attribute(node, "mode", "constant") == "constant"
        return not constant or number is None or ((n := g.constant(number)) is not None and not n.any())
    return True


def _behind_relu(node: g.Node, target: Target) -> g.Node | None:
    """The weightless operator whose ReLU this node is (Add + Relu of a residual block)."""
    if node.op_type not in target.fused_activations or not node.inputs or node.inputs[0] is None:
        return None
    maker = node.inputs[0].producer()
    if maker is None or maker.op_type not in ("Add", "Concat") or maker.op_type not in target.int8_ops:
        return None
    lone = len(list(node.inputs[0].uses())) == 1 and not node.inputs[0].is_graph_output()
    return maker if lone else None


def place(
    model: g.IrModel, target: Target, keep_float: frozenset[str] = frozenset(), apart: frozenset[str] = frozenset()
) -> Placement:
    """Decide what runs in int8.   keep_float: names of units that must not.   apart: outputs of Concats that must not
    be computed on codes, because their inputs have incompatible ranges."""
    all_units = units(model)
    why: dict[str, str] = {}
    total = sum(multiplications(u) for u in all_units) or 1
    tails = _tail_units(model, all_units)
    for unit in all_units:
        if unit.name in keep_float:
            why[unit.name] = "kept in float"
        elif unit.anchor.op_type not in target.int8_ops:
            why[unit.name] = f"{target.name} has no int8 {unit.anchor.op_type}"
        elif not unit.per_channel:
            why[unit.name] = "its weights cannot have one scale per output channel"
        elif g.attribute(unit.anchor, "alpha", 1.0) != 1.0 or g.attribute(unit.anchor, "beta", 1.0) != 1.0:
            why[unit.name] = "its alpha or beta is not 1"
        elif not target.whole and unit.name in tails and multiplications(unit) < TAIL_SHARE * total:
            why[unit.name] = "a last layer too small to gain"
    chosen = [u for u in all_units if u.name not in why]
    available = _available(model, chosen, target) - apart
    source, merges = _wanted(model, chosen, available, target)
    channels = _channel_values(model, chosen, source) if target.channel_activations else frozenset()
    tables = _tables(chosen, source, channels, target) if target.tables else {}
    results = _results(model, all_units) & set(source)
    return Placement(frozenset(u.name for u in chosen), why, source, merges, results, channels, tables)


def _tail_units(model: g.IrModel, all_units: list[Unit]) -> set[str]:
    """Units behind which no other unit follows."""
    anchors = {id(u.anchor) for u in all_units}
    feeds_unit: set[str] = set()
    for node in reversed(g.nodes(model)):
        if id(node) in anchors or any(v.name in feeds_unit for v in node.outputs):
            feeds_unit.update(str(v.name) for v in activation_inputs(node))
    return {u.name for u in all_units if str(u.output.name) not in feeds_unit}


def _results(model: g.IrModel, all_units: list[Unit]) -> frozenset[str]:
    anchors = {id(u.anchor) for u in all_units}
    found = {str(v.name) for v in g.outputs(model)}
    for node in reversed(g.nodes(model)):
        if id(node) not in anchors and any(v.name in found for v in node.outputs):
            found.update(str(v.name) for v in activation_inputs(node))
    return frozenset(found)


def _available(model: g.IrModel, chosen: list[Unit], target: Target) -> set[str]:
    made_by_unit = {str(quantized_point(u, target).name) for u in chosen}
    inside = {id(n): u for u in chosen for n in u.nodes}
    found = {str(v.name) for v in g.inputs(model)}
    for node in g.nodes(model):
        sources = [str(v.name) for v in activation_inputs(node)]
        outs = [str(v.name) for v in node.outputs]
        if id(node) in inside:
            # Inside a unit whose activation the target does not fuse: each further operator stands for itself.
            found.update(o for o in outs if o in made_by_unit)
            if outs[0] in found or node is inside[id(node)].anchor:
                continue
        relu_of = _behind_relu(node, target)
        if relu_of is not None:
            sources = [str(v.name) for v in activation_inputs(relu_of)]
            if sources and all(s in found for s in sources) and len(sources) == len(relu_of.inputs):
                found.update(outs)
            continue
        if passes_through(node, target) or (id(node) in inside and node.op_type in target.int8_ops):
            if sources and all(s in found for s in sources):
                found.update(outs)
            continue
        weightless = node.op_type in target.int8_ops and id(node) not in inside and _stands_alone(node, target)
        # Every operand must be an int8 activation: a constant one would need codes of its own. Limits and axes do not.
        operands = 1 if node.op_type in _SETTINGS else len(node.inputs)
        if weightless and sources and len(sources) == operands and all(s in found for s in sources):
            found.update(outs)
    return found


_ONLY_IN_UNITS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Softmax"})
_SETTINGS = frozenset({"Clip", "ReduceMean"})
"""Operators whose inputs behind the first are settings."""


def _stands_alone(node: g.Node, target: Target) -> bool:
    """Whether an operator of int8_ops computes on codes outside a unit, too."""
    if node.op_type in _ONLY_IN_UNITS:
        return False
    if node.op_type in ("Sigmoid", "LeakyRelu"):  # between Q and DQ the other runtimes compute them in float
        return target.tables
    if node.op_type == "ReduceMean":
        axes = g.attribute(node, "axes")
        if axes is None and len(node.inputs) > 1 and (given := g.constant(node.inputs[1])) is not None:
            axes = tuple(int(a) for a in given.reshape(-1))
        shape = g.static_shape(node.inputs[0])
        return axes is not None and shape is not None and len(shape) == 4 and {a % 4 for a in axes} == {2, 3}
    return True


def is_depthwise(unit: Unit) -> bool:
    """Whether every output channel reads one input channel, its own."""
    weight = g.constant(unit.weight)
    if unit.anchor.op_type != "Conv" or weight is None:
        return False
    return weight.shape[0] > 1 and weight.shape[1] == 1 and weight.shape[0] == g.attribute(unit.anchor, "group", 1)


def _channel_values(model: g.IrModel, chosen: list[Unit], source: Mapping[str, str]) -> frozenset[str]:
    """Values with codes of their own that only depthwise int8 convolutions read."""
    deep = {id(u.anchor) for u in chosen if is_depthwise(u)}
    made_by_conv = {str(u.output.name) for u in units(model) if u.anchor.op_type == "Conv"}
    shared = {origin for name, origin in source.items() if name != origin}
    found = set()
    for name, value in g.values(model).items():
        if source.get(name) != name or name in shared or value.is_graph_output():
            continue
        maker = value.producer()
        if maker is not None and maker.op_type in ("Relu", "Clip") and maker.inputs[0] is not None:
            maker = maker.inputs[0].producer() or maker
        # Other operators compute on codes with one scale.
        able = maker is None or name in made_by_conv or maker.op_type == "Add"
        if able and all(id(use.node) in deep and use.idx == 0 for use in value.uses()):
            found.add(name)
    return frozenset(found)


def _tables(chosen: list[Unit], source: Mapping[str, str], channels: frozenset[str], target: Target) -> dict[str, str]:
    found = {}
    for unit in chosen:
        name = str(unit.output.name)
        if unit.activation in target.unit_activations and name in source and name not in channels:
            found[str(before_activation(unit).name)] = name
    return found


def before_activation(unit: Unit) -> g.Value:
    """The weighted operator's result, bias included, that the activation is applied to."""
    return unit.anchor.outputs[0] if unit.anchor.op_type != "MatMul" else _behind_bias(unit)


def _wanted(
    model: g.IrModel, chosen: list[Unit], available: set[str], target: Target
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    anchor_of = {id(u.anchor): u for u in chosen}
    in_unit = {id(n): u for u in chosen for n in u.nodes}
    wanted: set[str] = set()
    share: dict[str, str] = {}
    merges: dict[str, tuple[str, ...]] = {}
    for unit in chosen:
        wanted.add(str(unit.input.name))
        if _needs_output(target):
            wanted.add(str(quantized_point(unit, target).name))
    for node in reversed(g.nodes(model)):
        outs = [str(v.name) for v in node.outputs]
        if not any(o in wanted for o in outs):
            continue
        if id(node) in anchor_of:
            continue
        own = in_unit.get(id(node))
        if own is not None and str(own.output.name) in outs and quantized_point(own, target) is own.output:
            continue
        if not all(o in available for o in outs if o in wanted):
            continue
        if passes_through(node, target):
            origin = str(activation_inputs(node)[0].name)
            wanted.add(origin)
            for value in node.outputs:
                if g.is_read(value):
                    wanted.add(str(value.name))
                    share[str(value.name)] = origin
            continue
        maker = _behind_relu(node, target) or node
        sources = tuple(str(v.name) for v in activation_inputs(maker))
        wanted.update(sources)
        if maker.op_type == "Concat":
            merges[outs[0]] = sources
    order = [str(v.name) for v in g.inputs(model)] + [str(v.name) for n in g.nodes(model) for v in n.outputs]
    source: dict[str, str] = {}
    for name in order:
        if name in wanted:
            origin = share.get(name, name)
            source[name] = source.get(origin, origin)
    return source, merges
