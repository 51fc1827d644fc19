"""Rounding with a gradient: what stands for the derivative of round in quantization-aware training.

    forward   q = clamp(rint(v) + zero, lo, hi)                exactly, whatever stands for the gradient
    backward  dq/dv = slope(v) where lo <= v + zero <= hi (but for EDGE), else 0

    ste      slope = 1                                         Bengio et al. 2013, arXiv:1308.3432
    lsq      slope = 1, and scales are trained                 Esser et al. 2020, arXiv:1902.08153
    dsq      slope = s k / 2 (1 - tanh^2(k (v - m)))           Gong et al. 2019, arXiv:1908.05033
             m = floor(v) + 1/2, k = ln(2 / alpha - 1), s = 1 / (1 - alpha) = 1 / tanh(k / 2)
    fourier  slope = 1 + 2 sum_n w_n (-1)^n cos(2 pi n v)      after Xu et al. 2021, arXiv:2103.00841
             w_n = 1 - n / (N + 1)                             n = 1..N

Each slope is the derivative of a soft staircase that meets round at every integer: it has the period 1 and the integral
1 over a period, so that no surrogate makes gradients longer on average. DSQ's is differentiable soft quantization on an
interval of one code; alpha is how far the staircase stays from round at a step's border, 1 a line and 0 round itself.

Fourier: round(v) = v + sum_n (-1)^n sin(2 pi n v) / (pi n). Cut off after N terms, its derivative (w_n = 1) is
negative over N / (2 N + 1) of the interval: there a weight is moved away from where it should go; and its mean square
is 2 N + 1, which is noise to an optimizer. The mean of v and of the first N partial sums, which w_n makes of it, has
Fejer's kernel as its derivative: never negative, the integral still 1, and the staircase still converges to round. A
small network of 4-bit weights (benchmarks/surrogate_slopes.py, learning rate 5e-4, 3 seeds) ends at 0.0121, 0.0135 and
0.0179 of the variance with 2, 3 and 5 terms of the series itself, at 0.0110, 0.0114 and 0.0115 with the mean.

Nothing here keeps a state: every function may be called from several threads at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log, pi, sqrt
from typing import Any

import torch
from torch import Tensor

from roadworthy.errors import InputError

Slope = Callable[[Tensor], Tensor]

EDGE = 2.0**-10
"""By so many codes v may lie beyond the ends and still have a gradient. The largest weight of a channel often lies at
the end of its grid: without this, the last bit of v = w / s would decide whether it is trained (YOLOX-Nano with 8 bits:
in 1119 of 7951 channels it would not be)."""


@dataclass(frozen=True)
class Gradient:
    """What stands for the derivative of round.

    slope: at v, in code units before rounding; None means 1.   trains_scales: whether the method learns step sizes, as
    published.   kind, k: the slope for compiled code: "one"; "tanh" with k; "fejer" with N; "" where it has none.
    """

    slope: Slope | None
    trains_scales: bool = False
    kind: str = ""
    k: float = 0.0


def dsq(alpha: float = 0.2, trains_scales: bool = True) -> Gradient:
    """Differentiable soft quantization, tanh form.

    alpha: 0..1 exclusive; small ones are close to round, with all of the gradient near the borders between codes. The
    paper finds values up to 0.5 useful and learns them together with the range.   Raises InputError for any other.
    """
    if not 0.0 < alpha < 1.0:
        raise InputError(f"DSQ's alpha is {alpha}; it must lie between 0 and 1, without both")
    k = log(2.0 / alpha - 1.0)
    top = 0.5 * k / (1.0 - alpha)

    def slope(v: Tensor) -> Tensor:
        t = torch.tanh((v - torch.floor(v) - 0.5) * k)
        return (1.0 - t * t) * top

    return Gradient(slope, trains_scales, "tanh", k)


def fourier(terms: int = 2, fejer: bool = True, trains_scales: bool = False) -> Gradient:
    """The Fourier series of round after `terms` terms, differentiated.

    fejer: as the mean of the partial sums (never negative); False gives the plain series, which is.
    Raises InputError for fewer than one term.
    """
    if terms < 1:
        raise InputError(f"the Fourier series of round needs one term at least, not {terms}")
    weights = [(-1) ** n * 2.0 * ((1 - n / (terms + 1)) if fejer else 1.0) for n in range(1, terms + 1)]

    def slope(v: Tensor) -> Tensor:
        # cos(n x) by Chebyshev's recurrence: one cosine whatever the number of terms.
        c = torch.cos((v - torch.floor(v)) * (2 * pi))
        before, now = torch.ones_like(c), c
        total = 1.0 + weights[0] * now
        for w in weights[1:]:
            before, now = now, 2.0 * c * now - before
            total = total + w * now
        return total.clamp_min(0.0) if fejer else total  # what rounding leaves below zero

    return Gradient(slope, trains_scales, "fejer" if fejer else "", float(terms))


GRADIENTS: dict[str, Gradient] = {
    "ste": Gradient(None, kind="one"),
    "lsq": Gradient(None, trains_scales=True, kind="one"),
    "dsq": dsq(),
    "fourier": fourier(),
}


def round_to(v: Tensor, zero: Tensor | float, lo: Tensor | float, hi: Tensor | float, gradient: Gradient) -> Tensor:
    """clamp(rint(v) + zero, lo, hi): codes as float32, rounded half to even.

    v: any shape, in code units.   zero, lo, hi: whole numbers, broadcastable to v.
    Backward: to v, grad * slope(v) where v + zero lies in lo..hi, else 0: a ReLU ends where the ReLU does (by the
    rounded value, the gradients of ReLU networks turn by some per cent). To zero, grad there, else 0: with
    x' = (q - zero) s that is 0 inside and -s outside, the offset's gradient of LSQ+ (Bhalgat et al. 2020,
    arXiv:2004.09576; its offset beta is -zero s).
    """
    zero = zero if isinstance(zero, Tensor) else v.new_tensor(zero)
    if isinstance(lo, Tensor) or isinstance(hi, Tensor):
        lo, hi = (torch.as_tensor(bound, dtype=v.dtype, device=v.device) for bound in (lo, hi))
    return _Round.apply(v, zero, lo, hi, gradient)


def round_to_levels(v: Tensor, levels: Sequence[int], gradient: Gradient) -> Tensor:
    """The nearest of the given codes, the lower one of two equally near: as `Encoding.quantize` with levels.

    v: any shape, in code units, zero point included.   levels: ascending.
    Backward: between two levels l and h the slope is that of round at (v - l) / (h - l), so that the soft staircase
    rises by h - l on the way; beyond the ends (but for EDGE) it is 0.
    """
    return _RoundToLevels.apply(v, tuple(levels), gradient)


def noise_mask(shape: Sequence[int], share: float, seed: int, step: int, name: str) -> Tensor:
    """Which elements of a weight are quantized in a step, the others being exact: Quant-Noise (Fan et al. 2020,
    arXiv:2004.07320), element by element.

    share: 0..1, how likely each is; 1 quantizes all.   name: of the weight.
    Returns bools, a function of the arguments alone.   Raises InputError for a share that is none.
    """
    if not 0.0 <= share <= 1.0:
        raise InputError(f"the share of weights that Quant-Noise quantizes is {share}; it must lie in 0..1")
    if share in (0.0, 1.0):
        return torch.full(tuple(shape), share == 1.0)
    digest = hashlib.blake2b(f"{seed} {step} {name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64) < share


def scale_gradient(s: Tensor, numel: int, qmax: int) -> Tensor:
    """The scale itself, with its gradient times 1 / sqrt(numel qmax): LSQ, section 2.2. Every element that a scale
    stands for adds to its gradient, and that of a weight does not.

    numel: elements with this scale (of a weight: of a channel, where it has one scale per channel; of a value: of one
    image).   qmax: the highest code, from zero.
    """
    return _Scaled.apply(s, 1.0 / sqrt(max(numel * qmax, 1)))


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, zero: Tensor, lo: Any, hi: Any, gradient: Gradient) -> Tensor:
        ctx.save_for_backward(v, zero)
        ctx.lo, ctx.hi, ctx.gradient = lo, hi, gradient
        return torch.clamp(torch.round(v) + zero, lo, hi)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, zero = ctx.saved_tensors
        at = v + zero
        passed = grad * ((at >= ctx.lo - EDGE) & (at <= ctx.hi + EDGE))
        to_zero = passed.sum_to_size(zero.shape) if ctx.needs_input_grad[1] else None
        slope = ctx.gradient.slope
        return (passed if slope is None else passed * slope(v)).sum_to_size(v.shape), to_zero, None, None, None


class _RoundToLevels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, levels: tuple[int, ...], gradient: Gradient) -> Tensor:
        ctx.save_for_backward(v)
        ctx.levels, ctx.gradient = levels, gradient
        known = torch.tensor(levels, dtype=v.dtype, device=v.device)
        middles = (known[1:] + known[:-1]) * 0.5
        return known[torch.searchsorted(middles, v.contiguous())]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (v,) = ctx.saved_tensors
        known = torch.tensor(ctx.levels, dtype=v.dtype, device=v.device)
        if len(known) == 1:
            return torch.zeros_like(v), None, None
        below = (torch.searchsorted(known, v.contiguous(), right=True) - 1).clamp(0, len(known) - 2)
        at = (v - known[below]) / (known[below + 1] - known[below])
        inside = (v >= ctx.levels[0] - EDGE) & (v <= ctx.levels[-1] + EDGE)
        slope = ctx.gradient.slope
        return grad * inside if slope is None else grad * inside * slope(at), None, None


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return s.view_as(s)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad * ctx.factor, None
