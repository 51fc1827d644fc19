"""Choosing between task contracts by measurement, for what a graph cannot say: colour order, scaling, resizing.

Every candidate is run over the same images and gets one figure per image: with labels, how sure the network is of the
right answer; without, how sure it is of any. A wrong colour order or scale makes a network unsure. The best candidate
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
    figures = np.array([[figure(runner, t, s) for t in candidates] for s in chosen])  # images, candidates
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


def figure(runner: Runner, task: Task, sample: Sample) -> float:
    """How much one image speaks for a contract, 0..1."""
    tensor, geometry = task.preprocess(sample.image())
    outputs = runner.run({runner.input_names[0]: tensor})
    if not task.is_detector:
        scores = classify(outputs, task.decode)
        if sample.label is not None and 0 <= sample.label < len(scores):
            return float(scores[sample.label])
        return float(scores.max())
    found = detect(outputs, task.decode, geometry.to_image, 0.05)
    if not sample.has_truth:
        best = np.sort(found.scores)[::-1][:10]
        return float((best**2).sum() / 10)
    truth = sample.truth
    assert truth is not None
    if not len(truth):
        return float(1 - (found.scores.max() if len(found) else 0.0))
    if not len(found):
        return 0.0
    same = truth.classes[:, None] == found.classes[None, :]
    iou = iou_matrix(truth.boxes_xyxy, found.boxes_xyxy) * same
    hit = (iou * (iou >= 0.4)) * found.scores[None, :]
    spurious = found.scores[~((iou >= 0.4).any(0))].sum() / (len(truth) + 1)
    return float(np.clip(hit.max(1).mean() - 0.2 * spurious, -1, 1))
