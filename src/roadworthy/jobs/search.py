"""The search for the smallest, fastest model whose budget holds on one target.

    1. int8 wherever the target computes in int8. If that is not faster than float there, it is dropped: smaller codes
       do not excuse a slower model.
    2. If it is faster but breaks the budget, the layers are measured one by one (only that layer in int8) and kept in
       float, the most damage per saved multiplication first, twice as many each time, until the budget holds.
    3. Else the weights are stored as integers and computed with in float: as fast as the original, a quarter of its
       size. If that breaks the budget, the worst layers are stored with 16 bits, then left alone.

    4. Before it is judged, the int8 model is improved step by step (jobs/improve.py).
    5. Where time is given for it, an int8 model that breaks the budget is trained before layers go back to float
       (jobs/training.py).

Everything is chosen on calibration images: ranges on those that the recipe names, candidates by the task distance on
others (`probes`), so that no candidate is judged by the images it was fitted to. The test images give the verdict, and
where a budget breaks they decide how many layers stay in float or wide; how often they were looked at is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.check.accuracy import Predictions, predict, tensor_of
from roadworthy.check.bench import Entry, bench
from roadworthy.check.judge import Judge, Judgement, distance
from roadworthy.data.samples import Samples
from roadworthy.errors import InputError
from roadworthy.jobs.improve import GAIN, IMPROVEMENTS, with_quantize
from roadworthy.jobs.limits import Limits
from roadworthy.jobs.training import fewer_in_float, trained
from roadworthy.jobs.trial import Sensitivity, Trial, Ui
from roadworthy.model.model import Model
from roadworthy.model.qdq import to_qdq
from roadworthy.model.task import Task
from roadworthy.model.units import units
from roadworthy.quantize.place import multiplications
from roadworthy.recipe import CorrectBias, Finetune, Fold, Quantize, Recipe, StoreWeights
from roadworthy.run.targets import TARGETS
from roadworthy.steps.context import FEWEST, held_out

FASTER = 1.05
"""int8 must beat float by this factor; less is within what a short measurement can tell apart."""
EFFORT_IMAGES = {"quick": 32, "normal": 128, "thorough": 256}
HELD_OUT = {"quick": 12, "normal": 32, "thorough": 64}
"""Calibration images that candidates are compared on; at most a fifth of all."""
ATTEMPTS = 3
SENSITIVITY_IMAGES = {"quick": 4, "normal": 8, "thorough": 16}


def calibration_images(effort: str, count: int, wanted: int | None = None) -> int:
    """How many of `count` calibration images are calibrated with; the others are held out.   wanted: in place of what
    the effort takes."""
    return max(min(wanted or EFFORT_IMAGES[effort], count - held_out_images(effort, count)), 1)


def held_out_images(effort: str, count: int) -> int:
    """How many of `count` calibration images candidates are compared on; 0 where there are too few to spare any."""
    spare = min(HELD_OUT[effort], count // 5)
    return spare if spare >= FEWEST else 0


@dataclass
class Search:
    """Everything the search on one target needs, and what it gathers."""

    model: Model
    task: Task
    calibration: Samples
    judge: Judge
    target: str
    effort: str
    seed: int
    threads: int
    ui: Ui
    remember: Callable[[str, bytes, Callable[[], Predictions]], Predictions]
    trials: list[Trial] = field(default_factory=list)
    sensitivity: list[Sensitivity] = field(default_factory=list)
    sensitivity_metric: str = ""
    warnings: list[str] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)
    points: list[Any] = field(default_factory=list)
    """Allocations of mixed precision (jobs/mixed.py), smallest first, where limits asked for them."""
    wanted_images: int | None = None
    """Calibration images to use in place of what the effort takes."""
    by: str = "random"
    """How they are chosen: see `Recipe`."""
    train_minutes: float = 0.0
    """What a training may take where int8 breaks the budget; 0: none."""
    finetune: Finetune = field(default_factory=Finetune)
    """How it is trained; the number of steps follows from the minutes."""
    number: Callable[[str, Callable[[], int]], int] = field(default=lambda name, work: work())
    """Keeps a number that was measured for a job that is resumed."""
    pace: float = 0.0
    """Seconds an image takes in training, once that is measured."""
    trained_again: int = 0

    @property
    def images(self) -> int:
        return calibration_images(self.effort, len(self.calibration), self.wanted_images)

    @property
    def held_out_count(self) -> int:
        return held_out_images(self.effort, len(self.calibration))

    @cached_property
    def held_out(self) -> Samples:
        """Calibration images that no recipe of this search calibrates with or trains on; all of them where there are
        very few."""
        count = self.held_out_count
        if not count:
            return self.calibration
        chosen = self.recipe().choose(self.calibration, self.model)
        return held_out(self.calibration, chosen, count, self.seed) or self.calibration  # none is left among copies

    @cached_property
    def probes(self) -> list[tuple[NDArray, dict[str, NDArray]]]:
        """Input tensors of the held-out images and the original's outputs for them."""
        return self._probes(self.held_out)

    def distance(self, trial: Trial) -> float:
        """How far the candidate's outputs are from the original's on the held-out images, on its own target."""
        runner = TARGETS[self.target].runner(trial.deployed, self.threads)
        return float(
            np.mean([distance(want, runner.run({self.model.input_name: t}), self.task) for t, want in self.probes])
        )

    def warn(self, text: str) -> None:
        """A sentence for the report, once."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.ui.note(text)

    def note_sensitivity(self, metric: str, found: Mapping[str, float]) -> None:
        """Keep for the report what single layers cost, unless something has been noted already."""
        if self.sensitivity:
            return
        folded = Fold()(self.model, self.calibration)
        total = sum(multiplications(u) for u in units(folded.ir)) or 1
        self.sensitivity_metric = metric
        self.sensitivity = [
            Sensitivity(u.name, found[u.name], multiplications(u) / total) for u in units(folded.ir) if u.name in found
        ]

    def recipe(self, *steps: object) -> Recipe:
        return Recipe((Fold(), *steps, CorrectBias()), self.images, self.seed, self.by)

    def run(self) -> list[Trial]:
        """The trials that a final measurement decides between; within the limits, where there are some."""
        from roadworthy.jobs.mixed import front, under_limits

        if self.limits:
            return under_limits(self)
        found = self.unlimited()
        if self.effort == "thorough":
            front(self, found)
        return found

    def unlimited(self) -> list[Trial]:
        """The trials that a final measurement decides between: int8 where it is faster and holds the budget, and stored
        weights, which are never slower. Every other trial's `why` says why not."""
        if TARGETS[self.target].simulated:
            return [self._integers_alone()]
        stored = self.build("stored weights", "int8-stored weights", self.recipe(StoreWeights()))
        self.trials.append(stored)
        int8 = self.plain_int8()
        found = None
        if int8 is not None:
            self.trials.insert(0, int8)
            self._measure_speed([int8, stored])
            if int8.ratio is not None and int8.ratio >= FASTER:
                best = self.improved(int8)
                best.ratio = best.ratio or int8.ratio
                found = self._int8_under_budget(best)
            else:
                if self.effort != "quick":
                    self.evaluate(int8)
                int8.why = f"rejected: {_times(int8.ratio)} of float on {self.target}"
        if found is None:
            return [self._stored_under_budget(stored)]
        # Beside an int8 model that holds, stored weights are the answer only if it proves slow after all: no search.
        holds = self.evaluate(stored).holds
        stored.why = "chosen: int8 did not prove faster in the last measurement" if holds else "breaks the budget"
        return [found, stored] if holds else [found]

    def _integers_alone(self) -> Trial:
        """On a target that is only simulated here nothing is measured, and there is no float to fall back on."""
        int8 = self.plain_int8()
        if int8 is None:
            raise InputError(f"{self.warnings[-1]}; choose another target")
        self.trials.insert(0, int8)
        int8 = self.improved(int8)
        holds = self.evaluate(int8).holds
        if not holds and (better := trained(self, int8)) is not None:
            int8, holds = better, self._judged(better).holds
        int8.why = "chosen: " + (
            "the budget holds" if holds else "all that this target computes; the budget does not hold"
        )
        return int8

    # Candidates

    def build(self, name: str, variant: str, recipe: Recipe, start: Model | None = None) -> Trial:
        """Apply a recipe and serialize.   start: what it is applied to, where that is not the original."""
        started = time.monotonic()
        made = recipe.apply(self.model if start is None else start, self.calibration, self.model)
        seconds = time.monotonic() - started
        return Trial(name, variant, self.target, recipe, to_qdq(made), made, seconds=seconds, start=start)

    def evaluate(self, trial: Trial) -> Judgement:
        """Run the candidate on its target over the test images and judge it."""
        started = time.monotonic()
        samples = self.judge.samples

        def work() -> Predictions:
            with self.ui.stage(f"{trial.name} on {self.target}: test images", len(samples)) as advance:
                runner = TARGETS[self.target].runner(trial.deployed, self.threads)
                return predict(runner, self.task, samples, progress=advance)

        trial.predictions = self.remember(self.target, trial.deployed, work)
        trial.judgement = self.judge(trial.predictions)
        trial.seconds += time.monotonic() - started
        broken = ", ".join(v.budget.name for v in trial.judgement.broken)
        self.ui.note(
            f"{trial.name} on {self.target}: {trial.judgement.metric} {trial.judgement.value:.2f},"
            f" drop {trial.judgement.drop:+.2f}{f'; breaks: {broken}' if broken else ''}"
        )
        return trial.judgement

    def plain_int8(self) -> Trial | None:
        """int8 wherever the target computes in it, with nothing on top."""
        first = Quantize(self.target)
        folded = Fold()(self.model, self.calibration)
        placement = first.placement(folded, self.recipe().choose(self.calibration, self.model))
        if not placement.int8:
            reasons = sorted(set(placement.why_float.values()))
            self.warnings.append(f"no layer runs in int8 on {self.target}: {'; '.join(reasons) or 'it has no weights'}")
            return None
        with self.ui.stage(f"int8 for {self.target}"):
            trial = self.build("int8", "int8", self.recipe(first))
            trial.distance = self.distance(trial)
        return trial

    def improved(self, best: Trial) -> Trial:
        """The candidate with every improvement that helps on the held-out images; each one tried is a trial."""
        wanted = [step for step in IMPROVEMENTS if self.effort in step.efforts]
        if wanted and self.held_out is self.calibration:
            self.warnings.append(
                f"with {len(self.calibration)} calibration images none could be held out, so candidates were compared"
                " on those that they were calibrated with; give at least 20"
            )
        for step in wanted:
            started = time.monotonic()
            recipe = step.change(self, best)
            if recipe is None:
                continue
            with self.ui.stage(f"{step.name} for {self.target}"):
                trial = self.build(f"int8, {step.name}", "int8", recipe)
                trial.distance = best.distance if trial.data == best.data else self.distance(trial)
            trial.seconds = time.monotonic() - started
            if trial.data == best.data:
                trial.why = "rejected: it changes nothing in this network"
                self.trials.append(trial)
                continue
            before, after = best.distance or 0.0, trial.distance or 0.0
            told = f"held-out distance {after:.4f} against {before:.4f}"
            if after < before * (1 - GAIN):
                best.why, trial.why = f"improved on by {step.name}", f"kept: {told}"
                self.trials.insert(0, trial)
                best = trial
            else:
                trial.why = f"rejected: {told}"
                self.trials.append(trial)
            self.ui.note(f"{trial.name} on {self.target}: {trial.why}")
        return best

    def _measure_speed(self, trials: list[Trial]) -> None:
        """Latency ratios against the original on this target, measured side by side; on a machine that does not come
        to rest the median of ATTEMPTS measurements."""
        entries = [Entry("original", self.model.float_bytes(), self.target)]
        entries += [Entry(t.name, t.deployed, self.target) for t in trials]
        ratios: list[list[float]] = []
        for attempt in range(1, ATTEMPTS + 1):
            with self.ui.stage(f"speed on {self.target}" + (f" ({attempt})" if attempt > 1 else ""), 100) as advance:
                result = bench(entries, threads=self.threads or None, quick=True,
                               progress=lambda share, _: advance(int(100 * share)))  # fmt: skip
            ratios.append([result[t.name].ratio for t in trials])
            if result.quiet:
                ratios = ratios[-1:]
                break
        for trial, ratio in zip(trials, np.median(ratios, axis=0)):
            trial.ratio = float(ratio)

    # The budget

    def _judged(self, trial: Trial) -> Judgement:
        return trial.judgement or self.evaluate(trial)

    def _int8_under_budget(self, int8: Trial) -> Trial | None:
        """int8, with as few layers in float as the budget allows; None when it is then no longer faster."""
        if self.evaluate(int8).holds:
            int8.why = "chosen: the budget holds, and it is faster than float"
            return int8
        int8.why = f"breaks the budget by {int8.judgement.drop - self.judge.max_drop:.2f}"  # type: ignore[union-attr]
        better = trained(self, int8)
        if better is not None:
            better.ratio = int8.ratio
            if self._judged(better).holds:
                better.why += "; chosen: the budget holds, and it is faster than float"
                return better
            better.why += "; breaks the budget"
        step = next(s for s in int8.recipe.steps if isinstance(s, Quantize))
        order = self._rank("in int8", lambda others: replace(step, float_weights=others))
        for count in _growing(len(order) - 1):
            kept = tuple(s.layer for s in order[:count])
            # The layers that break the budget keep the weights they had; storing them as codes would cost again.
            recipe = with_quantize(int8.recipe, float_weights=kept)
            trial = self.build(f"int8, {count} in float", f"int8, {count} {_layers(count)} in float", recipe)
            self.trials.append(trial)
            if not self.evaluate(trial).holds:
                trial.why = "breaks the budget"
                again = fewer_in_float(self, int8, better, trial)
                if again is None:
                    continue
                trial = again
            self._measure_speed([trial])
            if (trial.ratio or 0) >= FASTER:
                trial.why = "chosen: the fewest layers in float that hold the budget and are faster than float"
                return trial
            trial.why = f"rejected: holds the budget, but with {_times(trial.ratio)} of float on {self.target}"
            return None
        return None

    def _stored_under_budget(self, stored: Trial) -> Trial:
        """Stored weights; the worst layers with 16 bits, and in the end untouched, until the budget holds."""
        if self.evaluate(stored).holds:
            stored.why = "chosen: as fast as float, smaller, and the budget holds"
            return stored
        stored.why = "breaks the budget"
        order = self._rank("stored", lambda others: StoreWeights(float_weights=others))
        best = stored
        for setting, variant in (("wide", "stored with 16 bits"), ("float_weights", "left as they were")):
            for count in _growing(len(order)):
                names = tuple(s.layer for s in order[:count])
                step = StoreWeights(wide=names) if setting == "wide" else StoreWeights(float_weights=names)
                trial = self.build(
                    f"stored, {count} {variant}",
                    f"int8-stored weights, {count} {_layers(count)} {variant}",
                    self.recipe(step),
                )
                self.trials.append(trial)
                if self.evaluate(trial).holds:
                    trial.why = "chosen: the smallest that holds the budget"
                    return trial
                trial.why = "breaks the budget"
                if trial.judgement.drop < best.judgement.drop:  # type: ignore[union-attr]
                    best = trial
        best.why = "chosen: the smallest drop of all, but the budget does not hold"
        return best

    # Sensitivity

    def _probes(self, samples: Samples) -> list[tuple[NDArray, dict[str, NDArray]]]:
        """Input tensors of some images and the original's outputs for them."""
        runner = TARGETS["ort"].runner(self.model.float_bytes(), self.threads)
        tensors = [tensor_of(s, self.task)[0] for s in samples]
        return [(t, runner.run({self.model.input_name: t})) for t in tensors]

    def _damage(self, data: bytes, probes: list[tuple[NDArray, dict[str, NDArray]]]) -> float:
        runner = TARGETS["ort"].runner(data, self.threads)
        return float(np.mean([distance(want, runner.run({self.model.input_name: t}), self.task) for t, want in probes]))

    def _rank(self, how: str, alone: Callable[[tuple[str, ...]], Quantize | StoreWeights]) -> list[Sensitivity]:
        """Every layer's damage when it alone is compressed, the most per unit of gain first.

        alone: the step that compresses all layers but the named ones.   The networks run on ONNX Runtime whatever the
        target: the codes are the same there, and it loads a model several times faster.
        """
        chosen = self.recipe().choose(self.calibration, self.model)
        folded = Fold()(self.model, chosen)
        all_units = units(folded.ir)
        names = [u.name for u in all_units]
        total = sum(multiplications(u) for u in all_units) or 1
        probes = self.probes[: SENSITIVITY_IMAGES[self.effort]]
        correct = CorrectBias()
        found = []
        with self.ui.stage(f"sensitivity of {len(names)} layers", len(names)) as advance:
            for done, unit in enumerate(all_units, 1):
                step = alone(tuple(n for n in names if n != unit.name))
                made = correct(step(folded, chosen), chosen)
                value = self._damage(to_qdq(made), probes)
                found.append(Sensitivity(unit.name, value, multiplications(unit) / total))
                advance(done)
        self.sensitivity = found
        self.sensitivity_metric = f"task distance with only this layer {how}"
        return sorted(found, key=lambda s: -s.merit(len(found)))


def _growing(count: int) -> Iterator[int]:
    """1, 2, 4, ... and at last all."""
    k = 1
    while k < count:
        yield k
        k *= 2
    if count:
        yield count


def _layers(count: int) -> str:
    return "layer" if count == 1 else "layers"


def _times(ratio: float | None) -> str:
    return "speed not measured" if ratio is None else f"{ratio:.2f}x the speed"
