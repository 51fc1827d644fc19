"""`Dataset`: the images to calibrate on and the images to test on, and what every reader of one needs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from roadworthy.data.samples import Sample, Samples, by_lot
from roadworthy.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
MOST_CALIBRATION = 512


@dataclass(frozen=True)
class Dataset:
    """Images with labels, in two parts.

    calibration: to choose scales on and to train with.   test: to measure on.
    kind: what the test labels are: "boxes", "classes" or "images" (none); the calibration part may have none.
    class_names: by class index; empty where the labels carry no names.
    source: the path that was read.   note: what a reader of the figures should know, in sentences; may be empty.
    """

    calibration: Samples
    test: Samples
    kind: str
    class_names: tuple[str, ...]
    source: str
    note: str = ""


class Parts(NamedTuple):
    """What a reader found: `calibration` is None where the set has no split of its own."""

    calibration: Samples | None
    test: Samples
    note: str = ""


def divide(samples: Samples, source: Path, seed: int, note: str = "") -> Dataset:
    """A set without a split, divided by a seeded lot: half (at most 512) to calibrate, the rest to test.

    The division depends on the names and the seed only. A single image serves both parts.
    """
    count = min(len(samples) // 2, MOST_CALIBRATION)
    if count == 0:
        return pair(samples, samples, source, join(note, "The set has no split and cannot be divided."))
    drawn = set(by_lot(samples, seed)[:count])
    calibration = Samples((s for s in samples if s in drawn), samples.kind, samples.class_names)
    test = Samples((s for s in samples if s not in drawn), samples.kind, samples.class_names)
    said = f"The set has no split: {count} images drawn with seed {seed} calibrate, the other {len(test)} test."
    return pair(calibration, test, source, join(note, said))


def pair(calibration: Samples, test: Samples, source: Path, note: str = "") -> Dataset:
    """A set with a split. The note tells when images are in both parts."""
    for samples, part in ((calibration, "to calibrate on"), (test, "to test on")):
        if not len(samples):
            raise InputError(f"{source} holds no images {part}; give a data set with at least one")
    known = {s.path for s in calibration if s.path is not None}
    if shared := sum(s.path in known for s in test):
        note = join(note, f"{shared} of the {len(test)} test images calibrate too.")
    return Dataset(calibration, test, test.kind, test.class_names, str(source), note)


def join(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def check_classes(dataset: Dataset, num_classes: int, class_names: Sequence[str] = ()) -> None:
    """Raise InputError when a model that scores `num_classes` classes cannot be measured on these labels.

    That is when the labels name another number of classes, use an index the model does not score, or name the same
    classes as the model in another order. Unlabelled images, and models of unknown classes (0), pass.
    """
    if num_classes < 1:
        return
    for samples in (dataset.test, dataset.calibration):
        if samples.kind == "images":
            continue
        names = samples.class_names
        if names and len(names) != num_classes:
            raise InputError(
                f"the model scores {num_classes} {_classes(num_classes)}, but {dataset.source} names {len(names)} "
                f"({_some(names)}); use the data set the model was trained for"
            )
        for sample in () if names else samples:
            highest = _highest_class(sample)
            if highest >= num_classes:
                raise InputError(
                    f"the model scores {num_classes} {_classes(num_classes)}, but the label of {sample.name} in "
                    f"{dataset.source} uses class {highest}; classes count from 0 to {num_classes - 1}"
                )
        ours, theirs = [_plain(name) for name in names], [_plain(name) for name in class_names]
        if ours != theirs and sorted(ours) == sorted(theirs):
            at = next(i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b)
            raise InputError(
                f"the model calls class {at} {class_names[at]!r}, but {dataset.source} calls it {names[at]!r}; "
                "put the class names of the data set into the order of the model"
            )


def _classes(number: int) -> str:
    return "class" if number == 1 else "classes"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ").replace("-", " ")


def _highest_class(sample: Sample) -> int:
    if sample.label is not None:
        return sample.label
    truth = sample.truth
    return int(truth.classes.max()) if truth is not None and len(truth) else -1


def find_images(folder: Path) -> list[Path]:
    """All image files below a folder, linked folders included, hidden ones left out; sorted by path below it."""
    found: list[Path] = []
    visited: set[str] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(here)
        if real in visited:  # a link that leads back
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(here, name) for name in files if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != "."]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def relative_name(path: Path, root: Path) -> str:
    """The path from root to the file with "/" between folders, and ".." where the file lies elsewhere."""
    return Path(os.path.relpath(path, root)).as_posix()


def read_text(path: Path, what: str) -> str:
    """A text file (UTF-8, with or without a byte order mark). Raises InputError naming it and `what` it is."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {path} is not UTF-8 text; save it as such") from error
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read ({error.strerror}); check the path") from error


def missing(paths: Iterable[Path]) -> Path | None:
    """The first path at which there is no file, or None."""
    return next((path for path in paths if not path.is_file()), None)
