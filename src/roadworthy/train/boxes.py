"""Overlaps of boxes with slopes; a box is (x1, y1, x2, y2), see `detect/boxes.py`."""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-9


def overlaps(a: Tensor, b: Tensor, generalized: bool = False) -> Tensor:
    """(..., 4) and (..., 4) -> (...) IoU in 0..1, box by box.

    generalized: GIoU in -1..1, less the share of the hull that neither covers, so that boxes apart have a slope, too
    (Rezatofighi et al. 2019).
    """
    shared = _extent(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    union = areas(a) + areas(b) - shared
    iou = shared / union.clamp(min=_TINY)
    if not generalized:
        return iou
    hull = _extent(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    return iou - (hull - union) / hull.clamp(min=_TINY)


def pairwise(a: Tensor, b: Tensor) -> Tensor:
    """(M, 4) and (K, 4) -> (M, K) IoU."""
    return overlaps(a[:, None], b[None])


def covered(a: Tensor, b: Tensor) -> Tensor:
    """(M, 4) and (K, 4) -> (M, K): which share of a box of `a` lies in one of `b`."""
    a, b = a[:, None], b[None]
    shared = _extent(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    return shared / areas(a).clamp(min=_TINY)


def areas(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...); 0 for a box with swapped corners."""
    return _extent(boxes[..., :2], boxes[..., 2:])


def _extent(low: Tensor, high: Tensor) -> Tensor:
    sides = (high - low).clamp(min=0)
    return sides[..., 0] * sides[..., 1]
