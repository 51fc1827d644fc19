"""From accumulators to codes, as the engine does it, with a gradient: the epilogues of docs/engine.md in PyTorch.

Codes are held without their zero point, c = q - z, so that a real value is c * s. What is computed is the engine's
float32 sequence; what is differentiated is the formula that it stands for,

    c = round(clamp(f(acc * s_x * s_w) / s_y))        round with the slope of a row of GRADIENTS

and the engine's tables and pieces of f enter the value alone (`anchor`). `plain` says it in PyTorch's operations;
`finish` does it in one compiled pass where it can (run/torch/fused.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as f
from numpy.typing import NDArray
from torch import Tensor

from roadworthy.run import arithmetic as ar
from roadworthy.run.arithmetic.polynomial import PIECES
from roadworthy.run.torch import fused
from roadworthy.run.torch.surrogates import Gradient, round_to


class _Anchor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exact: Tensor, formula: Tensor) -> Tensor:
        return exact

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        return None, grads[0]


def anchor(exact: Tensor, formula: Tensor) -> Tensor:
    """The value of `exact` with the gradient of `formula`, of the same shape."""
    made: Tensor = _Anchor.apply(exact.detach(), formula) if formula.requires_grad else exact
    return made


@dataclass(frozen=True, eq=False)
class Finish:
    """The constants of one layer's epilogue as tensors, shaped to lie along the accumulators' channels.

    kind, function, lo, hi: as in `arithmetic.Epilogue`.   m: its scale.   out_zero: the zero point of the result.
    zero, table: index of the zero and codes without theirs (table, fine).   poly, poly_b, out_scale: (poly).
    compiled: the same for compiled code, with a gradient of its own; None where there is no such form.
    """

    kind: str
    function: ar.Function
    m: Tensor
    lo: int
    hi: int
    out_zero: Tensor
    zero: Tensor
    table: Tensor | None = None
    poly: Tensor | None = None
    poly_b: float = 0.0
    out_scale: Tensor | None = None
    compiled: Any = None

    @classmethod
    def of(
        cls, e: ar.Epilogue, out_zero: NDArray[np.int64], shape: tuple[int, ...], gradient: Gradient | None = None
    ) -> Finish:
        """out_zero: zero point of the result, a scalar or one per channel.   shape: with -1 at the channels.

        gradient: what `finish` will be called with, for the compiled form.
        """

        def lay(values: Any) -> Tensor:
            return torch.from_numpy(np.array(values, np.float32).reshape(-1)).reshape(shape)

        z = torch.tensor(float(out_zero)) if out_zero.ndim == 0 else lay(out_zero)
        made = cls(
            e.kind, e.function, lay(e.scale), e.lo, e.hi, z, lay(e.zero),
            None if e.table is None else torch.from_numpy(e.table.astype(np.float32) - float(out_zero)),
            None if e.poly is None else torch.from_numpy(np.array(e.poly, np.float32)),
            float(np.float32(e.poly_b)), None if e.out_scale is None else lay(e.out_scale),
        )  # fmt: skip
        return made if gradient is None else replace(made, compiled=fused.compiled(made, gradient))


@dataclass(frozen=True, eq=False)
class Scales:
    """Scales with their gradients, laid along the channels.   acc: s_x * s_w.   out, before: s_y, s_p; None without."""

    acc: Tensor
    out: Tensor | None
    before: Tensor | None


def finish(k: Finish, acc: Tensor, scales: Scales, gradient: Gradient) -> Tensor:
    """Accumulators, exact integers with the bias in them, to codes without zero point; to reals where k is "real"."""
    if k.compiled is not None and fused.usable(acc):
        return fused.finish(k.compiled, k.m.shape, acc, scales.acc, scales.out, scales.before)
    return plain(k, acc, scales, gradient)


def plain(k: Finish, acc: Tensor, scales: Scales, gradient: Gradient) -> Tensor:
    """`finish`, one operation behind the other."""
    if k.kind == "linear":
        assert scales.out is not None
        return centred(acc * anchor(k.m, scales.acc / scales.out), k.out_zero, k.lo, k.hi, gradient)
    real = acc * scales.acc
    if k.kind == "real":
        return function(k.function, real, acc.detach() * k.m)
    assert scales.out is not None
    if k.kind == "table":
        assert scales.before is not None and k.table is not None
        index = centred(acc * anchor(k.m, scales.acc / scales.before), k.zero, 0, 255, gradient)
        made = centred(torch_function(k.function, index * scales.before) / scales.out, k.out_zero, 0, 255, gradient)
        return anchor(entries(k.table, index.detach() + k.zero), made)
    made = centred(torch_function(k.function, real) / scales.out, k.out_zero, 0, 255, gradient)
    with torch.no_grad():
        v = acc.detach() * k.m
        if k.kind == "fine":
            assert k.table is not None
            codes = entries(k.table, torch.round(v) + k.zero)
        else:
            assert k.poly is not None and k.out_scale is not None
            c0, c1, c2 = k.poly[:, torch.clamp(v + k.poly_b, 0, PIECES - 1).nan_to_num().int()]
            y = (c2 * v + c1) * v + c0  # each rounded on its own, as eager operations are
            codes = torch.clamp(torch.round(y * k.out_scale) + k.out_zero, 0, 255) - k.out_zero
    return anchor(codes, made)


def entries(table: Tensor, at: Tensor) -> Tensor:
    """What a table holds at whole numbers, clamped to its ends; NaN stays NaN."""
    found = table[at.clamp(0, len(table) - 1).nan_to_num().long()]
    return torch.where(torch.isnan(at), at, found)


def centred(v: Tensor, zero: Tensor, lo: float, hi: float, gradient: Gradient) -> Tensor:
    """clamp(rint(v) + zero, lo, hi) - zero.   zero: a scalar, or shaped to lie along the channels of v."""
    if zero.ndim == 0:
        z = float(zero)
        return round_to(v, 0.0, lo - z, hi - z, gradient)
    return round_to(v, zero, lo, hi, gradient) - zero


def function(which: ar.Function, x: Tensor, exact_of: Tensor | None = None) -> Tensor:
    """A function of one value with the engine's float32 result and the true function's gradient.

    exact_of: what the result is computed of, where that is not x to the last bit.
    """
    source = (x if exact_of is None else exact_of).detach()
    exact = torch.from_numpy(ar.evaluate(which, source.cpu().numpy())).to(x.device)
    return anchor(exact, torch_function(which, x)) if x.requires_grad else exact


def torch_function(which: ar.Function, x: Tensor) -> Tensor:
    """The true function; differentiable."""
    return _FUNCTIONS[which.name](x, which.a, which.b)


def _clip(x: Tensor, a: float, b: float) -> Tensor:
    return torch.clamp(x, a, b)


_FUNCTIONS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "none": lambda x, a, b: x,
    "relu": lambda x, a, b: torch.relu(x),
    "clip": _clip,
    "leaky_relu": lambda x, a, b: torch.where(x > 0, x, x * a),
    "sigmoid": lambda x, a, b: torch.sigmoid(x),
    "silu": lambda x, a, b: f.silu(x),
    "hard_sigmoid": lambda x, a, b: torch.clamp(x * a + b, 0, 1),
    "hard_swish": lambda x, a, b: f.hardswish(x),
    "tanh": lambda x, a, b: torch.tanh(x),
    "exp": lambda x, a, b: torch.exp(x),
    "gelu_tanh": lambda x, a, b: f.gelu(x, approximate="tanh"),
    "mish": lambda x, a, b: f.mish(x),
    "elu": lambda x, a, b: torch.relu(x) + a * torch.expm1(torch.clamp(x, max=0)),
    "softplus": lambda x, a, b: f.softplus(x),
    "sqrt": lambda x, a, b: torch.sqrt(x),
    "abs": lambda x, a, b: torch.abs(x),
    "neg": lambda x, a, b: -x,
    "affine": lambda x, a, b: x * a + b,
    "reciprocal": lambda x, a, b: torch.reciprocal(x),
    "log": lambda x, a, b: torch.log(x),
    "square": lambda x, a, b: x * x,
    "gelu_erf": lambda x, a, b: f.gelu(x),
}
