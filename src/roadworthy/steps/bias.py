"""CorrectBias: the mean shift of rounding, taken back."""

from __future__ import annotations

from dataclasses import dataclass

from roadworthy.data.samples import Samples
from roadworthy.model.model import Model
from roadworthy.quantize.bias import correct_bias
from roadworthy.steps.calibration import Calibration


@dataclass(frozen=True)
class CorrectBias:
    """Let biases make up for the mean shift that rounding the weights caused."""

    def __call__(self, model: Model, samples: Samples) -> Model:
        if model.task is None and not len(samples):
            return model
        return correct_bias(model, Calibration.of(model, samples, ()))
