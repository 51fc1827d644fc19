"""Layers: units become CONV and DEPTHWISE, in integers or in float, with what follows as epilogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, narrow_codes
from roadworthy.model.units import Unit
from roadworthy.run.arithmetic import (
    NONE,
    Epilogue,
    FixedEpilogue,
    Function,
    Operation,
    Windows,
    canonical_weights,
    fixed_epilogue,
    function_of_unit,
    is_depthwise,
    pre_activation,
    unit_bias,
    unit_epilogue,
    weights_codes,
    windows,
)
from roadworthy.run.native.focus import space_to_depth_source
from roadworthy.run.native.network import NO_BORDER, Array, Border, Operand
from roadworthy.run.native.plan import Op, float_bits, function_bits
from roadworthy.run.native.translate import Translator, unsupported
from roadworthy.run.native.views import Map, View, take

Finish = Epilogue | FixedEpilogue

KINDS = {"linear": 0, "table": 1, "poly": 2, "real": 3, "fine": 4, "fixed": 5, "fixed_table": 6, "fixed_curve": 7}


def border_of(at: Windows, source_hw: Sequence[int]) -> Border:
    """Pixels around the image that the taps of a convolution reach."""
    reach = [(at.size[k] - 1) * at.strides[k] + (at.kernel[k] - 1) * at.dilations[k] + 1 for k in (0, 1)]
    bottom, right = (max(reach[k] - at.pads_begin[k] - source_hw[k], 0) for k in (0, 1))
    return at.pads_begin[0], at.pads_begin[1], bottom, right


def attributes(at: Windows, cin: int, cout: int, epilogue: Finish, weight_kind: int = 0) -> tuple[int, ...]:
    b = epilogue.poly_b if isinstance(epilogue, Epilogue) else 0.0
    f = epilogue.function if epilogue.kind == "real" else NONE
    return (
        *at.kernel, *at.strides, *at.pads_begin, *at.dilations, cin, cout, KINDS[epilogue.kind], epilogue.lo,
        epilogue.hi, *function_bits(f.code, f.a, f.b), float_bits(b), weight_kind,
    )  # fmt: skip


def blobs(weights: NDArray, epilogue: Finish, part: slice, weight_scale: bytes = b"") -> tuple[bytes, ...]:
    """The eight blobs, for a range of output channels."""

    def of(array: NDArray | None) -> bytes:
        return b"" if array is None else np.ascontiguousarray(array).tobytes()

    if isinstance(epilogue, FixedEpilogue):
        second = () if epilogue.m2 is None or epilogue.shift2 is None else (epilogue.m2[part], epilogue.shift2[part])
        return (
            of(weights), of(epilogue.bias[part]), of(epilogue.m[part]), of(epilogue.zero[part]), of(epilogue.table),
            of(epilogue.shift[part]), b"".join(map(of, second)),
            of(None if epilogue.zero2 is None else epilogue.zero2[part]),
        )  # fmt: skip
    floats = weights.dtype == np.float32 or bool(weight_scale)
    return (
        of(weights), of(epilogue.bias[part]), b"" if floats else of(epilogue.scale[part]),
        b"" if floats else of(epilogue.zero[part]), of(epilogue.table), of(epilogue.poly),
        of(None if epilogue.out_scale is None else epilogue.out_scale[part]), weight_scale,
    )  # fmt: skip


POINT = Windows((1, 1), (1, 1), (1, 1), (0, 0), (0, 0), (1, 1), (0, 0))


def layer(tr: Translator, operation: Operation) -> None:
    """A unit; in integers where the operation says so."""
    unit = operation.unit
    assert unit is not None
    if operation.form == "unit":
        _integer(tr, unit)
        return
    if operation.refusal is not None:
        tr.network.notes.append(f"{unit.name} computes in float: {operation.refusal}")
    _float(tr, unit)


def _integer(tr: Translator, unit: Unit) -> None:
    epilogue: Finish
    if tr.fixed:
        made = fixed_epilogue(unit, tr.encodings)
        epilogue = made.real or made
    else:
        epilogue = unit_epilogue(unit, tr.encodings)
    weights = weights_codes(unit, tr.encodings[str(unit.weight.name)])
    y = tr.new(unit.output, tr.encodings.get(str(unit.output.name)))
    _convolve(tr, unit, tr.array(unit.input), y, weights, epilogue, 0, None)
    tr.arrays[str(unit.output.name)] = y


def _float(tr: Translator, unit: Unit) -> None:
    if unit.anchor.op_type == "ConvTranspose":
        from roadworthy.run.native.transposed import conv_transpose

        _with_activation(tr, unit, conv_transpose(tr, unit))
        return
    if unit.anchor.op_type == "Gemm" and g.attribute(unit.anchor, "transA", 0):
        raise unsupported(unit.anchor, "its first operand is transposed")
    if not unit.per_channel:
        raise unsupported(unit.anchor, "its constant operand is no plain matrix")
    bias = unit_bias(unit)
    function = _activation(unit) if bias is not None else None
    weights, kind, scale = _float_weights(tr, unit)
    channels = weights.shape[-1] if is_depthwise(unit) else len(weights)
    made = np.zeros(channels, np.float32) if bias is None else np.ascontiguousarray(bias, np.float32)
    epilogue = Epilogue("real", made, made, np.zeros(channels, np.int32), function=function or NONE)  # type: ignore[arg-type]
    fused = function is not None
    y = tr.new(unit.output if fused else unit.anchor.outputs[0], None)
    _convolve(tr, unit, tr.float_array(unit.input), y, weights, epilogue, kind, scale)
    if fused:
        tr.settle(unit.output, y)
        return
    _rest(tr, unit, y, biased=bias is not None)


def _rest(tr: Translator, unit: Unit, y: Array, biased: bool) -> None:
    """What stands behind the anchor, node by node: an activation that is no function of one value, an odd bias."""
    if not biased and unit.bias is not None:
        from roadworthy.run.native.pointwise import binary

        y = binary(tr, "add", y, tr.float_array(unit.bias), y.dims, unit.name)
    start = pre_activation(unit) if biased else unit.anchor.outputs[0]
    kept = dict(tr.arrays)
    tr.arrays[str(start.name)] = y
    began = biased and start is not unit.anchor.outputs[0]
    for node in unit.nodes[2 if began else 1 :]:
        alone = Operation((node,), "float", node.outputs[0])
        encodings, tr.encodings = tr.encodings, {} if node is not unit.nodes[-1] else tr.encodings
        tr.handler(alone)(tr, alone)
        tr.encodings = encodings
    if unit.output is start:
        tr.settle(unit.output, y)
    made = tr.arrays[str(unit.output.name)]
    tr.arrays = {**kept, str(unit.output.name): made}


def _with_activation(tr: Translator, unit: Unit, y: Array) -> None:
    from roadworthy.run.native.pointwise import unary

    function = _activation(unit)
    if function is None:
        _rest(tr, unit, y, biased=True)
        return
    tr.settle(unit.output, y if function == NONE else unary(tr, function, y, str(unit.output.name)))


def _activation(unit: Unit) -> Function | None:
    """The unit's activation as a function; None where it is none of one value."""
    try:
        return function_of_unit(unit) or NONE
    except UnsupportedError:
        return None


def _float_weights(tr: Translator, unit: Unit) -> tuple[NDArray, int, NDArray | None]:
    """Canonical weights, their kind (0 float32, 1 and 2 stored integers) and the scale of stored ones."""
    array, encoding = g.constant(unit.weight), tr.encodings.get(str(unit.weight.name))
    assert array is not None
    if encoding is None:
        return canonical_weights(unit, array).astype(np.float32), 0, None
    if encoding.axis not in (None, unit.weight_axis) or not encoding.signed or encoding.zero_point.any():
        return canonical_weights(unit, encoding.dequantize(encoding.quantize(array))), 0, None
    codes = canonical_weights(unit, narrow_codes(array, encoding))
    channels = codes.shape[-1] if is_depthwise(unit) else len(codes)
    scale = np.ascontiguousarray(np.broadcast_to(encoding.scale, channels), np.float32)
    return codes, 1 if codes.dtype == np.int8 else 2, scale


def _convolve(
    tr: Translator, unit: Unit, x: Array, y: Array, weights: NDArray, epilogue: Finish, kind: int,
    scale: NDArray | None,
) -> None:  # fmt: skip
    """One CONV or DEPTHWISE, or a CONV per group."""
    if unit.anchor.op_type != "Conv":
        dense(tr, x, y, weights, epilogue, kind, scale, POINT, "rows", unit.name)
        return
    if len(x.dims) != 4:
        raise unsupported(unit.anchor, f"it is a convolution over {len(x.dims) - 2} dimensions, not an image")
    if x.dims[0] != 1:
        raise unsupported(unit.anchor, f"its batch is {x.dims[0]}, and the engine computes one image at a time")
    if is_depthwise(unit):
        at = windows(unit.anchor, (x.dims[2], x.dims[3]), (weights.shape[0], weights.shape[1]))
        source = Operand(x, "image", border_of(at, x.dims[2:]))
        numbers = attributes(at, len(epilogue.bias), len(epilogue.bias), epilogue, kind)
        made = blobs(weights, epilogue, slice(None), b"" if scale is None else scale.tobytes())
        tr.network.step(Op.DEPTHWISE, [source], Operand(y, "image"), numbers, made, unit.name)
        return
    at = windows(unit.anchor, (x.dims[2], x.dims[3]), (weights.shape[1], weights.shape[2]))
    focus = space_to_depth_source(tr, unit, x, at, weights)
    if focus is not None:
        x, at, weights = focus
    dense(tr, x, y, weights, epilogue, kind, scale, at, "image", unit.name, g.attribute(unit.anchor, "group", 1))


def dense(
    tr: Translator, x: Array, y: Array, weights: NDArray, epilogue: Finish, kind: int, scale: NDArray | None,
    at: Windows, form: str, name: str, groups: int = 1, part: Map | None = None,
) -> None:  # fmt: skip
    """CONVs, one per group, on channel ranges of x and y; part: the pixels of y that are written."""
    border = border_of(at, x.dims[2:]) if form == "image" else NO_BORDER
    each, cin = len(weights) // groups, weights.shape[3]
    for k in range(groups):
        own_x, own_y, rows = x, y, slice(k * each, (k + 1) * each)
        if groups > 1:
            own_x = channels_of(tr, x, k * cin, cin, name)
            own_y = channels_into(y, k * each, each)
        numbers = attributes(at, cin, each, epilogue, kind)
        made = blobs(weights[rows], epilogue, rows, b"" if scale is None else scale[rows].tobytes())
        target = Operand(own_y, form, part=part)  # type: ignore[arg-type]
        tr.network.step(Op.CONV, [Operand(own_x, form, border)], target, numbers, made, name)  # type: ignore[arg-type]
        if groups > 1:
            tr.link(own_y, y, None, _channels(k * each, each), name)


def channels_of(tr: Translator, x: Array, start: int, count: int, name: str) -> Array:
    """A range of channels of an image, with no copy."""
    encoding = part_of_encoding(x, start, count)
    part = Array(f"{x.name}[{start}:{start + count}]", (1, count, *x.dims[2:]), encoding, like=(x,))
    return tr.link(x, part, _channels(start, count), None, name)


def channels_into(y: Array, start: int, count: int) -> Array:
    encoding = part_of_encoding(y, start, count)
    return Array(f"{y.name}[{start}:{start + count}]", (1, count, *y.dims[2:]), encoding)


def part_of_encoding(x: Array, start: int, count: int) -> Encoding | None:
    e = x.encoding
    if e is None or e.axis is None:
        return e
    return replace(e, scale=e.scale[start : start + count], zero_point=e.zero_point[start : start + count])


def _channels(start: int, count: int) -> Map:
    def change(view: View) -> View:
        return take(view, 1, start, 1, count)

    return change
