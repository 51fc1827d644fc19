"""YOLO data sets: a `data.yaml` that names folders of images, and beside each image a text file of labels.

A label line is `class cx cy w h`, centre and size as fractions of the image sides:

    x1 = (cx - w/2) * width,   x2 = (cx + w/2) * width,   y likewise.

A line `class x1 y1 x2 y2 x3 y3 ...` is a polygon and becomes the box around it; of key point labels (`kpt_shape` in
the yaml) the box is used. Boxes are clipped to the image. Labels are checked when the set is read; the image's size
is looked up when its truth is first asked for.

These files carry neither COCO's `area` nor its crowd flag: `Truth.areas` is the area of the box, which is larger than
COCO's area of the mask, so that sizes (small, medium, large) are told apart differently than with COCO json; and no
box is ignored but those of no width or height, which nothing can overlap.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.data.dataset import IMAGE_SUFFIXES, Parts, find_images, join, missing, read_text
from roadworthy.data.dataset import relative_name as relative
from roadworthy.data.header import image_size
from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.detections import Truth
from roadworthy.errors import InputError

ROUNDING = 1e-3  # of an image side: what writing three decimals can push a number past 0 or 1


def read_yolo(file: Path) -> Parts:
    """Read a data.yaml: calibrate on `train`, test on `val` (on `test` where there is no `val`).

    `train`, `val` and `test` are a folder, a list of folders, or a .txt file that lists images; they are relative to
    `path`, which is relative to the yaml. Raises InputError naming the file, and the line of a label, at fault.
    """
    config = _load_yaml(file)
    names = _class_names(config, file)
    root = _root(config, file)
    parts = {key: config[key] for key in ("train", "val", "test") if config.get(key)}
    if not parts:
        raise InputError(f"{file} has neither train nor val; name the folder of images under one of these keys")
    boxes_only = "kpt_shape" in config
    notes: list[str] = []
    tested = next(key for key in ("val", "test", "train") if key in parts)
    test = _read_part(tested, parts[tested], root, file, names, boxes_only, notes)
    if test.kind != "boxes":
        first = test[0].path
        assert first is not None
        raise InputError(
            f"{file}: none of the {len(test)} images under {tested} has labels; "
            f"the first should have {label_path(first)}"
        )
    calibration = None
    if "train" in parts and tested != "train":
        calibration = _read_part("train", parts["train"], root, file, names, boxes_only, notes)
    return Parts(calibration, test, join(*notes))


def label_path(image: Path) -> Path:
    """Where the labels of an image are: the last folder `images` of its path replaced by `labels`; else beside it."""
    parts = list(image.parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at] == "images":
            parts[at] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def parse_labels(text: str, file: Path, num_classes: int, boxes_only: bool = False) -> NDArray[np.float64]:
    """The lines of a label file as (N, 5): class, cx, cy, w, h. Raises InputError with file and line."""
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not (words := line.split()):
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise InputError(f"{file} line {number} holds {line.strip()[:60]!r}; {_SHAPE}") from None
        rows.append(_row(values, f"{file} line {number}", num_classes, boxes_only))
    return np.asarray(rows, np.float64).reshape(-1, 5)


_SHAPE = "write `class cx cy w h`, with centre and size as fractions of the image"


def _row(values: list[float], where: str, num_classes: int, boxes_only: bool) -> list[float]:
    polygon = len(values) >= 7 and len(values) % 2 == 1 and not boxes_only
    if not (len(values) == 5 or polygon or (boxes_only and len(values) > 5)):
        raise InputError(f"{where} has {len(values)} numbers; {_SHAPE}")
    index = values[0]
    if not (index == index // 1 and 0 <= index < num_classes):  # also refuses nan
        raise InputError(
            f"{where} has class {index:g}, but data.yaml names {num_classes} classes; use a whole number "
            f"from 0 to {num_classes - 1}, or add the name"
        )
    numbers = values[1:] if polygon else values[1:5]
    for at, value in enumerate(numbers):
        if not -ROUNDING <= value <= 1 + ROUNDING:
            what = "a negative width or height" if at >= 2 and value < 0 and not polygon else "a coordinate"
            raise InputError(f"{where} has {what} of {value:g}; write fractions of the image from 0 to 1")
    if polygon:
        xs, ys = numbers[0::2], numbers[1::2]
        left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
        numbers = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
    return [index, *numbers]


def _scaled(rows: NDArray[np.float64], image: Path) -> Truth:
    """Fractions -> pixels of this image."""
    height, width = image_size(image)
    classes, centre, half = rows[:, 0], rows[:, 1:3], np.maximum(rows[:, 3:5], 0) / 2
    fractions = np.clip(np.concatenate([centre - half, centre + half], 1), 0.0, 1.0)
    boxes = (fractions * (width, height, width, height)).astype(np.float32)
    flat = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])
    return Truth.of(boxes, classes.astype(np.int64), ignore=flat)


def _load_yaml(file: Path) -> dict[str, Any]:
    import yaml

    text = read_text(file, "the data set description")
    try:
        config = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise InputError(f"{file} is not valid YAML{line}; correct it") from error
    if not isinstance(config, dict):
        raise InputError(f"{file} holds no keys; write at least train, val and names")
    return config


def _class_names(config: dict[str, Any], file: Path) -> tuple[str, ...]:
    names = config.get("names")
    if not names:
        raise InputError(f"{file} has no names; list the class names, in the order of their indices, under names")
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise InputError(
                f"{file} numbers its {len(names)} names otherwise than 0 to {len(names) - 1}; renumber them"
            )
        by_index = {int(index): name for index, name in names.items()}
        names = [by_index[index] for index in range(len(by_index))]
    if not isinstance(names, list):
        raise InputError(f"{file} has names that are neither a list nor a map; list the class names")
    declared = config.get("nc", len(names))
    if str(declared) != str(len(names)):
        raise InputError(f"{file} says nc: {declared} but lists {len(names)} names; make them agree")
    return tuple(str(name) for name in names)


def _root(config: dict[str, Any], file: Path) -> Path:
    path = config.get("path") or "."
    if not isinstance(path, str):
        raise InputError(f"{file} has a path that is not text; write the folder of the data set, relative to this file")
    root = file.parent / path
    if not root.is_dir():
        raise InputError(f"{file} says path: {path}, but there is no folder {root}; correct path")
    return root


def _read_part(
    key: str, value: object, root: Path, file: Path, names: tuple[str, ...], boxes_only: bool, notes: list[str]
) -> Samples:
    entries = value if isinstance(value, list) else [value]
    images: list[Path] = []
    for entry in entries:
        if not isinstance(entry, str):
            raise InputError(f"{file} has {entry!r} under {key}; write a folder or a .txt list of images")
        images += _images_of(key, entry, root, file)
    if not images:
        raise InputError(f"{file} names no image under {key} ({_some(entries)}); put images there or correct the path")
    texts: list[str | None] = []
    for image in images:
        labels = label_path(image)
        try:
            texts.append(labels.read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            texts.append(None)  # an image of background
        except UnicodeDecodeError as error:
            raise InputError(f"{labels} is not text; {_SHAPE}") from error
        except OSError as error:
            raise InputError(f"{labels} cannot be read ({error.strerror}); correct it or delete it") from error
    if all(text is None for text in texts):
        notes.append(f"No image under {key} has labels.")
        return Samples((Sample(relative(image, root), image) for image in images), "images", names)
    if bare := texts.count(None):
        notes.append(f"{bare} of the {len(images)} images under {key} have no label file and count as empty.")
    samples, outside = [], 0
    for image, text in zip(images, texts):
        rows = parse_labels(text or "", label_path(image), len(names), boxes_only)
        half = rows[:, 3:5] / 2
        reach = np.concatenate([half - rows[:, 1:3], rows[:, 1:3] + half - 1], 1)
        outside += int((reach > ROUNDING).any(1).sum())
        samples.append(Sample(relative(image, root), image, functools.partial(_scaled, rows, image)))
    if outside:
        notes.append(f"{outside} boxes under {key} reached beyond their image and were clipped.")
    return Samples(samples, "boxes", names)


def _images_of(key: str, entry: str, root: Path, file: Path) -> list[Path]:
    place = root / entry
    if not place.exists() and entry.startswith("../"):  # some exporters count from a folder that they do not ship
        place = root / entry[3:]
    if place.is_dir():
        return find_images(place)
    if not place.is_file():
        raise InputError(f"{file} names {entry} under {key}, but there is no {place}; correct the path")
    if place.suffix.lower() in IMAGE_SUFFIXES:
        return [place]
    lines = [line.strip() for line in read_text(place, "the list").splitlines()]
    images = [_listed(line, place, root) for line in lines if line]
    gone = missing(images)
    if gone is not None:
        raise InputError(f"{place} lists {gone}, which does not exist; correct the list or restore the image")
    return images


def _listed(line: str, file: Path, root: Path) -> Path:
    """An entry of a list file: counted from the list where it starts with "./" or exists there, else from the root."""
    beside = Path(os.path.normpath(file.parent / line))
    return beside if line.startswith("./") or beside.is_file() else Path(os.path.normpath(root / line))


def _some(entries: Sequence[object]) -> str:
    return ", ".join(str(entry) for entry in entries[:3]) + (", ..." if len(entries) > 3 else "")
