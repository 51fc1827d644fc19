"""`read`: a data set from whatever is there.

    data.yaml, or a folder with one          YOLO      boxes      train -> calibration, val -> test
    *.json, or annotations/instances_*.json  COCO      boxes      train -> calibration, val -> test
    Annotations/ and JPEGImages/             VOC       boxes      train -> calibration, test (else val) -> test
    *.csv, or a folder with labels.csv       csv       classes    divided by lot
    any other folder with images             folder    images     divided by lot

In a folder the first line that fits decides. Labels are checked here; an image is checked when it is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from roadworthy.data.coco import coco_files, read_coco_file, read_coco_folder
from roadworthy.data.dataset import IMAGE_SUFFIXES, Dataset, Parts, check_classes, divide, join, pair
from roadworthy.data.folder import read_csv, read_folder
from roadworthy.data.voc import read_voc, voc_root
from roadworthy.data.yolo import read_yolo
from roadworthy.errors import InputError

__all__ = ["Dataset", "check_classes", "read"]


def read(
    source: str | Path,
    *,
    split_seed: int = 0,
    calibration: str | Path | None = None,
    class_names: Sequence[str] = (),
) -> Dataset:
    """Read a data set.

    split_seed: divides a set that has no split of its own.
    calibration: another set whose images calibrate (its own calibration part, or all of it where it has no split);
        then a source without a split tests as a whole.
    class_names: the order of the classes where the labels fix none (VOC, csv); elsewhere it must agree with them.
    Raises InputError, one sentence that names the file (and the line) at fault.
    """
    source = Path(source)
    found = _parts(source, class_names)
    names = found.test.class_names
    if class_names and names and tuple(class_names) != names:
        raise InputError(
            f"{source} names its classes {_short(names)}, not {_short(class_names)}; leave class_names out"
        )
    if calibration is None:
        if found.calibration is None:
            return divide(found.test, source, split_seed, found.note)
        return pair(found.calibration, found.test, source, found.note)
    other = _parts(Path(calibration), class_names)
    chosen = other.test if other.calibration is None else other.calibration
    if chosen.class_names and names and chosen.class_names != names:
        raise InputError(f"{calibration} and {source} name different classes; calibrate on images of the same classes")
    return pair(chosen, found.test, source, join(f"The calibration images are from {calibration}.", found.note))


def _parts(source: Path, class_names: Sequence[str]) -> Parts:
    if not source.exists():
        raise InputError(f"there is no data set at {source}; check the path")
    if source.is_file():
        kind = source.suffix.lower()
        if kind in (".yaml", ".yml"):
            return read_yolo(source)
        if kind == ".json":
            return Parts(None, read_coco_file(source))
        if kind == ".csv":
            return read_csv(source, class_names)
        hint = "its folder" if kind in IMAGE_SUFFIXES else "a data.yaml, a COCO json, a csv or a folder"
        raise InputError(f"{source} is no data set; give {hint}")
    for name in ("data.yaml", "data.yml"):
        if (source / name).is_file():
            return read_yolo(source / name)
    if coco_files(source):
        return read_coco_folder(source)
    if (root := voc_root(source)) is not None:
        return read_voc(root, class_names)
    if (source / "labels.csv").is_file():
        return read_csv(source / "labels.csv", class_names)
    return read_folder(source)


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
