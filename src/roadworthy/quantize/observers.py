"""OBSERVERS: from what was measured of a tensor to the range its codes should span.

`minmax` keeps everything; `percentile` cuts the outermost 0.01 %; `mse` minimizes the expected squared rounding and
clipping error; `kl` minimizes the Kullback-Leibler divergence between the histogram and its quantized form (Migacz,
"8-bit Inference with TensorRT", 2017).
"""

from __future__ import annotations

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


OBSERVERS: dict[str, Callable[[Statistics, QuantSpec], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "kl": kl,
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
