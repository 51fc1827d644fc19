"""Every row of DECODERS against its formula, written out one box at a time in Python floats.

A case is (outputs, spec, boxes, scores): what a network would give and what must come of it. Inputs are wider than
high, so that swapped sides show.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from roadworthy.detect.decode import DECODERS, decode, detect
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError

Case = tuple[dict[str, np.ndarray], DecodeSpec, list[list[float]], list[list[float]]]
HW, STRIDES, CLASSES = (64, 96), (8, 16, 32), 3
ANCHORS = (((10.0, 13.0), (16.0, 30.0)), ((30.0, 61.0), (62.0, 45.0)), ((59.0, 119.0), (90.0, 70.0)))


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def grids() -> list[tuple[int, int, int, int]]:
    """(level, stride, rows, columns)"""
    return [(i, stride, HW[0] // stride, HW[1] // stride) for i, stride in enumerate(STRIDES)]


def corners(cx: float, cy: float, w: float, h: float) -> list[float]:
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def spec_of(kind: str, **fields: object) -> DecodeSpec:
    return replace(DecodeSpec(kind, CLASSES, HW, STRIDES), **fields)  # type: ignore[arg-type]


def yolox(rng: np.random.Generator, per_level: bool = False, logits: bool = False) -> Case:
    boxes, scores, levels, outputs = [], [], [], {}
    act = s if logits else float
    for level, stride, rows, columns in grids():
        head = rng.normal(size=(rows, columns, 5 + CLASSES))
        if not logits:
            head[..., 4:] = rng.random(head[..., 4:].shape)
        for y in range(rows):
            for x in range(columns):
                v = head[y, x]
                boxes.append(
                    corners((v[0] + x) * stride, (v[1] + y) * stride, math.exp(v[2]) * stride, math.exp(v[3]) * stride)
                )
                scores.append([act(v[4]) * act(c) for c in v[5:]])
        levels.append(head.reshape(-1, 5 + CLASSES))
        outputs[f"level{level}"] = head.transpose(2, 0, 1)[None].astype(np.float32)
    if not per_level:
        outputs = {"output": np.concatenate(levels)[None].astype(np.float32)}
    return outputs, spec_of("yolox", scores_are_logits=logits), boxes, scores


def anchored(kind: str, rng: np.random.Generator, last: bool) -> Case:
    """Raw heads (1, A*(5+C), H, W), or (1, A, H, W, 5+C) where `last`."""
    boxes, scores, outputs = [], [], {}
    for level, stride, rows, columns in grids():
        head = rng.normal(size=(len(ANCHORS[level]), rows, columns, 5 + CLASSES))
        for a, (aw, ah) in enumerate(ANCHORS[level]):
            for y in range(rows):
                for x in range(columns):
                    v = head[a, y, x]
                    if kind == "yolov5":
                        cx, cy = (2 * s(v[0]) - 0.5 + x) * stride, (2 * s(v[1]) - 0.5 + y) * stride
                        w, h = (2 * s(v[2])) ** 2 * aw, (2 * s(v[3])) ** 2 * ah
                    else:
                        cx, cy = (s(v[0]) + x) * stride, (s(v[1]) + y) * stride
                        w, h = math.exp(v[2]) * aw, math.exp(v[3]) * ah
                    boxes.append(corners(cx, cy, w, h))
                    scores.append([s(v[4]) * s(c) for c in v[5:]])
        head = head if last else head.transpose(0, 3, 1, 2).reshape(-1, rows, columns)
        outputs[f"level{level}"] = head[None].astype(np.float32)
    return outputs, spec_of(kind, anchors=ANCHORS, scores_are_logits=True), boxes, scores


def rows_with_objectness(kind: str, rng: np.random.Generator) -> Case:
    table = rng.random((50, 5 + CLASSES)) * ([96, 64, 30, 30] + [1] * (1 + CLASSES))
    boxes = [corners(*row[:4]) for row in table]
    scores = [[row[4] * c for c in row[5:]] for row in table]
    # a raw head beside the decoded output, as older exports carry it
    outputs = {"head": np.zeros((1, 2, 8, 12, 5 + CLASSES), np.float32), "output": table[None].astype(np.float32)}
    return outputs, spec_of(kind, decoded=True, strides=()), boxes, scores


def yolov8(rng: np.random.Generator, last: bool, normalized: bool = False) -> Case:
    table = rng.random((50, 4 + CLASSES)) * ([96, 64, 30, 30] + [1] * CLASSES)
    given = table / ([96, 64, 96, 64] + [1] * CLASSES) if normalized else table
    outputs = {"output0": (given if last else given.T)[None].astype(np.float32)}
    return (
        outputs,
        spec_of("yolov8", normalized=normalized),
        [corners(*row[:4]) for row in table],
        table[:, 4:].tolist(),
    )


def dfl(kind: str, rng: np.random.Generator, form: str, offset: float, reg_max: int = 7, logits: bool = False) -> Case:
    boxes, scores, joint, maps, outputs = [], [], [], [], {}
    width = 4 * (reg_max + 1)
    for level, stride, rows, columns in grids():
        classes, sides = rng.random((rows, columns, CLASSES)), rng.normal(size=(rows, columns, width)) * 3
        for y in range(rows):
            for x in range(columns):
                distance = []
                for side in range(4):
                    logit = sides[y, x, side * (reg_max + 1) : (side + 1) * (reg_max + 1)]
                    e = [math.exp(v) for v in logit]
                    distance.append(sum(i * v for i, v in enumerate(e)) / sum(e) if reg_max else logit[0])
                cx, cy = x + offset, y + offset
                ends = [cx - distance[0], cy - distance[1], cx + distance[2], cy + distance[3]]
                boxes.append([v * stride for v in ends])
                scores.append([s(v) if logits else v for v in classes[y, x]])
        joint.append(np.concatenate([classes, sides], axis=2).reshape(-1, CLASSES + width))
        for what, table in (("cls", classes), ("dis", sides)):
            chw = table.transpose(2, 0, 1)[None]
            rows_last = table.reshape(1, rows * columns, -1)
            maps.append((f"{what}{level}", (chw if form == "chw" else rows_last).astype(np.float32)))
    outputs = {"output": np.concatenate(joint)[None].astype(np.float32)} if form == "joint" else dict(maps)
    return outputs, spec_of(kind, reg_max=reg_max, scores_are_logits=logits), boxes, scores


def fastestdet(rng: np.random.Generator) -> Case:
    rows, columns = 4, 6
    head = rng.normal(size=(5 + CLASSES, rows, columns))
    head[0], head[5:] = rng.random((rows, columns)), rng.random((CLASSES, rows, columns))
    boxes, scores = [], []
    for y in range(rows):
        for x in range(columns):
            v = head[:, y, x]
            cx, cy = (math.tanh(v[1]) + x) / columns * HW[1], (math.tanh(v[2]) + y) / rows * HW[0]
            boxes.append(corners(cx, cy, s(v[3]) * HW[1], s(v[4]) * HW[0]))
            scores.append([v[0] ** 0.6 * c**0.4 for c in v[5:]])
    return {"758": head[None].astype(np.float32)}, spec_of("fastestdet", strides=()), boxes, scores


def ssd(rng: np.random.Generator, box_format: str, background: int | None, normalized: bool, logits: bool) -> Case:
    n = 40
    corner = rng.random((n, 2)) * [60, 40]
    boxes = np.concatenate([corner, corner + rng.random((n, 2)) * 30], axis=1)
    given = boxes / [96, 64, 96, 64] if normalized else boxes
    if box_format == "yxyx":
        given = given[:, [1, 0, 3, 2]]
    elif box_format == "cxcywh":
        given = np.concatenate([(given[:, :2] + given[:, 2:]) / 2, given[:, 2:] - given[:, :2]], axis=1)
    columns = CLASSES + (background is not None)
    table = rng.random((n, columns))
    scores = []
    for row in table.tolist():
        if logits and background is not None:
            row = [math.exp(v) / sum(map(math.exp, row)) for v in row]
        elif logits:
            row = [s(v) for v in row]
        scores.append([v for i, v in enumerate(row) if i != background])
    # three classes and a background make four columns, as many as a box has: then the names must tell
    names = ("boxes", "scores") if columns == 4 else ()
    outputs = {"scores": table[None].astype(np.float32), "boxes": given[None].astype(np.float32)}
    spec = spec_of("ssd", strides=(), box_format=box_format, background=background, normalized=normalized)
    return outputs, replace(spec, scores_are_logits=logits, outputs=names), boxes.tolist(), scores


def ssd_after_nms(rng: np.random.Generator, n: int, real: int, batched: bool) -> Case:
    """The four outputs of a TensorFlow detection graph: classes count from 1, because 0 is background."""
    boxes = np.sort(rng.random((n, 2, 2)), axis=1).reshape(n, 4)  # y1, x1, y2, x2
    classes, scores = rng.integers(1, CLASSES + 1, n), rng.random(n) * 0.9 + 0.1
    outputs = {
        "num_detections": np.array([real], np.float32),
        "detection_scores": scores.astype(np.float32),
        "detection_boxes": boxes.astype(np.float32),
        "detection_classes": classes.astype(np.float32),
    }
    if batched:
        outputs = {name: value[None] if name != "num_detections" else value for name, value in outputs.items()}
    expected = [[b[1] * 96, b[0] * 64, b[3] * 96, b[2] * 64] for b in boxes[:real]]
    table = [[scores[i] if classes[i] - 1 == c else 0.0 for c in range(CLASSES)] for i in range(real)]
    return outputs, spec_of("ssd", box_format="yxyx", normalized=True, background=0), expected, table


CASES: dict[str, Callable[[np.random.Generator], Case]] = {
    "yolox": yolox,
    "yolox-levels": lambda r: yolox(r, per_level=True),
    "yolox-logits": lambda r: yolox(r, logits=True),
    "yolox-decoded": lambda r: rows_with_objectness("yolox", r),
    "yolov5": lambda r: anchored("yolov5", r, last=False),
    "yolov5-last": lambda r: anchored("yolov5", r, last=True),
    "yolov5-decoded": lambda r: rows_with_objectness("yolov5", r),
    "yolov3": lambda r: anchored("yolov3", r, last=False),
    "yolov3-last": lambda r: anchored("yolov3", r, last=True),
    "yolov8": lambda r: yolov8(r, last=False),
    "yolov8-last": lambda r: yolov8(r, last=True),
    "yolov8-normalized": lambda r: yolov8(r, last=False, normalized=True),
    "dfl-joint": lambda r: dfl("dfl", r, "joint", 0.5),
    "dfl-rows": lambda r: dfl("dfl", r, "rows", 0.5, logits=True),
    "dfl-maps": lambda r: dfl("dfl", r, "chw", 0.5, reg_max=16),
    "dfl-plain": lambda r: dfl("dfl", r, "chw", 0.5, reg_max=0),
    "nanodet_plus": lambda r: dfl("nanodet_plus", r, "joint", 0.0),
    "fastestdet": fastestdet,
    "ssd": lambda r: ssd(r, "xyxy", None, normalized=False, logits=False),
    "ssd-yxyx": lambda r: ssd(r, "yxyx", 0, normalized=True, logits=True),
    "ssd-centre": lambda r: ssd(r, "cxcywh", 3, normalized=True, logits=False),
    "ssd-sigmoid": lambda r: ssd(r, "xyxy", None, normalized=True, logits=True),
    "ssd-after-nms": lambda r: ssd_after_nms(r, 20, 13, batched=True),
    "ssd-after-nms-four": lambda r: ssd_after_nms(r, 4, 4, batched=True),
    "ssd-after-nms-one": lambda r: ssd_after_nms(r, 1, 1, batched=True),
    "ssd-after-nms-flat": lambda r: ssd_after_nms(r, 20, 20, batched=False),
}


def test_every_decoder_has_a_case() -> None:
    assert {name.split("-")[0] for name in CASES} == set(DECODERS)


@pytest.mark.parametrize("name", CASES)
def test_formula(name: str) -> None:
    outputs, spec, boxes, scores = CASES[name](np.random.default_rng(7))
    got_boxes, got_scores = decode(outputs, spec)
    assert got_boxes.dtype == got_scores.dtype == np.float32
    assert got_scores.shape == (len(boxes), spec.num_classes)
    # float32 keeps 24 bits; a few operations on values below 2^10 pixels stay well within 2^-10
    np.testing.assert_allclose(got_boxes, boxes, atol=1e-3, rtol=1e-5)
    np.testing.assert_allclose(got_scores, scores, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_outputs_come_in_any_order(name: str) -> None:
    outputs, spec, _, _ = CASES[name](np.random.default_rng(8))
    boxes, scores = decode(outputs, spec)
    rng = np.random.default_rng(9)
    for _ in range(4):
        names = rng.permutation(list(outputs))
        again = decode({str(key): outputs[str(key)] for key in names}, spec)
        assert np.array_equal(again[0], boxes) and np.array_equal(again[1], scores)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_shape_is_named(name: str) -> None:
    outputs, spec, _, _ = CASES[name](np.random.default_rng(10))
    if name.startswith("ssd-after"):
        broken = {key: value for key, value in outputs.items() if key != "detection_boxes"}
    else:
        broken = {key: np.concatenate([value, value]) for key, value in outputs.items()}  # batch 2
    with pytest.raises(InputError) as caught:
        decode(broken, spec)
    shape = next(iter(broken.values())).shape
    assert str(shape) in str(caught.value) and spec.kind in str(caught.value) and "expected" in str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_number_of_classes_is_refused(name: str) -> None:
    outputs, spec, _, _ = CASES[name](np.random.default_rng(11))
    if name.startswith("ssd-after"):
        pytest.skip("classes come as numbers there, so their count does not show in a shape")
    with pytest.raises(InputError, match="expected"):
        decode(outputs, replace(spec, num_classes=CLASSES + 2))


@pytest.mark.parametrize("name", [n for n in CASES if n.split("-")[0] in ("yolox", "dfl") and "decoded" not in n])
def test_strides_that_do_not_fit_are_refused(name: str) -> None:
    outputs, spec, _, _ = CASES[name](np.random.default_rng(12))
    with pytest.raises(InputError, match="expected"):
        decode(outputs, replace(spec, strides=(8, 16)))
    with pytest.raises(InputError, match="give both"):
        decode(outputs, replace(spec, strides=()))


@pytest.mark.parametrize("name", CASES)
def test_nan_is_named(name: str) -> None:
    outputs, spec, _, _ = CASES[name](np.random.default_rng(13))
    outputs["output"] = np.array(outputs.pop(next(iter(outputs))))
    outputs["output"].reshape(-1)[0] = np.nan
    with pytest.raises(InputError, match=r"'output' holds NaN"):
        decode(outputs, replace(spec, outputs=()))


@pytest.mark.parametrize("name", CASES)
def test_detections_are_sorted_above_the_threshold_and_few(name: str) -> None:
    outputs, spec, boxes, scores = CASES[name](np.random.default_rng(14))
    result = detect(outputs, spec, score_threshold=0.2, max_detections=7)
    assert len(result) <= 7 and np.all(np.diff(result.scores) <= 0) and result.scores.min() >= 0.2
    best = np.unravel_index(np.argmax(scores), (len(scores), CLASSES))
    np.testing.assert_allclose(result.boxes_xyxy[0], boxes[best[0]], atol=1e-3, rtol=1e-5)
    assert result.classes[0] == best[1]


def test_undeclared_logits_are_refused() -> None:
    outputs, spec, _, _ = anchored("yolov5", np.random.default_rng(15), last=False)
    with pytest.raises(InputError, match="set scores_are_logits"):
        detect(outputs, replace(spec, scores_are_logits=False))


@pytest.mark.parametrize("kind", ["classify", "raw", "yolov99"])
def test_kinds_without_boxes_are_refused(kind: str) -> None:
    with pytest.raises(InputError, match="does not decode to boxes"):
        decode({"x": np.zeros((1, 2))}, DecodeSpec(kind, 2))


def test_maps_that_look_alike_need_names() -> None:
    """With 32 classes and reg_max 7 a class map has the shape of a distance map."""
    rng = np.random.default_rng(16)
    maps = {f"{what}{i}": rng.random((1, r * c, 32), np.float32) for what in "ab" for i, _, r, c in grids()}
    spec = spec_of("dfl", num_classes=32, reg_max=7)
    with pytest.raises(InputError, match="cannot be told apart"):
        decode(maps, spec)
    _, scores = decode(maps, replace(spec, outputs=("b0", "b1", "b2", "a0", "a1", "a2")))
    assert np.array_equal(scores, np.concatenate([maps[f"b{i}"][0] for i in range(3)]))
