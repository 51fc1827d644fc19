"""`Settings`: what a user asks of `compress`, checked before any work is done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from roadworthy.check.budgets import Budget, Wishes, budgets_for, check_wishes
from roadworthy.data.dataset import Dataset
from roadworthy.errors import InputError
from roadworthy.jobs.calibrate import check_choice
from roadworthy.jobs.limits import limits_of
from roadworthy.jobs.training import MINUTES
from roadworthy.model.task import Task
from roadworthy.run.targets import TARGETS

EFFORTS = ("quick", "normal", "thorough")
BUDGETS = ("max_drop", "min_sqnr", "max_drop_class", "max_drop_size", "max_drop_recall", "refit_threshold", "cache")
"""Settings that may be changed when a job is resumed: what is measured does not depend on them."""


@dataclass(frozen=True)
class Settings:
    """What the user asked for.

    task: a kind, a YAML file, or None to find out.   target: a key of TARGETS or "auto".   max_drop: points of mAP or
    top-1.   min_sqnr: dB, for raw tasks.   recipe: a YAML file to replay instead of searching.
    size_hw: input height and width for a model that leaves them open.   threads: 0 means every core.
    max_drop_class: points of AP (or top-1) of single classes, by name or index: `(("person", 0.5), ("*", 2.0))`; "*" is
    every other class that has labels enough.   max_drop_size: points of mAP of "small", "medium", "large" objects.
    max_drop_recall: points of recall at the operating threshold.   refit_threshold: keep a detector's operating point
    by a new threshold; else the threshold stays what it is.
    max_size: most bytes of what is shipped ("600000", "600k"), or their share of the original's ("0.2x").
    max_latency: most milliseconds on the target (median).
    images: how many images are calibrated with, "auto" for the fewest that would cover 99 % of the ranges when chosen
    by coverage, None for what the effort takes.   choose: "random" or "coverage", see `Recipe`.   cache: look for
    statistics that another job has measured, and keep them for the next (jobs/cache.py); the result is the same.
    train_minutes: what a training may take where int8 breaks the budget, 0 for none; None: by the effort.
    """

    task: str | None = None
    target: str = "auto"
    max_drop: float = 0.5
    min_sqnr: float = 25.0
    recipe: str | None = None
    effort: str = "normal"
    seed: int = 0
    threads: int = 0
    size_hw: tuple[int, int] | None = None
    max_drop_class: Wishes = ()
    max_drop_size: Wishes = ()
    max_drop_recall: float | None = None
    refit_threshold: bool = True
    max_size: str | None = None
    max_latency: float | None = None
    images: int | str | None = None
    choose: str = "random"
    cache: bool = True
    train_minutes: float | None = None

    @property
    def minutes(self) -> float:
        """What a training may take."""
        return MINUTES[self.effort] if self.train_minutes is None else self.train_minutes

    def check(self) -> None:
        if self.target != "auto" and self.target not in TARGETS:
            raise InputError(f"the target {self.target!r} is unknown; known are {', '.join(TARGETS)} and auto")
        if self.effort not in EFFORTS:
            raise InputError(f"the effort {self.effort!r} is unknown; known are {', '.join(EFFORTS)}")
        if not 0 <= self.max_drop <= 100:
            raise InputError(f"--max-drop is {self.max_drop:g}; give points between 0 and 100")
        check_wishes("--max-drop-class", self.max_drop_class)
        check_wishes("--max-drop-size", self.max_drop_size)
        if self.max_drop_recall is not None and not 0 <= self.max_drop_recall <= 100:
            raise InputError(f"--max-drop-recall is {self.max_drop_recall:g}; give points between 0 and 100")
        if not math.isfinite(self.min_sqnr):
            raise InputError(f"--min-sqnr is {self.min_sqnr:g}; give decibels as a number")
        limits_of(self.max_size, self.max_latency)
        if self.train_minutes is not None and not 0 <= self.train_minutes < math.inf:
            raise InputError(f"--train-minutes is {self.train_minutes:g}; give minutes from 0 up")
        refuse_latency(self.target, self.max_latency)
        check_choice(self.images, self.choose, self.recipe)
        if self.target != "auto" and not TARGETS[self.target].available():
            raise InputError(f"{TARGETS[self.target].missing}, or use --target ort")
        if TARGETS["native"].available():
            from roadworthy.run.native.runner import check_isa

            check_isa()

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets to search on."""
        if self.target != "auto":
            return (self.target,)
        return tuple(name for name, target in TARGETS.items() if target.available() and not target.simulated)


def refuse_latency(target: str, max_latency: float | None) -> None:
    """Raises InputError for a limit on the latency of a target that is only simulated."""
    if max_latency is not None and target in TARGETS and TARGETS[target].simulated:
        raise InputError(
            f"the target {target} is simulated here, so its speed says nothing about a device; leave --max-latency out"
        )


def wanted_budgets(
    settings: Settings,
    task: Task,
    dataset: Dataset,
    labels: Mapping[int, float],
    sizes: Mapping[str, float],
    source: str,
) -> tuple[Budget, ...]:
    """The budgets beside --max-drop that the settings mean on these test images.

    labels, sizes: how many labels each class and size has there.   source: what to call the model.
    """
    from_data = dataset.class_names and tuple(dataset.class_names) == tuple(task.names)
    return budgets_for(
        task, labels, sizes, settings.max_drop_class, settings.max_drop_size, settings.max_drop_recall,
        dataset.source if from_data else f"the task of {source}",
    )  # fmt: skip
