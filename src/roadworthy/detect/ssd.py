"""SSD-like outputs: boxes are decoded in the graph and arrive in one array, scores in another.

Two forms are read. Before NMS: boxes (1, N, 4) and scores (1, N, C), C with or without a background column. After
NMS: boxes (1, N, 4), classes (1, N), scores (1, N) and perhaps a count (1,), as TensorFlow and torchvision write it;
the leading 1 may be absent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from roadworthy.detect.boxes import cxcywh_to_xyxy
from roadworthy.detect.heads import Decoded, Outputs, _pixels, arrays, refuse, sigmoid, softmax
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError


def ssd(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    """Boxes (N, 4) in input pixels and scores (N, C) without background, from either form above."""
    found = arrays(outputs, spec)
    if len(found) > 2:
        return _after_nms(found, spec)
    columns = spec.num_classes + (spec.background is not None)
    wanted = f"boxes (1, N, 4) and scores (1, N, {columns})"
    tables = [array[0] if array.ndim == 3 and len(array) == 1 else array for _, array in found]
    tables = [array for array in tables if array.ndim == 2]
    boxes = [array for array in tables if array.shape[1] == 4]
    scores = [array for array in tables if array.shape[1] == columns]
    if columns == 4 and len(tables) == 2:
        if not spec.outputs:
            raise InputError("ssd: boxes and scores both have 4 columns; name them in `outputs`, boxes first")
        boxes, scores = tables[:1], tables[1:]
    if len(boxes) != 1 or len(scores) != 1 or len(boxes[0]) != len(scores[0]):
        raise refuse(found, spec, wanted)
    values = np.asarray(scores[0], np.float32)
    if spec.scores_are_logits:
        values = sigmoid(values) if spec.background is None else softmax(values)
    if spec.background is not None:
        values = np.delete(values, _background(spec), axis=1)
    return _corners(boxes[0], spec), values


def _background(spec: DecodeSpec) -> int:
    index = spec.background
    if index is None or not -spec.num_classes - 1 <= index <= spec.num_classes:
        raise InputError(f"ssd: background column {index} does not exist among {spec.num_classes + 1} columns")
    return index


def _corners(boxes: NDArray, spec: DecodeSpec) -> NDArray[np.float32]:
    """The box columns as x1, y1, x2, y2 in input pixels."""
    boxes = np.asarray(boxes, np.float32)
    if spec.box_format == "yxyx":
        return _pixels(boxes[:, [1, 0, 3, 2]], spec)
    if spec.box_format == "cxcywh":
        return cxcywh_to_xyxy(_pixels(boxes, spec))
    if spec.box_format == "xyxy":
        return _pixels(boxes, spec)
    raise InputError(f"ssd: box_format {spec.box_format!r} is unknown; use xyxy, yxyx or cxcywh")


def _after_nms(found: Sequence[tuple[str, NDArray]], spec: DecodeSpec) -> Decoded:
    """Boxes, classes and scores, one row a detection; the count, where there is one, says how many rows are real."""
    wanted = "boxes (1, N, 4), classes (1, N) and scores (1, N)"
    tables = [item for item in found if item[1].ndim > 1 and item[1].shape[-1] == 4]
    if not tables:
        raise refuse(found, spec, wanted)
    boxes_name, table = max(tables, key=lambda item: item[1].size)
    boxes = table.reshape(-1, 4)
    rest = [(name, array.reshape(-1)) for name, array in found if name != boxes_name]
    rows = [(name, a) for name, a in rest if len(a) == len(boxes) and not _says(name, "num", "count")]
    counts = [a for name, a in rest if len(a) == 1 and (len(boxes) != 1 or _says(name, "num", "count"))]
    if spec.outputs:
        of_classes, of_scores = rows[:1], rows[1:2]
    else:
        of_classes = [(name, a) for name, a in rows if _says(name, "class", "label") or a.dtype.kind in "iu"]
        of_scores = [(name, a) for name, a in rows if name not in {name for name, _ in of_classes}]
    if len(rows) < 2:
        raise refuse(found, spec, wanted)
    if len(of_classes) != 1 or len(of_scores) != 1:
        raise InputError(f"ssd: cannot tell classes from scores; name `outputs` in the order {wanted}")
    classes, scores = of_classes[0][1], of_scores[0][1]
    real = min(len(boxes), int(counts[0][0])) if counts else len(boxes)
    labels = np.rint(classes[:real]).astype(np.int64)
    if spec.background is not None:
        column = _background(spec) % (spec.num_classes + 1)
        keep = labels != column
        labels = labels - (labels > column)
    else:
        keep = np.ones(real, bool)
    keep &= scores[:real] > 0
    if real and (labels[keep].min(initial=0) < 0 or labels[keep].max(initial=0) >= spec.num_classes):
        raise InputError(f"ssd: class {labels[keep].max()} is outside the {spec.num_classes} of the decode spec")
    one_hot = np.zeros((int(keep.sum()), spec.num_classes), np.float32)
    one_hot[np.arange(len(one_hot)), labels[keep]] = scores[:real][keep]
    return _corners(boxes[:real][keep], spec), one_hot


def _says(name: str, *words: str) -> bool:
    return any(word in name.lower() for word in words)
