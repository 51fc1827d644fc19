"""The refitted threshold: it takes back a shift of the scores, and leaves alone what is only noise."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from roadworthy.check.accuracy import predict
from roadworthy.check.contract import settle_task
from roadworthy.check.operating import LEAST_DETECTIONS, _falling, refit
from roadworthy.data.readers import read
from roadworthy.detect.detections import Detections, Truth
from roadworthy.detect.evaluate import operating_point
from roadworthy.detect.matches import match
from roadworthy.model.model import load
from roadworthy.run.targets import TARGETS


def street(seed: int, images: int) -> tuple[list[Truth], list[Detections]]:
    """Twelve places an image, a guess at each: one of score s is right with probability s."""
    rng = np.random.default_rng(seed)
    corner = np.stack([np.arange(12) * 50.0, np.zeros(12)], axis=1)
    boxes = np.concatenate([corner, corner + 40], axis=1)
    truths, found = [], []
    for _ in range(images):
        scores = rng.random(12) ** 2
        right = rng.random(12) < scores
        truths.append(Truth.of(boxes[right], np.zeros(right.sum(), int)))
        found.append(Detections(boxes, scores, np.zeros(12, int)))
    return truths, found


def changed(found: list[Detections], factor: float, jitter: float = 0.0, seed: int = 9) -> list[Detections]:
    """The same boxes with other scores."""
    rng = np.random.default_rng(seed)
    return [
        Detections(d.boxes_xyxy, np.clip(d.scores * factor * np.exp(jitter * rng.normal(size=len(d))), 0, 1), d.classes)
        for d in found
    ]


def point(truths: list[Truth], found: list[Detections], threshold: float) -> tuple[float, float]:
    recall, precision, _ = operating_point(match(truths, found, 1), threshold)
    assert recall is not None and precision is not None
    return recall, precision


@pytest.mark.parametrize("factor", [0.5, 0.7, 0.9, 1.1, 1.3])
def test_a_shift_of_all_scores_is_taken_back_on_other_images(factor: float) -> None:
    """Planted: every score times a factor. Right is the threshold times that factor; without it recall collapses.

    0.01 of a score is 0.7 points of precision here, half the standard error of the precision of 1300 detections.
    """
    truths, found = street(0, 300)
    result = refit(truths, found, changed(found, factor, 0.02), 1, 0.4)
    assert result.value == pytest.approx(0.4 * factor, abs=0.01)
    assert result.precision is not None and abs(result.precision[2] - result.precision[0]) < 1.5
    others, theirs = street(1, 200)
    shifted = changed(theirs, factor, 0.02, 3)
    want, bare, now = point(others, theirs, 0.4), point(others, shifted, 0.4), point(others, shifted, result.value)
    assert abs(now[0] - want[0]) < 2 and abs(now[1] - want[1]) < 2
    assert abs(now[0] - want[0]) < abs(bare[0] - want[0]) / 2
    if factor == 0.5:
        assert want[0] - bare[0] > 40


def test_noise_moves_nothing() -> None:
    """Scores jitter by 2 % and nothing shifts: the threshold stays, or moves by less than it is worth."""
    left = 0
    for seed in range(8):
        truths, found = street(seed, 60)
        result = refit(truths, found, changed(found, 1.0, 0.02, seed), 1, 0.4)
        left += result.value == 0.4
        assert abs(result.value - 0.4) < 0.015
        if result.value == 0.4:
            assert result.why.endswith("so the threshold is left alone")
    assert left >= 4
    same = refit(truths, found, found, 1, 0.4)
    assert same.value == same.original == 0.4


def test_few_detections_are_left_alone_and_that_is_said() -> None:
    truths, found = street(0, 8)
    result = refit(truths, found, changed(found, 0.5), 1, 0.4)
    assert result.value == 0.4 and result.detections < LEAST_DETECTIONS
    assert (
        result.why
        == f"the original shows only {result.detections} detections on 8 images, so the threshold is left alone"
    )


def test_a_model_that_finds_nothing_right_has_no_such_threshold() -> None:
    truths, found = street(0, 60)
    lost = [Detections(d.boxes_xyxy + 20, d.scores, d.classes) for d in found]
    result = refit(truths, found, lost, 1, 0.4)
    assert result.value == 0.4 and result.why.startswith("no threshold gives")
    none = [Detections.empty() for _ in found]
    assert refit(truths, found, none, 1, 0.4).value == 0.4


def test_labels_that_are_drawn_several_times_count_as_one_image_each() -> None:
    """The same labels three times over change neither the threshold nor the number of detections."""
    truths, found = street(0, 60)
    worse = changed(found, 0.7, 0.02)
    once, thrice = refit(truths, found, worse, 1, 0.4), refit(truths * 3, found * 3, worse * 3, 1, 0.4, repeats=3)
    assert (thrice.value, thrice.detections, thrice.images) == (once.value, once.detections, once.images)
    assert once == refit(truths, found, worse, 1, 0.4)  # and the same bytes each time


def test_the_nearest_falling_sequence() -> None:
    """Against the definition: block means, and no other falling sequence is nearer."""
    rng = np.random.default_rng(0)
    values, weights = rng.random(30), rng.integers(1, 5, 30).astype(float)
    fit = _falling(values, weights)
    assert all(a >= b - 1e-12 for a, b in pairwise(fit))
    assert (fit * weights).sum() == pytest.approx((values * weights).sum())
    error = (weights * (fit - values) ** 2).sum()
    for _ in range(300):
        other = np.sort(fit + rng.normal(size=30) * 0.05)[::-1]
        assert (weights * (other - values) ** 2).sum() >= error - 1e-12
    assert _falling(np.array([3.0, 2.0, 1.0]), np.ones(3)).tolist() == [3, 2, 1]
    assert _falling(np.array([0.0, 1.0]), np.array([1.0, 3.0])).tolist() == [0.75, 0.75]


def test_a_real_detector_whose_scores_were_halved_gets_its_operating_point_back(assets: Path) -> None:
    """FastestDet; fitted on 60 training images, looked at on 60 others: recall falls by ten points and comes back."""
    model, data = load(assets / "models/fastestdet.onnx"), read(assets / "coco/data.yaml")
    runner = TARGETS["ort"].runner(model.float_bytes(), 1)
    task, _ = settle_task(model, data, "fastestdet", lambda: runner)
    images = data.calibration[:120]
    truths = [s.truth for s in images if s.truth is not None]
    found = list(predict(runner, task, images).detections)
    classes, limit = task.decode.num_classes, task.decode.score_threshold
    result = refit(truths[:60], found[:60], changed(found[:60], 0.5), classes, limit)
    assert result.value == pytest.approx(limit / 2, abs=0.01)
    pair = [match(truths[60:], f, classes) for f in (found[60:], changed(found[60:], 0.5))]
    want, bare, now = (operating_point(m, t)[0] for m, t in zip((*pair, pair[1]), (limit, limit, result.value)))
    assert want is not None and bare is not None and now is not None
    assert want - bare > 10 and abs(want - now) < 1
    same = refit(truths[:60], found[:60], found[:60], classes, limit)
    assert same.value == limit
