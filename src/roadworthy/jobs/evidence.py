"""What the report says about a finished job: budgets and verdicts, accuracy, speed, size, layers, pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx

from roadworthy.check.accuracy import Accuracy, Predictions, agreement, match_pairs, score
from roadworthy.check.bench import BenchResult
from roadworthy.check.inspect import inspect, table_rows, totals
from roadworthy.check.judge import Judge
from roadworthy.check.operating import Refit
from roadworthy.check.pictures import Picture
from roadworthy.data.dataset import Dataset
from roadworthy.data.samples import Samples
from roadworthy.detect.detections import Detections
from roadworthy.detect.evaluate import DetectionScores, Interval, operating_point
from roadworthy.detect.matches import match
from roadworthy.jobs.layer_rows import layer_rows, parts_of, parts_of_file
from roadworthy.jobs.limits import Limits
from roadworthy.jobs.search import Search
from roadworthy.jobs.training import minutes_text, training_of
from roadworthy.jobs.trial import Trial
from roadworthy.model.model import Model
from roadworthy.model.task import Task
from roadworthy.recipe import Fold
from roadworthy.run.targets import TARGETS

PICTURES = 6
FEW = 50
SPEED_KEYS = ("label", "target", "median_ms", "p90_ms", "qps", "load_ms", "peak_mb", "file_bytes", "ratio",
              "ratio_spread", "samples", "dropped", "end_to_end_ms")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Evidence:
    """The sections of the report, as `report_schema` describes them, and the pictures."""

    summary: list[str]
    warnings: list[str]
    original: dict[str, Any]
    result: dict[str, Any]
    budgets: list[dict[str, Any]]
    accuracy: dict[str, Any] | None
    operating: dict[str, Any] | None
    speed: list[dict[str, Any]]
    size: dict[str, Any]
    candidates: list[dict[str, Any]]
    sensitivity: list[dict[str, Any]] | None
    layers: list[dict[str, Any]]
    pictures: list[Picture]
    pareto: list[dict[str, Any]] | None = None
    training: dict[str, Any] | None = None


def gather(
    model: Model,
    best: Trial,
    searches: list[Search],
    judge: Judge,
    calibration: Samples,
    dataset: Dataset,
    speed: BenchResult,
    seed: int,
    resolution: float,
    limits: Limits,
    refit: Refit | None = None,
) -> Evidence:
    """Everything that is reported about the chosen candidate.   refit: what became of its operating threshold."""
    task = judge.task
    assert best.predictions is not None and best.judgement is not None
    interval = judge.interval(best.predictions, seed)
    budgets = _accuracy_budgets(judge, best, seed)
    ratio, elsewhere = None, {}
    if not TARGETS[best.target].simulated:
        base, mine = speed[f"original on {best.target}"], speed[f"{best.variant} on {best.target}"]
        elsewhere = {
            e.target: speed.compare(e.label, mine.label)[0]
            for e in speed.entries
            if e.label.startswith("original on ") and e.target != best.target
        }
        ratio, spread = speed.compare(base.label, mine.label)
        budgets.append(_speed_budget(best, ratio, spread, resolution, speed.quiet))
    latency = None if ratio is None else mine.runtime.median_ms
    budgets += limits.budgets(len(best.deployed), best.target, latency, speed.quiet)
    warnings = [w for s in searches for w in s.warnings] + list(speed.notes)
    if dataset.note:
        warnings.append(dataset.note)
    operating = _operating(judge, best, refit)
    if len(judge.samples) < FEW:
        warnings.append(
            f"only {len(judge.samples)} test images: the drop and its interval say little; give at least {FEW}"
        )
    if not judge.raw and judge.max_drop >= judge.original_value:
        warnings.append("the budget is larger than the original's own score, so no model can break it")
    folded = Fold()(model, calibration)
    costs = {str(row["name"]): row for row in table_rows(inspect(_proto(folded)))}
    total = totals(inspect(_proto(folded)))
    layers, faults = layer_rows(model, best, calibration, task, costs)
    warnings += [f"layer by layer: {text}" for text in faults]
    if best.variant.split(",")[0] == "int8":
        warnings += _float_layers(best)
    looks = sum(1 for s in searches for t in s.trials if t.judgement is not None)
    if looks > 1 and any("in float" in t.variant or "bits" in t.variant for s in searches for t in s.trials):
        warnings.append(
            f"{looks} candidates were judged on the test images; the drop of the chosen one is a little flattered by"
            " that"
        )
    size_ratio = model.size / len(best.deployed)
    return Evidence(
        summary=_summary(
            model,
            best,
            judge,
            interval,
            ratio,
            elsewhere,
            searches,
            size_ratio,
            budgets,
            operating,
            speed.quiet,
        ),
        warnings=list(dict.fromkeys(warnings)),
        original={
            "path": model.source,
            "sha256": model.sha256,
            "bytes": model.size,
            "nodes": total.nodes,
            "parameters": total.parameters,
            "macs": total.macs,
        },
        result={
            "path": TARGETS[best.target].file,
            "sha256": _sha(best.deployed),
            "bytes": len(best.deployed),
            "variant": best.variant,
            "target": best.target,
            "size_ratio": size_ratio,
            "speed_ratio": ratio,
        },
        budgets=budgets,
        accuracy=_accuracy(judge, best, interval, task),
        operating=operating,
        speed=[{k: row.get(k) for k in SPEED_KEYS} for row in speed.rows()],
        size={"original": parts_of_file(model.float_bytes()), "compressed": parts_of(best)},
        candidates=_candidates(searches, best),
        sensitivity=_sensitivity(searches, best),
        layers=layers,
        pictures=_pictures(judge, best.predictions, task, threshold_of(best, task)),
        pareto=pareto(searches, best),
        training=training_of(searches, best),
    )


MOST_NAMED = 8


def _float_layers(best: Trial) -> list[str]:
    """Which layers of an int8 network the engine computes in float (on fixed: the host), by name."""
    if best.deployed is best.data:
        return []
    from roadworthy.run.native.runner import float_layers

    lines = [f"on {best.target}, {line}" for line in float_layers(best.data)]
    more = [f"{best.target} computes {len(lines) - MOST_NAMED} more layers in float"] if len(lines) > MOST_NAMED else []
    return lines[:MOST_NAMED] + more


def _sha(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _proto(model: Model) -> onnx.ModelProto:
    return onnx.load_model_from_string(model.float_bytes())


# Budgets


def threshold_of(trial: Trial, task: Task) -> float:
    """The operating threshold that a candidate carries; the task's where it carries none."""
    return (trial.model.task or task).decode.score_threshold


def _accuracy_budgets(judge: Judge, best: Trial, seed: int) -> list[dict[str, Any]]:
    assert best.judgement is not None and best.predictions is not None
    if judge.raw:
        holds = "holds" if best.judgement.holds else "broken"
        return [{"name": "output SQNR", "metric": "SQNR", "limit": judge.min_sqnr, "measured": best.judgement.value,
                 "unit": "dB", "direction": "at least", "verdict": holds}]  # fmt: skip
    return judge.rows(best.predictions, threshold_of(best, judge.task), seed)


RECALL_FELL = 1.0
"""Points of recall at the operating threshold from which on a loss is told in the summary."""


def _operating(judge: Judge, best: Trial, refit: Refit | None) -> dict[str, Any] | None:
    """Recall and precision on the test images: of the original, and of the candidate without and with its threshold."""
    task = judge.task
    if not task.is_detector:
        return None
    assert best.predictions is not None
    own, reference = threshold_of(best, task), judge.reference
    sides = [match(reference.truths, p.detections * reference.draws, task.decode.num_classes)
             for p in (judge.original, best.predictions)]  # fmt: skip
    points = [operating_point(sides[0], judge.threshold), operating_point(sides[1], judge.threshold),
              operating_point(sides[1], own)]  # fmt: skip
    why = refit.why if refit is not None else None
    if refit is None:
        why = "as the recipe says" if own != judge.threshold else "not refitted"
    return {
        "original": judge.threshold,
        "compressed": own,
        "images": refit.images if refit is not None else None,
        "why": why,
        "recall": [p[0] for p in points],
        "precision": [p[1] for p in points],
    }


def _recall_sentence(operating: dict[str, Any] | None) -> list[str]:
    """Said when recall falls by more than RECALL_FELL behind whatever mAP does."""
    if operating is None:
        return []
    before, without, after = operating["recall"]
    if before is None or after is None or before - after <= RECALL_FELL:
        return []
    told = f"at a score of {operating['original']:g}"
    if operating["compressed"] != operating["original"]:
        told += f", refitted to {operating['compressed']:g} (without that {without:.1f})"
    return [f"RECALL FELL by {before - after:.1f} points at the operating threshold: {before:.1f} -> {after:.1f},"
            f" {told}."]  # fmt: skip


def _speed_budget(
    best: Trial, ratio: float, spread: tuple[float, float] | None, resolution: float, quiet: bool
) -> dict[str, Any]:
    notes = []
    if resolution <= ratio < 1:
        notes.append("below 1 by no more than what this measurement can tell apart")
    if not quiet:
        notes.append("measured while the machine was busy: not a figure to quote")
    return {
        "name": f"not slower than the original on {best.target}",
        "metric": "latency ratio",
        "limit": resolution,
        "measured": ratio,
        "interval": None if spread is None else list(spread),
        "unit": "x",
        "direction": "at least",
        "verdict": "holds" if ratio >= resolution else "broken",
        "note": "; ".join(notes) or None,
    }


def _summary(
    model: Model,
    best: Trial,
    judge: Judge,
    interval: Interval | None,
    ratio: float | None,
    elsewhere: Mapping[str, float],
    searches: list[Search],
    size_ratio: float,
    budgets: list[dict[str, Any]],
    operating: dict[str, Any] | None,
    quiet: bool,
) -> list[str]:
    assert best.judgement is not None
    broken = [b["name"] for b in budgets if b["verdict"] == "broken"]
    unknown = [b["name"] for b in budgets if b["verdict"] == "not measured"]
    verdict = f"BROKEN: {', '.join(broken)}" if broken else "all budgets hold"
    if unknown:
        verdict = (f"{verdict}; " if broken else "") + f"NOT MEASURED: {', '.join(unknown)}"
    lines = [f"{best.variant}, for {best.target}: {verdict}."]
    for search in searches:
        for trial in search.trials:
            if trial.variant == "int8" and trial.ratio is not None and trial.ratio < 1 and trial is not best:
                told = f"int8 is {1 / trial.ratio:.2f}x slower than float on {search.target}"
                if trial.judgement is not None:
                    told += f" and would lose {trial.judgement.drop:.1f} points"
                lines.append(f"{told}, so the network is computed in float there.")
    if judge.raw:
        lines.append(f"Worst output: {best.judgement.value:.1f} dB signal to quantization noise.")
    elif interval is not None:
        guess = "" if judge.reference.kind == "labels" else "Estimated without labels: "
        lines.append(
            f"{guess}{judge.metric} {judge.original_value:.2f} -> {best.judgement.value:.2f}: drop {interval.drop:+.2f}"
            f" points, 95 % interval {interval.low:+.2f} to {interval.high:+.2f}, on {len(judge.samples)} images."
        )
    lines += _training_sentence(best)
    lines += _recall_sentence(operating)
    lines.append(f"{model.size:,} -> {len(best.deployed):,} bytes: {size_ratio:.2f}x smaller.")
    if ratio is None:
        lines.append(
            f"Integers alone, with 32-bit multipliers and shifts: {TARGETS[best.target].file} is what a device without"
            " floating point computes. It was run here only to measure its accuracy; its speed here says nothing."
        )
        return lines
    speeds = [f"{ratio:.2f}x the speed of the original on {best.target}"]
    speeds += [f"{times:.2f}x on {target}" for target, times in elsewhere.items()]
    restless = "" if quiet else " The machine was never quiet: these are no figures to quote."
    lines.append(f"{', '.join(speeds)}.{restless}")
    return lines


def _training_sentence(best: Trial) -> list[str]:
    """What training did for what is shipped."""
    record, before = best.training, best.before
    if record is None:
        return []
    if record.best_step == 0:
        return [f"Training ({record.steps} steps) found nothing better than what it began with, so that is kept."]
    told = f"Trained on {record.images} images, {record.steps} steps in {minutes_text(record.seconds)}"
    if before is not None and before.distance is not None and best.distance is not None:
        told += f": held-out distance {before.distance:.4f} -> {best.distance:.4f}"
    if before is not None and before.judgement is not None and best.judgement is not None:
        told += f"; without training the drop was {before.judgement.drop:+.2f}"
    return [f"{told}."]


# Accuracy


def _detail(accuracy: Accuracy, task: Task) -> dict[str, Any]:
    detail = accuracy.detail
    if isinstance(detail, DetectionScores):
        names = task.names

        def named(table: dict[int, float | None]) -> dict[str, float | None]:
            return {names[c] if c < len(names) else str(c): v for c, v in table.items()}

        return {
            "map": detail.map, "ap50": detail.ap50, "ap75": detail.ap75, "small": detail.small,
            "medium": detail.medium, "large": detail.large, "recall": detail.recall, "precision": detail.precision,
            "threshold": detail.score_threshold, "per_class": named(detail.per_class),
            "recall_per_class": named(detail.recall_per_class),
        }  # fmt: skip
    assert detail is not None
    return {"top1": detail.top1, "top5": detail.top5}


def _accuracy(judge: Judge, best: Trial, interval: Interval | None, task: Task) -> dict[str, Any] | None:
    if judge.raw:
        return None
    assert best.predictions is not None
    before = _detail(score(judge.original, judge.reference, task), task)
    own = replace(task, decode=replace(task.decode, score_threshold=threshold_of(best, task)))
    after = _detail(score(best.predictions, judge.reference, own), task)
    counts: dict[str, int] = {}
    for truth in judge.reference.truths:
        for c in truth.classes[~truth.ignore]:
            name = task.names[int(c)] if int(c) < len(task.names) else str(int(c))
            counts[name] = counts.get(name, 0) + 1
    key = "map" if task.is_detector else "top1"
    return {
        "metric": judge.metric,
        "reference": judge.reference.kind,
        "original": before,
        "compressed": after,
        "drop": (before[key] or 0.0) - (after[key] or 0.0),
        "interval": None if interval is None else [interval.low, interval.high],
        "boxes_per_class": counts or None,
        "agreement": agreement(judge.original, best.predictions, task, threshold_of(best, task)),
    }


# Search


def _candidates(searches: list[Search], best: Trial) -> list[dict[str, Any]]:
    rows = []
    for search in searches:
        for trial in search.trials:
            rows.append(
                {
                    "name": f"{trial.name} on {search.target}",
                    "variant": trial.variant,
                    "distance": trial.distance,
                    "drop": None if trial.judgement is None else trial.judgement.drop,
                    "bytes": len(trial.deployed),
                    "ratio": trial.ratio,
                    "seconds": trial.seconds,
                    "chosen": trial is best,
                    "why": trial.why or None,
                }
            )
    return rows


def pareto(searches: list[Search], best: Trial) -> list[dict[str, Any]] | None:
    """The allocations of mixed precision, smallest first on each target; None where none were made."""
    rows = [
        {
            "name": f"{point.trial.name} on {search.target}",
            "variant": point.trial.variant,
            "bytes": point.bytes,
            "predicted": point.predicted,
            "measured": point.measured,
            "drop": None if point.trial.judgement is None else point.trial.judgement.drop,
            "chosen": point.trial is best,
            "recipe": f"recipes/{point.file}",
        }
        for search in searches
        for point in search.points
    ]
    return rows or None


def _sensitivity(searches: list[Search], best: Trial) -> list[dict[str, Any]] | None:
    search = next((s for s in searches if s.target == best.target), None)
    if search is None or not search.sensitivity:
        return None
    named: set[str] = set()
    for step in best.recipe.steps:
        values = asdict(step)
        for field in ("keep_float", "wide", "float_weights", "exact_activations"):
            named.update(values.get(field, ()))
    order = sorted(search.sensitivity, key=lambda s: -s.merit(len(search.sensitivity)))
    rank = {s.layer: k for k, s in enumerate(order, 1)}
    return [
        {
            "layer": s.layer,
            "metric": search.sensitivity_metric,
            "value": s.value,
            "cost_rank": rank[s.layer],
            "kept_float": s.layer in named,
        }
        for s in search.sensitivity
    ]


# Pictures


def _pictures(judge: Judge, candidate: Predictions, task: Task, threshold: float) -> list[Picture]:
    """Test images on which the two models differ most, and some on which they differ little."""
    if judge.raw:
        return []
    samples = judge.samples
    if task.is_detector:
        changes = np.array(
            [_change(a, b, task, threshold) for a, b in zip(judge.original.detections, candidate.detections)]
        )
        seen = np.array([(d.scores >= task.decode.score_threshold).sum() for d in judge.original.detections])
        order = np.argsort(-changes, kind="stable")
        worst = [int(i) for i in order[: PICTURES // 2]]
        calm = [int(i) for i in order[::-1] if seen[i] >= 2 and int(i) not in worst][: PICTURES - len(worst)]
    else:
        assert judge.original.scores is not None and candidate.scores is not None
        shift = np.abs(judge.original.scores - candidate.scores).sum(1)
        order = np.argsort(-shift, kind="stable")
        worst = [int(i) for i in order[: PICTURES // 2]]
        calm = [int(i) for i in order[len(order) // 2 :] if int(i) not in worst][: PICTURES - len(worst)]
    found = []
    for index in (*worst, *calm):
        note = "among the images that changed most" if index in worst else "a typical image"
        a: Any
        b: Any
        if task.is_detector:
            a, b = judge.original.detections[index], candidate.detections[index]
        else:
            a, b = judge.original.scores[index], candidate.scores[index]  # type: ignore[index]
        found.append(
            Picture(samples[index].name, samples[index].image(), a, b, task.names, note, judge.threshold, threshold)
        )
    return found


def _change(a: Detections, b: Detections, task: Task, threshold: float) -> float:
    """How much two results for one image differ: scores of what only one of them shows, and shifts of the rest."""
    a, b = a.keep(a.scores >= task.decode.score_threshold), b.keep(b.scores >= threshold)
    pairs = match_pairs(a, b)
    left = set(range(len(a))) - {p[0] for p in pairs}
    right = set(range(len(b))) - {p[1] for p in pairs}
    lost = sum(float(a.scores[i]) for i in left) + sum(float(b.scores[j]) for j in right)
    return lost + sum(abs(float(a.scores[i] - b.scores[j])) + 1 - iou for i, j, iou in pairs)
