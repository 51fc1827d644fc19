"""The figures that budgets name, and what a candidate lost of each, with intervals from the same draws of the images.

AP of one class is one column of the mAP (`matches.weighted_ap`); mAP of a size counts labels of that size only, by
COCO's rule; recall is the share of labels found at IoU 0.5 by detections that reach the operating threshold. For
classifiers, top-1 of a class: the share of its images that get it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from roadworthy.detect.detections import Detections, Truth
from roadworthy.detect.evaluate import SIZES, Interval, bootstrap_class_drop, draws, interval_of
from roadworthy.detect.matches import match, mean_of, weighted_ap, weighted_map, weighted_recall
from roadworthy.errors import InputError


@dataclass(frozen=True)
class Figures:
    """What budgets are held against, in points: mAP (or top-1), AP (or top-1) of each class that has labels, mAP of
    each size that has, and recall at the operating threshold (IoU 0.5, all classes together; None without labels)."""

    whole: float
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
        whole=float(mean_of(ap)[0]),
        per_class={int(c): float(ap[0, c]) for c in np.flatnonzero(np.isfinite(ap[0]))},
        sizes={size: value for size, value in by_size.items() if math.isfinite(value)},
        recall=recall if math.isfinite(recall) else None,
    )


@dataclass(frozen=True)
class Drops:
    """What a candidate lost, each with its interval: mAP (or top-1), AP of each class, mAP of each size, recall.

    What has no label is absent (recall: None).   labels: class index or size -> labels that count, in one repetition.
    """

    whole: Interval
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
    """As `bootstrap_drop`, of all figures that budgets name, from the same draws; `whole` equals what that returns.

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
        whole=interval_of(100 * (mean_of(before) - mean_of(after))),
        per_class={c: interval_of(100 * (before[:, c] - after[:, c])) for c in present},
        sizes=by_size,
        recall=interval_of(100 * (found_again[0] - found_again[1])),
        labels=labels,
    )


def class_figures(shares: NDArray, scores: NDArray) -> Figures:
    """Figures of a classifier.

    shares: (N, C), how much of each image belongs to each class (labels: one 1 a row; else what the original makes of
    it).   scores: (N, C).
    """
    answers = scores.argmax(axis=1)
    hit = shares[np.arange(len(shares)), answers].astype(np.float64)
    there = shares.sum(axis=0, dtype=np.float64)
    hits = np.bincount(answers, weights=hit, minlength=shares.shape[1])
    per_class = {int(c): float(100 * hits[c] / there[c]) for c in np.flatnonzero(there > 0)}
    return Figures(float(100 * hit.mean()), per_class, {}, None)


def bootstrap_class_drops(
    labels: NDArray | None, shares: NDArray, reference: NDArray, candidate: NDArray, classes: Sequence[int],
    rounds: int = 500, seed: int = 0,
) -> Drops:  # fmt: skip
    """What a classifier lost, over all and of each of some classes; positive is worse.

    labels: (N,), where there are some; their intervals are those of `bootstrap_class_drop`, of a class on its images
    alone.   shares: as for `class_figures`.   reference, candidate: (N, C) scores.
    """
    weights = draws(len(shares), rounds, seed)
    rows = np.arange(len(shares))
    answers = [scores.argmax(axis=1) for scores in (reference, candidate)]
    gained = shares[rows, answers[0]].astype(np.float64) - shares[rows, answers[1]]
    if labels is None:
        whole = interval_of(100 * (weights @ gained) / len(shares))
    else:
        whole = bootstrap_class_drop(labels, reference, candidate, rounds, seed)
    per_class: dict[int, Interval] = {}
    counts: dict[int | str, float] = {}
    for c in classes:
        share = shares[:, c].astype(np.float64)
        counts[c] = float(share.sum())
        if not counts[c]:
            continue
        if labels is not None:
            mine = labels == c
            per_class[c] = bootstrap_class_drop(labels[mine], reference[mine], candidate[mine], rounds, seed)
            continue
        lost = weights @ (share * ((answers[0] == c).astype(np.float64) - (answers[1] == c)))
        there = weights @ share
        per_class[c] = interval_of(100 * np.divide(lost, there, out=np.full(len(lost), np.nan), where=there > 0))
    return Drops(whole, per_class, {}, None, counts)
