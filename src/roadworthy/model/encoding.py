"""Quantization as facts beside the graph: `QuantSpec` is the wish, `Encoding` the result.

    q = clamp(round_half_even(x / scale) + zero_point, qmin, qmax)        x' = (q - zero_point) * scale

as ONNX QuantizeLinear and DequantizeLinear define it. `scale` and `zero_point` are scalars, or vectors along `axis`.
With `levels` only some codes occur, and q is the level nearest to x / scale: logarithmic grids and codebooks are grids
of int8 codes with holes, so whatever runs int8 codes runs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class QuantSpec:
    """How a value should be quantized.

    bits: 2..16.   signed: int or uint.   axis: one scale per index along this axis, or None for one per tensor.
    symmetric: the range is centred on zero (weights; some targets also want it for activations).
    observer: a key of `OBSERVERS`, which turns what was measured into a range.
    grid: where the codes of a weight may lie, a key of `quantize.weights.GRIDS`; bits then counts what names a level.
    power_of_two: scales are powers of two, for devices that only shift.
    """

    bits: int = 8
    signed: bool = False
    axis: int | None = None
    symmetric: bool = False
    observer: str = "mse"
    grid: str = "linear"
    power_of_two: bool = False


@dataclass(frozen=True, eq=False)
class Encoding:
    """How a value is quantized: scale (float32) and zero point (int64), scalar or one per index along `axis`.

    storage: the codes only save space; the value is expanded on loading and computed with in float (weights).
    levels: the codes that may occur, ascending, or None for every code of `bits` bits (8 or 16, then).
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    bits: int = 8
    signed: bool = False
    axis: int | None = None
    storage: bool = False
    levels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        scale = np.asarray(self.scale, np.float32)
        zero = np.asarray(self.zero_point, np.int64)
        if scale.shape != zero.shape:
            raise ValueError(f"scale of shape {scale.shape} and zero point of shape {zero.shape} do not match")
        if (self.axis is None) != (scale.ndim == 0):
            raise ValueError("a vector of scales needs an axis, and a scalar has none")
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError("every scale must be finite and positive")
        if (zero < self.qmin).any() or (zero > self.qmax).any():
            raise ValueError(f"zero point outside {self.qmin}..{self.qmax}")
        if self.levels is not None:
            levels = tuple(int(v) for v in self.levels)
            if not levels or any(a >= b for a, b in pairwise(levels)):
                raise ValueError("levels must be distinct codes in ascending order, one at least")
            if levels[0] < (-self.qmax if self.signed else 0) or levels[-1] > self.qmax:
                raise ValueError(f"a level lies outside the codes of {self.bits} bits")
            object.__setattr__(self, "levels", levels)
        scale.setflags(write=False)
        zero.setflags(write=False)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "zero_point", zero)

    @property
    def qmin(self) -> int:
        return code_limits(self.bits, self.signed)[0]

    @property
    def qmax(self) -> int:
        return code_limits(self.bits, self.signed)[1]

    @property
    def dtype(self) -> type[np.generic]:
        """The smallest NumPy integer type that holds the codes."""
        if self.bits <= 8:
            return np.int8 if self.signed else np.uint8
        return np.int16 if self.signed else np.uint16

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and highest value that can be represented (over all channels)."""
        lo = (self.qmin - self.zero_point) * self.scale
        hi = (self.qmax - self.zero_point) * self.scale
        return float(np.min(lo)), float(np.max(hi))

    @property
    def index_bits(self) -> int:
        """Bits that tell which code a value has: what a weight costs where codes are packed."""
        return self.bits if self.levels is None else max((len(self.levels) - 1).bit_length(), 1)

    @cached_property
    def _middles(self) -> NDArray[np.float32]:
        levels = np.asarray(self.levels, np.float32)
        return (levels[1:] + levels[:-1]) * np.float32(0.5)

    def _shaped(self, array: NDArray, ndim: int) -> NDArray:
        if self.axis is None:
            return array
        shape = [1] * ndim
        shape[self.axis] = -1
        return array.reshape(shape)

    def quantize(self, x: NDArray) -> NDArray[Any]:
        """Codes of x, in `dtype`; x of any shape (with `axis` as long as the scales)."""
        x = np.asarray(x, np.float32)
        if self.levels is not None:
            at = x / self._shaped(self.scale, x.ndim) + self._shaped(self.zero_point, x.ndim).astype(np.float32)
            return np.asarray(self.levels, self.dtype)[np.searchsorted(self._middles, at)]
        q = np.rint(x / self._shaped(self.scale, x.ndim)) + self._shaped(self.zero_point, x.ndim)
        return np.clip(q, self.qmin, self.qmax).astype(self.dtype)

    def dequantize(self, q: NDArray) -> NDArray[np.float32]:
        """Values of codes, float32."""
        centred = q.astype(np.int64) - self._shaped(self.zero_point, q.ndim)
        return (centred.astype(np.float32) * self._shaped(self.scale, q.ndim)).astype(np.float32)

    def fake(self, x: NDArray) -> NDArray[np.float32]:
        """x after a round trip through its codes."""
        return self.dequantize(self.quantize(x))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Encoding)
            and self._kind == other._kind
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    @property
    def _kind(self) -> tuple[int, bool, int | None, bool, tuple[int, ...] | None]:
        return self.bits, self.signed, self.axis, self.storage, self.levels

    def __hash__(self) -> int:
        return hash((self._kind, self.scale.tobytes(), self.zero_point.tobytes()))


def narrow_codes(weight: NDArray, encoding: Encoding) -> NDArray:
    """Integer codes of a weight in the narrow range -qmax..qmax, so that -x is exact; unsigned ones as they are."""
    q = encoding.quantize(weight)
    return np.maximum(q, -encoding.qmax) if encoding.signed else q


def encoding_of_range(lo: float, hi: float, spec: QuantSpec) -> Encoding:
    """The per-tensor encoding that covers lo..hi; zero is always exactly representable, as padding needs it.

    Raises ValueError when the range is not finite.
    """
    if not (np.isfinite(lo) and np.isfinite(hi)):
        raise ValueError(f"the range {lo}..{hi} is not finite")
    scale, zero = scales_of_ranges(np.asarray(lo), np.asarray(hi), spec)
    return Encoding(scale, zero, spec.bits, spec.signed)


def encoding_of_ranges(lo: NDArray, hi: NDArray, spec: QuantSpec) -> Encoding:
    """One scale and zero point per channel along spec.axis.   lo, hi: (C,) ranges.

    No range is narrower than CHANNEL_FLOOR of the widest: a channel that hardly moved on the calibration images would
    else clip whatever it does on others.
    Raises ValueError when a range is not finite.
    """
    if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
        raise ValueError("a range is not finite")
    lo, hi = np.minimum(lo, 0.0).astype(np.float64), np.maximum(hi, 0.0).astype(np.float64)
    span = hi - lo
    short = np.maximum(span.max() * CHANNEL_FLOOR - span, 0.0)
    below = -lo / np.maximum(span, _TINY)  # a range behind a ReLU stays at zero: all channels keep one zero point
    scale, zero = scales_of_ranges(lo - short * below, hi + short * (1 - below), spec)
    return Encoding(scale, zero, spec.bits, spec.signed, spec.axis)


def scales_of_ranges(lo: NDArray, hi: NDArray, spec: QuantSpec) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scales (float32) and zero points of many ranges lo..hi at once, each extended to hold zero."""
    qmin, qmax = code_limits(spec.bits, spec.signed)
    lo, hi = np.minimum(lo, 0.0).astype(np.float64), np.maximum(hi, 0.0).astype(np.float64)
    if spec.symmetric:
        middle = 0 if spec.signed else (qmax + 1) // 2
        scale = _rounded_up(np.maximum(np.maximum(-lo, hi) / (qmax - middle), _TINY).astype(np.float32), spec)
        return scale, np.full(scale.shape, middle, np.int64)
    scale = _rounded_up(np.maximum((hi - lo) / (qmax - qmin), _TINY).astype(np.float32), spec)
    return scale, np.clip(np.rint(qmin - lo / scale), qmin, qmax).astype(np.int64)


def _rounded_up(scale: NDArray[np.float32], spec: QuantSpec) -> NDArray[np.float32]:
    return power_of_two_above(scale) if spec.power_of_two else scale


def power_of_two_above(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """The least power of two that is not below each scale."""
    mantissa, exponent = np.frexp(scale)  # scale = mantissa * 2^exponent, mantissa in 0.5..1
    return np.ldexp(np.float32(1), np.where(mantissa == 0.5, exponent - 1, exponent)).astype(np.float32)


def code_limits(bits: int, signed: bool) -> tuple[int, int]:
    """Lowest and highest code."""
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


_TINY = 1e-8
"""Lowest scale: a tensor that is always zero still needs a positive one."""

CHANNEL_FLOOR = 1 / 256
"""Least span of a channel, as a share of the widest one."""
