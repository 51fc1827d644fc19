"""Training in a search: what a candidate becomes when it learns from the original, tried where rounding costs too much.

How many steps there is time for is measured once, told beforehand, kept for a resumed job and written into the recipe:
from then on a training is so many steps, on whatever machine, and gives the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from roadworthy.errors import InputError, MissingExtraError, RoadworthyError, TrainingError
from roadworthy.jobs.improve import GAIN
from roadworthy.jobs.trial import Advance, Trial, Ui
from roadworthy.model.model import Model
from roadworthy.recipe import Finetune, Recipe
from roadworthy.run.torch import available, need_torch
from roadworthy.steps.context import Context
from roadworthy.steps.training import Record, Training

if TYPE_CHECKING:
    from roadworthy.jobs.search import Search

MINUTES = {"quick": 0.0, "normal": 0.0, "thorough": 20.0}
"""What a training may take, by effort, where --train-minutes does not say."""
MOST_STEPS = 4000
"""More have not been seen to help; a fast machine stops there."""
AGAIN = 2
"""How often another training is tried with layers in float."""
TOLD = 10
"""How often a training is told of where no bar can be drawn."""


def trained(search: Search, base: Trial) -> Trial | None:
    """The candidate after a training, where that brings it nearer to the original on held-out images; else None.

    Every attempt is a trial, and says why it was kept or not. Without PyTorch: one warning.
    """
    if not search.train_minutes or base.recipe.training is not None:
        return None
    if not search.limits.fits(len(base.deployed)):  # it gets fewer bits first
        return None
    if not available():
        try:
            need_torch("training, which would win back accuracy,")
        except MissingExtraError as error:
            search.warn(f"not trained: {error}")
        return None
    try:
        step = _step(search, base)
    except InputError as refusal:  # too few images
        search.warn(f"not trained: {refusal}")
        return None
    except RoadworthyError as refusal:  # an operator without a gradient
        search.warn(f"{base.name} on {search.target} was not trained: {refusal}")
        return None
    if base.distance is None:
        base.distance = search.distance(base)
    return attempt(search, base, step)


def attempt(search: Search, base: Trial, step: Finetune) -> Trial | None:
    """Train a candidate and hold it against what it was; it becomes a trial whatever comes of it."""
    recipe = replace(base.recipe, steps=(*base.recipe.steps, step))
    started = time.monotonic()
    try:
        trial = build_trained(search, f"{base.name}, trained", f"{base.variant}, trained", recipe)
    except TrainingError as error:
        told = str(error).partition("; the last good checkpoint")[0]
        search.warn(f"{base.name} on {search.target} was not trained: {told}")
        return None
    trial.before = base
    trial.distance = base.distance if trial.data == base.data else search.distance(trial)
    trial.seconds = time.monotonic() - started
    before, after = base.distance or 0.0, trial.distance or 0.0
    told = f"held-out distance {after:.4f} against {before:.4f}"
    kept = trial.data != base.data and after < before * (1 - GAIN)
    if trial.data == base.data:
        told = "no state on the way was nearer to the original than what it began with"
    trial.why = f"kept: {told}" if kept else f"rejected: {told}"
    search.ui.note(f"{trial.name} on {search.target}: {trial.why}")
    if not kept:
        search.trials.append(trial)
        return None
    base.why = f"{base.why}; improved on by training" if base.why else "improved on by training"
    search.trials.insert(0, trial)
    return trial


def build_trained(search: Search, name: str, variant: str, recipe: Recipe, student: Model | None = None) -> Trial:
    """A candidate whose recipe trains, with what came of the training.   student: what is trained, where that is not
    the original."""
    step = recipe.training
    assert step is not None
    Training.heard.clear()
    with telling(search.ui, f"{name} on {search.target}", step.steps) as progress, Training.told(progress):
        trial = search.build(name, variant, recipe, student)
    trial.training = Training.heard[-1] if Training.heard else None
    return trial


class telling:
    """Shows a training: a bar where there is a terminal, and a line each tenth of it."""

    def __init__(self, ui: Ui, name: str, steps: int) -> None:
        self._ui, self._name, self._steps = ui, name, steps
        self._stage = ui.stage(f"training: {name}", steps)

    def __enter__(self) -> Callable[[int, int, Mapping[str, float], float], None]:
        self._advance: Advance = self._stage.__enter__()
        return self._step

    def __exit__(self, *failure: Any) -> None:
        self._stage.__exit__(*failure)

    def _step(self, done: int, steps: int, parts: Mapping[str, float], left: float) -> None:
        self._advance(done)
        if done * TOLD // steps > (done - 1) * TOLD // steps and done < steps:
            away = f", distance {parts['distance']:.4f}" if "distance" in parts else ""
            loss = f"loss {parts.get('loss', 0.0):.4f}"
            self._ui.note(f"training: step {done} of {steps}, {loss}{away}, about {minutes_text(left)} left")


def _step(search: Search, base: Trial) -> Finetune:
    """The step that fits into the time, and can be taken."""
    step = replace(search.finetune, held_out=search.held_out_count)
    chosen = base.recipe.choose(search.calibration, search.model)
    context = Context(search.model, search.calibration, chosen, search.seed)
    step.check(base.model, context)
    return fitted(search, base, step, context)


def fitted(search: Search, base: Trial, step: Finetune, context: Context) -> Finetune:
    """The step with as many optimizer steps as fit into the time; told before it is taken."""
    seconds = 60 * search.train_minutes

    def measured() -> int:
        with search.ui.stage("how long a training step takes", None):
            search.pace = step.pace(base.model, context)
        return min(step.steps_in(seconds, search.pace), MOST_STEPS)

    step = replace(step, steps=search.number(f"training-steps-{search.target}", measured))
    about = f", about {minutes_text(step.seconds(search.pace))}" if search.pace else ""
    search.ui.note(f"training {base.name} on {search.target}: {step.steps} steps of {step.batch} images{about}")
    return step


def fewer_in_float(search: Search, base: Trial, helped: Trial | None, untrained: Trial) -> Trial | None:
    """Whether training would let a candidate with these layers in float hold the budget, which it does not by itself.

    helped: the trained candidate with all layers in int8. Its share of the drop says whether another is worth trying.
    """
    if helped is None or helped.judgement is None or base.judgement is None or untrained.judgement is None:
        return None
    if base.judgement.drop <= 0 or search.trained_again >= AGAIN or helped.recipe.training is None:
        return None
    expected = untrained.judgement.drop * max(helped.judgement.drop, 0.0) / base.judgement.drop
    if expected > search.judge.max_drop:
        return None
    search.trained_again += 1
    untrained.distance = untrained.distance if untrained.distance is not None else search.distance(untrained)
    trial = attempt(search, untrained, helped.recipe.training)
    return trial if trial is not None and search.evaluate(trial).holds else None


def training_of(searches: Sequence[Search], best: Trial) -> dict[str, Any] | None:
    """The report's `training`: of what is shipped, else of the last candidate that was trained; None without any."""
    every = [t for s in searches for t in s.trials if t.training is not None]
    trial = best if best.training is not None else every[-1] if every else None
    if trial is None or trial.training is None:
        return None
    before = trial.before

    def drop(t: Trial | None) -> float | None:
        return None if t is None or t.judgement is None else t.judgement.drop

    return {
        "candidate": f"{trial.name} on {trial.target}",
        "shipped": trial is best,
        "drop": [drop(before), drop(trial)],
        "held_out_distance": [before.distance if before else None, trial.distance],
        **record_rows(trial.training),
    }


def record_rows(record: Record, most: int = 300) -> dict[str, Any]:
    """A record as the report's `training` holds it: curves of at most `most` points, each the mean of its stretch."""
    losses = [(int(m["step"]), float(m["loss"])) for m in record.history if "loss" in m]
    width = max(-(-len(losses) // most), 1)
    loss = []
    for k in range(0, len(losses), width):
        part = losses[k : k + width]
        loss.append([part[-1][0], sum(v for _, v in part) / len(part)])
    away = [[int(m["step"]), float(m["distance"])] for m in record.history if "distance" in m]
    mean = [
        [int(m["step"]), float(m["distance of the average"])] for m in record.history if "distance of the average" in m
    ]
    return {
        "teacher": record.teacher,
        "steps": record.steps,
        "best_step": record.best_step,
        "averaged": record.averaged,
        "stopped": record.stopped,
        "seconds": record.seconds,
        "peak_mb": record.peak_mb,
        "images": record.images,
        "watched": record.watched,
        "held_out": record.held_out,
        "distances": None if record.distances is None else list(record.distances),
        "settings": dict(record.settings),
        "loss": loss,
        "distance": away,
        "distance_of_average": mean,
    }


def minutes_text(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
