"""Statistics of batch normalizations, measured anew after the weights in front of them have changed.

Training runs with the statistics as they are ("frozen"): they are constants, and one image is no batch. Where they are
to be "estimated", they are measured between the steps, over images, never over one:

    follow       S <- (1 - momentum) S + momentum * S(images of a step)                          (Ioffe, Szegedy 2015)
    reestimate   S of all given images with the weights as they are, once training has ended ("precise batch norm",
                 Wu, Johnson 2021)

S are mean and variance of each channel of the normalization's input over images and pixels; of several images
mean = E[mean_i] and variance = E[variance_i] + E[mean_i^2] - mean^2. What a layer reads depends on the statistics of
the layers in front of it. `reestimate` therefore takes the images a few at a time through the network side by side and
normalizes with the statistics of these few while it measures, so that no layer reads what wrong statistics have made.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from roadworthy.errors import InputError
from roadworthy.model import graph as g

Inputs = list[Tensor | None]
Moments = dict[str, tuple[Tensor, Tensor]]
"""Name of the mean's initializer -> mean and variance, each (C,) in float64."""


@dataclass(frozen=True)
class Norm:
    """One normalization.   node: its name.   value: what it reads.   mean, variance: its initializers."""

    node: str
    value: str
    mean: str
    variance: str


def norms(nodes: Sequence[g.Node]) -> tuple[Norm, ...]:
    """All normalizations whose statistics are constants, in order."""
    found = []
    for node in nodes:
        if node.op_type == "BatchNormalization" and all(g.constant(v) is not None for v in node.inputs[3:5]):
            value, mean, variance = (str(v.name) for v in (node.inputs[0], *node.inputs[3:5]) if v is not None)
            found.append(Norm(str(node.name), value, mean, variance))
    return tuple(found)


class Normalized(Protocol):
    """What the functions here ask of a module; `GraphModule` has it."""

    @property
    def norms(self) -> tuple[Norm, ...]: ...

    def walk(
        self, x: Tensor, taps: Sequence[str], found: dict[str, Tensor], stops: Container[str] = ()
    ) -> Generator[tuple[str, Inputs], Inputs | None, None]: ...

    def constant(self, name: str) -> Tensor: ...


def moments(module: Normalized, x: Tensor) -> Moments:
    """Mean and variance of what each normalization reads, for one image; constant memory, no gradient."""
    by_node = {norm.node: norm for norm in module.norms}
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with torch.no_grad():
        for node, inputs in module.walk(x, (), {}, by_node):
            parts.setdefault(by_node[node].mean, []).append(_moments_of(inputs[0]))
    return {name: _joined(found) for name, found in parts.items()}


def together(module: Normalized, images: Sequence[Tensor]) -> Moments:
    """The same over several images side by side, each layer normalizing with the statistics of just these.

    Memory: what is alive in the network at one time, for every image.
    """
    by_node = {norm.node: norm for norm in module.norms}
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with torch.no_grad():
        walks = [module.walk(x, (), {}, by_node) for x in images]
        stops = [next(walk, None) for walk in walks]
        while (stop := stops[0]) is not None:
            norm = by_node[stop[0]]
            mean, variance = _joined([_moments_of(other[1][0]) for other in stops if other is not None])
            parts.setdefault(norm.mean, []).append((mean, variance))
            measured = [v.to(module.constant(norm.mean)) for v in (mean, variance)]
            stops = [_go_on(walk, [*other[1][:3], *measured]) for walk, other in zip(walks, stops) if other is not None]
    return {name: _joined(found) for name, found in parts.items()}


def _go_on(walk: Generator[tuple[str, Inputs], Inputs | None, None], inputs: Inputs) -> tuple[str, Inputs] | None:
    try:
        return walk.send(inputs)
    except StopIteration:
        return None


def _moments_of(x: Tensor | None) -> tuple[Tensor, Tensor]:
    assert x is not None
    rows = x.transpose(0, 1).reshape(x.shape[1], -1).double()
    return rows.mean(1), rows.var(1, unbiased=False)


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance over all pixels of several images, which have equally many."""
    means, variances = (torch.stack(list(v)) for v in zip(*parts))
    mean = means.mean(0)
    return mean, variances.mean(0) + ((means - mean) ** 2).mean(0)


def follow(module: Normalized, images: Sequence[Moments], momentum: float = 0.1) -> None:
    """Move the statistics towards those of the images of one step; the order of the images is that of the sums.

    images: of `moments`, one each.   momentum: 0 leaves the statistics, 1 takes those of the step.
    """
    for norm in module.norms:
        mean, variance = _joined([found[norm.mean] for found in images])
        for name, new in ((norm.mean, mean), (norm.variance, variance)):
            held = module.constant(name)
            with torch.no_grad():
                held.copy_((1 - momentum) * held.double() + momentum * new)


def reestimate(
    module: Normalized, tensors: Iterable[Tensor], batch: int = 16, progress: Callable[[int], None] | None = None
) -> int:
    """Set the statistics to those of the given images with the weights as they are; returns how many there were.

    tensors: one image each, in the model's input shape; consumed once, `batch` of them kept at a time. Every image
    counts the same.   progress: called with the number of images done.
    Raises InputError without images, and where what a layer reads is not finite, by name; nothing is written then.
    """
    if not module.norms:
        return 0
    total: Moments = {}
    images = 0
    waiting = iter(tensors)
    while few := list(islice(waiting, batch)):
        images += len(few)
        total = _added(total, together(module, few), images, len(few))
        if progress:
            progress(images)
    if not images:
        raise InputError("there are no images to measure batch normalization on; hand in at least one")
    for norm in module.norms:
        if not all(bool(torch.isfinite(v).all()) for v in total[norm.mean]):
            raise InputError(f"what the batch normalization {norm.node!r} reads is NaN or infinite")
    with torch.no_grad():
        for norm in module.norms:
            for name, value in zip((norm.mean, norm.variance), total[norm.mean]):
                module.constant(name).copy_(value)
    return images


def _added(total: Moments, new: Moments, count: int, share: int) -> Moments:
    """The statistics of `count` images, the last `share` of which are new (Chan, Golub, LeVeque 1979)."""
    if count == share:
        return new
    weight, made = share / count, {}
    for name, (mean, variance) in new.items():
        old_mean, old_variance = total[name]
        step = mean - old_mean
        spread = weight * (1 - weight) * step**2
        made[name] = old_mean + weight * step, (1 - weight) * old_variance + weight * variance + spread
    return made
