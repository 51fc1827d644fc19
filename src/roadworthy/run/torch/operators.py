"""ONNX operators in PyTorch: `OPERATORS[op_type](node, inputs) -> outputs`. Every one of a float is differentiable, and
twice where the function is. Written with what autograd can derive twice: no fused `hardswish` or `mish`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as f
from torch import Tensor

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.run import arithmetic as ar
from roadworthy.run.reference_ops import cut_pixels
from roadworthy.run.torch.indexing import INDEXING
from roadworthy.run.torch.moves import MOVES, Inputs, Operator, given, have, ints
from roadworthy.run.torch.norms import NORMS


def _image(node: g.Node, x: Tensor) -> Tensor:
    if x.ndim != 4:
        raise UnsupportedError(f"{node.op_type} {node.name!r} is not over two dimensions; only images are supported")
    return x


# Convolutions, matrices, pools.


def _padded(x: Tensor, at: ar.Windows, fill: float = 0.0, overhang: bool = False) -> Tensor:
    more = at.overhang if overhang else (0, 0)
    (top, left), (bottom, right) = at.pads_begin, at.pads_end
    amounts = (left, right + more[1], top, bottom + more[0])
    return f.pad(x, amounts, value=fill) if any(amounts) else x


def _conv(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, w = _image(node, have(inputs[0])), have(inputs[1])
    at = ar.windows(node, _hw(x), _hw(w))
    bias = inputs[2] if given(inputs, 2) else None
    symmetric = at.pads_begin == at.pads_end
    x = x if symmetric else _padded(x, at)
    pads = at.pads_begin if symmetric else (0, 0)
    return [f.conv2d(x, w, bias, at.strides, pads, at.dilations, g.attribute(node, "group", 1))]


def _conv_transpose(node: g.Node, inputs: Inputs) -> list[Tensor]:
    """The whole result, of which a part is cut out or to which zeros are added."""
    x, w, shape = _image(node, have(inputs[0])), have(inputs[1]), g.static_shape(node.outputs[0])
    if shape is None:
        raise UnsupportedError(f"ConvTranspose {node.name!r} has no static output shape")
    strides, dilations = g.attribute(node, "strides", (1, 1)), g.attribute(node, "dilations", (1, 1))
    groups = g.attribute(node, "group", 1)
    full = f.conv_transpose2d(x, w, None, strides, groups=groups, dilation=dilations)
    top, left = cut_pixels(node, _hw(full), (shape[2], shape[3]))
    kept = full[:, :, top : top + shape[2], left : left + shape[3]]
    kept = f.pad(kept, (0, shape[3] - kept.shape[3], 0, shape[2] - kept.shape[2]))
    return [kept + have(inputs[2]).reshape(-1, 1, 1) if given(inputs, 2) else kept]


def _gemm(node: g.Node, inputs: Inputs) -> list[Tensor]:
    a, b = have(inputs[0]), have(inputs[1])
    a = a.T if g.attribute(node, "transA", 0) else a
    b = b.T if g.attribute(node, "transB", 0) else b
    total = g.attribute(node, "alpha", 1.0) * (a @ b)
    return [total + g.attribute(node, "beta", 1.0) * have(inputs[2]) if given(inputs, 2) else total]


def _max_pool(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x = _image(node, have(inputs[0]))
    if len(node.outputs) > 1 and g.is_read(node.outputs[1]):
        raise UnsupportedError(f"MaxPool {node.name!r} returns indices, which the PyTorch bridge does not know")
    at = ar.windows(node, _hw(x), g.attribute(node, "kernel_shape"))
    padded = _padded(x, at, float("-inf"), overhang=True)
    return [f.max_pool2d(padded, at.kernel, at.strides, 0, at.dilations)]


def _average_pool(node: g.Node, inputs: Inputs) -> list[Tensor]:
    """Sums over the windows, divided by the number of positions that each counts."""
    x = _image(node, have(inputs[0]))
    at = ar.windows(node, _hw(x), g.attribute(node, "kernel_shape"))
    counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    if g.attribute(node, "count_include_pad", 0):
        counted = _padded(counted, at, 1.0)
        counted = f.pad(counted, (0, at.overhang[1], 0, at.overhang[0]))
    else:
        counted = _padded(counted, at, overhang=True)
    return [_sums(_padded(x, at, overhang=True), at) / _sums(counted, at).clamp(min=1)]


def _sums(x: Tensor, at: ar.Windows) -> Tensor:
    if at.dilations == (1, 1):
        return f.avg_pool2d(x, at.kernel, at.strides, divisor_override=1)
    ones = torch.ones(x.shape[1], 1, *at.kernel, dtype=x.dtype, device=x.device)
    return f.conv2d(x, ones, None, at.strides, 0, at.dilations, x.shape[1])


def _lp_pool(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, p = _image(node, have(inputs[0])), g.attribute(node, "p", 2)
    at = ar.windows(node, _hw(x), g.attribute(node, "kernel_shape"))
    return [_root(_sums(_padded(x.abs() ** p, at, overhang=True), at), p)]


def _global_lp_pool(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, p = have(inputs[0]), g.attribute(node, "p", 2)
    return [_root((x.abs() ** p).sum(_spatial(x), keepdim=True), p)]


def _root(x: Tensor, p: int) -> Tensor:
    return x if p == 1 else x ** (1 / p)


def _hw(x: Tensor) -> tuple[int, int]:
    return int(x.shape[-2]), int(x.shape[-1])


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


# Functions.


def _one(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda node, inputs: [function(have(inputs[0]))]


def _with(function: Callable[..., Tensor], **defaults: Any) -> Operator:
    """A function of one value and of attributes by these names."""

    def operator(node: g.Node, inputs: Inputs) -> list[Tensor]:
        return [function(have(inputs[0]), **{k: g.attribute(node, k, v) for k, v in defaults.items()})]

    return operator


def _clip(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x = have(inputs[0])
    if given(inputs, 1):
        x = torch.maximum(x, have(inputs[1]).to(x.dtype))
    if given(inputs, 2):
        x = torch.minimum(x, have(inputs[2]).to(x.dtype))
    return [x]


def _gate(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _gelu(x: Tensor, approximate: str) -> Tensor:
    return f.gelu(x, approximate=approximate)


def _elu(x: Tensor, alpha: float, gamma: float = 1.0, by: float = 1.0) -> Tensor:
    return gamma * (torch.relu(x) + alpha * torch.expm1(torch.clamp(x / by, max=0.0)))


def _shrink(x: Tensor, bias: float, lambd: float) -> Tensor:
    return torch.where(x > lambd, x - bias, torch.where(x < -lambd, x + bias, torch.zeros_like(x)))


def _prelu(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, slope = have(inputs[0]), have(inputs[1])
    return [torch.where(x > 0, x, x * slope)]


# Several values.


def _fold(take: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """Pair by pair, left to right."""

    def operator(node: g.Node, inputs: Inputs) -> list[Tensor]:
        result = have(inputs[0])
        for other in inputs[1:]:
            result = take(result, have(other))
        return [result]

    return operator


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(node: g.Node, inputs: Inputs) -> list[Tensor]:
    """The sign of the divisor, as in Python; of the dividend, as in C, with fmod."""
    take = torch.fmod if g.attribute(node, "fmod", 0) else torch.remainder
    return [take(have(inputs[0]), have(inputs[1]))]


def _mean(node: g.Node, inputs: Inputs) -> list[Tensor]:
    return [_fold(torch.add)(node, inputs)[0] / len(inputs)]


def _reduce(take: Callable[..., Tensor]) -> Operator:
    def operator(node: g.Node, inputs: Inputs) -> list[Tensor]:
        x, keep = have(inputs[0]), bool(g.attribute(node, "keepdims", 1))
        stated = ints(inputs[1]) if given(inputs, 1) else list(g.attribute(node, "axes", ()) or ())
        if not stated and g.attribute(node, "noop_with_empty_axes", 0):
            return [x]
        return [take(x, tuple(a % x.ndim for a in stated) or tuple(range(x.ndim)), keep)]

    return operator


def _product(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _best(take: Callable[..., Tensor]) -> Operator:
    def operator(node: g.Node, inputs: Inputs) -> list[Tensor]:
        x, axis = have(inputs[0]), g.attribute(node, "axis", 0)
        if g.attribute(node, "select_last_index", 0):
            raise UnsupportedError(f"{node.op_type} {node.name!r} takes the last of equals, which is not supported")
        return [take(x, axis, bool(g.attribute(node, "keepdims", 1)))]

    return operator


def _top_k(node: g.Node, inputs: Inputs) -> list[Tensor]:
    largest = bool(g.attribute(node, "largest", 1))
    return list(torch.topk(have(inputs[0]), ints(inputs[1])[0], g.attribute(node, "axis", -1), largest))


OPERATORS: dict[str, Operator] = {
    **MOVES,
    **INDEXING,
    **NORMS,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _fold(torch.matmul),
    "Gemm": _gemm,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "LpPool": _lp_pool,
    "GlobalLpPool": _global_lp_pool,
    "GlobalAveragePool": _one(lambda x: x.mean(_spatial(x), keepdim=True)),
    "GlobalMaxPool": _one(lambda x: x.amax(_spatial(x), keepdim=True)),
    # One value.
    "Relu": _one(torch.relu),
    "Clip": _clip,
    "LeakyRelu": _with(lambda x, alpha: torch.where(x > 0, x, x * alpha), alpha=0.01),
    "PRelu": _prelu,
    "Sigmoid": _one(torch.sigmoid),
    "HardSigmoid": _with(_gate, alpha=0.2, beta=0.5),
    "HardSwish": _one(lambda x: x * _gate(x, 1 / 6, 0.5)),
    "Tanh": _one(torch.tanh),
    "Elu": _with(_elu, alpha=1.0),
    "Selu": _with(_elu, alpha=1.67326319217681884765625, gamma=1.05070102214813232421875),
    "Celu": _with(lambda x, alpha: _elu(x, alpha, by=alpha), alpha=1.0),
    "Softplus": _one(f.softplus),
    "Softsign": _one(lambda x: x / (1 + x.abs())),
    "ThresholdedRelu": _with(lambda x, alpha: torch.where(x > alpha, x, torch.zeros_like(x)), alpha=1.0),
    "Gelu": _with(_gelu, approximate="none"),
    "Mish": _one(lambda x: x * torch.tanh(f.softplus(x))),
    "Swish": _with(lambda x, alpha: x * torch.sigmoid(alpha * x), alpha=1.0),
    "Softmax": _with(lambda x, axis: torch.softmax(x, axis), axis=-1),
    "LogSoftmax": _with(lambda x, axis: torch.log_softmax(x, axis), axis=-1),
    "Erf": _one(torch.erf),
    "Exp": _one(torch.exp),
    "Log": _one(torch.log),
    "Sqrt": _one(torch.sqrt),
    "Neg": _one(torch.neg),
    "Abs": _one(torch.abs),
    "Reciprocal": _one(torch.reciprocal),
    "Sin": _one(torch.sin),
    "Cos": _one(torch.cos),
    "Tan": _one(torch.tan),
    "Asin": _one(torch.asin),
    "Acos": _one(torch.acos),
    "Atan": _one(torch.atan),
    "Sinh": _one(torch.sinh),
    "Cosh": _one(torch.cosh),
    "Asinh": _one(torch.asinh),
    "Acosh": _one(torch.acosh),
    "Atanh": _one(torch.atanh),
    "Shrink": _with(_shrink, bias=0.0, lambd=0.5),
    "IsNaN": _one(torch.isnan),
    "IsInf": _one(torch.isinf),
    "Sign": _one(torch.sign),
    "Floor": _one(torch.floor),
    "Ceil": _one(torch.ceil),
    "Round": _one(torch.round),
    "Not": _one(torch.logical_not),
    # Several.
    "Add": _fold(torch.add),
    "Sub": _fold(torch.sub),
    "Mul": _fold(torch.mul),
    "Div": _fold(_divide),
    "Pow": _fold(lambda a, b: torch.pow(a, b.to(a.dtype))),
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Sum": _fold(torch.add),
    "Mean": _mean,
    "Where": lambda node, inputs: [torch.where(have(inputs[0]), have(inputs[1]), have(inputs[2]))],
    "Equal": _fold(torch.eq),
    "Less": _fold(torch.lt),
    "Greater": _fold(torch.gt),
    "LessOrEqual": _fold(torch.le),
    "GreaterOrEqual": _fold(torch.ge),
    "And": _fold(torch.logical_and),
    "Or": _fold(torch.logical_or),
    "Xor": _fold(torch.logical_xor),
    "Mod": _mod,
    # Reductions.
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep)),
    "ReduceLogSum": _reduce(lambda x, axes, keep: torch.log(x.sum(axes, keepdim=keep))),
    "ReduceLogSumExp": _reduce(torch.logsumexp),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.sqrt((x * x).sum(axes, keepdim=keep))),
    "ReduceProd": _reduce(_product),
    "ArgMax": _best(torch.argmax),
    "ArgMin": _best(torch.argmin),
    "TopK": _top_k,
    "Shape": lambda node, inputs: [
        torch.tensor(np.array(have(inputs[0]).shape)[g.attribute(node, "start", 0) : g.attribute(node, "end", None)])
    ],
}

CONTRIB: dict[str, Operator] = {
    "QuickGelu": _with(lambda x, alpha: x * torch.sigmoid(alpha * x), alpha=1.702),
    "Gelu": _one(f.gelu),
}
"""Operators of the domain `com.microsoft`, as ONNX Runtime writes them."""

WITHOUT_GRADIENT: dict[str, str] = {
    **dict.fromkeys(
        ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "IsNaN", "IsInf"), "gives truth values"
    ),
    **dict.fromkeys(("And", "Or", "Xor", "Not"), "is of truth values"),
    **dict.fromkeys(("ArgMax", "ArgMin"), "gives positions"),
    **dict.fromkeys(("Shape", "Size", "Range", "ConstantOfShape"), "is of sizes, not of values"),
    "OneHot": "is of positions",
}
"""Rows without a gradient, and why. All other rows have one; of Floor, Ceil, Round and Sign it is zero."""


def operator_of(node: g.Node) -> Operator | None:
    """The row of a node; None where there is none."""
    if node.domain in ("", "ai.onnx"):
        return OPERATORS.get(node.op_type)
    return CONTRIB.get(node.op_type) if node.domain == "com.microsoft" else None
