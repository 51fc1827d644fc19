"""A wrong setting planted into the contract that a model carries: `eval` names the setting and the right value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import onnx
import pytest

from command import roadworthy
from roadworthy.data.readers import read
from roadworthy.data.street import CLASS_NAMES, scene
from roadworthy.errors import InputError
from roadworthy.jobs.assess import evaluate
from roadworthy.jobs.sample import detector
from roadworthy.jobs.trial import Ui
from roadworthy.model.model import load
from roadworthy.model.task import METADATA_KEY, Task

IMAGES = 20
FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    # what is wrong, and the words that must be said, one finding each
    "colour": ({"preprocess.color": "rgb"}, ["preprocess.color is rgb, but bgr fits"]),
    "scale": ({"preprocess.scale": 1 / 255}, ["preprocess.scale is 1/255, but 1 fits"]),
    "mean": (
        {"preprocess.mean": (123.7, 116.3, 103.5), "preprocess.std": (58.4, 57.1, 57.4)},
        ["preprocess.mean and std is (123.7, 116.3, 103.5) and (58.4, 57.1, 57.4), but 0 and 1 fits"],
    ),
    "order of strides": ({"decode.strides": (16, 8)}, ["decode.strides is (16, 8), but (8, 16) fits"]),
    "strides and colour": (
        {"decode.strides": (16, 8), "preprocess.color": "rgb"},
        ["decode.strides is (16, 8), but (8, 16) fits", "preprocess.color is rgb, but bgr fits"],
    ),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Street scenes as a YOLO data set on the disk, the labels as the generator knows them."""
    folder = tmp_path_factory.mktemp("street")
    for part, count, seed in (("train", 1, 2000), ("val", IMAGES, 2001)):
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
        for index in range(count):
            image, truth = scene(index, seed)
            height, width = image.shape[:2]
            cv2.imwrite(str(folder / "images" / part / f"{index:03d}.png"), image)
            lines = []
            for (x1, y1, x2, y2), c in zip(truth.boxes_xyxy, truth.classes):
                cx, cy = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
                lines.append(f"{c} {cx} {cy} {(x2 - x1) / width} {(y2 - y1) / height}")
            (folder / "labels" / part / f"{index:03d}.txt").write_text("\n".join(lines))
    names = "\n".join(f"  {k}: {name}" for k, name in enumerate(CLASS_NAMES))
    file = folder / "data.yaml"
    file.write_text(f"train: images/train\nval: images/val\nnames:\n{names}\n")
    return file


def changed(task: Task, changes: dict[str, Any]) -> Task:
    for name, value in changes.items():
        part, field = name.split(".")
        task = replace(task, **{part: replace(getattr(task, part), **{field: value})})
    return task


def carrying(source: Path, task: Task, target: Path) -> Path:
    """A copy of a model file with this contract in its metadata."""
    proto = onnx.load(source)
    kept = [p for p in proto.metadata_props if p.key != METADATA_KEY]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    proto.metadata_props.add(key=METADATA_KEY, value=task.to_json())
    onnx.save(proto, target)
    return target


def street_task() -> Task:
    task = load(detector()).task
    assert task is not None
    return task


def findings(model: Path, data: Path, reference: Path | None = None) -> list[str]:
    other = None if reference is None else str(reference)
    return evaluate(str(model), str(data), None, other, "ort", 0, 1, None, Ui())["findings"]


def test_nothing_is_found_on_a_sound_contract(scenes: Path):
    assert findings(detector(), scenes) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_with_the_right_value(fault: str, scenes: Path, tmp_path: Path):
    changes, said = FAULTS[fault]
    model = carrying(detector(), changed(street_task(), changes), tmp_path / "model.onnx")
    found = findings(model, scenes)
    assert len(found) == len(said), found
    for sentence, words in zip(found, said):
        assert sentence.startswith(words) and f"on {IMAGES} images" in sentence


def test_a_fault_shows_without_labels_when_the_original_is_at_hand(scenes: Path, tmp_path: Path):
    model = carrying(detector(), changed(street_task(), {"preprocess.color": "rgb"}), tmp_path / "model.onnx")
    found = findings(model, scenes.parent / "images" / "val", reference=detector())
    assert "the task contract differs from the original's: preprocess.color: rgb against bgr" in found


@pytest.mark.parametrize("strides", [(16, 32), (8, 8), (8,), (4, 8, 16), (0, 16)])
def test_strides_that_cannot_be_are_refused_with_the_right_ones(strides: tuple[int, ...], scenes: Path, tmp_path: Path):
    model = carrying(detector(), changed(street_task(), {"decode.strides": strides}), tmp_path / "model.onnx")
    with pytest.raises(InputError) as caught:
        findings(model, scenes)
    assert f"decode.strides in the task of {model} is {strides}" in str(caught.value)
    assert "(8, 16)" in str(caught.value)


def test_the_command_prints_findings(scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    model = carrying(detector(), changed(street_task(), {"decode.strides": (16, 8)}), tmp_path / "model.onnx")
    ran = roadworthy(capfd, "eval", model, "--data", scenes, "--threads", 1)
    assert ran.code == 0 and "finding: decode.strides is (16, 8), but (8, 16) fits" in ran.out


# A real detector


@pytest.mark.assets
@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"preprocess.color": "rgb"}, "preprocess.color is rgb, but bgr fits"),
        ({"preprocess.scale": 1 / 255}, "preprocess.scale is 1/255, but 1 fits"),
        ({"decode.strides": (32, 16, 8)}, "decode.strides is (32, 16, 8), but (8, 16, 32) fits"),
        ({"decode.strides": (8, 32, 16)}, "decode.strides is (8, 32, 16), but (8, 16, 32) fits"),
    ],
)
def test_yolox_nano(changes: dict[str, Any], words: str | None, assets: Path, tmp_path: Path):
    from roadworthy.check.contract import settle_task, suspects
    from roadworthy.run.targets import TARGETS

    source = assets / "models/yolox_nano.onnx"
    plain = load(source)
    data = read(assets / "coco/data.yaml")
    runner = TARGETS["ort"].runner(plain.float_bytes(), 1)
    task, _ = settle_task(plain, data, None, lambda: runner)
    assert (task.preprocess.color, task.preprocess.scale, task.decode.strides) == ("bgr", 1.0, (8, 16, 32))
    model = load(carrying(source, changed(task, changes), tmp_path / "model.onnx"))
    assert model.task is not None
    found = suspects(model, model.task, data.test.take(64, 0), runner)
    assert [f.split(" fits")[0] for f in found] == ([words.removesuffix(" fits")] if words else [])
