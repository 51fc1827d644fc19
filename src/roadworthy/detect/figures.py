"""The figures that budgets of detectors name, and what a candidate lost of each, with intervals from the same draws.

AP of one class is one column of the mAP (`matches.weighted_ap`); mAP of a size counts labels of that size only, by
COCO's rule; recall is the share of labels found at IoU 0.5 by detections that reach the operating threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from roadworthy.detect.detections import Detections, Truth
from roadworthy.detect.evaluate import SIZES, Interval, draws, interval_of
from roadworthy.detect.matches import match, mean_of, weighted_ap, weighted_map, weighted_recall
from roadworthy.errors import InputError


@dataclass(frozen=True)
class Figures:
    """What budgets of a detector are held against, in points: mAP, AP of each class that has labels, mAP of each size
    that has, and recall at the operating threshold (IoU 0.5, all classes together; None without labels)."""

    map: float
    per_class: dict[int, float]
    sizes: dict[str, float]
    recall: float | None


def figures(
    truths: Sequence[Truth],
    found: Sequence[Detections],
    num_classes: int,
    score_threshold: float,
    sizes: Sequence[str] = tuple(SIZES),
) -> Figures:
    """The figures of `evaluate_detections` that budgets name, in a fraction of the time.   sizes: keys of SIZES."""
    matches = match(truths, found, num_classes)
    every = np.ones((1, len(truths)))
    ap = 100 * weighted_ap(matches, every)
    by_size = {
        size: 100 * float(weighted_map(match(truths, found, num_classes, SIZES[size]), every)[0]) for size in sizes
    }
    recall = 100 * float(weighted_recall(matches, every, score_threshold)[0])
    return Figures(
        map=float(mean_of(ap)[0]),
        per_class={int(c): float(ap[0, c]) for c in np.flatnonzero(np.isfinite(ap[0]))},
        sizes={size: value for size, value in by_size.items() if math.isfinite(value)},
        recall=recall if math.isfinite(recall) else None,
    )


@dataclass(frozen=True)
class Drops:
    """What a candidate lost, each with its interval: mAP, AP of each class, mAP of each size, recall.

    What has no label is absent (recall: None).   labels: class index or size -> labels that count, in one repetition.
    """

    map: Interval
    per_class: dict[int, Interval]
    sizes: dict[str, Interval]
    recall: Interval | None
    labels: dict[int | str, float] = field(default_factory=dict)


def bootstrap_drops(
    truths: Sequence[Truth],
    reference: Sequence[Detections],
    candidate: Sequence[Detections],
    num_classes: int,
    score_thresholds: tuple[float, float],
    sizes: Sequence[str] = tuple(SIZES),
    rounds: int = 500,
    seed: int = 0,
    repeats: int = 1,
) -> Drops:
    """As `bootstrap_drop`, of all figures that budgets name, from the same draws; `map` equals what that returns.

    score_thresholds: the operating points of the reference and of the candidate.   sizes: keys of SIZES.
    """
    pair = [match(truths, found, num_classes) for found in (reference, candidate)]
    if not len(pair[0].label_class):
        raise InputError("no image has a label that counts, so mAP has no meaning; give labelled images")
    weights = np.tile(draws(len(truths) // repeats, rounds, seed), (1, repeats))
    before, after = (weighted_ap(m, weights) for m in pair)
    present = [int(c) for c in np.flatnonzero(np.isfinite(before[0]))]
    found_again = [weighted_recall(m, weights, t) for m, t in zip(pair, score_thresholds, strict=True)]
    counts = np.bincount(pair[0].label_class, minlength=num_classes) / repeats
    labels: dict[int | str, float] = {c: float(counts[c]) for c in present}
    by_size: dict[str, Interval] = {}
    for size in sizes:
        both = [match(truths, found, num_classes, SIZES[size]) for found in (reference, candidate)]
        labels[size] = len(both[0].label_class) / repeats
        if labels[size]:
            a, b = (weighted_map(m, weights) for m in both)
            by_size[size] = interval_of(100 * (a - b))
    return Drops(
        map=interval_of(100 * (mean_of(before) - mean_of(after))),
        per_class={c: interval_of(100 * (before[:, c] - after[:, c])) for c in present},
        sizes=by_size,
        recall=interval_of(100 * (found_again[0] - found_again[1])),
        labels=labels,
    )
