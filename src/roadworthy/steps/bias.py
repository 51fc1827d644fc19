"""CorrectBias: the mean shift of rounding, taken back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from roadworthy.data.samples import Samples
from roadworthy.errors import InputError
from roadworthy.model.model import Model
from roadworthy.quantize.bias import correct_bias
from roadworthy.quantize.bias_measured import IMAGES, correct_by_measurement
from roadworthy.steps.calibration import Calibration
from roadworthy.steps.settings import Checked, choice

METHODS = ("analytic", "empirical")


@dataclass(frozen=True)
class CorrectBias(Checked):
    """Let biases make up for the mean shift that rounding caused.

    method: "analytic" takes back what rounding the weights does, worked out from the measured means of the inputs;
    "empirical" goes on from there and brings the mean of each layer's result, measured in the quantized network, back
    to the original's, where that helps on images it was not fitted to (quantize/bias_measured.py; a few images, but
    seconds to minutes). The original is the float graph of the model that is handed in: put this step right behind
    Quantize, and only once. Raises InputError for an unknown method and, for "empirical", for fewer than 4 images.
    """

    method: str = choice("analytic", METHODS)

    def __call__(self, model: Model, samples: Samples) -> Model:
        if model.task is None and not len(samples):
            return model
        corrected = correct_bias(model, Calibration.of(model, samples, ()))
        if self.method == "analytic":
            return corrected
        if len(samples) < 4 or model.task is None:
            raise InputError(f"CorrectBias with method empirical needs 4 images or more, not {len(samples)}")
        preprocess = model.task.preprocess
        few = samples.take(min(IMAGES, len(samples)), 0)
        tensors = [np.ascontiguousarray(preprocess(s.image())[0], np.float32) for s in few]
        return correct_by_measurement(model, corrected, tensors)
