"""Finished stages of a long job, kept beside the output folder so that an interrupted job can go on from there.

A stage is a name and a dict of arrays. The folder belongs to one job, named by a key (hashes of model, data and
settings); a job with another key does not read it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roadworthy.check.accuracy import Predictions, Reference
from roadworthy.detect.detections import Detections, Truth
from roadworthy.errors import InputError, RoadworthyError, TrainingError

Arrays = dict[str, NDArray]


class Stages:
    """A folder of finished stages.   resume: read what an earlier run of the same job left; else start empty.

    As a context it keeps the stages when the work inside is interrupted or fails, and takes away what it made when the
    work is refused (RoadworthyError): the same input would be refused again. A training that left the finite numbers
    leaves its last good checkpoint there.
    """

    def __init__(self, folder: Path, key: str, resume: bool) -> None:
        self.folder = folder
        self.found = 0
        self._made: list[Path] = []
        marker = folder / "job.json"
        if resume and marker.is_file():
            try:
                old = json.loads(marker.read_text()).get("key")
            except (OSError, ValueError) as error:
                raise InputError(f"{marker} cannot be read ({error}); run again without --resume") from error
            if old != key:
                raise InputError(
                    f"the stages in {folder} are of a job with another model, data or settings;"
                    " run again with the same ones, or without --resume, which begins anew"
                )
            return
        shutil.rmtree(folder, ignore_errors=True)
        self._made = [p for p in (folder, *folder.parents) if not p.exists()]
        folder.mkdir(parents=True)
        marker.write_text(json.dumps({"key": key}))

    def __enter__(self) -> Stages:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        refused = kind is not None and issubclass(kind, RoadworthyError) and not issubclass(kind, TrainingError)
        if refused and self._made:
            self.drop()
            for parent in self._made[1:]:
                with contextlib.suppress(OSError):  # somebody else has put something there
                    parent.rmdir()

    def get(self, name: str) -> Arrays | None:
        """The arrays of a finished stage, or None."""
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as stored:
            self.found += 1
            return {k: stored[k] for k in stored.files}

    def put(self, name: str, arrays: Arrays) -> None:
        """Keep a finished stage; it appears whole or not at all."""
        handle, temporary = tempfile.mkstemp(dir=self.folder, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        Path(temporary).replace(self.folder / f"{name}.npz")

    def remove(self, name: str) -> None:
        """Let a stage go that nobody needs any more."""
        (self.folder / f"{name}.npz").unlink(missing_ok=True)

    def drop(self) -> None:
        """The job is done: remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def pack_predictions(p: Predictions) -> Arrays:
    """Predictions as arrays; `unpack_predictions` is the way back."""
    arrays: Arrays = {}
    if p.detections:
        arrays["lengths"] = np.array([len(d) for d in p.detections], np.int64)
        arrays["boxes"] = np.concatenate([d.boxes_xyxy for d in p.detections])
        arrays["scores"] = np.concatenate([d.scores for d in p.detections])
        arrays["classes"] = np.concatenate([d.classes for d in p.detections])
    if p.scores is not None:
        arrays["class_scores"] = p.scores
    for k, outputs in enumerate(p.raw):
        arrays.update({f"raw.{k}.{name}": value for name, value in outputs.items()})
    return arrays


def unpack_predictions(arrays: Arrays) -> Predictions:
    detections: list[Detections] = []
    if "lengths" in arrays:
        ends = np.cumsum(arrays["lengths"])
        for start, end in zip(ends - arrays["lengths"], ends):
            part = slice(int(start), int(end))
            detections.append(Detections(arrays["boxes"][part], arrays["scores"][part], arrays["classes"][part]))
    raw: dict[int, dict[str, NDArray]] = {}
    for name, value in arrays.items():
        if name.startswith("raw."):
            _, k, output = name.split(".", 2)
            raw.setdefault(int(k), {})[output] = value
    return Predictions(tuple(detections), arrays.get("class_scores"), tuple(raw[k] for k in sorted(raw)))


def pack_reference(reference: Reference) -> Arrays:
    """What the original said in place of labels, as arrays; `unpack_reference` is the way back."""
    arrays: Arrays = {"kind": np.array(reference.kind), "draws": np.array(reference.draws)}
    if reference.truths:
        arrays["lengths"] = np.array([len(t) for t in reference.truths], np.int64)
        for name in ("boxes_xyxy", "classes", "areas", "ignore"):
            arrays[f"truth.{name}"] = np.concatenate([getattr(t, name) for t in reference.truths])
    for name in ("labels", "probabilities"):
        if getattr(reference, name) is not None:
            arrays[name] = getattr(reference, name)
    return arrays


def unpack_reference(arrays: Arrays) -> Reference:
    truths: tuple[Truth, ...] = ()
    if "lengths" in arrays:
        at = np.cumsum(arrays["lengths"])[:-1]
        columns = (np.split(arrays[f"truth.{name}"], at) for name in ("boxes_xyxy", "classes", "areas", "ignore"))
        truths = tuple(Truth(*parts) for parts in zip(*columns))
    return Reference(
        str(arrays["kind"]), truths, int(arrays["draws"]), labels=arrays.get("labels"),
        probabilities=arrays.get("probabilities"),
    )  # fmt: skip
