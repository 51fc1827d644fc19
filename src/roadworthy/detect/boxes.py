"""Box geometry on arrays.

A box is (x1, y1, x2, y2), x to the right and y down, without the "+1" of whole-pixel conventions:

    area = (x2 - x1) * (y2 - y1)
    IoU  = area(a & b) / (area(a) + area(b) - area(a & b))
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def cxcywh_to_xyxy(boxes_cxcywh: NDArray) -> NDArray[np.float32]:
    """(..., 4) centre and size -> (..., 4) float32 corners, in the same unit."""
    boxes = np.asarray(boxes_cxcywh, np.float32)
    half = boxes[..., 2:4] * np.float32(0.5)
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def xyxy_to_cxcywh(boxes_xyxy: NDArray) -> NDArray[np.float32]:
    """(..., 4) corners -> (..., 4) float32 centre and size, in the same unit."""
    boxes = np.asarray(boxes_xyxy, np.float32)
    low, high = boxes[..., :2], boxes[..., 2:4]
    return np.concatenate([(low + high) * np.float32(0.5), high - low], axis=-1)


def area(boxes_xyxy: NDArray) -> NDArray[np.float64]:
    """(N, 4) -> (N,) areas in square units; a box with swapped corners has area 0."""
    boxes = np.asarray(boxes_xyxy, np.float64)
    return np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)


def intersection_matrix(a_xyxy: NDArray, b_xyxy: NDArray) -> NDArray[np.float64]:
    """(N, 4) and (M, 4) -> (N, M) areas shared by each pair."""
    a, b = np.asarray(a_xyxy, np.float64), np.asarray(b_xyxy, np.float64)
    shared = np.minimum(a[:, None, 2], b[None, :, 2])
    shared -= np.maximum(a[:, None, 0], b[None, :, 0])
    np.maximum(shared, 0, out=shared)
    height = np.minimum(a[:, None, 3], b[None, :, 3])
    height -= np.maximum(a[:, None, 1], b[None, :, 1])
    np.maximum(height, 0, out=height)
    shared *= height
    return shared


def iou_matrix(a_xyxy: NDArray, b_xyxy: NDArray) -> NDArray[np.float64]:
    """(N, 4) and (M, 4) -> (N, M) intersection over union in 0..1; 0 where both boxes are empty.

    Computed in float64, where products of float32 corners are close to exact, so that a threshold decides the same
    way in every implementation.
    """
    shared = intersection_matrix(a_xyxy, b_xyxy)
    union = area(a_xyxy)[:, None] + area(b_xyxy)[None, :]
    union -= shared
    np.maximum(union, np.finfo(np.float64).tiny, out=union)
    shared /= union
    return shared


def clip(boxes_xyxy: NDArray, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """(N, 4) boxes cut to an image of (height, width) pixels, float32."""
    height, width = size_hw
    boxes = np.array(boxes_xyxy, np.float32).reshape(-1, 4)
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    return boxes
