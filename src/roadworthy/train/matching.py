"""Which cells of a detector answer for which labelled box: SimOTA (Ge et al. 2021, YOLOX), on decoded outputs.

The same for every kind of head, as it looks at boxes and scores only. A cell may answer for a box when its point lies
in the box, or near its centre (within RADIUS strides). Of those, a box takes the k cheapest, k being the sum of its ten
best IoUs:

    cost = sum over classes of BCE(score, is the class) + 3 * -log IoU + FAR where the point is not both in and near

A cell that several boxes want goes to the one it is cheapest for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from roadworthy.detect import heads as h
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError
from roadworthy.train.boxes import pairwise

RADIUS = 2.5
FAR = 1e5
_CANDIDATES = 10
_IOU_WEIGHT = 3.0
_TINY = 1e-8


@dataclass(frozen=True)
class Match:
    """cells: (K,) rows of the detector's outputs.   truths: (K,) the box that each answers for.   ious: (K,)."""

    cells: Tensor
    truths: Tensor
    ious: Tensor


def places(spec: DecodeSpec, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Points (N, 2) in input pixels at which the cells lie, and how far (N, 1) a stride reaches there.

    boxes: (N, 4) as decoded. Where the rows are not those of a grid, a cell is where its box is, and reaches as far as
    half of the box's shorter side.
    """
    points, strides = _grid(spec, len(boxes))
    if points is not None and strides is not None:
        return boxes.new_tensor(points), boxes.new_tensor(strides)
    own = boxes.detach()
    sides = (own[:, 2:] - own[:, :2]).amin(1, keepdim=True)
    return (own[:, :2] + own[:, 2:]) / 2, (sides / 2).clamp(min=1)


def _grid(spec: DecodeSpec, rows: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    try:
        points, strides = h.cells(spec, 0.5)
    except InputError:
        return None, None
    each = [len(pairs) for pairs in spec.anchors] or [1] * len(spec.strides)
    if len(each) != len(spec.strides):
        return None, None
    kept = [np.tile(np.flatnonzero(strides[:, 0] == s), n) for s, n in zip(spec.strides, each)]
    if len(set(spec.strides)) != len(spec.strides) or sum(map(len, kept)) != rows:
        return None, None
    order = np.concatenate(kept)
    return points[order] * strides[order], strides[order]


def match(
    boxes: Tensor, scores: Tensor, points: Tensor, reach: Tensor, truth_boxes: Tensor, truth_classes: Tensor
) -> Match:
    """The cells that answer for the boxes of one image; no gradient.

    boxes: (N, 4) decoded, in input pixels.   scores: (N, C) in 0..1.   points, reach: (N, 2), (N, 1), see `places`.
    truth_boxes: (M, 4), in input pixels.   truth_classes: (M,).
    A box whose centre and inside hold no point gets the one nearest to its centre.
    """
    boxes, scores = boxes.detach(), scores.detach().clamp(_TINY, 1 - 1e-6)
    if not len(truth_boxes):
        none = torch.zeros(0, dtype=torch.int64, device=boxes.device)
        return Match(none, none, boxes.new_zeros(0))
    inside, near = _prior(points, reach, truth_boxes)
    able = inside | near
    nearest = torch.cdist((truth_boxes[:, :2] + truth_boxes[:, 2:]) / 2, points).argmin(1)
    missed = torch.nonzero(~able.any(1))[:, 0]
    able[missed, nearest[missed]] = True
    cells = torch.nonzero(able.any(0))[:, 0]
    able, both = able[:, cells], (inside & near)[:, cells]

    ious = pairwise(truth_boxes, boxes[cells])  # M,K
    p = scores[cells]
    absent = -torch.log1p(-p)
    cost = absent.sum(1) + (-torch.log(p) - absent).T[truth_classes]  # BCE against one class, the others absent
    cost = cost - _IOU_WEIGHT * torch.log(ious.clamp(min=_TINY)) + FAR * ~both
    cost = torch.where(able, cost, torch.inf)

    chosen = torch.zeros_like(able)
    best = torch.where(able, ious, 0.0).topk(min(_CANDIDATES, len(cells)), 1).values
    for k, wanted in enumerate(best.sum(1).int().clamp(min=1).tolist()):
        order = torch.argsort(cost[k], stable=True)[: min(int(wanted), int(able[k].sum()))]
        chosen[k, order] = True
    taken = torch.nonzero(chosen.any(0))[:, 0]
    truths = torch.where(chosen, cost, torch.inf)[:, taken].argmin(0)
    return Match(cells[taken], truths, ious[truths, taken])


def _prior(points: Tensor, reach: Tensor, truths: Tensor) -> tuple[Tensor, Tensor]:
    """(M, N) each: whether a point lies in a box, and whether it is near its centre."""
    x, y = points[None, :, 0], points[None, :, 1]
    x1, y1, x2, y2 = (truths[:, k, None] for k in range(4))
    inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    far = RADIUS * reach[None, :, 0]
    near = ((x - (x1 + x2) / 2).abs() < far) & ((y - (y1 + y2) / 2).abs() < far)
    return inside, near
