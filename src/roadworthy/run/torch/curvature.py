"""How sharply a network's likelihood bends along its weights, image by image and without labels.

    F_i   = E[(d -log p(y) / dw_i)^2]        y drawn from the network's own prediction
    tr(H) = E[v^T H v]                       v of independent +-1 (Hutchinson 1990), H v by a second backward pass

A product is taken for one layer at a time. One for all at once would cost no more than one for the first layer, and
has the right mean, but what the other layers add to v_l^T (H v)_l, sum_k v_l^T H_lk v_k, drowns it: on YOLOX-Nano half
of the traces came out negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roadworthy.model.task import Task
from roadworthy.run.torch.likelihood import drawn, expected
from roadworthy.run.torch.module import GraphModule

Progress = Callable[[int], None]
Loss = Callable[[Mapping[str, Tensor]], Tensor]


def squared_gradients(
    module: GraphModule,
    names: Sequence[str],
    tensors: Iterable[NDArray],
    task: Task | None,
    seed: int = 0,
    draws: int = 4,
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float64]]:
    """E[(dL/dw)^2] of the named constants, in their shapes: the diagonal of the Fisher matrix, in nats.

    draws: labels drawn for each image; each costs one backward pass.   Returns {} when there are no images.
    """
    weights = [module.constant(n) for n in names]
    total = [torch.zeros_like(w, dtype=torch.float64) for w in weights]
    generator = torch.Generator().manual_seed(seed)
    images = 0
    for tensor in tensors:
        outputs = module(_tensor(tensor, weights))
        for k in range(draws):
            loss = drawn(outputs, task, generator)
            slopes = torch.autograd.grad(loss, weights, retain_graph=k < draws - 1, allow_unused=True)
            for sum_, slope in zip(total, slopes):
                if slope is not None:
                    sum_ += slope.double().square()
        images += 1
        if progress:
            progress(images)
    return {n: (t / (images * draws)).numpy() for n, t in zip(names, total)} if images else {}


def traces(
    module: GraphModule,
    names: Sequence[str],
    tensors: Iterable[NDArray],
    task: Task | None,
    seed: int = 0,
    probes: int = 1,
    progress: Progress | None = None,
) -> dict[str, float]:
    """The trace of each named constant's block of the Hessian of `expected`, in nats.

    probes: random vectors for each image and layer; each costs a backward pass through the layer's own gradient.
    Returns {} when there are no images.
    """
    weights = [module.constant(n) for n in names]
    total = [0.0] * len(names)
    generator = torch.Generator().manual_seed(seed)
    images = 0
    for tensor in tensors:
        loss = expected(module(_tensor(tensor, weights)), task)
        slopes = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        for k, (weight, slope) in enumerate(zip(weights, slopes)):
            for _ in range(probes):
                signs = (torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1).to(weight.dtype)
                if slope is None or not slope.requires_grad:
                    continue
                (product,) = torch.autograd.grad(slope, weight, signs, retain_graph=True, allow_unused=True)
                total[k] += 0.0 if product is None else float((signs * product).double().sum())
        images += 1
        if progress:
            progress(images)
    return {n: t / (images * probes) for n, t in zip(names, total)} if images else {}


def _tensor(array: NDArray, weights: Sequence[Tensor]) -> Tensor:
    return torch.from_numpy(np.array(array)).to(weights[0].dtype)
