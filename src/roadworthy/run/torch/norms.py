"""Normalizations in PyTorch, of what can be derived twice.

    y = (x - mean) / sqrt(variance + epsilon) * scale + shift

They differ in what the mean is over: running statistics (batch), a channel (instance), a group of channels (group), the
last axes (layer); the root mean square has no mean (RMSNormalization), and the local response no variance either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.run.torch.moves import Inputs, Operator, given, have


def _per_channel(x: Tensor, value: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (x.ndim - 2))


def _whiten(x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    centred = x - x.mean(tuple(axes), keepdim=True)
    return centred / torch.sqrt((centred**2).mean(tuple(axes), keepdim=True) + epsilon)


def _batch_norm(node: g.Node, inputs: Inputs) -> list[Tensor]:
    if g.attribute(node, "training_mode", 0):
        raise UnsupportedError(f"BatchNormalization {node.name!r} is in training mode; export the model in eval mode")
    x, *rest = (have(v) for v in inputs)
    scale, shift, mean, variance = (_per_channel(x, v) for v in rest)
    return [(x - mean) / torch.sqrt(variance + g.attribute(node, "epsilon", 1e-5)) * scale + shift]


def _instance_norm(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, scale, shift = (have(v) for v in inputs)
    made = _whiten(x, range(2, x.ndim), g.attribute(node, "epsilon", 1e-5))
    return [made * _per_channel(x, scale) + _per_channel(x, shift)]


def _group_norm(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, scale, shift = (have(v) for v in inputs)
    groups, channels = g.attribute(node, "num_groups"), x.shape[1]
    parts = x.reshape(x.shape[0], groups, channels // groups, *x.shape[2:])
    made = _whiten(parts, range(2, parts.ndim), g.attribute(node, "epsilon", 1e-5)).reshape(x.shape)
    return [made * _per_channel(x, scale) + _per_channel(x, shift)]


def _layer_norm(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, scale = have(inputs[0]), have(inputs[1])
    made = _whiten(x, _last(node, x), g.attribute(node, "epsilon", 1e-5)) * scale
    return [made + have(inputs[2]) if given(inputs, 2) else made]


def _rms_norm(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, scale = have(inputs[0]), have(inputs[1])
    square = (x * x).mean(tuple(_last(node, x)), keepdim=True)
    return [x / torch.sqrt(square + g.attribute(node, "epsilon", 1e-5)) * scale]


def _last(node: g.Node, x: Tensor) -> Sequence[int]:
    return range(g.attribute(node, "axis", -1) % x.ndim, x.ndim)


def _mean_variance(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, axes = have(inputs[0]), g.attribute(node, "axes", (0, 2, 3))
    centred = x - x.mean(axes, keepdim=True)
    return [centred / (torch.sqrt((centred**2).mean(axes, keepdim=True)) + 1e-9)]


def _local_response(node: g.Node, inputs: Inputs) -> list[Tensor]:
    """x / (bias + alpha / size * sum of x^2 over `size` neighbouring channels) ^ beta (Krizhevsky et al. 2012)."""
    x, size = have(inputs[0]), g.attribute(node, "size")
    before = (size - 1) // 2
    padding = [0, 0] * (x.ndim - 2) + [before, size - 1 - before]
    squares = torch.nn.functional.pad(x * x, padding)
    total = sum((squares[:, k : k + x.shape[1]] for k in range(1, size)), squares[:, : x.shape[1]])
    scale = g.attribute(node, "bias", 1.0) + g.attribute(node, "alpha", 1e-4) / size * total
    return [x / scale ** g.attribute(node, "beta", 0.75)]


def _lp_norm(node: g.Node, inputs: Inputs) -> list[Tensor]:
    x, axis = have(inputs[0]), g.attribute(node, "axis", -1)
    total = x.abs().sum(axis, keepdim=True)
    return [x / (total if g.attribute(node, "p", 2) == 1 else torch.sqrt((x * x).sum(axis, keepdim=True)))]


NORMS: dict[str, Operator] = {
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
    "MeanVarianceNormalization": _mean_variance,
    "LRN": _local_response,
    "LpNormalization": _lp_norm,
}
