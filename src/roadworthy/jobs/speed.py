"""The last measurement of a job: the chosen candidates beside their originals, and which of them is shipped."""

from __future__ import annotations

import math

from roadworthy.check.bench import BenchResult, Entry, bench
from roadworthy.check.machine import environment, usable_cores
from roadworthy.data.samples import Samples
from roadworthy.jobs.limits import Limits
from roadworthy.jobs.settings import Settings
from roadworthy.jobs.trial import Trial, Ui
from roadworthy.model.model import Model
from roadworthy.model.task import Task
from roadworthy.run.targets import TARGETS

RESOLUTION = 0.95
"""A speed ratio from here up counts as "not slower": what runs measured side by side on a restless machine can tell."""
ATTEMPTS = 3


def final_speed(
    model: Model, task: Task, test: Samples, chosen: list[Trial], settings: Settings, limits: Limits, ui: Ui
) -> tuple[BenchResult, Trial]:
    """The longer measurement of what was chosen, originals beside it, and the winner among those that hold the budget
    (or among all, where none does): least latency x sqrt(bytes), so that twice the size must buy 1.4 times the speed.

    On a machine that does not come to rest all is measured ATTEMPTS times, and the middle measurement counts.
    """
    if all(TARGETS[t.target].simulated for t in chosen):
        threads = settings.threads or usable_cores()
        return BenchResult((), threads, 0, 0.0, True, {}, environment(threads)), min(chosen, key=broken)
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
        return beyond, broken(trial), slow, latency[id(trial)] * math.sqrt(len(trial.deployed))

    best = min(chosen, key=merit)
    for trial in chosen:
        if trial is not best:
            better = "faster" if latency[id(best)] < latency[id(trial)] else "smaller"
            beaten = f"{best.variant} on {best.target} is {better}"
            trial.why = f"rejected: {'breaks the budget' if broken(trial) and not broken(best) else beaten}"
    return result, best


def broken(trial: Trial) -> bool:
    return trial.judgement is None or not trial.judgement.holds
