"""The readers on small sets written here and on real ones; pycocotools and hand-computed boxes are the oracles."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from roadworthy.data import samples as samples_module
from roadworthy.data.dataset import Dataset
from roadworthy.data.readers import check_classes, read
from roadworthy.data.samples import Samples
from roadworthy.errors import InputError

Picture = Callable[..., Path]


def by_name(samples: Samples) -> dict[str, object]:
    return {Path(s.name).name: s for s in samples}


def names(samples: Samples) -> list[str]:
    return [s.name for s in samples]


@pytest.fixture
def yolo(tmp_path: Path, picture: Picture) -> Path:
    """Two training images and two validation images of 100 x 200 (height x width); the second has no label file."""
    for i, split in enumerate(("train", "train", "val", "val")):
        picture(tmp_path / "images" / split / f"{i}.png", 100, 200, seed=i)
        (tmp_path / "labels" / split).mkdir(parents=True, exist_ok=True)
    (tmp_path / "labels/train/0.txt").write_text("0 0.5 0.5 0.5 0.2\n")
    (tmp_path / "labels/train/1.txt").write_text("")
    (tmp_path / "labels/val/2.txt").write_text("1 0.5 0.5 0.5 0.2\n\n0 0.25 0.25 0.1 0.1\n")
    file = tmp_path / "data.yaml"
    file.write_text("path: .\ntrain: images/train\nval: images/val\nnames: {0: car, 1: bus}\n")
    return file


def test_yolo(yolo: Path):
    for source in (yolo, yolo.parent, str(yolo)):
        data = read(source)
        assert data.kind == "boxes" and data.class_names == ("car", "bus") == data.test.class_names
        assert names(data.calibration) == ["images/train/0.png", "images/train/1.png"]
        assert names(data.test) == ["images/val/2.png", "images/val/3.png"]
    truth = data.test[0].truth
    assert truth is not None and truth.classes.tolist() == [1, 0] and not truth.ignore.any()
    np.testing.assert_allclose(truth.boxes_xyxy, [[50, 40, 150, 60], [40, 20, 60, 30]], rtol=1e-6)
    np.testing.assert_allclose(truth.areas, [2000, 200], rtol=1e-6)
    assert len(data.test[1].truth) == 0  # type: ignore[arg-type]
    assert "1 of the 2 images under val have no label file" in data.note


def test_yolo_opens_no_image_until_asked(yolo: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> None:
        raise AssertionError(path)

    monkeypatch.setattr(samples_module, "read_image", refuse)
    (yolo.parent / "images/val/3.png").write_bytes(b"corrupt")
    data = read(yolo)
    with pytest.raises(AssertionError):
        data.test[0].image()


def test_yolo_variants(yolo: Path):
    root = yolo.parent
    (root / "val.txt").write_text("./images/val/2.png\nimages/val/3.png\n\n")
    config = "names: [car, bus]\nnc: 2\ntrain: [images/train, images/val]\nval: val.txt\n"
    yolo.write_text(config)
    data = read(yolo)
    assert len(data.calibration) == 4 and names(data.test) == ["images/val/2.png", "images/val/3.png"]
    assert "2 of the 2 test images calibrate too" in data.note
    yolo.write_text("names: [car, bus]\ntrain: ../images/train\nval: ../images/val\n")  # as one exporter writes it
    assert names(read(yolo).test) == ["images/val/2.png", "images/val/3.png"]
    yolo.write_text("names: [car, bus]\ntrain: images/train\ntest: images/val\n")
    assert names(read(yolo).test) == ["images/val/2.png", "images/val/3.png"]
    yolo.write_text("names: [car, bus]\nval: images/val\n")
    data = read(yolo)
    assert len(data.calibration) == len(data.test) == 1 and "no split" in data.note


def test_yolo_labels_beside_the_images_and_unlabelled_training_images(tmp_path: Path, picture: Picture):
    for i in range(2):
        picture(tmp_path / "train" / f"{i}.jpg", seed=i)
        picture(tmp_path / "val" / f"{i}.jpg", seed=9 + i)
        (tmp_path / "val" / f"{i}.txt").write_text("0 0.5 0.5 1 1")
    (tmp_path / "data.yaml").write_text("names: [cell]\ntrain: train\nval: val\n")
    data = read(tmp_path)
    assert data.calibration.kind == "images" and data.calibration[0].truth is None
    assert "No image under train has labels" in data.note
    assert data.test[0].truth.boxes_xyxy.tolist() == [[0, 0, 32, 24]]  # type: ignore[union-attr]


def test_yolo_polygons_key_points_rounding_and_clipping(yolo: Path):
    labels = yolo.parent / "labels/val/2.txt"
    labels.write_text("1 0.1 0.2 0.3 0.2 0.2 0.6\n0 0.9 0.5 0.4 1.0005 \n0.0 0.5 0.5 0 0.1")
    data = read(yolo)
    truth = data.test[0].truth
    assert truth is not None
    np.testing.assert_allclose(truth.boxes_xyxy, [[20, 20, 60, 60], [140, 0, 200, 100], [100, 45, 100, 55]], atol=1e-4)
    assert truth.ignore.tolist() == [False, False, True]  # nothing can overlap a box without width
    assert "1 boxes under val reached beyond their image" in data.note
    yolo.write_text(yolo.read_text() + "kpt_shape: [1, 2]\n")
    labels.write_text("1 0.5 0.5 0.5 0.2 0.9 0.9\n")
    np.testing.assert_allclose(read(yolo).test[0].truth.boxes_xyxy, [[50, 40, 150, 60]], atol=1e-4)  # type: ignore[union-attr]


def coco(folder: Path, picture: Picture, split: str, ids: range, images: str = "images/{split}") -> Path:
    """COCO with category ids 7 and 3 (out of order), a crowd, an area of its own, and one image without boxes."""
    entries = []
    for i in ids:
        picture(folder / images.format(split=split) / f"{i}.png", 60, 80, seed=i)
        entries.append({"id": 100 + i, "file_name": f"{i}.png", "height": 60, "width": 80})
    first, second = entries[0]["id"], entries[1]["id"]
    annotations = [
        {"id": 1, "image_id": first, "category_id": 7, "bbox": [1.5, 2, 30, 40], "area": 700.5, "iscrowd": 0},
        {"id": 2, "image_id": second, "category_id": 3, "bbox": [0, 0, 80, 60], "area": 4800, "iscrowd": 1},
        {"id": 3, "image_id": first, "category_id": 3, "bbox": [10, 10, 5, 6]},
        {"id": 4, "image_id": first, "category_id": 3, "bbox": [10, 10, 0, 6], "area": 0, "iscrowd": 0},
    ]
    categories = [{"id": 7, "name": "bus"}, {"id": 3, "name": "car"}]
    file = folder / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": entries, "annotations": annotations, "categories": categories}))
    return file


def test_coco(tmp_path: Path, picture: Picture):
    coco(tmp_path, picture, "train2017", range(3))
    coco(tmp_path, picture, "val2017", range(3, 6))
    data = read(tmp_path)
    assert data.class_names == ("car", "bus") and data.kind == "boxes" and data.note == ""
    assert names(data.calibration) == ["0.png", "1.png", "2.png"] and names(data.test) == ["3.png", "4.png", "5.png"]
    first, second, third = (s.truth for s in data.test)
    assert first is not None and second is not None and third is not None
    assert first.boxes_xyxy.tolist() == [[1.5, 2, 31.5, 42], [10, 10, 15, 16], [10, 10, 10, 16]]
    assert first.classes.tolist() == [1, 0, 0] and first.areas.tolist() == [700.5, 30, 0]
    assert first.ignore.tolist() == [False, False, True]
    assert second.ignore.tolist() == [True] and len(third) == 0
    assert data.test[0].image().shape == (60, 80, 3)


@pytest.mark.parametrize("images", ["images/{split}", "{split}", "images", "annotations", "annotations/images", "."])
def test_coco_finds_its_images(tmp_path: Path, picture: Picture, images: str):
    file = coco(tmp_path, picture, "val", range(4), images)
    data = read(file)
    assert len(data.calibration) == len(data.test) == 2 and "no split" in data.note
    assert data.test[0].image().shape == (60, 80, 3)


def voc(root: Path, picture: Picture, lists: dict[str, list[str]]) -> Path:
    for i in range(4):
        picture(root / "JPEGImages" / f"i{i}.jpg", 50, 60, seed=i)
        objects = "".join(
            f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin>"
            f"<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
            for name, difficult, box in [("dog", 0, (1, 1, 60, 50)), ("cat", 1, (0, 11, 20, 11))]
        )
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"i{i}.xml").write_text(
            f"<annotation><filename>i{i}.jpg</filename>{objects}</annotation>"
        )
    (root / "ImageSets/Main").mkdir(parents=True)
    for word, entries in lists.items():
        (root / "ImageSets/Main" / f"{word}.txt").write_text("\n".join(entries) + "\n")
    return root


def test_voc(tmp_path: Path, picture: Picture):
    root = voc(tmp_path / "VOC", picture, {"train": ["i0"], "trainval": ["i0", "i1"], "val": ["i1"], "test": ["i3"]})
    for source in (root, tmp_path):
        data = read(source)
        assert data.class_names == ("cat", "dog") and names(data.calibration) == ["i0.jpg"]
        assert names(data.test) == ["i3.jpg"]
    truth = data.test[0].truth
    assert truth is not None and truth.classes.tolist() == [1, 0] and truth.ignore.tolist() == [False, True]
    assert truth.boxes_xyxy.tolist() == [[0, 0, 60, 50], [0, 10, 20, 11]]  # 1-based, both ends included
    assert truth.areas.tolist() == [3000, 20]
    assert read(root, class_names=["dog", "cat"]).test[0].truth.classes.tolist() == [0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("lists", "calibrates", "tests"),
    [
        ({"train": ["i0", "i1"], "val": ["i2"]}, {"i0.jpg", "i1.jpg"}, {"i2.jpg"}),
        ({"trainval": ["i0", "i1"], "test": ["i3"]}, {"i0.jpg", "i1.jpg"}, {"i3.jpg"}),
        ({"train": ["i0"], "val": ["i1"], "trainval": ["i0", "i1"]}, {"i0.jpg"}, {"i1.jpg"}),
    ],
)
def test_voc_lists(tmp_path: Path, picture: Picture, lists: dict[str, list[str]], calibrates: set, tests: set):
    data = read(voc(tmp_path / "v", picture, lists))
    assert (set(names(data.calibration)), set(names(data.test))) == (calibrates, tests) and data.note == ""


@pytest.mark.parametrize("lists", [{}, {"trainval": ["i0", "i1", "i2", "i3"]}])
def test_voc_without_a_split(tmp_path: Path, picture: Picture, lists: dict[str, list[str]]):
    data = read(voc(tmp_path / "v", picture, lists))
    assert len(data.calibration) == len(data.test) == 2 and "no split" in data.note


def test_csv(tmp_path: Path, picture: Picture):
    for i in range(5):
        picture(tmp_path / "sub" / f"{i}.png", seed=i)
    lines = [f"{i * 10},sub/{i}.png," for i in range(5)]
    (tmp_path / "labels.csv").write_text("\ufeffclass_index,file,remark\n" + "\n".join(lines) + "\n\n")
    data = read(tmp_path)
    assert data.kind == "classes" and len(data.calibration) == 2 and len(data.test) == 3 and data.class_names == ()
    assert {s.name: s.label for s in (*data.calibration, *data.test)} == {f"sub/{i}.png": i * 10 for i in range(5)}
    assert data.test.content_id == read(tmp_path / "labels.csv").test.content_id


def test_a_bare_folder(tmp_path: Path, picture: Picture):
    for name in ("b/2.PNG", "a.jpg", "b/c/3.webp", ".hidden/4.jpg", "b/.5.jpg"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    data = read(tmp_path)
    both = sorted([*names(data.calibration), *names(data.test)])
    assert data.kind == "images" and both == ["a.jpg", "b/2.PNG", "b/c/3.webp"]
    assert "no labels" in data.note


def test_the_lot_depends_on_names_and_seed_only(tmp_path: Path, picture: Picture):
    for folder, order in (("one", range(30)), ("two", reversed(range(30)))):
        for i in order:
            picture(tmp_path / folder / f"{i}.png")
    first, second, other = read(tmp_path / "one"), read(tmp_path / "two"), read(tmp_path / "one", split_seed=1)
    assert names(first.calibration) == names(second.calibration) and len(first.calibration) == 15
    assert not set(names(first.calibration)) & set(names(first.test))
    assert names(first.calibration) != names(other.calibration)


def test_no_more_than_512_images_calibrate_a_set_without_a_split(tmp_path: Path, picture: Picture):
    picture(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,class_index\n" + "".join(f"{'./' * i}a.png,0\n" for i in range(2)))
    with pytest.raises(InputError, match=r"a\.png is listed twice"):
        read(tmp_path)
    for i in range(1100):
        (tmp_path / f"{i}.png").touch()
    (tmp_path / "labels.csv").unlink()
    data = read(tmp_path)
    assert (len(data.calibration), len(data.test)) == (512, 1101 - 512)


def test_a_single_image_serves_both_and_the_note_says_so(tmp_path: Path, picture: Picture):
    picture(tmp_path / "a.png")
    data = read(tmp_path)
    assert names(data.calibration) == names(data.test) == ["a.png"] and "calibrate too" in data.note


def test_calibration_from_elsewhere(yolo: Path, tmp_path: Path, picture: Picture):
    for i in range(3):
        picture(tmp_path / "more" / f"{i}.png", seed=50 + i)
    data = read(yolo, calibration=tmp_path / "more")
    assert len(data.calibration) == 3 and data.calibration.kind == "images" and len(data.test) == 2
    assert data.kind == "boxes" and "are from" in data.note
    assert len(read(tmp_path / "more", calibration=yolo).test) == 3  # without a split of its own it tests as a whole


def test_check_classes(yolo: Path):
    data = read(yolo)
    check_classes(data, 2, ("car", "bus"))
    check_classes(data, 2, ("Car", "lorry"))  # other words for the same are the user's business
    check_classes(data, 0)
    with pytest.raises(InputError, match=r"model scores 80 classes, but .* names 2 \(car, bus\)"):
        check_classes(data, 80)
    with pytest.raises(InputError, match=r"class 0 'bus', but .* calls it 'car'"):
        check_classes(data, 2, ("bus", "car"))


def test_check_classes_without_names(tmp_path: Path, picture: Picture):
    for i in range(4):
        picture(tmp_path / f"{i}.png", seed=i)
    (tmp_path / "labels.csv").write_text("file,class_index\n" + "".join(f"{i}.png,{i * 27}\n" for i in range(4)))
    data = read(tmp_path)
    check_classes(data, 82)
    with pytest.raises(InputError, match=r"scores 80 classes, but the label of 3\.png in .* uses class 81"):
        check_classes(data, 80)
    (tmp_path / "labels.csv").unlink()
    check_classes(read(tmp_path), 1)


@pytest.mark.assets
def test_coco_asset_as_yolo_and_as_json_and_as_pycocotools_reads_it(assets: Path):
    from pycocotools.coco import COCO

    start = time.perf_counter()
    yolo = read(assets / "coco/data.yaml")
    assert time.perf_counter() - start < 0.5
    assert (len(yolo.calibration), len(yolo.test), len(yolo.class_names)) == (278, 220, 80)
    part = read(assets / "coco/annotations/instances_val.json")
    found = {s.name: s for s in (*part.calibration, *part.test)}
    assert {Path(s.name).name for s in yolo.test} == set(found) and part.class_names == yolo.class_names
    oracle = COCO(str(assets / "coco/annotations/instances_val.json"))
    for image in oracle.loadImgs(oracle.getImgIds()):
        annotations = oracle.loadAnns(oracle.getAnnIds([image["id"]]))
        truth, drawn = found[image["file_name"]].truth, by_name(yolo.test)[image["file_name"]].truth  # type: ignore[attr-defined]
        xywh = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
        np.testing.assert_allclose(truth.boxes_xyxy, boxes, atol=1e-4)
        np.testing.assert_allclose(drawn.boxes_xyxy, boxes, atol=2e-3)  # six decimals of 640 px, four roundings
        np.testing.assert_allclose(truth.areas, [a["area"] for a in annotations], rtol=1e-6)
        assert truth.classes.tolist() == drawn.classes.tolist() == [a["category_id"] for a in annotations]
        assert truth.ignore.tolist() == [bool(a["iscrowd"]) for a in annotations]


@pytest.mark.assets
def test_other_assets(assets: Path):
    cells: Dataset = read(assets / "bccd")
    assert (len(cells.calibration), len(cells.test), cells.class_names) == (205, 72, ("Platelets", "RBC", "WBC"))
    objects = sum(len(s.truth) for s in cells.test)  # type: ignore[arg-type]
    tags = (assets / "bccd/BCCD/ImageSets/Main/test.txt").read_text().split()
    assert objects == sum((assets / f"bccd/BCCD/Annotations/{t}.xml").read_text().count("<object>") for t in tags)
    pictures = read(assets / "imagenet")
    assert pictures.kind == "classes" and len(pictures.calibration) == len(pictures.test) == 125
    check_classes(pictures, 1000)
    for data in (cells, pictures):
        assert data.test[0].image().ndim == 3
