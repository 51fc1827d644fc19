"""From a placement and statistics to encodings, and the same for weights that are only stored as integers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, QuantSpec, power_of_two_above
from roadworthy.model.model import Model
from roadworthy.model.units import Unit, units
from roadworthy.quantize.observers import encode, encode_channels
from roadworthy.quantize.place import Placement
from roadworthy.quantize.refine import expected_error
from roadworthy.quantize.statistics import Statistics
from roadworthy.quantize.weights import Wish, weight_encoding, widen_for_bias
from roadworthy.run.runner import Target

PLAIN = Wish()
MIN_LEVELS = 16
MIN_STORED = 64
"""Weights with fewer values than this stay as they are: codes and scales would save nothing."""


def activation_encodings(
    placement: Placement,
    statistics: Mapping[str, Statistics],
    target: Target,
    observer: str,
    wide: Collection[str] = (),
) -> dict[str, Encoding]:
    """Encodings of all values that the placement wants quantized.

    Results keep their extremes, whatever the observer: the largest scores and boxes are few, and they are what the
    network is asked for. A value that only depthwise convolutions read has one scale per channel.
    wide: names of values with 16 bits; they keep their extremes, too, as what cutting those would gain is nothing.
    """
    spec = QuantSpec(symmetric=target.symmetric_activations, observer=observer)
    whole = replace(spec, observer="minmax")
    # Where "mse" is asked for, `encodings_by_readers` decides; a search for every channel here would cost seconds.
    each = replace(spec, axis=1, observer="minmax" if observer == "mse" else observer)
    kept = {placement.source[name] for name in placement.results}
    wider = {placement.source[name] for name in wide}
    own: dict[str, Encoding] = {}
    for name in dict.fromkeys(placement.source.values()):
        wish, make = (each, encode_channels) if name in placement.channels else (spec, encode)
        if name in wider:
            wish = replace(wish, bits=16, observer="minmax")
        own[name] = statistics[name].remember(whole if name in kept - wider else wish, make)
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
    wish: Wish = PLAIN,
) -> Model:
    """A model whose int8 units have encodings for activations and weights; the other units store their weights.

    store: unit name -> bits (2..8, 16) of the stored weights of units outside int8; absent means left in float.
    wish: bits of the weights of int8 units, and the grid of all.
    """
    encodings: dict[str, Encoding] = dict(activations)
    for unit in units(model.ir):
        name = str(unit.weight.name)
        if unit.name in placement.int8:
            made = int8_weight(unit, weight_observer, activations[str(unit.input.name)], wish)
        elif unit.name in store:
            stored = stored_weight(unit, store[unit.name], weight_observer, wish)
            if stored is None:
                continue
            made = stored
        else:
            continue
        encodings[name] = _shared(encodings[name], made) if name in encodings else made
    return model.with_encodings(encodings, "quantize")


def _shared(one: Encoding, other: Encoding) -> Encoding:
    """The encoding of a weight that two layers share: the one that computes in int8 decides, then the one of more bits,
    and of two such the scales are large enough for the biases of both. Where channels lie along different axes, one
    scale serves all."""
    if one.storage != other.storage:
        return other if one.storage else one
    if one.index_bits != other.index_bits or one.storage:
        return max(one, other, key=lambda e: e.index_bits)
    if one.axis == other.axis and one.levels == other.levels:
        return replace(one, scale=np.maximum(one.scale, other.scale))
    largest = np.float32(max(one.scale.max(), other.scale.max()))
    return replace(one, scale=np.asarray(largest), zero_point=np.zeros((), np.int64), axis=None)


def int8_weight(unit: Unit, observer: str, source: Encoding, wish: Wish = PLAIN) -> Encoding:
    """The encoding of an int8 unit's weight."""
    weight = g.constant(unit.weight)
    assert weight is not None
    made = weight_encoding(weight, wish.spec(wish.bits_of(unit.name), unit.weight_axis, observer))
    widened = widen_for_bias(made, g.constant(unit.bias), source.scale)
    if wish.power_of_two and widened is not made:
        widened = replace(widened, scale=power_of_two_above(widened.scale))
    return widened


def stored_weight(unit: Unit, bits: int, observer: str, wish: Wish = PLAIN) -> Encoding | None:
    """The encoding of a weight that is expanded on loading, or None where that would save nothing."""
    weight = g.constant(unit.weight)
    assert weight is not None
    if weight.size < MIN_STORED:
        return None
    axis = unit.weight_axis if unit.per_channel else None
    code_bits = 16 if wish.grid == "log2" and bits > 4 else 8  # 8 bits hold all magnitudes that 4 can name
    return replace(weight_encoding(weight, wish.spec(bits, axis, observer), code_bits), storage=True)


def snap_to_powers_of_two(
    activations: Mapping[str, Encoding], statistics: Mapping[str, Statistics], exact: Collection[str] = ()
) -> dict[str, Encoding]:
    """The same encodings with scales that are powers of two, for devices that only shift.

    Each scale becomes the power above or below it, whichever has the less error on what was measured; the one above
    for values in `exact`, whose extremes count, and where nothing was measured. Values that share an encoding go on
    sharing one.
    """
    found: dict[Encoding, Encoding] = {}
    for name, encoding in activations.items():
        if encoding not in found:
            measured = None if name in exact else statistics.get(name)
            found[encoding] = _snapped(encoding, measured if measured is not None and measured.histogram else None)
    return {name: found[e] for name, e in activations.items()}


def _snapped(encoding: Encoding, stats: Statistics | None) -> Encoding:
    """The best of: the power above; the power below, with both ends cut, or only the far one."""
    above = replace(encoding, scale=power_of_two_above(encoding.scale))
    half = above.scale * np.float32(0.5)
    reached = np.where(encoding.zero_point * 2 > encoding.qmin + encoding.qmax, encoding.qmax, encoding.qmin)
    near = np.rint(reached + (encoding.zero_point - reached) * (encoding.scale / half)).astype(np.int64)
    candidates = [above, replace(encoding, scale=half)]
    candidates.append(replace(encoding, scale=half, zero_point=np.clip(near, encoding.qmin, encoding.qmax)))
    if stats is None or (encoding.axis is not None and stats.channels is None):
        return above
    if encoding.axis is None:
        return min(candidates, key=lambda e: expected_error(stats, e))
    scale, zero = encoding.scale.copy(), encoding.zero_point.copy()
    for k, one in enumerate(stats.each_channel()):
        each = [replace(e, scale=e.scale[k], zero_point=e.zero_point[k], axis=None) for e in candidates]
        best = min(each, key=lambda e: expected_error(one, e))
        scale[k], zero[k] = best.scale, best.zero_point
    return replace(encoding, scale=scale, zero_point=zero)
