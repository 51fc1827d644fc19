"""A graph as the sequence of operations that are computed as one, and in which form: the reference and the lowering
both follow this list.

A unit is one operation. So is an Add, Mul or Concat with the Relu or Clip behind it, where only the latter has codes.
Every other node stands alone. An operation computes on codes when every operand and result has an encoding that its
integer form can take; else it computes in float: codes are dequantized for it, and quantized again behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model
from roadworthy.model.units import Unit, units
from roadworthy.run.arithmetic.epilogue import int8_refusal
from roadworthy.run.arithmetic.functions import NONE, Function
from roadworthy.run.arithmetic.nodes import function_of_node
from roadworthy.run.arithmetic.tables import add_constants, clamp_codes, u8_encoding

Form = Literal["float", "unit", "add", "mul", "concat", "average", "linear", "move", "table"]

MOVES = frozenset({"MaxPool", "GlobalMaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice",
                   "Split", "Gather", "DepthToSpace", "SpaceToDepth", "Identity", "Dropout", "Pad", "Expand", "Tile",
                   "Resize"})  # fmt: skip
_KEEPS_CHANNELS = frozenset({"MaxPool", "GlobalMaxPool", "Identity", "Dropout", "Resize"})
"""Moves for which a scale per channel stays with its channel."""
_MERGES = {"Add": "add", "Mul": "mul", "Concat": "concat"}


@dataclass(frozen=True, eq=False)
class Operation:
    """What is computed as one.

    nodes: in execution order.   form: float, or which integer form.   unit: the unit, if it is one.
    clamp: the Relu or Clip behind an add, mul or concat; NONE without one.   output: what the rest of the graph reads
    (the first output, for a Split).   refusal: why a unit computes in float.
    """

    nodes: tuple[g.Node, ...]
    form: Form
    output: g.Value
    unit: Unit | None = None
    clamp: Function = NONE
    refusal: str | None = None

    @property
    def inputs(self) -> tuple[g.Value, ...]:
        """The values computed at run time that it reads."""
        return tuple(v for v in self.nodes[0].inputs if v is not None and g.constant(v) is None)


def code_encodings(model: Model) -> Mapping[str, Encoding]:
    """The encodings of a model with all activations as unsigned 8-bit codes.

    Raises UnsupportedError for an activation with other than 8 bits.
    """
    found = dict(model.encodings)
    for name, value in g.values(model.ir).items():
        if name in found and g.constant(value) is None:
            made = u8_encoding(found[name])
            if made is None:
                raise UnsupportedError(
                    f"the value {name!r} has codes of {found[name].bits} bits; the engine computes on 8-bit ones"
                )
            found[name] = made
    return MappingProxyType(found)


def operations(model: Model) -> list[Operation]:
    """The operations of a model in execution order."""
    encodings = code_encodings(model)
    by_node = {id(n): u for u in units(model.ir) for n in u.nodes}
    found: list[Operation] = []
    done: set[int] = set()
    for node in g.nodes(model.ir):
        if id(node) in done:
            continue
        unit = by_node.get(id(node))
        if unit is not None:
            reason = int8_refusal(unit, encodings)
            made = Operation(unit.nodes, "float" if reason else "unit", unit.output, unit, refusal=reason)
        else:
            made = _with_clamp(node, encodings) or Operation((node,), _form(node, encodings), node.outputs[0])
        done.update(id(n) for n in made.nodes)
        found.append(made)
    return found


def plain_function(node: g.Node, encodings: Mapping[str, Encoding]) -> Function | None:
    """The function of one value that a node computes, unless one of its numbers is itself rounded to codes."""
    if any(v is not None and g.constant(v) is not None and v.name in encodings for v in node.inputs):
        return None
    return function_of_node(node)


def _with_clamp(node: g.Node, encodings: Mapping[str, Encoding]) -> Operation | None:
    """A merge whose one reader is a Relu or Clip, when the result has codes behind it alone."""
    out = node.outputs[0]
    if node.op_type not in _MERGES or str(out.name) in encodings or out.is_graph_output():
        return None
    readers = [use.node for use in out.uses()]
    if len(readers) != 1 or readers[0].op_type not in ("Relu", "Clip") or readers[0].inputs[0] is not out:
        return None
    clamp = plain_function(readers[0], encodings)
    result = readers[0].outputs[0]
    if clamp is None or clamp.clamp is None or str(result.name) not in encodings:
        return None
    form = _merge_form(node, encodings, encodings[str(result.name)], clamp)
    return None if form is None else Operation((node, readers[0]), form, result, clamp=clamp)


def _merge_form(
    node: g.Node, encodings: Mapping[str, Encoding], result: Encoding, clamp: Function = NONE
) -> Form | None:
    sources = [encodings.get(str(v.name)) if v is not None and g.constant(v) is None else None for v in node.inputs]
    if any(e is None or e.axis is not None for e in sources):
        return None
    codes = clamp_codes(result, clamp)
    if node.op_type == "Add" and len(sources) == 2:
        rank = len(g.static_shape(node.outputs[0]) or ())
        first, second = sources
        assert first is not None and second is not None
        fits = result.axis is None or (result.axis == 1 and rank == 4)
        return "add" if fits and add_constants(first, second, result, codes.shape[1], clamp) is not None else None
    if result.axis is not None:
        return None
    return {"Mul": "mul", "Concat": "concat"}.get(node.op_type)  # type: ignore[return-value]


def _form(node: g.Node, encodings: Mapping[str, Encoding]) -> Form:
    source = node.inputs[0] if node.inputs else None
    results = [encodings.get(str(v.name)) for v in node.outputs if g.is_read(v)]
    if source is None or not results or node.domain not in ("", "ai.onnx"):
        return "float"
    result = results[0]
    if result is None:
        return "float"
    if node.op_type in _MERGES:
        merged = _merge_form(node, encodings, result)
        if merged is not None:
            return merged
    taken = encodings.get(str(source.name)) if g.constant(source) is None else None
    if taken is None:
        return "float"
    if node.op_type in MOVES:
        return _move_form(node, taken, results)
    if taken.axis is None and result.axis is None:
        if averages(node):
            return "average"
        runtime = {id(v) for v in node.inputs if v is not None and g.constant(v) is None}
        if len(runtime) == 1 and plain_function(node, encodings) is not None:
            return "table"
    return "float"


def averages(node: g.Node) -> bool:
    """Whether a node averages over pixels: a pool, or a mean over the last two of four dimensions."""
    if node.op_type in ("AveragePool", "GlobalAveragePool"):
        return len(g.static_shape(node.inputs[0]) or ()) == 4
    if node.op_type != "ReduceMean":
        return False
    axes = reduced_axes(node)
    return len(g.static_shape(node.inputs[0]) or ()) == 4 and axes == (2, 3)


def reduced_axes(node: g.Node) -> tuple[int, ...]:
    """The axes that a Reduce operator takes away, ascending; given as an attribute or, since opset 18, as an input."""
    rank = len(g.static_shape(node.inputs[0]) or ())
    axes = g.attribute(node, "axes", None)
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        array = g.constant(node.inputs[1])
        if array is None:
            raise UnsupportedError(
                f"{node.op_type} {node.name!r} computes its axes at run time; export it with fixed ones"
            )
        axes = tuple(int(a) for a in array)
    if not axes:
        return () if g.attribute(node, "noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(a % rank for a in axes))


def _move_form(node: g.Node, source: Encoding, results: list[Encoding | None]) -> Form:
    if any(r != source for r in results) or (source.axis is not None and node.op_type not in _KEEPS_CHANNELS):
        return "float"
    if node.op_type == "MaxPool" and len(node.outputs) > 1 and g.is_read(node.outputs[1]):
        return "float"
    if node.op_type == "Resize":
        mode = g.attribute(node, "mode", "nearest")
        return "linear" if mode == "linear" else "move" if mode == "nearest" else "float"
    return "move"
