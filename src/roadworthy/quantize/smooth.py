"""Smoothing: outliers of activations migrate into the weights that read them (Xiao et al., "SmoothQuant", ICML 2023).

    s = max|x|^alpha / max|w|^(1 - alpha)       x' = x / s       w' = w s

for every group of channels (quantize/ties.py), max|x| over the images and max|w| over the readers' columns. Nothing
divides at run time: the layers that make x take 1/s into their rows, so only where all makers can. The geometric mean
of the factors of one layer is taken out: it would change no ratio.

Where only depthwise layers read a channel, its weights have a scale of their own, and the whole outlier migrates
(alpha = 1): one scale per tensor then serves its channels like one scale for each.
"""

from __future__ import annotations

import numpy as np

from roadworthy.model.model import Model
from roadworthy.quantize.equalize import greatest
from roadworthy.quantize.place import is_depthwise
from roadworthy.quantize.rescale import Factors, Measure, limits, magnitudes, peaks, rescale, walk, wanted
from roadworthy.quantize.ties import Ties, summary

QUIET = 1 / 256
"""Least loudness of a channel, as a share of the loudest beside it: what hardly moved may move on other images."""


def smooth(
    model: Model, measure: Measure, alpha: float, depthwise: float = 1.0, tolerance: float = 0.0, sums: bool = False
) -> Model:
    """The model with smoothed activations; it computes the same.

    alpha: the share of a channel's loudness that migrates, 0 to 1.   depthwise: the same where only depthwise layers
    read.   tolerance, sums: as of `equalize`.
    Raises InputError for a model that is quantized already.
    """
    found = walk(model, True, tolerance, sums)
    names = wanted(found)
    measured = measure(names) if names else {}
    low, high = limits(model, found, measured, tolerance)
    loud, beside = peaks(found, measured)
    factors = migration(found, loud, beside, alpha, depthwise)
    factors = np.clip(factors, low, high)
    return rescale(model, found, factors, f"smooth: {summary(found, factors)}")


def migration(found: Ties, loud: Factors, beside: Factors, alpha: float, depthwise: float) -> Factors:
    """(groups,) the factors, 1 where nothing was measured."""
    columns = np.zeros(found.count)
    dense = np.zeros(found.count, bool)
    for layer in found.layers:
        greatest(columns, layer.ins, magnitudes(layer))
        if not is_depthwise(layer.unit):
            dense[layer.ins] = True
    usable = found.free & (loud > 0) & (columns > 0)
    share = np.where(dense, alpha, depthwise)
    x = np.where(usable, loud, 1.0) * np.maximum(1.0, np.where(usable, beside, 1.0) * QUIET)
    wish = share * np.log(x) - (1 - share) * np.log(np.where(usable, columns, 1.0))
    factors = np.ones(found.count)
    done = np.zeros(found.count, bool)
    for layer in found.layers:
        groups = np.unique(layer.outs)
        groups = groups[usable[groups] & ~done[groups]]
        if len(groups):
            factors[groups] = np.exp(wish[groups] - wish[groups].mean())
            done[groups] = True
    return factors
