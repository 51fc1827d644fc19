"""The C++ decoders against NumPy's, which the published detectors prove (tests/detect), on random heads of every kind.

exp and tanh are the C library's in one and NumPy's in the other, each right to a few units in the last place (2^-23
relative): scores are compared within 1e-6, and box sides, sums of a few such products, within 1e-4 of themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from roadworthy.data.preprocess import Preprocess
from roadworthy.detect import decode
from roadworthy.detect.detections import Detections
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError
from roadworthy.model.task import Task
from roadworthy.run.native.task_text import task_text

_native = pytest.importorskip("roadworthy._native")
ISAS = _native.isas()
ANCHORS = (((10.0, 13.0), (16.0, 30.0)), ((30.0, 61.0), (62.0, 45.0)))
HW = (72, 104)  # 9 x 13 and 5 x 7 cells: 16 divides neither side
GRIDS = ((9, 13), (5, 7))
CELLS = 9 * 13 + 5 * 7


def finish(
    outputs: dict[str, np.ndarray], spec: DecodeSpec, isa: str, threshold: float, limit: int = 100
) -> Detections:
    shapes = [list(array.shape) for array in outputs.values()]
    finishing = _native.Finishing(task_text(Task(Preprocess((8, 8)), spec)), list(outputs), shapes, isa)
    arrays = [np.ascontiguousarray(array, np.float32) for array in outputs.values()]
    return Detections(*finishing.run(arrays, threshold, spec.iou_threshold, limit)[0])


@dataclass(frozen=True)
class Case:
    """Outputs by name: shapes, and which channels hold probabilities (the rest is normal noise)."""

    spec: DecodeSpec
    shapes: tuple[tuple[int, ...], ...]
    axis: int = 2
    chances: int = 5  # the first channel that is a score; -1: none, -2: all
    boxes_in_pixels: bool = False


def yolo(kind: str, **fields: object) -> DecodeSpec:
    return replace(DecodeSpec(kind, 6, HW, (8, 16), iou_threshold=0.5), **fields)  # type: ignore[arg-type]


PLANES = tuple((1, 22, h, w) for h, w in GRIDS)
ROWS = tuple((1, 2, h, w, 11) for h, w in GRIDS)
CASES = {
    "yolox rows": Case(yolo("yolox"), ((1, CELLS, 11),), 2, 4),
    "yolox planes": Case(yolo("yolox"), ((1, 11, CELLS),), 1, 4),
    "yolox levels, small first": Case(yolo("yolox"), ((1, 11, 5, 7), (1, 11, 9, 13)), 1, 4),
    "yolox logits": Case(yolo("yolox", scores_are_logits=True), ((1, CELLS, 11),), 2, -1),
    "yolox decoded": Case(yolo("yolox", decoded=True), ((1, 50, 11),), 2, 4, True),
    "yolov5 rows": Case(yolo("yolov5", decoded=True), ((1, 50, 11),), 2, 4, True),
    "yolov5 normalized": Case(yolo("yolov5", decoded=True, normalized=True), ((1, 50, 11),), 2, 0),
    "yolov5 heads": Case(yolo("yolov5", anchors=ANCHORS, scores_are_logits=True), PLANES, 1, -1),
    "yolov5 heads as rows": Case(yolo("yolov5", anchors=ANCHORS, scores_are_logits=True), ROWS[::-1], 4, -1),
    "yolov3 heads": Case(yolo("yolov3", anchors=ANCHORS, scores_are_logits=True), PLANES[::-1], 1, -1),
    "yolov3 with sigmoid": Case(yolo("yolov3", anchors=ANCHORS), ROWS, 4, 4),
    "yolov8 planes": Case(yolo("yolov8"), ((1, 10, 300),), 1, 4, True),
    "yolov8 rows": Case(yolo("yolov8", normalized=True), ((1, 300, 10),), 2, 0),
    "yolov8 logits": Case(yolo("yolov8", scores_are_logits=True), ((1, 10, 300),), 1, -1, True),
    "dfl rows": Case(yolo("dfl", reg_max=7, scores_are_logits=True), ((1, CELLS, 38),), 2, -1),
    "dfl maps": Case(
        yolo("dfl", reg_max=7, scores_are_logits=True),
        ((1, 6, 9, 13), (1, 6, 5, 7), (1, 32, 5, 7), (1, 32, 9, 13)), 1, -1,
    ),
    "dfl plain distances": Case(yolo("dfl", scores_are_logits=True, strides=(8,)), ((1, 117, 6), (1, 117, 4)), 2, -1),
    "nanodet_plus": Case(yolo("nanodet_plus", reg_max=3, scores_are_logits=True), ((1, CELLS, 22),), 2, -1),
    "fastestdet": Case(yolo("fastestdet"), ((1, 11, 9, 13),), 1, 5),
    "fastestdet logits": Case(yolo("fastestdet", scores_are_logits=True), ((1, 11, 9, 13),), 1, -1),
    "ssd": Case(yolo("ssd", normalized=True), ((1, 80, 4), (1, 80, 6)), 2, 0),
    "ssd background": Case(yolo("ssd", normalized=True, background=0, box_format="yxyx"), ((80, 7), (80, 4)), 1, 0),
    "ssd softmax": Case(yolo("ssd", scores_are_logits=True, background=-1, box_format="cxcywh"),
                        ((1, 80, 4), (1, 80, 7)), 2, -1, True),
    "ssd sigmoid": Case(yolo("ssd", scores_are_logits=True, box_format="cxcywh"),
                        ((1, 80, 4), (1, 80, 6)), 2, -1, True),
}  # fmt: skip


def heads(case: Case, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    outputs = {}
    for number, shape in enumerate(case.shapes):
        array = rng.normal(0, 1.5, shape).astype(np.float32)
        view = np.moveaxis(array, case.axis, 0)
        if case.chances >= 0:
            first = case.chances
            if case.spec.kind == "fastestdet":
                view[:1] = rng.random(view[:1].shape)
            view[first:] = rng.random(view[first:].shape)
        if case.boxes_in_pixels and number == 0:
            view[:4] = rng.uniform(0, 100, view[:4].shape)
            view[2:4] *= 0.5
        outputs[f"o{number}"] = array
    return outputs


def assert_same(found: Detections, expected: Detections) -> None:
    assert len(found) == len(expected)
    assert found.classes.tolist() == expected.classes.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CASES)
def test_equals_numpy(name: str, isa: str) -> None:
    case, most = CASES[name], 0
    for seed, threshold in ((0, 0.3), (1, 0.05), (2, 0.6), (3, 0.9)):
        outputs = heads(case, seed)
        expected = decode.detect(outputs, case.spec, None, threshold, 100)
        assert_same(finish(outputs, case.spec, isa, threshold), expected)
        most = max(most, len(expected))
    assert most > 5, "the case finds too little to say anything"


def test_every_kind_is_covered() -> None:
    assert {case.spec.kind for case in CASES.values()} == set(decode.DECODERS)


@pytest.mark.parametrize("background", [None, 0])
def test_ssd_behind_its_nms(background: int | None) -> None:
    rng = np.random.default_rng(0)
    spec = yolo("ssd", background=background)
    outputs = {
        "detection_boxes": rng.uniform(0, 50, (1, 20, 4)).astype(np.float32),
        "detection_classes": rng.integers(0, 6, (1, 20)).astype(np.float32),
        "detection_scores": np.sort(rng.random((1, 20)))[:, ::-1].astype(np.float32),
        "num_detections": np.array([15], np.float32),
    }
    outputs["detection_boxes"][..., 2:] += outputs["detection_boxes"][..., :2]
    assert_same(finish(outputs, spec, "", 0.2), decode.detect(outputs, spec, None, 0.2, 100))


def test_only_the_best_3000_pairs_enter_nms() -> None:
    rng = np.random.default_rng(0)
    rows = np.zeros((1, 8, 1000), np.float32)
    rows[0, 0], rows[0, 1], rows[0, 2:4] = np.arange(1000) * 10, 5, 4  # far apart: NMS keeps all
    rows[0, 4:] = rng.permutation(4000).reshape(4, 1000) / 4000 + 1e-4
    spec = DecodeSpec("yolov8", 4, HW)
    expected = decode.detect({"o": rows}, spec, None, 1e-5, 10_000)
    found = finish({"o": rows}, spec, "", 1e-5, 10_000)
    assert len(found) == decode.CANDIDATES
    assert_same(found, expected)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (yolo("yolox"), "expected"),
        (yolo("yolov8"), "expected"),
        (yolo("yolov5"), "anchors"),
        (yolo("yolox", strides=()), "needs strides"),
        (yolo("yolox", num_classes=0), "num_classes"),
        (yolo("yolox", outputs=("nothing",)), "there is no output 'nothing'"),
        (yolo("classify"), "classify"),
        (yolo("yolov8", num_classes=7, normalized=True, input_hw=(0, 0)), "input_hw"),
        (yolo("ssd", outputs=("o",)), "expected"),
    ],
)
def test_outputs_of_a_wrong_shape_are_named(spec: DecodeSpec, message: str) -> None:
    outputs = {"o": np.ones((1, 30, 11), np.float32)}
    with pytest.raises(ValueError, match=message):
        finish(outputs, spec, "", 0.3)
    with pytest.raises(InputError, match=message):
        decode.detect(outputs, spec, None, 0.3)


@pytest.mark.parametrize(
    ("score", "side", "message"),
    [
        (0.9, np.inf, "not finite"),
        (0.9, np.nan, "not finite"),
        (np.nan, 1.0, "holds NaN"),
        (7.0, 1.0, "scores_are_logits"),
    ],
)
@pytest.mark.parametrize("isa", ISAS)
def test_outputs_with_wrong_numbers_are_named(score: float, side: float, message: str, isa: str) -> None:
    rows = np.zeros((1, 30, 11), np.float32)
    rows[0, 3, 6], rows[0, 3, 2] = score, side
    with pytest.raises(ValueError, match=message):
        finish({"o": rows}, yolo("yolov8", num_classes=7), isa, 0.3)
