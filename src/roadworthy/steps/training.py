"""Where trainings are kept while they run, whom they tell how far they are, and what is known of those that ended.

A training is named by all that its result depends on: student, teacher, images, settings. So one from a folder goes on
from where it was interrupted, and one that has ended is not made again by the same process.

    with Training.kept_on(folder, progress):     a job lends its stage folder; without one nothing is kept
        model = recipe.apply(original, samples)
        record = Training.heard.pop()            what the report tells
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roadworthy.model.model import Model

Progress = Callable[[int, int, Mapping[str, float], float], None]
"""(steps done, steps, the last step's loss and its parts, with `distance` where evaluated; seconds left)"""
KEPT = 4
"""Finished trainings that are kept in memory."""


@dataclass(frozen=True, eq=False)
class Record:
    """What came of a training.

    history: for each step "step", "loss" and its parts; "distance" where it was evaluated.   distances: on the watched
    images, before and as delivered; None where none were watched.   best_step: what was delivered; 0 is what it
    began with.   averaged: whether that is the running average.   stopped: why it ended.
    images, watched, held_out: how many images each served.   settings: of the step.   peak_mb: 10^6 bytes.
    """

    steps: int
    best_step: int
    stopped: str
    seconds: float
    peak_mb: float
    history: Sequence[Mapping[str, Any]]
    distances: tuple[float, float] | None
    averaged: bool
    images: int
    watched: int
    held_out: int
    teacher: str
    settings: Mapping[str, Any] = field(default_factory=dict)


class Training:
    """See above; what is set here never changes a result."""

    folder: Path | None = None
    progress: Progress | None = None
    workers: int = 0
    heard: list[Record] = []  # noqa: RUF012 - the records of trainings since it was emptied
    _made: dict[str, tuple[Model, Record]] = {}  # noqa: RUF012 - at most KEPT entries, the most recent last

    @classmethod
    @contextmanager
    def kept_on(cls, folder: Path | None, progress: Progress | None = None, workers: int = 0) -> Iterator[None]:
        """Inside, trainings are kept in a folder and go on from what lies there.   workers: threads, 0: every core."""
        before = cls.folder, cls.progress, cls.workers
        cls.folder, cls.progress, cls.workers = folder, progress, workers
        try:
            yield
        finally:
            cls.folder, cls.progress, cls.workers = before

    @classmethod
    @contextmanager
    def told(cls, progress: Progress | None) -> Iterator[None]:
        """Inside, this one is told how far a training is."""
        before, cls.progress = cls.progress, progress
        try:
            yield
        finally:
            cls.progress = before

    @classmethod
    def file(cls, name: str) -> Path | None:
        """Where the training of this name is kept."""
        return None if cls.folder is None else cls.folder / f"training-{name[:16]}.rwt"

    @classmethod
    def known(cls, name: str) -> Model | None:
        """The result of a training that this process has made; its record is heard again."""
        if name not in cls._made:
            return None
        model, record = cls._made[name] = cls._made.pop(name)
        cls.heard.append(record)
        return model

    @classmethod
    def remember(cls, name: str, model: Model, record: Record) -> Model:
        cls._made[name] = model, record
        while len(cls._made) > KEPT:
            del cls._made[next(iter(cls._made))]
        cls.heard.append(record)
        return model

    @classmethod
    def forget(cls) -> None:
        """Let go of everything that is kept in memory."""
        cls._made.clear()
        cls.heard.clear()
