"""The job that trains what it is given: a quantized network, or a float one, with the original as its teacher.

    load both -> read images -> settle the task -> measure the original -> MODEL as given -> train
         -> the end of every job

A float model is quantized first where `--weight-bits` says so, else it is trained in float (after pruning, say). What
comes out is compared with the original, as by `compress`, and stands in the report beside the model as it was given.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from roadworthy.data.dataset import Dataset
from roadworthy.data.samples import Samples
from roadworthy.errors import InputError
from roadworthy.jobs.assess import plan_in
from roadworthy.jobs.cache import Cache, JobShelf
from roadworthy.jobs.compress import has_integers, lowered
from roadworthy.jobs.original import kept_number, memory
from roadworthy.jobs.output import stage_folder
from roadworthy.jobs.pipeline import Found, Job, Outcome
from roadworthy.jobs.search import Search
from roadworthy.jobs.settings import Settings
from roadworthy.jobs.stages import Stages
from roadworthy.jobs.training import build_trained, fitted
from roadworthy.jobs.trial import Trial, Ui
from roadworthy.model import graph as g
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import from_qdq, has_qdq
from roadworthy.model.units import units
from roadworthy.quantize.latent import unrounded
from roadworthy.recipe import Calibration, CorrectBias, Finetune, Fold, Quantize, Recipe, read_recipe
from roadworthy.run.targets import TARGETS
from roadworthy.run.torch import need_torch
from roadworthy.steps.context import Context
from roadworthy.steps.training import Training

MINUTES = 20.0
"""What a training may take where neither minutes nor steps are given."""


@dataclass(frozen=True)
class FinetuneSettings(Settings):
    """What the user asks of `finetune`: what `Settings` says, and

    step: how it is trained.   steps: how long; None: as long as `train_minutes` (MINUTES) allow.
    weight_bits: quantize a float model first, for the target, with weights of so many bits; None: train it in float.
    """

    step: Finetune = field(default_factory=Finetune)
    steps: int | None = None
    weight_bits: int | None = None

    @property
    def minutes(self) -> float:
        return MINUTES if self.train_minutes is None else self.train_minutes

    def check(self) -> None:
        super().check()
        if self.steps is not None and self.train_minutes is not None:
            raise InputError("both --steps and --minutes say how long to train; give one of them")
        if self.recipe is not None and (self.steps is not None or self.train_minutes is not None):
            raise InputError("a recipe says how long to train; leave out --steps and --minutes, or edit its `steps`")
        if self.recipe is not None and (self.step != Finetune() or self.weight_bits is not None):
            raise InputError("a recipe says how to train; leave out the other options of training, or edit the recipe")
        if self.train_minutes is not None and not 0 < self.train_minutes < math.inf:
            raise InputError(f"--minutes is {self.train_minutes:g}; give minutes above 0")
        if self.weight_bits is not None and not 2 <= self.weight_bits <= 8:
            raise InputError(f"--weight-bits is {self.weight_bits}; give bits from 2 to 8")
        if processes() > 1 and self.steps is None and self.recipe is None:
            raise InputError("several processes cannot keep to minutes; say how long to train with --steps")

    @property
    def target_name(self) -> str:
        """The one target that the result is for."""
        if self.target != "auto":
            return self.target
        return "native" if TARGETS["native"].available() else "ort"


def finetune(
    model_source: str | Path,
    teacher_source: str | Path,
    data_source: str | Path | Dataset,
    out: str | Path,
    settings: FinetuneSettings | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    ui: Ui | None = None,
    command: str | None = None,
) -> Outcome | None:
    """Train a model with the original as its teacher and write model, report and recipe into `out`.

    Of several processes that train together (torchrun) the first one measures and writes; the others get None.
    Raises RoadworthyError with one sentence for input that cannot be used, and TrainingError where a number stops being
    finite: the last good checkpoint is then kept, and the sentence says where. After KeyboardInterrupt `out` is as it
    was, and what was trained so far lies beside it for `resume`.
    """
    need_torch("fine-tuning")
    settings, ui = settings or FinetuneSettings(), ui or Ui()
    settings.check()
    first = int(os.environ.get("RANK", "0")) == 0 or processes() == 1
    job = Job(Path(out), settings, ui if first else Ui(), force or not first, command)
    with job.clock("load"):
        job.model = load(teacher_source, input_hw=settings.size_hw)
        if has_integers(job.model):
            raise InputError(f"the teacher {job.model.source} is quantized; give the original that it was made from")
        student = student_from(str(model_source), job.model, settings)
        job.read(data_source)
    job.settle()
    assert job.model.task is not None
    if student.task is not None:
        for difference in student.task.differences(job.model.task):
            job.ui.note(f"{student.source}: {difference}; the original's task is used")
    student = student.with_task(job.model.task)
    share = None
    if student.encodings:
        student, share = unrounded(student, Fold()(job.model, Samples(())))
    lowered(student if not student.encodings else job.model, (settings.target_name,), settings)
    replay = _replay(settings)
    recipe = replay[0] if replay is not None else _recipe(job, settings)
    every = job.dataset.calibration
    context = Context(job.model, every, recipe.choose(every, job.model), recipe.seed)
    step = recipe.training
    assert step is not None
    step.check(student, context)
    if not first:
        with Training.kept_on(stage_folder(job.folder), workers=settings.threads):
            recipe.apply(student, every, job.model)
        return None
    with (
        job.stages(resume, {"student": student.sha256}) as stages,
        Calibration.kept_on(JobShelf(stages, Cache() if settings.cache else None)),
        Training.kept_on(stages.folder, workers=settings.threads),
    ):
        if share is not None:
            job.ui.note(f"{student.source}: {100 * share:.0f} % of its weights are the original's, rounded")
        found, judge = _trained(job, student, recipe, context, stages, replay)
        proof = job.prove(found, judge, stages)
    return job.write(found, proof, stages)


def processes() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def student_from(source: str, teacher: Model, settings: FinetuneSettings) -> Model:
    """The model that is trained, with its encodings where it has some. Raises InputError where it cannot be."""
    if plan_in(source) is not None:
        raise InputError(f"{source} is a native plan, which keeps no weights to train; give the model.onnx beside it")
    student = load(source, input_hw=settings.size_hw)
    if has_qdq(student):
        if settings.weight_bits is not None:
            raise InputError(f"{source} is quantized already; leave --weight-bits out, or give the float model")
        student = from_qdq(student)
    if has_integers(student):
        raise InputError(
            f"{source} holds operators on integers, which have no gradient; give a model with Q/DQ nodes, or a float"
            " one"
        )
    if not units(student.ir):
        raise InputError(f"{source} has no layer with weights, so there is nothing to train in it")
    ends = [(_ends(m), m.source) for m in (student, teacher)]
    for what, k in (("outputs", 1), ("inputs", 0)):
        (mine, name), (other, original) = ((e[k], s) for e, s in ends)
        if mine != other:
            raise InputError(
                f"{name} and its teacher {original} have different {what} ({mine} against {other}), so one cannot learn"
                " what the other says; give the network that it was made from"
            )
    return student


def _ends(model: Model) -> tuple[str, str]:
    """Inputs and outputs in words: names and shapes."""
    values = g.values(model.ir)
    outputs = (f"{n} {list(g.static_shape(values[n]) or [])}" for n in model.output_names)
    return f"{model.input_name} {list(model.input_shape)}", ", ".join(outputs)


def _replay(settings: FinetuneSettings) -> tuple[Recipe, dict[str, str]] | None:
    """The recipe that is replayed, and what it was made with."""
    if settings.recipe is None:
        return None
    recipe, made_with = read_recipe(settings.recipe)
    if recipe.training is None:
        raise InputError(f"the recipe {settings.recipe} does not train; give one with a step `finetune`")
    return recipe, made_with


def _recipe(job: Job, settings: FinetuneSettings) -> Recipe:
    """What is done to the student; how many steps it is trained is settled later, where only minutes are given."""
    search = _search(job, None, None)
    step = replace(settings.step, held_out=search.held_out_count, steps=settings.steps or settings.step.steps)
    before: tuple[Any, ...] = ()
    if settings.weight_bits is not None:
        quantize = Quantize(settings.target_name, weight_bits=settings.weight_bits)
        before = (Fold(), quantize, CorrectBias())
    return Recipe((*before, step), search.images, settings.seed)


def _search(job: Job, judge: Any, stages: Stages | None) -> Search:
    settings = job.settings
    assert isinstance(settings, FinetuneSettings)
    return Search(
        job.model, job.task, job.dataset.calibration, judge, settings.target_name, settings.effort, settings.seed,
        settings.threads, job.ui, memory(stages) if stages is not None else lambda _, __, work: work(),
        limits=job.limits, train_minutes=settings.minutes,
    )  # fmt: skip


def _trained(
    job: Job, student: Model, recipe: Recipe, context: Context, stages: Stages,
    replay: tuple[Recipe, dict[str, str]] | None,
) -> tuple[Found, Any]:  # fmt: skip
    """The model as given, and trained; both judged."""
    settings = job.settings
    assert isinstance(settings, FinetuneSettings)
    judge = job.judge(stages)
    search = _search(job, judge, stages)
    search.number = kept_number(stages)
    step = recipe.training
    assert step is not None
    division = step.division(context)
    if len(division.held_out):
        search.held_out = division.held_out  # a recipe may hold out others than this search would
    else:
        search.warn("the recipe holds no image out, so the trained model was compared on images it was trained on")
    quantize = next((s for s in recipe.steps if isinstance(s, Quantize)), None)
    kind = "int8" if student.encodings or quantize is not None else "float"
    if quantize is not None and quantize.weight_bits != 8:
        kind += f", weights of {quantize.weight_bits} bits"
    with job.clock("as given"):
        name = "as given" if quantize is None else "quantized"
        given = search.build(name, kind, recipe.untrained, student)
        given.distance = search.distance(given)
        search.evaluate(given)
        search.trials.append(given)
    with job.clock("training"):
        if settings.steps is None and replay is None:
            step = fitted(search, given, step, context)
            recipe = replace(recipe, steps=tuple(step if isinstance(s, Finetune) else s for s in recipe.steps))
        trial = build_trained(search, f"{given.name}, trained", f"{kind}, trained", recipe, student)
        trial.before, trial.distance = given, search.distance(trial)
        search.evaluate(trial)
        search.trials.insert(0, trial)
    chosen = _better(trial, given)
    made_with = {"student_sha256": student.sha256}
    return Found([chosen], [search], division.trained, replay=replay, made_with=made_with), judge


def _better(trial: Trial, given: Trial) -> Trial:
    """What is shipped: what was trained, unless it is farther from the original on held-out images."""
    after, before = trial.distance or 0.0, given.distance or 0.0
    told = f"held-out distance {after:.4f} against {before:.4f}"
    if after <= before:
        trial.why, given.why = f"chosen: {told}", "what training began with"
        return trial
    trial.why, given.why = f"rejected: {told}", "chosen: training did not bring it nearer to the original"
    return given
