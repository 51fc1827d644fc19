"""From a placement and statistics to encodings, and the same for weights that are only stored as integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, QuantSpec
from roadworthy.model.model import Model
from roadworthy.model.units import Unit, units
from roadworthy.quantize.observers import encode, encode_channels
from roadworthy.quantize.place import Placement
from roadworthy.quantize.statistics import Statistics
from roadworthy.quantize.weights import weight_encoding, widen_for_bias
from roadworthy.run.runner import Target

MIN_LEVELS = 16
MIN_STORED = 64
"""Weights with fewer values than this stay as they are: codes and scales would save nothing."""


def activation_encodings(
    placement: Placement, statistics: Mapping[str, Statistics], target: Target, observer: str
) -> dict[str, Encoding]:
    """Encodings of all values that the placement wants quantized.

    Results keep their extremes, whatever the observer: the largest scores and boxes are few, and they are what the
    network is asked for. A value that only depthwise convolutions read has one scale per channel.
    """
    spec = QuantSpec(symmetric=target.symmetric_activations, observer=observer)
    whole = replace(spec, observer="minmax")
    # Where "mse" is asked for, `encodings_by_readers` decides; a search for every channel here would cost seconds.
    each = replace(spec, axis=1, observer="minmax" if observer == "mse" else observer)
    kept = {placement.source[name] for name in placement.results}
    own: dict[str, Encoding] = {}
    for name in dict.fromkeys(placement.source.values()):
        wish, make = (each, encode_channels) if name in placement.channels else (spec, encode)
        own[name] = statistics[name].remember(whole if name in kept else wish, make)
    return {name: own[origin] for name, origin in placement.source.items()}


def incompatible_merges(placement: Placement, statistics: Mapping[str, Statistics]) -> list[str]:
    """Concats whose narrowest input would keep fewer than MIN_LEVELS codes on the scale of the widest."""
    apart = []
    for name, sources in placement.merges.items():
        spans = [max(statistics[placement.source[s]].hi, 0.0) - min(statistics[placement.source[s]].lo, 0.0)
                 for s in sources if s in placement.source]  # fmt: skip
        if spans and min(spans) > 0 and 256 * min(spans) / max(spans) < MIN_LEVELS:
            apart.append(name)
    return apart


def quantize_units(
    model: Model,
    placement: Placement,
    activations: Mapping[str, Encoding],
    weight_observer: str,
    store: Mapping[str, int],
) -> Model:
    """A model whose int8 units have encodings for activations and weights; the other units store their weights.

    store: unit name -> bits (8 or 16) of the stored weights of units outside int8; absent means left in float.
    """
    encodings: dict[str, Encoding] = dict(activations)
    for unit in units(model.ir):
        name = str(unit.weight.name)
        if unit.name in placement.int8:
            made = int8_weight(unit, weight_observer, activations[str(unit.input.name)])
        elif unit.name in store:
            stored = stored_weight(unit, store[unit.name], weight_observer)
            if stored is None:
                continue
            made = stored
        else:
            continue
        encodings[name] = _shared(encodings[name], made) if name in encodings else made
    return model.with_encodings(encodings, "quantize")


def _shared(one: Encoding, other: Encoding) -> Encoding:
    """The encoding of a weight that two layers share: the one that computes in int8 decides, and of two such the
    scales are large enough for the biases of both. Where channels lie along different axes, one scale serves all."""
    if one.storage and other.storage:
        return max(one, other, key=lambda e: e.bits)
    if one.storage or other.storage:
        return other if one.storage else one
    if one.axis == other.axis:
        return replace(one, scale=np.maximum(one.scale, other.scale))
    largest = np.float32(max(one.scale.max(), other.scale.max()))
    return Encoding(np.asarray(largest), np.zeros((), np.int64), one.bits, one.signed)


def int8_weight(unit: Unit, observer: str, source: Encoding) -> Encoding:
    """The encoding of an int8 unit's weight."""
    weight = g.constant(unit.weight)
    assert weight is not None
    spec = QuantSpec(8, True, unit.weight_axis, True, observer)
    bias = g.constant(unit.bias)
    return widen_for_bias(weight_encoding(weight, spec), bias, source.scale)


def stored_weight(unit: Unit, bits: int, observer: str) -> Encoding | None:
    """The encoding of a weight that is expanded on loading, or None where that would save nothing."""
    weight = g.constant(unit.weight)
    assert weight is not None
    if weight.size < MIN_STORED:
        return None
    axis = unit.weight_axis if unit.per_channel else None
    return replace(weight_encoding(weight, QuantSpec(bits, True, axis, True, observer)), storage=True)
