"""Weights as they were before they were rounded, taken from the network that a quantized one was made from.

A file holds codes, so that every weight read from one lies on its grid: training begins with all of them in the middle
of their steps, where the derivative of rounding says least and a step of an optimizer changes nothing. Where the
original's weight has the same code, it takes the place of the code's value. What the network computes stays the same
to the last bit; what it can learn does not.
"""

from __future__ import annotations

import numpy as np

from roadworthy.model import graph as g
from roadworthy.model.encoding import narrow_codes
from roadworthy.model.model import Model
from roadworthy.model.units import units


def unrounded(model: Model, original: Model) -> tuple[Model, float]:
    """The model with the original's weights wherever they have the codes of its own; and their share, 0..1.

    original: in the form that the model was made from (folded). A weight is looked for by its name; one of another
    shape, or moved to other scales before it was rounded, stays what it is where its codes differ.
    """
    ir = g.clone(model.ir)
    there = {str(u.weight.name): g.constant(u.weight) for u in units(original.ir)}
    values, taken, every = g.values(ir), 0, 0
    for name in dict.fromkeys(str(u.weight.name) for u in units(model.ir)):
        encoding, known, own = model.encodings.get(name), there.get(name), g.constant(values[name])
        if encoding is None or own is None:
            continue
        every += own.size
        if known is None or known.shape != own.shape:
            continue
        same = narrow_codes(known, encoding) == narrow_codes(own, encoding)
        taken += int(same.sum())
        g.set_constant(values[name], np.where(same, known, own).astype(own.dtype))
    if not taken:
        return model, 0.0
    return model.with_ir(ir, "weights as they were before rounding"), taken / every
