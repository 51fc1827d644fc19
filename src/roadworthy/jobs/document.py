"""The report of a finished job as one dict; `check/report_schema.py` says what stands in it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from roadworthy import __version__
from roadworthy.check.bench import BenchResult
from roadworthy.data.dataset import Dataset
from roadworthy.jobs.calibrate import Chosen
from roadworthy.jobs.evidence import Evidence
from roadworthy.jobs.replay import made_with
from roadworthy.jobs.settings import Settings
from roadworthy.jobs.trial import Trial
from roadworthy.model.model import Model
from roadworthy.recipe import Recipe
from roadworthy.run.targets import TARGETS


def document(
    model: Model,
    dataset: Dataset,
    best: Trial,
    evidence: Evidence,
    speed: BenchResult,
    settings: Settings,
    notes: list[str],
    replay: tuple[Recipe, dict[str, str]] | None,
    clock: list[dict[str, Any]],
    seconds: float,
    command: str | None,
    images: Chosen | None,
    more_made_with: Mapping[str, str],
) -> dict[str, Any]:
    task = best.model.task or model.task  # what is shipped, with its refitted threshold
    assert task is not None
    made = {**made_with(model, dataset, best.target), **more_made_with}
    warnings = list(evidence.warnings)
    if replay is None and settings.target == "auto":
        warnings += [
            f"not tried on {name}: {target.missing}" for name, target in TARGETS.items() if not target.available()
        ]
    if replay is not None:
        for name, value in replay[1].items():
            if name != "target" and value != made.get(name):
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
            "calibration_images": None if images is None else min(best.recipe.images, len(dataset.calibration)),
            "chosen": None if images is None else images.recipe.by,
            "covered": None if images is None else images.covered.share,
            "coverage": None if images is None else str(images.covered),
            "test_images": len(dataset.test),
            "note": dataset.note,
        },
        "budgets": evidence.budgets,
        "accuracy": evidence.accuracy,
        "operating": evidence.operating,
        "speed": evidence.speed,
        "size": evidence.size,
        "candidates": evidence.candidates,
        "training": evidence.training,
        "sensitivity": evidence.sensitivity,
        "layers": evidence.layers,
        "steps": clock,
        "environment": speed.environment,
        "recipe": best.recipe.to_yaml(made),
        "pareto": evidence.pareto,
        "seed": settings.seed,
    }
