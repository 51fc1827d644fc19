"""Pascal VOC data sets: Annotations/*.xml, JPEGImages/, and lists of image names in ImageSets/Main/*.txt.

VOC counts pixels from 1 and includes both ends (VOC development kit, section 4), so the edges of a box are

    x1 = xmin - 1,  y1 = ymin - 1,  x2 = xmax,  y2 = ymax        in pixels from 0,

clipped at 0, since many tools write 0 for the first pixel. Objects marked `difficult` are ignored, as VOC's own
evaluation does.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from roadworthy.data.dataset import IMAGE_SUFFIXES, Parts, read_text
from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.detections import Truth
from roadworthy.errors import InputError

_Box = tuple[str, float, float, float, float, bool]  # name, x1, y1, x2, y2, difficult


def voc_root(folder: Path) -> Path | None:
    """The folder that holds Annotations/ and JPEGImages/: the given one, or its only child that does; else None."""
    candidates = [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]
    found = [root for root in candidates if (root / "Annotations").is_dir() and (root / "JPEGImages").is_dir()]
    if len(found) > 1 and found[0] != folder:
        raise InputError(f"{folder} holds {len(found)} VOC sets ({found[0].name}, {found[1].name}); give one of them")
    return found[0] if found else None


def read_voc(root: Path, class_names: Sequence[str] = ()) -> Parts:
    """Calibrate on train (else trainval), test on test (else val); one list, or none, is a set without a split.

    class_names: the classes in the order of their indices; where not given, the names found, sorted.
    Raises InputError naming the xml, image or list at fault.
    """
    lists = {word: root / "ImageSets" / "Main" / f"{word}.txt" for word in ("train", "trainval", "test", "val")}
    present = [word for word, path in lists.items() if path.is_file()]
    tester = next((word for word in ("test", "val") if word in present), None)
    trainers = ("train", "trainval") if tester == "test" else ("train",)  # trainval holds val
    trainer = next((word for word in trainers if word in present), None)
    only = trainer or tester or ("trainval" if "trainval" in present else None)
    if only is None:
        names = {"": sorted(path.stem for path in (root / "Annotations").glob("*.xml"))}
        if not names[""]:
            raise InputError(f"{root / 'Annotations'} holds no .xml file; give a VOC set with at least one")
    else:
        chosen = [trainer, tester] if trainer and tester else [only]
        names = {word: _listed(lists[word]) for word in chosen if word}
    boxes = {name: _read_xml(root, name, lists.get(word)) for word, listed in names.items() for name in listed}
    classes = tuple(class_names) or tuple(sorted({box[0] for _, found in boxes.values() for box in found}))
    if not classes:
        raise InputError(f"{root / 'Annotations'} labels no object; give a VOC set with at least one")
    index = {name: at for at, name in enumerate(classes)}
    parts = {word: Samples((_sample(root, name, *boxes[name], index) for name in listed), "boxes", classes)
             for word, listed in names.items()}  # fmt: skip
    if trainer and tester:
        return Parts(parts[trainer], parts[tester])
    return Parts(None, next(iter(parts.values())))


def _listed(file: Path) -> list[str]:
    names = [line.strip() for line in read_text(file, "the list").splitlines()]
    return [name for name in names if name]


def _read_xml(root: Path, name: str, listed_in: Path | None) -> tuple[str, list[_Box]]:
    """The image's file name as the xml gives it (may be empty), and its boxes."""
    file = root / "Annotations" / f"{name}.xml"
    try:
        tree = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise InputError(f"{file} is not valid XML (line {error.position[0]}); correct it or take it out") from error
    except (LookupError, ValueError) as error:  # an encoding that the parser does not know
        raise InputError(f"{file} is not valid XML ({error}); save it as UTF-8") from error
    except OSError as error:
        who = f"{listed_in} lists {name}, but {file}" if listed_in else str(file)
        raise InputError(f"{who} cannot be read ({error.strerror}); restore it or take it out") from error
    return (tree.findtext("filename") or "").strip(), [_box(item, file) for item in tree.iter("object")]


def _box(item: ElementTree.Element, file: Path) -> _Box:
    name = (item.findtext("name") or "").strip()
    if not name:
        raise InputError(f"{file} has an object without a name; name its class")
    try:
        x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError:
        raise InputError(f"{file} has a {name} whose bndbox lacks a number; write xmin, ymin, xmax and ymax") from None
    if not all(math.isfinite(value) for value in (x1, y1, x2, y2)) or x2 < x1 or y2 < y1:
        raise InputError(f"{file} has a {name} from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}); min must not exceed max")
    difficult = (item.findtext("difficult") or "0").strip() == "1"
    return name, max(x1 - 1, 0), max(y1 - 1, 0), x2, y2, difficult


def _sample(root: Path, name: str, file_name: str, boxes: list[_Box], index: dict[str, int]) -> Sample:
    images = root / "JPEGImages"
    stem_first = [name + suffix for suffix in IMAGE_SUFFIXES]
    if Path(file_name).stem == name:  # a copied xml may name another image: the list decides
        stem_first.insert(0, Path(file_name).name)
    path = next((images / candidate for candidate in stem_first if (images / candidate).is_file()), None)
    if path is None:
        raise InputError(
            f"{root / 'Annotations' / name}.xml has no image {images / name}.jpg; restore it or take it out"
        )
    for box in boxes:
        if box[0] not in index:
            known = ", ".join(list(index)[:5])
            raise InputError(f"{root / 'Annotations' / name}.xml labels a {box[0]!r}, which is not a class ({known})")
    table = np.asarray([box[1:] for box in boxes], np.float64).reshape(-1, 5)
    flat = (table[:, 2] <= table[:, 0]) | (table[:, 3] <= table[:, 1])
    classes = np.asarray([index[box[0]] for box in boxes], np.int64)
    return Sample(path.name, path, Truth.of(table[:, :4], classes, ignore=flat | (table[:, 4] > 0)))
