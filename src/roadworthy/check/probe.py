"""Choosing between task contracts by measurement, for what a graph cannot say: colour order, scaling, resizing.

Every candidate is run over the same images and gets one figure per image: with labels, how far the network agrees with
them, its scores weighed in. Without, a detector's figure is how sure it is of anything; a classifier's is how far it
says the same of an image and its mirror image, less what it says of all images alike:

    figure[i] = sum_c p[i,c] * m[i,c]  -  mean over j of sum_c p[i,c] * m[j,c]        p: image, m: mirrored

(sureness alone would favour any scale so large that the softmax saturates, whatever the class). The best candidate
counts as found only when it beats each other one by `Z` standard errors of the paired differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roadworthy.check.accuracy import labelled
from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.boxes import iou_matrix
from roadworthy.detect.decode import classify, detect
from roadworthy.detect.detections import Detections, Truth
from roadworthy.errors import InputError
from roadworthy.model.task import Task
from roadworthy.run.runner import Runner

Z = 2.5
IMAGES = 48


@dataclass(frozen=True, eq=False)
class Finding:
    """The outcome of a probe.

    best: index of the best candidate.   runner_up: index of the next, or None.   decisive: whether it stands clear.
    means: mean figure per candidate, 0..100.   images: how many were looked at.   by_labels: labels were used.
    """

    best: int
    runner_up: int | None
    decisive: bool
    means: tuple[float, ...]
    images: int
    by_labels: bool
    clear_of_first: bool = False
    """Whether the best stands clear of the first candidate, whatever the others do."""


def probe(runner: Runner, candidates: Sequence[Task], samples: Samples, images: int = IMAGES, seed: int = 0) -> Finding:
    """Measure which of several contracts a network was made for."""
    chosen = samples.take(min(images, len(samples)), seed)

    def tried(k: int, sample: Sample) -> float:
        try:
            return figure(runner, candidates[k], sample)
        except InputError:  # boxes that are not finite, scores above 1: a wrong scale can do that
            if k == 0:
                raise
            return 0.0

    if candidates[0].decode.kind == "classify" and not labelled(candidates[0], chosen):
        figures = np.stack([steadiness(runner, task, chosen) for task in candidates], axis=1)
    else:
        figures = np.array([[tried(k, s) for k in range(len(candidates))] for s in chosen])  # images, candidates
    means = figures.mean(0)
    order = np.argsort(-means, kind="stable")
    best = int(order[0])
    decisive = all(z_score(figures[:, best], figures[:, k]) >= Z for k in order[1:])
    return Finding(
        best=best,
        runner_up=int(order[1]) if len(order) > 1 else None,
        decisive=bool(decisive),
        means=tuple(float(m) * 100 for m in means),
        images=len(chosen),
        by_labels=labelled(candidates[0], samples),
        clear_of_first=best != 0 and z_score(figures[:, best], figures[:, 0]) >= Z,
    )


def z_score(a: NDArray, b: NDArray) -> float:
    """How many standard errors the mean of a lies above that of b, over paired values."""
    difference = a - b
    if len(difference) < 4:
        return 0.0
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return float(difference.mean() / max(error, 1e-9))


def steadiness(runner: Runner, task: Task, samples: Samples) -> NDArray[np.float64]:
    """(images,) agreement of a classifier with itself on the mirrored image, less its agreement by chance."""
    answers: list[list[NDArray]] = [[], []]
    for sample in samples:
        image = sample.image()
        for side, view in enumerate((image, np.ascontiguousarray(image[:, ::-1]))):
            outputs = runner.run({runner.input_names[0]: task.preprocess(view)[0]})
            answers[side].append(classify(outputs, task.decode))
    products = np.stack(answers[0]).astype(np.float64) @ np.stack(answers[1]).T  # image i, mirrored image j
    return np.diag(products) - products.mean(1)


def figure(runner: Runner, task: Task, sample: Sample) -> float:
    """How much one image speaks for a contract, 0..1."""
    tensor, geometry = task.preprocess(sample.image())
    outputs = runner.run({runner.input_names[0]: tensor})
    if not task.is_detector:
        scores = classify(outputs, task.decode)
        if sample.label is None or not 0 <= sample.label < len(scores):
            raise InputError(f"the sample {sample.name} has no label among the {len(scores)} classes of the network")
        return float(scores[sample.label])
    found = detect(outputs, task.decode, geometry.to_image, 0.05)
    if not sample.has_truth:
        best = np.sort(found.scores)[::-1][:10]
        return float((best**2).sum() / 10)
    return _dice(sample.truth, found)


def _dice(truth: Truth | None, found: Detections) -> float:
    """2 |hits| / (|labels| + |detections|), detections weighed by score, hits by their overlap as well; 0..1.

    0 when no label is found, 1 when all are, exactly and surely, and nothing else is; weak spurious detections, of
    which some networks have many, cost little.
    """
    assert truth is not None
    boxes, classes = truth.boxes_xyxy[~truth.ignore], truth.classes[~truth.ignore]
    detected = float(found.scores.sum())
    if not len(boxes):
        return 1 / (1 + detected)
    if not len(found):
        return 0.0
    iou = iou_matrix(boxes, found.boxes_xyxy) * (classes[:, None] == found.classes[None, :])
    hits = float(((iou * (iou >= 0.4)) * found.scores[None, :]).max(1).sum())
    return min(2 * hits / (len(boxes) + detected), 1.0)
