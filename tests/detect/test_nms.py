"""NMS against the plain loop that it must equal, kept set for kept set."""

from __future__ import annotations

import numpy as np
import pytest

from roadworthy.detect.nms import BLOCK, nms
from roadworthy.errors import InputError


def reference(
    boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray | None, threshold: float, limit: int | None
) -> list[int]:
    """Greedy NMS one pair at a time, in Python floats."""
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda k: -scores[k]):
        ax1, ay1, ax2, ay2 = map(float, boxes[i])
        for j in kept:
            bx1, by1, bx2, by2 = map(float, boxes[j])
            shared = max(min(ax2, bx2) - max(ax1, bx1), 0.0) * max(min(ay2, by2) - max(ay1, by1), 0.0)
            union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
            if (classes is None or classes[i] == classes[j]) and union > 0 and shared / union > threshold:
                break
        else:
            kept.append(i)
    return kept if limit is None else kept[:limit]


@pytest.mark.parametrize("count", [0, 1, 2, 37, BLOCK, BLOCK + 1, 2 * BLOCK + 50])
@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("whole", [True, False], ids=["integers", "fractions"])
def test_equals_the_reference(count: int, aware: bool, whole: bool) -> None:
    rng = np.random.default_rng(count)
    corner = rng.random((count, 2)) * 60
    boxes = np.concatenate([corner, corner + rng.random((count, 2)) * 30], axis=1).astype(np.float32)
    scores = rng.random(count).astype(np.float32)
    if whole:  # many equal scores, equal boxes and IoUs exactly at the threshold
        boxes, scores = np.round(boxes / 10) * 10, np.round(scores * 8) / 8
    classes = rng.integers(0, 3, count) if aware else None
    for threshold in (0.0, 0.3, 0.5, 0.65, 1.0):
        for limit in (None, 5):
            expected = reference(boxes, scores, classes, threshold, limit)
            assert nms(boxes, scores, classes, threshold, limit).tolist() == expected


def test_at_the_threshold_a_box_stays() -> None:
    boxes = np.array([[0, 0, 2, 1], [0, 0, 1, 1]])  # IoU exactly 0.5
    assert nms(boxes, np.array([0.9, 0.8]), None, 0.5).tolist() == [0, 1]
    assert nms(boxes, np.array([0.9, 0.8]), None, 0.499).tolist() == [0]


def test_a_dropped_box_drops_nothing() -> None:
    boxes = np.array([[0, 0, 10, 1], [4, 0, 14, 1], [8, 0, 18, 1]])  # neighbours overlap by 6/14, the ends by 2/18
    assert nms(boxes, np.array([0.9, 0.8, 0.7]), None, 0.4).tolist() == [0, 2]


def test_bad_input() -> None:
    with pytest.raises(InputError, match="outside 0..1"):
        nms(np.zeros((1, 4)), np.zeros(1), None, 65)
    with pytest.raises(InputError, match="2 boxes and 1 scores"):
        nms(np.zeros((2, 4)), np.zeros(1))
