"""What a `QuantizedModule` computes: one function per form of operation, on codes without their zero point.

Each is its namesake in run/reference.py: the value to the last bit, and the gradient of what it stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding
from roadworthy.model.units import Unit
from roadworthy.run import arithmetic as ar
from roadworthy.run import reference_ops as ops
from roadworthy.run.reference_moves import blend, resized_shape
from roadworthy.run.torch.finish import Finish, Scales, anchor, centred, finish, function, torch_function
from roadworthy.run.torch.operators import OPERATORS
from roadworthy.run.torch.surrogates import round_to, round_to_levels

if TYPE_CHECKING:
    from roadworthy.run.torch.quantized import QuantizedModule


@dataclass(frozen=True, eq=False)
class Layer:
    """steps: the bias in steps of the accumulator.   shape: of what lies along the channels.   wide: sums could pass
    2^24.   quantized: which weights are rounded in this step, or None for all.   tabled: whether s_p matters."""

    finish: Finish
    steps: Tensor
    shape: tuple[int, ...]
    wide: bool
    quantized: Tensor | None
    tabled: bool
    operands: Operands | None = None


@dataclass(frozen=True, eq=False)
class Operands:
    """What a layer makes of its parameters.   w: codes of the weight.   steps: the bias.   scales: see `Scales`."""

    w: Tensor
    steps: Tensor
    scales: Scales

    def tensors(self) -> list[Tensor]:
        found = (self.w, self.steps, self.scales.acc, self.scales.out, self.scales.before)
        return [t for t in found if t is not None]

    def each(self, change: Callable[[Tensor], Tensor]) -> Operands:
        """The same with every tensor changed."""
        out, before = (None if t is None else change(t) for t in (self.scales.out, self.scales.before))
        return Operands(change(self.w), change(self.steps), Scales(change(self.scales.acc), out, before))


class State:
    """The values of one run: reals, or codes without their zero point."""

    def __init__(self, module: QuantizedModule, wanted: AbstractSet[str]) -> None:
        self.module = module
        self.wanted = wanted
        self.encodings = module.current
        self.reals: dict[str, Tensor] = {}
        self.codes: dict[str, Tensor] = {}

    def put(self, name: str, array: Tensor) -> None:
        """A computed value; rounded to codes where it has an encoding."""
        encoding = self.encodings.get(name)
        if encoding is None or not array.is_floating_point():
            self.reals[name] = array
        else:
            z = lay(encoding.zero_point, encoding, array)
            v = array / lay(self.module.scale(name), encoding, array)
            self.codes[name] = centred(v, z, encoding.qmin, encoding.qmax, self.module.gradient)

    def put_codes(self, value: g.Value, codes: Tensor) -> None:
        self.codes[str(value.name)] = codes

    def real_by_name(self, name: str) -> Tensor:
        if name not in self.reals:
            if name not in self.codes:
                return self.module.constant(name)
            codes, encoding = self.codes[name], self.encodings[name]
            self.reals[name] = codes * lay(self.module.scale(name), encoding, codes)
        return self.reals[name]

    def real(self, value: g.Value | None) -> Tensor | None:
        """The value as a float (or integer) tensor, a constant rounded where it has an encoding."""
        if value is None or value.name == "":
            return None
        name = str(value.name)
        if g.constant(value) is None:
            return self.real_by_name(name)
        tensor = self.module.constant(name)
        return self.rounded(name, tensor) if name in self.encodings else tensor

    def rounded(self, name: str, tensor: Tensor) -> Tensor:
        """A constant after a round trip through its codes."""
        encoding = self.encodings[name]
        scale = lay(self.module.scale(name), encoding, tensor)
        return self.constant_codes(name, tensor, scale, None) * scale

    def constant_codes(self, name: str, tensor: Tensor, scale: Tensor, quantized: Tensor | None) -> Tensor:
        """Codes of a constant, without zero point; the narrow range for signed ones."""
        encoding = self.encodings[name]
        u = tensor / scale
        if encoding.levels is not None:
            codes = round_to_levels(u, encoding.levels, self.module.gradient)
        else:
            z = lay(encoding.zero_point, encoding, tensor)
            lo = -encoding.qmax if encoding.signed else encoding.qmin
            codes = centred(u, z, lo, encoding.qmax, self.module.gradient)
        return codes if quantized is None else torch.where(quantized, codes, u)

    def operand(self, value: g.Value | None) -> tuple[Tensor, Encoding]:
        assert value is not None
        return self.codes[str(value.name)], self.encodings[str(value.name)]

    def scale_of(self, value: g.Value) -> Tensor:
        return self.module.scale(str(value.name))


def lay(values: object, encoding: Encoding, beside: Tensor) -> Tensor:
    """Scales or zero points shaped to lie along the axis of their encoding."""
    made = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values, np.float32))
    if encoding.axis is None:
        return made
    shape = [1] * beside.ndim
    shape[encoding.axis] = -1
    return made.reshape(shape)


# The forms of operations


def operands_of(state: State, unit: Unit, layer: Layer) -> Operands:
    """What a layer's parameters are now, with the way back to them."""
    module, name = state.module, str(unit.weight.name)
    weight, encoding = module.constant(name), state.encodings[name]
    channels = len(layer.steps)
    s_w = module.scale(name)
    w = state.constant_codes(name, weight, lay(s_w, encoding, weight), layer.quantized)
    scale = (state.scale_of(unit.input) * s_w).expand(channels)
    bias = _bias(module, unit, channels)
    steps = layer.steps if bias is None else anchor(layer.steps, bias / scale)

    def along(of: g.Value) -> Tensor:
        return state.scale_of(of).expand(channels).reshape(layer.shape)

    out = along(unit.output) if str(unit.output.name) in state.encodings else None
    before = along(ar.pre_activation(unit)) if layer.tabled else None
    return Operands(w, steps, Scales(scale.reshape(layer.shape), out, before))


def _unit(state: State, operation: ar.Operation) -> None:
    unit = operation.unit
    assert unit is not None
    layer = state.module.layers[unit.name]
    x, _ = state.operand(unit.input)
    k = layer.operands or operands_of(state, unit, layer)
    acc = _sums(unit, x, k.w, k.steps, layer)
    out, before = str(unit.output.name), str(ar.pre_activation(unit).name)
    made = finish(layer.finish, acc, k.scales, state.module.gradient)
    if layer.finish.kind == "real":
        state.put(out, made)
    else:
        state.codes[out] = made
    if any(str(v.name) in state.wanted for v in unit.inner):
        # What lies inside an integer layer is not held anywhere; for taps, its float meaning.
        state.reals[before] = acc * k.scales.acc
        for node in unit.nodes[_position(unit) + 1 : -1]:
            _node(state, node)


def _sums(unit: Unit, x: Tensor, w: Tensor, steps: Tensor, layer: Layer) -> Tensor:
    def total(x: Tensor, w: Tensor, steps: Tensor) -> Tensor:
        if unit.anchor.op_type == "Conv":
            return OPERATORS["Conv"](unit.anchor, [x, w, steps])[0]
        return x @ (w.T if unit.weight_axis == 0 else w) + steps

    made = total(x, w, steps)
    if layer.wide:
        with torch.no_grad():
            exact = total(x.double(), w.double(), steps.double()).float()
        made = anchor(exact, made)
    return made


def _bias(module: QuantizedModule, unit: Unit, channels: int) -> Tensor | None:
    """The bias per output channel, with its gradient."""
    if unit.anchor.op_type == "MatMul":
        add = unit.bias_add
        values = [] if add is None else [v for v in add.inputs if g.constant(v) is not None]
    else:
        values = [] if unit.bias is None else [unit.bias]
    return module.constant(str(values[0].name)).reshape(-1).expand(channels) if values else None  # type: ignore[union-attr]


def _position(unit: Unit) -> int:
    """Which of the unit's nodes makes the value in front of the activation."""
    made = ar.pre_activation(unit)
    return next(k for k, node in enumerate(unit.nodes) if node.outputs[0] is made)


def _float_unit(state: State, operation: ar.Operation) -> None:
    """The activation of a float layer is one function, as in an integer one, where the engine has it."""
    unit = operation.unit
    assert unit is not None
    try:
        which, head = ar.function_of_unit(unit), unit.nodes[: _position(unit) + 1]
    except UnsupportedError:
        which, head = None, unit.nodes
    found: dict[int, Tensor] = {}
    for node in head:
        inputs = [found[id(v)] if id(v) in found else state.real(v) for v in node.inputs]
        found.update({id(v): made for v, made in zip(node.outputs, OPERATORS[node.op_type](node, inputs))})
    last = found[id(head[-1].outputs[0])]
    state.put(str(unit.output.name), last if which is None else function(which, last))
    if any(str(v.name) in state.wanted for v in unit.inner):
        for node in unit.nodes[:-1]:
            _node(state, node)


def _float(state: State, operation: ar.Operation) -> None:
    for node in operation.nodes:
        _node(state, node)


def _node(state: State, node: g.Node) -> None:
    which = ar.plain_function(node, state.encodings)
    if which is not None:
        x = state.real(next(v for v in node.inputs if v is not None and g.constant(v) is None))
        if x is not None and x.is_floating_point():
            state.put(str(node.outputs[0].name), function(which, x))
            return
    for value, made in zip(node.outputs, OPERATORS[node.op_type](node, [state.real(v) for v in node.inputs])):
        if value.name:
            state.put(str(value.name), made)


def _move(state: State, operation: ar.Operation) -> None:
    node = operation.nodes[0]
    x, source = state.operand(node.inputs[0])
    inputs = [x, *(state.real(v) for v in node.inputs[1:])]
    if node.op_type == "Pad" and len(inputs) > 2 and inputs[2] is not None:
        fill = source.quantize(inputs[2].detach().numpy()).astype(np.float32) - source.zero_point
        inputs[2] = torch.from_numpy(np.asarray(fill, np.float32))
    for value, made in zip(node.outputs, OPERATORS[node.op_type](node, inputs)):
        if state.encodings.get(str(value.name)) == source:
            state.put_codes(value, made)
        elif value.name:  # a part that nobody reads, but a tap may
            state.put(str(value.name), made * lay(state.scale_of(node.inputs[0]), source, made))  # type: ignore[arg-type]


def _linear(state: State, operation: ar.Operation) -> None:
    node = operation.nodes[0]
    x, source = state.operand(node.inputs[0])
    z = lay(source.zero_point, source, x)
    q = (x.detach() + z).numpy()
    shape = resized_shape(node, [q, *(None if t is None else t.numpy() for t in map(state.real, node.inputs[1:]))])
    exact = torch.from_numpy(np.clip(np.rint(blend(node, q, shape)), 0, 255).astype(np.float32)) - z
    formula = OPERATORS["Resize"](node, [x, *(state.real(v) for v in node.inputs[1:])])[0]
    made = centred(formula, z, 0, 255, state.module.gradient)
    state.put_codes(operation.output, anchor(exact, made))


def _add(state: State, operation: ar.Operation) -> None:
    first, second = operation.nodes[0].inputs
    (a, a_code), (b, b_code) = state.operand(first), state.operand(second)
    target = state.encodings[str(operation.output.name)]
    channels = 1 if target.axis is None else len(target.scale)
    k = ar.add_constants(a_code, b_code, target, channels, operation.clamp)
    assert k is not None and first is not None and second is not None
    shape = (-1, 1, 1) if channels > 1 else ()
    s_y = state.scale_of(operation.output)
    z = torch.from_numpy(k.zero.astype(np.float32)).reshape(shape)  # one entry without channels
    m_a = anchor(torch.from_numpy(k.m_a.copy()), (state.scale_of(first) / s_y).expand(channels)).reshape(shape)
    m_b = anchor(torch.from_numpy(k.m_b.copy()), (state.scale_of(second) / s_y).expand(channels)).reshape(shape)
    made = centred(a * m_a + b * m_b, z, k.lo, k.hi, state.module.gradient)
    state.put_codes(operation.output, made)


def _mul(state: State, operation: ar.Operation) -> None:
    first, second = operation.nodes[0].inputs
    (a, a_code), (b, b_code) = state.operand(first), state.operand(second)
    k = ar.mul_constants(a_code, b_code, state.encodings[str(operation.output.name)], operation.clamp)
    assert k is not None and first is not None and second is not None
    formula = state.scale_of(first) * state.scale_of(second) / state.scale_of(operation.output)
    m, z = anchor(torch.tensor(np.float32(k.m)), formula), a.new_tensor(float(k.z_y))
    made = centred((a * b) * m, z, k.lo, k.hi, state.module.gradient)
    state.put_codes(operation.output, made)


def _concat(state: State, operation: ar.Operation) -> None:
    node, target = operation.nodes[0], state.encodings[str(operation.output.name)]
    z = torch.tensor(float(target.zero_point))
    parts = []
    for value in node.inputs:
        codes, source = state.operand(value)
        assert value is not None
        if source != target or operation.clamp != ar.NONE:
            m = torch.tensor(np.float32(float(source.scale) / float(target.scale)))
            m = anchor(m, state.scale_of(value) / state.scale_of(operation.output))
            lo, hi = (int(v) for v in ar.clamp_codes(target, operation.clamp)[:, 0])
            codes = centred(codes * m, z, lo, hi, state.module.gradient)
        parts.append(codes)
    state.put_codes(operation.output, torch.cat(parts, g.attribute(node, "axis")))


def _average(state: State, operation: ar.Operation) -> None:
    node, target = operation.nodes[0], state.encodings[str(operation.output.name)]
    x, source = state.operand(node.inputs[0])
    if node.op_type == "AveragePool":
        mean = OPERATORS["AveragePool"](node, [x])[0]
        total, count = ops.window_sums(node, x.detach().numpy())
    else:
        mean = x.mean((2, 3), keepdim=True)
        total, count = x.detach().sum((2, 3), keepdim=True).numpy(), np.array([[x.shape[2] * x.shape[3]]])
    m = ar.average_constants(source, target, int(count.max()))[count]
    z = float(target.zero_point)
    formula = mean * (state.scale_of(node.inputs[0]) / state.scale_of(operation.output))  # type: ignore[arg-type]
    exact = torch.clamp(torch.from_numpy(np.rint(total.astype(np.float32) * m)), 0 - z, 255 - z)
    made = anchor(exact, round_to(formula, 0.0, 0 - z, 255 - z, state.module.gradient))
    flat = node.op_type == "ReduceMean" and not g.attribute(node, "keepdims", 1)
    state.put_codes(operation.output, made[:, :, 0, 0] if flat else made)


def _table(state: State, operation: ar.Operation) -> None:
    which = ar.plain_function(operation.nodes[0], state.encodings)
    assert which is not None
    x, source = state.operand(operation.inputs[0])
    target = state.encodings[str(operation.output.name)]
    table = ar.function_table(which, source, target).astype(np.float32) - np.float32(target.zero_point)
    exact = torch.from_numpy(table)[(x.detach() + float(source.zero_point)).long()]
    z = float(target.zero_point)
    real = torch_function(which, x * state.scale_of(operation.inputs[0])) / state.scale_of(operation.output)
    made = round_to(real, 0.0, target.qmin - z, target.qmax - z, state.module.gradient)
    state.put_codes(operation.output, anchor(exact, made))


def run(state: State, operation: ar.Operation) -> None:
    """Compute one operation."""
    in_float = operation.unit is not None and operation.form == "float"
    (_float_unit if in_float else _FORMS[operation.form])(state, operation)


_FORMS: dict[str, Callable[[State, ar.Operation], None]] = {
    "unit": _unit, "float": _float, "move": _move, "linear": _linear, "add": _add, "mul": _mul, "concat": _concat,
    "average": _average, "table": _table,
}  # fmt: skip
