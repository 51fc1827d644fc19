"""Constants of operations on codes that are no layers: tables, multipliers, clamps. Worked out in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.model.encoding import Encoding
from roadworthy.run.arithmetic.functions import F32, F64, NONE, Function, exact

U8 = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class AddConstants:
    """q = clamp(rint(float(a - z_a) * m_a[c] + float(b - z_b) * m_b[c]) + zero[c], lo, hi); one entry per channel."""

    z_a: int
    z_b: int
    m_a: F32
    m_b: F32
    zero: NDArray[np.int32]
    lo: int
    hi: int


@dataclass(frozen=True)
class MulConstants:
    """q = clamp(rint(float((a - z_a) * (b - z_b)) * m) + z_y, lo, hi)."""

    z_a: int
    z_b: int
    z_y: int
    m: float
    lo: int
    hi: int


def quantize_exact(x: NDArray[Any], target: Encoding) -> NDArray[np.int64]:
    """Codes of float64 values with one scale per tensor, worked out in float64. NaN has the code of zero."""
    codes = np.rint(np.where(np.isnan(x), 0.0, x) / float(target.scale)) + int(target.zero_point)
    return np.minimum(np.maximum(codes, target.qmin), target.qmax).astype(np.int64)


def dequantize_exact(source: Encoding) -> F64:
    """The values of the codes 0..255, one scale per tensor, in float64."""
    return np.asarray((np.arange(256) - int(source.zero_point)) * float(source.scale), np.float64)


def function_table(function: Function, source: Encoding, target: Encoding) -> U8:
    """T[i] = quantize_target(f(dequantize_source(i))); both with one scale per tensor."""
    return quantize_exact(exact(function, dequantize_exact(source)), target).astype(np.uint8)


def requant_table(source: Encoding, target: Encoding, clamp: Function = NONE) -> U8:
    """T[i] = clamp(rint(float(i - z_source) * m) + z_target, lo, hi), m = float32(s_source / s_target).

    clamp: a relu or clip behind.
    """
    m = np.float32(float(source.scale) / float(target.scale))
    steps = (np.arange(256) - int(source.zero_point)).astype(np.float32)
    lo, hi = clamp_codes(target, clamp)[:, 0]
    codes = np.clip(np.rint(steps * m), -32768, 32767).astype(np.int64) + int(target.zero_point)
    return np.clip(codes, lo, hi).astype(np.uint8)


def clamp_codes(target: Encoding, clamp: Function = NONE) -> NDArray[np.int64]:
    """The codes of a clamp's lower and upper bound, (2, 1), or (2, channels) where the encoding is per channel;
    0 and 255 without one."""
    bounds = clamp.clamp or (-np.inf, np.inf)
    scale, zero = np.atleast_1d(target.scale).astype(np.float64), np.atleast_1d(target.zero_point)
    return np.stack([np.clip(np.rint(v / scale) + zero, target.qmin, target.qmax).astype(np.int64) for v in bounds])


def add_constants(
    a: Encoding, b: Encoding, y: Encoding, channels: int = 1, clamp: Function = NONE
) -> AddConstants | None:
    """Constants of a sum of codes; y may be per channel, a and b not (None then, or where a clamp's codes differ
    between channels)."""
    codes = clamp_codes(y, clamp)
    if a.axis is not None or b.axis is not None or (codes != codes[:, :1]).any():
        return None
    target = np.broadcast_to(y.scale, channels).astype(np.float64)
    m_a, m_b = ((float(e.scale) / target).astype(np.float32) for e in (a, b))
    zero = np.ascontiguousarray(np.broadcast_to(y.zero_point, channels), np.int32)
    return AddConstants(int(a.zero_point), int(b.zero_point), m_a, m_b, zero, int(codes[0, 0]), int(codes[1, 0]))


def mul_constants(a: Encoding, b: Encoding, y: Encoding, clamp: Function = NONE) -> MulConstants | None:
    """Constants of a product of codes; None where a scale is per channel."""
    if not (a.axis is None and b.axis is None and y.axis is None):
        return None
    m = float(np.float32(float(a.scale) * float(b.scale) / float(y.scale)))
    lo, hi = clamp_codes(y, clamp)[:, 0]
    return MulConstants(int(a.zero_point), int(b.zero_point), int(y.zero_point), m, int(lo), int(hi))


def average_constants(source: Encoding, target: Encoding, positions: int) -> F32:
    """m_n = float32(s_x / (s_y * n)) for n = 0..positions (0 for n = 0)."""
    n = np.arange(positions + 1, dtype=np.float64)
    made = np.zeros(positions + 1)
    made[1:] = float(source.scale) / (float(target.scale) * n[1:])
    return made.astype(np.float32)


def u8_encoding(encoding: Encoding) -> Encoding | None:
    """The encoding of a value with unsigned 8-bit codes: signed ones are moved up by 128; None for other widths."""
    if encoding.bits != 8 or encoding.storage:
        return None
    if not encoding.signed:
        return encoding
    return Encoding(encoding.scale, encoding.zero_point + 128, 8, False, encoding.axis)
