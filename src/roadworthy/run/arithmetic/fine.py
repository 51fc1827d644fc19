"""A table over ten bits in front of an activation, for results with one scale.

    q = T[clamp(rint(acc * m) + z, 0, 1023)]        T[i] = quantize_y(f(s (i - z)))        m[c] = scale[c] / s

The step s and the zero z follow from f and the encoding of y alone: entries 0..1023 cover the values in front of the
activation between which the code of y changes, and 0. Outside of them it is that of the first or the last entry.

Rounding p to steps of s moves f(p) by at most max|f'| s / 2, where rounding y moves it by s_y / 2. Both errors are
close to uniform, so that the first adds at most (s max|f'| / s_y)^2 of the variance of the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from roadworthy.model.encoding import Encoding
from roadworthy.run.arithmetic.functions import Function, exact
from roadworthy.run.arithmetic.polynomial import polynomial_range
from roadworthy.run.arithmetic.tables import quantize_exact

ENTRIES = 1024
FINE = 1.25
"""The most variance that the steps of the table may add where f is steepest, as a share of that of rounding y."""

_TAIL = 16.0  # beyond, every activation is monotone
_GRID = 8192
_HALVINGS = 60


@dataclass(frozen=True, eq=False)
class FineTable:
    """step: s.   zero: z, 0..1023.   table: T, 1024 codes."""

    step: float
    zero: int
    table: NDArray[np.uint8]


@lru_cache(512)
def fine_table(function: Function, target: Encoding) -> FineTable | None:
    """The table of an activation whose result has one scale per tensor.

    None where ten bits are too coarse (more than FINE), or where the result has one code only, or two and a step at 0.
    Raises UnsupportedError for a function that is no activation of a layer.
    """
    polynomial_range(function)
    bounds = changing_range(function, target)
    if bounds is None:
        return None
    lo, hi = min(bounds[0], 0.0), max(bounds[1], 0.0)
    one = float(target.scale)
    if hi - lo < 1e-3 * one:
        return None
    step = (hi - lo) / (ENTRIES - 2)  # one step to spare: zero lies on a step
    zero = int(np.ceil(-lo / step))
    values = exact(function, step * (np.arange(ENTRIES) - zero))
    held = np.clip(values / one, target.qmin - int(target.zero_point) - 0.5, target.qmax - int(target.zero_point) + 0.5)
    if np.abs(np.diff(held)).max() ** 2 > FINE:
        return None
    table = quantize_exact(values, target).astype(np.uint8)
    table.setflags(write=False)
    return FineTable(step, zero, table)


def changing_range(function: Function, target: Encoding) -> tuple[float, float] | None:
    """The least interval outside which the code of f(v) is the same as at infinity; None where that is everywhere."""

    def code(v: NDArray[np.float64]) -> NDArray[np.int64]:
        return quantize_exact(exact(function, v), target)

    left, right = code(np.array([-1e30, 1e30]))

    low = reach(-1.0, lambda v: bool(code(v)[0] == left))
    grid = np.linspace(low, reach(1.0, lambda v: bool(code(v)[0] == right)), _GRID)
    codes = code(grid)
    below, above = np.flatnonzero(codes != left), np.flatnonzero(codes != right)
    if below.size == 0 or above.size == 0:
        return None

    # Both borders at once, and no further than float64 goes: training makes the tables anew at each step.
    inside, outside = grid[[below[0], above[-1]]], grid[[below[0] - 1, above[-1] + 1]]
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if ((middle == inside) | (middle == outside)).all():
            break
        ended = code(middle) == (left, right)
        inside, outside = np.where(ended, inside, middle), np.where(ended, middle, outside)
    return float(outside[0]), float(outside[1])


def reach(sign: float, ended: Callable[[NDArray[np.float64]], bool]) -> float:
    """How far to the left (sign -1) or right `changing_range` looks: to where the codes have their last value."""
    far = _TAIL
    while far < 1e29 and not ended(np.array([sign * far])):
        far *= 2
    return sign * far
