"""How good detections and class scores are, and how sure one can be that a candidate is worse than its reference.

Mean average precision is COCO's own, computed by pycocotools. Intervals come from a paired bootstrap: draw images with
replacement, score both models on the same draw, and read the 2.5 and 97.5 percentiles of the difference (Efron 1979).
All figures are in points, 0..100.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.detect.detections import Detections, Truth
from roadworthy.detect.matches import Matches, check, match, weighted_map
from roadworthy.errors import InputError

LARGE = 1e10  # COCO's upper end of the area range "all", in square pixels
SIZES: dict[str, tuple[float, float]] = {
    "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, LARGE),
}  # fmt: skip
"""COCO's sizes: areas of labels in square pixels of the image."""


@dataclass(frozen=True)
class DetectionScores:
    """COCO figures in points; None where no label counts.

    map: mean over IoU 0.50..0.95.   ap50, ap75: at one IoU.   small, medium, large: labels below 32^2, up to 96^2 and
    above, in square pixels of the image, by the labels' own areas.   per_class: class -> AP.
    recall, precision: at score_threshold and IoU 0.5, all classes together.   recall_per_class: class -> recall.
    images, boxes: how many images, and how many labels that count.
    """

    map: float | None
    ap50: float | None
    ap75: float | None
    small: float | None
    medium: float | None
    large: float | None
    per_class: dict[int, float | None]
    recall: float | None
    precision: float | None
    recall_per_class: dict[int, float | None]
    score_threshold: float
    images: int
    boxes: int


@dataclass(frozen=True)
class ClassScores:
    """Share of images in points whose label is the best, or among the best five, classes; None where not known.

    per_class: class -> top-1 of the images with that label.
    """

    top1: float | None
    top5: float | None
    per_class: dict[int, float]
    images: int


@dataclass(frozen=True)
class Interval:
    """A drop in points, reference minus candidate, with its 95 % interval; positive means the candidate is worse."""

    drop: float
    low: float
    high: float


def evaluate_detections(
    truths: Sequence[Truth], found: Sequence[Detections], num_classes: int, score_threshold: float
) -> DetectionScores:
    """COCO evaluation of one result per labelled image.

    num_classes: classes are 0..num_classes-1.   score_threshold: operating point of recall and precision; it takes
    nothing away from the average precision, which wants all results down to a score near 0.
    Raises InputError when the numbers of images differ or a class is out of range.
    """
    check(truths, found, num_classes)
    classes = sorted({int(c) for truth in truths for c in truth.classes})
    areas = [[0, LARGE], *map(list, SIZES.values())]
    precision = _coco_precision(truths, found, classes, areas)  # 10 thresholds, 101 recalls, classes, areas
    per_class: dict[int, float | None] = dict.fromkeys(range(num_classes))
    for column, number in enumerate(classes):
        per_class[number] = _mean(precision[:, :, column, 0])
    recall, exactness, recall_per_class = operating_point(match(truths, found, num_classes), score_threshold)
    return DetectionScores(
        map=_mean(precision[..., 0]),
        ap50=_mean(precision[0, ..., 0]),
        ap75=_mean(precision[5, ..., 0]),
        small=_mean(precision[..., 1]),
        medium=_mean(precision[..., 2]),
        large=_mean(precision[..., 3]),
        per_class=per_class,
        recall=recall,
        precision=exactness,
        recall_per_class=recall_per_class,
        score_threshold=score_threshold,
        images=len(truths),
        boxes=sum(int((~truth.ignore).sum()) for truth in truths),
    )


def _mean(precision: NDArray) -> float | None:
    """Mean in points over the entries that exist; pycocotools marks the others with -1."""
    valid = precision[precision > -1]
    return float(valid.mean() * 100) if valid.size else None


def _coco_precision(
    truths: Sequence[Truth], found: Sequence[Detections], classes: list[int], areas: list[list[float]]
) -> NDArray[np.float64]:
    """pycocotools' precision table (IoU thresholds, recalls, classes, areas) for objects built in memory."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not classes:
        return np.full((10, 101, 0, len(areas)), -1.0)
    labels: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, (truth, result) in enumerate(zip(truths, found, strict=True), start=1):
        for box, kind, size, crowd in zip(truth.boxes_xyxy, truth.classes, truth.areas, truth.ignore, strict=True):
            labels.append(_row(len(labels) + 1, number, kind, box) | {"area": float(size), "iscrowd": int(crowd)})
        for box, kind, score in zip(result.boxes_xyxy, result.classes, result.scores, strict=True):
            row = _row(len(results) + 1, number, kind, box)
            row |= {"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0, "score": float(score)}
            results.append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = []
        for annotations in (labels, results):
            side = COCO()
            side.dataset = {
                "images": [{"id": number} for number in range(1, len(truths) + 1)],
                "categories": [{"id": number} for number in classes],
                "annotations": annotations,
            }
            side.createIndex()
            coco.append(side)
        evaluation = COCOeval(*coco, iouType="bbox")
        evaluation.params.areaRng = areas
        evaluation.params.areaRngLbl = [str(low_high) for low_high in areas]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0]


def _row(identity: int, image: int, kind: int, box: NDArray) -> dict[str, Any]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return {"id": identity, "image_id": image, "category_id": int(kind), "bbox": [x1, y1, x2 - x1, y2 - y1]}


def operating_point(
    matches: Matches, score_threshold: float
) -> tuple[float | None, float | None, dict[int, float | None]]:
    """Recall, precision and recall per class at IoU 0.5 of the detections that reach the score."""
    shown = matches.scores >= score_threshold
    hit, counted = matches.hit[0] & shown, shown & ~matches.ignored[0]
    labels = np.bincount(matches.label_class, minlength=matches.num_classes)
    hits = np.bincount(matches.classes[hit], minlength=matches.num_classes)
    recall = 100.0 * hits.sum() / labels.sum() if labels.sum() else None
    precision = 100.0 * hits.sum() / counted.sum() if counted.any() else None
    per_class = {c: float(100.0 * hits[c] / labels[c]) if labels[c] else None for c in range(matches.num_classes)}
    return recall if recall is None else float(recall), precision if precision is None else float(precision), per_class


def map_only(truths: Sequence[Truth], found: Sequence[Detections], num_classes: int) -> float:
    """mAP in points, NaN where no label counts; the figure of `evaluate_detections` in a tenth of the time."""
    matches = match(truths, found, num_classes)
    return float(weighted_map(matches, np.ones((1, matches.num_images)))[0] * 100)


def bootstrap_drop(
    truths: Sequence[Truth],
    reference: Sequence[Detections],
    candidate: Sequence[Detections],
    num_classes: int,
    rounds: int = 500,
    seed: int = 0,
    repeats: int = 1,
) -> Interval:
    """mAP(reference) - mAP(candidate) in points, with a 95 % interval from `rounds` paired draws of the images.

    repeats: the sequences hold all images this many times over, with other labels each time; an image is then drawn
    with all its repetitions.
    Raises InputError when no label counts, or as `evaluate_detections` does.
    """
    pair = [match(truths, found, num_classes) for found in (reference, candidate)]
    if not len(pair[0].label_class):
        raise InputError("no image has a label that counts, so mAP has no meaning; give labelled images")
    weights = np.tile(draws(len(truths) // repeats, rounds, seed), (1, repeats))
    drops = 100 * (weighted_map(pair[0], weights) - weighted_map(pair[1], weights))
    return interval_of(drops)


def bootstrap_mean(differences: NDArray, rounds: int = 500, seed: int = 0) -> Interval:
    """The mean of per-image differences (N,), with a 95 % interval from draws of the images."""
    return interval_of(draws(len(differences), rounds, seed) @ differences / len(differences))


def draws(images: int, rounds: int, seed: int) -> NDArray[np.float64]:
    """(1 + rounds, images): all ones first, then how often each image is drawn in each round."""
    if rounds < 1:
        raise InputError(f"rounds is {rounds}; a bootstrap needs at least one")
    counts = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=rounds)
    return np.concatenate([np.ones((1, images)), counts])


def interval_of(drops: NDArray) -> Interval:
    """The first entry is the drop itself; the others are the draws. A draw without any label (NaN) says nothing."""
    low, high = np.nanpercentile(drops[1:] if np.isfinite(drops[1:]).any() else drops, [2.5, 97.5])
    return Interval(float(drops[0]), float(low), float(high))


def _ranks(labels: NDArray, scores: NDArray) -> tuple[NDArray[np.int64], int]:
    """Place of each label among its scores (0 is best), and how many places are known."""
    labels, scores = np.asarray(labels).reshape(-1), np.asarray(scores)
    if scores.ndim != 2 or len(scores) != len(labels):
        raise InputError(
            f"{len(labels)} labels and scores of shape {scores.shape} do not match; give one row per label"
        )
    if scores.dtype.kind in "iu":  # classes, best first
        hits = scores == labels[:, None]
        return np.where(hits.any(axis=1), hits.argmax(axis=1), scores.shape[1]), scores.shape[1]
    if np.isnan(scores).any():
        raise InputError("a class score is NaN; the model is broken or was fed a wrong input")
    if len(labels) and not 0 <= labels.min() <= labels.max() < scores.shape[1]:
        raise InputError(f"a label is outside the {scores.shape[1]} classes of the scores; check the label file")
    own = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(axis=1), scores.shape[1]


def evaluate_classes(labels: NDArray, scores: NDArray) -> ClassScores:
    """Top-1 and top-5 in points.

    labels: (N,) int.   scores: (N, C) float, larger is better, of equal scores the lower class wins; or (N, K) int,
    classes best first.   top5 is None where fewer than five places are known.
    Raises InputError when shapes disagree, a score is NaN or a label is out of range.
    """
    ranks, places = _ranks(labels, scores)
    labels = np.asarray(labels).reshape(-1)
    if not len(labels):
        return ClassScores(None, None, {}, 0)
    return ClassScores(
        top1=float((ranks == 0).mean() * 100),
        top5=float((ranks < 5).mean() * 100) if places >= 5 else None,
        per_class={int(c): float((ranks[labels == c] == 0).mean() * 100) for c in np.unique(labels)},
        images=len(labels),
    )


def bootstrap_class_drop(
    labels: NDArray, reference: NDArray, candidate: NDArray, rounds: int = 500, seed: int = 0
) -> Interval:
    """Top-1 of the reference minus top-1 of the candidate in points, with a 95 % interval from paired draws.

    labels, reference, candidate: as for `evaluate_classes`.   Raises InputError as it does, and for no images.
    """
    if not np.size(labels):
        raise InputError("there are no labels, so accuracy has no meaning; give labelled images")
    difference = (_ranks(labels, reference)[0] == 0).astype(float) - (_ranks(labels, candidate)[0] == 0)
    drawn = interval_of(draws(len(difference), rounds, seed) @ difference * (100 / len(difference)))
    # Few changed images make the bootstrap too sure (none at all: an interval of width 0), so the interval is never
    # narrower than the one of Agresti and Min (2005): half a made-up image is added to each of the four outcomes.
    worse, better, n = int((difference > 0).sum()), int((difference < 0).sum()), len(difference)
    b, c, m = worse + 0.5, better + 0.5, n + 2
    middle, half = (b - c) / m, 1.96 * math.sqrt(b + c - (b - c) ** 2 / m) / m
    return Interval(drawn.drop, min(drawn.low, 100 * (middle - half)), max(drawn.high, 100 * (middle + half)))
