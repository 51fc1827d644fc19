"""The original on the test images: worked out once, kept, and what every candidate is held against."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from roadworthy.check.accuracy import (
    DRAWN,
    Predictions,
    Reference,
    labelled,
    labels_of,
    predict,
    reference_of,
    sizes_of,
)
from roadworthy.check.budgets import Budget
from roadworthy.check.contract import suspects
from roadworthy.check.judge import Judge
from roadworthy.data.dataset import Dataset
from roadworthy.errors import InputError
from roadworthy.jobs.settings import Settings, wanted_budgets
from roadworthy.jobs.stages import Stages, pack_predictions, pack_reference, unpack_predictions, unpack_reference
from roadworthy.jobs.trial import Ui
from roadworthy.model.model import Model
from roadworthy.model.task import Task
from roadworthy.run.targets import TARGETS

LEAST_SCORE = 1.0
"""Points below which an original is taken for mislabelled or misread: whatever is lost, there is nothing to lose."""


def float_runner(model: Model, threads: int) -> Any:
    return TARGETS["ort"].runner(model.float_bytes(), threads)


def memory(stages: Stages) -> Callable[[str, bytes, Callable[[], Predictions]], Predictions]:
    """Predictions of one file on one target, computed once and kept as a stage."""

    def remember(target: str, data: bytes, work: Callable[[], Predictions]) -> Predictions:
        name = f"predictions-{target}-{hashlib.sha256(data).hexdigest()[:16]}"
        kept = stages.get(name)
        if kept is not None:
            return unpack_predictions(kept)
        made = work()
        stages.put(name, pack_predictions(made))
        return made

    return remember


def kept_number(stages: Stages) -> Callable[[str, Callable[[], int]], int]:
    """A number that was measured, kept as a stage: a resumed job must not measure another one."""

    def number(name: str, work: Callable[[], int]) -> int:
        kept = stages.get(name)
        if kept is not None:
            return int(kept["number"])
        made = work()
        stages.put(name, {"number": np.array(made)})
        return made

    return number


def kept_reference(stages: Stages, name: str, work: Callable[[], Reference]) -> Reference:
    """A reference, computed once and kept as a stage where that costs something."""
    kept = stages.get(name)
    if kept is not None:
        return unpack_reference(kept)
    reference = work()
    if reference.kind == DRAWN:  # the others cost nothing to make again
        stages.put(name, pack_reference(reference))
    return reference


def judge_original(model: Model, task: Task, dataset: Dataset, settings: Settings, ui: Ui, stages: Stages) -> Judge:
    test = dataset.test
    runner = float_runner(model, settings.threads)
    remember = memory(stages)

    def work() -> Predictions:
        with ui.stage("original: test images", len(test)) as advance:
            return predict(runner, task, test, progress=advance)

    def refer() -> Reference:
        with ui.stage("reference", len(test)) as advance:
            return reference_of(lambda: runner, task, test, advance, original)

    original = remember("ort", model.float_bytes(), work)
    reference = kept_reference(stages, "reference", refer)
    budgets: tuple[Budget, ...] = ()
    if task.decode.kind != "raw":
        budgets = wanted_budgets(settings, task, dataset, labels_of(reference, task), sizes_of(reference), model.source)
    judge = Judge(task, test, original, reference, settings.max_drop, settings.min_sqnr, budgets)
    for budget in budgets:
        if budget.labels == 0:
            ui.note(f"the budget {budget.name} cannot be measured: nothing on the test images is labelled so")
    if not judge.raw and not judge.original_value > LEAST_SCORE:
        found = suspects(model, task, test, runner, settings.seed) if labelled(task, test) else []
        raise InputError(
            f"the original itself reaches only {judge.metric} {judge.original_value:.2f} on these images, so no drop"
            f" could be seen: {found[0] if found else 'check the task, and the order of the classes in the labels'}"
        )
    if not judge.raw:
        told = f"original: {judge.metric} {judge.original_value:.2f} on {len(test)} test images"
        ui.note(f"{told}, against {reference.kind}")
    return judge
