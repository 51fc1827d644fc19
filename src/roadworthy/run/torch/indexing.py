"""ONNX operators that read or write at computed places, in PyTorch; made of gathers, which can be derived twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.run.torch.moves import Inputs, Operator, given, have, ints


def _flat_index(shape: tuple[int, ...], index: Tensor) -> Tensor:
    """Tuples of indices (..., k) into axes of these sizes as one number each; a negative one counts from behind."""
    flat = torch.zeros(index.shape[:-1], dtype=torch.int64, device=index.device)
    for k, size in enumerate(shape):
        flat = flat * size + torch.where(index[..., k] < 0, index[..., k] + size, index[..., k])
    return flat


def _gather_nd(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, index, batch = have(inputs[0]), have(inputs[1]).long(), g.attribute(node, "batch_dims", 0)
    depth = index.shape[-1]
    lead, rest = tuple(x.shape[batch : batch + depth]), tuple(x.shape[batch + depth :])
    images = math.prod(x.shape[:batch])
    flat = _flat_index(lead, index).reshape(images, -1)
    rows = torch.arange(images, device=index.device)[:, None] * math.prod(lead) + flat
    taken = x.reshape(images * math.prod(lead), *rest)[rows.reshape(-1)]
    return [taken.reshape(*index.shape[:-1], *rest)]


_REDUCTIONS = {"mul": "prod", "max": "amax", "min": "amin"}


def _scatter_nd(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, index, updates = have(inputs[0]), have(inputs[1]).long(), have(inputs[2])
    depth, how = index.shape[-1], g.attribute(node, "reduction", "none")
    flat = _flat_index(tuple(x.shape[:depth]), index).reshape(-1)
    rows, new = x.reshape(math.prod(x.shape[:depth]), -1), updates.reshape(flat.numel(), -1)
    if how in ("none", "add"):
        made = rows.index_put((flat,), new, accumulate=how == "add")
    else:
        made = rows.scatter_reduce(0, flat[:, None].expand_as(new), new, _REDUCTIONS[how])
    return [made.reshape(x.shape)]


def _scatter_elements(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, index, updates = have(inputs[0]), have(inputs[1]).long(), have(inputs[2])
    axis, how = g.attribute(node, "axis", 0), g.attribute(node, "reduction", "none")
    index = torch.where(index < 0, index + x.shape[axis], index)
    if how == "none":
        return [x.scatter(axis, index, updates)]
    if how == "add":
        return [x.scatter_add(axis, index, updates)]
    return [x.scatter_reduce(axis, index, updates, _REDUCTIONS[how])]


# Sampling at points.


def _grid_sample(node: g.Node, inputs: Inputs) -> list[Tensor]:
    """x (N, C, H, W) at points (N, h, w, 2), x then y, from -1 to 1: a weighted sum of 1, 4 or 16 pixels."""
    x, points = have(inputs[0]), have(inputs[1])
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(m := g.attribute(node, "mode", "linear"), m)
    if x.ndim != 4 or mode not in _WEIGHTS:
        raise UnsupportedError(f"GridSample {node.name!r} has the mode {mode!r} or no images; use linear on images")
    corners, padding = g.attribute(node, "align_corners", 0), g.attribute(node, "padding_mode", "zeros")
    n, c, high, wide = x.shape
    axes = []
    for size, at in ((high, points[..., 1]), (wide, points[..., 0])):
        place = (at + 1) / 2 * (size - 1) if corners else ((at + 1) * size - 1) / 2
        axes.append([(*_pixel(k, size, padding, corners), w) for k, w in _WEIGHTS[mode](place)])
    flat, total = x.reshape(n, c, high * wide), None
    for row, row_inside, row_weight in axes[0]:
        for column, column_inside, column_weight in axes[1]:
            index = (row * wide + column).reshape(n, 1, -1).expand(n, c, -1)
            weight = row_weight * column_weight * (row_inside & column_inside)
            part = flat.gather(2, index).reshape(n, c, *points.shape[1:3]) * weight[:, None]
            total = part if total is None else total + part
    return [have(total)]


def _pixel(k: Tensor, size: int, padding: str, corners: int) -> tuple[Tensor, Tensor]:
    """The pixel that stands for the k-th one, and whether it counts."""
    inside = (k >= 0) & (k < size)
    if padding == "reflection":
        period = max(2 * (size - 1), 1) if corners else 2 * size
        k = torch.remainder(k, period)
        k = torch.where(k >= size, period - k if corners else period - 1 - k, k)
    return k.clamp(0, size - 1), inside | (padding != "zeros")


Taps = list[tuple[Tensor, Tensor]]


def _nearest(at: Tensor) -> Taps:
    return [(torch.round(at.detach()).long(), torch.ones_like(at))]


def _linear(at: Tensor) -> Taps:
    low = torch.floor(at.detach())
    return [(low.long(), 1 - (at - low)), (low.long() + 1, at - low)]


def _cubic(at: Tensor, a: float = -0.75) -> Taps:
    first, taps = torch.floor(at.detach()), []
    for k in range(-1, 3):
        d = (at - first - k).abs()
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        taps.append((first.long() + k, near if k in (0, 1) else far))
    return taps


_WEIGHTS: dict[str, Callable[[Tensor], Taps]] = {"nearest": _nearest, "linear": _linear, "cubic": _cubic}


# Sums along an axis, triangles, and what is made of shapes.


def _cum_sum(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, axis = have(inputs[0]), ints(inputs[1])[0]
    backwards = g.attribute(node, "reverse", 0)
    x = x.flip(axis) if backwards else x
    made = torch.cumsum(x, axis)
    made = made - x if g.attribute(node, "exclusive", 0) else made
    return [made.flip(axis) if backwards else made]


def _trilu(node: g.Node, inputs: Inputs) -> list[Tensor]:
    k = ints(inputs[1])[0] if given(inputs, 1) else 0
    return [(torch.triu if g.attribute(node, "upper", 1) else torch.tril)(have(inputs[0]), k)]


def _one_hot(node: g.Node, inputs: Inputs) -> list[Tensor]:
    index, depth, values = have(inputs[0]).long(), ints(inputs[1])[0], have(inputs[2])
    hot = torch.where(index < 0, index + depth, index)[..., None] == torch.arange(depth, device=index.device)
    axis = g.attribute(node, "axis", -1)
    return [torch.where(hot, values[1], values[0]).movedim(-1, axis)]


def _range(node: g.Node, inputs: Inputs) -> list[Tensor]:
    start, limit, delta = (have(v).reshape(()) for v in inputs)
    return [torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)]


def _constant_of_shape(node: g.Node, inputs: Inputs) -> list[Tensor]:
    value: Any = g.attribute(node, "value", None)
    fill = np.zeros(1, np.float32) if value is None else np.array(value.numpy())
    return [torch.from_numpy(fill).reshape(-1)[0].expand(ints(inputs[0])).clone()]


INDEXING: dict[str, Operator] = {
    "GatherND": _gather_nd,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    "GridSample": _grid_sample,
    "CumSum": _cum_sum,
    "Trilu": _trilu,
    "OneHot": _one_hot,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "Einsum": lambda node, inputs: [torch.einsum(g.attribute(node, "equation"), *(have(v) for v in inputs))],
    "Size": lambda node, inputs: [torch.tensor(have(inputs[0]).numel())],
}
