"""NMS, in C++ and in NumPy, against the plain loop that it must equal, kept set for kept set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roadworthy.detect import nms as module
from roadworthy.detect.nms import BLOCK, nms, nms_numpy
from roadworthy.errors import InputError

_native = module._native
ISAS = _native.isas() if _native else []


def reference(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray | None, threshold: float) -> list[int]:
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
    return kept


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
        expected = reference(boxes, scores, classes, threshold)
        for limit in (None, 5, 0):
            assert nms(boxes, scores, classes, threshold, limit).tolist() == expected[:limit]
            assert nms_numpy(boxes, scores, classes, threshold, limit).tolist() == expected[:limit]


def test_at_the_threshold_a_box_stays() -> None:
    boxes = np.array([[0, 0, 2, 1], [0, 0, 1, 1]])  # IoU exactly 0.5
    assert nms(boxes, np.array([0.9, 0.8]), None, 0.5).tolist() == [0, 1]
    assert nms(boxes, np.array([0.9, 0.8]), None, 0.499).tolist() == [0]


def test_a_dropped_box_drops_nothing() -> None:
    boxes = np.array([[0, 0, 10, 1], [4, 0, 14, 1], [8, 0, 18, 1]])  # neighbours overlap by 6/14, the ends by 2/18
    assert nms(boxes, np.array([0.9, 0.8, 0.7]), None, 0.4).tolist() == [0, 2]


def test_bad_input() -> None:
    with pytest.raises(InputError, match="is outside"):
        nms(np.zeros((1, 4)), np.zeros(1), None, 65)
    with pytest.raises(InputError, match="2 boxes and 1 scores"):
        nms(np.zeros((2, 4)), np.zeros(1))


# Few distinct numbers make ties, boxes without area, swapped corners and IoUs exactly at a threshold; the wild ones
# leave the range in which the fast paths decide in float32.
TAME = st.sampled_from([0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 0.1, 7.3, -4.0])
WILD = st.sampled_from([0.0, 1.0, 2.0, 1e-30, 2e-30, 1e-45, 1e19, 2e19, 3e38, -3e38])
SCORES = st.sampled_from([0.0, -0.0, 0.25, 0.5, 0.9, 1.0, -1.0, np.inf, -np.inf])


@pytest.mark.skipif(not ISAS, reason="the native module is not built")
@settings(max_examples=400, deadline=None)
@given(st.data())
def test_native_equals_numpy(data: st.DataObject) -> None:
    side = data.draw(st.sampled_from([TAME, TAME, WILD]))
    rows = data.draw(st.lists(st.tuples(side, side, side, side, SCORES, st.integers(0, 2)), max_size=40))
    table = np.array(rows, np.float64).reshape(-1, 6)
    boxes, scores = table[:, :4].astype(np.float32), table[:, 4].astype(np.float32)
    classes = table[:, 5].astype(np.int32) if data.draw(st.booleans()) else None
    iou = data.draw(st.sampled_from([0.0, 1e-9, 0.2, 1 / 3, 0.5, 0.65, 1.0]))
    lowest = data.draw(st.sampled_from([-np.inf, 0.0, 0.5]))
    limit = data.draw(st.sampled_from([None, 0, 1, 7]))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = nms_numpy(boxes, scores, classes, iou, limit, lowest).tolist()
    for isa in ISAS:
        found = _native.nms(boxes, scores, classes, iou, lowest, -1 if limit is None else limit, isa)
        assert found.tolist() == expected


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("aware", [True, False])
def test_native_on_thousands_of_clustered_boxes(aware: bool, isa: str) -> None:
    rng = np.random.default_rng(3)
    which = rng.integers(0, 60, 3000)
    centre = rng.uniform(0, 500, (60, 2))[which] + rng.normal(0, 4, (3000, 2))
    half = rng.uniform(5, 60, (60, 2))[which] * np.exp(rng.normal(0, 0.1, (3000, 2)))
    boxes = np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)
    scores = rng.random(3000).astype(np.float32)
    classes = rng.integers(0, 5, 3000).astype(np.int32) if aware else None
    for threshold in (0.0, 0.5, 0.9):
        for limit in (None, 40):
            expected = nms_numpy(boxes, scores, classes, threshold, limit).tolist()
            found = _native.nms(boxes, scores, classes, threshold, 0.0, -1 if limit is None else limit, isa)
            assert found.tolist() == expected


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    ("boxes", "scores", "message"),
    [
        ([[0, 0, np.nan, 1], [0, 0, 1, 1]], [0.5, 0.4], "box 0 has a coordinate that is not finite"),
        ([[0, 0, 1, 1], [0, np.inf, 1, 1]], [0.5, 0.4], "box 1 has a coordinate that is not finite"),
        ([[0, 0, 1, 1], [0, 0, 1, 1]], [0.5, np.nan], "score 1 is NaN"),
        ([[0, 0, 1, 1], [0, 0, 1, 1]], [-np.nan, 0.5], "score 0 is NaN"),
    ],
)
def test_numbers_that_are_not_finite(
    boxes: list, scores: list, message: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(module, "_native", None)
    with pytest.raises(InputError, match=message):
        nms(np.array(boxes, np.float32), np.array(scores, np.float32))


def test_scores_below_the_threshold_take_no_part() -> None:
    boxes, scores = np.array([[0, 0, 1, 1]] * 3, np.float32), np.array([0.2, 0.3, 0.1], np.float32)
    assert nms(boxes, scores, None, 1.0, None, 0.2).tolist() == [1, 0]
    boxes[2] = np.nan
    assert nms(boxes, scores, None, 1.0, None, 0.2).tolist() == [1, 0]


def test_numbers_that_float32_cannot_hold() -> None:
    """The IoU is 0.5 exactly only in float64; class numbers are told apart beyond 32 bits."""
    boxes, scores = np.array([[0.1, 0, 2.1, 1], [0.1, 0, 1.1, 1 + 1e-12]]), np.array([0.9, 0.8])
    assert nms(boxes, scores, None, 0.5).tolist() == reference(boxes, scores, None, 0.5)
    same = np.array([[0, 0, 1, 1]] * 3, np.float32)
    assert nms(same, np.array([3, 2, 1]), np.array([1, 1 + 2**32, 1])).tolist() == [0, 1]
    assert nms(same, np.array([3, 2, 1]), np.array([0.5, 0.25, 0.5])).tolist() == [0, 1]
