"""Graph rewriting: one file per rule, applied in the order of RULES."""

from __future__ import annotations

from collections.abc import Callable

from roadworthy.model import graph as g
from roadworthy.model.model import Model
from roadworthy.optimize.batchnorm import fold_batchnorm
from roadworthy.optimize.pad import fold_pad

RULES: dict[str, Callable[[g.IrModel], list[str]]] = {
    "pad": fold_pad,
    "batchnorm": fold_batchnorm,
}
"""name -> rule; a rule edits the graph it is given and returns one line per rewrite or refusal."""


def fold(model: Model) -> Model:
    """Apply every rule once; the outputs are the same up to float rounding."""
    ir = g.clone(model.ir)
    lines: list[str] = []
    for rule in RULES.values():
        lines += rule(ir)
    ir = g.drop_dead(ir)
    g.infer_shapes(ir)
    return model.with_ir(ir, f"fold ({len(lines)} notes)") if lines else model
