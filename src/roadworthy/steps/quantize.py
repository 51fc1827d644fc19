"""Quantize: int8 where the target computes in it, and stored integers elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

from roadworthy.data.samples import Samples
from roadworthy.errors import InputError
from roadworthy.model.model import Model
from roadworthy.model.units import units
from roadworthy.quantize.observers import OBSERVERS
from roadworthy.quantize.place import Placement, before_activation, place, quantized_point
from roadworthy.quantize.quantize import (
    activation_encodings,
    incompatible_merges,
    quantize_units,
    snap_to_powers_of_two,
)
from roadworthy.quantize.readers import encodings_by_readers
from roadworthy.quantize.refine import refine
from roadworthy.quantize.weights import GRIDS, Wish
from roadworthy.run.arithmetic import int8_refusal
from roadworthy.run.targets import TARGETS
from roadworthy.steps.calibration import Calibration
from roadworthy.steps.settings import (
    GRANULARITIES,
    SCALES,
    WEIGHT_OBSERVERS,
    Checked,
    between,
    choice,
    known_layers,
    one_of,
)


@dataclass(frozen=True)
class Quantize(Checked):
    """Put the layers that a target runs in int8 into int8; store the weights of the others as integers.

    target: a key of TARGETS.   observer, weight_observer: keys of OBSERVERS ("minmax", "mse" or "l3" for weights). On a
    target that is `whole`, "mse" is the error behind the layers that read a value (quantize/readers.py).
    keep_float: names of layers that compute in float.   wide: names of layers among them whose weights are stored
    with 16 bits instead of `weight_bits`.   float_weights: names of layers whose weights are not touched at all.
    weight_bits: 2..8, of every layer's weight; bits: of single layers, as (name, bits).   granularity: one weight scale
    per output "channel" or per "tensor".   grid: a key of GRIDS, where the codes of a weight may lie (model/encoding.py
    and quantize/weights.py).   scales: "power_of_two" for devices that only shift, else "free".
    exact_activations: names of layers whose activation is not a table over an 8-bit value (targets with tables).
    activation_bits: 8, or 16 where the target takes it.   wide_activations: names of values, or of layers whose
    result is meant, that have 16 bits.
    """

    target: str = choice("ort", TARGETS)
    observer: str = choice("mse", OBSERVERS)
    weight_observer: str = choice("mse", WEIGHT_OBSERVERS)
    keep_float: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    float_weights: tuple[str, ...] = ()
    weight_bits: int = between(8, 2, 8)
    bits: tuple[tuple[str, int], ...] = between((), 2, 8)
    granularity: str = choice("channel", GRANULARITIES)
    grid: str = choice("linear", GRIDS)
    scales: str = choice("free", SCALES)
    activation_bits: int = one_of(8, (8, 16))
    wide_activations: tuple[str, ...] = ()
    exact_activations: tuple[str, ...] = ()

    def __call__(self, model: Model, samples: Samples) -> Model:
        placement = self.placement(model, samples)
        made = self._encode(model, samples, placement)
        if not TARGETS[self.target].whole:
            return made
        # What the engine would refuse (a sum that could overflow, say) is known only now; it computes in float.
        while refused := {
            u.name: reason
            for u in units(made.ir)
            if u.name in placement.int8 and (reason := int8_refusal(u, made.encodings)) is not None
        }:
            keep = frozenset(placement.why_float) | frozenset(refused)
            again = replace(self, keep_float=(*self.keep_float, *sorted(keep))).placement(model, samples)
            placement = replace(again, why_float={**again.why_float, **placement.why_float, **refused})
            made = self._encode(model, samples, placement)
        return made

    def _encode(self, model: Model, samples: Samples, placement: Placement) -> Model:
        target = TARGETS[self.target]
        statistics = Calibration.of(model, samples, placement.observed, channels=placement.channels)
        wide = self._wide_values(model, placement)
        activations = activation_encodings(placement, statistics, target, self.observer, wide)
        if target.whole:
            if self.observer == "mse":
                images = Calibration.few(model, samples)
                known = Calibration.ranges(model, samples)
                activations = encodings_by_readers(model, placement, statistics, activations, images, known)
            activations = refine(model, placement, statistics, activations)
        if self.scales == "power_of_two":
            activations = snap_to_powers_of_two(activations, statistics, placement.results)
        wish = Wish(self.weight_bits, self.bits, self.granularity == "tensor", self.grid, self.scales != "free")
        stored = [n for n in placement.why_float if n not in set(self.float_weights)]
        store = {n: 16 if n in self.wide else wish.bits_of(n) for n in stored}
        return quantize_units(model, placement, activations, self.weight_observer, store, wish)

    def _wide_values(self, model: Model, placement: Placement) -> set[str]:
        """The values that get 16 bits."""
        target = TARGETS[self.target]
        if (self.wide_activations or self.activation_bits != 8) and 16 not in target.activation_bits:
            raise InputError(f"the target {target.name} has no 16-bit activations; quantize for it with 8 bits")
        if self.activation_bits == 16:
            return set(placement.source)
        results = {u.name: str(quantized_point(u, target).name) for u in units(model.ir)}
        found = {results.get(name, name) for name in self.wide_activations}
        for name in self.wide_activations:
            if results.get(name, name) not in placement.source:
                raise InputError(
                    f"`Quantize.wide_activations` names {name!r}, which is no value, and no layer whose result is one,"
                    f" that has codes on {target.name}"
                )
        return found

    def placement(self, model: Model, samples: Samples) -> Placement:
        """What runs in int8; Concats whose inputs differ too much in measured range are kept apart."""
        layers = (*self.keep_float, *self.wide, *self.float_weights, *self.exact_activations)
        known_layers(model, (*layers, *(name for name, _ in self.bits)))
        keep = frozenset(self.keep_float) | frozenset(self.float_weights) | frozenset(self.wide)
        target = TARGETS[self.target]
        first = place(model.ir, target, keep)
        if target.whole:  # what differs in range is translated from code to code
            exact = {str(before_activation(u).name) for u in units(model.ir) if u.name in set(self.exact_activations)}
            return replace(first, tables={p: y for p, y in first.tables.items() if p not in exact})
        statistics = Calibration.of(model, samples, first.observed)
        apart = incompatible_merges(first, statistics)
        return place(model.ir, target, keep, frozenset(apart)) if apart else first
