"""Detections matched to labels once, then average precision under any weighting of the images.

Matching follows COCO: per image and class, best score first, a detection takes the free label of highest IoU if that
IoU reaches the threshold; labels to be ignored come last, may be taken many times, and then the detection counts
neither as hit nor as miss. IoU with such a label is intersection over the detection's own area. Where only labels of
some sizes count, the others are to be ignored as well (with their plain IoU, taken once), and so is a detection of
another size that found nothing.

For one class and threshold, walk down the scores. With image weights w, T and F the weight of hits and misses so far
and P the weight of all labels:

    precision = T / (T + F)      recall = T / P
    AP = mean over r in {0, 0.01, ..., 1} of the best precision at any recall >= r     (0 where r is never reached)

Recall grows at hits only, so hits are all that has to be visited: AP is the sum over hits of (best precision from here
on) times (number of r that this hit is first to reach) / 101. Weights of 1 give COCO's mAP; resampling counts give the
mAP of a bootstrap sample without matching again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roadworthy.detect.boxes import area, intersection_matrix
from roadworthy.detect.detections import Detections, Truth
from roadworthy.errors import InputError

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
PER_CLASS_LIMIT = 100  # COCO looks at the best 100 detections per image and class
EPSILON = np.spacing(1.0)
ROUNDS_AT_ONCE = 50  # bounds the memory of weighted sums


@dataclass(frozen=True, eq=False)
class Matches:
    """All detections of a set of images, sorted by class and then best first, and what became of them.

    image, classes: (M,) int64.   scores: (M,) float32.   hit, ignored: (10, M) bool, one row per IoU threshold.
    label_image, label_class: (L,) int64, the labels that count (those to be ignored are left out).
    """

    num_images: int
    num_classes: int
    image: NDArray[np.int64]
    classes: NDArray[np.int64]
    scores: NDArray[np.float32]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    label_image: NDArray[np.int64]
    label_class: NDArray[np.int64]


def check(truths: Sequence[Truth], found: Sequence[Detections], num_classes: int) -> None:
    """InputError unless there are as many results as labelled images and all classes are known."""
    if len(truths) != len(found):
        raise InputError(f"{len(truths)} labelled images and {len(found)} results do not match; give one per image")
    sides: tuple[tuple[str, Sequence[Truth | Detections]], ...] = (("label", truths), ("detection", found))
    for what, items in sides:
        for number, item in enumerate(items):
            if len(item) and not (item.classes.min() >= 0 and item.classes.max() < num_classes):
                wrong = item.classes[(item.classes < 0) | (item.classes >= num_classes)][0]
                raise InputError(f"a {what} of image {number} has class {wrong}, outside 0..{num_classes - 1}")


def match(
    truths: Sequence[Truth],
    found: Sequence[Detections],
    num_classes: int,
    area_range: tuple[float, float] | None = None,
) -> Matches:
    """Match the detections of each image with its labels at every COCO threshold.

    area_range: only labels from the first to the second area count, in square pixels; None counts all.
    """
    check(truths, found, num_classes)
    parts = [_match_image(truth, result, area_range) for truth, result in zip(truths, found, strict=True)]
    image = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    classes = np.concatenate([np.zeros(0, np.int64), *(part[0] for part in parts)])
    scores = np.concatenate([np.zeros(0, np.float32), *(part[1] for part in parts)])
    rows = len(IOU_THRESHOLDS)
    hit = np.concatenate([np.zeros((rows, 0), bool), *(part[2] for part in parts)], axis=1)
    ignored = np.concatenate([np.zeros((rows, 0), bool), *(part[3] for part in parts)], axis=1)
    order = np.lexsort((-scores, classes))  # stable: of equal scores the earlier image comes first
    labels = [np.asarray(truth.classes)[~_skipped(truth, area_range)] for truth in truths]
    return Matches(
        num_images=len(truths),
        num_classes=num_classes,
        image=image[order],
        classes=classes[order],
        scores=scores[order],
        hit=hit[:, order],
        ignored=ignored[:, order],
        label_image=np.repeat(np.arange(len(labels)), [len(label) for label in labels]),
        label_class=np.concatenate([np.zeros(0, np.int64), *labels]),
    )


def _outside(areas: NDArray, area_range: tuple[float, float] | None) -> NDArray[np.bool_]:
    areas = np.asarray(areas, np.float64)
    return np.zeros(len(areas), bool) if area_range is None else (areas < area_range[0]) | (areas > area_range[1])


def _skipped(truth: Truth, area_range: tuple[float, float] | None) -> NDArray[np.bool_]:
    """(L,) which labels are to be ignored."""
    return np.asarray(truth.ignore, bool) | _outside(truth.areas, area_range)


def _match_image(
    truth: Truth, result: Detections, area_range: tuple[float, float] | None
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Classes (D,), scores (D,), hit (10, D) and ignored (10, D) of one image, sorted by class, best first."""
    order = np.lexsort((-result.scores, result.classes))
    classes = result.classes[order]
    rank = np.arange(len(order)) - np.searchsorted(classes, classes)
    order, classes = order[rank < PER_CLASS_LIMIT], classes[rank < PER_CLASS_LIMIT]
    boxes = result.boxes_xyxy[order]
    hit = np.zeros((len(IOU_THRESHOLDS), len(order)), bool)
    ignored = np.zeros_like(hit)
    if len(order) and len(truth):
        overlap = _overlap(boxes, truth)
        overlap[classes[:, None] != truth.classes[None, :]] = -1
        free = np.ones((len(IOU_THRESHOLDS), len(truth)), bool)
        crowd, skipped = np.asarray(truth.ignore, bool), _skipped(truth, area_range)
        for row in np.flatnonzero(overlap.max(axis=1) >= IOU_THRESHOLDS[0]):
            near = np.flatnonzero(overlap[row] >= IOU_THRESHOLDS[0])
            iou = overlap[row, near]
            level = np.flatnonzero(iou.max() >= IOU_THRESHOLDS)
            open_ = (iou[None, :] >= IOU_THRESHOLDS[level, None]) & free[np.ix_(level, near)]
            for group, mark in ((~skipped[near], hit), (skipped[near], ignored)):
                value = np.where(open_ & group, iou, -1)
                best = len(near) - 1 - value[:, ::-1].argmax(axis=1)  # of equal IoU the later label, as COCO does
                taken = value[np.arange(len(level)), best] >= 0
                mark[level[taken], row] = True
                once = taken & ~crowd[near[best]]
                free[level[once], near[best[once]]] = False
                if mark is hit:
                    level, open_ = level[~taken], open_[~taken]
                if not len(level):
                    break
    ignored |= ~hit & _outside(area(boxes), area_range)
    return classes, result.scores[order], hit, ignored


def _overlap(boxes: NDArray, truth: Truth) -> NDArray[np.float64]:
    """(D, L) IoU, with the detection's own area below the line where the label is to be ignored."""
    shared = intersection_matrix(boxes, truth.boxes_xyxy)
    own = area(boxes)[:, None]
    union = np.where(truth.ignore[None, :], own, own + area(truth.boxes_xyxy)[None, :] - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def weighted_map(matches: Matches, weights: NDArray) -> NDArray[np.float64]:
    """mAP in 0..1 for each weighting of the images.

    weights: (R, images), how often each image counts; integers or not.   Returns (R,); NaN where no label counts.
    A class without labels under a weighting is left out of that mean.
    """
    return mean_of(weighted_ap(matches, weights))


def mean_of(per_class: NDArray) -> NDArray[np.float64]:
    """(R,) the mean over the classes that have a figure, of (R, classes); NaN where none has."""
    known = np.isfinite(per_class)
    counted = known.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(known, per_class, 0).sum(axis=1) / np.where(counted, counted, np.nan)


def weighted_ap(matches: Matches, weights: NDArray) -> NDArray[np.float64]:
    """(R, classes): the average precision of each class, mean over the IoU thresholds; NaN where it has no label.

    weights: as for `weighted_map`.
    """
    weights = _fitting(matches, weights)
    chunks = [weights[i : i + ROUNDS_AT_ONCE] for i in range(0, len(weights), ROUNDS_AT_ONCE)]
    return np.concatenate([np.zeros((0, matches.num_classes)), *(_weighted_ap(matches, chunk) for chunk in chunks)])


def weighted_recall(matches: Matches, weights: NDArray, score_threshold: float) -> NDArray[np.float64]:
    """(R,): the share, 0..1, of all labels that a detection of at least this score hits at IoU 0.5; NaN without labels.

    weights: as for `weighted_map`.
    """
    weights = _fitting(matches, weights)
    shown = matches.hit[0] & (matches.scores >= score_threshold)
    hits = np.bincount(matches.image[shown], minlength=matches.num_images)
    labels = weights @ np.bincount(matches.label_image, minlength=matches.num_images)
    return np.divide(weights @ hits, labels, out=np.full(len(weights), np.nan), where=labels > 0)


def _fitting(matches: Matches, weights: NDArray) -> NDArray[np.float64]:
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 2 or weights.shape[1] != matches.num_images:
        raise InputError(
            f"weights of shape {weights.shape} do not fit {matches.num_images} images; give (rounds, images)"
        )
    return weights


def _weighted_ap(matches: Matches, weights: NDArray) -> NDArray[np.float64]:
    rounds = len(weights)
    labels = np.zeros((rounds, matches.num_classes))
    by_class = np.argsort(matches.label_class, kind="stable")
    present, starts = np.unique(matches.label_class[by_class], return_index=True)
    if len(present):
        labels[:, present] = np.add.reduceat(weights[:, matches.label_image[by_class]], starts, axis=1)
    per_detection = weights[:, matches.image]
    # index i: the weight of all detections before i, so a class is the difference of two entries
    before = np.zeros((rounds, len(matches.image) + 1))
    np.cumsum(per_detection, axis=1, out=before[:, 1:])
    total = np.zeros((rounds, matches.num_classes))
    for hit, ignored in zip(matches.hit, matches.ignored, strict=True):
        at = np.flatnonzero(hit)
        if not len(at):
            continue
        classes = matches.classes[at]
        first = np.searchsorted(matches.classes, classes)  # where the class of each hit begins
        seen = before[:, at + 1] - before[:, first]
        passed = np.flatnonzero(ignored)
        if len(passed):
            skipped = np.zeros((rounds, len(passed) + 1))
            np.cumsum(per_detection[:, passed], axis=1, out=skipped[:, 1:])
            seen -= skipped[:, np.searchsorted(passed, at)] - skipped[:, np.searchsorted(passed, first)]
        hits = np.cumsum(per_detection[:, at], axis=1)
        start = np.searchsorted(classes, classes)  # index of the first hit of the same class
        hits -= (hits - per_detection[:, at])[:, start]
        precision = hits / (seen + EPSILON)
        # best precision from here on, one running maximum for all classes: a rising offset keeps them apart
        offset = 2.0 * (matches.num_classes - classes)
        best = np.maximum.accumulate((precision + offset)[:, ::-1], axis=1)[:, ::-1] - offset
        recall = hits / np.maximum(labels[:, classes], EPSILON)
        reached = np.searchsorted(RECALLS, recall.reshape(-1), side="right").reshape(recall.shape)
        fresh = np.diff(reached, axis=1, prepend=0)
        heads = np.flatnonzero(start == np.arange(len(start)))
        fresh[:, heads] = reached[:, heads]
        # a class that the weights removed has no recall to reach
        total[:, classes[heads]] += np.add.reduceat(np.where(labels[:, classes] > 0, best * fresh, 0), heads, axis=1)
    return np.where(labels > 0, total / (len(RECALLS) * len(IOU_THRESHOLDS)), np.nan)
