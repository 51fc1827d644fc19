"""What `detect` and `classify` add to the decoders: the classes of a box, limits, the way to the image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from roadworthy.detect import decode as module
from roadworthy.detect.decode import classify, detect
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError

ONE_CELL = DecodeSpec("yolox", 3, (8, 8), (8,))
TWO_CLASSES = [0.0, 0.0, 0.0, 0.0, 1.0, 0.9, 0.1, 0.8]  # cell 0: obj 1, classes 0.9, 0.1, 0.8


def test_yolox_gives_a_box_its_best_class_only() -> None:
    result = detect({"o": np.array([[TWO_CLASSES]], np.float32)}, ONE_CELL, score_threshold=0.5)
    assert result.classes.tolist() == [0]


def test_other_families_give_a_box_every_class_above_the_threshold() -> None:
    rows = np.array([[[4, 4, 8, 8, 1.0, 0.9, 0.1, 0.8]]], np.float32)
    result = detect({"o": rows}, DecodeSpec("yolov5", 3, (8, 8), decoded=True), score_threshold=0.5)
    assert result.classes.tolist() == [0, 2]
    assert result.boxes_xyxy.tolist() == [[0, 0, 8, 8]] * 2


def test_boxes_go_to_the_image_after_nms() -> None:
    seen = []

    def to_image(boxes: np.ndarray) -> np.ndarray:
        seen.append(len(boxes))
        return boxes * 10 + 1

    rows = np.array([[[4, 4, 8, 8, 1, 0.9], [4, 4, 8, 7.9, 1, 0.8]]], np.float32)
    result = detect({"o": rows}, DecodeSpec("yolov5", 1, (8, 8), decoded=True), to_image)
    assert seen == [1] and result.boxes_xyxy.tolist() == [[1, 1, 81, 81]]


def test_no_detection_is_an_empty_result() -> None:
    result = detect({"o": np.zeros((1, 1, 8), np.float32)}, ONE_CELL, lambda boxes: boxes * 2)
    assert len(result) == 0 and result.boxes_xyxy.shape == (0, 4)


def test_the_best_candidates_enter_nms(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    n = 400
    rows = np.zeros((1, 4 + 2, n), np.float32)
    rows[0, 0], rows[0, 1], rows[0, 2:4] = np.arange(n) * 10, 5, 4  # far apart: NMS keeps all
    rows[0, 4:] = rng.random((2, n))
    spec = DecodeSpec("yolov8", 2, (8, 8))
    full = detect({"o": rows}, spec, score_threshold=0.0, max_detections=10_000)
    monkeypatch.setattr(module, "CANDIDATES", 50)
    few = detect({"o": rows}, spec, score_threshold=0.0, max_detections=10_000)
    assert len(full) == 2 * n and len(few) == 50
    assert np.array_equal(few.scores, np.sort(rows[0, 4:].reshape(-1))[::-1][:50])
    assert np.array_equal(few.boxes_xyxy, full.boxes_xyxy[:50])


def test_a_wild_box_logit_stays_finite() -> None:
    rows = np.array([[[0, 0, 900.0, 1e30, 1, 1, 0, 0]]], np.float32)
    assert np.isfinite(detect({"o": rows}, ONE_CELL).boxes_xyxy).all()


def test_an_infinite_box_is_refused() -> None:
    rows = np.array([[[np.inf, 0, 0, 0, 1, 1, 0, 0]]], np.float32)
    with pytest.raises(InputError, match="not finite"):
        detect({"o": rows}, ONE_CELL)


def test_a_score_a_rounding_step_above_one_is_one() -> None:
    rows = np.array([[[4, 4, 8, 8, 1.004, 1.004]]], np.float32)
    assert detect({"o": rows}, DecodeSpec("yolov5", 1, (8, 8), decoded=True)).scores.tolist() == [1.0]


def test_an_unknown_output_name_is_refused() -> None:
    with pytest.raises(InputError, match="no output 'boxes'"):
        detect({"o": np.zeros((1, 1, 8))}, replace(ONE_CELL, outputs=("boxes",)))


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1, 5, 1, 1)])
def test_classify_applies_softmax_where_logits(shape: tuple[int, ...]) -> None:
    logits = np.array([1.0, 1002.0, 1003.0, -4.0, 0.0], np.float32)  # a plain exp would overflow
    got = classify({"x": logits.reshape(shape)}, DecodeSpec("classify", 5, scores_are_logits=True))
    e = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(got, [0, 1 - e, e, 0, 0], atol=1e-6)
    assert got.dtype == np.float32
    kept = classify({"x": logits.reshape(shape)}, DecodeSpec("classify", 5))
    assert np.array_equal(kept, logits)


def test_classify_drops_the_background() -> None:
    spec = DecodeSpec("classify", 2, background=0)
    assert classify({"x": np.array([[0.5, 0.2, 0.3]], np.float32)}, spec).tolist() == pytest.approx([0.2, 0.3])


@pytest.mark.parametrize("shape", [(2, 5), (1, 4), (1, 5, 5)])
def test_classify_names_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="'x' has shape"):
        classify({"x": np.zeros(shape, np.float32)}, DecodeSpec("classify", 5))
