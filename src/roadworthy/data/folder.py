"""The plain sets: a folder of images without labels, and a csv file `file,class_index` of whole-image classes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from roadworthy.data.dataset import Parts, find_images, read_text
from roadworthy.data.samples import Sample, Samples
from roadworthy.errors import InputError


def read_folder(folder: Path) -> Parts:
    """All images below a folder, without labels."""
    images = find_images(folder)
    if not images:
        raise InputError(f"{folder} holds no images and no data set that is known; give a folder with images or labels")
    note = "The images have no labels."
    if (folder / "labels").is_dir():
        note += f" {folder / 'labels'} was not read, because there is no data.yaml."
    return Parts(None, Samples(Sample(path.relative_to(folder).as_posix(), path) for path in images), note)


def read_csv(file: Path, class_names: Sequence[str] = ()) -> Parts:
    """A csv with the columns `file` (relative to the csv) and `class_index` (from 0).

    class_names: by class index, where known. Raises InputError naming the line at fault.
    """
    try:
        reader = csv.reader(io.StringIO(read_text(file, "the label file")), strict=True)
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise InputError(f"{file} is not valid csv ({error}); write the lines `file,class_index`") from error
    header = [name.strip().lower() for name in rows[0][1]] if rows else []
    for column in ("file", "class_index"):
        if column not in header:
            raise InputError(f"{file} has no column {column}; its first line must be `file,class_index`")
    at_file, at_index = header.index("file"), header.index("class_index")
    samples = []
    for number, row in rows[1:]:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(at_file, at_index):
            raise InputError(f"{file} line {number} has {len(row)} columns; write `file,class_index`")
        name, text = row[at_file].strip(), row[at_index].strip()
        if not text.isdecimal() or len(text) > 9 or (class_names and int(text) >= len(class_names)):
            allowed = f"from 0 to {len(class_names) - 1}" if class_names else "from 0 up"
            raise InputError(f"{file} line {number} has class_index {text!r}; use a whole number {allowed}")
        path = file.parent / name
        if not name or not path.is_file():
            raise InputError(
                f"{file} line {number} names {name!r}, but there is no {path}; restore it or drop the line"
            )
        samples.append(Sample(Path(name).as_posix(), path, label=int(text)))
    if not samples:
        raise InputError(f"{file} lists no images; add at least one line `file,class_index`")
    return Parts(None, Samples(samples, "classes", class_names))
