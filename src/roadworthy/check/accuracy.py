"""Accuracy of a model on images, and the drop from one model to another.

Where there are labels they are the reference. Where there are none, the original is a witness of known doubt:

    classifier   expected accuracy = mean over images of p_original(class that the model answers)
    detector     labels are drawn: each of the original's detections on the mirrored image, mirrored back, is present
                 with the probability that its score claims; DRAWS draws, the mean over them

A mistake of the original is thus drawn as an absent object about as often as it is one, and a box is held against one
that was found in other pixels, so that neither model meets its own jitter. The drop between two models on this
reference estimates the drop that labels would show (docs/decisions/0003). How many of the original's own detections
are found again is reported beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from roadworthy.data.samples import Sample, Samples, prefetch
from roadworthy.detect.boxes import clip, iou_matrix
from roadworthy.detect.decode import classify, detect
from roadworthy.detect.detections import Detections, Truth
from roadworthy.detect.evaluate import (
    SIZES,
    ClassScores,
    DetectionScores,
    Interval,
    bootstrap_class_drop,
    bootstrap_drop,
    bootstrap_mean,
    evaluate_classes,
    evaluate_detections,
    map_only,
)
from roadworthy.detect.figures import (
    Drops,
    Figures,
    bootstrap_class_drops,
    bootstrap_drops,
    class_figures,
    figures,
)
from roadworthy.errors import InputError
from roadworthy.model.task import Task
from roadworthy.run.runner import Runner

SCORE_FLOOR = 0.01
"""Detections below this score do not enter mAP (the convention of YOLOX and of the figures in PEERS)."""

DRAWN, OWN = "labels drawn from the mirrored original", "the original's own probabilities"
"""What stands in for labels: of a detector, of a classifier."""
EXACT_DB = 300.0
"""What is said of outputs that are equal, and below zero of outputs that are not finite."""
DRAWS = 5
DRAW_FLOOR = 0.05
"""Detections below this are hardly ever objects, and there are very many of them."""

Progress = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Results on an ordered set of images: detections, or class scores (N, C), or raw outputs (one dict an image)."""

    detections: tuple[Detections, ...] = ()
    scores: NDArray[np.float32] | None = None
    raw: tuple[dict[str, NDArray], ...] = ()


@dataclass(frozen=True, eq=False)
class Reference:
    """What results are held against.

    kind: "labels", or what stands in for them.   truths: boxes of each image, `draws` times over all images.
    labels: (N,) class indices.   probabilities: (N, C) the original's, where there are no labels.
    """

    kind: str
    truths: tuple[Truth, ...] = ()
    draws: int = 1
    labels: NDArray[np.int64] | None = None
    probabilities: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Accuracy:
    """One figure and all behind it.   metric: "mAP", "top-1" or "SQNR"; value in points (dB for SQNR)."""

    metric: str
    value: float
    detail: DetectionScores | ClassScores | None = None


def tensor_of(
    sample: Sample, task: Task, mirrored: bool = False
) -> tuple[NDArray[np.float32], object, tuple[int, int]]:
    """The input tensor of one image, its geometry, and the image's height and width."""
    image = sample.image()
    if mirrored:
        image = np.ascontiguousarray(image[:, ::-1])
    tensor, geometry = task.preprocess(image)
    return tensor, geometry, image.shape[:2]


def predict(
    runner: Runner, task: Task, samples: Samples, mirrored: bool = False, progress: Progress | None = None
) -> Predictions:
    """Run a model over images, one at a time; images are read ahead in a thread, and none is kept.

    mirrored: feed every image mirrored left to right, and mirror the boxes back.
    Raises InputError naming an image that cannot be read, or an output that does not fit the task.
    """
    found: list[Detections] = []
    scores: list[NDArray] = []
    raw: list[dict[str, NDArray]] = []
    name = runner.input_names[0]
    for count, (tensor, geometry, hw) in enumerate(prefetch(samples, lambda s: tensor_of(s, task, mirrored)), 1):
        outputs = runner.run({name: tensor})
        if task.is_detector:
            result = detect(outputs, task.decode, geometry.to_image, SCORE_FLOOR)  # type: ignore[attr-defined]
            boxes = clip(result.boxes_xyxy, hw)
            if mirrored:
                boxes = mirror(boxes, hw[1])
            found.append(Detections(boxes, result.scores, result.classes))
        elif task.decode.kind == "classify":
            scores.append(classify(outputs, task.decode))
        else:
            raw.append({k: np.array(v) for k, v in outputs.items()})
        if progress:
            progress(count)
    return Predictions(tuple(found), np.stack(scores) if scores else None, tuple(raw))


def mirror(boxes_xyxy: NDArray, width: int) -> NDArray[np.float32]:
    """Boxes (N, 4) of a mirrored image, in the image itself."""
    boxes = np.asarray(boxes_xyxy, np.float32).copy()
    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return boxes


def labelled(task: Task, samples: Samples) -> bool:
    """Whether the labels of these samples are what the task predicts."""
    return samples.kind == ("boxes" if task.is_detector else "classes") and task.decode.kind != "raw"


def reference_of(
    original: Callable[[], Runner],
    task: Task,
    samples: Samples,
    progress: Progress | None = None,
    known: Predictions | None = None,
) -> Reference:
    """The labels where there are some, else what the original makes likely (see the module).

    original: makes a runner of the original; called only where it is needed.   known: its predictions on the samples,
    where they have been made already.
    """
    if labelled(task, samples):
        if task.is_detector:
            truths = tuple(s.truth for s in samples)
            return Reference("labels", truths=tuple(t for t in truths if t is not None))
        return Reference("labels", labels=np.array([s.label for s in samples], np.int64))
    if task.decode.kind == "raw":
        return Reference("original")
    if known is not None and not task.is_detector:
        return Reference(OWN, probabilities=known.scores)
    found = predict(original(), task, samples, mirrored=task.is_detector, progress=progress)
    if task.is_detector:
        return Reference(DRAWN, draw_truths(found.detections), DRAWS)
    return Reference(OWN, probabilities=found.scores)


def draw_truths(found: Sequence[Detections], draws: int = DRAWS, seed: int = 0) -> tuple[Truth, ...]:
    """Labels drawn from detections: each box with the probability of its score, from DRAW_FLOOR up."""
    rng = np.random.default_rng(seed)
    truths = []
    for _ in range(draws):
        for d in found:
            present = (rng.random(len(d)) < d.scores) & (d.scores >= DRAW_FLOOR)
            truths.append(Truth.of(d.boxes_xyxy[present], d.classes[present]))
    return tuple(truths)


def score(predictions: Predictions, reference: Reference, task: Task, full: bool = True) -> Accuracy:
    """The figure of merit of predictions.   full: with the details of a report, which take half a second more."""
    if task.is_detector:
        if not sum(int((~t.ignore).sum()) for t in reference.truths):
            raise InputError(
                "no object is labelled on the test images, and the original finds none on them either,"
                " so accuracy cannot be measured; hand in images that show the classes of the model"
            )
        found = predictions.detections * reference.draws
        if not full:
            return Accuracy("mAP", map_only(reference.truths, found, task.decode.num_classes))
        detail = evaluate_detections(reference.truths, found, task.decode.num_classes, task.decode.score_threshold)
        return Accuracy("mAP", float(detail.map or 0.0), detail)
    if task.decode.kind != "classify":
        raise InputError("a raw task has no accuracy of its own; compare it with its original")
    assert predictions.scores is not None
    if reference.labels is not None:
        classes = evaluate_classes(reference.labels, predictions.scores)
    else:
        classes = _expected(predictions.scores, reference)
    return Accuracy("top-1", float(classes.top1 or 0.0), classes)


def _expected(scores: NDArray, reference: Reference) -> ClassScores:
    """Accuracy that a model has if the original's probabilities are right."""
    assert reference.probabilities is not None
    order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    hits = np.take_along_axis(reference.probabilities, order, axis=1).astype(np.float64)
    top5 = float(hits.sum(1).mean() * 100) if scores.shape[1] >= 5 else None
    return ClassScores(float(hits[:, 0].mean() * 100), top5, {}, len(scores))


def drop(
    original: Predictions, candidate: Predictions, reference: Reference, task: Task, rounds: int = 1000, seed: int = 0
) -> Interval:
    """By how many points the candidate is worse, with its 95 % interval (paired bootstrap over images)."""
    if task.is_detector:
        before, after = (p.detections * reference.draws for p in (original, candidate))
        classes = task.decode.num_classes
        return bootstrap_drop(reference.truths, before, after, classes, rounds, seed, repeats=reference.draws)
    assert original.scores is not None and candidate.scores is not None
    if reference.labels is not None:
        return bootstrap_class_drop(reference.labels, original.scores, candidate.scores, rounds, seed)
    assert reference.probabilities is not None
    rows = np.arange(len(reference.probabilities))
    kept = [reference.probabilities[rows, p.scores.argmax(1)] for p in (original, candidate)]  # type: ignore[union-attr]
    return bootstrap_mean(100.0 * (kept[0] - kept[1]).astype(np.float64), rounds, seed)


def figures_of(
    predictions: Predictions, reference: Reference, task: Task, threshold: float, sizes: Sequence[str] = ()
) -> Figures:
    """All figures that budgets name.   threshold: the operating point, of a detector.   sizes: keys of SIZES."""
    if task.is_detector:
        found = predictions.detections * reference.draws
        return figures(reference.truths, found, task.decode.num_classes, threshold, sizes)
    assert predictions.scores is not None
    return class_figures(_shares(reference, predictions.scores.shape[1]), predictions.scores)


def drops_of(
    original: Predictions,
    candidate: Predictions,
    reference: Reference,
    task: Task,
    thresholds: tuple[float, float],
    sizes: Sequence[str] = (),
    classes: Sequence[int] = (),
    rounds: int = 1000,
    seed: int = 0,
) -> Drops:
    """What was lost of all that budgets name, with 95 % intervals (paired bootstrap over images).

    thresholds: the operating points of the two.   classes: of a classifier, those to look at; a detector's come all.
    """
    if task.is_detector:
        before, after = (p.detections * reference.draws for p in (original, candidate))
        return bootstrap_drops(
            reference.truths, before, after, task.decode.num_classes, thresholds, sizes, rounds, seed, reference.draws
        )
    assert original.scores is not None and candidate.scores is not None
    shares = _shares(reference, original.scores.shape[1])
    return bootstrap_class_drops(reference.labels, shares, original.scores, candidate.scores, classes, rounds, seed)


def labels_of(reference: Reference, task: Task) -> dict[int, float]:
    """How many labels each class has on the images; of drawn ones the mean over the draws, of probabilities the sum."""
    if task.is_detector:
        every = [t.classes[~t.ignore] for t in reference.truths]
        found = np.bincount(np.concatenate([np.zeros(0, np.int64), *every]), minlength=task.decode.num_classes)
        counts = found / reference.draws
    else:
        counts = _shares(reference, task.decode.num_classes).sum(axis=0, dtype=np.float64)
    return {int(c): float(counts[c]) for c in np.flatnonzero(counts)}


def sizes_of(reference: Reference) -> dict[str, float]:
    """How many labels of each size there are on the images; of drawn ones the mean over the draws."""
    areas = np.concatenate([np.zeros(0), *(t.areas[~t.ignore] for t in reference.truths)])
    return {s: float(((areas >= lo) & (areas <= hi)).sum()) / reference.draws for s, (lo, hi) in SIZES.items()}


def _shares(reference: Reference, classes: int) -> NDArray[np.float32]:
    """(N, C): how much of each image belongs to each class."""
    if reference.labels is None:
        assert reference.probabilities is not None
        return reference.probabilities
    shares = np.zeros((len(reference.labels), classes), np.float32)
    shares[np.arange(len(shares)), reference.labels] = 1
    return shares


def output_sqnr_db(original: Predictions, candidate: Predictions) -> float:
    """Signal to quantization noise of raw outputs in dB: the worst output, over all images together."""
    worst = EXACT_DB
    for name in original.raw[0]:
        signal = sum(float((a[name].astype(np.float64) ** 2).sum()) for a in original.raw)
        noise = sum(
            float(((a[name].astype(np.float64) - b[name]) ** 2).sum()) for a, b in zip(original.raw, candidate.raw)
        )
        if not np.isfinite(noise):
            return -EXACT_DB
        if noise:  # none at all is exact, also where the signal is zero
            worst = min(worst, 10 * np.log10(max(signal, 1e-30) / noise))
    return float(np.clip(worst, -EXACT_DB, EXACT_DB))


def agreement(
    original: Predictions, candidate: Predictions, task: Task, threshold: float | None = None
) -> dict[str, float]:
    """How far two models say the same, in points, each at its operating threshold.

    threshold: the candidate's, where that is not the task's.

    Detectors: share of the original's detections found again at IoU 0.5 (`found_again`), share of the candidate's that
    the original has (`also_in_original`), mean IoU of the pairs. Classifiers: share of equal top-1.
    """
    if not task.is_detector:
        assert original.scores is not None and candidate.scores is not None
        same = original.scores.argmax(1) == candidate.scores.argmax(1)
        return {"same_top1": float(same.mean() * 100)}
    hits = ours = theirs = 0
    overlap = 0.0
    for a, b in zip(original.detections, candidate.detections):
        limit = task.decode.score_threshold
        a, b = a.keep(a.scores >= limit), b.keep(b.scores >= (limit if threshold is None else threshold))
        ours, theirs = ours + len(a), theirs + len(b)
        for _, _, iou in match_pairs(a, b):
            hits, overlap = hits + 1, overlap + iou
    if not ours and not theirs:
        return {"found_again": 100.0, "also_in_original": 100.0, "mean_iou": 1.0, "detections": 0}
    return {
        "found_again": 100.0 * hits / max(ours, 1),
        "also_in_original": 100.0 * hits / max(theirs, 1),
        "mean_iou": overlap / max(hits, 1),
        "detections": ours,
    }


def match_pairs(a: Detections, b: Detections, threshold: float = 0.5) -> list[tuple[int, int, float]]:
    """Pairs (index in a, index in b, IoU) of one class, greedily by overlap, each detection once."""
    if not len(a) or not len(b):
        return []
    iou = iou_matrix(a.boxes_xyxy, b.boxes_xyxy) * (a.classes[:, None] == b.classes[None, :])
    pairs: list[tuple[int, int, float]] = []
    for flat in np.argsort(-iou, axis=None, kind="stable"):
        i, j = divmod(int(flat), iou.shape[1])
        if iou[i, j] < threshold:
            break
        if all(i != p[0] and j != p[1] for p in pairs):
            pairs.append((i, j, float(iou[i, j])))
    return pairs


def with_names(task: Task, names: Sequence[str]) -> Task:
    """The task with class names from the data, where it has none of its own."""
    if task.decode.class_names or len(names) != task.decode.num_classes:
        return task
    return replace(task, decode=replace(task.decode, class_names=tuple(names)))
