"""Smooth: outliers of activations, moved into the weights that read them."""

from __future__ import annotations

from dataclasses import dataclass

from roadworthy.data.samples import Samples
from roadworthy.errors import InputError
from roadworthy.model.model import Model
from roadworthy.quantize.smooth import smooth
from roadworthy.steps.equalize import measure_of
from roadworthy.steps.settings import Checked, between


@dataclass(frozen=True)
class Smooth(Checked):
    """Divide loud channels and multiply the weights that read them, without changing what the network computes.

    alpha: the share of a channel's loudness that migrates into the weights.   depthwise: the same for channels that
    only depthwise layers read, whose weights have a scale for each channel anyway.   tolerance, sums: as of Equalize.
    Raises InputError for a model that is quantized already, and where there are no images.
    """

    alpha: float = between(0.5, 0.0, 1.0)
    depthwise: float = between(1.0, 0.0, 1.0)
    tolerance: float = between(0.0, 0.0, 1.0)
    sums: bool = False

    def __call__(self, model: Model, samples: Samples) -> Model:
        measure = measure_of(model, samples)
        if measure is None:
            raise InputError("Smooth measures activations and has no images; hand in a folder that holds some")
        return smooth(model, measure, self.alpha, self.depthwise, self.tolerance, self.sums)
