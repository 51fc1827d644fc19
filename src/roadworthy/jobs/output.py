"""Where a job writes: which files its folder may hold, what is refused before any work, and all files at once."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from roadworthy.check.accuracy import tensor_of
from roadworthy.check.report import write_html, write_json
from roadworthy.data.samples import Samples
from roadworthy.errors import InputError
from roadworthy.jobs.evidence import Evidence
from roadworthy.jobs.trial import Trial
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import from_qdq
from roadworthy.model.task import Task
from roadworthy.run.golden import Golden, golden_vectors
from roadworthy.run.targets import TARGETS

FILES = ("model.onnx", "report.html", "report.json", "recipe.yaml")
"""What every job writes; beside it the file that the target runs, where that is another than the ONNX file."""
GOLDEN_FILES = ("golden.npz", "golden.json")
"""Beside a plan in fixed point: codes and accumulators of GOLDEN_IMAGES calibration images, to check a device by."""
GOLDEN_IMAGES = 1
RECIPES = "recipes"
"""The folder of recipes for the other allocations of the report's table, where there is one."""


def check_output(folder: Path, force: bool) -> None:
    """Refuse an output folder that exists, or that cannot be made, before any work is done. Nothing is left there."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"the output {folder} is a file; give a folder with --out")
    if folder.is_dir() and any(folder.iterdir()):
        own = {*FILES, *GOLDEN_FILES, RECIPES, *(target.file for target in TARGETS.values())}
        strangers = sorted(p.name for p in folder.iterdir() if p.name not in own)
        if strangers:
            raise InputError(f"the output folder {folder} holds other files ({strangers[0]}); give another with --out")
        if not force:
            raise InputError(
                f"the output folder {folder} exists; add --force to replace it, or give another with --out"
            )
    parent = next(p for p in folder.absolute().parents if p.exists())
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=".roadworthy-"):
            pass
        if folder.is_dir() and not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise InputError(
            f"the output folder {folder} cannot be written: {error.strerror}; give another with --out"
        ) from error


def stage_folder(folder: Path) -> Path:
    """Where the finished stages of an unfinished job are kept: beside its output, hidden."""
    return folder.absolute().parent / f".{folder.name}.stages"


def golden_of(best: Trial, task: Task, model: Model, calibration: Samples) -> Golden:
    """The golden vectors of what is shipped, on the first images that it was calibrated with."""
    chosen = best.recipe.choose(calibration, model)
    tensors = [tensor_of(s, task)[0] for s in chosen[:GOLDEN_IMAGES]]
    return golden_vectors(from_qdq(load(best.data)), tensors)


def write_all(
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
