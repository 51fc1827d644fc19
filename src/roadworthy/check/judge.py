"""The judge: one set of test images, one reference, one budget. Every candidate comes before the same one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from roadworthy.check.accuracy import (
    Predictions,
    Reference,
    drop,
    output_sqnr_db,
    predict,
    reference_of,
    score,
)
from roadworthy.data.samples import Samples
from roadworthy.detect.boxes import iou_matrix
from roadworthy.detect.decode import classify, decode
from roadworthy.detect.evaluate import Interval
from roadworthy.model.task import Task
from roadworthy.run.runner import Runner


@dataclass(frozen=True)
class Judgement:
    """value: the candidate's own figure.   drop: what it lost in points (dB below the limit for a raw task)."""

    metric: str
    value: float
    drop: float
    holds: bool


class Judge:
    """Holds candidates against the original on test images.

    max_drop: points of mAP or top-1.   min_sqnr: dB, for raw tasks only.
    """

    def __init__(
        self,
        task: Task,
        samples: Samples,
        original: Predictions,
        reference: Reference,
        max_drop: float,
        min_sqnr: float = 25.0,
    ) -> None:
        self.task = task
        self.samples = samples
        self.original = original
        self.reference = reference
        self.max_drop = max_drop
        self.min_sqnr = min_sqnr
        self.looks = 0
        self.raw = task.decode.kind == "raw"
        self.metric = "SQNR" if self.raw else "mAP" if task.is_detector else "top-1"
        self.original_value = np.inf if self.raw else score(original, reference, task, full=False).value

    @classmethod
    def of(
        cls,
        task: Task,
        samples: Samples,
        load: Callable[[], Runner],
        max_drop: float,
        min_sqnr: float = 25.0,
        progress: Callable[[int], None] | None = None,
    ) -> Judge:
        """Measure the original on the images; where they are unlabelled, on the mirrored ones as well."""
        runner = load()
        original = predict(runner, task, samples, progress=progress)
        reference = reference_of(lambda: runner, task, samples, known=original)
        return cls(task, samples, original, reference, max_drop, min_sqnr)

    def __call__(self, candidate: Predictions) -> Judgement:
        """The judgement of a candidate's predictions on the same images."""
        self.looks += 1
        if self.raw:
            value = output_sqnr_db(self.original, candidate)
            return Judgement(self.metric, value, self.min_sqnr - value, value >= self.min_sqnr)
        value = score(candidate, self.reference, self.task, full=False).value
        lost = self.original_value - value
        return Judgement(self.metric, value, lost, bool(lost <= self.max_drop))

    def interval(self, candidate: Predictions, seed: int) -> Interval | None:
        """The drop with its 95 % interval; None for a raw task."""
        return None if self.raw else drop(self.original, candidate, self.reference, self.task, 1000, seed)


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray], task: Task) -> float:
    """How far apart two outputs for one image are, in terms of the task; 0 is equal, about 1 unrelated.

    Detectors: over the cells that either side scores above 0.05, change of score plus score times lost overlap,
    relative to the sum of scores. Classifiers: total variation of the probabilities. Raw: noise over signal.
    """
    if task.is_detector:
        boxes_a, scores_a = decode(a, task.decode)
        boxes_b, scores_b = decode(b, task.decode)
        best_a, best_b = scores_a.max(1), scores_b.max(1)
        cells = np.flatnonzero((best_a > 0.05) | (best_b > 0.05))
        if not len(cells):
            return 0.0
        change = np.abs(scores_a[cells] - scores_b[cells]).max(1)
        overlap = np.array([iou_matrix(boxes_a[c : c + 1], boxes_b[c : c + 1])[0, 0] for c in cells[:400]])
        moved = (1 - overlap) * best_a[cells[:400]]
        return float((change.sum() + moved.sum()) / max(best_a[cells].sum(), 0.1))
    if task.decode.kind == "classify":
        return float(np.abs(classify(a, task.decode) - classify(b, task.decode)).sum() / 2)
    noise = sum(float(((a[k] - b[k]).astype(np.float64) ** 2).sum()) for k in a)
    signal = sum(float((a[k].astype(np.float64) ** 2).sum()) for k in a)
    return noise / max(signal, 1e-30) if np.isfinite(noise) else np.inf
