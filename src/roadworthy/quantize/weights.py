"""Weights: symmetric codes, one scale per output channel, narrow range (so that -x is exact and int16 sums are safe).

    w' = scale[c] * level        level: the one nearest to w / scale[c]

GRIDS says which levels b bits have:
linear  -(2^(b-1) - 1) .. 2^(b-1) - 1
log2    0 and +-2^k: 2^(b-1) - 1 magnitudes, of which codes of 8 bits hold 7 and codes of 16 bits 15, so that more than
        4 (or 5) bits change nothing (Miyashita et al., "Convolutional Neural Networks using Logarithmic Data
        Representation", 2016)
kmeans  2^b levels that lie where the weights are: clusters of the tensor's weights, each divided by its channel's
        largest (Han et al., "Deep Compression", ICLR 2016); one palette per tensor, one scale per channel

scale[c] = f * max |w[c]| / highest level, f = 1 (minmax), or the f of least summed |w' - w|^p, p = 2 (mse) or 3 (l3),
which spares the largest weights: cutting them takes from a channel's gain, while what rounding does averages out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from roadworthy.model.encoding import Encoding, QuantSpec, power_of_two_above

Rows = NDArray[np.float32]
"""(channels, weights of each)."""

_FACTORS = np.linspace(1.0, 0.6, 33)
_FEW_BITS = np.linspace(1.0, 0.2, 65)
"""Down to the clips that few bits want: at 3 bits the best ones lie near half of the largest weight, at 2 below."""
POWERS = {"mse": 2, "l3": 3}
_OCTAVES = np.geomspace(2**0.5, 2**-2.5, 25)
"""A logarithmic grid repeats itself with every octave; what moves beyond is how many small levels there are."""
_TINY = 1e-12
_BINS, _GROUPS = 4096, 320
_LLOYD = 200
MAX_BIAS_CODE = 2.0**30


@dataclass(frozen=True)
class Wish:
    """How weights should be quantized, layer by layer.

    bits: of all layers; own: of single ones, as (name, bits).   per_tensor: one scale for all channels.
    grid: a key of GRIDS.   power_of_two: scales that a shift can apply.
    """

    bits: int = 8
    own: tuple[tuple[str, int], ...] = ()
    per_tensor: bool = False
    grid: str = "linear"
    power_of_two: bool = False

    def bits_of(self, layer: str) -> int:
        return dict(self.own).get(layer, self.bits)

    def spec(self, bits: int, axis: int | None, observer: str) -> QuantSpec:
        return QuantSpec(bits, True, None if self.per_tensor else axis, True, observer, self.grid, self.power_of_two)


def weight_encoding(weight: NDArray, spec: QuantSpec, code_bits: int = 8) -> Encoding:
    """Encoding of a weight tensor along spec.axis (None: one scale for all).

    code_bits: 8 or 16, of the codes that a grid with levels has; more than 8 spec.bits are always linear.
    Raises ValueError when the spec is not symmetric and signed.
    """
    if not (spec.symmetric and spec.signed):
        raise ValueError("weights are quantized symmetric and signed")
    w = np.asarray(weight, np.float32)
    rows = w.reshape(1, -1) if spec.axis is None else np.moveaxis(w, spec.axis, 0).reshape(w.shape[spec.axis], -1)
    grid = GRIDS[spec.grid] if spec.bits <= 8 else linear
    scale, levels, bits = grid(rows, spec, code_bits)
    if spec.power_of_two:
        scale = _power_of_two(rows, scale, _nearest(levels, bits))
    if spec.axis is None:
        return Encoding(scale[0], np.zeros((), np.int64), bits, True, levels=levels)
    return Encoding(scale, np.zeros(len(scale), np.int64), bits, True, spec.axis, levels=levels)


Grid = tuple[NDArray[np.float32], tuple[int, ...] | None, int]
"""Scales, levels (None: all), and the bits of the codes."""


def linear(rows: Rows, spec: QuantSpec, code_bits: int) -> Grid:
    """Every code of spec.bits bits but the lowest."""
    qmax = (1 << (spec.bits - 1)) - 1
    peak = _peaks(rows)
    if spec.observer in POWERS and spec.bits <= 8:
        factors = _FACTORS if spec.bits == 8 else _FEW_BITS
        return _best(rows, peak, qmax, factors, _nearest(None, spec.bits), POWERS[spec.observer]), None, spec.bits
    return (peak / qmax).astype(np.float32), None, spec.bits


def log2(rows: Rows, spec: QuantSpec, code_bits: int) -> Grid:
    """Zero and powers of two from the highest that the codes hold downwards: the scales are small then, and with them
    the steps in which an integer layer stores its bias."""
    magnitudes = min((1 << (spec.bits - 1)) - 1, code_bits - 1)
    powers = [1 << k for k in range(code_bits - 1 - magnitudes, code_bits - 1)]
    levels = (*(-p for p in reversed(powers)), 0, *powers)
    peak = _peaks(rows)
    if spec.observer in POWERS:
        nearest = _nearest(levels, code_bits)
        return _best(rows, peak, powers[-1], _OCTAVES, nearest, POWERS[spec.observer]), levels, code_bits
    return (peak / powers[-1]).astype(np.float32), levels, code_bits


def kmeans(rows: Rows, spec: QuantSpec, code_bits: int) -> Grid:
    """Lloyd's clusters of the weights relative to their channel's largest, moved to the nearest codes."""
    if spec.bits >= code_bits:
        return linear(rows, spec, code_bits)  # every code fits into the palette
    peak = _peaks(rows)
    centres = clusters((rows / peak[:, None]).reshape(-1), np.repeat(peak**2, rows.shape[1]), 1 << spec.bits)
    if (rows == 0).any():  # what was pruned stays so
        centres[np.abs(centres).argmin()] = 0.0
    reach, qmax = max(float(np.abs(centres).max()), _TINY), (1 << (code_bits - 1)) - 1
    levels = tuple(int(v) for v in np.unique(np.rint(centres / reach * qmax)))
    scale = peak * reach / qmax
    return _fitted(rows, scale, _nearest(levels, code_bits)), levels, code_bits


GRIDS: dict[str, Callable[[Rows, QuantSpec, int], Grid]] = {"linear": linear, "log2": log2, "kmeans": kmeans}


def clusters(x: NDArray, weights: NDArray, count: int) -> NDArray[np.float64]:
    """(at most count,) centres, ascending, near the least weighted squared distance to values x in -1..1.

    The best cuts between a few hundred groups of a histogram, by dynamic programming (Fisher, "On Grouping for Maximum
    Homogeneity", 1958), then Lloyd's iteration on the histogram itself. The groups are narrow where centres will be
    dense: they hold equal shares of the cube root of the density (Panter and Dite, 1951).
    """
    w = weights.astype(np.float64)
    mass, edges = np.histogram(x, _BINS, (-1.0, 1.0), weights=w)
    moment = np.histogram(x, edges, weights=w * x)[0]
    middles = (edges[1:] + edges[:-1]) / 2
    total, first = np.append(0, np.cumsum(mass)), np.append(0, np.cumsum(moment))
    kernel = np.ones(_BINS // 64) / (_BINS // 64)  # single weights in the tails are no density
    density = np.append(0, np.cumsum(np.cbrt(np.convolve(mass, kernel, "same"))))
    bounds = np.unique(np.searchsorted(density, np.linspace(0, density[-1], _GROUPS + 1)))
    bounds = np.unique(np.concatenate([[0], bounds, [_BINS]]))
    centres = _centres(total, first, bounds[_best_cuts(total[bounds], first[bounds], count)])
    for _ in range(_LLOYD):
        cuts = np.searchsorted(middles, (centres[1:] + centres[:-1]) / 2)
        moved = _centres(total, first, np.concatenate([[0], cuts, [_BINS]]))
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def _best_cuts(total: NDArray, first: NDArray, count: int) -> NDArray[np.int64]:
    """Where `count` neighbouring groups begin, and the end.   total, first: summed mass and moment up to each bound."""
    inside, sums = total[None] - total[:, None], first[None] - first[:, None]  # of the groups from row to column
    # The squared distance is the (fixed) second moment less this.
    gain = np.where(inside > 0, sums**2 / np.where(inside > 0, inside, 1), np.where(inside < 0, -np.inf, 0.0))
    gain[np.tril_indices(len(total), -1)] = -np.inf
    reached, came = gain[0], []
    for _ in range(count - 1):
        through = reached[:, None] + gain
        came.append(through.argmax(0))
        reached = through.max(0)
    cuts = [len(total) - 1]
    for row in reversed(came):
        cuts.append(int(row[cuts[-1]]))
    return np.unique([0, *cuts])


def _centres(total: NDArray, first: NDArray, bounds: NDArray) -> NDArray[np.float64]:
    """The mean of what lies between neighbouring bounds, where something does."""
    inside, sums = np.diff(total[bounds]), np.diff(first[bounds])
    held = inside > 0
    return np.unique(sums[held] / inside[held])


def _peaks(rows: Rows) -> NDArray[np.float32]:
    return np.maximum(np.abs(rows).max(1), _TINY)


def _nearest(levels: tuple[int, ...] | None, bits: int) -> Callable[[NDArray], NDArray]:
    """The nearest level (as a float) of each number; ties do not matter where this is used."""
    qmax = (1 << (bits - 1)) - 1
    if levels is None:
        return lambda v: np.clip(np.rint(v), -qmax, qmax)
    # What lies half way between two whole numbers is a whole number of halves.
    halves = np.arange(-2 * qmax, 2 * qmax + 1) / 2 + 0.25
    known = np.asarray(levels, np.float32)
    table = known[np.searchsorted((known[1:] + known[:-1]) / 2, halves)]
    return lambda v: table[np.clip(np.floor(2 * v), -2 * qmax, 2 * qmax).astype(np.int32) + 2 * qmax]


def _errors(rows: Rows, scale: NDArray, nearest: Callable[[NDArray], NDArray], power: int = 2) -> NDArray[np.float64]:
    """(channels,) sum of |error|^power of each row."""
    steps = scale[:, None]
    off = nearest(rows / steps) * steps - rows
    error: NDArray[np.float64] = ((off if power == 2 else np.abs(off)) ** power).sum(1)
    return error


def _best(
    rows: Rows, peak: NDArray, top: int, factors: NDArray, nearest: Callable[[NDArray], NDArray], power: int
) -> NDArray[np.float32]:
    """The scale of each row at which the highest level `top` lies at f * peak, f of least error."""
    best, clip = np.full(len(rows), np.inf), peak.astype(np.float64)
    for f in factors:
        error = _errors(rows, peak * f / top, nearest, power)
        better = error < best
        best, clip = np.where(better, error, best), np.where(better, peak * f, clip)
    return (clip / top).astype(np.float32)


def _fitted(rows: Rows, scale: NDArray, nearest: Callable[[NDArray], NDArray]) -> NDArray[np.float32]:
    """Scales by turns of nearest levels and least squares, kept where they help."""
    best, chosen = _errors(rows, scale, nearest), scale
    for _ in range(4):
        q = nearest(rows / chosen[:, None])
        power = (q * q).sum(1)
        tried = np.where(power > 0, (q * rows).sum(1) / np.where(power > 0, power, 1), chosen)
        tried = np.where(tried > 0, tried, chosen)
        error = _errors(rows, tried, nearest)
        chosen, best = np.where(error < best, tried, chosen), np.minimum(error, best)
    return chosen.astype(np.float32)


def _power_of_two(rows: Rows, scale: NDArray, nearest: Callable[[NDArray], NDArray]) -> NDArray[np.float32]:
    """The power of two above or below each scale, whichever has the less error."""
    above = power_of_two_above(scale)
    below = above / 2
    return np.where(_errors(rows, above, nearest) <= _errors(rows, below, nearest), above, below).astype(np.float32)


def widen_for_bias(encoding: Encoding, bias: NDArray | None, input_scale: float | NDArray) -> Encoding:
    """Raise the scales of channels whose bias would not fit int32 at scale input_scale * weight scale.

    input_scale: one, or (a depthwise layer) one per channel.   It happens where a channel's weights are almost zero:
    the codes lose nothing that matters there.
    """
    if bias is None:
        return encoding
    needed = np.abs(np.asarray(bias, np.float64)) / (input_scale * MAX_BIAS_CODE)
    if encoding.axis is None:
        needed = needed.max()
    scale = np.maximum(encoding.scale, needed.astype(np.float32))
    return encoding if np.array_equal(scale, encoding.scale) else replace(encoding, scale=scale)
