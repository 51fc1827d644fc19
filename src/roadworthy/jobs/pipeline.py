"""What all jobs share that end in a report: from files to a judged original, and from candidates to a folder.

    read -> settle the task -> measure the original -> [what this job is for] -> refit thresholds -> speed -> proof
         -> write

`compress` searches in between, `finetune` trains what it was given. Everything is written into a temporary folder
beside the output and renamed at the end; finished stages are kept beside it until then, so that `--resume` goes on
after them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from roadworthy import __version__
from roadworthy.check.accuracy import labelled
from roadworthy.check.bench import BenchResult
from roadworthy.check.contract import settle_task
from roadworthy.check.judge import Judge
from roadworthy.data.dataset import Dataset, join
from roadworthy.data.readers import read
from roadworthy.data.samples import Samples
from roadworthy.jobs.calibrate import Chosen
from roadworthy.jobs.document import document
from roadworthy.jobs.evidence import Evidence, gather
from roadworthy.jobs.limits import Limits, limits_of
from roadworthy.jobs.original import float_runner, judge_original, kept_reference, memory
from roadworthy.jobs.output import check_output, golden_of, stage_folder, write_all
from roadworthy.jobs.replay import judge_at_its_own, recipes_of
from roadworthy.jobs.search import Search
from roadworthy.jobs.settings import BUDGETS, Settings, wanted_budgets
from roadworthy.jobs.speed import RESOLUTION, final_speed
from roadworthy.jobs.stages import Stages
from roadworthy.jobs.threshold import FIT_IMAGES, fit_images, keep_operating_point
from roadworthy.jobs.trial import Trial, Ui
from roadworthy.model.model import Model
from roadworthy.model.task import Task
from roadworthy.recipe import Recipe
from roadworthy.run.golden import Golden
from roadworthy.run.targets import TARGETS


@dataclass(frozen=True)
class Outcome:
    """What came of a job.   exit_code: 0 when all budgets hold, 3 when one does not."""

    folder: Path
    report: dict[str, Any]
    exit_code: int


class Clock:
    """Seconds per step of the job, for the report."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.rows: list[dict[str, Any]] = []

    def __call__(self, name: str) -> Clock:
        self._name, self._start = name, time.monotonic()
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self.rows.append({"name": self._name, "seconds": time.monotonic() - self._start})


@dataclass(eq=False)
class Found:
    """What the middle of a job came to.

    chosen: the candidates that the last measurement decides between.   searches: all that was tried, for the report.
    used: the images that what was found was fitted to.   images: how those to calibrate with were chosen, if any were.
    replay: the recipe that was replayed, with its notes.   warnings: for the report.
    made_with: what the recipe depends on beside the original and the images.
    """

    chosen: list[Trial]
    searches: list[Search]
    used: Samples
    images: Chosen | None = None
    replay: tuple[Recipe, dict[str, str]] | None = None
    warnings: Sequence[str] = ()
    made_with: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Proof:
    """What is shipped, and what is known of it.   golden: for targets that are simulated here."""

    best: Trial
    evidence: Evidence
    speed: BenchResult
    golden: Golden | None = None


@dataclass(eq=False)
class Job:
    """One job on one original model: its output folder is checked when it is made; then `model` is set, and it goes
    `read`, `settle`, `stages`, `judge`, `prove`, `write`."""

    folder: Path
    settings: Settings
    ui: Ui
    force: bool = False
    command: str | None = None
    clock: Clock = field(default_factory=Clock)
    model: Model = field(init=False)
    dataset: Dataset = field(init=False)
    task: Task = field(init=False)
    notes: list[str] = field(init=False)
    limits: Limits = field(init=False)

    def __post_init__(self) -> None:
        if self.folder.name in ("", ".."):
            self.folder = self.folder.resolve()
        check_output(self.folder, self.force)

    def read(self, source: str | Path | Dataset) -> None:
        """The images."""
        self.dataset = source if isinstance(source, Dataset) else read(source, split_seed=self.settings.seed)

    def settle(self) -> None:
        """The task of the original, and whether the budgets mean something for it."""
        settings, model = self.settings, self.model
        with self.clock("task"):
            self.task, self.notes = settle_task(
                model, self.dataset, settings.task, lambda: float_runner(model, settings.threads), settings.seed
            )
            for line in self.notes:
                self.ui.note(line)
            self.dataset = with_note_on_labels(self.dataset, self.task, self.ui)
        self.model = model.with_task(self.task)
        # An unknown class is refused before anything is measured.
        wanted_budgets(settings, self.task, self.dataset, {}, {}, model.source)
        self.limits = limits_of(settings.max_size, settings.max_latency, model.size)

    def stages(self, resume: bool, more: Mapping[str, Any] | None = None) -> Stages:
        """Where finished stages are kept.   more: what the result depends on beside model, images and settings."""
        return Stages(stage_folder(self.folder), key_of(self.model, self.dataset, self.settings, more or {}), resume)

    def judge(self, stages: Stages) -> Judge:
        with self.clock("original"):
            return judge_original(self.model, self.task, self.dataset, self.settings, self.ui, stages)

    def prove(self, found: Found, judge: Judge, stages: Stages) -> Proof:
        """Threshold, speed, and the evidence for what is shipped."""
        model, task, dataset, settings, ui = self.model, self.task, self.dataset, self.settings, self.ui
        calibration, chosen = dataset.calibration, found.chosen
        with self.clock("threshold"):
            refits = {}
            if found.replay is None and settings.refit_threshold:
                refits = keep_operating_point(
                    chosen, model, judge, fit_images(calibration, found.used, FIT_IMAGES[settings.effort]),
                    lambda: float_runner(model, settings.threads), memory(stages),
                    lambda work: kept_reference(stages, "fit-reference", work), ui, settings.threads, settings.seed,
                )  # fmt: skip
            for trial in chosen if found.replay is not None else ():
                judge_at_its_own(judge, trial)
        with self.clock("speed"):
            speed, best = final_speed(model, task, dataset.test, chosen, settings, self.limits, ui)
        with self.clock("proof"), ui.stage("layer by layer", None):
            evidence = gather(
                model, best, found.searches, judge, calibration, dataset, speed, settings.seed, RESOLUTION,
                self.limits, refits.get(id(best)),
            )  # fmt: skip
            evidence.warnings.extend(found.warnings)
        golden = None
        if TARGETS[best.target].simulated:  # whoever builds it elsewhere has to see what it computes
            with self.clock("golden vectors"), ui.stage("golden vectors", None):
                golden = golden_of(best, task, model, calibration)
        return Proof(best, evidence, speed, golden)

    def write(self, found: Found, proof: Proof, stages: Stages) -> Outcome:
        """All files at once; then nothing is left to resume."""
        report = document(
            self.model, self.dataset, proof.best, proof.evidence, proof.speed, self.settings, self.notes, found.replay,
            self.clock.rows, time.monotonic() - self.clock.started, self.command, found.images, found.made_with,
        )  # fmt: skip
        recipes = recipes_of(self.model, self.dataset, found.searches)
        write_all(self.folder, proof.best, report, proof.evidence, self.force, recipes, proof.golden)
        stages.drop()
        return Outcome(self.folder, report, 0 if report["verdict"] == "hold" else 3)


def with_note_on_labels(dataset: Dataset, task: Task, ui: Ui) -> Dataset:
    """Labels of another kind than the task predicts are not used; that is said, because nobody expects it."""
    if dataset.test.kind == "images" or task.decode.kind == "raw" or labelled(task, dataset.test):
        return dataset
    kind = task.decode.kind
    line = f"The labels of {dataset.source} are {dataset.test.kind}, by which a {kind} task cannot be measured."
    ui.note(line)
    return replace(dataset, note=join(dataset.note, line))


def key_of(model: Model, dataset: Dataset, settings: Settings, more: Mapping[str, Any]) -> str:
    """What the stages of a job depend on, as one hash."""
    parts = {
        "version": __version__,
        "model": model.sha256,
        "calibration": dataset.calibration.content_id,
        "test": dataset.test.content_id,
        "task": model.task.to_json() if model.task else "",
        "settings": {k: v for k, v in asdict(settings).items() if k not in BUDGETS},
        **more,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
