"""Elementwise operations: ADD, MUL and TABLE on codes; UNARY, BINARY and SOFTMAX in float."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roadworthy.model import graph as g
from roadworthy.run.arithmetic import (
    BINARY,
    Function,
    Operation,
    add_constants,
    fixed_add,
    fixed_mul,
    function_table,
    mul_constants,
)
from roadworthy.run.arithmetic.operations import plain_function
from roadworthy.run.native.network import Array, Operand, constant_array, is_image
from roadworthy.run.native.plan import Op, float_bits, function_bits
from roadworthy.run.native.translate import Translator, code_form, elementwise_form, shape_of, unsupported
from roadworthy.run.native.views import Map, View, inverse, transpose

PAIRS = {"Add": "add", "Sum": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Max": "max", "Min": "min",
         "Pow": "pow"}  # fmt: skip


def _broadcast(x: Array, dims: Sequence[int]) -> tuple[int, ...] | None:
    return None if x.dims == tuple(dims) else tuple(dims)


def unary(tr: Translator, function: Function, x: Array, name: str, dims: Sequence[int] | None = None) -> Array:
    """f(x) in float32."""
    dims = tuple(dims or x.dims)
    form = elementwise_form(dims)
    numbers = function_bits(function.code, function.a, function.b)
    source = Operand(x, form, dims=_broadcast(x, dims))
    return tr.network.step(
        Op.UNARY, [source], Operand(Array(name, dims, None, like=(x,)), form), numbers, (), name, True
    )


def binary(tr: Translator, pair: str, a: Array, b: Array, dims: Sequence[int], name: str) -> Array:
    """a op b in float32, broadcast to dims."""
    form = elementwise_form(dims)
    like = next((x for x in (a, b) if x.dims == tuple(dims) and x.data is None), a)
    y = Array(name, tuple(dims), None, like=(like,))
    sources = [Operand(x, form, dims=_broadcast(x, dims)) for x in (a, b)]
    return tr.network.step(Op.BINARY, sources, Operand(y, form), (BINARY[pair], 0, 0, 0), (), name, True)


def float_function(tr: Translator, operation: Operation) -> None:
    """A function of one value in float; pairs of values; PRelu with a slope per channel."""
    node = operation.nodes[-1]
    function = plain_function(node, tr.encodings)
    out = node.outputs[0]
    if function is not None:
        sources = [v for v in node.inputs if v is not None and g.constant(v) is None]
        x = tr.float_array(sources[0])
        tr.settle(out, unary(tr, function, x, str(out.name), shape_of(out)))
    elif node.op_type in PAIRS:
        made = tr.float_array(node.inputs[0])
        for k, value in enumerate(node.inputs[1:], 1):
            other = tr.float_array(value)
            dims = np.broadcast_shapes(made.dims, other.dims)
            name = str(out.name) if k == len(node.inputs) - 1 else f"{out.name}.{k}"
            made = binary(tr, PAIRS[node.op_type], made, other, dims, name)
        if made.space != 0:  # a Sum of one value
            made = unary(tr, Function("none"), made, str(out.name))
        tr.settle(out, made)
    elif node.op_type == "PRelu":
        _prelu(tr, node)
    else:
        raise unsupported(node, "the native engine has no such function")


def _prelu(tr: Translator, node: g.Node) -> None:
    """x > 0 ? x : x * slope = max(x, 0) + min(x, 0) * slope; one of the two parts is always zero, so both are exact."""
    out, x = node.outputs[0], tr.float_array(node.inputs[0])
    slope = tr.float_array(node.inputs[1])
    up = unary(tr, Function("relu"), x, f"{out.name}.positive")
    down = unary(tr, Function("clip", float("-inf"), 0.0), x, f"{out.name}.negative")
    scaled = binary(tr, "mul", down, slope, x.dims, f"{out.name}.scaled")
    tr.settle(out, binary(tr, "add", up, scaled, x.dims, str(out.name)))


def batch_norm(tr: Translator, operation: Operation) -> None:
    """A batch normalization that no convolution took up: x * k + b per channel."""
    node = operation.nodes[0]
    out, x = node.outputs[0], tr.float_array(node.inputs[0])
    arrays = [g.constant(v) for v in node.inputs[1:5]]
    if any(a is None for a in arrays) or g.attribute(node, "training_mode", 0):
        raise unsupported(node, "its statistics are computed at run time")
    gamma, beta, mean, var = (a.astype(np.float64) for a in arrays if a is not None)
    k = gamma / np.sqrt(var + g.attribute(node, "epsilon", 1e-5))
    shape = (1, -1, *[1] * (len(x.dims) - 2))
    scale = constant_array(f"{out.name}.scale", k.reshape(shape))
    shift = constant_array(f"{out.name}.shift", (beta - mean * k).reshape(shape))
    scaled = binary(tr, "mul", x, scale, x.dims, f"{out.name}.scaled")
    tr.settle(out, binary(tr, "add", scaled, shift, x.dims, str(out.name)))


def add_codes(tr: Translator, operation: Operation) -> None:
    node, out = operation.nodes[0], operation.output
    a, b = (tr.array(v) for v in node.inputs)
    y = tr.new(out, tr.encoding(out), [x for x in (a, b) if x.dims == shape_of(out)])
    channels = y.dims[1] if is_image(y.dims) else y.size
    assert a.encoding is not None and b.encoding is not None and y.encoding is not None
    if tr.fixed:
        k = fixed_add(str(node.name), a.encoding, b.encoding, y.encoding, channels, operation.clamp)
        blobs = tuple(v.tobytes() for v in (k.a, k.b, k.zero, k.shift))
        _merge(tr, Op.ADD_FIXED, a, b, y, (k.z_a, k.z_b, k.lo, k.hi), blobs, node)
        return
    made = add_constants(a.encoding, b.encoding, y.encoding, channels, operation.clamp)
    assert made is not None  # the operation's form says so
    blobs = tuple(np.ascontiguousarray(np.broadcast_to(v, channels)).tobytes() for v in (made.m_a, made.m_b, made.zero))
    _merge(tr, Op.ADD, a, b, y, (made.z_a, made.z_b, made.lo, made.hi), blobs, node)


def mul_codes(tr: Translator, operation: Operation) -> None:
    node, out = operation.nodes[0], operation.output
    a, b = (tr.array(v) for v in node.inputs)
    y = tr.new(out, tr.encoding(out), [x for x in (a, b) if x.dims == shape_of(out)])
    assert a.encoding is not None and b.encoding is not None and y.encoding is not None
    if tr.fixed:
        k = fixed_mul(str(node.name), a.encoding, b.encoding, y.encoding, operation.clamp)
        _merge(tr, Op.MUL_FIXED, a, b, y, (k.z_a, k.z_b, k.z_y, k.lo, k.hi, k.m, k.shift), (), node)
        return
    made = mul_constants(a.encoding, b.encoding, y.encoding, operation.clamp)
    assert made is not None
    numbers = (made.z_a, made.z_b, made.z_y, made.lo, made.hi, float_bits(made.m))
    _merge(tr, Op.MUL, a, b, y, numbers, (), node)


def _merge(
    tr: Translator, op: Op, a: Array, b: Array, y: Array, numbers: tuple[int, ...], blobs: tuple[bytes, ...],
    node: g.Node,
) -> None:  # fmt: skip
    form = code_form(y.dims)
    sources = [Operand(x, form, dims=_broadcast(x, y.dims)) for x in (a, b)]
    tr.network.step(op, sources, Operand(y, form), numbers, blobs, str(node.name), True)
    tr.arrays[y.name] = y


def table(tr: Translator, operation: Operation) -> None:
    """A function of one value on codes."""
    node, out = operation.nodes[0], operation.output
    function = plain_function(node, tr.encodings)
    source = next(v for v in node.inputs if v is not None and g.constant(v) is None)
    x, wanted = tr.array(source), tr.encoding(out)
    assert function is not None and x.encoding is not None and wanted is not None
    if x.dims != shape_of(out):
        raise unsupported(node, "its constant changes the shape of the value")
    tr.arrays[str(out.name)] = tr.table(x, function_table(function, x.encoding, wanted), wanted, str(out.name))


def softmax(tr: Translator, operation: Operation) -> None:
    node, out = operation.nodes[0], operation.output
    x = tr.float_array(node.inputs[0])
    axis, rank = g.attribute(node, "axis", -1) % len(x.dims), len(x.dims)
    order = (*(k for k in range(rank) if k != axis), axis)
    if axis != rank - 1:
        x = _transposed(tr, x, order, f"{out.name}.in")
    y = Array(f"{out.name}.soft" if axis != rank - 1 else str(out.name), x.dims, None, like=(x,))
    tr.network.step(Op.SOFTMAX, [Operand(x, "last")], Operand(y, "last"), (), (), str(node.name))
    tr.settle(out, y if axis == rank - 1 else _transposed(tr, y, inverse(order), str(out.name)))


def _transposed(tr: Translator, x: Array, order: tuple[int, ...], name: str) -> Array:
    made = Array(name, tuple(x.dims[k] for k in order), x.encoding, like=(x,))
    return tr.link(x, made, _by(order), _by(inverse(order)), name)


def _by(order: tuple[int, ...]) -> Map:
    def change(view: View) -> View:
        return transpose(view, order)

    return change
