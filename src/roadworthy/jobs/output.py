"""Where a job writes: which files its folder may hold, and what is refused before any work is done."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from roadworthy.errors import InputError
from roadworthy.run.targets import TARGETS

FILES = ("model.onnx", "report.html", "report.json", "recipe.yaml")
"""What every job writes; beside it the file that the target runs, where that is another than the ONNX file."""
GOLDEN_FILES = ("golden.npz", "golden.json")
"""Beside a plan in fixed point: codes and accumulators of GOLDEN_IMAGES calibration images, to check a device by."""
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
