"""An epilogue in training as one pass forward and one backward, in compiled code (native/kernels/train_f32.h).

What `finish.plain` writes as a chain of PyTorch operations, each over all accumulators. Codes are the same; gradients
differ by the rounding of float32 alone. From the kernel's sums S0..S2 per channel (for their terms see there), with
r = s_acc / s_out, for a table s_acc / s_p:

    linear      S0 = sum d acc                       ds_acc = S0 / s_out            ds_out = -S0 r / s_out
    fine, poly  S0 = sum h acc, S1 = sum d y         ds_acc = S0                    ds_out = -S1 / s_out^2
    table       S0 = sum h' acc, S1, S2 = sum h i    ds_acc = S0 / s_p              ds_p = S2 - S0 r / s_p
    real        S0 = sum grad f' acc                 ds_acc = S0
"""

from __future__ import annotations

from importlib import import_module
from math import prod, tanh
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roadworthy.run.torch.surrogates import Gradient

if TYPE_CHECKING:
    from roadworthy.run.torch.finish import Finish


def _engine() -> Any:
    try:
        return import_module("roadworthy._native")
    except ImportError:
        return None


_native = _engine()


def compiled(k: Finish, gradient: Gradient, isa: str = "") -> Any:
    """The compiled form of an epilogue with a gradient; None where there is none.   isa: see `_native.Session`."""
    if _native is None or not hasattr(_native, "Epilogue") or not gradient.kind or k.m.device.type != "cpu":
        return None
    channels = k.m.numel()

    def each(values: Tensor) -> NDArray[np.float32]:
        return _each(values, channels)

    def flat(values: Tensor | None) -> NDArray[np.float32] | None:
        return None if values is None else np.ascontiguousarray(values.reshape(-1).numpy(), np.float32)

    top = 0.5 * gradient.k / tanh(0.5 * gradient.k) if gradient.kind == "tanh" else 0.0
    return _native.Epilogue(
        k.kind, k.function.code, k.function.a, k.function.b,
        each(k.m), each(k.lo - k.out_zero), each(k.hi - k.out_zero), each(k.zero) if k.table is not None else None,
        flat(k.table), flat(k.poly), k.poly_b, None if k.out_scale is None else each(k.out_scale),
        gradient.kind, gradient.k, top, isa,
    )  # fmt: skip


def usable(acc: Tensor) -> bool:
    """Whether a tensor of accumulators can be handed to compiled code."""
    return acc.device.type == "cpu" and acc.dtype == torch.float32


def finish(
    epilogue: Any, shape: torch.Size, acc: Tensor, s_acc: Tensor, s_out: Tensor | None, s_p: Tensor | None
) -> Tensor:
    """As `finish.finish`.   epilogue: of `compiled`.   shape: of what lies along the channels."""
    made: Tensor = _Finish.apply(acc, s_acc, s_out, s_p, epilogue, shape)
    return made


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        acc: Tensor,
        s_acc: Tensor,
        s_out: Tensor | None,
        s_p: Tensor | None,
        epilogue: Any,
        shape: Any,
    ) -> Tensor:
        acc = acc.contiguous()
        codes = torch.empty_like(acc)
        ctx.outer, ctx.inner = _sizes(acc.shape, shape)
        epilogue.forward(acc.numpy(), codes.numpy(), ctx.outer, ctx.inner)
        ctx.save_for_backward(acc, s_acc, s_out, s_p)
        ctx.epilogue, ctx.channels = epilogue, prod(shape)
        return codes

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        acc, *scales = ctx.saved_tensors
        made, slopes = torch.empty_like(acc), torch.empty((3, ctx.channels))
        each = (None if s is None else _each(s, ctx.channels) for s in scales)
        grad = grad.contiguous()
        ctx.epilogue.backward(acc.numpy(), grad.numpy(), made.numpy(), ctx.outer, ctx.inner, *each, slopes.numpy())
        found = (_like(a, s) if needed else None for a, s, needed in zip(slopes, scales, ctx.needs_input_grad[1:4]))
        return made, *found, None, None


def _sizes(shape: torch.Size, along: torch.Size) -> tuple[int, int]:
    """How many blocks of channels there are, and how many values of one channel lie side by side.   along: the shape
    of what lies along the channels, which begins as broadcasting demands."""
    channels = prod(along)
    behind = next((len(along) - 1 - k for k, n in enumerate(along) if n == channels), 0)
    inner = prod(shape[len(shape) - behind :])
    return prod(shape) // (inner * channels), inner


def _each(values: Tensor, channels: int) -> NDArray[np.float32]:
    """One number per channel, in any shape, side by side."""
    if values.numel() != channels or not values.is_contiguous():
        values = values.reshape(-1).expand(channels).contiguous()
    return values.detach().numpy()


def _like(slopes: Tensor, scale: Tensor) -> Tensor:
    """Gradients per channel as that of what was laid along the channels."""
    return (slopes if scale.numel() == len(slopes) else slopes.sum()).reshape(scale.shape)
