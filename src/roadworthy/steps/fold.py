"""Fold: what the graph can do without, taken out of it."""

from __future__ import annotations

from dataclasses import dataclass

from roadworthy.data.samples import Samples
from roadworthy.model.model import Model
from roadworthy.optimize import fold
from roadworthy.steps.settings import Checked


@dataclass(frozen=True)
class Fold(Checked):
    """Rewrite the graph without changing what it computes: Pad and batch norm into convolutions."""

    def __call__(self, model: Model, samples: Samples) -> Model:
        return fold(model)
