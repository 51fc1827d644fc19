"""Factors written into weights: the makers' rows divided, the readers' columns multiplied, biases divided along.

    w'[o,i] = w[o,i] * s[in(i)] / s[out(o)]        b'[o] = b[o] / s[out(o)]

and how far a factor may go (`limits`), from what was measured:

- Clip(0, 6) commutes with a factor where the bound is not reached: a channel that was measured up to h < 6 / MARGIN
  may take any s >= MARGIN h / 6, one that comes closer to the bound takes none.
  A bound of 0 or below is met by all that matters, and takes none (quantize/ties.py).
- No channel becomes louder than the loudest one of its tensor was; a scale per tensor would pay for it.
- A smooth activation f takes s only as long as the error, max |s f(p / s) - f(p)| over the measured range of p, stays
  below a share of the step that 8 bits would leave this channel alone. (By the tensor's step, quiet channels beside a
  loud one drown: YOLOX-Nano's distance doubled.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.model import Model
from roadworthy.model.units import Unit, units
from roadworthy.quantize.curve import Curve
from roadworthy.quantize.place import before_activation
from roadworthy.quantize.statistics import Statistics
from roadworthy.quantize.ties import Layer, Ties, as_rows, bias_of, ties

MARGIN = 1.25
MOST = 256.0
"""Largest factor, and the inverse of the smallest."""
_ACROSS = 65
_TRIED = 2.0 ** (np.arange(1, 17) / 4)
Factors = NDArray[np.float64]
Measure = Callable[[Mapping[str, int]], Mapping[str, Statistics]]
"""Value name -> axis of its channels; gives statistics with the extremes and histogram of every channel."""


def walk(model: Model, measured: bool, tolerance: float = 0.0, sums: bool = True) -> Ties:
    """The ties of a float model.   measured: whether ranges will be known, without which Clips take no factor.
    sums: whether the layers of a sum take one common factor, or none.

    Raises InputError for a model with encodings: they would no longer fit.
    """
    if model.encodings:
        raise InputError(
            "the model is quantized already, and its scales would not fit other weights; put Equalize and Smooth in"
            " front of Quantize"
        )
    return ties(model.ir, curved=measured and tolerance > 0, caps=measured, sums=sums)


def wanted(found: Ties) -> dict[str, int]:
    """The values whose channels have to be measured for `limits`, and the axes of their channels."""
    free = found.free
    names = {name: axis for name, axis, ids in found.read if free[ids].any()}
    names.update({name: 1 for name, ids, _ in found.caps if free[ids].any()})
    names.update({str(before_activation(u).name): 1 for u, ids in found.curved if free[ids].any()})
    return names


def peaks(found: Ties, measured: Mapping[str, Statistics]) -> tuple[Factors, Factors]:
    """(groups,) the largest absolute value of each group's channels where layers read them, and the least ratio of
    the loudest channel beside them to them; 0 and inf for groups that were not measured."""
    loud = np.zeros(found.count)
    beside = np.full(found.count, np.inf)
    for name, _, ids in found.read:
        if (size := _loudness(measured, name, len(ids))) is not None and size.max() > 0:
            np.maximum.at(loud, ids, size)
            with np.errstate(divide="ignore"):
                np.minimum.at(beside, ids, size.max() / size)
    return loud, beside


def _loudness(measured: Mapping[str, Statistics], name: str, count: int) -> NDArray[np.float64] | None:
    channels = measured[name].channels if name in measured else None
    if channels is None or len(channels.lo) != count:
        return None
    return np.maximum(np.abs(channels.lo), np.abs(channels.hi))


def limits(model: Model, found: Ties, measured: Mapping[str, Statistics], tolerance: float) -> tuple[Factors, Factors]:
    """(groups,) least and largest factor; both 1 where none may be taken."""
    low, high = np.full(found.count, 1 / MOST), np.full(found.count, MOST)
    _, beside = peaks(found, measured)
    low = np.maximum(low, np.where(np.isfinite(beside), 1 / beside, 0.0))
    for name, ids, bound in found.caps:
        channels = measured[name].channels if name in measured else None
        reach = np.full(len(ids), np.inf) if channels is None else MARGIN * np.maximum(channels.hi, 0.0) / bound
        np.maximum.at(low, ids, np.where(reach < 1, reach, 1.0))
        np.minimum.at(high, ids, np.where(reach < 1, MOST, 1.0))
    for unit, ids in found.curved:
        least, largest = _bend(model, unit, measured, tolerance) or (np.ones(len(ids)), np.ones(len(ids)))
        np.maximum.at(low, ids, least)
        np.minimum.at(high, ids, largest)
    fixed = ~found.free
    low[fixed] = high[fixed] = 1.0
    return np.minimum(low, 1.0), np.maximum(high, 1.0)


def _bend(
    model: Model, unit: Unit, measured: Mapping[str, Statistics], tolerance: float
) -> tuple[Factors, Factors] | None:
    """(C,) least and largest factor that a smooth activation stands; None where it was not measured."""
    before = before_activation(unit)
    stats = measured.get(str(before.name))
    channels = None if stats is None else stats.channels
    if channels is None:
        return None
    curve = Curve(model.ir, unit, before)
    p = channels.lo[:, None] + (channels.hi - channels.lo)[:, None] * np.linspace(0, 1, _ACROSS)  # C, points
    y = curve(p)
    most = tolerance * (np.maximum(y.max(1), 0.0) - np.minimum(y.min(1), 0.0)) / 255
    bounds = []
    for factors in (1 / _TRIED, _TRIED):
        best, stands = np.ones(len(p)), np.ones(len(p), bool)
        for s in factors:
            stands &= np.abs(s * curve(p / s) - y).max(1) <= most
            best[stands] = s
        bounds.append(best)
    return bounds[0], bounds[1]


def magnitudes(layer: Layer) -> NDArray[np.float64]:
    """(O, I of a group) the largest absolute weight between two channels."""
    weight = g.constant(layer.unit.weight)
    assert weight is not None
    return np.abs(as_rows(layer.unit, weight)).max(2).astype(np.float64)


def rescale(model: Model, found: Ties, factors: Factors, step: str) -> Model:
    """The model with the factors written into its weights; the same function up to rounding.   factors: (groups,)."""
    ir = g.clone(model.ir)
    for unit, layer in zip(units(ir), found.layers):
        out, into = factors[layer.outs], factors[layer.ins]
        if (out == 1).all() and (into == 1).all():
            continue
        weight = g.constant(unit.weight)
        assert weight is not None
        made = weight.astype(np.float64)
        # No as_rows: it may copy. What it turns (a grouped ConvTranspose) takes no factor, and was passed over above.
        rows = np.moveaxis(made, unit.weight_axis, 0)
        extra = (1,) * (rows.ndim - 2)
        rows *= into.reshape(*into.shape, *extra) / out.reshape(-1, 1, *extra)
        g.set_constant(unit.weight, made.astype(np.float32))
        node, index, bias = bias_of(unit)
        if bias is not None and not (out == 1).all():
            axis_shape = bias.shape if bias.size == len(out) else (len(out),)
            new = (np.broadcast_to(bias.reshape(-1), (len(out),)) / out).reshape(axis_shape).astype(np.float32)
            value = node.inputs[index]
            if value is not None and value.is_initializer() and len(list(value.uses())) == 1:
                g.set_constant(value, new)
            else:
                node.replace_input_with(index, g.add_constant(ir, f"{unit.name}.scaled_bias", new))
    return model.with_ir(ir, step)
