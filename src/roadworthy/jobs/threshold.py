"""Keeping the operating point: the threshold of every detector that came out of a search, refitted on images that the
search did not test on, and written into its recipe and its file (check/operating.py says how it is found)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from roadworthy.check.accuracy import Predictions, Reference, predict, reference_of
from roadworthy.check.judge import Judge
from roadworthy.check.operating import LEAST_DETECTIONS, Refit, refit
from roadworthy.data.samples import Samples
from roadworthy.jobs.trial import Trial, Ui
from roadworthy.model.model import Model
from roadworthy.model.qdq import to_qdq
from roadworthy.recipe import SetThreshold
from roadworthy.run.runner import Runner
from roadworthy.run.targets import TARGETS

FIT_IMAGES = {"quick": 64, "normal": 256, "thorough": 512}

Remember = Callable[[str, bytes, Callable[[], Predictions]], Predictions]


def fit_images(calibration: Samples, used: Samples, count: int) -> Samples:
    """Up to `count` images of the calibration part; those that ranges were taken from come last, because a compressed
    model does a little better on them than on others."""
    taken = {s.name for s in used}
    order = [*(s for s in calibration if s.name not in taken), *(s for s in calibration if s.name in taken)]
    return Samples(order[:count], calibration.kind, calibration.class_names)


def keep_operating_point(
    trials: Sequence[Trial],
    model: Model,
    judge: Judge,
    images: Samples,
    original: Callable[[], Runner],
    remember: Remember,
    reference: Callable[[Callable[[], Reference]], Reference],
    ui: Ui,
    threads: int = 0,
    seed: int = 0,
) -> dict[int, Refit]:
    """Refit the threshold of each trial of a detector, in the trial itself, and judge it again; id of the trial -> what
    became of it. Nothing is done to classifiers and raw tasks.

    images: labelled, or the reference is drawn from the original as for the test images.   original: makes its runner.
    remember, reference: keep what was computed, as stages do.
    """
    task = judge.task
    if not task.is_detector or not trials:
        return {}

    def work(runner: Callable[[], Runner], told: str) -> Callable[[], Predictions]:
        def run() -> Predictions:
            with ui.stage(f"threshold: {told}", len(images)) as advance:
                return predict(runner(), task, images, progress=advance)

        return run

    before = remember("fit-ort", model.float_bytes(), work(original, "original"))
    shown = sum(int((d.scores >= judge.threshold).sum()) for d in before.detections)
    if shown < LEAST_DETECTIONS:
        why = f"the original shows only {shown} detections on {len(images)} images, so the threshold is left alone"
        return {id(t): Refit(judge.threshold, judge.threshold, shown, None, len(images), why) for t in trials}
    truth = reference(lambda: reference_of(original, task, images, known=before))
    found = {}
    for trial in trials:
        runner = work(lambda t=trial: TARGETS[t.target].runner(t.deployed, threads), trial.name)  # type: ignore[misc]
        after = remember(f"fit-{trial.target}", trial.deployed, runner)
        result = refit(
            truth.truths, before.detections * truth.draws, after.detections * truth.draws, task.decode.num_classes,
            judge.threshold, truth.draws, seed=seed,
        )  # fmt: skip
        found[id(trial)] = result
        if result.value != result.original:
            step = SetThreshold(result.value)
            trial.recipe = replace(trial.recipe, steps=(*trial.recipe.steps, step))
            trial.model = step(trial.model, Samples(()))
            trial.data = to_qdq(trial.model)
            trial.__dict__.pop("deployed", None)  # made of the data when it is asked for again
            ui.note(f"{trial.name} on {trial.target}: operating threshold {result.original:g} -> {result.value:g}")
        if trial.predictions is not None:  # these reach below any threshold, so they are still what the file gives
            trial.judgement = judge(trial.predictions, result.value)
    return found
