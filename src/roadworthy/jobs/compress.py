"""The main job: from a model and images to a compressed model, the proof, and an exit code.

    load -> read images -> settle the task -> measure the original -> search on each target -> the end of every job

`jobs/pipeline.py` holds what it shares with `finetune`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from roadworthy.data.dataset import Dataset
from roadworthy.data.samples import Samples
from roadworthy.errors import InputError, UnsupportedError
from roadworthy.jobs.cache import Cache, JobShelf
from roadworthy.jobs.calibrate import calibrate, choose_images
from roadworthy.jobs.limits import BeyondLimits
from roadworthy.jobs.original import kept_number, memory
from roadworthy.jobs.output import FILES, GOLDEN_FILES, check_output, stage_folder
from roadworthy.jobs.pipeline import Found, Job, Outcome
from roadworthy.jobs.replay import replay_target, replayed
from roadworthy.jobs.search import Search
from roadworthy.jobs.settings import Settings
from roadworthy.jobs.trial import Trial, Ui
from roadworthy.model import graph as g
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import has_qdq
from roadworthy.model.units import units
from roadworthy.recipe import Calibration, Fold, read_recipe
from roadworthy.run.targets import TARGETS
from roadworthy.steps.context import Context
from roadworthy.steps.training import Training

__all__ = ["FILES", "GOLDEN_FILES", "Outcome", "Settings", "check_output", "compress", "stage_folder"]


def compress(
    model_source: str | Path,
    data_source: str | Path | Dataset,
    out: str | Path,
    settings: Settings | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    ui: Ui | None = None,
    command: str | None = None,
) -> Outcome:
    """Compress a model under a budget and write model, report and recipe into `out`.

    Raises RoadworthyError with one sentence for input that cannot be used; the disk is as it was before, then.
    After KeyboardInterrupt `out` is as it was, and the finished stages lie beside it for `resume`.
    """
    settings, ui = settings or Settings(), ui or Ui()
    settings.check()
    job = Job(Path(out), settings, ui, force, command)
    with job.clock("load"):
        job.model = model = load(model_source, input_hw=settings.size_hw)
        if has_integers(model):
            raise InputError(f"{model.source} is quantized already; hand in the original float model")
        if not units(model.ir):
            raise InputError(f"{model.source} has no layer with weights, so there is nothing to compress in it")
        job.read(data_source)
    replay = read_recipe(settings.recipe) if settings.recipe else None
    targets = settings.targets if replay is None else (replay_target(model, *replay, settings),)
    job.settle()
    model, calibration = job.model, job.dataset.calibration
    targets, cannot = lowered(model, targets, settings)
    cache = Cache() if settings.cache else None
    with (
        job.stages(resume) as stages,
        Calibration.kept_on(JobShelf(stages, cache)),
        Training.kept_on(stages.folder, workers=settings.threads),
    ):
        with job.clock("calibration"):
            images = choose_images(
                model, calibration, replay[0] if replay else None, settings.images, settings.choose, settings.effort,
                settings.seed, ui,
            )  # fmt: skip
            before = cache.found if cache else 0
            calibrate(model, images.images, ui)
            if cache is not None and cache.found > before:
                ui.note("calibration: from the cache")
        judge = job.judge(stages)
        searches: list[Search] = []
        chosen: list[Trial] = []
        refusals: list[BeyondLimits] = []
        with job.clock("search"):
            for target in targets:
                search = Search(
                    model, job.task, calibration, judge, target, settings.effort, settings.seed, settings.threads, ui,
                    memory(stages), limits=job.limits, wanted_images=images.wanted, by=images.recipe.by,
                    train_minutes=settings.minutes, number=kept_number(stages),
                )  # fmt: skip
                if replay is None:
                    try:
                        chosen += search.run()
                    except BeyondLimits as refusal:  # another target may do better
                        refusals.append(refusal)
                        search.warnings.append(str(refusal))
                else:
                    trial = replayed(search, replay[0])
                    search.evaluate(trial)
                    trial.why = f"replayed from {settings.recipe}"
                    search.trials.append(trial)
                    chosen.append(trial)
                searches.append(search)
        if not chosen:
            raise refusals[-1]
        found = Found(chosen, searches, fitted_to(images.images, chosen, model, calibration), images, replay, cannot)
        proof = job.prove(found, judge, stages)
    return job.write(found, proof, stages)


def fitted_to(images: Samples, trials: Sequence[Trial], model: Model, calibration: Samples) -> Samples:
    """The images that candidates were fitted to: those to calibrate with, and what any of them was trained on."""
    names = {s.name for s in images}
    for trial in trials:
        step, recipe = trial.recipe.training, trial.recipe
        if step is not None:
            context = Context(model, calibration, recipe.choose(calibration, model), recipe.seed)
            names |= {s.name for s in step.division(context).trained}
    return calibration.where(lambda s: s.name in names)


_INTEGER_OPS = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear",
                          "QGemm", "MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"})  # fmt: skip


def has_integers(model: Model) -> bool:
    """Whether a model is quantized, in any form that files have: Q/DQ, stored weights, operators on integers."""
    return has_qdq(model) or any(n.op_type in _INTEGER_OPS for n in g.nodes(model.ir))


def lowered(model: Model, targets: tuple[str, ...], settings: Settings) -> tuple[tuple[str, ...], list[str]]:
    """The targets whose own file can be made of the model, and a sentence for each other one.

    Raises UnsupportedError where none is left, before anything is measured.
    """
    left, cannot = list(targets), []
    for name in targets:
        if TARGETS[name].file == "model.onnx" or TARGETS[name].simulated:
            continue
        try:
            TARGETS[name].deploy(Fold()(model, Samples(())).float_bytes())
        except UnsupportedError as error:
            if len(left) == 1:
                raise
            left.remove(name)
            cannot.append(f"not tried on {name}: {error}")
    return tuple(left), cannot
