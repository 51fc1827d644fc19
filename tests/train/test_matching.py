"""Which cells answer for which boxes, on cases that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from roadworthy.detect.spec import DecodeSpec

torch = pytest.importorskip("torch")

from roadworthy.train.matching import match, places  # noqa: E402

SPEC = DecodeSpec("yolov8", 2, (64, 64), (8,))


def grid() -> tuple:
    """64 cells of 8 pixels; each predicts a box of 16 pixels around its point, and sees nothing."""
    points, reach = places(SPEC, torch.zeros(64, 4))
    boxes = torch.cat([points - 8, points + 8], 1)
    return points, reach, boxes, torch.full((64, 2), 0.01)


def found(truths: list, classes: list, boxes=None, scores=None) -> dict[int, int]:
    """Cell -> truth."""
    points, reach, own, low = grid()
    made = match(
        own if boxes is None else boxes, low if scores is None else scores, points, reach,
        torch.tensor(truths, dtype=torch.float32).reshape(-1, 4), torch.tensor(classes, dtype=torch.int64),
    )  # fmt: skip
    return dict(zip(made.cells.tolist(), made.truths.tolist()))


def test_points_are_the_middles_of_cells():
    points, reach, _, _ = grid()
    assert points[:2].tolist() == [[4, 4], [12, 4]] and points[8].tolist() == [4, 12]
    assert set(reach.reshape(-1).tolist()) == {8.0}


def test_one_box_takes_the_cells_inside_that_fit_it_best():
    # The box's centre is the corner of four cells; IoU of each: overlap 12x12, 144 / (256 + 256 - 144) = 0.391.
    # The next ones overlap 4x12: 48 / 464 = 0.103 (eight of them). Of the ten best: 4 * 0.391 + 6 * 0.103 = 2.19: two.
    # The four cost the same, and the first of equals is taken.
    assert found([[24, 24, 40, 40]], [0]) == {27: 0, 28: 0}


def test_a_score_for_the_class_makes_a_cell_cheaper():
    _, _, _, scores = grid()
    scores[36, 1] = 0.9
    scores[35, 0] = 0.9  # of another class: dearer
    assert found([[24, 24, 40, 40]], [1], scores=scores) == {36: 0, 27: 0}


def test_cells_outside_are_not_asked_though_they_fit():
    points, _, boxes, _ = grid()
    boxes[:] = torch.tensor([24.0, 24.0, 40.0, 40.0])  # every cell predicts the very box
    answering = found([[24, 24, 40, 40]], [0], boxes=boxes)
    assert len(answering) == 10
    for cell in answering:  # ten of the 16 within 2.5 strides of the centre; the four inside are among them
        assert (points[cell] - 32).abs().max() < 20
    assert {27, 28, 35, 36} <= set(answering)


def test_a_cell_that_two_boxes_want_goes_to_the_cheaper():
    points, reach, boxes, scores = grid()
    boxes[27], boxes[36] = torch.tensor([20.0, 20.0, 40.0, 40.0]), torch.tensor([24.0, 24.0, 40.0, 40.0])
    made = match(
        boxes, scores, points, reach, torch.tensor([[20.0, 20.0, 40.0, 40.0], [24.0, 24.0, 40.0, 40.0]]),
        torch.tensor([0, 0]),
    )  # fmt: skip
    assert len(set(made.cells.tolist())) == len(made.cells)
    answering = dict(zip(made.cells.tolist(), made.truths.tolist()))
    assert answering[27] == 0 and answering[36] == 1  # each is in reach of both
    ious = dict(zip(made.cells.tolist(), made.ious.tolist()))
    assert ious[27] == pytest.approx(1.0) and ious[36] == pytest.approx(1.0)


def test_no_box():
    assert found([], []) == {}


def test_a_box_between_all_points_gets_the_nearest():
    """Smaller than a cell, and so far from every reach that none is asked by the rule."""
    points, _, boxes, scores = grid()
    made = match(
        boxes, scores, points, torch.full((64, 1), 0.1), torch.tensor([[33.0, 33.0, 35.0, 35.0]]), torch.tensor([0])
    )
    assert made.cells.tolist() == [36]  # (36, 36) is nearest to (34, 34)


@pytest.mark.parametrize("kind, anchors", [("yolox", ()), ("yolov5", (((8.0, 8.0),) * 3, ((16.0, 16.0),) * 3))])
def test_rows_of_a_grid_have_its_points(kind: str, anchors: tuple):
    spec = DecodeSpec(kind, 2, (32, 48), (8, 16), anchors)
    each = len(anchors[0]) if anchors else 1
    points, reach = places(spec, torch.zeros(each * (24 + 6), 4))
    assert points[0].tolist() == [4, 4] and points[24 * each].tolist() == [8, 8]
    assert reach.reshape(-1).tolist() == [8.0] * 24 * each + [16.0] * 6 * each
    assert np.array_equal(points[: 24 * each].reshape(each, 24, 2)[-1], points[:24])


def test_rows_of_no_grid_are_where_their_boxes_are():
    points, reach = places(DecodeSpec("ssd", 2, (32, 48)), torch.tensor([[10.0, 10.0, 20.0, 40.0]]))
    assert points.tolist() == [[15, 25]] and reach.tolist() == [[5]]
