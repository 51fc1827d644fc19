"""Which constants of a graph are trained, and of what kind.

    weights   of the layers: what is multiplied with what flows (Conv, ConvTranspose, Gemm, MatMul)
    biases    of the layers, slopes of PRelu, and scale and shift of a normalization: one number per channel or fewer;
              weight decay is not for them

A graph that `from_torch` made says itself what else the module trains (a position embedding, a scale per layer: these
count as biases), and which normalizations have nothing to train.

All other constants are facts of the graph (the 6 of a ReLU6, the grid of a detector's cells, running statistics).
"""

from __future__ import annotations

from typing import Literal

from roadworthy.model import graph as g
from roadworthy.model.model import Model
from roadworthy.model.state import notes, trained
from roadworthy.model.units import units

Kind = Literal["weights", "biases"]

NORMALIZATIONS = frozenset({"BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization",
                            "RMSNormalization"})  # fmt: skip
"""Operators whose inputs 1 and, if any, 2 are scale and shift."""


def kinds(model: Model) -> dict[str, Kind]:
    """Initializer name -> kind, for every constant that is trained. One that is a weight anywhere is a weight."""
    found: dict[str, Kind] = {}
    named = trained(model) if notes(model.ir) else None

    def add(value: g.Value | None, kind: Kind) -> None:
        array = g.constant(value)
        if value is not None and array is not None and array.dtype.kind == "f":
            found.setdefault(str(value.name), kind)

    layers = units(model.ir)
    for unit in layers:
        add(unit.weight, "weights")
    for unit in layers:
        add(unit.bias, "biases")
        if unit.bias_add is not None:
            for value in unit.bias_add.inputs:
                add(value, "biases")
    for node in g.nodes(model.ir):
        if node.op_type == "PRelu":
            add(node.inputs[1], "biases")
        elif node.op_type in NORMALIZATIONS:
            for value in node.inputs[1:3]:
                if named is None or (value is not None and value.name in named):
                    add(value, "biases")
    values = g.values(model.ir)
    for name in sorted(named or ()):
        add(values.get(name), "biases")
    return found
