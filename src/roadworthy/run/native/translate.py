"""The translation of a graph into a `Network`: which operation computes what, and on codes or in float.

A value with an encoding is an array of codes. An operation computes on codes where everything it touches has codes and
docs/engine.md gives it a form; otherwise in float32, on dequantized copies of its operands, and its result becomes
codes where it is made. Values that only move stay codes until a float operation reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model
from roadworthy.model.units import Unit
from roadworthy.run.arithmetic import (
    Arithmetic,
    Operation,
    code_encodings,
    float_between,
    operations,
    pre_activation,
)
from roadworthy.run.native.network import Array, Form, Link, Network, Operand, Step, constant_array, is_image
from roadworthy.run.native.plan import INPUT, OUTPUT, Op
from roadworthy.run.native.views import Map, View

Handler = Callable[["Translator", Operation], None]


def same(view: View) -> View:
    return view


class Translator:
    """Walks the operations of a graph once.

    arrays: value name -> its array, in codes where there are some.   floats: value name -> its dequantized copy.
    raw: the network's inputs as they come.
    makers: value name -> the operation inside which it is made.   skipped: operations that were fused into another;
    they are translated after all when something else reads them.   fixed: integer results come by fixed point.
    """

    def __init__(self, model: Model, handler: Callable[[Operation], Handler], arithmetic: Arithmetic = "float") -> None:
        self.model = model
        self.handler = handler
        self.network = Network()
        self.arrays: dict[str, Array] = {}
        self.floats: dict[str, Array] = {}
        self.raw: dict[str, Array] = {}
        self.encodings = code_encodings(model)
        self.operations = operations(model)
        self.fixed = arithmetic == "fixed"
        if self.fixed and (refusal := float_between(self.operations)) is not None:
            raise refusal
        self.makers = {str(v.name): op for op in self.operations for n in op.nodes for v in n.outputs}
        self.skipped: set[int] = set()

    def run(self, outputs: Sequence[str], taps: Sequence[str]) -> Network:
        values = g.values(self.model.ir)
        for k, value in enumerate(g.inputs(self.model.ir)):
            self._input(value, k)
        for operation in self.operations:
            if id(operation) not in self.skipped and str(operation.output.name) not in self.arrays:
                self.handler(operation)(self, operation)
        for k, name in enumerate((*outputs, *taps)):
            self._output(values[name], k)
        self.network.items = _needed(self.network)
        return self.network

    def array(self, value: g.Value | None) -> Array:
        """The array of a value: codes where it has some; constants become arrays of their own."""
        assert value is not None
        name = str(value.name)
        if name not in self.arrays:
            constant = g.constant(value)
            if constant is not None:
                self.arrays[name] = self._constant(name, constant)
            else:
                self._fused(self.makers[name], name)
        return self.arrays[name]

    def _constant(self, name: str, constant: NDArray) -> Array:
        encoding = self.encodings.get(name)
        if encoding is not None:  # a constant operand with codes of its own is rounded to them
            constant = encoding.fake(constant)
        return constant_array(name, constant)

    def _fused(self, operation: Operation, name: str) -> None:
        """A value inside a layer or a fused pattern that something reads all the same: work it out once more."""
        if str(operation.output.name) == name or len(operation.nodes) == 1:
            self.handler(operation)(self, operation)
            return
        kept = dict(self.arrays)
        rest = list(operation.nodes)
        if operation.unit is not None:
            unit = _cut(operation.unit, name)
            rest = rest[len(unit.nodes) :]
            cut = replace(operation, nodes=unit.nodes, output=unit.output, unit=unit)
            self.handler(cut)(self, cut)
        while name not in self.arrays:
            node = rest.pop(0)
            alone = Operation((node,), "float", node.outputs[0])
            self.handler(alone)(self, alone)
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
        """Let `made` be the array of a value, quantized anew where the model wants other codes."""
        wanted = self.encoding(value)
        if wanted is not None and wanted != made.encoding:
            made = self.coded(made, wanted, str(value.name))
        self.arrays[str(value.name)] = made

    def coded(self, x: Array, wanted: Encoding, name: str) -> Array:
        """The array quantized; for codes of another encoding what dequantizing and quantizing them gives."""
        if x.encoding is None:
            return self.quantize(x, wanted, name)
        if x.encoding.axis is None and wanted.axis is None:
            return self.table(x, wanted.quantize(x.encoding.dequantize(np.arange(256))), wanted, name)
        return self.quantize(self.dequantize(x, f"{name}.float"), wanted, name)

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
        self.raw[str(value.name)] = array
        self.settle(value, array)

    def _output(self, value: g.Value, index: int) -> None:
        array = self.array(value)
        result = Array(f"{value.name}", array.dims, None, OUTPUT, index)
        self.network.outputs.append(result)
        if array.encoding is None:
            self.link(array, result, same, same, str(value.name))
        else:
            self._convert(Op.DEQUANTIZE, array, result, array.encoding, str(value.name))


def _needed(network: Network) -> list[Step | Link]:
    """Items that lead to an output, in order."""
    wanted = set(network.outputs)
    kept: list[Step | Link] = []
    for item in reversed(network.items):
        target = item.target if isinstance(item, Link) else item.output.array
        if target in wanted:
            wanted.update([item.source] if isinstance(item, Link) else [o.array for o in item.inputs])
            kept.append(item)
    return kept[::-1]


def _cut(unit: Unit, name: str) -> Unit:
    """The layer without its activation: up to the pre-activation value, or the anchor's own if that is asked for."""
    output = unit.anchor.outputs[0] if unit.anchor.outputs[0].name == name else pre_activation(unit)
    nodes = unit.nodes[: 1 + next(k for k, n in enumerate(unit.nodes) if n.outputs[0] is output)]
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
