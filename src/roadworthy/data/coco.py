"""COCO data sets: one json file of images, categories and annotations (the "instances" format of cocodataset.org).

A box is `[x, y, width, height]` in pixels, x and y from 0. Category ids need be neither contiguous nor from 0: they
become class indices 0, 1, 2, ... in the order of the ids. `area` (of the mask) and `iscrowd` are kept, because COCO's
evaluation uses both; `area` falls back to that of the box. Boxes are kept as they are, even beyond the image; those of
no width or height, which nothing can overlap, are ignored.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from roadworthy.data.dataset import Parts
from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.detections import Truth
from roadworthy.errors import InputError


def coco_files(folder: Path) -> list[Path]:
    """The annotation files of a COCO folder, by the first naming custom that finds any."""
    for pattern in ("annotations/instances_*.json", "instances_*.json", "*/_annotations.coco.json"):
        if found := sorted(folder.glob(pattern)):
            return found
    return []


def read_coco_folder(folder: Path) -> Parts:
    """Calibrate on the file called train, test on the one called val (else test); a lone file has no split."""
    files = coco_files(folder)
    if not files:
        raise InputError(f"{folder} has no annotations/instances_*.json; give the json file itself")
    train = [file for file in files if _split_name(file).startswith("train")]
    test: list[Path] = []
    for word in ("val", "test"):
        test = test or [file for file in files if _split_name(file).startswith(word)]
    for found, part in ((train, "train"), (test, "val")):
        if len(found) > 1:
            raise InputError(
                f"{folder} has {len(found)} files for {part} ({', '.join(f.name for f in found)}); "
                "give one json file, and the images to calibrate on apart"
            )
    if not (train and test):
        chosen = [*train, *test] or files
        if len(chosen) > 1:
            raise InputError(
                f"{folder} has {len(chosen)} annotation files, none called train or val; give one of them, such as "
                f"{chosen[0]}"
            )
        return Parts(None, read_coco_file(chosen[0]))
    calibration, tested = read_coco_file(train[0]), read_coco_file(test[0])
    if calibration.class_names != tested.class_names:
        raise InputError(f"{train[0]} and {test[0]} list different categories; make them agree")
    return Parts(calibration, tested)


def read_coco_file(file: Path) -> Samples:
    """One annotation file and its images. Raises InputError naming the file and the annotation or image at fault."""
    images, categories, annotations = _sections(file)
    ids = sorted(categories)
    index = {category: at for at, category in enumerate(ids)}
    rows: dict[Any, list[tuple[float, ...]]] = {image: [] for image in images}
    for annotation in annotations:
        image, row = _row(annotation, file, images, index)
        rows[image].append(row)
    folder = _image_folder(file, images)
    samples = []
    for image, entry in images.items():
        name = entry["file_name"]
        path = folder / name
        if not path.is_file():
            raise InputError(f"{file} lists the image {name}, but there is no {path}; restore it or take it out")
        samples.append(Sample(name, path, _truth(rows[image]), declared_hw=_declared_hw(entry)))
    return Samples(samples, "boxes", (str(categories[category]) for category in ids))


def _sections(file: Path) -> tuple[dict[Any, dict[str, Any]], dict[Any, str], list[dict[str, Any]]]:
    """Images by id, category names by id, and the annotations, each checked to be there."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text; give a COCO annotation file") from error
    except RecursionError as error:
        raise InputError(f"{file} is nested too deeply; give a COCO annotation file") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{file} is not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); "
                         "it may be cut short, so fetch or write it again") from error  # fmt: skip
    if isinstance(content, list):
        raise InputError(f"{file} is a list, as detection results are; give the annotation file with images in it")
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a COCO annotation file; it needs images, categories and annotations")
    for key in ("images", "categories", "annotations"):
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"{file} has no list of {key}; give a COCO annotation file of boxes (instances)")
    images: dict[Any, dict[str, Any]] = {}
    for entry in content["images"]:
        if not isinstance(entry.get("id"), int | str) or not isinstance(entry.get("file_name"), str):
            raise InputError(f"{file} has an image without id or file_name ({str(entry)[:60]}); add both")
        if entry["id"] in images:
            raise InputError(f"{file} has two images with id {entry['id']}; give each its own")
        images[entry["id"]] = entry
    if not images:
        raise InputError(f"{file} lists no images; give an annotation file with at least one")
    categories: dict[Any, str] = {}
    for entry in content["categories"]:
        if not isinstance(entry.get("id"), int) or "name" not in entry or entry["id"] in categories:
            raise InputError(
                f"{file} has a category without a name or an id of its own ({str(entry)[:60]}); correct it"
            )
        categories[entry["id"]] = entry["name"]
    if not categories:
        raise InputError(f"{file} lists no categories; add the classes of its boxes")
    return images, categories, content["annotations"]


def _row(
    annotation: dict[str, Any], file: Path, images: dict[Any, dict[str, Any]], index: dict[Any, int]
) -> tuple[Any, tuple[float, ...]]:
    """(image id, (x1, y1, x2, y2, class, area, ignore))."""
    where = f"{file}: annotation {annotation.get('id', '(without id)')}"
    image, category, bbox = (annotation.get(key) for key in ("image_id", "category_id", "bbox"))
    if not isinstance(image, int | str) or image not in images:
        raise InputError(f"{where} belongs to image {image}, which is not listed; add the image or drop the annotation")
    if not isinstance(category, int) or category not in index:
        raise InputError(f"{where} has category {category}, which is not listed; add it or drop the annotation")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        raise InputError(f"{where} has bbox {bbox}; write [x, y, width, height] in pixels")
    x, y, width, height = bbox
    if width < 0 or height < 0:
        raise InputError(f"{where} has a negative width or height ({width} x {height}); write [x, y, width, height]")
    area = annotation.get("area", width * height)
    if not _is_number(area) or area < 0:
        raise InputError(f"{where} has area {area}; write square pixels, or leave it out")
    ignore = bool(annotation.get("iscrowd", 0)) or width == 0 or height == 0
    return image, (x, y, x + width, y + height, index[category], area, ignore)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _truth(rows: list[tuple[float, ...]]) -> Truth:
    table = np.asarray(rows, np.float64).reshape(-1, 7)
    return Truth(
        table[:, :4].astype(np.float32),
        table[:, 4].astype(np.int64),
        table[:, 5].astype(np.float32),
        table[:, 6].astype(bool),
    )


def _declared_hw(entry: dict[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    return (height, width) if isinstance(height, int) and isinstance(width, int) and height and width else None


def _split_name(file: Path) -> str:
    """ "val2017" of annotations/instances_val2017.json, "valid" of valid/_annotations.coco.json."""
    return file.parent.name if file.name.startswith("_annotations") else file.stem.removeprefix("instances_")


def _image_folder(file: Path, images: dict[Any, dict[str, Any]]) -> Path:
    """The folder where the first image that can be found is."""
    here, split = file.parent, _split_name(file)
    places = [here, here / "images", here / split, here.parent, here.parent / "images", here.parent / split]
    places += [here.parent / "images" / split, here / "images" / split, here.parent / "JPEGImages"]
    for entry in list(images.values())[:20]:
        for place in places:
            if (place / entry["file_name"]).is_file():
                return place
    first = next(iter(images.values()))["file_name"]
    raise InputError(
        f"{file} lists the image {first}, but it is not in {here.parent / 'images' / split} or any other folder where "
        "COCO images lie; put the images there"
    )
