"""From the raw outputs of each detector family to boxes and scores; one function per family.

Every decoder is `(outputs, spec) -> (boxes_xyxy, scores)` with boxes (N, 4) float32 in pixels of the input tensor and
scores (N, C) float32 in 0..1. Batch size is 1. With grid cell (gx, gy), stride s and s() the sigmoid:

    yolox       cx = (x + gx) * s            w = exp(w) * s           score = obj * cls
    yolov5      cx = (2 s(x) - 0.5 + gx) * s w = (2 s(w))^2 * anchor  score = obj * cls
    yolov3      cx = (s(x) + gx) * s         w = exp(w) * anchor      score = obj * cls
    yolov8      cx, cy, w, h in pixels                                score = cls
    dfl         x1 = (gx + 0.5 - E[left]) * s, ...                    score = cls
    fastestdet  cx = (tanh(x) + gx) / W      w = s(w)                 score = obj^0.6 * cls^0.4
    ssd         boxes as they are, in `box_format`                    score = cls without background
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from roadworthy.detect.boxes import cxcywh_to_xyxy
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError

Outputs = Mapping[str, NDArray]
Decoded = tuple[NDArray[np.float32], NDArray[np.float32]]

EXP_LIMIT = 12.0  # exp(12) cells is wider than any image: a wild logit gives a huge box, never an infinite one


def sigmoid(x: NDArray) -> NDArray[np.float32]:
    """1 / (1 + exp(-x)), written with tanh because that cannot overflow."""
    half = np.float32(0.5)
    return np.tanh(np.asarray(x, np.float32) * half) * half + half


def softmax(x: NDArray) -> NDArray[np.float32]:
    """exp(x) / sum(exp(x)) over the last axis."""
    x = np.asarray(x, np.float32)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def arrays(outputs: Outputs, spec: DecodeSpec) -> list[tuple[str, NDArray]]:
    """The outputs as (name, array), those of `spec.outputs` in its order where it is given."""
    for name in spec.outputs:
        if name not in outputs:
            raise InputError(f"there is no output {name!r}; the decode spec may name {', '.join(outputs)}")
    found = [(name, np.asarray(outputs[name])) for name in (spec.outputs or outputs)]
    for name, array in found:
        # one pass: a float64 sum of float32 values is NaN only if a NaN (or both infinities) is among them
        if array.dtype.kind == "f" and np.isnan(array.sum(dtype=np.float64)):
            raise InputError(f"output {name!r} holds NaN; the model is broken or was fed a wrong input")
    return found


def refuse(found: Sequence[tuple[str, NDArray]], spec: DecodeSpec, wanted: str) -> InputError:
    """The error for outputs of a wrong shape: which output has which shape, and what was expected."""
    have = ", ".join(f"{name!r} has shape {tuple(array.shape)}" for name, array in found) or "there is no output"
    return InputError(f"{spec.kind}: output {have}, but expected {wanted}; check the decode spec")


def grid(spec: DecodeSpec, stride: int) -> tuple[int, int]:
    """(rows, columns) of one level; sides that a stride does not divide are rounded up, as padded convolutions do."""
    return -(-spec.input_hw[0] // stride), -(-spec.input_hw[1] // stride)


def cells(spec: DecodeSpec, offset: float = 0.0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """All grid cells, level by level and row by row: (N, 2) x, y in cells, and (N, 1) strides in pixels."""
    if not spec.strides or min(spec.strides) <= 0 or min(spec.input_hw) <= 0:
        raise InputError(f"{spec.kind}: the decode spec needs strides and input_hw to place the grid; give both")
    points, sizes = [], []
    for stride in spec.strides:
        rows, columns = grid(spec, stride)
        y, x = np.divmod(np.arange(rows * columns), columns)
        points.append(np.stack([x, y], axis=1).astype(np.float32) + np.float32(offset))
        sizes.append(np.full((rows * columns, 1), stride, np.float32))
    return np.concatenate(points), np.concatenate(sizes)


def flat(array: NDArray, channels: int) -> NDArray | None:
    """(1, N, channels), (1, channels, N) or (1, channels, H, W) -> (N, channels); None where it is none of them."""
    if array.ndim == 4 and array.shape[:2] == (1, channels):
        return array.reshape(channels, -1).T
    if array.ndim == 3 and array.shape[0] == 1 and channels in array.shape[1:]:
        return array[0] if array.shape[2] == channels else array[0].T
    return None


def by_level(arrays_: Iterable[NDArray], spec: DecodeSpec) -> list[NDArray] | None:
    """Sort (cells, ...) arrays into the order of the strides by their length; None where they do not fit."""
    left, levels = list(arrays_), []
    for stride in spec.strides:
        rows, columns = grid(spec, stride)
        match = next((i for i, array in enumerate(left) if len(array) == rows * columns), None)
        if match is None:
            return None
        levels.append(left.pop(match))
    return None if left else levels


def maybe_sigmoid(scores: NDArray, spec: DecodeSpec) -> NDArray[np.float32]:
    return sigmoid(scores) if spec.scores_are_logits else np.asarray(scores, np.float32)


def yolox(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    """YOLOX (Ge et al. 2021): one (1, N, 5+C), or (1, 5+C, H, W) per level in any order."""
    found, channels = arrays(outputs, spec), 5 + spec.num_classes
    if spec.decoded:
        return _rows_with_objectness(found, spec)
    points, strides = cells(spec)
    wanted = f"(1, {len(points)}, {channels})"
    parts = [rows for rows in (flat(array, channels) for _, array in found) if rows is not None]
    if len(parts) == 1 and len(parts[0]) == len(points):
        rows = parts[0]
    else:
        levels = by_level(parts, spec)
        if levels is None or len(parts) != len(found):
            raise refuse(found, spec, wanted)
        rows = np.concatenate(levels)
    rows = np.asarray(rows, np.float32)
    centre = (rows[:, :2] + points) * strides
    size = np.exp(np.minimum(rows[:, 2:4], EXP_LIMIT)) * strides
    scores = maybe_sigmoid(rows[:, 4:5], spec) * maybe_sigmoid(rows[:, 5:], spec)
    return cxcywh_to_xyxy(np.concatenate([centre, size], axis=1)), scores


def _rows_with_objectness(found: Sequence[tuple[str, NDArray]], spec: DecodeSpec) -> Decoded:
    """(1, N, 5+C) cx, cy, w, h in input pixels, objectness, classes; other outputs (raw heads beside it) are passed."""
    channels = 5 + spec.num_classes
    match = [array for _, array in found if array.ndim == 3 and array.shape[0] == 1 and array.shape[2] == channels]
    if len(match) != 1:
        raise refuse(found, spec, f"one of (1, N, {channels})")
    rows = np.asarray(match[0][0], np.float32)
    scores = maybe_sigmoid(rows[:, 4:5], spec) * maybe_sigmoid(rows[:, 5:], spec)
    return cxcywh_to_xyxy(_pixels(rows[:, :4], spec)), scores


def _pixels(boxes: NDArray, spec: DecodeSpec) -> NDArray[np.float32]:
    """Fractions of the input side -> pixels where `normalized` says so; columns are x, y, x, y or alike."""
    boxes = np.asarray(boxes, np.float32)
    if not spec.normalized:
        return boxes
    height, width = spec.input_hw
    if min(height, width) <= 0:
        raise InputError(f"{spec.kind}: normalized boxes need input_hw to become pixels; give it in the decode spec")
    return boxes * np.array([width, height, width, height], np.float32)


def _anchor_heads(outputs: Outputs, spec: DecodeSpec) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Rows (N, 5+C), cells (N, 2), strides (N, 1) and anchors (N, 2) of raw heads in any order.

    A head is (1, A*(5+C), H, W) or (1, A, H, W, 5+C); its level is known by H and W.
    """
    found, channels = arrays(outputs, spec), 5 + spec.num_classes
    points, strides = cells(spec)
    if len(spec.anchors) != len(spec.strides) or not all(spec.anchors):
        raise InputError(
            f"{spec.kind}: {len(spec.anchors)} levels of anchors and {len(spec.strides)} strides do not match; "
            "give the anchors of each stride"
        )
    wanted: list[str] = []
    left, rows, where, sizes, anchors = list(found), [], [], [], []
    start = 0
    for stride, pairs in zip(spec.strides, spec.anchors, strict=True):
        height, width = grid(spec, stride)
        level = slice(start, start + height * width)
        start = level.stop
        shapes = ((1, len(pairs) * channels, height, width), (1, len(pairs), height, width, channels))
        wanted.append(" or ".join(map(str, shapes)))
        match = next((item for item in left if item[1].shape in shapes), None)
        if match is None:
            continue
        left.remove(match)
        head = np.asarray(match[1], np.float32)
        if head.ndim == 4:
            head = head.reshape(len(pairs), channels, height, width).transpose(0, 2, 3, 1)
        rows.append(head.reshape(-1, channels))
        where += [points[level]] * len(pairs)
        sizes += [strides[level]] * len(pairs)
        anchors.append(np.repeat(np.asarray(pairs, np.float32), height * width, axis=0))
    if len(rows) != len(spec.strides) or left:
        raise refuse(found, spec, "; ".join(wanted))
    return np.concatenate(rows), np.concatenate(where), np.concatenate(sizes), np.concatenate(anchors)


def yolov5(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    """YOLOv5 and v7: (1, N, 5+C) in pixels where `decoded`, else raw heads with anchors.

    In a raw head boxes always get their sigmoid here; objectness and classes do where `scores_are_logits`.
    """
    if spec.decoded:
        return _rows_with_objectness(arrays(outputs, spec), spec)
    rows, points, strides, anchors = _anchor_heads(outputs, spec)
    box = sigmoid(rows[:, :4]) * 2
    centre = (box[:, :2] - np.float32(0.5) + points) * strides
    scores = maybe_sigmoid(rows[:, 4:5], spec) * maybe_sigmoid(rows[:, 5:], spec)
    return cxcywh_to_xyxy(np.concatenate([centre, box[:, 2:] ** 2 * anchors], axis=1)), scores


def yolov3(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    """YOLOv3 (Redmon and Farhadi 2018) and v4: as `yolov5`, with the older box formula."""
    if spec.decoded:
        return _rows_with_objectness(arrays(outputs, spec), spec)
    rows, points, strides, anchors = _anchor_heads(outputs, spec)
    centre = (sigmoid(rows[:, :2]) + points) * strides
    size = np.exp(np.minimum(rows[:, 2:4], EXP_LIMIT)) * anchors
    scores = maybe_sigmoid(rows[:, 4:5], spec) * maybe_sigmoid(rows[:, 5:], spec)
    return cxcywh_to_xyxy(np.concatenate([centre, size], axis=1)), scores


def yolov8(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    """YOLOv8 and its successors with one output, (1, 4+C, N) or (1, N, 4+C): cx, cy, w, h and class scores."""
    found, channels = arrays(outputs, spec), 4 + spec.num_classes
    match = [array for _, array in found if array.ndim == 3 and len(array) == 1 and channels in array.shape[1:]]
    if len(match) != 1:
        raise refuse(found, spec, f"one of (1, {channels}, N) or (1, N, {channels})")
    rows = match[0][0].T if match[0].shape[1] == channels else match[0][0]
    return cxcywh_to_xyxy(_pixels(rows[:, :4], spec)), maybe_sigmoid(rows[:, 4:], spec)


def dfl(outputs: Outputs, spec: DecodeSpec, offset: float = 0.5) -> Decoded:
    """Distances to the four sides as distributions (Li et al. 2020, Generalized Focal Loss): NanoDet, PicoDet.

    One (1, N, C + 4*(reg_max+1)), classes first; or per level a class map and a distance map, each (1, H*W, K) or
    (1, K, H, W), in any order. reg_max = 0 means that distances come directly, one number a side, in cells.
    """
    found = arrays(outputs, spec)
    classes, distances = spec.num_classes, 4 * (spec.reg_max + 1)
    points, strides = cells(spec, offset)
    wanted = (
        f"(1, {len(points)}, {classes + distances}), or for each of the strides {spec.strides} "
        f"a class map with {classes} and a distance map with {distances} channels"
    )
    if len(found) == 1:
        rows = flat(found[0][1], classes + distances)
        if rows is None or len(rows) != len(points):
            raise refuse(found, spec, wanted)
        scores, sides = rows[:, :classes], rows[:, classes:]
    else:
        if classes == distances and not spec.outputs:
            raise InputError(
                f"{spec.kind}: class maps and distance maps both have {classes} channels and cannot be told apart; "
                "name them in `outputs`, all class maps first"
            )
        half = len(found) // 2
        of_classes = found[:half] if classes == distances else found
        of_distances = found[half:] if classes == distances else found
        class_maps = by_level([m for _, a in of_classes if (m := flat(a, classes)) is not None], spec)
        distance_maps = by_level([m for _, a in of_distances if (m := flat(a, distances)) is not None], spec)
        if class_maps is None or distance_maps is None or len(found) != 2 * len(spec.strides):
            raise refuse(found, spec, wanted)
        scores, sides = np.concatenate(class_maps), np.concatenate(distance_maps)
    if spec.reg_max:
        bins = np.arange(spec.reg_max + 1, dtype=np.float32)
        sides = softmax(sides.reshape(len(sides), 4, -1)) @ bins
    corner = np.concatenate([points - sides[:, :2], points + sides[:, 2:]], axis=1) * strides
    return corner.astype(np.float32), maybe_sigmoid(scores, spec)


def nanodet_plus(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    """As `dfl`, but distances count from the corner of the cell instead of its centre, as NanoDet-Plus was trained."""
    return dfl(outputs, spec, offset=0.0)


def fastestdet(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    """FastestDet: (1, 5+C, H, W) with objectness, x and y before tanh, w and h before sigmoid, class probabilities."""
    found, channels = arrays(outputs, spec), 5 + spec.num_classes
    if len(found) != 1 or found[0][1].ndim != 4 or found[0][1].shape[:2] != (1, channels):
        raise refuse(found, spec, f"one of (1, {channels}, H, W)")
    height, width = found[0][1].shape[2:]
    rows = np.asarray(found[0][1], np.float32).reshape(channels, -1).T
    y, x = np.divmod(np.arange(height * width), width)
    centre = (np.tanh(rows[:, 1:3]) + np.stack([x, y], axis=1)) / np.array([width, height])
    objectness, classes = rows[:, :1], rows[:, 5:]
    if spec.scores_are_logits:
        objectness, classes = sigmoid(objectness), softmax(classes)
    # an int8 output may dip below zero by a rounding step, where a power is not defined
    scores = np.power(np.maximum(objectness, 0), 0.6, dtype=np.float32)
    scores = scores * np.power(np.maximum(classes, 0), 0.4, dtype=np.float32)
    boxes = np.concatenate([centre, sigmoid(rows[:, 3:5])], axis=1) * np.tile(spec.input_hw[::-1], 2)
    return cxcywh_to_xyxy(boxes), scores
