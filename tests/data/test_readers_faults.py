"""Planted faults: each must be refused in one sentence that names the file and, in a label file, the line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roadworthy.data.readers import read
from roadworthy.errors import InputError

Picture = Callable[..., Path]


def refused(source: Path, *says: str, **options: Any) -> None:
    with pytest.raises(InputError) as caught:
        read(source, **options)
    text = str(caught.value)
    assert "\n" not in text and all(part in text for part in says), text


def test_places(tmp_path: Path, picture: Picture):
    refused(tmp_path / "gone", "gone", "there is no data set")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty", "holds no images")
    image = picture(tmp_path / "full" / "a.png")
    refused(image, "a.png", "give its folder")
    (tmp_path / "model.onnx").touch()
    refused(tmp_path / "model.onnx", "model.onnx", "is no data set")


@pytest.fixture
def yolo(tmp_path: Path, picture: Picture) -> Path:
    root = tmp_path / "yolo"
    for split in ("train", "val"):
        for i in range(2):
            picture(root / "images" / split / f"{i}.png", seed=i)
            (root / "labels" / split).mkdir(parents=True, exist_ok=True)
            (root / "labels" / split / f"{i}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a, b, c]\n")
    read(root)
    return root


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no keys"),
        ("names: [a, b", "not valid YAML (line"),
        ("just words", "holds no keys"),
        ("train: images/train\nval: images/val\n", "has no names"),
        ("train: images/train\nval: images/val\nnc: 3\n", "has no names"),
        ("names: [a]\n", "neither train nor val"),
        ("val: images/val\nnames: {0: a, 2: b}\n", "renumber"),
        ("val: images/val\nnames: a\n", "neither a list nor a map"),
        ("val: images/val\nnames: [a, b]\nnc: 3\n", "nc: 3 but lists 2 names"),
        ("val: images/valid\nnames: [a]\n", "names images/valid under val, but there is no"),
        ("val: 3\nnames: [a]\n", "has 3 under val"),
        ("path: /no/where\nval: images/val\nnames: [a]\n", "there is no folder /no/where"),
        ("val: labels/val\nnames: [a]\n", "names no image under val"),
        ("val: list.txt\nnames: [a]\n", "list.txt"),
    ],
)
def test_data_yaml(yolo: Path, text: str, says: str):
    (yolo / "data.yaml").write_text(text)
    refused(yolo / "data.yaml", "data.yaml", says)


def test_data_yaml_that_is_no_text(yolo: Path):
    (yolo / "data.yaml").write_bytes(b"\x00\xff\xfe\x01" * 20)
    refused(yolo, "data.yaml", "not UTF-8")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("3 0.5 0.5 0.2 0.2", "has class 3, but data.yaml names 3 classes; use a whole number from 0 to 2"),
        ("-1 0.5 0.5 0.2 0.2", "has class -1"),
        ("0.5 0.5 0.5 0.2 0.2", "has class 0.5"),
        ("nan 0.5 0.5 0.2 0.2", "has class nan"),
        ("0 1.5 0.5 0.2 0.2", "a coordinate of 1.5"),
        ("0 0.5 -0.1 0.2 0.2", "a coordinate of -0.1"),
        ("0 0.5 0.5 -0.2 0.2", "a negative width or height of -0.2"),
        ("0 0.5 0.5 0.2 nan", "a coordinate of nan"),
        ("0 320 240 64 48", "a coordinate of 320"),
        ("0 0.5 0.5 0.2", "has 4 numbers"),
        ("0 0.5 0.5 0.2 0.2 0.9", "has 6 numbers"),
        ("car 0.5 0.5 0.2 0.2", "holds 'car"),
        ("0,0.5,0.5,0.2,0.2", "holds '0,0.5"),
    ],
)
@pytest.mark.parametrize("split", ["train", "val"])
def test_yolo_label(yolo: Path, split: str, line: str, says: str):
    (yolo / f"labels/{split}/1.txt").write_text(f"1 0.5 0.5 0.2 0.2\n{line}\n")
    refused(yolo, f"labels/{split}/1.txt line 2", says)


def test_yolo_files(yolo: Path):
    (yolo / "list.txt").write_text("images/val/0.png\nimages/val/7.png\n")
    (yolo / "data.yaml").write_text("val: list.txt\nnames: [a]\n")
    refused(yolo, "list.txt", "7.png", "does not exist")
    (yolo / "list.txt").write_text("images/val/0.png\nimages/val/0.png\n")
    refused(yolo, "images/val/0.png is listed twice")
    (yolo / "data.yaml").write_text("val: images/val\nnames: [a]\n")
    (yolo / "labels/val/0.txt").write_bytes(b"\xff\xd8\xff\xe0")
    refused(yolo, "0.txt", "not text")
    for i in range(2):
        (yolo / f"labels/val/{i}.txt").unlink()
    refused(yolo, "none of the 2 images under val has labels", "labels/val/0.txt")


def test_a_corrupt_image_is_named_when_its_truth_or_pixels_are_asked_for(yolo: Path):
    (yolo / "images/val/0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 5)
    sample = read(yolo).test[0]
    for ask in (sample.image, lambda: sample.truth):
        with pytest.raises(InputError, match=r"images/val/0\.png"):
            ask()


@pytest.fixture
def coco(tmp_path: Path, picture: Picture) -> tuple[Path, dict[str, Any]]:
    root = tmp_path / "coco"
    picture(root / "a.png")
    picture(root / "b.png", seed=1)
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [{"id": 41, "image_id": 1, "category_id": 5, "bbox": [0, 0, 4, 4]}],
        "categories": [{"id": 5, "name": "car"}],
    }
    file = root / "some.json"
    file.write_text(json.dumps(content))
    read(file)
    return file, content


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        (("annotations", 0, "image_id"), 9, "annotation 41 belongs to image 9"),
        (("annotations", 0, "image_id"), [1], "annotation 41 belongs to image [1]"),
        (("annotations", 0, "category_id"), 1, "annotation 41 has category 1"),
        (("annotations", 0, "bbox"), [0, 0, -4, 4], "annotation 41 has a negative width"),
        (("annotations", 0, "bbox"), [0, 0, 4], "annotation 41 has bbox"),
        (("annotations", 0, "bbox"), [0, 0, float("nan"), 4], "annotation 41 has bbox"),
        (("annotations", 0, "bbox"), None, "annotation 41 has bbox"),
        (("annotations", 0, "area"), "big", "annotation 41 has area big"),
        (("images", 1, "id"), 1, "two images with id 1"),
        (("images", 1, "file_name"), "a.png", "a.png is listed twice"),
        (("images", 1, "file_name"), "c.png", "lists the image c.png"),
        (("images", 1, "file_name"), None, "without id or file_name"),
        (("images",), [], "lists no images"),
        (("images",), {}, "no list of images"),
        (("categories",), [], "lists no categories"),
        (("categories",), [{"id": 5}], "category without a name"),
        (("annotations",), None, "no list of annotations"),
        (("annotations",), [3], "no list of annotations"),
    ],
)
def test_coco(coco: tuple[Path, dict[str, Any]], where: tuple[Any, ...], value: object, says: str):
    file, content = coco
    place: Any = content
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    file.write_text(json.dumps(content))
    refused(file, "" if "twice" in says else "some.json", says)


def test_coco_files(coco: tuple[Path, dict[str, Any]]):
    file, content = coco
    whole = json.dumps(content)
    for length in (0, 1, 50, len(whole) - 1):
        file.write_text(whole[:length])
        refused(file, "some.json", "not valid JSON")
    file.write_text("[" * 100_000)
    refused(file, "some.json")
    for other, says in (("[]", "detection results"), ("3", "not a COCO annotation file"), ("{}", "no list of images")):
        file.write_text(other)
        refused(file, "some.json", says)
    file.write_bytes(b"\xff\xfe\x00")
    refused(file, "some.json")
    for image in ("a.png", "b.png"):
        (file.parent / image).unlink()
    file.write_text(whole)
    refused(file, "some.json lists the image a.png, but it is not in")


def test_coco_folders(coco: tuple[Path, dict[str, Any]]):
    file, content = coco
    folder = file.parent
    for name in ("instances_val2014.json", "instances_val2017.json"):
        (folder / name).write_text(json.dumps(content))
    refused(folder, "2 files for val", "instances_val2014.json, instances_val2017.json")
    (folder / "instances_val2014.json").rename(folder / "instances_train.json")
    content["categories"][0]["name"] = "bus"
    (folder / "instances_val2017.json").write_text(json.dumps(content))
    refused(folder, "different categories")


OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox></object>"


@pytest.fixture
def voc(tmp_path: Path, picture: Picture) -> Path:
    root = tmp_path / "voc"
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for i in range(3):
        picture(root / "JPEGImages" / f"i{i}.jpg", seed=i)
        xml = f"<annotation><filename>i{i}.jpg</filename>{OBJECT.format('cat', 1, 9)}</annotation>"
        (root / f"Annotations/i{i}.xml").write_text(xml)
    (root / "ImageSets/Main/train.txt").write_text("i0\ni1\n")
    (root / "ImageSets/Main/val.txt").write_text("i2\n")
    read(root)
    return root


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        ("", "not valid XML"),
        ("<annotation><object>", "not valid XML (line 1)"),
        ("<?xml version='1.0' encoding='klingon'?><a/>", "not valid XML"),
        (f"<annotation>{OBJECT.format('', 1, 9)}</annotation>", "object without a name"),
        (f"<annotation>{OBJECT.format('cat', 'x', 9)}</annotation>", "bndbox lacks a number"),
        (f"<annotation>{OBJECT.format('cat', 12, 9)}</annotation>", "min must not exceed max"),
        (f"<annotation>{OBJECT.format('cat', 'nan', 9)}</annotation>", "min must not exceed max"),
        ("<annotation><object><name>cat</name></object></annotation>", "bndbox lacks a number"),
    ],
)
def test_voc_xml(voc: Path, xml: str, says: str):
    (voc / "Annotations/i1.xml").write_text(xml)
    refused(voc, "i1.xml", says)


def test_voc_files(voc: Path):
    refused(voc, "i0.xml labels a 'cat', which is not a class (dog)", class_names=["dog"])
    (voc / "ImageSets/Main/val.txt").write_text("i2\ni9\n")
    refused(voc, "val.txt lists i9", "i9.xml")
    (voc / "ImageSets/Main/val.txt").write_text("i2\n")
    (voc / "JPEGImages/i2.jpg").unlink()
    refused(voc, "i2.xml has no image")
    (voc / "ImageSets/Main/val.txt").write_text("")
    refused(voc, "no images to test on")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column file"),
        ("name,class_index\na.png,0\n", "no column file"),
        ("file,label\na.png,0\n", "no column class_index"),
        ("file,class_index\n", "lists no images"),
        ("file,class_index\na.png,0\nb.png,cat\n", "line 3 has class_index 'cat'"),
        ("file,class_index\na.png,-1\n", "line 2 has class_index '-1'"),
        ("file,class_index\na.png,1.0\n", "line 2 has class_index '1.0'"),
        ("file,class_index\na.png," + "9" * 5000 + "\n", "line 2 has class_index"),
        ("file,class_index\na.png\n", "line 2 has 1 columns"),
        ("file,class_index\n\na.png,0\ngone.png,1\n", "line 4 names 'gone.png'"),
        ("file,class_index\n,1\n", "line 2 names ''"),
        ('file,class_index\n"a.png,0\n', "not valid csv"),
        ("file,class_index\na.png,0\na.png,0\n", "a.png is listed twice"),
    ],
)
def test_csv(tmp_path: Path, picture: Picture, text: str, says: str):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / "labels.csv").write_text(text)
    refused(tmp_path, "" if "twice" in says else "labels.csv", says)


def test_class_names_that_disagree(yolo: Path, tmp_path: Path, picture: Picture):
    refused(yolo, "a, b, c", "x, y", class_names=["x", "y"])
    picture(tmp_path / "csv" / "a.png")
    (tmp_path / "csv/labels.csv").write_text("file,class_index\na.png,2\n")
    refused(tmp_path / "csv", "class_index '2'", "from 0 to 1", class_names=["x", "y"])


def test_damaged_descriptions_never_raise_anything_else(yolo: Path, coco: tuple[Path, dict[str, Any]], voc: Path):
    """Flip bytes of each kind of file: reading either works or is refused with an InputError."""
    rng = np.random.default_rng(0)
    for source, file in (
        (yolo, yolo / "data.yaml"),
        (yolo, yolo / "labels/val/0.txt"),
        (coco[0], coco[0]),
        (voc, voc / "Annotations/i0.xml"),
    ):
        good = file.read_bytes()
        for _ in range(60):
            data = bytearray(good)
            for at in rng.integers(0, len(data), 2):
                data[at] = rng.integers(0, 256)
            file.write_bytes(data)
            try:
                read(source)
            except InputError as error:
                assert "\n" not in str(error)
        file.write_bytes(good)
