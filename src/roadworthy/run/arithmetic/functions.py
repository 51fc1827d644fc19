"""Functions of one value: their names and codes, the true function in float64, and the engine's float32 sequence.

The sequences stand in docs/engine.md under "float32", and again in native/kernels/float_math.h: built from +, -, *,
/, min, max, rint, sqrt and exact scaling by powers of two, each rounded on its own: every machine gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import erfc, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
F = np.float32

UNARY: dict[str, int] = {
    "none": 0, "relu": 1, "clip": 2, "leaky_relu": 3, "sigmoid": 4, "silu": 5, "hard_sigmoid": 6, "hard_swish": 7,
    "tanh": 8, "exp": 9, "gelu_tanh": 10, "mish": 11, "elu": 12, "softplus": 13, "sqrt": 14, "abs": 15, "neg": 16,
    "affine": 17, "reciprocal": 18, "log": 19, "square": 20, "gelu_erf": 21,
}  # fmt: skip
BINARY: dict[str, int] = {"add": 0, "sub": 1, "mul": 2, "div": 3, "max": 4, "min": 5, "pow": 6}


@dataclass(frozen=True)
class Function:
    """A function of one value.   name: a key of UNARY.   a, b: its parameters, in the order of docs/engine.md."""

    name: str
    a: float = 0.0
    b: float = 0.0

    @property
    def code(self) -> int:
        return UNARY[self.name]

    @property
    def clamp(self) -> tuple[float, float] | None:
        """Lower and upper bound of a function that does nothing but clamp (relu, clip), else None."""
        if self.name == "relu":
            return 0.0, np.inf
        return (self.a, self.b) if self.name == "clip" else None


NONE = Function("none")


def exact(function: Function, x: NDArray[Any]) -> F64:
    """The true function in float64, for tables and fits."""
    x = np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        return np.asarray(_EXACT[function.name](x, float(F(function.a)), float(F(function.b))), np.float64)


def evaluate(function: Function, x: NDArray[Any]) -> F32:
    """The engine's float32 result, bit for bit; x of any shape."""
    x = np.asarray(x, np.float32)
    flat = x.reshape(-1)  # at least one dimension: NumPy scalars would not keep to float32
    with np.errstate(all="ignore"):
        return np.asarray(_FLOAT32[function.name](flat, F(function.a), F(function.b)), np.float32).reshape(x.shape)


def evaluate_pair(name: str, a: NDArray[Any], b: NDArray[Any]) -> F32:
    """The engine's float32 result of a key of BINARY, operands broadcast as NumPy does."""
    a, b = np.broadcast_arrays(np.asarray(a, np.float32), np.asarray(b, np.float32))
    with np.errstate(all="ignore"):
        return np.asarray(_PAIRS[name](a.reshape(-1), b.reshape(-1)), np.float32).reshape(a.shape)


def softmax(x: NDArray[Any]) -> F32:
    """Softmax over the last dimension, summed in the engine's order."""
    x = np.asarray(x, np.float32)
    with np.errstate(all="ignore"):
        e = _exp((x - x.max(-1, keepdims=True)).reshape(-1)).reshape(x.shape)
    lanes = np.pad(e, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % 16)]).reshape(*x.shape[:-1], -1, 16)
    total = np.zeros((*x.shape[:-1], 16), np.float32)
    for row in range(lanes.shape[-2]):
        total = total + lanes[..., row, :]
    for half in (8, 4, 2, 1):
        total = total[..., :half] + total[..., half : 2 * half]
    return np.asarray(e / total, np.float32)


def _horner(x: F32, coefficients: tuple[float, ...]) -> F32:
    result = np.full_like(x, F(coefficients[0]))
    for c in coefficients[1:]:
        result = result * x + F(c)
    return result


# exp on -ln(2)/2..ln(2)/2 with the least relative error (9.2e-8) among those that are 1 at 0.
_EXP = (8.289708e-3, 4.189783e-2, 1.6667648e-1, 4.999915e-1, 9.999997e-1, 1.0)
_LOG = (-7.63120800e-2, 1.28549218e-1, -1.32078856e-1, 1.41900063e-1, -1.66165233e-1, 2.00016156e-1, -2.50010610e-1,
        3.33333284e-1)  # fmt: skip
# logit(Phi(t)) / t as a polynomial in t^2, fitted for the least error of t * Phi(t) on -6..6.
_GELU = (3.61115049e-9, -2.66889685e-7, 7.93817708e-6, -1.10480069e-4, -6.62606326e-5, 7.26685673e-2, 1.59576845)
_LN2_HIGH, _LN2_LOW = F(0.693359375), F(-2.12194440e-4)


def _exp(x: F32) -> F32:
    x = np.minimum(np.maximum(x, F(-87)), F(88))
    k = np.rint(x * F(1.44269504))
    r = x - k * _LN2_HIGH
    r = r - k * _LN2_LOW
    power = ((np.nan_to_num(k).astype(np.int32) + 127) << 23).view(np.float32)
    return np.asarray(_horner(r, _EXP) * power)


def _log(x: F32) -> F32:
    x = np.minimum(np.maximum(x, F(1.17549435e-38)), F(3.40282347e38))
    bits = x.view(np.int32)
    k = (bits - 0x3F3504F3) >> 23
    f = (bits - (k << 23)).view(np.float32) - F(1)
    e = k.astype(np.float32)
    z = f * f
    y = (f * z) * _horner(f, _LOG)
    y = y - z * F(0.5)
    r = f + y
    return np.asarray((r + e * _LN2_LOW) + e * _LN2_HIGH)


def _sigmoid(x: F32) -> F32:
    return np.asarray(F(1) / (F(1) + _exp(-x)))


def _clamped(x: F32, lo: np.float32, hi: np.float32) -> F32:
    return np.asarray(np.minimum(np.maximum(x, lo), hi))


def _gelu_tanh(x: F32) -> F32:
    t = x * x
    return x * _sigmoid(x * (t * F(0.071354814) + F(1.5957691)))


def _gelu_erf(x: F32) -> F32:
    t = _clamped(x, F(-6), F(6))
    return x * _sigmoid(t * _horner(t * t, _GELU))


def _mish(x: F32) -> F32:
    e = _exp(np.minimum(x, F(20)))
    n = e * (e + F(2))
    return np.asarray(x * (n / (n + F(2))), np.float32)


def _softplus(x: F32) -> F32:
    return np.maximum(x, F(0)) + _log(F(1) + _exp(-np.abs(x)))


def _pow(x: F32, y: F32) -> F32:
    e = _exp(y * _log(np.abs(x)))
    odd = y - F(2) * np.rint(y * F(0.5)) != 0
    negative = np.where(y != np.rint(y), F(np.nan), np.where(odd, -e, e))
    return np.where(x < 0, negative, e)


_FLOAT32: dict[str, Callable[[F32, np.float32, np.float32], F32]] = {
    "none": lambda x, a, b: x,
    "relu": lambda x, a, b: np.maximum(x, F(0)),
    "clip": _clamped,
    "leaky_relu": lambda x, a, b: np.where(x > 0, x, x * a),
    "sigmoid": lambda x, a, b: _sigmoid(x),
    "silu": lambda x, a, b: x / (F(1) + _exp(-x)),
    "hard_sigmoid": lambda x, a, b: _clamped(x * a + b, F(0), F(1)),
    "hard_swish": lambda x, a, b: x * _clamped(x * F(0.16666667) + F(0.5), F(0), F(1)),
    "tanh": lambda x, a, b: F(2) * _sigmoid(F(2) * x) - F(1),
    "exp": lambda x, a, b: _exp(x),
    "gelu_tanh": lambda x, a, b: _gelu_tanh(x),
    "mish": lambda x, a, b: _mish(x),
    "elu": lambda x, a, b: np.maximum(x, F(0)) + (_exp(np.minimum(x, F(0))) - F(1)) * a,
    "softplus": lambda x, a, b: _softplus(x),
    "sqrt": lambda x, a, b: np.sqrt(x),
    "abs": lambda x, a, b: np.abs(x),
    "neg": lambda x, a, b: -x,
    "affine": lambda x, a, b: x * a + b,
    "reciprocal": lambda x, a, b: F(1) / x,
    "log": lambda x, a, b: _log(x),
    "square": lambda x, a, b: x * x,
    "gelu_erf": lambda x, a, b: _gelu_erf(x),
}

_PAIRS: dict[str, Callable[[F32, F32], F32]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum,
    "pow": _pow,
}  # fmt: skip


def _true_sigmoid(x: F64) -> F64:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def _true_softplus(x: F64) -> F64:
    return np.asarray(np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x))))


def _normal_share(x: F64) -> F64:
    """Phi(x), the share of a normal distribution below x."""
    flat = [0.5 * erfc(-v / sqrt(2.0)) for v in x.reshape(-1)]
    return np.asarray(flat, np.float64).reshape(x.shape)


_EXACT: dict[str, Callable[[F64, float, float], F64]] = {
    "none": lambda x, a, b: x,
    "relu": lambda x, a, b: np.maximum(x, 0.0),
    "clip": lambda x, a, b: np.minimum(np.maximum(x, a), b),
    "leaky_relu": lambda x, a, b: np.where(x > 0, x, a * x),
    "sigmoid": lambda x, a, b: _true_sigmoid(x),
    "silu": lambda x, a, b: x * _true_sigmoid(x),
    "hard_sigmoid": lambda x, a, b: np.clip(a * x + b, 0.0, 1.0),
    "hard_swish": lambda x, a, b: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0),
    "tanh": lambda x, a, b: np.tanh(x),
    "exp": lambda x, a, b: np.exp(x),
    "gelu_tanh": lambda x, a, b: 0.5 * x * (1.0 + np.tanh(sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),
    "mish": lambda x, a, b: x * np.tanh(_true_softplus(x)),
    "elu": lambda x, a, b: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0.0))),
    "softplus": lambda x, a, b: _true_softplus(x),
    "sqrt": lambda x, a, b: np.sqrt(x),
    "abs": lambda x, a, b: np.abs(x),
    "neg": lambda x, a, b: -x,
    "affine": lambda x, a, b: a * x + b,
    "reciprocal": lambda x, a, b: 1.0 / x,
    "log": lambda x, a, b: np.log(x),
    "square": lambda x, a, b: x * x,
    "gelu_erf": lambda x, a, b: x * _normal_share(x),
}
