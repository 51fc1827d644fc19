"""The reference without labels, against labels that follow the scores exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from roadworthy.check.accuracy import (
    Predictions,
    Reference,
    agreement,
    draw_truths,
    drop,
    labelled,
    match_pairs,
    mirror,
    output_sqnr_db,
    predict,
    reference_of,
    score,
)
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.detections import Detections, Truth
from roadworthy.detect.spec import DecodeSpec
from roadworthy.model.task import Task

DETECTOR = Task(Preprocess((64, 64)), DecodeSpec("ssd", num_classes=1, input_hw=(64, 64)))
CLASSIFIER = Task(Preprocess((8, 8), resize="stretch"), DecodeSpec("classify", num_classes=10, input_hw=(8, 8)))
RNG = np.random.default_rng(11)


def test_expected_accuracy_is_what_labels_drawn_from_the_probabilities_give() -> None:
    n = 4000
    p = RNG.dirichlet(np.full(10, 0.3), n).astype(np.float32)
    labels = np.array([RNG.choice(10, p=row / row.sum()) for row in p.astype(np.float64)])
    noisy = p + RNG.normal(0, 0.15, p.shape).astype(np.float32)
    truth, stand_in = Reference("labels", labels=labels), Reference("drawn", probabilities=p)
    original, candidate = Predictions(scores=p), Predictions(scores=noisy)
    real = drop(original, candidate, truth, CLASSIFIER, 200)
    estimated = drop(original, candidate, stand_in, CLASSIFIER, 200)
    assert estimated.drop > 1
    assert estimated.drop == pytest.approx(real.drop, abs=1.5)  # two standard errors of 4000 labels
    assert estimated.low < estimated.drop < estimated.high
    accuracy = score(original, stand_in, CLASSIFIER).value
    assert accuracy == pytest.approx(score(original, truth, CLASSIFIER).value, abs=2)


def test_boxes_are_drawn_with_the_probability_of_their_score() -> None:
    boxes = np.tile(np.array([[0, 0, 10, 10]], np.float32), (3, 1))
    found = [Detections(boxes, np.array([0.9, 0.4, 0.02]), np.zeros(3, int))] * 2000
    truths = draw_truths(found, draws=1, seed=1)
    assert sum(len(t) for t in truths) / 2000 == pytest.approx(1.3, abs=0.05)  # 0.9 + 0.4; below the floor never
    again = draw_truths(found, draws=1, seed=1)
    assert all(np.array_equal(a.boxes_xyxy, b.boxes_xyxy) for a, b in zip(truths, again))


def test_mirroring_twice_is_nothing() -> None:
    boxes = RNG.uniform(0, 60, (5, 4)).astype(np.float32)
    assert np.allclose(mirror(mirror(boxes, 64), 64), boxes)
    assert np.allclose(mirror(np.array([[1, 2, 5, 6]], np.float32), 10), [[5, 2, 9, 6]])


class Corner:
    """A network that sees one object: the brightest column of the image."""

    input_names = ("image",)
    output_names = ("boxes", "scores")

    def run(self, feeds: Mapping[str, NDArray], taps: Sequence[str] = ()) -> dict[str, NDArray]:
        x = float(feeds["image"][0].sum((0, 1)).argmax())
        return {"boxes": np.array([[[x - 4, 10, x + 5, 40]]], np.float32), "scores": np.array([[[0.97]]], np.float32)}


def image_with_column(x: int) -> NDArray[np.uint8]:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, x] = 255
    return image


def samples(kind: str = "images") -> Samples:
    truth = Truth.of(np.array([[16, 10, 25, 40]], np.float32), np.array([0]))
    return Samples(
        [
            Sample(f"{k}", load=lambda: image_with_column(20), key=f"{k}", truth=truth if kind == "boxes" else None)
            for k in range(12)
        ],
        kind,
    )


def test_mirrored_reference_lies_where_the_object_is() -> None:
    reference = reference_of(Corner, DETECTOR, samples())
    assert reference.kind != "labels" and len(reference.truths) == 12 * reference.draws
    shown = [t for t in reference.truths if len(t)]
    assert len(shown) > 40  # drawn with probability 0.97
    assert all(np.allclose(t.boxes_xyxy, [[16, 10, 25, 40]], atol=1.01) for t in shown)
    found = predict(Corner(), DETECTOR, samples())
    assert score(found, reference, DETECTOR).value > 60


def test_labels_win_over_the_stand_in() -> None:
    assert labelled(DETECTOR, samples("boxes")) and not labelled(DETECTOR, samples())
    reference = reference_of(Corner, DETECTOR, samples("boxes"))
    assert reference.kind == "labels" and reference.draws == 1


def test_agreement_counts_each_detection_once() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40]], np.float32)
    a = Detections(boxes, np.array([0.9, 0.8]), np.array([0, 0]))
    b = Detections(np.array([[0, 0, 10, 10], [0, 0, 10, 9]], np.float32), np.array([0.9, 0.8]), np.array([0, 0]))
    assert [(i, j) for i, j, _ in match_pairs(a, b)] == [(0, 0)]
    told = agreement(Predictions((a,)), Predictions((b,)), DETECTOR)
    assert told["found_again"] == 50 and told["also_in_original"] == 50


def test_output_sqnr_is_the_worst_output() -> None:
    x = RNG.normal(0, 1, 1000)
    a = Predictions(raw=({"x": x, "y": x},))
    b = Predictions(raw=({"x": x + 0.1 * RNG.normal(0, 1, 1000), "y": x},))
    assert output_sqnr_db(a, b) == pytest.approx(20, abs=0.5)
    assert replace(DETECTOR.decode, kind="raw").kind == "raw"
