"""`Checkpoints`: a training in one file, so that it can be killed at any moment and goes on to the same result.

    file = b"RWT1", SHA-256 of the rest (32 bytes), then what torch.save makes of tensors and plain values

A file appears whole or not at all: it is written beside its place, flushed to the disk, and renamed. Beside the state
it holds facts: what the training is of (student, teachers, images, schedule). One of another training is refused by
the fact that differs. Reading executes no code (`weights_only`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from roadworthy.errors import InputError

MAGIC = b"RWT1"
_HEAD = len(MAGIC) + 32


class Checkpoints:
    """Where a training keeps itself.

    path: the file; its folder is made.   resume: go on from the file where there is one, else begin anew (what the
    file held is overwritten by the first save).   every_seconds: longest time between two saves; 0 saves each step.
    facts: what the caller knows of the training (hashes of teacher and data, settings), by names that people read.
    """

    def __init__(
        self,
        path: str | Path,
        resume: bool = False,
        every_seconds: float = 30.0,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.resume, self.every_seconds = Path(path), resume, every_seconds
        self.facts = dict(facts or {})
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        return time.monotonic() - self._saved >= self.every_seconds

    def save(self, facts: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Write both. Raises InputError where the file cannot be written; the one before it is then still there."""
        buffer = io.BytesIO()
        buffer.write(bytes(_HEAD))
        torch.save({"facts": _plain({**self.facts, **facts}), "state": dict(state)}, buffer)
        view = buffer.getbuffer()
        view[:_HEAD] = MAGIC + hashlib.sha256(view[_HEAD:]).digest()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, view)
        except OSError as error:
            raise InputError(f"the checkpoint {self.path} cannot be written ({error.strerror}); make room or give"
                             " another folder") from error  # fmt: skip
        self._saved = time.monotonic()

    def load(self, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        """The saved state; None where nothing is to be resumed.

        Raises InputError for a file that is damaged or of another training.
        """
        if not self.resume or not self.path.is_file():
            return None
        saved = read(self.path)
        if difference := _difference(saved["facts"], _plain({**self.facts, **facts})):
            raise InputError(
                f"the checkpoint {self.path} is of another training ({difference}); start without --resume, or with"
                " what it was made of"
            )
        self._saved = time.monotonic()
        return saved["state"]

    def drop(self) -> None:
        """Take the file away: the training is finished and its result is kept elsewhere."""
        for path in (self.path, _part(self.path)):
            with contextlib.suppress(OSError):
                path.unlink()


def read(path: Path) -> dict[str, Any]:
    """Facts and state of a file. Raises InputError for one that is no checkpoint, or damaged."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"the checkpoint {path} cannot be read ({error.strerror}); check the path") from error
    damaged = f"the checkpoint {path} is damaged or no checkpoint; start the training again without --resume"
    body = memoryview(data)[_HEAD:]
    if data[: len(MAGIC)] != MAGIC or hashlib.sha256(body).digest() != data[len(MAGIC) : _HEAD]:
        raise InputError(
            f"the checkpoint {path} is damaged or no checkpoint; start the training again without --resume"
        )
    try:
        return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # something that would run code
        raise InputError(damaged) from error


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """A file that is there as a whole, on the disk, or not at all; for one writer at a time."""
    part = _part(path)  # always the same: what a killed process left is written over
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _plain(facts: Mapping[str, Any]) -> dict[str, str]:
    return {name: repr(value) for name, value in facts.items()}


_LONGEST = 40


def _difference(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """The first fact that differs, in words; "" where all are the same."""
    for name in sorted({*there, *here}):
        old, new = there.get(name), here.get(name)
        if old != new:
            if max(len(old or ""), len(new or "")) > _LONGEST:  # a hash says nothing to anybody
                return f"not the same {name}"
            return f"{name} was {old or 'not set'} and is now {new or 'not set'}"
    return ""
