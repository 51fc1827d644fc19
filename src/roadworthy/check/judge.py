"""The judge: one set of test images, one reference, all budgets. Every candidate comes before the same one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from roadworthy.check.accuracy import (
    Predictions,
    Reference,
    drop,
    drops_of,
    figures_of,
    output_sqnr_db,
    predict,
    reference_of,
    score,
)
from roadworthy.check.budgets import Budget, Verdict, judge_all, row
from roadworthy.data.samples import Samples
from roadworthy.detect.boxes import iou_matrix
from roadworthy.detect.decode import classify, decode
from roadworthy.detect.evaluate import Interval
from roadworthy.model.task import Task
from roadworthy.run.runner import Runner


@dataclass(frozen=True)
class Judgement:
    """value: the candidate's own figure.   drop: what it lost in points (dB below the limit for a raw task).

    holds: no budget is broken.   verdicts: of each budget, that on the whole first; none for a raw task.
    """

    metric: str
    value: float
    drop: float
    holds: bool
    verdicts: tuple[Verdict, ...] = ()

    @property
    def broken(self) -> tuple[Verdict, ...]:
        return tuple(v for v in self.verdicts if v.word == "broken")


class Judge:
    """Holds candidates against the original on test images.

    max_drop: points of mAP or top-1.   min_sqnr: dB, for raw tasks only.   budgets: those beside max_drop.
    """

    def __init__(
        self,
        task: Task,
        samples: Samples,
        original: Predictions,
        reference: Reference,
        max_drop: float,
        min_sqnr: float = 25.0,
        budgets: Sequence[Budget] = (),
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
        self.budgets = () if self.raw else (Budget("whole", max_drop), *budgets)
        self._sizes = tuple(dict.fromkeys(str(b.which) for b in budgets if b.kind == "size" and b.which is not None))
        self.original_value = np.inf if self.raw else score(original, reference, task, full=False).value
        self._before = None if self.raw else figures_of(original, reference, task, self.threshold, self._sizes)

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

    @property
    def threshold(self) -> float:
        """The original's operating threshold."""
        return self.task.decode.score_threshold

    def __call__(self, candidate: Predictions, threshold: float | None = None) -> Judgement:
        """The judgement of a candidate's predictions on the same images.

        threshold: its operating threshold, where that is not the original's.
        """
        self.looks += 1
        if self.raw:
            value = output_sqnr_db(self.original, candidate)
            return Judgement(self.metric, value, self.min_sqnr - value, value >= self.min_sqnr)
        assert self._before is not None
        if not self.task.is_detector:
            score(candidate, self.reference, self.task, full=False)  # refuses scores that are not numbers
        at = self.threshold if threshold is None else threshold
        after = figures_of(candidate, self.reference, self.task, at, self._sizes)
        verdicts = judge_all(self.budgets, self._before, after)
        lost = verdicts[0].drop
        assert lost is not None  # `score` refuses images without labels
        return Judgement(self.metric, after.whole, lost, all(v.word != "broken" for v in verdicts), verdicts)

    def rows(self, candidate: Predictions, threshold: float, seed: int) -> list[dict[str, Any]]:
        """The budgets as rows of the report, with intervals. Not for a raw task."""
        judgement, classes = self(candidate, threshold), [b.which for b in self.budgets if b.kind == "class"]
        drops = drops_of(
            self.original, candidate, self.reference, self.task, (self.threshold, threshold), self._sizes,
            [c for c in classes if isinstance(c, int)], 1000, seed,
        )  # fmt: skip
        return [row(v, drops, self.task, self.reference.kind) for v in judgement.verdicts]

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
