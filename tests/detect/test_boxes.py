"""Box geometry against counted pixels and against pycocotools."""

from __future__ import annotations

import numpy as np
from pycocotools import mask

from roadworthy.detect.boxes import area, clip, cxcywh_to_xyxy, intersection_matrix, iou_matrix, xyxy_to_cxcywh


def random_boxes(rng: np.random.Generator, count: int, side: int = 40) -> np.ndarray:
    corner = rng.integers(0, side, (count, 2))
    return np.concatenate([corner, corner + rng.integers(0, side, (count, 2))], axis=1).astype(np.float32)


def test_areas_are_counted_pixels() -> None:
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 12), random_boxes(rng, 9)

    def paint(box: np.ndarray) -> np.ndarray:
        canvas = np.zeros((80, 80), bool)
        x1, y1, x2, y2 = box.astype(int)
        canvas[y1:y2, x1:x2] = True
        return canvas

    shared = [[(paint(p) & paint(q)).sum() for q in b] for p in a]
    assert np.array_equal(intersection_matrix(a, b), shared)
    assert np.array_equal(area(a), [paint(p).sum() for p in a])
    union = np.array([[(paint(p) | paint(q)).sum() for q in b] for p in a])
    np.testing.assert_allclose(iou_matrix(a, b), np.array(shared) / np.maximum(union, 1), atol=1e-15)


def test_iou_agrees_with_pycocotools_on_fractions() -> None:
    rng = np.random.default_rng(1)
    corner = rng.random((60, 2)) * 100
    boxes = np.concatenate([corner, corner + rng.random((60, 2)) * 50 + 0.1], axis=1).astype(np.float32)
    as_xywh = boxes.astype(np.float64)
    as_xywh[:, 2:] -= as_xywh[:, :2]
    expected = mask.iou(as_xywh[:30], as_xywh[30:], np.zeros(30, np.uint8))
    np.testing.assert_allclose(iou_matrix(boxes[:30], boxes[30:]), expected, atol=1e-14)


def test_empty_boxes_overlap_nothing() -> None:
    point = np.array([[3, 3, 3, 3]], np.float32)
    assert iou_matrix(point, point)[0, 0] == 0
    assert iou_matrix(np.zeros((0, 4)), point).shape == (0, 1)
    assert area(np.array([[5, 5, 1, 9]])) == [0]


def test_centre_form_round_trip() -> None:
    assert np.array_equal(cxcywh_to_xyxy(np.array([[10, 20, 4, 6]])), [[8, 17, 12, 23]])
    boxes = random_boxes(np.random.default_rng(2), 50)
    assert np.array_equal(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)  # halves of integers are exact


def test_clip_keeps_x_within_width_and_y_within_height() -> None:
    boxes = np.array([[-5, -6, 700, 500], [1, 2, 3, 4]], np.float32)
    assert np.array_equal(clip(boxes, (480, 640)), [[0, 0, 640, 480], [1, 2, 3, 4]])
    assert boxes[0, 0] == -5  # the argument is left alone
