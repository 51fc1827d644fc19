"""Boxes and scores of each detector family, differentiable; the formulas are those of `detect/heads.py`.

`decode` gives the same rows in the same order. Shapes are checked by the NumPy decoder, which is asked first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from roadworthy.detect import decode as plain
from roadworthy.detect import heads as h
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import UnsupportedError

Outputs = Mapping[str, Tensor]
Decoded = tuple[Tensor, Tensor]
_TINY = 1e-12
"""Least objectness and class score of FastestDet: its powers have no finite slope at zero."""


def decode(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    """All boxes (N, 4) xyxy in input pixels and scores (N, C) in 0..1.

    Raises InputError where the outputs do not fit, UnsupportedError for a kind without a row in HEADS, and for outputs
    behind NMS, which have no useful gradient.
    """
    boxes, _ = plain.decode({k: v.detach().cpu().numpy() for k, v in outputs.items()}, spec)
    if spec.kind not in HEADS or (spec.kind == "ssd" and len(spec.outputs or outputs) > 2):
        raise UnsupportedError(f"{spec.kind} outputs of this form have no gradient; name the outputs in front of NMS")
    made = HEADS[spec.kind]({k: outputs[k] for k in (spec.outputs or outputs)}, spec)
    assert len(made[0]) == len(boxes)
    return made


def _corners(cxcywh: Tensor) -> Tensor:
    half = cxcywh[:, 2:4] / 2
    return torch.cat([cxcywh[:, :2] - half, cxcywh[:, :2] + half], 1)


def _scores(x: Tensor, spec: DecodeSpec) -> Tensor:
    return torch.sigmoid(x) if spec.scores_are_logits else x


def _pixels(boxes: Tensor, spec: DecodeSpec) -> Tensor:
    height, width = spec.input_hw
    return boxes * boxes.new_tensor([width, height, width, height]) if spec.normalized else boxes


def _flat(x: Tensor, channels: int) -> Any:
    """`detect.heads.flat` asks for nothing that a tensor does not have."""
    anything: Any = x
    return h.flat(anything, channels)


def _levels(parts: list[Any], spec: DecodeSpec) -> Tensor:
    """All levels as one table, finest first."""
    kept = [p for p in parts if p is not None]
    return kept[0] if len(kept) == 1 else torch.cat(h.by_level(kept, spec) or [])  # type: ignore[arg-type]


def _yolox(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    if spec.decoded:
        return _rows(outputs, spec)
    rows = _levels([_flat(x, 5 + spec.num_classes) for x in outputs.values()], spec)
    points, strides = (rows.new_tensor(a) for a in h.cells(spec))
    size = torch.exp(rows[:, 2:4].clamp(max=h.EXP_LIMIT)) * strides
    boxes = _corners(torch.cat([(rows[:, :2] + points) * strides, size], 1))
    return boxes, _scores(rows[:, 4:5], spec) * _scores(rows[:, 5:], spec)


def _rows(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    """Decoded in the graph: cx, cy, w, h, objectness, classes; other outputs are passed."""
    rows = next(x[0] for x in outputs.values() if x.ndim == 3 and x.shape[2] == 5 + spec.num_classes)
    return _corners(_pixels(rows[:, :4], spec)), _scores(rows[:, 4:5], spec) * _scores(rows[:, 5:], spec)


def _anchored(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    """YOLOv3 and YOLOv5, which differ in the box formula alone."""
    if spec.decoded:
        return _rows(outputs, spec)
    left, boxes, scores, channels = list(outputs.values()), [], [], 5 + spec.num_classes
    for stride, pairs in zip(spec.strides, spec.anchors):
        high, wide = h.grid(spec, stride)
        shapes = ((1, len(pairs) * channels, high, wide), (1, len(pairs), high, wide, channels))
        at = next(k for k, x in enumerate(left) if tuple(x.shape) in shapes)
        head = left.pop(at)
        if head.ndim == 4:
            head = head.reshape(len(pairs), channels, high, wide).permute(0, 2, 3, 1)
        rows = head.reshape(len(pairs), high * wide, channels)
        y, x = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
        points = torch.stack([x, y], -1).reshape(1, -1, 2).to(rows)
        anchors = rows.new_tensor(pairs).reshape(-1, 1, 2)
        if spec.kind == "yolov5":
            box = torch.sigmoid(rows[..., :4]) * 2
            centre, size = box[..., :2] - 0.5 + points, box[..., 2:] ** 2 * anchors
        else:
            centre = torch.sigmoid(rows[..., :2]) + points
            size = torch.exp(rows[..., 2:4].clamp(max=h.EXP_LIMIT)) * anchors
        boxes.append(torch.cat([centre * stride, size], -1).reshape(-1, 4))
        scores.append((_scores(rows[..., 4:5], spec) * _scores(rows[..., 5:], spec)).reshape(-1, spec.num_classes))
    return _corners(torch.cat(boxes)), torch.cat(scores)


def _yolov8(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    channels = 4 + spec.num_classes
    found = next(x for x in outputs.values() if x.ndim == 3 and len(x) == 1 and channels in x.shape[1:])
    rows = found[0].T if found.shape[1] == channels else found[0]
    return _corners(_pixels(rows[:, :4], spec)), _scores(rows[:, 4:], spec)


def _dfl(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    """Distances to the sides, as distributions or numbers; from the cell's centre, or (NanoDet-Plus) its corner."""
    found, classes, distances = list(outputs.values()), spec.num_classes, 4 * (spec.reg_max + 1)
    points, strides = h.cells(spec, 0.5 if spec.kind == "dfl" else 0.0)
    if len(found) == 1:
        rows = _flat(found[0], classes + distances)
        scores, sides = rows[:, :classes], rows[:, classes:]
    else:
        half = len(found) // 2
        alike = classes == distances
        scores = _levels([_flat(x, classes) for x in (found[:half] if alike else found)], spec)
        sides = _levels([_flat(x, distances) for x in (found[half:] if alike else found)], spec)
    if spec.reg_max:
        shares = torch.softmax(sides.reshape(len(sides), 4, -1), -1)
        sides = shares @ torch.arange(spec.reg_max + 1).to(shares)
    centre, pixels = sides.new_tensor(points), sides.new_tensor(strides)
    return torch.cat([centre - sides[:, :2], centre + sides[:, 2:]], 1) * pixels, _scores(scores, spec)


def _fastestdet(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    (found,) = outputs.values()
    high, wide = found.shape[2:]
    rows = found.reshape(found.shape[1], -1).T
    y, x = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
    points = torch.stack([x, y], -1).reshape(-1, 2).to(rows)
    centre = (torch.tanh(rows[:, 1:3]) + points) / rows.new_tensor([wide, high])
    objectness, classes = rows[:, :1], rows[:, 5:]
    if spec.scores_are_logits:
        objectness, classes = torch.sigmoid(objectness), torch.softmax(classes, -1)
    scores = objectness.clamp(min=_TINY) ** 0.6 * classes.clamp(min=_TINY) ** 0.4
    sides = rows.new_tensor([spec.input_hw[1], spec.input_hw[0]] * 2)
    return _corners(torch.cat([centre, torch.sigmoid(rows[:, 3:5])], 1) * sides), scores


def _ssd(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    tables = [x[0] if x.ndim == 3 and len(x) == 1 else x for x in outputs.values()]
    columns = spec.num_classes + (spec.background is not None)
    if columns != 4:
        tables = sorted(tables, key=lambda x: x.shape[1] != 4)
    boxes, scores = tables
    if spec.scores_are_logits:
        scores = torch.sigmoid(scores) if spec.background is None else torch.softmax(scores, -1)
    if spec.background is not None:
        kept = [k for k in range(columns) if k != spec.background % columns]
        scores = scores[:, kept]
    if spec.box_format == "yxyx":
        boxes = boxes[:, [1, 0, 3, 2]]
    boxes = _pixels(boxes, spec)
    return _corners(boxes) if spec.box_format == "cxcywh" else boxes, scores


HEADS: dict[str, Callable[[Outputs, DecodeSpec], Decoded]] = {
    "yolox": _yolox,
    "yolov5": _anchored,
    "yolov3": _anchored,
    "yolov8": _yolov8,
    "dfl": _dfl,
    "nanodet_plus": _dfl,
    "fastestdet": _fastestdet,
    "ssd": _ssd,
}
