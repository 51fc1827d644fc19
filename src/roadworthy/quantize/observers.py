"""OBSERVERS: from what was measured of a tensor to the range its codes should span.

`minmax` keeps everything; `percentile` cuts the outermost 0.01 %; `mse` minimizes the expected squared rounding and
clipping error; `kl` minimizes the Kullback-Leibler divergence between the histogram and its quantized form (Migacz,
"8-bit Inference with TensorRT", 2017).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from roadworthy.model.encoding import Encoding, QuantSpec, encoding_of_range
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
    return max(float(lo), stats.lo), min(float(hi), stats.hi)


def _error(stats: Statistics, weights: NDArray, centres: NDArray, lo: float, hi: float, spec: QuantSpec) -> float:
    """Expected squared error of the histogram under the encoding of a range."""
    encoding = encoding_of_range(lo, hi, spec)
    scale, zero = float(encoding.scale), int(encoding.zero_point)
    q = np.clip(np.rint(centres / scale) + zero, encoding.qmin, encoding.qmax)
    return float((weights * ((q - zero) * scale - centres) ** 2).sum())


def mse(stats: Statistics, spec: QuantSpec) -> Range:
    """The range of least expected squared error: both ends shrunk together first, then each alone."""
    used = stats.hist > 0
    weights, centres = stats.hist[used], stats.centres[used]
    if not len(weights):
        return stats.lo, stats.hi
    factors = np.concatenate([np.linspace(1.0, 0.5, 26), np.geomspace(0.48, 0.02, 20)])
    best, lo, hi = np.inf, stats.lo, stats.hi
    for a in factors:
        error = _error(stats, weights, centres, stats.lo * a, stats.hi * a, spec)
        if error < best:
            best, lo, hi = error, stats.lo * a, stats.hi * a
    if spec.symmetric:
        return lo, hi
    for _ in range(2):
        for a in factors:
            error = _error(stats, weights, centres, lo, stats.hi * a, spec)
            if error < best:
                best, hi = error, stats.hi * a
        for a in factors:
            error = _error(stats, weights, centres, stats.lo * a, hi, spec)
            if error < best:
                best, lo = error, stats.lo * a
    return lo, hi


def kl(stats: Statistics, spec: QuantSpec) -> Range:
    """The range whose quantized histogram diverges least from the clipped one."""
    total = stats.hist.sum()
    if total == 0 or stats.hi <= stats.lo:
        return stats.lo, stats.hi
    centres = stats.centres
    best, lo, hi = np.inf, stats.lo, stats.hi
    for a in np.linspace(1.0, 0.1, 46):
        left, right = stats.lo * a, stats.hi * a
        inside = (centres >= left) & (centres <= right)
        if inside.sum() < 2:
            break
        p = stats.hist[inside].copy()
        first = np.flatnonzero(inside)
        p[0] += stats.hist[: first[0]].sum()
        p[-1] += stats.hist[first[-1] + 1 :].sum()
        encoding = encoding_of_range(left, right, spec)
        codes = encoding.quantize(centres[inside].astype(np.float32)).astype(np.int64)
        codes -= codes.min()
        # Every code's mass is spread evenly over the bins of that code that hold anything.
        raw = stats.hist[inside]
        mass = np.bincount(codes, raw)
        width = np.bincount(codes, raw > 0)
        q = np.where(raw > 0, (mass / np.maximum(width, 1))[codes], 0)
        if q.sum() == 0:
            break
        pn, qn = p / p.sum(), q / q.sum()
        divergence = float((pn[pn > 0] * np.log(pn[pn > 0] / np.maximum(qn[pn > 0], 1e-12))).sum())
        if divergence < best:
            best, lo, hi = divergence, left, right
    return lo, hi


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
