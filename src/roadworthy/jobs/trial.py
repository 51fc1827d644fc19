"""What a search is made of: a candidate, what is known of its layers, and where it tells what it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from roadworthy.check.accuracy import Predictions
from roadworthy.check.judge import Judgement
from roadworthy.model.model import Model
from roadworthy.recipe import Recipe
from roadworthy.run.targets import TARGETS
from roadworthy.steps.training import Record

Advance = Callable[[int], None]


class Ui:
    """Where a job tells what it does; this one is silent."""

    @contextmanager
    def stage(self, text: str, total: int | None = None) -> Iterator[Advance]:
        """A piece of work; the function it gives takes the number of finished parts."""
        yield lambda done: None

    def note(self, text: str) -> None:
        """One line worth knowing."""


@dataclass(eq=False)
class Trial:
    """One candidate: how it was made and what came of it.

    distance: to the original's outputs, mean over calibration images that were held out (check/judge.distance).
    seconds: what it took to make and to judge.   training: what came of it, where its recipe trains.
    before: the candidate that was trained.   start: what the recipe was applied to, where that is not the original.
    """

    name: str
    variant: str
    target: str
    recipe: Recipe
    data: bytes
    model: Model
    predictions: Predictions | None = None
    judgement: Judgement | None = None
    ratio: float | None = None
    distance: float | None = None
    seconds: float = 0.0
    why: str = ""
    training: Record | None = None
    before: Trial | None = None
    start: Model | None = None

    @cached_property
    def deployed(self) -> bytes:
        """What is shipped: the ONNX file itself, or what the target makes of it."""
        return TARGETS[self.target].deploy(self.data)


@dataclass
class Sensitivity:
    """Damage of one layer alone.   value: mean task distance.   gain: share of all multiplications (or bytes)."""

    layer: str
    value: float
    gain: float

    def merit(self, layers: int) -> float:
        """Damage avoided per cost of keeping the layer in float: its share of the work, and a quarter of an average
        layer's share for the conversions around it."""
        return self.value / (self.gain + 0.25 / layers)
