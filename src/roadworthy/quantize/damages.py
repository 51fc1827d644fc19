"""What every layer's weights would cost at every width, from a measurement at one width.

    damage[l, b] = D[l] * E[l, b] / E[l, m]        E[l, b] = |w_b - w|^2

D[l] is measured with layer l alone rounded to m = MEASURED bits, a width so narrow that its noise stands out of what a
few images can tell apart; a noise of small energy does damage in proportion to it (the second-order term of every loss
that has its minimum at the original's own outputs). Three things make such damages add up and order layers rightly:

- They are energies, such as the mean of the *squared* task distance. Noises of different layers are independent, so
  their squares add up, not they themselves.
- The mean shift of rounding is taken out, as bias correction will take it out: a layer that looks worst by its shift
  may be harmless once that is corrected.
- E is worked out on the weights, for every grid and clip as they will be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from roadworthy.model import graph as g
from roadworthy.model.encoding import narrow_codes
from roadworthy.model.model import Model
from roadworthy.model.units import Unit, units
from roadworthy.quantize.bias import mean_shift
from roadworthy.quantize.sensitivity import SENSITIVITIES, Damage, Distance, Tensors
from roadworthy.quantize.statistics import Statistics
from roadworthy.quantize.weights import Wish, weight_encoding

MEASURED = 3
"""The width at which damages are measured."""


def rounded(unit: Unit, bits: int, wish: Wish, observer: str) -> NDArray[np.float32]:
    """The weight of a layer as it would be at that width, on the grid and with the scales that are wished for."""
    weight = g.constant(unit.weight)
    assert weight is not None
    axis = unit.weight_axis if unit.per_channel else None
    encoding = weight_encoding(weight, wish.spec(bits, axis, observer))
    return encoding.dequantize(narrow_codes(weight, encoding))


def without_shift(unit: Unit, made: NDArray[np.float32], mean: NDArray | None) -> NDArray[np.float32]:
    """A rounded weight whose output has the mean that the original's has, as if its bias were corrected.

    w'' = w' - shift m / |m|^2, so that w'' m = w m: the least change of the weights that does it.
    mean: (input channels,) means m of the layer's input; None leaves the weight as it is.
    """
    weight = g.constant(unit.weight)
    assert weight is not None
    if mean is None or unit.anchor.op_type not in ("Conv", "Gemm", "MatMul"):
        return made
    if unit.anchor.op_type == "Conv":
        groups, taps = g.attribute(unit.anchor, "group", 1), int(np.prod(weight.shape[2:]))
        rows = np.repeat(mean.reshape(groups, -1), len(weight) // groups, axis=0)  # output channels, inputs of a group
        shift = mean_shift(unit, made.astype(np.float64) - weight, mean)
        power = (rows**2).sum(1) * taps
        step = -(shift / np.where(power > 0, power, 1.0))[:, None] * rows
        return (made + step.reshape(*step.shape, *[1] * (weight.ndim - 2))).astype(np.float32)
    if weight.ndim != 2:
        return made
    matrix = made.astype(np.float64) - weight if unit.weight_axis else (made.astype(np.float64) - weight).T
    power = float((mean**2).sum())
    change = -np.outer(mean, mean @ matrix) / (power or 1.0)  # inputs, outputs
    return (made + (change if unit.weight_axis else change.T)).astype(np.float32)


def damages(
    model: Model,
    tensors: Tensors,
    energy: Distance,
    statistics: Mapping[str, Statistics],
    widths: Sequence[int],
    wish: Wish,
    observer: str = "mse",
    measure: str = "distance",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Damage:
    """(layer, bits) -> expected damage of rounding that layer's weights alone, additive over layers.

    tensors: makes the input tensors of a few images.   energy: of the difference between two outputs.
    statistics: channel means of the layers' inputs.   measure: a key of SENSITIVITIES.   wish: grid and scales.
    """
    by_name = {u.name: u for u in units(model.ir)}

    def mean_of(unit: Unit) -> NDArray | None:
        known = statistics.get(str(unit.input.name))
        return None if known is None or unit.anchor.op_type == "ConvTranspose" else known.channel_mean

    found = SENSITIVITIES[measure](
        model,
        tensors,
        (MEASURED,),
        seed,
        rounded=lambda unit, bits: without_shift(unit, rounded(unit, bits, wish, observer), mean_of(unit)),
        distance=energy,
        progress=progress,
    )
    return {
        (name, bits): found[name, MEASURED] * share
        for name, unit in by_name.items()
        for bits, share in zip(widths, _shares(unit, widths, wish, observer))
    }


def _shares(unit: Unit, widths: Sequence[int], wish: Wish, observer: str) -> list[float]:
    """Energy of the rounding error at each width, relative to that at MEASURED."""
    weight = g.constant(unit.weight)
    assert weight is not None

    def lost(bits: int) -> float:
        error = rounded(unit, bits, wish, observer).astype(np.float64) - weight
        return float((error**2).sum())

    base = lost(MEASURED)
    return [lost(bits) / base if base > 0 else 0.0 for bits in widths]
