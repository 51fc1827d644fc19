"""A model with its encodings as an `nn.Module` that computes what is deployed, and has gradients.

Forward is run/reference.py: every value that has an encoding takes the very codes that the engine gives it. All
constants come from `run/arithmetic`, worked out anew from the parameters by `prepare`; sums of products are exact
in float32, as integers below 2^24 are (in float64 where a layer's weights could lead beyond).

    w~ = round(w / s_w)                    codes of a weight
    acc = sum c_x w~ + round(b / (s_x s_w))
    c = epilogue(acc)                      run/torch/finish.py

Parameters are the float weights and biases by the names of their initializers and, where scales are trained (LSQ,
Esser et al. 2020), "scale:NAME" of a weight or of a value: the logarithm of scale over initial scale, so that a step
of an optimizer is a share of the scale and no scale becomes negative. Values whose codes pass from one to the other
without change share one scale. Zero points stay, and so does the input's scale: it is the image's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from roadworthy.errors import InputError, UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, power_of_two_above
from roadworthy.model.model import Model
from roadworthy.model.units import Unit
from roadworthy.run import arithmetic as ar
from roadworthy.run import reference_ops as ops
from roadworthy.run.reference_moves import blend, resized_shape
from roadworthy.run.torch.finish import Finish, Scales, anchor, centred, finish, function, torch_function
from roadworthy.run.torch.module import GraphModule
from roadworthy.run.torch.operators import OPERATORS
from roadworthy.run.torch.surrogates import GRADIENTS, noise_mask, round_to, round_to_levels

EXACT = 2**24
"""Integers up to here are exact in float32, whatever the order of a sum."""
EVALUATION = -1
"""The step for which `prepare` draws no noise."""


@dataclass(frozen=True)
class QatSettings:
    """How a quantized network is trained.

    gradient: a key of GRADIENTS, what stands for the derivative of rounding.   noise: the share of each weight that is
    quantized in a step (Quant-Noise); 1: all of it.   train_scales: None: as the gradient says ("lsq" trains them).
    """

    gradient: str = "lsq"
    noise: float = 1.0
    train_scales: bool | None = None


class QuantizedModule(GraphModule):
    """A network of codes. `forward`, parameters and write-back as GraphModule has them, for the model's encodings too.

    Raises UnsupportedError for an operator that the bridge does not know, and for activations with other than 8 bits;
    InputError for a model without encodings, or with other settings than there are.
    """

    def __init__(self, model: Model, settings: QatSettings | None = None) -> None:
        settings = settings or QatSettings()
        if not model.encodings:
            raise InputError(f"{model.source} has no encodings; quantize it before it is trained as quantized")
        if settings.gradient not in GRADIENTS:
            raise InputError(f"the gradient {settings.gradient!r} is unknown; known are {', '.join(GRADIENTS)}")
        if not 0.0 < settings.noise <= 1.0:
            raise InputError(f"noise is the share of weights quantized in a step, 0 to 1, not {settings.noise}")
        super().__init__(model)
        self.settings = settings
        self._model = replace(model, ir=g.clone(model.ir))
        self._gradient = GRADIENTS[settings.gradient]
        self._operations = ar.operations(self._model)
        self._forms = [o.form for o in self._operations]
        self._values = g.values(self._model.ir)
        self._root = _tied(self._model, self._operations)
        trained = self._gradient.trains_scales if settings.train_scales is None else settings.train_scales
        self._free = self._free_scales() if trained else frozenset()
        for name in sorted(self._free):
            scale = np.asarray(model.encodings[name].scale)
            self._register(f"scale:{name}", torch.zeros(scale.shape), True)
        self._last = _last_operations(self._operations)
        self._layers: dict[str, _Layer] = {}
        self._stored: Mapping[str, Encoding] = {}
        self._encodings: Mapping[str, Encoding] = {}
        self.prepare(EVALUATION, 0)

    # What a training loop asks for

    def prepare(self, step: int, seed: int) -> None:
        """Work out every constant from the parameters; draw the weights that are quantized in `step`, where noise is."""
        for name, parameter in self.named_parameters():
            if not name.startswith("scale:"):
                g.set_constant(self._values[name], parameter.detach().cpu().numpy())
        held = self._current_encodings()
        self._stored = held
        self._encodings = ar.code_encodings(replace(self._model, encodings=held))
        self._layers = {}
        for operation in self._operations:
            if operation.unit is not None and operation.form == "unit":
                self._layers[operation.unit.name] = self._layer(operation.unit, step, seed)

    def groups(self) -> Mapping[str, Sequence[str]]:
        """Parameter names by kind: "weights", "biases", "scales"."""
        weights = {str(o.unit.weight.name) for o in self._operations if o.unit is not None}
        found: dict[str, list[str]] = {"weights": [], "biases": [], "scales": []}
        for name, _ in self.named_parameters():
            kind = "scales" if name.startswith("scale:") else "weights" if name in weights else "biases"
            found[kind].append(name)
        return found

    def model(self, step: str) -> Model:
        """The model with the weights and encodings of now.

        Raises InputError for parameters that are not finite, and where a layer that computed in integers no longer can.
        """
        for name, parameter in self.named_parameters():
            if not torch.isfinite(parameter).all():
                raise InputError(f"the parameter {name!r} became NaN or infinite; train with a lower learning rate")
        self.prepare(EVALUATION, 0)
        ir = g.clone(self._model.ir)
        made = replace(self._model, ir=ir, encodings=MappingProxyType(dict(self._stored)))
        for operation, form in zip(ar.operations(made), self._forms):
            if operation.form != form:
                raise InputError(
                    f"{operation.nodes[0].name!r} cannot be computed in integers any more after training:"
                    f" {operation.refusal or 'its constants left their range'}; train with a lower learning rate"
                )
        return replace(made, history=(*self._model.history, step))

    # Forward

    def forward(self, x: Tensor, taps: Sequence[str] = ()) -> dict[str, Tensor]:
        """Outputs in graph order, then taps, as floats.   x: in the shape of the model's input, float32.

        Raises KeyError for an unknown tap, InputError for another shape.
        """
        if tuple(x.shape) != self.input_shape:
            raise InputError(
                f"the input {self.input_name!r} has the shape {tuple(x.shape)}, but the model takes {self.input_shape}"
            )
        for name in taps:
            if name not in self.value_names:
                raise KeyError(name)
        state = self._compute(x, {*self.output_names, *taps})
        return {name: state.real_by_name(name) for name in (*self.output_names, *taps)}

    def codes(self, x: Tensor) -> dict[str, Tensor]:
        """The codes of every value that is held as codes, as unsigned bytes, by name."""
        with torch.no_grad():
            state = self._compute(x, None)
        return {
            name: (codes + _lay(self._encodings[name].zero_point, self._encodings[name], codes)).to(torch.uint8)
            for name, codes in state.codes.items()
        }

    def _compute(self, x: Tensor, wanted: AbstractSet[str] | None) -> _State:
        state = _State(self, wanted or frozenset())
        state.put(self.input_name, x)
        for operation, dying in zip(self._operations, self._last):
            (_float_unit if _in_float(operation) else _FORMS[operation.form])(state, operation)
            for name in dying:
                if wanted is not None and name not in wanted:
                    state.codes.pop(name, None)
                    state.reals.pop(name, None)
        return state

    # Constants

    def _free_scales(self) -> frozenset[str]:
        """Names of the weights, and of one value per tie, whose scale is trained."""
        held = {n: e for n, e in self._model.encodings.items() if n in self._values}
        activations = [e for n, e in held.items() if g.constant(self._values[n]) is None]
        if activations and all(np.array_equal(power_of_two_above(e.scale), e.scale) for e in activations):
            return frozenset()  # a device that only shifts
        fixed = self._root.get(self.input_name)
        trained = {str(o.unit.weight.name) for o in self._operations if o.unit is not None}
        return frozenset(
            n
            for n in held
            if (n in trained if g.constant(self._values[n]) is not None else self._root.get(n, n) == n and n != fixed)
        )

    def _key(self, name: str) -> str | None:
        """The name under which the scale of a value is trained; None where it is not."""
        root = self._root.get(name, name)
        return root if root in self._free else None

    def scale(self, name: str) -> Tensor:
        """The scale of a value or weight, a scalar or one per channel, with its gradient."""
        initial = torch.from_numpy(np.array(self._model.encodings[name].scale, np.float32))
        key = self._key(name)
        return initial if key is None else initial * torch.exp(self.constant(f"scale:{key}"))

    def _current_encodings(self) -> dict[str, Encoding]:
        found = dict(self._model.encodings)
        if self._free:
            for name in found:
                if name in self._values and self._key(name) is not None:
                    scale = self.scale(name).detach().cpu().numpy()
                    if not (np.isfinite(scale).all() and (scale > 0).all()):
                        raise InputError(
                            f"the scale of {name!r} left the range of float32; train with a lower learning rate"
                        )
                    found[name] = replace(found[name], scale=scale)
        return found

    def _layer(self, unit: Unit, step: int, seed: int) -> _Layer:
        encodings = self._encodings
        epilogue = ar.unit_epilogue(unit, encodings)
        source, weight = encodings[str(unit.input.name)], encodings[str(unit.weight.name)]
        output, before = encodings.get(str(unit.output.name)), encodings.get(str(ar.pre_activation(unit).name))
        codes = ar.weights_codes(unit, weight).astype(np.int64)
        axes = (0, 1) if ar.is_depthwise(unit) else (1, 2, 3)
        steps = epilogue.bias.astype(np.int64) + source.zero_point * codes.sum(axes)
        reach = np.maximum(source.zero_point, source.qmax - source.zero_point) * np.abs(codes).sum(axes)
        shape = (1, -1, 1, 1) if unit.anchor.op_type == "Conv" else (-1,)
        quantized = None
        if step != EVALUATION and self.settings.noise < 1.0:
            array = self.constant(str(unit.weight.name))
            quantized = noise_mask(tuple(array.shape), self.settings.noise, seed, step, str(unit.weight.name))
        return _Layer(
            Finish.of(epilogue, np.zeros(()) if output is None else output.zero_point, shape),
            torch.from_numpy(steps.astype(np.float32)),
            shape,
            bool((reach + np.abs(steps)).max() >= EXACT),
            quantized,
            epilogue.kind == "table" and before is not None,
        )


@dataclass(frozen=True, eq=False)
class _Layer:
    """steps: the bias in steps of the accumulator.   shape: of what lies along the channels.   wide: sums could pass
    2^24.   quantized: which weights are rounded in this step, or None for all.   tabled: whether s_p matters."""

    finish: Finish
    steps: Tensor
    shape: tuple[int, ...]
    wide: bool
    quantized: Tensor | None
    tabled: bool


class _State:
    """The values of one run: reals, or codes without their zero point."""

    def __init__(self, module: QuantizedModule, wanted: AbstractSet[str]) -> None:
        self.module = module
        self.wanted = wanted
        self.encodings = module._encodings
        self.reals: dict[str, Tensor] = {}
        self.codes: dict[str, Tensor] = {}

    def put(self, name: str, array: Tensor) -> None:
        """A computed value; rounded to codes where it has an encoding."""
        encoding = self.encodings.get(name)
        if encoding is None or not array.is_floating_point():
            self.reals[name] = array
        else:
            z = _lay(encoding.zero_point, encoding, array)
            v = array / _lay(self.module.scale(name), encoding, array)
            self.codes[name] = centred(v, z, encoding.qmin, encoding.qmax, self.module._gradient)

    def put_codes(self, value: g.Value, codes: Tensor) -> None:
        self.codes[str(value.name)] = codes

    def real_by_name(self, name: str) -> Tensor:
        if name not in self.reals:
            if name not in self.codes:
                return self.module.constant(name)
            codes, encoding = self.codes[name], self.encodings[name]
            self.reals[name] = codes * _lay(self.module.scale(name), encoding, codes)
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
        scale = _lay(self.module.scale(name), encoding, tensor)
        return self.constant_codes(name, tensor, scale, None) * scale

    def constant_codes(self, name: str, tensor: Tensor, scale: Tensor, quantized: Tensor | None) -> Tensor:
        """Codes of a constant, without zero point; the narrow range for signed ones."""
        encoding = self.encodings[name]
        u = tensor / scale
        if encoding.levels is not None:
            codes = round_to_levels(u, encoding.levels, self.module._gradient)
        else:
            z = _lay(encoding.zero_point, encoding, tensor)
            lo = -encoding.qmax if encoding.signed else encoding.qmin
            codes = centred(u, z, lo, encoding.qmax, self.module._gradient)
        return codes if quantized is None else torch.where(quantized, codes, u)

    def operand(self, value: g.Value | None) -> tuple[Tensor, Encoding]:
        assert value is not None
        return self.codes[str(value.name)], self.encodings[str(value.name)]

    def scale_of(self, value: g.Value) -> Tensor:
        return self.module.scale(str(value.name))


def _lay(values: object, encoding: Encoding, beside: Tensor) -> Tensor:
    """Scales or zero points shaped to lie along the axis of their encoding."""
    made = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values, np.float32))
    if encoding.axis is None:
        return made
    shape = [1] * beside.ndim
    shape[encoding.axis] = -1
    return made.reshape(shape)


# The forms of operations


def _unit(state: _State, operation: ar.Operation) -> None:
    unit = operation.unit
    assert unit is not None
    module, layer = state.module, state.module._layers[unit.name]
    x, source = state.operand(unit.input)
    name = str(unit.weight.name)
    weight, encoding = module.constant(name), state.encodings[name]
    channels = len(layer.steps)
    s_w = module.scale(name)
    w = state.constant_codes(name, weight, _lay(s_w, encoding, weight), layer.quantized)
    scale = (state.scale_of(unit.input) * s_w).expand(channels)
    bias = _bias(module, unit, channels)
    steps = layer.steps if bias is None else anchor(layer.steps, bias / scale)
    acc = _sums(unit, x, w, steps, layer)
    out = str(unit.output.name)
    before = str(ar.pre_activation(unit).name)

    def lay(of: str) -> Tensor:
        return module.scale(of).expand(channels).reshape(layer.shape)

    scales = Scales(
        scale.reshape(layer.shape),
        lay(out) if out in state.encodings else None,
        lay(before) if layer.tabled else None,
    )
    made = finish(layer.finish, acc, scales, module._gradient)
    if layer.finish.kind == "real":
        state.put(out, made)
    else:
        state.codes[out] = made
    if any(str(v.name) in state.wanted for v in unit.inner):
        # What lies inside an integer layer is not held anywhere; for taps, its float meaning.
        state.reals[before] = acc * scales.acc
        for node in unit.nodes[_position(unit) + 1 : -1]:
            _node(state, node)


def _sums(unit: Unit, x: Tensor, w: Tensor, steps: Tensor, layer: _Layer) -> Tensor:
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


def _in_float(operation: ar.Operation) -> bool:
    return operation.unit is not None and operation.form == "float"


def _float_unit(state: _State, operation: ar.Operation) -> None:
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


def _float(state: _State, operation: ar.Operation) -> None:
    for node in operation.nodes:
        _node(state, node)


def _node(state: _State, node: g.Node) -> None:
    which = ar.plain_function(node, state.encodings)
    if which is not None:
        x = state.real(next(v for v in node.inputs if v is not None and g.constant(v) is None))
        if x is not None and x.is_floating_point():
            state.put(str(node.outputs[0].name), function(which, x))
            return
    for value, made in zip(node.outputs, OPERATORS[node.op_type](node, [state.real(v) for v in node.inputs])):
        if value.name:
            state.put(str(value.name), made)


def _move(state: _State, operation: ar.Operation) -> None:
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
            state.put(str(value.name), made * _lay(state.scale_of(node.inputs[0]), source, made))  # type: ignore[arg-type]


def _linear(state: _State, operation: ar.Operation) -> None:
    node = operation.nodes[0]
    x, source = state.operand(node.inputs[0])
    z = _lay(source.zero_point, source, x)
    q = (x.detach() + z).numpy()
    shape = resized_shape(node, [q, *(None if t is None else t.numpy() for t in map(state.real, node.inputs[1:]))])
    exact = torch.from_numpy(np.clip(np.rint(blend(node, q, shape)), 0, 255).astype(np.float32)) - z
    formula = OPERATORS["Resize"](node, [x, *(state.real(v) for v in node.inputs[1:])])[0]
    made = centred(formula, z, 0, 255, state.module._gradient)
    state.put_codes(operation.output, anchor(exact, made))


def _add(state: _State, operation: ar.Operation) -> None:
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
    made = centred(a * m_a + b * m_b, z, k.lo, k.hi, state.module._gradient)
    state.put_codes(operation.output, made)


def _mul(state: _State, operation: ar.Operation) -> None:
    first, second = operation.nodes[0].inputs
    (a, a_code), (b, b_code) = state.operand(first), state.operand(second)
    k = ar.mul_constants(a_code, b_code, state.encodings[str(operation.output.name)], operation.clamp)
    assert k is not None and first is not None and second is not None
    formula = state.scale_of(first) * state.scale_of(second) / state.scale_of(operation.output)
    m, z = anchor(torch.tensor(np.float32(k.m)), formula), a.new_tensor(float(k.z_y))
    made = centred((a * b) * m, z, k.lo, k.hi, state.module._gradient)
    state.put_codes(operation.output, made)


def _concat(state: _State, operation: ar.Operation) -> None:
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
            codes = centred(codes * m, z, lo, hi, state.module._gradient)
        parts.append(codes)
    state.put_codes(operation.output, torch.cat(parts, g.attribute(node, "axis")))


def _average(state: _State, operation: ar.Operation) -> None:
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
    made = anchor(exact, round_to(formula, 0.0, 0 - z, 255 - z, state.module._gradient))
    flat = node.op_type == "ReduceMean" and not g.attribute(node, "keepdims", 1)
    state.put_codes(operation.output, made[:, :, 0, 0] if flat else made)


def _table(state: _State, operation: ar.Operation) -> None:
    which = ar.plain_function(operation.nodes[0], state.encodings)
    assert which is not None
    x, source = state.operand(operation.inputs[0])
    target = state.encodings[str(operation.output.name)]
    table = ar.function_table(which, source, target).astype(np.float32) - np.float32(target.zero_point)
    exact = torch.from_numpy(table)[(x.detach() + float(source.zero_point)).long()]
    z = float(target.zero_point)
    real = torch_function(which, x * state.scale_of(operation.inputs[0])) / state.scale_of(operation.output)
    made = round_to(real, 0.0, target.qmin - z, target.qmax - z, state.module._gradient)
    state.put_codes(operation.output, anchor(exact, made))


_FORMS = {
    "unit": _unit, "float": _float, "move": _move, "linear": _linear, "add": _add, "mul": _mul, "concat": _concat,
    "average": _average, "table": _table,
}  # fmt: skip


def _tied(model: Model, operations: Iterable[ar.Operation]) -> dict[str, str]:
    """Value name -> the one that stands for all whose codes pass unchanged into each other."""
    parent: dict[str, str] = {n: n for n in model.encodings}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for operation in operations:
        for node in operation.nodes:
            if node.op_type not in ar.MOVES and node.op_type != "Concat":
                continue
            results = [str(v.name) for v in (*node.outputs, operation.output) if v.name in model.encodings]
            for value in node.inputs:
                name = "" if value is None else str(value.name)
                if name not in model.encodings or g.constant(value) is not None:
                    continue
                for result in results:
                    if model.encodings[name] == model.encodings[result]:
                        parent[max(root(name), root(result))] = min(root(name), root(result))
    return {n: root(n) for n in parent}


def _last_operations(operations: Sequence[ar.Operation]) -> list[list[str]]:
    """For each operation, the values that no later one reads."""
    last: dict[str, int] = {}
    for k, operation in enumerate(operations):
        for node in operation.nodes:
            for value in (*node.inputs, *node.outputs):
                if value is not None and value.name:
                    last[str(value.name)] = k
    dying: list[list[str]] = [[] for _ in operations]
    for name, k in last.items():
        dying[k].append(name)
    return dying
