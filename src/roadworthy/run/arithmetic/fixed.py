"""The fixed-point form: every multiplication by a real number m > 0 is one by an integer, and a shift.

    scale32(v, M, S) = (v * M + 2^(S-1)) >> S        m = M 2^-S, 2^30 <= M < 2^31, 2 <= S <= 62

(TOSA 1.0, apply_scale_32 without double rounding.) Kinds of epilogue; p is the value in front of the activation:
fixed        q = clamp(scale32(acc, M, S) + z_y, lo, hi)
fixed_table  q = T[clamp(scale32(acc, M, S) + z_p, 0, 255)]
fixed_curve  p = clamp(scale32(acc, M, S) + z, -2^15, 2^15 - 1), v = T interpolated at p,
             q = sat(scale32(v, M2, S2) + z_y)
real         the accumulators leave the device

What is worked out here is shared by the reference and the lowering, as all of `arithmetic` is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding
from roadworthy.model.units import Unit
from roadworthy.run.arithmetic.epilogue import Epilogue, pre_activation, unit_epilogue, unit_scale
from roadworthy.run.arithmetic.fine import reach
from roadworthy.run.arithmetic.functions import F64, NONE, Function, exact
from roadworthy.run.arithmetic.geometry import Taps
from roadworthy.run.arithmetic.operations import Operation
from roadworthy.run.arithmetic.tables import clamp_codes

I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

Arithmetic = Literal["float", "fixed"]
"""How accumulators become codes: by float32 multipliers, or by 32-bit ones and shifts."""

MOST_SHIFT, LEAST_SHIFT = 62, 2
ADD_BITS, ADD_MOST_SHIFT = 21, 46
RESIZE_BITS = 11
ENTRIES, STEP = 513, 128
"""Entries of a curve, and the steps of p between two of them."""

_GRID, _HALVINGS = 8192, 60


def multiplier(m: NDArray[Any] | float, what: str) -> tuple[I32, I32]:
    """M and S of real numbers m > 0, worked out in float64; M is the mantissa rounded half to even.

    An m below 2^-32 keeps S = 62 and has a smaller M. Raises UnsupportedError from 2^29 up; `what` needs the number.
    """
    values = np.atleast_1d(np.asarray(m, np.float64))
    if not (values < 2.0**29).all() or (values < 0).any():  # NaN compares false
        raise _without_form(
            what, f"a multiplier of {np.max(values):.3g} is more than 32 bits and a shift express (2^29)"
        )
    mantissa, exponent = np.frexp(values)
    steps = np.rint(np.ldexp(mantissa, 31)).astype(np.int64)
    carried = steps == 1 << 31  # rounded up to the next power of two
    steps, shift = np.where(carried, 1 << 30, steps), 31 - (exponent.astype(np.int64) + carried)
    if (shift < LEAST_SHIFT).any():
        raise _without_form(what, "a multiplier rounds up to 2^29, more than 32 bits and a shift express")
    small = shift > MOST_SHIFT
    steps = np.where(small, np.rint(np.ldexp(values, MOST_SHIFT)), steps)
    return steps.astype(np.int32), np.where(small, MOST_SHIFT, shift).astype(np.int32)


def scale32(v: NDArray[Any], m: NDArray[Any], shift: NDArray[Any]) -> I64:
    """(v * M + 2^(S-1)) >> S in 64 bits: halves are rounded up.   v: |v| < 2^31; M and S broadcast to it."""
    s = np.asarray(shift, np.int64)
    return np.asarray((v.astype(np.int64) * np.asarray(m, np.int64) + (np.int64(1) << (s - 1))) >> s)


def interpolate(table: NDArray[Any], p: NDArray[Any]) -> I64:
    """v = T[i] * 128 + (T[i+1] - T[i]) * f with i = (p >> 7) + 256 and f = p & 127.   p: -2^15..2^15-1."""
    wide, p = table.astype(np.int64), p.astype(np.int64)
    i, f = (p >> 7) + 256, p & 127
    return np.asarray(wide[i] * STEP + (wide[i + 1] - wide[i]) * f)


@dataclass(frozen=True, eq=False)
class FixedEpilogue:
    """Constants of one unit in fixed point, each per output channel unless said otherwise.

    m, shift: M and S.   zero: z_y; of a table z_p, of a curve z (16 bits).   table: u8[256], or i16[513] of a curve.
    m2, shift2, zero2: M2, S2 and z_y of a curve.   lo, hi: codes the result is clamped to.
    real: what a unit with a float result computes on the host, else None.   function: the activation.
    """

    kind: Literal["fixed", "fixed_table", "fixed_curve", "real"]
    bias: I32
    m: I32
    shift: I32
    zero: I32
    table: NDArray[Any] | None = None
    m2: I32 | None = None
    shift2: I32 | None = None
    zero2: I32 | None = None
    lo: int = 0
    hi: int = 255
    real: Epilogue | None = None
    function: Function = NONE


@dataclass(frozen=True, eq=False)
class Curve:
    """An activation over 16 bits: entries between which is interpolated (the 16-bit TABLE of TOSA 1.0).

    step: s, what one step of p is worth.   zero: z, the p of 0; a multiple of 128, so that 0 (where many activations
    have their kink) is an entry.   table: T, 513 entries of steps of `worth`.
    """

    step: float
    zero: int
    table: I16
    worth: float


def fixed_epilogue(unit: Unit, encodings: Mapping[str, Encoding]) -> FixedEpilogue:
    """The epilogue of a unit that computes in integers (`int8_refusal` is None).

    Raises UnsupportedError, by name, for a multiplier from 2^29 up.
    """
    made = unit_epilogue(unit, encodings)
    output = encodings.get(str(unit.output.name))
    if output is None:
        nothing = np.zeros(len(made.bias), np.int32)
        return FixedEpilogue("real", made.bias, nothing, nothing, nothing, real=made, function=made.function)
    scale, what = unit_scale(unit, encodings).astype(np.float64), f"the layer {unit.name!r}"
    channels = len(made.bias)
    if made.kind == "linear":
        m, shift = multiplier(scale / output.scale.astype(np.float64), what)
        return FixedEpilogue("fixed", made.bias, m, shift, made.zero, lo=made.lo, hi=made.hi, function=made.function)
    if made.kind == "table":
        before = encodings[str(pre_activation(unit).name)]
        m, shift = multiplier(scale / before.scale.astype(np.float64), what)
        return FixedEpilogue("fixed_table", made.bias, m, shift, made.zero, made.table, function=made.function)
    curve = fit_curve(made.function, output)
    m, shift = multiplier(scale / curve.step, what)
    target = np.broadcast_to(output.scale, channels).astype(np.float64)
    m2, shift2 = multiplier(curve.worth / (STEP * target), what)
    zero = np.full(channels, curve.zero, np.int32)
    zero2 = np.ascontiguousarray(np.broadcast_to(output.zero_point, channels), np.int32)
    return FixedEpilogue("fixed_curve", made.bias, m, shift, zero, curve.table, m2, shift2, zero2,
                         function=made.function)  # fmt: skip


def _without_form(what: str, reason: str) -> UnsupportedError:
    return UnsupportedError(f"{what} has no fixed-point form: {reason}; use the target native for this model")


def fit_curve(function: Function, target: Encoding) -> Curve:
    """The curve of an activation whose result has the encoding `target`, one scale or many."""
    lo, hi = curve_range(function, target)
    # At lo and hi the code changes; the ends of p, which stand for all beyond, lie an entry farther, clear of the tie.
    # One more entry to spare lets zero lie on one.
    step = (hi - lo) / (65535 - 3 * STEP)
    zero = int(STEP * np.ceil((STEP - 32768 - lo / step) / STEP))
    values = exact(function, step * (STEP * (np.arange(ENTRIES) - 256.0) - zero))
    worth = float(np.abs(values).max()) / 32767 or 1.0
    return Curve(step, zero, np.rint(values / worth).astype(np.int16), worth)


def curve_range(function: Function, target: Encoding) -> tuple[float, float]:
    """The least interval that holds 0 and outside which no channel's code of f(v) changes; a thousandth of a step of
    the result long at least."""
    scale = np.atleast_1d(target.scale).astype(np.float64)[:, None]
    zero = np.atleast_1d(target.zero_point)[:, None]

    def codes(v: NDArray[Any]) -> F64:
        found = np.nan_to_num(exact(function, v), nan=0.0, posinf=3e38, neginf=-3e38)
        return np.asarray(np.clip(np.rint(found / scale) + zero, target.qmin, target.qmax), np.float64)

    ends = codes(np.array([-1e30, 1e30]))
    left, right = ends[:, :1], ends[:, 1:]
    low = reach(-1.0, lambda v: bool((codes(v) == left).all()))
    grid = np.linspace(low, reach(1.0, lambda v: bool((codes(v) == right).all())), _GRID)
    # Per channel, chunk by chunk of the grid: a layer of a thousand channels would take much memory at once.
    first, last = _GRID, -1
    for start in range(0, _GRID, 512):
        made = codes(grid[start : start + 512])
        below, above = (np.flatnonzero((made != end).any(0)) for end in (left, right))
        first = min(first, start + int(below[0])) if below.size else first
        last = start + int(above[-1]) if above.size else last
    shortest = 1e-3 * float(scale.min())
    if first == _GRID or last < 0:
        return -shortest, shortest

    def border(inside: float, outside: float, end: F64) -> float:
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            if (codes(np.array([middle])) == end).all():
                outside = middle
            else:
                inside = middle
        return outside

    lo = min(border(float(grid[first]), float(grid[max(first - 1, 0)]), left), 0.0)
    hi = max(border(float(grid[last]), float(grid[min(last + 1, _GRID - 1)]), right), 0.0)
    return lo, max(hi, lo + shortest)


@dataclass(frozen=True, eq=False)
class FixedAdd:
    """q = clamp((((a - z_a) A[c] + (b - z_b) B[c] + 2^(S[c]-1)) >> S[c]) + zero[c], lo, hi); one entry per channel."""

    z_a: int
    z_b: int
    a: I32
    b: I32
    shift: I32
    zero: I32
    lo: int
    hi: int


@dataclass(frozen=True)
class FixedMul:
    """q = clamp(scale32((a - z_a) (b - z_b), M, S) + z_y, lo, hi)."""

    z_a: int
    z_b: int
    z_y: int
    m: int
    shift: int
    lo: int
    hi: int


def fixed_add(name: str, a: Encoding, b: Encoding, y: Encoding, channels: int = 1, clamp: Function = NONE) -> FixedAdd:
    """Constants of a sum of codes for which `add_constants` has some; the larger factor lies in 2^20..2^21, so that
    the sum of both products fits 31 bits.   name: of the node. Raises UnsupportedError, by name, for a factor from
    2^20 up."""
    target = np.broadcast_to(y.scale, channels).astype(np.float64)
    m_a, m_b = (float(e.scale) / target for e in (a, b))
    shift = ADD_BITS - np.frexp(np.maximum(m_a, m_b))[1].astype(np.int64)
    if (shift < 1).any():
        raise _without_form(f"the sum {name!r}", "its scale is less than a millionth of that of an operand")
    shift = np.minimum(shift, ADD_MOST_SHIFT)
    factors = [np.rint(np.ldexp(m, shift)).astype(np.int32) for m in (m_a, m_b)]
    codes = clamp_codes(y, clamp)
    zero = np.ascontiguousarray(np.broadcast_to(y.zero_point, channels), np.int32)
    return FixedAdd(int(a.zero_point), int(b.zero_point), factors[0], factors[1], shift.astype(np.int32), zero,
                    int(codes[0, 0]), int(codes[1, 0]))  # fmt: skip


def fixed_mul(name: str, a: Encoding, b: Encoding, y: Encoding, clamp: Function = NONE) -> FixedMul:
    """Constants of a product of codes; one scale per tensor. Raises UnsupportedError as `multiplier` does."""
    m, shift = multiplier(float(a.scale) * float(b.scale) / float(y.scale), f"the product {name!r}")
    lo, hi = clamp_codes(y, clamp)[:, 0]
    z_a, z_b, z_y = (int(e.zero_point) for e in (a, b, y))
    return FixedMul(z_a, z_b, z_y, int(m[0]), int(shift[0]), int(lo), int(hi))


def fixed_average(name: str, source: Encoding, target: Encoding, positions: int) -> tuple[I32, I32]:
    """M and S of s_x / (s_y n) for n = 0..positions; M = 0 for n = 0. Raises UnsupportedError as `multiplier` does."""
    n = np.arange(1, positions + 1, dtype=np.float64)
    m, shift = multiplier(float(source.scale) / (float(target.scale) * n), f"the average {name!r}")
    return np.append(np.int32(0), m), np.append(np.int32(LEAST_SHIFT), shift)


def fixed_weights(taps: Taps) -> I32:
    """The shares of the second pixels of a linear Resize in steps of 2^-11."""
    return np.rint(taps.weight.astype(np.float64) * (1 << RESIZE_BITS)).astype(np.int32)


def float_between(operations: Sequence[Operation]) -> UnsupportedError | None:
    """The refusal of a network that computes in float between integer operations, naming the float one.

    Floats may make the picture's codes (but no layer may), and follow the last integer operation: that is the host's.
    """
    behind: set[str] = set()  # values that integer operations led to
    floats: dict[str, Operation] = {}  # value -> the float operation that device codes went through
    for operation in operations:
        made = {str(v.name) for n in operation.nodes for v in n.outputs}
        read = [str(v.name) for n in operation.nodes for v in n.inputs if v is not None and g.constant(v) is None]
        read = [name for name in read if name not in made]
        through = next((floats[name] for name in read if name in floats), None)
        if operation.form == "float" and (operation.unit is not None or any(name in behind for name in read)):
            through = through or operation
        if through is not None and operation.form not in ("float", "move"):
            return _refusal(through, operation)
        if operation.form not in ("float", "move") or any(name in behind for name in read):
            behind |= made
        if through is not None:
            floats.update(dict.fromkeys(made, through))
    return None


def _refusal(through: Operation, behind: Operation) -> UnsupportedError:
    node, reader = through.nodes[0], behind.nodes[0]
    reason = f" ({through.refusal})" if through.refusal else ""
    return UnsupportedError(
        f"{node.op_type} {node.name!r} computes in float{reason} in front of {reader.op_type} {reader.name!r}, which"
        " computes in integers; a device without floating point cannot do that, so use the target native, or export"
        " the model without it"
    )
