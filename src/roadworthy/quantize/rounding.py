"""Learned rounding of one layer: codes of least output error, from second moments of its inputs.

A layer is y = W x + b, for every group of a convolution, with x the (K,) patch under an output pixel. Of the rounded
layer W' x + b' the squared error over many patches is, with the best bias b' = b + (W - W') E[x],

    E |W' x + b' - W x - b|^2 = sum over rows  (w' - w) A (w' - w)^T        A = Cov(x)

so that it needs A alone (K x K). Each weight is put on the grid of its row; which of its grid points is the question,
as errors of correlated inputs can be made to cancel:

nearest      w itself, rounded
sequential   one weight after the other; what is still open makes up for the error so far. With A = L L^T the error is
             sum_j (sum_{i >= j} L[i,j] d[i])^2, d = w' - w, which is decided from the last term to the first (Babai's
             nearest plane; the same codes as OPTQ of Frantar et al., "GPTQ", ICLR 2023)
descent      that, then sweeps in which each weight takes the grid point that is best beside the others; in small
             layers also pairs of weights at once
adaround     the relaxation of Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020:
             w' = s (floor(w / s) + h(v)), h a stretched sigmoid, pushed to 0 or 1 while the error is descended; then
             sweeps as above, without which it ends far above the others where inputs are strongly correlated
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
BLOCK = 64
"""Columns that are decided before the others hear of it: products of matrices instead of vectors."""
SWEEPS = 12
PAIR_INPUTS, PAIR_WORK, PAIR_MOVES = 128, 1 << 21, 64
"""Layers up to this many inputs, and products of weights and inputs, in which pairs of weights are moved; how often."""
DAMPING = 0.05
"""Share of the mean variance that is added to every input's, as moments of few images are not exact."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The values that a weight may take: scale * code, code in lo..hi or one of `levels`.

    scale: broadcastable to the rows (G, N, K).   levels: sorted codes, or None for all of lo..hi.
    """

    scale: F64
    lo: int
    hi: int
    levels: NDArray[np.int64] | None = None

    def nearest(self, values: F64, scale: F64) -> F64:
        """The nearest grid values.   scale: the part of the scales that belongs to `values`."""
        codes = np.clip(np.rint(values / scale), self.lo, self.hi)
        if self.levels is not None:
            middles = (self.levels[1:] + self.levels[:-1]) / 2
            codes = self.levels[np.searchsorted(middles, values / scale)].astype(np.float64)
        return codes * scale


def loss(weights: F64, target: F64, moment: F64) -> F64:
    """(G, N) output error of each row.   weights, target: (G, N, K).   moment: (G, K, K)."""
    d = weights - target
    return ((d @ moment) * d).sum(-1)


def damped(moment: F64, damping: float = DAMPING) -> F64:
    """The moments (G, K, K) with a share of their mean variance on the diagonal."""
    k = moment.shape[-1]
    mean = np.trace(moment, axis1=-2, axis2=-1)[:, None, None] / k
    return moment + (damping * mean + 1e-12) * np.eye(k)


def nearest(target: F64, moment: F64, grid: Grid) -> F64:
    return grid.nearest(target, np.broadcast_to(grid.scale, target.shape))


def sequential(target: F64, moment: F64, grid: Grid) -> F64:
    """Weights (G, N, K) on the grid, decided one after the other; the most varying input first."""
    order = np.argsort(np.diagonal(moment, axis1=-2, axis2=-1), axis=-1, kind="stable")
    moment = np.take_along_axis(np.take_along_axis(moment, order[:, :, None], 1), order[:, None, :], 2)
    t = np.take_along_axis(target, order[:, None, :], 2)
    scale = np.take_along_axis(np.broadcast_to(grid.scale, target.shape), order[:, None, :], 2)
    low = np.linalg.cholesky(moment)
    d = np.zeros_like(t)
    made = np.empty_like(t)
    size = t.shape[-1]
    for end in range(size, 0, -BLOCK):
        start = max(end - BLOCK, 0)
        pull = d[:, :, end:] @ low[:, end:, start:end]  # (G, N, block)
        for j in range(end - 1, start - 1, -1):
            wanted = t[:, :, j] - pull[:, :, j - start] / low[:, j, j][:, None]
            made[:, :, j] = grid.nearest(wanted, scale[:, :, j])
            d[:, :, j] = made[:, :, j] - t[:, :, j]
            pull[:, :, : j - start] += d[:, :, j, None] * low[:, None, j, start:j]
    back = np.argsort(order, axis=-1, kind="stable")
    return np.take_along_axis(made, back[:, None, :], 2)


def descend(start: F64, target: F64, moment: F64, grid: Grid, sweeps: int = SWEEPS) -> F64:
    """Weights (G, N, K) from which no single one can move to a better grid point (or after so many sweeps)."""
    made = start.copy()
    d = made - target
    scale = np.broadcast_to(grid.scale, target.shape)
    own = np.maximum(np.diagonal(moment, axis1=-2, axis2=-1), 1e-30)
    size = target.shape[-1]
    for _ in range(sweeps):
        moved = False
        for begin in range(0, size, BLOCK):
            end = min(begin + BLOCK, size)
            slope = d @ moment[:, :, begin:end]  # (G, N, block)
            for j in range(begin, end):
                wanted = made[:, :, j] - slope[:, :, j - begin] / own[:, j][:, None]
                now = grid.nearest(wanted, scale[:, :, j])
                # Ties and rounding errors must not move a weight to and fro.
                gain = np.abs(made[:, :, j] - wanted) - np.abs(now - wanted)
                step = np.where(gain > 1e-9 * scale[:, :, j], now - made[:, :, j], 0.0)
                if not step.any():
                    continue
                moved = True
                made[:, :, j] += step
                d[:, :, j] += step
                slope[:, :, j - begin + 1 :] += step[:, :, None] * moment[:, None, j, j + 1 : end]
        if not moved:
            break
    return made


def swap(start: F64, target: F64, moment: F64, grid: Grid) -> F64:
    """Weights (G, N, K) in which moving two at once, one code each, no longer helps; small layers only, the others and
    grids of levels come back as they are.

    Where inputs are alike, one weight can go up only if another goes down: no single move gets there.
    """
    size = target.shape[-1]
    if size < 2 or size > PAIR_INPUTS or start.size * size > PAIR_WORK or grid.levels is not None:
        return start
    scale = np.broadcast_to(grid.scale, target.shape)
    codes = np.rint(start / scale)
    own = np.diagonal(moment, axis1=-2, axis2=-1)[:, None, :]
    at = np.arange(start.shape[0])[:, None], np.arange(start.shape[1])[None]
    for _ in range(PAIR_MOVES):
        slope = 2 * ((codes * scale - target) @ moment)
        best, moves = np.zeros(start.shape[:2]), np.zeros_like(codes)
        for up, other in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            one, two = (
                np.where(np.abs(codes + k) <= grid.hi, k * scale * slope + scale**2 * own, np.inf) for k in (up, other)
            )
            both = 2 * up * other * scale[..., :, None] * scale[..., None, :] * moment[:, None]
            change = one[..., :, None] + two[..., None, :] + both
            change[..., np.arange(size), np.arange(size)] = np.inf
            flat = change.reshape(*start.shape[:2], -1)
            first = flat.argmin(-1)
            least = np.take_along_axis(flat, first[..., None], -1)[..., 0]
            wins = least < best
            made = np.zeros_like(codes)
            made[(*at, first // size)] += up
            made[(*at, first % size)] += other
            best, moves = np.where(wins, least, best), np.where(wins[..., None], made, moves)
        # Rounding errors must not move codes to and fro.
        moves *= (best < -1e-9 * (scale**2 * own).mean(-1))[..., None]
        if not moves.any():
            break
        codes += moves
    return codes * scale


def descent(target: F64, moment: F64, grid: Grid) -> F64:
    """The better of two descents for every row: from the sequential codes, and from the nearest; then pairs."""
    a = descend(sequential(target, moment, grid), target, moment, grid)
    b = descend(nearest(target, moment, grid), target, moment, grid)
    better = (loss(b, target, moment) < loss(a, target, moment))[:, :, None]
    return swap(np.where(better, b, a), target, moment, grid)


def adaround(target: F64, moment: F64, grid: Grid, steps: int = 600) -> F64:
    """The relaxation, by Adam; the regulariser waits for the first fifth and is annealed from 20 to 2."""
    if grid.levels is not None:
        return descent(target, moment, grid)
    scale = np.broadcast_to(grid.scale, target.shape)
    floor = np.clip(np.floor(target / scale), grid.lo, grid.hi - 1)
    rest = np.clip(target / scale - floor, 0.0, 1.0)
    stretched = np.clip((rest + 0.1) / 1.2, 1e-4, 1 - 1e-4)
    v = np.log(stretched / (1 - stretched))
    normal = (
        1.0 / np.maximum((np.diagonal(moment, axis1=-2, axis2=-1)[:, None, :] * scale**2).mean(-1), 1e-30)[..., None]
    )
    m, u = np.zeros_like(v), np.zeros_like(v)
    for k in range(1, steps + 1):
        sigmoid = 1 / (1 + np.exp(-v))
        h = np.clip(1.2 * sigmoid - 0.1, 0.0, 1.0)
        d = scale * (floor + h) - target
        slope = 2 * (d @ moment) * scale * normal
        warm = steps // 5
        if k > warm:
            beta = 20 + (2 - 20) * (k - warm) / (steps - warm)
            slope -= 0.05 * beta * np.abs(2 * h - 1) ** (beta - 1) * 2 * np.sign(2 * h - 1)
        slope *= 1.2 * sigmoid * (1 - sigmoid) * ((h > 0) & (h < 1))
        m, u = 0.9 * m + 0.1 * slope, 0.999 * u + 0.001 * slope**2
        v -= 0.02 * (m / (1 - 0.9**k)) / (np.sqrt(u / (1 - 0.999**k)) + 1e-12)
    h = 1.2 / (1 + np.exp(-v)) - 0.1
    return swap(descend(scale * (floor + (h >= 0.5)), target, moment, grid), target, moment, grid)


METHODS: dict[str, Callable[[F64, F64, Grid], F64]] = {
    "descent": descent,
    "sequential": sequential,
    "adaround": adaround,
    "nearest": nearest,
}
