"""Random encodings for the values of a float model: ranges from running it, narrowed or widened at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from random_graphs import Choose
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, QuantSpec, encoding_of_range, scales_of_ranges
from roadworthy.model.model import Model
from roadworthy.model.units import Unit, units
from roadworthy.run import arithmetic as ar
from roadworthy.run.reference import ReferenceRunner


def feeds(model: Model, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """An input for a model: normal numbers, a quarter of them exactly between two codes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=model.input_shape).astype(np.float32)
    encoding = model.encodings.get(model.input_name)
    if encoding is not None and encoding.axis is None:
        between = ((np.floor(x / encoding.scale) + np.float32(0.5)) * encoding.scale).astype(np.float32)
        x = np.where(rng.random(x.shape) < 0.25, between, x)
    return {model.input_name: x}


class Encoder:
    """Chooses encodings for the values of a float model."""

    def __init__(self, model: Model, choose: Choose, exact: bool) -> None:
        self.model, self.choose, self.exact = model, choose, exact
        self.units = units(model.ir)
        self.found: dict[str, Encoding] = {}
        names = [n for n, v in g.values(model.ir).items() if g.constant(v) is None]
        self.seen = ReferenceRunner(model).run(feeds(model, 1), names)

    def chance(self, percent: int) -> bool:
        return self.choose(100) < percent

    def encoded(self) -> Model:
        by_anchor = {id(u.anchor): u for u in self.units}
        inside = {id(n) for u in self.units for n in u.nodes}
        self.activation(g.inputs(self.model.ir)[0])
        for node in g.nodes(self.model.ir):
            unit = by_anchor.get(id(node))
            if unit is not None:
                self.weight(unit)
                before = ar.pre_activation(unit)
                if before is not unit.output and self.chance(40):
                    self.activation(before)
                if self.wanted(unit.output):
                    self.activation(unit.output)
            elif id(node) not in inside:
                for value in node.outputs:
                    self.result(node, value)
        return self.model.with_encodings(self.found, "random encodings")

    def wanted(self, value: g.Value) -> bool:
        """Float layers and averages do not compute to the bit, so that in an exact model their inputs have codes."""
        readers = [u.node for u in value.uses()]
        sums = ("Conv", "Gemm", "MatMul", "AveragePool", "GlobalAveragePool")
        maker = value.producer()
        if any(r.op_type in sums for r in readers) or (maker is not None and maker.op_type in sums[3:]):
            return self.exact or self.chance(85)
        if any(self.wanted(o) for r in readers if r.op_type in ar.MOVES for o in r.outputs):
            return True
        tail = not readers or any(r.op_type in ("Softmax", "Sigmoid", "Exp") for r in readers)
        return self.chance(15 if tail else 85)

    def result(self, node: g.Node, value: g.Value) -> None:
        source = self.found.get(str(node.inputs[0].name)) if node.inputs[0] is not None else None
        lone = [u.node for u in value.uses()]
        if (
            node.op_type in ("Add", "Concat")
            and len(lone) == 1
            and lone[0].op_type in ("Relu", "Clip")
            and self.chance(70)
        ):
            return
        if not g.is_read(value) or not self.wanted(value):
            return
        keeps = source is not None and (source.axis is None or node.op_type in ("MaxPool", "Resize"))
        if node.op_type in ar.MOVES and keeps and self.chance(95):
            self.found[str(value.name)] = source  # type: ignore[assignment]
        elif node.op_type == "Concat" and source is not None and source.axis is None and self.chance(50):
            self.found[str(value.name)] = source
        else:
            self.activation(value)

    def activation(self, value: g.Value) -> None:
        seen = self.seen[str(value.name)]
        factor = (0.4, 0.8, 1.0, 1.3)[self.choose(4)]
        if self.only_depthwise(value) and self.chance(70):
            lo, hi = seen.min((0, 2, 3)) * factor, seen.max((0, 2, 3)) * factor
            scale, zero = scales_of_ranges(lo, hi, QuantSpec())
            made = Encoding(np.maximum(scale, np.float32(1e-3)), zero, axis=1)
        else:
            spec = QuantSpec(signed=self.chance(10))
            made = encoding_of_range(float(seen.min()) * factor, max(float(seen.max()), 1e-2) * factor, spec)
        self.found[str(value.name)] = made

    def only_depthwise(self, value: g.Value) -> bool:
        """Whether nothing but depthwise convolutions reads the value, some perhaps behind a MaxPool or Resize."""
        readers = [u.node for u in value.uses()]
        maker = value.producer()
        if not readers or value.is_graph_output() or self.seen[str(value.name)].ndim != 4:
            return False
        if maker is not None and "Average" in maker.op_type:  # onto a scale per channel it would compute in float
            return False
        return all(
            any(r is u.anchor and ar.is_depthwise(u) for u in self.units)
            or (r.op_type in ("MaxPool", "Resize") and self.only_depthwise(r.outputs[0]))
            for r in readers
        )

    def weight(self, unit: Unit) -> None:
        if not self.exact and self.chance(15):
            return
        weight = g.constant(unit.weight)
        assert weight is not None
        axes = tuple(a for a in range(weight.ndim) if a != unit.weight_axis)
        per_tensor = self.chance(15)
        largest = np.abs(weight).max() if per_tensor else np.abs(weight).max(axes)
        scale = (largest * np.float32((0.7, 1.0)[self.choose(2)]) / np.float32(127)).astype(np.float32)
        stored = not self.exact and self.chance(15)
        axis = None if per_tensor else unit.weight_axis
        self.found[str(unit.weight.name)] = Encoding(scale, np.zeros(scale.shape), 8, True, axis, stored)
