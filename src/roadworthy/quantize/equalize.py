"""Equalization: neighbouring layers share the burden of unequal channels (Nagel et al., "Data-Free Quantization
Through Weight Equalization and Bias Correction", ICCV 2019).

For a group of channels that some layers make and others read, all with one factor s (quantize/ties.py):

    r1 = max |w| over the makers' rows      r2 = max |w| over the readers' columns      s = r1 / sqrt(r1 r2)

so that both ranges become sqrt(r1 r2), which is where their precisions have the largest product. Groups are visited in
graph order, again and again, until no factor changes by more than 1 %: in conv - depthwise - conv each range depends
on both sides.

High biases are absorbed behind it: a channel that ReLU leaves at c or above everywhere gives c to its readers,

    b1' = b1 - c        b2'[o] = b2[o] + c sum w2[o]        c = max(0, mean - 3 std, no more than measured)

where every reader has a bias and every pixel of its output sees all of c: no padding (which would have to be c, not 0),
no ConvTranspose. This is exact for values no lower than those measured; an image on which a channel goes below c is
computed differently, so it is not done unless asked for.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from roadworthy.model import graph as g
from roadworthy.model.model import Model
from roadworthy.model.units import units
from roadworthy.quantize.bias import add_to_bias
from roadworthy.quantize.place import before_activation
from roadworthy.quantize.rescale import Factors, Measure, limits, magnitudes, rescale, walk, wanted
from roadworthy.quantize.statistics import Statistics
from roadworthy.quantize.ties import Site, Ties, as_rows, sites, summary, ties

ROUNDS = 50
SETTLED = 0.01


def plan(model: Model, sums: bool = False) -> list[Site]:
    """Which layers can share factors with their readers, and why others cannot; from topology alone."""
    return sites(walk(model, True, sums=sums))


def equalize(
    model: Model, measure: Measure | None, tolerance: float = 0.0, absorb: bool = False, sums: bool = False
) -> Model:
    """The model with equalized weights; it computes the same (absorb: for values no lower than those measured).

    measure: takes the statistics of values; without it layers with a Clip are left alone, and biases stay.
    absorb: move high biases into the readers.
    tolerance: how much of an 8-bit step a smooth activation may be off; 0 leaves layers with one alone.
    sums: give the layers of a residual sum one common factor, too. It fits none of them well: in ResNet-56 twenty
    layers of a stage have to share it.
    Raises InputError for a model that is quantized already.
    """
    found = walk(model, measure is not None, tolerance, sums)
    high = ties(model.ir, shift=True) if absorb and measure is not None else None
    names = wanted(found)
    if high is not None:
        names.update({str(before_activation(y.unit).name): 1 for y in high.layers if high.free[y.outs].any()})
    measured = measure(names) if measure is not None and names else {}
    low, top = limits(model, found, measured, tolerance)
    factors = balance(found, low, top)
    made = rescale(model, found, factors, f"equalize: {summary(found, factors)}")
    return made if high is None else absorb_bias(made, high, found, factors, measured)


def balance(found: Ties, low: Factors, high: Factors) -> Factors:
    """(groups,) the factors that make ranges equal, within their limits."""
    factors = np.ones(found.count)
    weights = [magnitudes(layer) for layer in found.layers]
    movable = found.free & (low < high)
    made_by = np.full(found.count, -1)
    for k, layer in reversed(list(enumerate(found.layers))):
        made_by[layer.outs] = k  # the first maker: a group is visited once a round
    visits = []
    for k in range(len(found.layers)):
        groups = movable & (made_by == k)
        makers = [j for j, y in enumerate(found.layers) if groups[y.outs].any()]
        readers = [j for j, y in enumerate(found.layers) if groups[y.ins].any()]
        if makers and readers:
            visits.append((np.flatnonzero(groups), makers, readers))
    for _ in range(ROUNDS):
        change = 0.0
        for groups, makers, readers in visits:
            rows, columns = np.zeros(found.count), np.zeros(found.count)
            for j in makers:
                np.maximum.at(rows, found.layers[j].outs, _scaled(found, weights, factors, j).max(1))
            for j in readers:
                greatest(columns, found.layers[j].ins, _scaled(found, weights, factors, j))
            r1, r2 = rows[groups], columns[groups]
            usable = (r1 > 0) & (r2 > 0)
            step = np.sqrt(np.where(usable, r1, 1.0) / np.where(usable, r2, 1.0))
            new = np.clip(factors[groups] * step, low[groups], high[groups])
            change = max(change, float(np.abs(np.log(new / factors[groups])).max()))
            factors[groups] = new
        if change < SETTLED:
            break
    return factors


def _scaled(found: Ties, weights: list[NDArray[np.float64]], factors: Factors, j: int) -> NDArray[np.float64]:
    layer = found.layers[j]
    return weights[j] * factors[layer.ins] / factors[layer.outs][:, None]


def greatest(into: NDArray[np.float64], groups: NDArray[np.int64], values: NDArray[np.float64]) -> None:
    """into[group] = the largest value of the group, if that is larger."""
    if (groups == groups[:1]).all():  # a dense layer: all rows read the same channels
        np.maximum.at(into, groups[0], values.max(0))
    else:
        np.maximum.at(into, groups.reshape(-1), values.reshape(-1))


def absorb_bias(model: Model, high: Ties, found: Ties, factors: Factors, measured: Mapping[str, Statistics]) -> Model:
    """High biases moved into the readers.   high: the ties for shifts.   found, factors: what the model was scaled by
    after `measured` was taken."""
    amounts = np.zeros(high.count)
    read = np.zeros(high.count, bool)
    for layer in high.layers:
        read[layer.ins] = True
    for layer, scaled in zip(high.layers, found.layers):
        stats = measured.get(str(before_activation(layer.unit).name))
        if stats is None or stats.channels is None or len(stats.channels.lo) != len(layer.outs):
            continue
        able = high.free[layer.outs] & read[layer.outs]
        if able.any():
            amounts[layer.outs] = np.where(able, floor(stats) / factors[scaled.outs], 0.0)
    if not amounts.any():
        return model
    ir = g.clone(model.ir)
    for unit, layer in zip(units(ir), high.layers):
        weight = g.constant(unit.weight)
        assert weight is not None
        given = (as_rows(unit, weight).astype(np.float64).sum(2) * amounts[layer.ins]).sum(1)
        shift = given - amounts[layer.outs]
        if shift.any():
            add_to_bias(ir, unit, shift)
    return model.with_ir(ir, f"absorb high biases: {int((amounts > 0).sum())} channels")


def floor(stats: Statistics) -> NDArray[np.float64]:
    """(C,) max(0, mean - 3 std) of every channel, no more than the least value seen."""
    channels = stats.channels
    assert channels is not None
    width = (channels.hist_hi - channels.hist_lo)[:, None] / channels.hist.shape[1]
    centres = channels.hist_lo[:, None] + width * (np.arange(channels.hist.shape[1]) + 0.5)
    total = np.maximum(channels.hist.sum(1), 1)
    mean = (centres * channels.hist).sum(1) / total
    std = np.sqrt((np.square(centres - mean[:, None]) * channels.hist).sum(1) / total)
    return np.maximum(np.minimum(mean - 3 * std, channels.lo), 0.0)
