"""Greedy non-maximum suppression.

    take the best box that is left; drop every box whose IoU with it is above the threshold; repeat

`nms` runs in C++ (native/detect/nms.cc) where the native module is built and the numbers are float32; `nms_numpy` is
the same in NumPy, the fallback and what the fast one must equal.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.detect.boxes import iou_matrix
from roadworthy.errors import InputError

BLOCK = 192  # boxes compared at once: large enough to spare Python, small enough that N x N stays in the cache


def _engine() -> Any:
    try:
        return importlib.import_module("roadworthy._native")
    except ImportError:  # installed without a compiler
        return None


_native = _engine()


def nms(
    boxes_xyxy: NDArray,
    scores: NDArray,
    classes: NDArray | None = None,
    iou_threshold: float = 0.65,
    max_detections: int | None = None,
    score_threshold: float = -np.inf,
) -> NDArray[np.int64]:
    """Indices of the boxes that survive, best score first; of equal scores the earlier index comes first.

    boxes_xyxy: (N, 4).   scores: (N,).   classes: (N,), boxes of different classes never suppress each other;
    None makes it class-agnostic.   iou_threshold: 0..1, a box is dropped when its IoU is strictly above it.
    max_detections: stop when so many are kept; None keeps all.   score_threshold: boxes below it take no part.
    Raises InputError when the lengths disagree, a threshold or the limit makes no sense, or a number is not finite.
    """
    boxes, scores = np.asarray(boxes_xyxy), np.asarray(scores)
    if classes is not None:
        classes = np.asarray(classes)
    if boxes.size != 4 * len(scores) or (classes is not None and len(classes) != len(scores)):
        raise InputError(
            f"NMS got {boxes.size // 4} boxes and {len(scores)} scores; give one score (and class) per box"
        )
    if not 0 <= iou_threshold <= 1:
        raise InputError(f"iou_threshold {iou_threshold} is outside 0..1; give a fraction")
    if np.isnan(score_threshold):
        raise InputError("score_threshold is NaN; give a number")
    if max_detections is not None and max_detections < 0:
        raise InputError(f"max_detections is {max_detections}; give 0 or more, or None for all")
    if _native is not None:
        exact = _float32(boxes), _float32(scores)
        if exact[0] is not None and exact[1] is not None:
            labels = None if classes is None else _labels(classes)
            limit = -1 if max_detections is None else min(max_detections, len(scores))
            try:
                return _native.nms(*exact, labels, iou_threshold, score_threshold, limit).astype(np.int64)
            except ValueError as error:
                raise InputError(f"NMS: {error}") from error
    return nms_numpy(boxes, scores, classes, iou_threshold, max_detections, score_threshold)


def nms_numpy(
    boxes_xyxy: NDArray,
    scores: NDArray,
    classes: NDArray | None = None,
    iou_threshold: float = 0.65,
    max_detections: int | None = None,
    score_threshold: float = -np.inf,
) -> NDArray[np.int64]:
    """`nms` in NumPy, for arguments that it has checked.

    The loop is over blocks of boxes, best first: boxes of a block are first compared with all kept so far, then among
    themselves. Once `max_detections` are kept the rest is never looked at.
    """
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    limit = len(boxes) if max_detections is None else max_detections
    if np.isnan(scores).any():
        raise InputError(f"NMS: score {int(np.isnan(scores).argmax())} is NaN; give numbers")
    order = np.argsort(-np.asarray(scores), kind="stable")
    order = order[scores[order] >= score_threshold]
    finite = np.isfinite(boxes[order]).all(axis=1)
    if limit and not finite.all():
        raise InputError(f"NMS: box {order[finite.argmin()]} has a coordinate that is not finite; give numbers")
    kept = np.zeros(0, np.int64)
    for start in range(0, len(order), BLOCK):
        if len(kept) >= limit:
            break
        block = order[start : start + BLOCK]
        if len(kept):
            block = block[~_overlaps(boxes, classes, block, kept, iou_threshold).any(axis=1)]
        kept = np.concatenate([kept, block[_greedy(_overlaps(boxes, classes, block, block, iou_threshold))]])
    return kept[:limit]


def _float32(values: NDArray) -> NDArray[np.float32] | None:
    """The same numbers as float32, or None where float32 cannot hold them; rounding could decide differently."""
    if values.dtype == np.float32:
        return np.ascontiguousarray(values)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = values.astype(np.float32)
    return narrow if np.array_equal(narrow, values, equal_nan=True) else None


def _labels(classes: NDArray) -> NDArray[np.int32]:
    """Class numbers as int32; others are numbered in order."""
    narrow = classes.astype(np.int32) if classes.dtype.kind in "iu" else None
    if narrow is None or not np.array_equal(narrow, classes):
        narrow = np.unique(classes, return_inverse=True)[1].reshape(-1).astype(np.int32)
    return np.ascontiguousarray(narrow)


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
