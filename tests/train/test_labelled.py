"""Losses against labels, and the way of labels into the input tensor."""

from __future__ import annotations

import math

import numpy as np
import pytest

from roadworthy.data.preprocess import Preprocess
from roadworthy.detect.detections import Detections, Truth
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError

torch = pytest.importorskip("torch")

from roadworthy.train.labelled import Labels, SoftLabels, boxes_of, found_boxes, smoothed, to_input  # noqa: E402
from roadworthy.train.reading import seen  # noqa: E402
from roadworthy.train.target import Target  # noqa: E402

SPEC = DecodeSpec("yolox", 3, (64, 64), (8,), decoded=True, scores_are_logits=True)
LIKE = torch.zeros(1, dtype=torch.float64)


def rows(objectness: float = -8.0) -> torch.Tensor:
    """(64, 8): every cell predicts 16 pixels around its point, and nothing there."""
    made = torch.zeros(64, 8, dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    made[:, 0], made[:, 1] = x.reshape(-1) * 8 + 4, y.reshape(-1) * 8 + 4
    made[:, 2:4] = 16
    made[:, 4:] = objectness
    return made


def student(table: torch.Tensor):  # type: ignore[no-untyped-def]
    return seen({"y": table[None]}, ("y",), SPEC)


def truth(*boxes: list[float], classes: list[int] | None = None, ignore: list[bool] | None = None) -> Truth:
    return Truth.of(np.array(boxes), np.array(classes or [0] * len(boxes)), ignore=ignore and np.array(ignore))


@pytest.mark.parametrize("resize, anchor", [("letterbox", "topleft"), ("letterbox", "center"), ("stretch", "topleft")])
def test_boxes_go_in_as_detections_come_back(resize: str, anchor: str):
    rng = np.random.default_rng(0)
    _, geometry = Preprocess((64, 96), resize=resize, anchor=anchor)(np.zeros((50, 31, 3), np.uint8))
    corners = np.sort(rng.random((20, 2, 2)), 1) * [31, 50]
    labels = Truth.of(corners.reshape(-1, 4), np.arange(20) % 3)
    made = to_input(labels, geometry)
    # one rounding to float32 of pixels up to 96 on the way in, one on the way back: 96 * 2^-23, divided by the ratio
    assert np.abs(geometry.to_image(made.boxes_xyxy) - labels.boxes_xyxy).max() < 1e-4
    inside = made.boxes_xyxy
    assert (inside >= -1e-4).all() and (inside <= [96.001, 64.001, 96.001, 64.001]).all()
    made_areas = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])
    assert made.areas == pytest.approx(made_areas, rel=1e-3, abs=1e-2)


def test_a_box_lies_where_its_pixels_do():
    """The crop's offset counts: a white rectangle in the image is white in the tensor within the mapped box."""
    image = np.zeros((80, 120, 3), np.uint8)
    image[30:50, 40:80] = 255
    for preprocess in (Preprocess((64, 64), resize="letterbox", anchor="center", pad_value=0, interpolation="nearest"),
                       Preprocess((64, 64), resize="crop", short_side=70, interpolation="nearest")):  # fmt: skip
        tensor, geometry = preprocess(image)
        x1, y1, x2, y2 = to_input(truth([40, 30, 80, 50]), geometry).boxes_xyxy[0]
        high, wide = np.nonzero(tensor[0, 0] > 128)
        assert [wide.min(), high.min(), wide.max() + 1, high.max() + 1] == pytest.approx([x1, y1, x2, y2], abs=1.0)


def test_what_the_tensor_does_not_show_is_no_label():
    labels = truth([-20, 5, -2, 30], [-20, 5, 12, 30], [60, 60, 90, 90], [3, 3, 3.5, 9], [5, 5, 9, 9],
                   classes=[0, 1, 2, 0, 1], ignore=[False] * 4 + [True])  # fmt: skip
    made = boxes_of(labels, (64, 64), LIKE)
    assert made.boxes.tolist() == [[0, 5, 12, 30], [60, 60, 64, 64]] and made.classes.tolist() == [1, 2]
    assert made.ignored.tolist() == [[5, 5, 9, 9]] and made.weights.tolist() == [1, 1]
    soft = boxes_of(Detections(np.array([[0, 0, 9, 9.0]]), np.array([0.5]), np.array([2])), (64, 64), LIKE)
    assert soft.weights.tolist() == [0.5] and soft.ignored.shape == (0, 4)


def test_a_right_answer_costs_little_and_each_wrong_one_more():
    labels = boxes_of(truth([24, 24, 40, 40], classes=[1]), (64, 64), LIKE)
    right = rows()
    right[27, :4] = torch.tensor([32.0, 32.0, 16.0, 16.0])
    right[27, 4], right[27, 6] = 8.0, 8.0
    best = float(found_boxes(student(right), labels))
    for change in ((27, 4, -8.0), (27, 6, -8.0), (27, 5, 8.0), (27, 2, 30.0), (0, 4, 8.0)):
        wrong = right.clone()
        wrong[change[0], change[1]] = change[2]
        assert float(found_boxes(student(wrong), labels)) > best + 0.5, change
    # The ten best IoUs, 1 + 3 * 0.39 + ..., sum to 2: a second cell is asked, and sees nothing: 8 nats and a box.
    assert best < 8 + 1 + 5


def test_no_object_is_a_label_too():
    nothing = boxes_of(truth(), (64, 64), LIKE)
    quiet, loud = (float(found_boxes(student(rows(x)), nothing)) for x in (-8.0, 0.0))
    assert quiet == pytest.approx(64 * math.log1p(math.exp(-8))) and loud == pytest.approx(64 * math.log(2))


def test_ignored_boxes_are_neither_right_nor_wrong():
    crowd = boxes_of(truth([0, 0, 64, 64], ignore=[True]), (64, 64), LIKE)
    assert float(found_boxes(student(rows(8.0)), crowd)) == 0


def test_soft_labels_count_as_much_as_their_score():
    """The objectness that costs least is the score; box and class weigh as much as it."""

    def slopes(score: float) -> torch.Tensor:
        table = rows()
        table[27, :4] = torch.tensor([31.0, 32.0, 16.0, 16.0])
        table[27, 4] = math.log(score / (1 - score)) if score < 1 else 0.0
        made = Detections(np.array([[24, 24, 40, 40.0]] * 2), np.array([score, score]), np.array([1, 1]))
        soft = boxes_of(made, (64, 64), LIKE)
        loss = SoftLabels()(student(table.requires_grad_()), Target((), (), (), soft=((soft, 1.0),)), 0.0)
        return torch.autograd.grad(loss, table)[0][27]

    half = slopes(0.5)
    assert abs(float(half[4])) < 1e-12 and abs(float(slopes(0.8)[4])) < 2**-24  # 0.8 is kept as a float32
    assert float(half[0]) < 0 and float(half[6]) < 0  # further right, surer of class 1


def test_smoothing():
    row = torch.tensor([0.0, 2.0, -1.0], dtype=torch.float64)
    logs = torch.log_softmax(row, 0).tolist()
    assert float(smoothed(row, 1, 0.0)) == pytest.approx(-logs[1])
    wanted = [0.1, 0.8, 0.1]
    entropy = -sum(w * math.log(w) for w in wanted)
    assert float(smoothed(row, 1, 0.3)) == pytest.approx(-sum(w * v for w, v in zip(wanted, logs)) - entropy)
    assert abs(float(smoothed(torch.tensor(wanted).double().log(), 1, 0.3))) < 1e-12


def test_labels_do_not_count_the_background():
    row = torch.tensor([1.0, 5.0, 2.0, 3.0], dtype=torch.float64)
    for background, label, column in ((0, 0, 1), (0, 2, 3), (-1, 2, 2), (2, 1, 1), (2, 2, 3)):
        found = float(smoothed(row, label, 0.0, background))
        assert found == pytest.approx(-float(torch.log_softmax(row, 0)[column]))


def test_an_image_without_labels_costs_nothing():
    table = rows().requires_grad_()
    found = Labels()(student(table), Target((), (), ()), 0.0)
    assert float(found.detach()) == 0 and float(torch.autograd.grad(found, table)[0].abs().max()) == 0


def test_a_class_the_model_does_not_have():
    with pytest.raises(InputError, match="a label has the class 3, but the model scores 3 classes"):
        found_boxes(student(rows()), boxes_of(truth([8, 8, 30, 30], classes=[3]), (64, 64), LIKE))
    with pytest.raises(InputError, match="the label 3 is none of the 3 classes"):
        smoothed(torch.zeros(3), 3, 0.1)


def test_descent_on_labels_finds_the_box():
    """Two hundred steps down the slope, from nothing: the likeliest box is the labelled one."""
    labels = boxes_of(truth([20, 22, 44, 41], classes=[2]), (64, 64), LIKE)
    table = rows(-3.0).requires_grad_()
    scale = torch.ones(8, dtype=torch.float64)
    scale[:4] = 20
    for _ in range(200):
        loss = found_boxes(student(table), labels)
        (slope,) = torch.autograd.grad(loss, table)
        with torch.no_grad():
            table -= 0.2 * scale * slope
    made = student(table.detach())
    best = int(made.scores.max(1).values.argmax())
    assert int(made.scores[best].argmax()) == 2 and float(made.scores[best, 2]) > 0.5
    assert made.boxes[best].tolist() == pytest.approx([20, 22, 44, 41], abs=1.0)
