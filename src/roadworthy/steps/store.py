"""StoreWeights: integers in the file, float in the arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from roadworthy.data.samples import Samples
from roadworthy.model.model import Model
from roadworthy.model.units import units
from roadworthy.quantize.place import Placement
from roadworthy.quantize.quantize import quantize_units
from roadworthy.quantize.weights import GRIDS, Wish
from roadworthy.steps.settings import GRANULARITIES, WEIGHT_OBSERVERS, Checked, between, choice, known_layers


@dataclass(frozen=True)
class StoreWeights(Checked):
    """Store weights as integers and compute in float: smaller, exactly as fast, almost exactly as accurate.

    weight_observer: "minmax", "mse" or "l3".   wide: names of layers stored with 16 bits.
    float_weights: names of layers that are not touched.   weight_bits, bits, granularity, grid: as in Quantize.
    """

    weight_observer: str = choice("mse", WEIGHT_OBSERVERS)
    wide: tuple[str, ...] = ()
    float_weights: tuple[str, ...] = ()
    weight_bits: int = between(8, 2, 8)
    bits: tuple[tuple[str, int], ...] = between((), 2, 8)
    granularity: str = choice("channel", GRANULARITIES)
    grid: str = choice("linear", GRIDS)

    def __call__(self, model: Model, samples: Samples) -> Model:
        known_layers(model, (*self.wide, *self.float_weights, *(name for name, _ in self.bits)))
        names = [u.name for u in units(model.ir) if u.name not in set(self.float_weights)]
        wish = Wish(self.weight_bits, self.bits, self.granularity == "tensor", self.grid)
        store = {n: 16 if n in self.wide else wish.bits_of(n) for n in names}
        nothing = Placement(frozenset(), {}, {})
        return quantize_units(model, nothing, {}, self.weight_observer, store, wish)
