"""Round: which way every weight is rounded, learned from a few images."""

from __future__ import annotations

from dataclasses import dataclass

from roadworthy.data.samples import Samples, prefetch
from roadworthy.errors import InputError
from roadworthy.model.model import Model
from roadworthy.model.units import units
from roadworthy.quantize.learned import round_weights
from roadworthy.quantize.rounding import METHODS
from roadworthy.steps.settings import Checked, between, choice, task_of


@dataclass(frozen=True)
class Round(Checked):
    """Round every encoded weight so that its layer's output changes least, and let biases take back the mean shift.

    It stands behind Quantize or StoreWeights; a CorrectBias behind it finds nothing left to do.
    method: a key of METHODS ("descent", "sequential", "adaround", "nearest").   images: how many of the calibration
    images are looked at, at most.   refit: fit the scales of the weights to their codes.
    Raises InputError for a model that nothing has quantized.
    """

    method: str = choice("descent", METHODS)
    images: int = between(64, 1, 100_000)
    refit: bool = True

    def __call__(self, model: Model, samples: Samples) -> Model:
        preprocess = task_of(model, "learning how to round").preprocess
        if "quantize" not in model.history and not any(str(u.weight.name) in model.encodings for u in units(model.ir)):
            raise InputError(
                "no weight of the model is rounded yet; put Round behind Quantize or StoreWeights in the recipe"
            )
        chosen = samples.take(min(self.images, len(samples)), 0) if len(samples) else samples
        return round_weights(
            model, lambda: prefetch(chosen, lambda s: preprocess(s.image())[0]), self.method, self.refit
        )
