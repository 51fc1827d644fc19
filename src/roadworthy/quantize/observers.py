"""OBSERVERS: from what was measured of a tensor to the range its codes should span.

`minmax` keeps everything; `percentile` cuts the outermost 0.01 %; `mse` minimizes the expected squared rounding and
clipping error; `kl` minimizes the Kullback-Leibler divergence between the histogram and its quantized form (Migacz,
"8-bit Inference with TensorRT", 2017); `aciq` takes the best clip of the normal or Laplace density that fits better
(Banner et al., "Post training 4-bit quantization of convolutional networks for rapid-deployment", NeurIPS 2019).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from roadworthy.model.encoding import (
    Encoding,
    QuantSpec,
    code_limits,
    encoding_of_range,
    encoding_of_ranges,
    scales_of_ranges,
)
from roadworthy.quantize.statistics import Statistics

Range = tuple[float, float]
PERCENTILE = 99.99


def minmax(stats: Statistics, spec: QuantSpec) -> Range:
    """The exact extremes."""
    return stats.lo, stats.hi


def percentile(stats: Statistics, spec: QuantSpec) -> Range:
    """The range that leaves (100 - PERCENTILE) % of the values outside, half of it on either side."""
    cumulative = np.cumsum(stats.hist)
    if cumulative[-1] == 0:
        return stats.lo, stats.hi
    tail = (1 - PERCENTILE / 100) / 2 * cumulative[-1]
    centres = stats.centres
    lo = centres[np.searchsorted(cumulative, tail)]
    hi = centres[min(np.searchsorted(cumulative, cumulative[-1] - tail), len(centres) - 1)]
    return float(np.clip(lo, stats.lo, stats.hi)), float(np.clip(hi, stats.lo, stats.hi))


def squared_errors(
    weights: NDArray, centres: NDArray, lo: NDArray, hi: NDArray, spec: QuantSpec
) -> NDArray[np.float64]:
    """(K,) squared error of a histogram (B,) under the encodings of K ranges."""
    scale, zero = scales_of_ranges(lo, hi, spec)
    qmin, qmax = code_limits(spec.bits, spec.signed)
    steps, zeros = scale.astype(np.float64)[:, None], zero[:, None]
    rounded = np.rint(centres / steps)
    np.clip(rounded, qmin - zeros, qmax - zeros, out=rounded)
    rounded *= steps
    rounded -= centres
    return np.square(rounded, out=rounded) @ weights


def mse(stats: Statistics, spec: QuantSpec) -> Range:
    """The range of least expected squared error: both ends shrunk together first, then each alone, twice."""
    used = stats.hist > 0
    weights, centres = stats.hist[used], np.clip(stats.centres[used], stats.lo, stats.hi)
    lo, hi = stats.lo, stats.hi
    if not len(weights):
        return lo, hi
    sweeps: list[tuple[NDArray, NDArray]] = [(FACTORS, FACTORS)]
    still = np.ones(len(FACTORS))
    if not spec.symmetric and lo < 0 < hi:
        sweeps += [(still, FACTORS), (FACTORS, still)] * 2
    best, a, b = np.inf, 1.0, 1.0
    for lows, highs in sweeps:
        below = lows if lows is not still else a * still
        above = highs if highs is not still else b * still
        errors = squared_errors(weights, centres, lo * below, hi * above, spec)
        k = int(errors.argmin())
        if errors[k] < best:
            best, a, b = float(errors[k]), float(below[k]), float(above[k])
    return lo * a, hi * b


FACTORS = np.concatenate([np.linspace(1.0, 0.5, 26), np.geomspace(0.48, 0.02, 20)])


def kl(stats: Statistics, spec: QuantSpec) -> Range:
    """The range whose quantized histogram diverges least from the clipped one.

    Point masses (the zeros behind a ReLU, the sixes behind a ReLU6) are taken out where an encoding represents them
    exactly: zero always, an extreme as long as the range ends there. Spread over the bins that share their code, they
    would make every wide range look bad.
    """
    if stats.hist.sum() == 0 or stats.hi <= stats.lo:
        return stats.lo, stats.hi
    centres, width = stats.centres, (stats.hist_hi - stats.hist_lo) / len(stats.hist)
    at = {v: int(np.clip((v - stats.hist_lo) // width, 0, len(centres) - 1)) for v in (0.0, stats.lo, stats.hi)}
    plain = stats.hist.copy()
    for exact in (0.0, stats.lo, stats.hi):
        if stats.lo <= exact <= stats.hi:
            k = at[exact]
            plain[k] = min(plain[k], max((plain[j] for j in (k - 1, k + 1) if 0 <= j < len(plain)), default=0.0))
    best, lo, hi = np.inf, stats.lo, stats.hi
    for a in np.linspace(1.0, 0.1, 46):
        left, right = stats.lo * a, stats.hi * a
        inside = np.flatnonzero((centres >= left - width / 2) & (centres <= right + width / 2))
        if len(inside) < 2:
            break
        first, last = int(inside[0]), int(inside[-1])
        raw = plain[first : last + 1]
        p = raw.copy()
        if a < 1:  # what is clipped comes to lie on the ends
            p[0] += stats.hist[:first].sum()
            p[-1] += stats.hist[last + 1 :].sum()
        codes = encoding_of_range(left, right, spec).quantize(centres[inside]).astype(np.int64)
        codes -= codes.min()
        # Every code's mass is spread evenly over the bins of that code that hold anything.
        held = raw > 0
        q = np.where(held, (np.bincount(codes, raw) / np.maximum(np.bincount(codes, held), 1))[codes], 0)
        if q.sum() == 0:
            break
        pn, qn = p / p.sum(), q / q.sum()
        divergence = float((pn[pn > 0] * np.log(pn[pn > 0] / np.maximum(qn[pn > 0], 1e-12))).sum())
        if divergence < best:
            best, lo, hi = divergence, left, right
    return float(lo), float(hi)


def aciq(stats: Statistics, spec: QuantSpec) -> Range:
    """The mean and a clip a on both sides, at which rounding and clipping a fitted density cost least together:

        Laplace, b = E|x - m|      2 b^2 e^(-a/b) + a^2 / (3 * 4^bits)
        normal, s^2 = E(x - m)^2   (a^2 + s^2) erfc(a / s sqrt 2) - a s sqrt(2/pi) e^(-a^2 / 2s^2) + a^2 / (3 * 4^bits)

    A tensor of one sign (behind a ReLU) is half of a density around zero, without its point mass there, and has the
    clip of one bit more. Never beyond the extremes. A skewed tensor (behind a SiLU) has neither density: take `mse`.
    """
    weights, centres = stats.hist.copy(), stats.centres
    if weights.sum() == 0 or stats.hi <= stats.lo:
        return stats.lo, stats.hi
    one_sided = stats.lo >= 0 or stats.hi <= 0
    width = (stats.hist_hi - stats.hist_lo) / len(weights)
    if one_sided:
        weights[np.abs(centres) < width] = 0
        if weights.sum() == 0:
            return stats.lo, stats.hi
    total = weights.sum()
    mean = 0.0 if one_sided or spec.symmetric else float(weights @ centres / total)
    away = np.abs(centres - mean)
    b, sigma = float(weights @ away / total), float(np.sqrt(weights @ away**2 / total))
    if sigma <= 0:
        return stats.lo, stats.hi
    sides = 2.0 if one_sided else 1.0
    density = weights / total / width
    laplace = sides * np.exp(-away / b) / (2 * b)
    normal = sides * np.exp(-((away / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))
    inside = weights > 0 if one_sided else np.ones(len(weights), bool)
    fits = [float(np.square(density - d)[inside].sum()) for d in (laplace, normal)]
    bits = spec.bits + one_sided
    clip = laplace_clip(bits) * b if fits[0] <= fits[1] else normal_clip(bits) * sigma
    lo, hi = max(mean - clip, stats.lo), min(mean + clip, stats.hi)
    return (lo, hi) if lo < hi else (stats.lo, stats.hi)


@functools.cache
def laplace_clip(bits: int) -> float:
    """a / b: where t e^t = 3 * 4^bits, by Newton's method on t + log t."""
    wanted, t = math.log(3) + bits * math.log(4), 1.0
    for _ in range(50):
        t = max(t - (t + math.log(t) - wanted) / (1 + 1 / t), 1e-3)
    return t


@functools.cache
def normal_clip(bits: int) -> float:
    """a / s: where the error's slope changes its sign, by bisection."""
    low, high = 0.0, 20.0
    for _ in range(80):
        t = (low + high) / 2
        slope = t * math.erfc(t / math.sqrt(2)) - math.sqrt(2 / math.pi) * math.exp(-t * t / 2) + t / (3 * 4.0**bits)
        low, high = (t, high) if slope < 0 else (low, t)
    return (low + high) / 2


OBSERVERS: dict[str, Callable[[Statistics, QuantSpec], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "kl": kl,
    "aciq": aciq,
}


def encode(stats: Statistics, spec: QuantSpec) -> Encoding:
    """The per-tensor encoding of an activation from its statistics, by the observer that the spec names."""
    if not stats.count:
        raise ValueError("nothing was measured")
    lo, hi = OBSERVERS[spec.observer](stats, spec)
    return encoding_of_range(lo, hi, spec)


def encode_channels(stats: Statistics, spec: QuantSpec) -> Encoding:
    """An encoding along spec.axis: every channel's range is found as if it were a tensor of its own."""
    ranges = np.array([OBSERVERS[spec.observer](one, spec) for one in stats.each_channel()], np.float64)
    return encoding_of_ranges(ranges[:, 0], ranges[:, 1], spec)
