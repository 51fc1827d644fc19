"""Greedy non-maximum suppression.

    take the best box that is left; drop every box whose IoU with it is above the threshold; repeat

The loop is over blocks of boxes, best first: boxes of a block are first compared with all kept so far, then among
themselves. Once `max_detections` are kept the rest is never looked at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from roadworthy.detect.boxes import iou_matrix
from roadworthy.errors import InputError

BLOCK = 192  # boxes compared at once: large enough to spare Python, small enough that N x N stays in the cache


def nms(
    boxes_xyxy: NDArray,
    scores: NDArray,
    classes: NDArray | None = None,
    iou_threshold: float = 0.65,
    max_detections: int | None = None,
) -> NDArray[np.int64]:
    """Indices of the boxes that survive, best score first; of equal scores the earlier index comes first.

    boxes_xyxy: (N, 4).   scores: (N,).   classes: (N,), boxes of different classes never suppress each other;
    None makes it class-agnostic.   iou_threshold: 0..1, a box is dropped when its IoU is strictly above it.
    Raises InputError when the lengths disagree or the threshold is outside 0..1.
    """
    if not 0 <= iou_threshold <= 1:
        raise InputError(f"iou_threshold {iou_threshold} is outside 0..1; give a fraction")
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    if len(boxes) != len(scores) or (classes is not None and len(classes) != len(boxes)):
        raise InputError(f"NMS got {len(boxes)} boxes and {len(scores)} scores; give one score (and class) per box")
    limit = len(boxes) if max_detections is None else max_detections
    order = np.argsort(-np.asarray(scores), kind="stable")
    kept = np.zeros(0, np.int64)
    for start in range(0, len(order), BLOCK):
        if len(kept) >= limit:
            break
        block = order[start : start + BLOCK]
        if len(kept):
            block = block[~_overlaps(boxes, classes, block, kept, iou_threshold).any(axis=1)]
        kept = np.concatenate([kept, block[_greedy(_overlaps(boxes, classes, block, block, iou_threshold))]])
    return kept[:limit]


def _overlaps(
    boxes: NDArray, classes: NDArray | None, a: NDArray, b: NDArray, iou_threshold: float
) -> NDArray[np.bool_]:
    """(len(a), len(b)): may the one suppress the other?"""
    over = iou_matrix(boxes[a], boxes[b]) > iou_threshold
    if classes is not None:
        classes = np.asarray(classes)
        over &= classes[a][:, None] == classes[b][None, :]
    return over


def _greedy(over: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of N boxes, sorted best first, survive one another; over: (N, N)."""
    over = np.triu(over, 1)
    alive = np.ones(len(over), bool)
    for row in np.flatnonzero(over.any(axis=1)):
        if alive[row]:
            alive[over[row]] = False
    return alive
