"""Codes in front of an activation may cut off what the activation flattens anyway; that is no stale encoding.

With p the value in front of an activation f, and y = f(p) with codes of its own: p's range a..b may be too narrow for
what is measured, as long as the codes of y stay the same,

    |code_y(f(measured)) - code_y(f(clamp(measured, a, b)))| <= CODES      at both ends of what is measured
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from roadworthy.errors import UnsupportedError
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model
from roadworthy.model.qdq import from_qdq
from roadworthy.model.units import units
from roadworthy.run.arithmetic import Function, exact, function_of_unit, pre_activation

CODES = 1
Harmless = Callable[[str, float, float], bool]


def harmless_cuts(model: Model) -> Harmless:
    """A function (value name, least, most measured) -> whether its codes cut off nothing that the result shows.

    model: as `load` gives it, Q/DQ nodes still in the graph.
    """
    found: dict[str, tuple[Function, Encoding, Encoding]] = {}
    try:
        whole = from_qdq(model)
    except UnsupportedError:
        return lambda name, least, most: False
    for unit in units(whole.ir):
        try:
            before, function = str(pre_activation(unit).name), function_of_unit(unit)
        except UnsupportedError:
            continue
        p, y = whole.encodings.get(before), whole.encodings.get(str(unit.output.name))
        if function is not None and p is not None and y is not None and p.axis is None and y.axis is None:
            found[before] = function, p, y

    def harmless(name: str, least: float, most: float) -> bool:
        if name not in found:
            return False
        function, p, y = found[name]
        ends = np.array([least, most])
        codes = [y.quantize(exact(function, x)).astype(int) for x in (ends, np.clip(ends, *p.range))]
        return bool(np.abs(codes[0] - codes[1]).max() <= CODES)

    return harmless
