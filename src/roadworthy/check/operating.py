"""The operating threshold of a compressed detector, refitted so that it is as often right as the original was.

Compression shifts scores, so the same threshold t0 shows more, or fewer, detections than before. Let

    P(t) = hits / (hits + misses) of the detections that score at least t, at IoU 0.5        precision
    D    = P_compressed(t0) - P_original(t0), on the same images

and find the threshold t with P_compressed(t) = P_original(t0) + (1 - k) * D. With k = 1 the precision becomes the
original's. Images are few, so D is partly noise: with its standard error s (paired bootstrap over images),

    k = max(0, 1 - (s / D)^2)

takes back what stands clear of the noise and nothing else (the positive-part shrinkage of James and Stein 1961). P
jumps from detection to detection; it is smoothed by isotonic regression of the hits on the scores (pool adjacent
violators, Ayer et al. 1955), so that it rises with t, and t lies between the scores of two detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roadworthy.detect.detections import Detections, Truth
from roadworthy.detect.evaluate import draws
from roadworthy.detect.matches import Matches, match

LEAST_DETECTIONS = 50
"""Detections at the operating point (of the original, and of the compressed model at the new one) below which the
threshold is left alone: a precision of fewer is too coarse to move anything by."""
LEAST_CHANGE = 0.001
"""A change of less than this is none."""


@dataclass(frozen=True)
class Refit:
    """What became of the threshold.

    original, value: before and after (equal: left alone).   detections: the original's at its threshold.
    precision: points of the original, of the compressed model at the original's threshold, and at the new one; None
    where they were not measured.
    images: how many it was measured on.   why: in words.
    """

    original: float
    value: float
    detections: int
    precision: tuple[float, float, float] | None
    images: int
    why: str


def refit(
    truths: Sequence[Truth],
    before: Sequence[Detections],
    after: Sequence[Detections],
    num_classes: int,
    threshold: float,
    repeats: int = 1,
    rounds: int = 200,
    seed: int = 0,
) -> Refit:
    """The threshold at which `after` is as precise as `before` is at `threshold`.

    truths, before, after: one per image, or `repeats` times over all images, with other labels each time. Results reach
    down to low scores.   rounds, seed: of the bootstrap.   Raises InputError as `match` does.
    """
    images = len(truths) // repeats
    pair = [match(truths, found, num_classes) for found in (before, after)]
    weights = np.tile(draws(images, rounds, seed), (1, repeats))
    (a, shown), (b, _) = (_precision(m, threshold, weights) for m in pair)
    count = round(shown / repeats)

    def left(why: str) -> Refit:
        told = (100 * float(a[0]), 100 * float(b[0]), 100 * float(b[0]))
        return Refit(threshold, threshold, count, told, images, f"{why}, so the threshold is left alone")

    if count < LEAST_DETECTIONS:
        return left(f"the original shows only {count} detections on {images} images")
    difference, error = float(b[0] - a[0]), float(np.std((b - a)[1:]))
    share = max(0.0, 1 - (error / difference) ** 2) if difference else 0.0
    if not share:
        return left(f"the precision differs by {100 * difference:+.2f} points, within its noise of {100 * error:.2f}")
    scores, smooth = _smoothed(pair[1])
    # the same smoothing on both sides: where the two rank detections alike, its error is the same and drops out
    target, mine = _at(*_smoothed(pair[0]), threshold), _at(scores, smooth, threshold)
    wanted = target + (1 - share) * (mine - target)
    enough = scores[min(LEAST_DETECTIONS * repeats, len(scores)) - 1] if len(scores) else 0.0
    value = round(_solve(scores, smooth, wanted, threshold), 4)
    if not len(scores) or wanted > smooth[0] + 1e-9 or value > enough:
        return left("no threshold gives the compressed model the precision of the original")
    if abs(value - threshold) < LEAST_CHANGE:
        return left("the precision differs by less than a thousandth of a score makes")
    now = _precision(pair[1], value, weights[:1])[0]
    told = (100 * float(a[0]), 100 * float(b[0]), 100 * float(now[0]))
    why = f"its precision at the original's threshold had changed by {100 * difference:+.2f} points"
    return Refit(threshold, value, count, told, images, why)


def _precision(matches: Matches, threshold: float, weights: NDArray) -> tuple[NDArray[np.float64], int]:
    """(R,) precision 0..1 at a threshold for each weighting of the images (1 where nothing is shown), and how many
    detections are."""
    shown = (matches.scores >= threshold) & ~matches.ignored[0]
    per_image = [
        np.bincount(matches.image[rows], minlength=matches.num_images) for rows in (shown & matches.hit[0], shown)
    ]
    hits, every = (weights @ counts for counts in per_image)
    return np.divide(hits, every, out=np.ones(len(weights)), where=every > 0), int(shown.sum())


def _smoothed(matches: Matches) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores, falling and each once, and the smoothed precision of all detections down to each; it falls as well."""
    counted = ~matches.ignored[0]
    scores, hit = matches.scores[counted].astype(np.float64), matches.hit[0][counted].astype(np.float64)
    levels, place = np.unique(-scores, return_inverse=True)
    sizes = np.bincount(place, minlength=len(levels)).astype(np.float64)
    means = np.bincount(place, weights=hit, minlength=len(levels)) / np.maximum(sizes, 1)
    rates = _falling(means, sizes)
    return -levels, np.cumsum(rates * sizes) / np.maximum(np.cumsum(sizes), 1)


def _falling(values: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """The nearest (weighted least squares) sequence that never rises: neighbours that do are pooled."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, mass, length = value, weight, 1
        while pools and pools[-1][0] <= mean:
            other, more, count = pools.pop()
            mean, mass, length = (mean * mass + other * more) / (mass + more), mass + more, length + count
        pools.append((mean, mass, length))
    return np.repeat([p[0] for p in pools], [p[2] for p in pools]) if pools else np.zeros(0)


def _at(scores: NDArray, smooth: NDArray, threshold: float) -> float:
    """The smoothed precision at a threshold, between the scores by straight lines; scores fall, thresholds rise."""
    return float(np.interp(threshold, scores[::-1], smooth[::-1])) if len(scores) else 1.0


def _solve(scores: NDArray, smooth: NDArray, wanted: float, near: float) -> float:
    """The threshold nearest to `near` at which the smoothed precision is as wanted."""
    if not len(scores):
        return near
    # last place at which it is at least as high, first place at which it is at most as high
    high = int(np.searchsorted(-smooth, -(wanted - 1e-12), side="right")) - 1
    low = int(np.searchsorted(-smooth, -(wanted + 1e-12), side="left"))
    if high >= low:  # a level stretch (or a point) of just this precision
        return float(np.clip(near, scores[high], scores[low]))
    if high < 0 or low >= len(scores):
        return float(scores[0] if high < 0 else scores[-1])
    share = (smooth[high] - wanted) / (smooth[high] - smooth[low])
    return float(scores[high] + share * (scores[low] - scores[high]))
