"""Evaluation against pycocotools, against hand-counted cases, and against planted faults."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from roadworthy.detect.decode import detect
from roadworthy.detect.detections import Detections, Truth
from roadworthy.detect.evaluate import (
    bootstrap_class_drop,
    bootstrap_drop,
    evaluate_classes,
    evaluate_detections,
    map_only,
)
from roadworthy.detect.figures import bootstrap_drops, figures
from roadworthy.detect.matches import match, weighted_map
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError

CLASSES = 4


def street(
    seed: int, images: int = 25, crowd: float = 0.15, ties: bool = False
) -> tuple[list[Truth], list[Detections]]:
    """Labels, and detections that are labels shifted, doubled, invented and missed."""
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for _ in range(images):
        n = int(rng.integers(0, 9))
        corner = rng.random((n, 2)) * 300
        boxes = np.concatenate([corner, corner + 5 + rng.random((n, 2)) ** 2 * 200], axis=1)
        classes = rng.integers(0, CLASSES - 1, n)  # one class without labels
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * rng.uniform(0.5, 1, n)
        truths.append(Truth.of(boxes, classes, areas, rng.random(n) < crowd))
        chosen = rng.integers(0, n, 3 * n) if n else np.zeros(0, int)
        size = np.tile(boxes[chosen, 2:] - boxes[chosen, :2], 2)
        near = boxes[chosen] + rng.normal(size=(len(chosen), 4)) * 0.1 * size
        invented = np.sort(rng.random((5, 2, 2)) * 300, axis=1).reshape(5, 4)
        guess = np.concatenate([classes[chosen], rng.integers(0, CLASSES, 5)])
        scores = rng.random(len(guess))
        if ties:
            scores = np.round(scores * 5) / 5
        found.append(Detections(np.concatenate([near, invented]), scores, guess))
    return truths, found


def coco_stats(folder: Path, truths: list[Truth], found: list[Detections]) -> COCOeval:
    """pycocotools by its usual way: a label file and a list of results, with its own default settings."""
    labels, results = [], []
    for number, (truth, result) in enumerate(zip(truths, found, strict=True), start=1):
        for k in range(len(truth)):
            x1, y1, x2, y2 = truth.boxes_xyxy[k].tolist()
            row = {"id": len(labels) + 1, "image_id": number, "category_id": int(truth.classes[k]) + 1}
            area, crowd = float(truth.areas[k]), int(truth.ignore[k])
            labels.append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": crowd})
        for k in range(len(result)):
            x1, y1, x2, y2 = result.boxes_xyxy[k].tolist()
            row = {"image_id": number, "category_id": int(result.classes[k]) + 1, "score": float(result.scores[k])}
            results.append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
    path = folder / "labels.json"
    images = [{"id": i + 1} for i in range(len(truths))]
    categories = [{"id": c + 1, "name": str(c)} for c in range(CLASSES)]
    path.write_text(json.dumps({"images": images, "annotations": labels, "categories": categories}))
    with contextlib.redirect_stdout(io.StringIO()):
        side = COCO(str(path))
        evaluation = COCOeval(side, side.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_equals_pycocotools(tmp_path: Path, seed: int, ties: bool) -> None:
    truths, found = street(seed, ties=ties)
    expected = coco_stats(tmp_path, truths, found)
    got = evaluate_detections(truths, found, CLASSES, 0.3)
    figures = [got.map, got.ap50, got.ap75, got.small, got.medium, got.large]
    np.testing.assert_allclose(figures, expected.stats[:6] * 100, atol=1e-9)
    assert abs(map_only(truths, found, CLASSES) - expected.stats[0] * 100) < 1e-9
    table = expected.eval["precision"][..., 0, 2]
    for c in range(CLASSES - 1):
        assert got.per_class[c] == pytest.approx(table[..., c].mean() * 100, abs=1e-9)
    assert got.per_class[CLASSES - 1] is None
    assert (got.images, got.boxes) == (len(truths), sum((~t.ignore).sum() for t in truths))


@pytest.mark.parametrize("seed", range(3))
def test_weights_mean_repeated_images(tmp_path: Path, seed: int) -> None:
    truths, found = street(seed)
    weights = np.random.default_rng(seed).integers(0, 4, len(truths))
    weights[0] = 0
    repeated = [i for i, w in enumerate(weights) for _ in range(w)]
    expected = coco_stats(tmp_path, [truths[i] for i in repeated], [found[i] for i in repeated])
    matches = match(truths, found, CLASSES)
    got = weighted_map(matches, np.stack([weights, np.ones_like(weights), 3 * weights]))
    assert abs(got[0] - expected.stats[0]) < 1e-9
    assert abs(got[2] - got[0]) < 1e-9  # three times every image changes nothing
    assert abs(got[1] - got[0]) > 1e-3


def test_more_than_a_hundred_detections_of_a_class(tmp_path: Path) -> None:
    truths, _ = street(5, images=3, crowd=0)
    rng = np.random.default_rng(0)
    found = []
    for truth in truths:  # the good ones are among the worst scores, past COCO's limit of 100
        wrong = np.sort(rng.random((120, 2, 2)) * 300, axis=1).reshape(-1, 4)
        boxes = np.concatenate([wrong, truth.boxes_xyxy])
        scores = np.concatenate([rng.random(120) * 0.5 + 0.3, rng.random(len(truth)) * 0.5])
        found.append(Detections(boxes, scores, np.concatenate([np.zeros(120, int), truth.classes])))
    expected = coco_stats(tmp_path, truths, found).stats[0] * 100
    assert abs(map_only(truths, found, CLASSES) - expected) < 1e-9
    assert abs(evaluate_detections(truths, found, CLASSES, 0.3).map - expected) < 1e-9  # type: ignore[operator]


def test_of_two_labels_with_equal_iou_the_later_is_taken(tmp_path: Path) -> None:
    truth = Truth.of(np.array([[0, 0, 10, 10], [2, 0, 12, 10]]), np.zeros(2))
    found = Detections(np.array([[1, 0, 11, 10], [0, 0, 10, 10]]), np.array([0.9, 0.8]), np.zeros(2))
    expected = coco_stats(tmp_path, [truth], [found]).stats[0] * 100
    assert abs(map_only([truth], [found], CLASSES) - expected) < 1e-9


def test_recall_and_precision_by_hand() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]])
    truth = Truth.of(boxes, np.array([0, 0, 1, 1]), ignore=np.array([False, False, False, True]))
    shifted = boxes[0] + [0, 0, 0, -6]  # IoU 0.4
    found = Detections(
        np.stack([boxes[0], boxes[0], shifted, boxes[1], boxes[2], boxes[3], boxes[2]]),
        np.array([0.9, 0.8, 0.7, 0.29, 0.6, 0.5, 0.95]),
        np.array([0, 0, 0, 0, 1, 1, 0]),
    )
    scores = evaluate_detections([truth], [found], 3, 0.3)
    # shown: hit, double, too far, hit of class 1, ignored, wrong class; the fourth lies below the threshold
    assert scores.recall == pytest.approx(100 * 2 / 3) and scores.precision == pytest.approx(100 * 2 / 5)
    assert scores.recall_per_class == {0: 50.0, 1: 100.0, 2: None}
    assert scores.boxes == 3
    assert scores.per_class[1] == pytest.approx(100)


def test_nothing_to_find() -> None:
    empty = Truth.of(np.zeros((0, 4)), np.zeros(0))
    scores = evaluate_detections([empty], [Detections.empty()], 2, 0.3)
    assert (scores.map, scores.recall, scores.precision, scores.boxes) == (None, None, None, 0)
    assert np.isnan(map_only([empty], [Detections.empty()], 2))
    with pytest.raises(InputError, match="no image has a label"):
        bootstrap_drop([empty], [Detections.empty()], [Detections.empty()], 2)


def test_nothing_found_is_zero() -> None:
    truths, _ = street(1)
    found = [Detections.empty()] * len(truths)
    scores = evaluate_detections(truths, found, CLASSES, 0.3)
    assert (scores.map, scores.recall, scores.precision) == (0.0, 0.0, None)
    assert map_only(truths, found, CLASSES) == 0


def test_bad_input() -> None:
    truths, found = street(1, images=2)
    with pytest.raises(InputError, match="2 labelled images and 1 results"):
        evaluate_detections(truths, found[:1], CLASSES, 0.3)
    wrong = Detections(np.zeros((1, 4)), np.ones(1), np.array([CLASSES]))
    with pytest.raises(InputError, match="a detection of image 1 has class 4, outside 0"):
        map_only(truths, [found[0], wrong], CLASSES)
    with pytest.raises(InputError, match="at least one"):
        bootstrap_drop(truths, found, found, CLASSES, rounds=0)


def test_bootstrap_of_a_model_with_itself_is_zero() -> None:
    truths, found = street(2)
    interval = bootstrap_drop(truths, found, found, CLASSES, rounds=20)
    assert (interval.drop, interval.low, interval.high) == (0, 0, 0)


def test_bootstrap_notices_a_planted_loss() -> None:
    truths, found = street(3, images=60)
    rng = np.random.default_rng(0)
    worse = [f.keep(rng.random(len(f)) < 0.3) for f in found]
    interval = bootstrap_drop(truths, found, worse, CLASSES, rounds=200, seed=1)
    whole = map_only(truths, found, CLASSES) - map_only(truths, worse, CLASSES)
    assert interval.drop == pytest.approx(whole, abs=1e-9) and interval.drop > 1
    assert 0 < interval.low < interval.drop < interval.high
    assert interval == bootstrap_drop(truths, found, worse, CLASSES, rounds=200, seed=1)
    back = bootstrap_drop(truths, worse, found, CLASSES, rounds=200, seed=1)
    assert (back.low, back.high) == pytest.approx((-interval.high, -interval.low))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_the_figures_of_budgets_equal_those_of_pycocotools(seed: int, ties: bool) -> None:
    """Sizes too: labels of another size are to be ignored, once each, and so are stray detections of another size."""
    truths, found = street(seed, ties=ties)
    expected = evaluate_detections(truths, found, CLASSES, 0.4)
    got = figures(truths, found, CLASSES, 0.4)
    assert got.whole == pytest.approx(expected.map, abs=1e-9)
    assert got.recall == pytest.approx(expected.recall, abs=1e-9)
    known = {c: v for c, v in expected.per_class.items() if v is not None}
    assert got.per_class == pytest.approx(known, abs=1e-9) and len(known) == CLASSES - 1
    sizes = {"small": expected.small, "medium": expected.medium, "large": expected.large}
    assert got.sizes == pytest.approx(sizes, abs=1e-9)


def test_drops_of_classes_sizes_and_recall_come_from_the_same_draws() -> None:
    """Class 1 alone loses nine of ten detections: its drop stands clear of zero, those of the others are zero."""
    truths, found = street(3, images=60)
    rng = np.random.default_rng(0)
    worse = [f.keep((f.classes != 1) | (rng.random(len(f)) < 0.1)) for f in found]
    drops = bootstrap_drops(truths, found, worse, CLASSES, (0.3, 0.3), rounds=100, seed=1)
    assert drops.whole == bootstrap_drop(truths, found, worse, CLASSES, rounds=100, seed=1)
    before, after = figures(truths, found, CLASSES, 0.3), figures(truths, worse, CLASSES, 0.3)
    for c in range(CLASSES - 1):
        assert drops.per_class[c].drop == pytest.approx(before.per_class[c] - after.per_class[c], abs=1e-9)
    assert drops.per_class[1].low > 0
    assert [drops.per_class[c] for c in (0, 2)] == [drops.per_class[0]] * 2
    assert (drops.per_class[0].low, drops.per_class[0].high) == (0, 0)
    for size, interval in drops.sizes.items():
        assert interval.drop == pytest.approx(before.sizes[size] - after.sizes[size], abs=1e-9)
        assert interval.low < interval.drop < interval.high
    assert drops.recall is not None and drops.recall.drop == pytest.approx((before.recall or 0) - (after.recall or 0))
    assert drops.recall.low > 0
    labels = [sum((t.classes[~t.ignore] == c).sum() for t in truths) for c in range(CLASSES - 1)]
    assert [drops.labels[c] for c in range(CLASSES - 1)] == labels
    assert sum(drops.labels[size] for size in drops.sizes) == sum(labels)
    # A threshold that gives the candidate back its recall: 0.3 for the one, lower for the other.
    refitted = bootstrap_drops(truths, found, worse, CLASSES, (0.3, 0.0), rounds=20)
    assert refitted.recall is not None and refitted.recall.drop < drops.recall.drop


def head_of(truths: list[Truth], stride: int, cells: int) -> list[dict[str, np.ndarray]]:
    """The YOLOX output (1, cells*cells, 5+C) of a network that finds every label (at most one per cell)."""
    outputs = []
    for truth in truths:
        head = np.zeros((cells, cells, 5 + CLASSES), np.float32)
        for (x1, y1, x2, y2), c in zip(truth.boxes_xyxy, truth.classes, strict=True):
            cx, cy = (x1 + x2) / 2 / stride, (y1 + y2) / 2 / stride
            row, column = int(cy), int(cx)
            size = np.log([(x2 - x1) / stride, (y2 - y1) / stride])
            head[row, column, :5] = [cx - column, cy - row, size[0], size[1], 1]
            head[row, column, 5 + c] = 1
        outputs.append({"output": head.reshape(1, -1, 5 + CLASSES)})
    return outputs


def one_per_cell() -> list[Truth]:
    rng = np.random.default_rng(4)
    truths = []
    for _ in range(10):
        cell = rng.choice(64, 6, replace=False)
        centre = np.stack([cell % 8, cell // 8], axis=1) * 32 + rng.uniform(5, 27, (6, 2))
        half = rng.uniform([20, 4], [40, 12], (6, 2))  # wide boxes, so that x and y cannot be confused
        truths.append(Truth.of(np.concatenate([centre - half, centre + half], axis=1), rng.integers(0, CLASSES, 6)))
    return truths


def test_a_perfect_head_scores_a_hundred_and_planted_faults_collapse() -> None:
    truths = one_per_cell()
    spec = DecodeSpec("yolox", CLASSES, (256, 256), (32,), iou_threshold=0.9)
    outputs = head_of(truths, 32, 8)

    def score(
        change: Callable[[np.ndarray], np.ndarray] = lambda array: array,
        stride: int = 32,
        to_image: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> float:
        size = stride * 8
        wrong = DecodeSpec("yolox", CLASSES, (size, size), (stride,), iou_threshold=spec.iou_threshold)
        found = [detect({"output": change(o["output"])}, wrong, to_image, 0.01) for o in outputs]
        return map_only(truths, found, CLASSES)

    assert score() > 99.9
    assert score(to_image=lambda boxes: boxes[:, [1, 0, 3, 2]]) < 5  # x and y swapped
    assert score(stride=16) < 5  # wrong stride
    assert score(lambda array: np.concatenate([array[..., :5], np.roll(array[..., 5:], 1, axis=-1)], axis=-1)) < 20
    assert score(lambda array: array[:, ::-1]) < 5  # grid walked backwards


def test_top_one_and_top_five() -> None:
    scores = np.array([[0.1, 0.2, 0.3, 0.15, 0.05, 0.2], [0.9, 0, 0, 0, 0, 0.1], [0.3, 0.3, 0.1, 0.1, 0.1, 0.1]])
    result = evaluate_classes(np.array([2, 5, 1]), scores)
    assert result.top1 == pytest.approx(100 / 3) and result.top5 == 100
    assert result.per_class == {1: 0.0, 2: 100.0, 5: 0.0}
    ranked = np.argsort(-scores, axis=1, kind="stable")
    assert evaluate_classes(np.array([2, 5, 1]), ranked) == result
    assert evaluate_classes(np.array([2, 5, 1]), ranked[:, :1]).top5 is None


def test_a_constant_classifier_gets_no_credit_for_ties() -> None:
    labels = np.arange(10)
    result = evaluate_classes(labels, np.zeros((10, 10), np.float32))
    assert (result.top1, result.top5) == (10, 50)


def test_classes_bad_input() -> None:
    with pytest.raises(InputError, match="one row per label"):
        evaluate_classes(np.zeros(3, int), np.zeros((2, 5)))
    with pytest.raises(InputError, match="outside the 5 classes"):
        evaluate_classes(np.array([5]), np.zeros((1, 5)))
    with pytest.raises(InputError, match="NaN"):
        evaluate_classes(np.array([0]), np.full((1, 5), np.nan))


def test_class_interval_has_the_width_of_the_normal_approximation() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros(600, int)
    right, also = rng.random(600) < 0.8, rng.random(600) < 0.7
    reference, candidate = (np.where(hit[:, None], [[0]], [[1]]) for hit in (right, also))
    interval = bootstrap_class_drop(labels, reference, candidate, rounds=4000)
    difference = right.astype(float) - also
    assert interval.drop == pytest.approx(100 * difference.mean())
    half = 196 * difference.std() / np.sqrt(600)
    # 4000 draws fix a percentile to about 4 % of the half width
    assert interval.high - interval.drop == pytest.approx(half, rel=0.12)
    assert interval.drop - interval.low == pytest.approx(half, rel=0.12)


def test_repeated_images_do_not_narrow_the_interval() -> None:
    """The same 40 images three times over carry no more evidence than once."""
    rng = np.random.default_rng(5)
    truths, good, worse = [], [], []
    for _ in range(40):
        boxes = np.array([[10, 10, 60, 60], [100, 100, 180, 160]], np.float32)
        truths.append(Truth.of(boxes, np.array([0, 1])))
        found = Detections(boxes, rng.uniform(0.5, 1, 2), np.array([0, 1]))
        good.append(found)
        worse.append(found.keep(rng.random(2) < 0.8))
    once = bootstrap_drop(truths, good, worse, 2, 400, 0)
    thrice = bootstrap_drop(truths * 3, good * 3, worse * 3, 2, 400, 0, repeats=3)
    assert thrice.drop == pytest.approx(once.drop, abs=0.5)
    assert thrice.high - thrice.low > 0.85 * (once.high - once.low)


def test_no_changed_answer_is_not_certainty() -> None:
    labels = np.zeros(125, int)
    scores = np.tile(np.array([[0.9, 0.1]], np.float32), (125, 1))
    interval = bootstrap_class_drop(labels, scores, scores, 200, 0)
    assert interval.drop == 0
    assert interval.low < -1 and interval.high > 1
