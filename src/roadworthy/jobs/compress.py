"""The main job: from a model and images to a compressed model, the proof, and an exit code.

    load -> read images -> settle the task -> measure the original -> search on each target -> refit thresholds
         -> verify -> write

Everything is written into a temporary folder beside the output and renamed at the end; finished stages are kept beside
it until then, so that `--resume` goes on after the last one.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from roadworthy import __version__
from roadworthy.check.accuracy import (
    DRAWN,
    Predictions,
    Reference,
    labelled,
    labels_of,
    predict,
    reference_of,
    sizes_of,
    tensor_of,
)
from roadworthy.check.bench import BenchResult, Entry, bench
from roadworthy.check.budgets import Budget
from roadworthy.check.contract import settle_task, suspects
from roadworthy.check.judge import Judge
from roadworthy.check.machine import environment, usable_cores, versions
from roadworthy.check.report import write_html, write_json
from roadworthy.data.dataset import Dataset, join
from roadworthy.data.readers import read
from roadworthy.data.samples import Samples
from roadworthy.errors import InputError, UnsupportedError
from roadworthy.jobs.cache import Cache, JobShelf
from roadworthy.jobs.calibrate import Chosen, calibrate, choose_images
from roadworthy.jobs.evidence import Evidence, gather
from roadworthy.jobs.limits import BeyondLimits, Limits, limits_of
from roadworthy.jobs.output import FILES, GOLDEN_FILES, RECIPES, check_output, stage_folder
from roadworthy.jobs.search import Search
from roadworthy.jobs.settings import BUDGETS, Settings, refuse_latency, wanted_budgets
from roadworthy.jobs.stages import (
    Stages,
    pack_predictions,
    pack_reference,
    unpack_predictions,
    unpack_reference,
)
from roadworthy.jobs.threshold import FIT_IMAGES, fit_images, keep_operating_point
from roadworthy.jobs.trial import Trial, Ui
from roadworthy.model import graph as g
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import from_qdq, has_qdq
from roadworthy.model.task import Task
from roadworthy.model.units import units
from roadworthy.recipe import Calibration, Fold, Quantize, Recipe, StoreWeights, read_recipe
from roadworthy.run.golden import Golden, golden_vectors
from roadworthy.run.targets import TARGETS

__all__ = ["FILES", "Outcome", "Settings", "check_output", "compress", "stage_folder"]

GOLDEN_IMAGES = 1
RESOLUTION = 0.95
"""A speed ratio from here up counts as "not slower": what runs measured side by side on a restless machine can tell."""


LEAST_SCORE = 1.0
"""Points below which an original is taken for mislabelled or misread: whatever is lost, there is nothing to lose."""
ATTEMPTS = 3


@dataclass(frozen=True)
class Outcome:
    """What came of a job.   exit_code: 0 when all budgets hold, 3 when one does not."""

    folder: Path
    report: dict[str, Any]
    exit_code: int


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
    started = time.monotonic()
    folder = Path(out) if Path(out).name not in ("", "..") else Path(out).resolve()
    check_output(folder, force)
    clock = _Clock()
    with clock("load"):
        model = load(model_source, input_hw=settings.size_hw)
        if has_integers(model):
            raise InputError(f"{model.source} is quantized already; hand in the original float model")
        if not units(model.ir):
            raise InputError(f"{model.source} has no layer with weights, so there is nothing to compress in it")
        dataset = data_source if isinstance(data_source, Dataset) else read(data_source, split_seed=settings.seed)
    replay = read_recipe(settings.recipe) if settings.recipe else None
    targets = settings.targets if replay is None else (_replay_target(model, *replay, settings),)
    with clock("task"):
        task, notes = settle_task(
            model, dataset, settings.task, lambda: _float_runner(model, settings.threads), settings.seed
        )
        for line in notes:
            ui.note(line)
        dataset = _with_note_on_labels(dataset, task, ui)
    model = model.with_task(task)
    wanted_budgets(
        settings, task, dataset, {}, {}, model.source
    )  # an unknown class is refused before anything is measured
    targets, cannot = _lowered(model, targets, settings)
    calibration = dataset.calibration
    limits = limits_of(settings.max_size, settings.max_latency, model.size)
    cache = Cache() if settings.cache else None
    with (
        Stages(stage_folder(folder), _key(model, dataset, settings), resume) as stages,
        Calibration.kept_on(JobShelf(stages, cache)),
    ):
        remember = _memory(stages)
        with clock("calibration"):
            chosen_images = choose_images(
                model, calibration, replay[0] if replay else None, settings.images, settings.choose, settings.effort,
                settings.seed, ui,
            )  # fmt: skip
            before = cache.found if cache else 0
            calibrate(model, chosen_images.images, ui)
            if cache is not None and cache.found > before:
                ui.note("calibration: from the cache")
        with clock("original"):
            judge = _judge(model, task, dataset, settings, ui, stages)

        searches: list[Search] = []
        chosen: list[Trial] = []
        refusals: list[BeyondLimits] = []
        with clock("search"):
            for target in targets:
                search = Search(
                    model, task, calibration, judge, target, settings.effort, settings.seed, settings.threads, ui,
                    remember, limits=limits, wanted_images=chosen_images.wanted, by=chosen_images.recipe.by,
                )  # fmt: skip
                if replay is None:
                    try:
                        chosen += search.run()
                    except BeyondLimits as refusal:  # another target may do better
                        refusals.append(refusal)
                        search.warnings.append(str(refusal))
                else:
                    trial = search.build("replayed", _variant(replay[0]), replay[0])
                    search.evaluate(trial)
                    trial.why = f"replayed from {settings.recipe}"
                    search.trials.append(trial)
                    chosen.append(trial)
                searches.append(search)
        if not chosen:
            raise refusals[-1]
        with clock("threshold"):
            refits = {}
            if replay is None and settings.refit_threshold:
                refits = keep_operating_point(
                    chosen, model, judge, fit_images(calibration, chosen_images.images, FIT_IMAGES[settings.effort]),
                    lambda: _float_runner(model, settings.threads), remember,
                    lambda work: _kept_reference(stages, "fit-reference", work), ui, settings.threads, settings.seed,
                )  # fmt: skip
            for trial in chosen if replay is not None else ():
                _judge_at_its_own(judge, trial)
        with clock("speed"):
            speed, best = _final_speed(model, task, dataset.test, chosen, settings, limits, ui)
        with clock("proof"), ui.stage("layer by layer", None):
            evidence = gather(
                model, best, searches, judge, calibration, dataset, speed, settings.seed, RESOLUTION, limits,
                refits.get(id(best)),
            )  # fmt: skip
            evidence.warnings.extend(cannot)
        golden = None
        if TARGETS[best.target].simulated:  # whoever builds it elsewhere has to see what it computes
            with clock("golden vectors"), ui.stage("golden vectors", None):
                golden = _golden(best, task, model, calibration)
    seconds = time.monotonic() - started
    report = _report(
        model, dataset, best, evidence, speed, settings, notes, replay, clock, seconds, command, chosen_images
    )
    recipes = _recipes(model, dataset, searches)
    _write(folder, best, report, evidence, force, recipes, golden)
    stages.drop()
    return Outcome(folder, report, 0 if report["verdict"] == "hold" else 3)


_INTEGER_OPS = frozenset({"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear",
                          "QGemm", "MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"})  # fmt: skip


def has_integers(model: Model) -> bool:
    """Whether a model is quantized, in any form that files have: Q/DQ, stored weights, operators on integers."""
    return has_qdq(model) or any(n.op_type in _INTEGER_OPS for n in g.nodes(model.ir))


def _lowered(model: Model, targets: tuple[str, ...], settings: Settings) -> tuple[tuple[str, ...], list[str]]:
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


def _judge_at_its_own(judge: Judge, trial: Trial) -> None:
    """A replayed recipe may bring a threshold of its own, at which its recall counts."""
    task = trial.model.task
    if trial.predictions is not None and task is not None:
        trial.judgement = judge(trial.predictions, task.decode.score_threshold)


def _with_note_on_labels(dataset: Dataset, task: Task, ui: Ui) -> Dataset:
    """Labels of another kind than the task predicts are not used; that is said, because nobody expects it."""
    if dataset.test.kind == "images" or task.decode.kind == "raw" or labelled(task, dataset.test):
        return dataset
    kind = task.decode.kind
    line = f"The labels of {dataset.source} are {dataset.test.kind}, by which a {kind} task cannot be measured."
    ui.note(line)
    return replace(dataset, note=join(dataset.note, line))


def _float_runner(model: Model, threads: int) -> Any:
    return TARGETS["ort"].runner(model.float_bytes(), threads)


class _Clock:
    """Seconds per step of the job, for the report."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def __call__(self, name: str) -> _Clock:
        self._name, self._start = name, time.monotonic()
        return self

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self.rows.append({"name": self._name, "seconds": time.monotonic() - self._start})


# Writing


def _golden(best: Trial, task: Task, model: Model, calibration: Samples) -> Golden:
    """The golden vectors of what is shipped, on the first images that it was calibrated with."""
    chosen = best.recipe.choose(calibration, model)
    tensors = [tensor_of(s, task)[0] for s in chosen[:GOLDEN_IMAGES]]
    return golden_vectors(from_qdq(load(best.data)), tensors)


def _write(
    folder: Path,
    best: Trial,
    report: dict[str, Any],
    evidence: Evidence,
    force: bool,
    recipes: dict[str, str],
    golden: Golden | None,
) -> None:
    """All files at once: into a temporary folder, then one rename."""
    parent = folder.absolute().parent
    temporary = Path(tempfile.mkdtemp(dir=parent, prefix=f".{folder.name}-"))
    try:
        temporary.chmod(0o755)
        (temporary / "model.onnx").write_bytes(best.data)
        if best.deployed is not best.data:
            (temporary / TARGETS[best.target].file).write_bytes(best.deployed)
        if golden is not None:
            golden.write(*(temporary / name for name in GOLDEN_FILES))
        (temporary / "recipe.yaml").write_text(report["recipe"])
        if recipes:
            (temporary / RECIPES).mkdir()
        for name, text in recipes.items():
            (temporary / RECIPES / name).write_text(text)
        write_json(report, temporary / "report.json")
        write_html(report, evidence.pictures, temporary / "report.html")
        if folder.is_dir():
            if any(folder.iterdir()) and not force:
                raise InputError(f"the output folder {folder} has appeared meanwhile; add --force to replace it")
            old = Path(tempfile.mkdtemp(dir=parent, prefix=f".{folder.name}-old-"))
            folder.rename(old / "old")
            temporary.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


# Stages


def _key(model: Model, dataset: Dataset, settings: Settings) -> str:
    parts = {
        "version": __version__,
        "model": model.sha256,
        "calibration": dataset.calibration.content_id,
        "test": dataset.test.content_id,
        "task": model.task.to_json() if model.task else "",
        "settings": {k: v for k, v in asdict(settings).items() if k not in BUDGETS},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _memory(stages: Stages) -> Callable[[str, bytes, Callable[[], Predictions]], Predictions]:
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


def _kept_reference(stages: Stages, name: str, work: Callable[[], Reference]) -> Reference:
    """A reference, computed once and kept as a stage where that costs something."""
    kept = stages.get(name)
    if kept is not None:
        return unpack_reference(kept)
    reference = work()
    if reference.kind == DRAWN:  # the others cost nothing to make again
        stages.put(name, pack_reference(reference))
    return reference


def _judge(model: Model, task: Task, dataset: Dataset, settings: Settings, ui: Ui, stages: Stages) -> Judge:
    test = dataset.test
    runner = _float_runner(model, settings.threads)
    remember = _memory(stages)

    def work() -> Predictions:
        with ui.stage("original: test images", len(test)) as advance:
            return predict(runner, task, test, progress=advance)

    def refer() -> Reference:
        with ui.stage("reference", len(test)) as advance:
            return reference_of(lambda: runner, task, test, advance, original)

    original = remember("ort", model.float_bytes(), work)
    reference = _kept_reference(stages, "reference", refer)
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


def _replay_target(model: Model, recipe: Recipe, made_with: dict[str, str], settings: Settings) -> str:
    """The target that a recipe was made for; stored weights run anywhere. Refuses a recipe made for another model."""
    made_for = made_with.get("target")
    known = {u.name for u in units(Fold()(model, Samples(())).ir)}
    for step in recipe.steps:
        names = [n for f in ("keep_float", "wide", "float_weights", "exact_activations") for n in getattr(step, f, ())]
        for name in (*names, *(n for n, _ in getattr(step, "bits", ()))):
            if name not in known:
                raise InputError(
                    f"the recipe {settings.recipe} names the layer {name!r}, which {model.source} does not have;"
                    " replay it on the model it was made for"
                )
    step = next((s for s in recipe.steps if isinstance(s, Quantize)), None)
    if step is not None:
        if settings.target not in ("auto", step.target):
            raise InputError(
                f"the recipe {settings.recipe} is for the target {step.target}, but --target is {settings.target};"
                " leave --target out"
            )
        if not TARGETS[step.target].available():
            raise InputError(f"the recipe {settings.recipe} cannot be replayed: {TARGETS[step.target].missing}")
        refuse_latency(step.target, settings.max_latency)
        return str(step.target)
    if settings.target != "auto":
        return settings.target
    return made_for if made_for in settings.targets else settings.targets[-1]


# Speed and report


def _final_speed(
    model: Model, task: Task, test: Samples, chosen: list[Trial], settings: Settings, limits: Limits, ui: Ui
) -> tuple[BenchResult, Trial]:
    """The longer measurement of what was chosen, originals beside it, and the winner among those that hold the budget
    (or among all, where none does): least latency x sqrt(bytes), so that twice the size must buy 1.4 times the speed.

    On a machine that does not come to rest all is measured ATTEMPTS times, and the middle measurement counts.
    """
    if all(TARGETS[t.target].simulated for t in chosen):
        threads = settings.threads or usable_cores()
        return BenchResult((), threads, 0, 0.0, True, {}, environment(threads)), min(chosen, key=_broken)
    frames = [s.image() for s in test[:8]]
    decode = task.decode if task.is_detector else None
    original = model.float_bytes()

    def entry(label: str, data: bytes, target: str) -> Entry:
        return Entry(label, data, target, frames, task.preprocess, decode)

    # ONNX Runtime is always among them: it is what most models run on today.
    targets = dict.fromkeys([*(t.target for t in chosen), "ort"])
    entries = [entry(f"original on {name}", original, name) for name in targets]
    entries += [entry(f"{t.variant} on {t.target}", t.deployed, t.target) for t in chosen]
    measured: list[BenchResult] = []
    for attempt in range(1, ATTEMPTS + 1):
        with ui.stage("speed" if attempt == 1 else f"speed again ({attempt})", 100) as advance:
            result = bench(
                entries,
                threads=settings.threads or None,
                seconds=(1.5 if settings.effort == "quick" else 3.0) * len(entries),
                progress=lambda share, _: advance(int(100 * share)),
            )
        if result.quiet:
            measured = [result]
            break
        measured.append(result)

    def ratio_in(result: BenchResult, trial: Trial) -> float:
        return result.compare(f"original on {trial.target}", f"{trial.variant} on {trial.target}")[0]

    # On a machine that never came to rest: the measurement in the middle, by the ratios of all candidates together.
    measured.sort(key=lambda r: sum(math.log(ratio_in(r, t)) for t in chosen))
    result = measured[len(measured) // 2]
    for trial in chosen:
        trial.ratio = ratio_in(result, trial)
    latency = {id(t): result[f"{t.variant} on {t.target}"].runtime.median_ms for t in chosen}

    def merit(trial: Trial) -> tuple[bool, bool, bool, float]:
        slow = (trial.ratio or 0) < RESOLUTION
        beyond = not limits.fits(len(trial.deployed)) or latency[id(trial)] > (limits.max_latency_ms or math.inf)
        return beyond, _broken(trial), slow, latency[id(trial)] * math.sqrt(len(trial.deployed))

    best = min(chosen, key=merit)
    for trial in chosen:
        if trial is not best:
            better = "faster" if latency[id(best)] < latency[id(trial)] else "smaller"
            beaten = f"{best.variant} on {best.target} is {better}"
            trial.why = f"rejected: {'breaks the budget' if _broken(trial) and not _broken(best) else beaten}"
    return result, best


def _variant(recipe: Recipe) -> str:
    """What a recipe makes, in words."""
    step = next((s for s in recipe.steps if isinstance(s, Quantize | StoreWeights)), None)
    if step is None:
        return "float"
    if isinstance(step, StoreWeights):
        return "int8-stored weights"
    kept = len({*step.keep_float, *step.wide, *step.float_weights})
    return f"int8, {kept} layers in float" if kept else "int8"


def _broken(trial: Trial) -> bool:
    return trial.judgement is None or not trial.judgement.holds


def _report(
    model: Model,
    dataset: Dataset,
    best: Trial,
    evidence: Evidence,
    speed: BenchResult,
    settings: Settings,
    notes: list[str],
    replay: tuple[Recipe, dict[str, str]] | None,
    clock: _Clock,
    seconds: float,
    command: str | None,
    images: Chosen,
) -> dict[str, Any]:
    task = best.model.task or model.task  # what is shipped, with its refitted threshold
    assert task is not None
    made_with = _made_with(model, dataset, best.target)
    warnings = list(evidence.warnings)
    if replay is None and settings.target == "auto":
        warnings += [
            f"not tried on {name}: {target.missing}" for name, target in TARGETS.items() if not target.available()
        ]
    if replay is not None:
        for name, value in replay[1].items():
            if name != "target" and value != made_with.get(name):
                warnings.append(f"the recipe was made with another {name.replace('_', ' ')}; the result may differ")
    return {
        "roadworthy": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command,
        "seconds": seconds,
        "verdict": "hold" if all(b["verdict"] == "holds" for b in evidence.budgets) else "broken",
        "summary": evidence.summary,
        "warnings": warnings,
        "original": evidence.original,
        "result": evidence.result,
        "task": {
            "kind": task.decode.kind,
            "how": "; ".join(notes) or task.how,
            **{k: v for k, v in task.to_dict().items() if k != "version"},
        },
        "data": {
            "source": dataset.source,
            "content_id": f"calibration {dataset.calibration.content_id}, test {dataset.test.content_id}",
            "kind": dataset.kind,
            "calibration_images": min(best.recipe.images, len(dataset.calibration)),
            "chosen": images.recipe.by,
            "covered": images.covered.share,
            "coverage": str(images.covered),
            "test_images": len(dataset.test),
            "note": dataset.note,
        },
        "budgets": evidence.budgets,
        "accuracy": evidence.accuracy,
        "operating": evidence.operating,
        "speed": evidence.speed,
        "size": evidence.size,
        "candidates": evidence.candidates,
        "sensitivity": evidence.sensitivity,
        "layers": evidence.layers,
        "steps": clock.rows,
        "environment": speed.environment,
        "recipe": best.recipe.to_yaml(made_with),
        "pareto": evidence.pareto,
        "seed": settings.seed,
    }


def _made_with(model: Model, dataset: Dataset, target: str) -> dict[str, str]:
    """What a recipe was made with; replaying compares it."""
    assert model.task is not None
    return {
        "target": target,
        "model_sha256": model.sha256,
        "data": dataset.calibration.content_id,
        "task_sha256": hashlib.sha256(model.task.to_json().encode()).hexdigest(),
        "roadworthy": __version__,
        "onnxruntime": versions().get("onnxruntime", ""),
    }


def _recipes(model: Model, dataset: Dataset, searches: list[Search]) -> dict[str, str]:
    """File name -> recipe of every allocation in the report's table; replaying one makes the very bytes."""
    return {
        point.file: point.trial.recipe.to_yaml(_made_with(model, dataset, search.target))
        for search in searches
        for point in search.points
    }
