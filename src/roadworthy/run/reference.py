"""The reference: a plain NumPy interpreter of a graph with its encodings. It says what the engine has to compute.

Operations on codes follow docs/engine.md to the letter, and the engine equals them with ==. In short, for a layer:

    acc = sum of x * w + bias                  u8 codes, padding has the code of zero; exact integers
    v   = float32(acc) * scale                 per output channel
    q   = clamp(rint(v) + zero, lo, hi)        rint to even

A value that has an encoding is held as codes; a reader that computes in float sees them dequantized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import InputError, UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, narrow_codes
from roadworthy.model.model import Model
from roadworthy.model.units import Unit
from roadworthy.run import arithmetic as ar
from roadworthy.run import reference_ops as ops
from roadworthy.run.reference_fixed import FIXED, finish_fixed
from roadworthy.run.reference_moves import blend, resized_shape

Array = NDArray[Any]
F = np.float32


def finish(e: ar.Epilogue, acc: Array, axis: int) -> Array:
    """Accumulators (bias included) to codes u8, or to float32 where the epilogue is real.   axis: of the channels."""

    def channel(values: Array | None) -> Array:
        shape = [1] * acc.ndim
        shape[axis] = -1
        return np.asarray(values).reshape(shape)

    v = acc.astype(np.float32) * channel(e.scale)
    if e.kind == "real":
        return ar.evaluate(e.function, v)
    if e.kind == "poly":
        assert e.poly is not None
        v = ar.polynomial(e.poly, e.poly_b, v) * channel(e.out_scale)
    q = rounded(v) + channel(e.zero)
    if e.table is not None:
        return np.asarray(e.table)[np.clip(q, 0, len(e.table) - 1)]
    return np.clip(q, e.lo, e.hi).astype(np.uint8)


def rounded(v: Array) -> NDArray[np.int64]:
    """rint to even, within int16: what lies beyond saturates anyway."""
    return np.clip(np.rint(v), F(-32768), F(32767)).astype(np.int64)


class ReferenceRunner:
    """A model with its encodings, ready to run; the Runner protocol, and `codes` beside it.

    Raises UnsupportedError, by name, for an encoding or an operator that it does not know.
    """

    def __init__(self, model: Model, arithmetic: ar.Arithmetic = "float") -> None:
        """arithmetic: "float" (float multipliers) or "fixed" (32-bit multipliers and shifts); docs/engine.md has both.

        Raises UnsupportedError where the fixed-point form has no place for an operation in float.
        """
        self.arithmetic = arithmetic
        self.input_names = tuple(str(v.name) for v in g.inputs(model.ir))
        self.output_names = model.output_names
        self.encodings = ar.code_encodings(model)
        self.operations = ar.operations(model)
        if arithmetic == "fixed" and (refusal := ar.float_between(self.operations)) is not None:
            raise refusal
        self._inputs = {str(v.name): g.static_shape(v) for v in g.inputs(model.ir)}
        self._known = set(g.values(model.ir))
        self._layers: dict[str, tuple[ar.Epilogue | ar.FixedEpilogue, NDArray[np.int8]]] = {}
        self._constants: dict[str, Array] = {}

    def run(self, feeds: Mapping[str, NDArray], taps: Sequence[str] = ()) -> dict[str, NDArray]:
        """Outputs, then taps, as floats; what is held as codes comes dequantized."""
        for name in taps:
            if name not in self._known:
                raise KeyError(name)
        state = self._compute(feeds, frozenset(taps))
        return {name: state.real_by_name(name) for name in (*self.output_names, *taps)}

    def codes(self, feeds: Mapping[str, NDArray], names: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
        """The codes of values that are held as codes. Raises KeyError for any other."""
        state = self._compute(feeds, frozenset())
        return {name: state.codes[name] for name in names}

    def all_codes(self, feeds: Mapping[str, NDArray]) -> dict[str, NDArray[np.uint8]]:
        """The codes of every value that is held as codes, by name."""
        return self._compute(feeds, frozenset()).codes

    def constant(self, value: g.Value) -> Array | None:
        """The array of a constant, rounded to its codes where it has an encoding; None for a computed value."""
        name = str(value.name)
        if name not in self._constants:
            array = g.constant(value)
            if array is None:
                return None
            encoding = self.encodings.get(name)
            if encoding is not None:
                codes = narrow_codes(array, encoding) if encoding.signed else encoding.quantize(array)
                array = encoding.dequantize(codes)
            self._constants[name] = array
        return self._constants[name]

    def layer(self, unit: Unit) -> tuple[ar.Epilogue | ar.FixedEpilogue, NDArray[np.int8]]:
        """Epilogue and weight codes (in the weight's own layout) of a unit that computes in integers."""
        if unit.name not in self._layers:
            weight = g.constant(unit.weight)
            assert weight is not None
            codes = narrow_codes(weight, self.encodings[str(unit.weight.name)])
            epilogue = ar.fixed_epilogue if self.arithmetic == "fixed" else ar.unit_epilogue
            self._layers[unit.name] = epilogue(unit, self.encodings), codes
        return self._layers[unit.name]

    def _compute(self, feeds: Mapping[str, NDArray], taps: frozenset[str]) -> _State:
        state = _State(self)
        for name, shape in self._inputs.items():
            if name not in feeds:
                raise InputError(f"the input {name!r} is missing; the model needs {', '.join(self.input_names)}")
            if shape is not None and tuple(feeds[name].shape) != shape:
                raise InputError(f"the input {name!r} has the shape {feeds[name].shape}, but the model takes {shape}")
            state.put_by_name(name, np.asarray(feeds[name], np.float32))
        for operation in self.operations:
            _run(state, operation, taps)
        return state


class _State:
    """The values of one run, by name: floats, or codes for those that have an encoding."""

    def __init__(self, runner: ReferenceRunner) -> None:
        self.runner = runner
        self.encodings = runner.encodings
        self.reals: dict[str, Array] = {}
        self.codes: dict[str, NDArray[np.uint8]] = {}

    def put_by_name(self, name: str, array: Array) -> None:
        encoding = self.encodings.get(name)
        if encoding is None or array.dtype.kind != "f":
            self.reals[name] = array
        else:
            self.codes[name] = encoding.quantize(array)

    def put(self, value: g.Value, array: Array) -> None:
        self.put_by_name(str(value.name), array)

    def put_codes(self, value: g.Value, codes: Array) -> None:
        self.codes[str(value.name)] = codes.astype(np.uint8)

    def real_by_name(self, name: str) -> Array:
        if name not in self.reals and name in self.codes:
            self.reals[name] = self.encodings[name].dequantize(self.codes[name])
        return self.reals[name]

    def real(self, value: g.Value | None) -> Array | None:
        """The value as a float (or integer) array; None for an input that is left out."""
        if value is None or value.name == "":
            return None
        constant = self.runner.constant(value)
        return self.real_by_name(str(value.name)) if constant is None else constant

    def operand(self, value: g.Value | None) -> tuple[NDArray[np.uint8], Encoding]:
        assert value is not None
        return self.codes[str(value.name)], self.encodings[str(value.name)]

    def encoding(self, value: g.Value) -> Encoding:
        return self.encodings[str(value.name)]


def _run(state: _State, operation: ar.Operation, taps: frozenset[str]) -> None:
    unit = operation.unit
    if unit is None:
        fixed = FIXED.get(operation.form) if state.runner.arithmetic == "fixed" else None
        if fixed is not None:
            state.put_codes(operation.output, fixed(operation, state.operand, state.encodings))
        else:
            _FORMS[operation.form](state, operation)
        return
    if operation.form == "unit":
        _integer_unit(state, unit, taps)
    else:
        _float_unit(state, unit)
    wanted = any(str(v.name) in taps for v in unit.inner)
    if wanted and operation.form == "unit":
        # What lies inside an integer layer is not held anywhere; for taps, its float meaning.
        for node in unit.nodes[unit.nodes.index(_pre_node(unit)) + 1 : -1]:
            _float_node(state, node)
    elif wanted:
        for node in unit.nodes[:-1]:
            _float_node(state, node)


def _pre_node(unit: Unit) -> g.Node:
    made = ar.pre_activation(unit)
    return next(n for n in unit.nodes if n.outputs[0] is made)


def accumulate(
    unit: Unit, x: NDArray[np.uint8], source: Encoding, w: NDArray[np.int8], bias: NDArray[np.int32]
) -> NDArray[np.int64]:
    """acc of a unit on codes x.   w: codes in the layout of the weight.   bias: the folded one, per output channel."""
    anchor = unit.anchor
    if anchor.op_type == "Conv":
        at = ar.windows(anchor, x.shape[2:], w.shape[2:])
        padded = ops.pad_image(x, at, source.zero_point)
        total = ops.convolve(padded, w, at, g.attribute(anchor, "group", 1))
        return np.asarray(total.astype(np.int64) + bias.reshape(-1, 1, 1))
    matrix = w.T if unit.weight_axis == 0 else w
    total = x.astype(np.float64) @ matrix.astype(np.float64)  # exact, as in `convolve`
    return np.asarray(total.astype(np.int64) + bias)


def _integer_unit(state: _State, unit: Unit, taps: frozenset[str]) -> None:
    epilogue, w = state.runner.layer(unit)
    x, encoding = state.operand(unit.input)
    axis = 1 if unit.anchor.op_type == "Conv" else -1
    acc = accumulate(unit, x, encoding, w, epilogue.bias)
    shape = [1] * acc.ndim
    shape[axis] = -1
    result = (finish if isinstance(epilogue, ar.Epilogue) else finish_fixed)(epilogue, acc, axis)  # type: ignore[arg-type]
    (state.put if epilogue.kind == "real" else state.put_codes)(unit.output, result)
    before = ar.pre_activation(unit)
    if before is not unit.output and taps:
        scale = ar.unit_scale(unit, state.encodings).reshape(shape)
        held = state.encodings.get(str(before.name))
        real = acc.astype(np.float32) * scale
        state.reals[str(before.name)] = real if held is None else held.fake(real)


def _float_unit(state: _State, unit: Unit) -> None:
    """The activation of a float layer is one function, as in an integer one, where the engine has it."""
    last = _pre_node(unit)
    head = unit.nodes[: unit.nodes.index(last) + 1]
    try:
        function = ar.function_of_unit(unit)
    except UnsupportedError:
        head, function = unit.nodes, None
    inputs: dict[int, Array] = {}
    for node in head:
        made = ops.run_node(node, [inputs[id(v)] if id(v) in inputs else state.real(v) for v in node.inputs])
        inputs.update({id(v): a for v, a in zip(node.outputs, made)})
    value = inputs[id(head[-1].outputs[0])]
    state.put(unit.output, value if function is None else ar.evaluate(function, value))


def _float_node(state: _State, node: g.Node) -> None:
    function = ar.plain_function(node, state.encodings)
    if function is not None:
        source = next(v for v in node.inputs if v is not None and g.constant(v) is None)
        x = state.real(source)
        if x is not None and x.dtype.kind == "f":
            state.put(node.outputs[0], ar.evaluate(function, x))
            return
    for value, array in zip(node.outputs, ops.run_node(node, [state.real(v) for v in node.inputs])):
        if value.name:
            state.put(value, array)


def _float(state: _State, operation: ar.Operation) -> None:
    for node in operation.nodes:
        _float_node(state, node)


def _move(state: _State, operation: ar.Operation) -> None:
    """Codes change place; both sides share one encoding."""
    node = operation.nodes[0]
    if node.op_type == "Pad":  # its number would have to become a code; quantizing again gives the same codes
        _float_node(state, node)
        return
    x, source = state.operand(node.inputs[0])
    for value, codes in zip(node.outputs, ops.run_node(node, [x, *(state.real(v) for v in node.inputs[1:])])):
        if state.encodings.get(str(value.name)) == source:
            state.put_codes(value, codes)
        else:  # a part that nobody reads, but a tap may
            state.put(value, source.dequantize(codes))


def _linear(state: _State, operation: ar.Operation) -> None:
    node = operation.nodes[0]
    x, _ = state.operand(node.inputs[0])
    shape = resized_shape(node, [x, *(state.real(v) for v in node.inputs[1:])])
    if x.ndim != 4 or shape[:2] != x.shape[:2]:
        raise UnsupportedError(f"Resize {node.name!r} is neither nearest nor linear over height and width")
    state.put_codes(operation.output, np.clip(np.rint(blend(node, x.astype(np.float32), shape)), 0, 255))


def _add(state: _State, operation: ar.Operation) -> None:
    (a, a_code), (b, b_code) = (state.operand(v) for v in operation.nodes[0].inputs)
    target = state.encoding(operation.output)
    channels = 1 if target.axis is None else len(target.scale)
    k = ar.add_constants(a_code, b_code, target, channels, operation.clamp)
    assert k is not None
    m_a, m_b, zero = (v.reshape(-1, 1, 1) if channels > 1 else v for v in (k.m_a, k.m_b, k.zero))
    first = (a.astype(np.int64) - k.z_a).astype(np.float32) * m_a
    second = (b.astype(np.int64) - k.z_b).astype(np.float32) * m_b
    state.put_codes(operation.output, np.clip(rounded(first + second) + zero, k.lo, k.hi))


def _mul(state: _State, operation: ar.Operation) -> None:
    (a, a_code), (b, b_code) = (state.operand(v) for v in operation.nodes[0].inputs)
    k = ar.mul_constants(a_code, b_code, state.encoding(operation.output), operation.clamp)
    assert k is not None
    product = (a.astype(np.int64) - k.z_a) * (b.astype(np.int64) - k.z_b)
    q = rounded(product.astype(np.float32) * F(k.m)) + k.z_y
    state.put_codes(operation.output, np.clip(q, k.lo, k.hi))


def _concat(state: _State, operation: ar.Operation) -> None:
    node, target = operation.nodes[0], state.encoding(operation.output)
    parts = []
    for value in node.inputs:
        codes, source = state.operand(value)
        same = source == target and operation.clamp == ar.NONE
        parts.append(codes if same else ar.requant_table(source, target, operation.clamp)[codes])
    state.put_codes(operation.output, np.concatenate(parts, g.attribute(node, "axis")))


def _average(state: _State, operation: ar.Operation) -> None:
    node, target = operation.nodes[0], state.encoding(operation.output)
    x, source = state.operand(node.inputs[0])
    centred = x.astype(np.int64) - int(source.zero_point)
    if node.op_type == "AveragePool":
        total, count = ops.window_sums(node, centred)
    else:
        total, count = centred.sum((2, 3), keepdims=True), np.array([[x.shape[2] * x.shape[3]]])
    m = ar.average_constants(source, target, int(count.max()))[count]
    q = np.clip(rounded(total.astype(np.float32) * m) + int(target.zero_point), 0, 255)
    flat = node.op_type == "ReduceMean" and not g.attribute(node, "keepdims", 1)
    state.put_codes(operation.output, q[:, :, 0, 0] if flat else q)


def _table(state: _State, operation: ar.Operation) -> None:
    node = operation.nodes[0]
    function = ar.plain_function(node, state.encodings)
    assert function is not None
    x, source = state.operand(operation.inputs[0])
    table = ar.function_table(function, source, state.encoding(operation.output))
    state.put_codes(operation.output, table[x])


_FORMS = {
    "float": _float, "move": _move, "linear": _linear, "add": _add, "mul": _mul, "concat": _concat,
    "average": _average, "table": _table,
}  # fmt: skip
