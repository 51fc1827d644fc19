"""Activations as 32 quadratic pieces of equal width, evaluated in float32.

    v = x * a     t = clamp(v + b, 0, 31)     i = int(t)     f(x) = (c2[i] * v + c1[i]) * v + c0[i]

v counts widths of a piece; a is part of what scales an accumulator.

Piece 0 is the left asymptote (t < 1, x below `lo`), piece 31 the right one (x above `hi`), 1..30 lie between. The
ranges are chosen so that a kink of the function falls on a border, and that asymptotes and pieces err about equally.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import UnsupportedError
from roadworthy.run.arithmetic.functions import F32, F, Function, exact

PIECES = 32
MIDDLE = PIECES - 2

_RANGES: dict[str, tuple[float, float]] = {
    "none": (-15, 15), "relu": (-15, 15), "leaky_relu": (-15, 15), "hard_swish": (-3, 3),
    "silu": (-10, 10), "sigmoid": (-9, 9), "tanh": (-4.5, 4.5), "gelu_tanh": (-4, 4), "gelu_erf": (-4, 4),
    "mish": (-10.5, 6), "elu": (-9, 0), "softplus": (-9, 9),
}  # fmt: skip


def polynomial_range(function: Function) -> tuple[float, float]:
    """Where the pieces between the asymptotes lie. Raises UnsupportedError for a function without asymptotes."""
    if function.name == "hard_sigmoid" and function.a > 0:
        return -function.b / function.a, (1 - function.b) / function.a
    if function.name == "clip":
        lo, hi = function.a, function.b
        if np.isfinite(lo) and np.isfinite(hi) and hi > lo:
            return lo, hi
        # One bound: a border in the middle of the range. Without any, or with both the same, any range will do.
        kink = lo if np.isfinite(lo) else hi if np.isfinite(hi) else 0.0
        return kink - 15.0, kink + 15.0
    if function.name not in _RANGES:
        raise UnsupportedError(f"the function {function.name} has no polynomial; only activations of layers have one")
    return _RANGES[function.name]


def range_below(function: Function, top: float) -> tuple[float, float]:
    """The range where results up to `top` alone matter, as all above saturate: shorter pieces are closer to the
    function. Where the function and its asymptote both exceed `top`, the right asymptote may begin."""
    lo, hi = polynomial_range(function)
    if function.name in _GROWING:
        x = np.linspace(0.0, hi, 101)[1:]
        enough = x[np.minimum(exact(function, x), x) >= top]
        hi = float(enough[0]) if enough.size else hi
    return lo, hi


def fit_polynomial(function: Function, lo: float, hi: float) -> tuple[F32, float, float]:
    """Coefficients (3, 32: c0, c1, c2; for v = x * a), a and b of the pieces of a function between lo and hi.

    Each piece goes through the function at the three Chebyshev nodes, which is within a few per cent of the least
    possible largest error of a quadratic.
    """
    a = float(F(MIDDLE / (hi - lo)))
    b = float(F(1.0 - lo * a))
    width = (hi - lo) / MIDDLE
    coefficients = np.zeros((3, PIECES))
    nodes = np.cos((2 * np.arange(3) + 1) * np.pi / 6)
    for piece in range(1, PIECES - 1):
        middle, half = lo + (piece - 0.5) * width, width / 2
        # In u = (x - middle) / half, where the nodes are well apart, then expanded.
        p0, p1, p2 = np.linalg.solve(np.vander(nodes, 3, increasing=True), exact(function, middle + half * nodes))
        p1, p2 = p1 / half, p2 / half**2
        coefficients[:, piece] = p0 - p1 * middle + p2 * middle**2, p1 - 2 * p2 * middle, p2
    coefficients[:, 0] = _left(function)
    coefficients[:, -1] = _right(function)
    coefficients[np.abs(coefficients) < 1e-12] = 0.0  # rounding of a solve; straight pieces stay straight
    coefficients /= np.array([[1.0], [a], [a * a]])
    return coefficients.astype(np.float32), a, b


def polynomial(coefficients: NDArray[Any], b: float, v: NDArray[Any]) -> F32:
    """The engine's float32 result; v of any shape."""
    v = np.asarray(v, np.float32)
    flat = v.reshape(-1)
    t = np.minimum(np.maximum(flat + F(b), F(0)), F(PIECES - 1))
    piece = t.astype(np.int32)
    c0, c1, c2 = np.asarray(coefficients, np.float32)[:, piece]
    return np.asarray((c2 * flat + c1) * flat + c0, np.float32).reshape(v.shape)


_GROWING = frozenset({"silu", "mish", "gelu_tanh", "gelu_erf", "softplus"})
_ZERO = (0.0, 0.0, 0.0)
_SAME = (0.0, 1.0, 0.0)


def _left(function: Function) -> tuple[float, float, float]:
    if function.name == "none":
        return _SAME
    if function.name == "leaky_relu":
        return 0.0, function.a, 0.0
    if function.name == "clip":
        return (function.a, 0.0, 0.0) if np.isfinite(function.a) else _SAME
    if function.name in ("tanh", "elu"):
        return (-1.0 if function.name == "tanh" else -function.a), 0.0, 0.0
    return _ZERO


def _right(function: Function) -> tuple[float, float, float]:
    if function.name in ("sigmoid", "hard_sigmoid", "tanh"):
        return 1.0, 0.0, 0.0
    if function.name == "clip" and np.isfinite(function.b):
        return function.b, 0.0, 0.0
    return _SAME
