"""From image to result: the native detector equals preparing, running and decoding one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from onnx_graphs import N, build, rand
from roadworthy.data.preprocess import Preprocess
from roadworthy.detect import decode
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError
from roadworthy.model.model import Model, load
from roadworthy.model.task import Task
from roadworthy.optimize import fold
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import place
from roadworthy.quantize.quantize import activation_encodings, quantize_units
from roadworthy.run.native.lower import lower
from roadworthy.run.reference import ReferenceRunner
from roadworthy.run.targets import TARGETS

_native = pytest.importorskip("roadworthy._native")
from roadworthy.run.native.detector import Detector  # noqa: E402

PREPARE = Preprocess((32, 48), anchor="center", color="rgb", scale=1 / 255)
BOXES = Task(
    PREPARE, DecodeSpec("yolov8", 3, (32, 48), scores_are_logits=True, score_threshold=0.15, iou_threshold=0.9)
)
CLASSES = Task(PREPARE, DecodeSpec("classify", 5, scores_are_logits=True, class_names=tuple("abcde")))


def detector_model(task: Task = BOXES) -> Model:
    """A 3x3 convolution with Relu, then 1x1 to 4 + 3 channels: 16 x 24 cells of boxes in pixels and class logits."""
    weights = {
        "w": rand(8, 3, 3, 3), "b": rand(8), "v": rand(7, 8, 1, 1) * 0.5, "s": np.array([1, 7, 384]),
        "c": np.array([16.0, 16, 20, 20, -2, -2, -2], np.float32),
    }  # fmt: skip
    nodes = [
        N("Conv", ["x", "w", "b"], ["p"], pads=[1, 1, 1, 1], strides=[2, 2]),
        N("Relu", ["p"], ["q"]),
        N("Conv", ["q", "v", "c"], ["r"]),
        N("Reshape", ["r", "s"], ["y"]),
    ]
    return load(build(nodes, weights, (1, 3, 32, 48)), task)


def classifier_model() -> Model:
    nodes = [
        N("Conv", ["x", "w"], ["p"], strides=[2, 2]),
        N("GlobalAveragePool", ["p"], ["q"]),
        N("Flatten", ["q"], ["r"]),
        N("Gemm", ["r", "v"], ["y"]),
    ]
    return load(build(nodes, {"w": rand(8, 3, 3, 3), "v": rand(8, 5)}, (1, 3, 32, 48)), CLASSES)


def in_int8(model: Model) -> Model:
    target = TARGETS["openvino"]
    model = fold(model)
    placement = place(model.ir, target)
    images = [PREPARE(noise(40, 60, k))[0] for k in range(2)]
    if model.input_shape != images[0].shape:
        images = [rand(*model.input_shape) * 50 + 110]
    statistics = calibrate(model, placement.observed, images, 1)
    return quantize_units(model, placement, activation_encodings(placement, statistics, target, "minmax"), "minmax", {})


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, height, width]).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("isa", _native.isas())
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("to_int8", [True, False])
def test_detect_equals_the_steps_one_by_one(to_int8: bool, threads: int, isa: str) -> None:
    model = in_int8(detector_model()) if to_int8 else detector_model()
    detector = Detector(lower(model).to_bytes(), threads, isa=isa)
    assert detector._session.writes_codes == to_int8
    assert (detector.isa, detector.threads, detector.task) == (isa, threads, replace(BOXES, how="metadata"))
    runner = ReferenceRunner(model)
    most = 0
    for number, hw in enumerate([(40, 60), (32, 48), (9, 100), (40, 60), (300, 200)]):
        image = noise(*hw, seed=number)
        tensor, geometry = PREPARE(image)
        expected = decode.detect(runner.run({"x": tensor}), BOXES.decode, geometry.to_image)
        found = detector.detect(image)
        # int8 networks agree bit for bit, so only exp and tanh differ; float ones sum in another order
        assert found.classes.tolist() == expected.classes.tolist()
        np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        most = max(most, len(found))
    assert most > 3


@pytest.mark.parametrize("make", [classifier_model, lambda: in_int8(classifier_model())], ids=["float", "int8"])
def test_classify(make: Callable[[], Model]) -> None:
    model = make()
    detector = Detector(lower(model).to_bytes(), 1)
    image = noise(50, 50)
    expected = decode.classify(ReferenceRunner(model).run({"x": PREPARE(image)[0]}), CLASSES.decode)
    np.testing.assert_allclose(detector.classify(image), expected, rtol=1e-4)
    best = detector.top(image, 2)
    assert [name for name, _ in best] == ["abcde"[k] for k in np.argsort(-expected)[:2]]
    with pytest.raises(InputError, match="use classify"):
        detector.detect(image)


def test_other_interpolations_are_prepared_in_python() -> None:
    task = replace(BOXES, preprocess=replace(PREPARE, interpolation="area"))
    model = in_int8(detector_model(task))
    detector, image = Detector(lower(model).to_bytes(), 1), noise(90, 120)
    tensor, geometry = task.preprocess(image)
    expected = decode.detect(ReferenceRunner(model).run({"x": tensor}), task.decode, geometry.to_image)
    found = detector.detect(image)
    assert found.classes.tolist() == expected.classes.tolist() and len(found) > 0
    np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, rtol=1e-4, atol=1e-3)


def test_thresholds_of_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "small.rwp"
    path.write_bytes(lower(in_int8(detector_model())).to_bytes())
    image = noise(40, 60)
    everything = Detector(path, 1, score_threshold=0.01, iou_threshold=1.0, max_detections=1000).detect(image)
    few = Detector(str(path), 1, score_threshold=0.01, iou_threshold=1.0, max_detections=3).detect(image)
    assert len(everything) > 100 and np.array_equal(few.boxes_xyxy, everything.boxes_xyxy[:3])
    assert (np.diff(everything.scores) <= 0).all()
    assert everything.boxes_xyxy.min() >= 0 and (everything.boxes_xyxy <= [60, 40, 60, 40]).all()


def test_crops_with_gaps_between_rows() -> None:
    detector, image = Detector(lower(in_int8(detector_model())).to_bytes(), 1, score_threshold=0.1), noise(90, 120)
    a, b = detector.detect(image[5:80, 20:100]), detector.detect(image[5:80, 20:100].copy())
    assert len(a) and np.array_equal(a.boxes_xyxy, b.boxes_xyxy)
    assert len(detector.detect(image[:, ::-1])) and len(detector.detect(image[:1, :, :]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "an image is NoneType"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\)"),
        (np.zeros((4, 4, 3)), "float64"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros((1, 40000, 3), np.uint8), "32768"),
    ],
)
def test_bad_images_are_named(image: object, message: str) -> None:
    detector = Detector(lower(detector_model()).to_bytes(), 1)
    with pytest.raises(InputError, match=message):
        detector.detect(image)  # type: ignore[arg-type]


def test_bad_plans_and_options_are_named(tmp_path: Path) -> None:
    plan = lower(detector_model())
    data = plan.to_bytes()
    with pytest.raises(InputError, match=r"missing\.rwp cannot be read"):
        Detector(tmp_path / "missing.rwp")
    with pytest.raises(InputError, match="cannot be used on images"):
        Detector(data[:-1])
    with pytest.raises(InputError, match="has no task"):
        Detector(lower(replace(detector_model(), task=None)).to_bytes())
    with pytest.raises(InputError, match="raw"):
        Detector(lower(detector_model(replace(BOXES, decode=DecodeSpec("raw")))).to_bytes())
    with pytest.raises(InputError, match="1x3x32x48, but the plan's task makes 1x3x32x64"):
        Detector(lower(detector_model(replace(BOXES, preprocess=Preprocess((32, 64))))).to_bytes())
    with pytest.raises(InputError, match="expected"):
        Detector(lower(detector_model(replace(BOXES, decode=replace(BOXES.decode, num_classes=4)))).to_bytes())
    for options in ({"score_threshold": 1.5}, {"iou_threshold": float("nan")}, {"max_detections": -1}, {"isa": "mmx"}):
        with pytest.raises(InputError):
            Detector(data, 1, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="use detect"):
        Detector(data, 1).classify(noise(5, 5))


@pytest.mark.assets
def test_yolox_on_photographs(assets: Path) -> None:
    task = Task(Preprocess((416, 416)), DecodeSpec("yolox", 80, (416, 416), (8, 16, 32), score_threshold=0.3))
    model = in_int8(load(assets / "models" / "yolox_nano.onnx", task))
    detector, runner = Detector(lower(model).to_bytes(), 2), ReferenceRunner(model)
    for path in sorted((assets / "coco/images/val").glob("*.jpg"))[:1]:
        image = cv2.imread(str(path))
        tensor, geometry = task.preprocess(image)
        expected = decode.detect(runner.run({model.input_name: tensor}), task.decode, geometry.to_image)
        found = detector.detect(image)
        assert found.classes.tolist() == expected.classes.tolist()
        np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, rtol=1e-4, atol=1e-3)
