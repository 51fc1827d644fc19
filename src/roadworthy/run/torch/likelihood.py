"""A network's outputs as a distribution over labels, so that its own predictions can stand for labels.

    classifier   one class, Categorical(softmax)
    detector     in every cell whose best score is above FLOOR: each class is there or not, Bernoulli(score); where the
                 best one is, the four sides of its box are Gaussian around the predicted ones, with the standard
                 deviation BOX_SPREAD times the box's own width or height
    raw          every number Gaussian around itself, with the standard deviation of the root mean square of its output

`drawn` is -log p(y) with y drawn from that distribution: its gradients make the Fisher matrix. `expected` is the mean
of -log p(y) over the same distribution held fixed, which is KL(p_fixed || p) up to a constant: its gradient is zero and
its Hessian the Fisher matrix. Spreads and cells are held fixed in both.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from roadworthy.errors import InputError
from roadworthy.model.task import Task
from roadworthy.run.torch.heads import decode

FLOOR = 0.01
"""Lowest best score of a cell that counts; below it cells are background to any threshold in use."""
BOX_SPREAD = 0.1
"""An overlap of about 0.8 when all four sides are off by as much."""
_LEAST = 1e-6


def drawn(outputs: Mapping[str, Tensor], task: Task | None, generator: torch.Generator) -> Tensor:
    """-log p(y), a scalar in nats, of one draw y from the network's own prediction for one image."""
    return _nll(outputs, task, generator)


def expected(outputs: Mapping[str, Tensor], task: Task | None) -> Tensor:
    """The mean of -log p(y) over the network's own prediction held fixed, a scalar in nats."""
    return _nll(outputs, task, None)


def _nll(outputs: Mapping[str, Tensor], task: Task | None, generator: torch.Generator | None) -> Tensor:
    if task is None or task.decode.kind == "raw":
        return _raw(outputs, generator)
    if task.decode.kind == "classify":
        return _classifier(outputs, task, generator)
    return _detector(outputs, task, generator)


def _classifier(outputs: Mapping[str, Tensor], task: Task, generator: torch.Generator | None) -> Tensor:
    spec = task.decode
    columns = spec.num_classes + (spec.background is not None)
    named = [outputs[k] for k in (spec.outputs or outputs)]
    found = [
        x for x in named if x.numel() == max(x.shape) and x.numel() == (columns if spec.num_classes else x.numel())
    ]
    if len(found) != 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in named)
        raise InputError(f"classify: no single output scores {columns} classes among {shapes}; check the decode spec")
    scores = found[0].reshape(-1)
    logs = torch.log_softmax(scores, 0) if spec.scores_are_logits else torch.log(scores.clamp(min=_LEAST))
    shares = logs.detach().exp()
    if generator is None:
        return -(shares * logs).sum()
    return -logs[torch.multinomial(shares, 1, generator=generator)[0]]


def _detector(outputs: Mapping[str, Tensor], task: Task, generator: torch.Generator | None) -> Tensor:
    boxes, scores = decode(outputs, task.decode)
    cells = torch.nonzero(scores.detach().amax(1) > FLOOR)[:, 0]
    if not len(cells):  # nothing is seen: the likeliest cell stands for the image
        cells = scores.detach().amax(1).argmax().reshape(1)
    boxes, p = boxes[cells], scores[cells].clamp(_LEAST, 1 - _LEAST)
    fixed, best = p.detach(), p.detach().argmax(1)
    labels = fixed if generator is None else torch.bernoulli(fixed, generator=generator)
    there = labels.gather(1, best[:, None])
    loss = -(labels * torch.log(p) + (1 - labels) * torch.log1p(-p)).sum()
    sides = (boxes[:, 2:] - boxes[:, :2]).detach().abs().clamp(min=1).repeat(1, 2)
    return loss + (there * _gaussian(boxes, BOX_SPREAD * sides, generator)).sum()


def _raw(outputs: Mapping[str, Tensor], generator: torch.Generator | None) -> Tensor:
    parts = []
    for x in outputs.values():
        if x.is_floating_point():
            spread = x.detach().square().mean().sqrt().clamp(min=1e-12)
            parts.append(_gaussian(x, spread, generator).sum())
    return torch.stack(parts).sum()


def _gaussian(x: Tensor, spread: Tensor, generator: torch.Generator | None) -> Tensor:
    """-log p of a label around x, up to a constant; the expected one up to another."""
    label = x.detach()
    if generator is not None:
        label = label + spread * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return ((x - label) / spread).square() / 2
