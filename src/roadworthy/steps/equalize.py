"""Equalize: unequal channels of neighbouring layers, evened out before quantization."""

from __future__ import annotations

from dataclasses import dataclass

from roadworthy.data.samples import Samples
from roadworthy.model.model import Model
from roadworthy.quantize.equalize import equalize
from roadworthy.quantize.rescale import Measure
from roadworthy.steps.calibration import Calibration
from roadworthy.steps.settings import Checked, between, task_of


@dataclass(frozen=True)
class Equalize(Checked):
    """Even out the ranges of channels between layers, without changing what the network computes.

    tolerance: how much of an 8-bit step a smooth activation (SiLU, HardSwish, GELU, Mish) may be off, 0 to 1; with 0
    layers with such an activation are left alone.   absorb: move high biases of ReLU layers into the layers behind,
    which is exact for values no lower than those measured: other images may come out differently.
    sums: let the layers of a residual sum take one common factor; without, they are left alone.
    Raises InputError for a model that is quantized already.
    """

    tolerance: float = between(0.0, 0.0, 1.0)
    absorb: bool = False
    sums: bool = False

    def __call__(self, model: Model, samples: Samples) -> Model:
        return equalize(model, measure_of(model, samples), self.tolerance, self.absorb, self.sums)


def measure_of(model: Model, samples: Samples) -> Measure | None:
    """What measures values of a model on these images; None where there are no images."""
    if not len(samples):
        return None
    task_of(model, "measuring channels")
    return lambda axes: Calibration.channels_of(model, samples, axes)
