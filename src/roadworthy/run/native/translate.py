"""The translation of a graph into a `Network`: which operation computes what, and on codes or in float.

A value with an encoding is an array of codes. An operation computes on codes where everything it touches has codes and
docs/engine.md gives it a form; otherwise in float32, on dequantized copies of its operands, and its result becomes
codes where it is made. Values that only move stay codes until a float operation reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model
from roadworthy.model.units import Unit, units
from roadworthy.run.arithmetic import requant_table, u8_encoding
from roadworthy.run.native.network import Array, Form, Network, Operand, constant_array, is_image
from roadworthy.run.native.plan import INPUT, OUTPUT, Op
from roadworthy.run.native.views import Map, View

Handler = Callable[["Translator", g.Node], None]


def same(view: View) -> View:
    return view


class Translator:
    """Walks the graph once.

    arrays: value name -> its array, in codes where there are some.   floats: value name -> its dequantized copy.
    lazy: nodes that were fused into another; they are translated after all when something else reads them.
    """

    def __init__(self, model: Model, handlers: Mapping[str, Handler], layer: Callable[[Translator, Unit], None]) -> None:
        self.model = model
        self.handlers = handlers
        self.layer = layer
        self.network = Network()
        self.arrays: dict[str, Array] = {}
        self.floats: dict[str, Array] = {}
        self.units = {id(u.anchor): u for u in units(model.ir)}
        self.lazy: set[int] = {id(n) for u in self.units.values() for n in u.nodes[1:]}
        self.encodings = _u8_activations(model)

    def run(self, outputs: Sequence[str], taps: Sequence[str]) -> Network:
        values = g.values(self.model.ir)
        for k, value in enumerate(g.inputs(self.model.ir)):
            self._input(value, k)
        for node in g.nodes(self.model.ir):
            if id(node) not in self.lazy and not self._known(node):
                self.translate(node)
        for k, name in enumerate((*outputs, *taps)):
            self._output(values[name], k)
        self.network.items = _needed(self.network)
        return self.network

    def _known(self, node: g.Node) -> bool:
        return all(str(v.name) in self.arrays for v in node.outputs if v.name)

    def translate(self, node: g.Node) -> None:
        """Translate a node, or the layer that it begins."""
        unit = self.units.get(id(node))
        if unit is not None:
            self.layer(self, unit)
            return
        handler = self.handlers.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if handler is None:
            raise unsupported(node, "the native engine has no such operator")
        handler(self, node)

    def array(self, value: g.Value | None) -> Array:
        """The array of a value: codes where it has some; constants become arrays of their own."""
        assert value is not None
        name = str(value.name)
        if name not in self.arrays:
            constant = g.constant(value)
            producer = value.producer()
            if constant is not None:
                self.arrays[name] = constant_array(name, constant)
            else:
                assert producer is not None
                self._translate_fused(producer, name)
        return self.arrays[name]

    def _translate_fused(self, node: g.Node, name: str) -> None:
        """A value inside a layer or a fused pattern that something reads all the same: work it out once more."""
        unit = self.units.get(id(node))
        if unit is None:
            self.translate(node)
            return
        kept = {k: v for k, v in self.arrays.items()}
        self.layer(self, _cut(unit, name))
        # What was there before stays what others read.
        self.arrays.update(kept)

    def float_array(self, value: g.Value | None) -> Array:
        """The array of a value in float32."""
        assert value is not None
        name = str(value.name)
        array = self.array(value)
        if array.encoding is None:
            return array
        if name not in self.floats:
            self.floats[name] = self.dequantize(array, f"{name}.float", name)
        return self.floats[name]

    def encoding(self, value: g.Value | None) -> Encoding | None:
        """The encoding that the model gives a value."""
        return None if value is None else self.encodings.get(str(value.name))

    def new(self, value: g.Value, encoding: Encoding | None, like: Sequence[Array] = ()) -> Array:
        """An array in the shape of a value."""
        return Array(str(value.name), shape_of(value), encoding, like=tuple(like))

    def settle(self, value: g.Value, made: Array) -> None:
        """Let `made` be the array of a value, quantized or requantized where the model wants other codes."""
        wanted = self.encoding(value)
        if wanted is not None and made.encoding is None:
            made = self.quantize(made, wanted, str(value.name))
        elif wanted is not None and made.encoding is not None and wanted != made.encoding:
            if made.encoding.axis is None and wanted.axis is None:
                made = self.table(made, requant_table(made.encoding, wanted), wanted, str(value.name))
            else:
                made = self.quantize(self.dequantize(made, f"{value.name}.float"), wanted, str(value.name))
        self.arrays[str(value.name)] = made

    def quantize(self, x: Array, encoding: Encoding, name: str, label: str = "") -> Array:
        return self._convert(Op.QUANTIZE, x, Array(name, x.dims, encoding, like=(x,)), encoding, label or name)

    def dequantize(self, x: Array, name: str, label: str = "") -> Array:
        assert x.encoding is not None
        return self._convert(Op.DEQUANTIZE, x, Array(name, x.dims, None, like=(x,)), x.encoding, label or name)

    def _convert(self, op: Op, x: Array, y: Array, encoding: Encoding, label: str) -> Array:
        form = elementwise_form(x.dims)
        axis = -1 if encoding.axis is None else encoding.axis % len(x.dims)
        if axis >= 0 and form == "pixels":
            axis = {1: 2, 2: 0, 3: 1}[axis]
        elif axis >= 0:
            form = "whole"
        scale = np.atleast_1d(encoding.scale).astype(np.float32).tobytes()
        zero = np.atleast_1d(encoding.zero_point).astype(np.int32).tobytes()
        return self.network.step(op, [Operand(x, form)], Operand(y, form), (axis,), (scale, zero), label)

    def table(self, x: Array, table: NDArray[np.uint8], encoding: Encoding, name: str) -> Array:
        """y = table[x]."""
        y = Array(name, x.dims, encoding, like=(x,))
        form = code_form(x.dims)
        blobs = (np.ascontiguousarray(table, np.uint8).tobytes(),)
        return self.network.step(Op.TABLE, [Operand(x, form)], Operand(y, form), (), blobs, name, pointwise=True)

    def copy(self, x: Operand, y: Operand, name: str) -> Array:
        return self.network.step(Op.COPY, [x], y, (), (), name)

    def link(self, source: Array, target: Array, forward: Map | None, backward: Map | None, name: str) -> Array:
        return self.network.link(source, target, forward, backward, name)

    def _input(self, value: g.Value, index: int) -> None:
        array = Array(str(value.name), shape_of(value), None, INPUT, index)
        self.network.inputs.append(array)
        self.settle(value, array)

    def _output(self, value: g.Value, index: int) -> None:
        array = self.array(value)
        result = Array(f"{value.name}", array.dims, None, OUTPUT, index)
        self.network.outputs.append(result)
        if array.encoding is None:
            self.link(array, result, same, same, str(value.name))
        else:
            self._convert(Op.DEQUANTIZE, array, result, array.encoding, str(value.name))


def _needed(network: Network) -> list:
    """Items that lead to an output, in order."""
    wanted = set(network.outputs)
    kept = []
    for item in reversed(network.items):
        target = item.target if hasattr(item, "target") else item.output.array
        if target in wanted:
            sources = [item.source] if hasattr(item, "source") else [o.array for o in item.inputs]
            wanted.update(sources)
            kept.append(item)
    return kept[::-1]


def _u8_activations(model: Model) -> dict[str, Encoding]:
    """The model's encodings, those of activations as unsigned 8-bit codes."""
    values = g.values(model.ir)
    made = dict(model.encodings)
    for name, encoding in model.encodings.items():
        if name in values and g.constant(values[name]) is None:
            moved = u8_encoding(encoding)
            if moved is None:
                raise UnsupportedError(
                    f"the value {name!r} has {encoding.bits}-bit codes, and the native engine computes with 8;"
                    " quantize it with 8 bits"
                )
            made[name] = moved
    return made


def _cut(unit: Unit, name: str) -> Unit:
    """The layer up to the anchor or its bias, whichever makes the value."""
    ends = [k for k, n in enumerate(unit.nodes) if any(v.name == name for v in n.outputs)]
    nodes = unit.nodes[: ends[0] + 1]
    output = nodes[-1].outputs[0]
    inner = tuple(v for n in nodes for v in n.outputs if v is not output)
    return Unit(unit.name, unit.anchor, nodes, None, inner, output)


def shape_of(value: g.Value) -> tuple[int, ...]:
    shape = g.static_shape(value)
    if shape is None:
        raise UnsupportedError(f"the shape of {value.name!r} is not known; give the model fixed sizes")
    return shape or (1,)


def unsupported(node: g.Node, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"{node.op_type} {node.name!r} cannot run natively: {reason}; choose another target, or replace the operator"
    )


def elementwise_form(dims: Sequence[int]) -> Form:
    """How an operation that takes any strides sees an array: images keep their shape, so that they can have borders."""
    return "pixels" if is_image(dims) else "free"


def code_form(dims: Sequence[int]) -> Form:
    """How an operation on (H,W,C) sees an array."""
    return "image" if is_image(dims) else "flat"
