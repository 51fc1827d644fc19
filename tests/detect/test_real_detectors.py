"""Published detectors on real photographs: their mAP is known, and a mistake in the contract ruins it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import pytest

from roadworthy.detect.boxes import clip
from roadworthy.detect.decode import detect
from roadworthy.detect.detections import Detections, Truth
from roadworthy.detect.evaluate import bootstrap_drop, evaluate_detections, map_only
from roadworthy.detect.spec import DecodeSpec

ASSETS = Path(os.environ.get("ROADWORTHY_ASSETS") or Path(__file__).parents[2].parent / "shared" / "assets")
pytestmark = [
    pytest.mark.assets,
    pytest.mark.skipif(not (ASSETS / "coco").is_dir(), reason="the assets folder (real models and images) is absent"),
]
YOLOX = DecodeSpec("yolox", 80, (416, 416), (8, 16, 32))
FASTESTDET = DecodeSpec("fastestdet", 80, (352, 352))
Way = Callable[[np.ndarray, np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def val() -> tuple[list[np.ndarray], list[Truth]]:
    labels = json.loads((ASSETS / "coco/annotations/instances_val.json").read_text())
    rows: dict[int, list[dict]] = {image["id"]: [] for image in labels["images"]}
    for row in labels["annotations"]:
        rows[row["image_id"]].append(row)
    truths = []
    for own in rows.values():
        boxes = np.array([row["bbox"] for row in own], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        kinds, areas, crowd = (np.array([row[key] for row in own]) for key in ("category_id", "area", "iscrowd"))
        truths.append(Truth.of(boxes, kinds, areas, crowd.astype(bool)))
    return [cv2.imread(str(ASSETS / "coco/images/val" / i["file_name"])) for i in labels["images"]], truths


def run(model: str, tensors: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(ASSETS / "models" / model), options, providers=["CPUExecutionProvider"])
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name
    return [{output: session.run(None, {name: tensor})[0]} for tensor in tensors]


def letterbox(image: np.ndarray) -> np.ndarray:
    ratio = 416 / max(image.shape[:2])
    height, width = int(image.shape[0] * ratio), int(image.shape[1] * ratio)
    canvas = np.full((416, 416, 3), 114, np.uint8)
    canvas[:height, :width] = cv2.resize(image, (width, height))
    return canvas.transpose(2, 0, 1)[None].astype(np.float32)


def unletterbox(boxes: np.ndarray, image: np.ndarray) -> np.ndarray:
    return boxes * (max(image.shape[:2]) / 416)


def unstretch(boxes: np.ndarray, image: np.ndarray) -> np.ndarray:
    return boxes * np.tile(image.shape[1::-1], 2) / 352


@pytest.fixture(scope="module")
def yolox(val: tuple[list[np.ndarray], list[Truth]]) -> list[dict[str, np.ndarray]]:
    return run("yolox_nano.onnx", [letterbox(image) for image in val[0]])


def results(
    outputs: list[dict[str, np.ndarray]], images: list[np.ndarray], spec: DecodeSpec, way: Way
) -> list[Detections]:
    def to_image(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        return clip(way(boxes, image), image.shape[:2])

    return [detect(o, spec, partial(to_image, image), 0.01) for o, image in zip(outputs, images, strict=True)]


def test_yolox_nano_and_faults_in_its_contract(val: tuple, yolox: list[dict[str, np.ndarray]]) -> None:
    images, truths = val
    found = results(yolox, images, YOLOX, unletterbox)
    scores = evaluate_detections(truths, found, 80, 0.3)
    assert scores.map == pytest.approx(29.46, abs=0.15)
    assert map_only(truths, found, 80) == pytest.approx(scores.map, abs=1e-9)
    assert scores.small < scores.medium < scores.large  # type: ignore[operator]

    def faulty(spec: DecodeSpec = YOLOX, way: Way = unletterbox, shift: int = 0) -> float:
        wrong = results(yolox, images, spec, way)
        wrong = [replace(w, classes=(w.classes + shift) % 80) for w in wrong]
        return map_only(truths, wrong, 80)

    assert faulty(way=lambda boxes, image: unletterbox(boxes, image)[:, [1, 0, 3, 2]]) < 8  # x and y swapped
    assert faulty(way=unstretch) < 15  # the way back of another preprocessing
    assert faulty(spec=replace(YOLOX, strides=(32, 16, 8), input_hw=(416, 416))) < 3  # levels in the wrong order
    assert faulty(shift=1) < 3


def test_fastestdet_and_the_drop_to_it(val: tuple, yolox: list[dict[str, np.ndarray]]) -> None:
    images, truths = val
    tensors = [cv2.resize(i, (352, 352)).transpose(2, 0, 1)[None].astype(np.float32) / 255 for i in images]
    found = results(run("fastestdet.onnx", tensors), images, replace(FASTESTDET, iou_threshold=0.45), unstretch)
    assert map_only(truths, found, 80) == pytest.approx(16.23, abs=0.15)
    interval = bootstrap_drop(truths, results(yolox, images, YOLOX, unletterbox), found, 80, rounds=100)
    assert interval.drop == pytest.approx(29.46 - 16.23, abs=0.3)
    assert 5 < interval.low < interval.drop < interval.high < 22
