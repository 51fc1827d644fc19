"""What makes a unit compute in integers, and the constants with which its accumulators become results.

    acc[c] = sum_k x[k] * w[c, k] + bias[c]        x: u8 codes, w: s8 codes, acc: int32
    bias[c] = clamp(rint(b[c] / scale[c]), -2^30, 2^30) - sum_k z_x[k] w[c, k]
    scale[c] = s_x s_w[c], rounded to float32

Kinds of epilogue, chosen by what is encoded (p: the value in front of the activation, y: the unit's output):
linear  q = clamp(rint(acc * scale / s_y) + z_y, lo, hi)
table   q = T[sat(rint(acc * scale / s_p) + z_p)]
fine    q = T[clamp(rint(acc * scale / s_p) + z_p, 0, 1023)], s_p and z_p from y alone (fine.py)
poly    q = sat(rint(f(acc * scale) / s_y) + z_y), f in 32 pieces
real    y = f(acc * scale), float32
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, narrow_codes
from roadworthy.model.units import Unit
from roadworthy.run.arithmetic.fine import fine_table
from roadworthy.run.arithmetic.functions import F32, NONE, Function
from roadworthy.run.arithmetic.nodes import function_of_unit
from roadworthy.run.arithmetic.polynomial import fit_polynomial, range_below
from roadworthy.run.arithmetic.tables import clamp_codes, function_table

I32 = NDArray[np.int32]
BIAS_LIMIT = 2**30
ACC_LIMIT = 2**31
SCALED_LIMIT = 2**30


@dataclass(frozen=True, eq=False)
class Epilogue:
    """Constants of one unit, each per output channel unless said otherwise; see docs/engine.md.

    scale: the multiplier m for linear, table and fine, s_x * s_w for real, a * s_x * s_w for poly.
    zero: z_y, for table and fine z_p, for real 0.   out_scale: 1 / s_y (poly).   table: 256 codes, for fine 1024.
    poly, poly_b: pieces of the activation (`fit_polynomial`).
    lo, hi: codes the result is clamped to (linear).   function: the activation (real; elsewhere for information).
    """

    kind: Literal["linear", "table", "poly", "real", "fine"]
    bias: I32
    scale: F32
    zero: I32
    out_scale: F32 | None = None
    table: NDArray[np.uint8] | None = None
    poly: F32 | None = None
    poly_b: float = 0.0
    lo: int = 0
    hi: int = 255
    function: Function = NONE


def is_depthwise(unit: Unit) -> bool:
    """Whether each output channel is a convolution of the input channel of the same number."""
    weight = _weight(unit)
    return (
        unit.anchor.op_type == "Conv" and weight.shape[1] == 1 and g.attribute(unit.anchor, "group", 1) == len(weight)
    )


def pre_activation(unit: Unit) -> g.Value:
    """The value in front of the activation: the anchor's result, with the bias that a MatMul has as an Add."""
    last = unit.anchor
    for node in unit.nodes[1:2]:
        if _is_bias_add(unit, node):
            last = node
    return last.outputs[0]


def weights_codes(unit: Unit, encoding: Encoding) -> NDArray[np.int8]:
    """Codes in -127..127, [cout][kh][kw][cin / groups]; for a depthwise convolution [kh][kw][c]; matrices as 1x1."""
    return np.ascontiguousarray(canonical_weights(unit, narrow_codes(_weight(unit), encoding)))


def canonical_weights(unit: Unit, weight: NDArray[Any]) -> NDArray[Any]:
    """An array in the layout of a unit's weight, brought into the canonical layout of `weights_codes`."""
    if unit.anchor.op_type == "Conv":
        moved = weight.transpose(0, 2, 3, 1)  # cout, kh, kw, cin
        return moved[..., 0].transpose(1, 2, 0) if is_depthwise(unit) else moved
    matrix = weight if unit.weight_axis == 0 else weight.T
    return matrix[:, None, None, :]


def int8_refusal(unit: Unit, encodings: Mapping[str, Encoding]) -> str | None:
    """Why a unit does not compute in integers, as the end of a sentence; None when it does."""
    source, weight = encodings.get(str(unit.input.name)), encodings.get(str(unit.weight.name))
    if source is None or weight is None:
        missing = "input" if source is None else "weight"
        return f"its {missing} has no encoding"
    if weight.storage:
        return "its weight is only stored as integers"
    reason = _anchor_refusal(unit) or _source_refusal(unit, source) or _weight_refusal(unit, weight)
    if reason is not None:
        return reason
    output = encodings.get(str(unit.output.name))
    if output is not None and not is_u8(output):
        return "its output is not encoded as unsigned 8-bit codes"
    if output is not None and output.axis not in (None, _channel_axis(unit)):
        return "its output has scales along an axis that is not the channels"
    try:
        epilogue = unit_epilogue(unit, encodings)
    except UnsupportedError as error:
        return str(error)
    return _overflow(unit, weight, epilogue)


def unit_epilogue(unit: Unit, encodings: Mapping[str, Encoding]) -> Epilogue:
    """The epilogue of a unit that computes in integers (`int8_refusal` is None).

    Raises UnsupportedError where the activation has no form in the engine.
    """
    source, weight = encodings[str(unit.input.name)], encodings[str(unit.weight.name)]
    function = function_of_unit(unit) or NONE
    bias, scale = _bias_and_scale(unit, source, weight)
    channels = len(bias)
    output, before = encodings.get(str(unit.output.name)), encodings.get(str(pre_activation(unit).name))
    if output is None:
        return Epilogue("real", bias, scale, np.zeros(channels, np.int32), function=function)
    if function.name == "none" or function.clamp is not None:
        codes = clamp_codes(output, function)
        if (codes == codes[:, :1]).all():
            lo, hi = int(codes[0, 0]), int(codes[1, 0])
            zero = _per_channel(output.zero_point, channels)
            return Epilogue("linear", bias, _ratio(scale, output), zero, lo=lo, hi=hi, function=function)
    elif before is not None and is_u8(before) and before.axis is None and output.axis is None:
        table, zero = function_table(function, before, output), _per_channel(before.zero_point, channels)
        return Epilogue("table", bias, _ratio(scale, before), zero, table=table, function=function)
    elif before is None and output.axis is None and (fine := fine_table(function, output)) is not None:
        m = (scale.astype(np.float64) / fine.step).astype(np.float32)
        return Epilogue("fine", bias, m, np.full(channels, fine.zero, np.int32), table=fine.table, function=function)
    poly, a, b = fit_polynomial(function, *range_below(function, output.range[1]))
    pieces = (scale.astype(np.float64) * a).astype(np.float32)  # an accumulator in widths of a piece
    inverse = (1.0 / np.broadcast_to(output.scale, channels).astype(np.float64)).astype(np.float32)
    zero = _per_channel(output.zero_point, channels)
    return Epilogue("poly", bias, pieces, zero, inverse, poly=poly, poly_b=b, function=function)


def unit_bias(unit: Unit) -> NDArray[np.float64] | None:
    """The bias per output channel; zeros without one, None when it is no constant with one number per channel."""
    channels = _channels(unit)
    if unit.anchor.op_type == "MatMul":
        if len(unit.nodes) < 2 or not _is_bias_add(unit, unit.nodes[1]):
            return np.zeros(channels)
        made = unit.anchor.outputs[0]
        array = next(a for v in unit.nodes[1].inputs if v is not made and (a := g.constant(v)) is not None)
    else:
        if unit.bias is None:
            return np.zeros(channels)
        found = g.constant(unit.bias)
        if found is None:
            return None
        array = found
    if array.size not in (1, channels) or (array.size > 1 and array.shape[-1] != channels):
        return None
    return np.broadcast_to(array.reshape(-1).astype(np.float64), channels)


def is_u8(encoding: Encoding) -> bool:
    return encoding.bits == 8 and not encoding.signed and not encoding.storage


def _is_bias_add(unit: Unit, node: g.Node) -> bool:
    return node is unit.bias_add


def _weight(unit: Unit) -> NDArray[Any]:
    weight = g.constant(unit.weight)
    assert weight is not None  # what makes it a unit
    return weight


def _channels(unit: Unit) -> int:
    return int(_weight(unit).shape[unit.weight_axis])


def _channel_axis(unit: Unit) -> int | None:
    return 1 if unit.anchor.op_type == "Conv" else None


def _per_channel(values: NDArray[Any], channels: int) -> I32:
    return np.ascontiguousarray(np.broadcast_to(values, channels), np.int32)


def _ratio(scale: F32, target: Encoding) -> F32:
    return (scale.astype(np.float64) / target.scale.astype(np.float64)).astype(np.float32)


def unit_scale(unit: Unit, encodings: Mapping[str, Encoding]) -> F32:
    """scale[c] = s_x s_w[c]: what one step of an integer unit's accumulator is worth."""
    return _bias_and_scale(unit, encodings[str(unit.input.name)], encodings[str(unit.weight.name)])[1]


def _bias_and_scale(unit: Unit, source: Encoding, weight: Encoding) -> tuple[I32, F32]:
    channels = _channels(unit)
    s_x = np.broadcast_to(source.scale, channels) if source.axis is not None else source.scale
    s_w = np.broadcast_to(weight.scale, channels)
    scale = np.ascontiguousarray(np.broadcast_to((s_x * s_w).astype(np.float32), channels))
    codes = weights_codes(unit, weight).astype(np.int64)
    taps = codes.sum((0, 1)) if is_depthwise(unit) else codes.sum((1, 2, 3))
    real = unit_bias(unit)
    assert real is not None
    # By the rounded scale, as Q/DQ files store biases: a model that comes back from one has the same bias.
    steps = np.clip(np.rint(real / scale.astype(np.float64)), -BIAS_LIMIT, BIAS_LIMIT).astype(np.int64)
    folded = steps - source.zero_point * taps
    return np.clip(folded, -ACC_LIMIT, ACC_LIMIT - 1).astype(np.int32), scale  # clipped only where it is refused


def _anchor_refusal(unit: Unit) -> str | None:
    anchor, op = unit.anchor, unit.anchor.op_type
    weight = _weight(unit)
    if op == "ConvTranspose" or not unit.per_channel:
        return f"{op} has no integer form" if op == "ConvTranspose" else "its weight is no plain matrix"
    if op == "Conv" and weight.ndim != 4:
        return f"it is a convolution over {weight.ndim - 2} dimensions"
    if op == "Gemm" and (g.attribute(anchor, "transA", 0) or g.attribute(anchor, "alpha", 1.0) != 1.0):
        return "its alpha is not 1 or its input is transposed"
    if op == "Gemm" and unit.bias is not None and g.attribute(anchor, "beta", 1.0) != 1.0:
        return "its beta is not 1"
    if weight.dtype != np.float32 or not np.isfinite(weight).all():
        return "its weight is not finite float32"
    bias = unit_bias(unit)
    if bias is None or not np.isfinite(bias).all():
        return "its bias is not one finite number per output channel"
    return None


def _source_refusal(unit: Unit, source: Encoding) -> str | None:
    if not is_u8(source):
        return "its input is not encoded as unsigned 8-bit codes"
    if source.axis is None:
        return None
    if not is_depthwise(unit):
        return "its input has a scale per channel, which only a depthwise convolution can take"
    return None if source.axis == 1 else "its input has scales along an axis that is not the channels"


def _weight_refusal(unit: Unit, weight: Encoding) -> str | None:
    if weight.bits > 8 or not weight.signed or weight.zero_point.any():
        return "its weight is not encoded symmetrically in 8 bits"
    if weight.axis is not None and weight.axis % _weight(unit).ndim != unit.weight_axis:
        return "its weight has scales along another axis than the output channels"
    return None


def _overflow(unit: Unit, weight: Encoding, epilogue: Epilogue) -> str | None:
    """The largest accumulator in magnitude, whatever the codes and whatever the order of the sum."""
    codes = np.abs(weights_codes(unit, weight).astype(np.int64))
    sums = codes.sum((0, 1)) if is_depthwise(unit) else codes.sum((1, 2, 3))
    largest = 255 * sums + np.abs(epilogue.bias.astype(np.int64))
    if (largest >= ACC_LIMIT).any():
        return "its sums could pass 31 bits"
    rounded = epilogue.kind in ("linear", "table", "fine")
    if rounded and (largest * epilogue.scale.astype(np.float64) >= SCALED_LIMIT).any():
        return "its output scale is too small beside its input and weight scales"
    return None
