"""SetThreshold: the score from which on a detector's results are shown, written into its task."""

from __future__ import annotations

from dataclasses import dataclass, replace

from roadworthy.data.samples import Samples
from roadworthy.errors import InputError
from roadworthy.model.model import Model
from roadworthy.steps.settings import Checked, between


@dataclass(frozen=True)
class SetThreshold(Checked):
    """Show detections from this score on; how a value that keeps the operating point is found: check/operating.py.

    value: the score, 0..1.   Raises InputError for a model that is no detector.
    """

    value: float = between(0.3, 0.0, 1.0)

    def __call__(self, model: Model, samples: Samples) -> Model:
        task = model.task
        if task is None or not task.is_detector:
            kind = "no task" if task is None else f"a {task.decode.kind} task"
            raise InputError(f"the step set_threshold is for detectors, and {model.source} has {kind}; leave it out")
        return model.with_task(replace(task, decode=replace(task.decode, score_threshold=self.value)))
