"""Boxes and scores of each detector family, differentiable; the formulas are those of `detect/heads.py`.

`decode` gives the same rows in the same order. Shapes are checked by the NumPy decoder, which is asked first. `parts`
gives what the scores are made of, row by row:

    score = s(objectness)^a * s(classes)^b       s: the sigmoid (or softmax) still to be applied, or none
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Parts:
    """What a detector says of each of N places, as its outputs have it.

    boxes: (N, 4) xyxy in input pixels.   classes: (N, C), with the background column where there is one.
    objectness: (N, 1), or None where the family has none.   bins: (N, 4, B) logits of the distances to the four sides.
    logits: whether a sigmoid or softmax is still to be applied to classes and objectness.   exclusive: the classes
    exclude one another (softmax); else each is there or not (sigmoid).   powers: (a, b), see the module.
    background: column of the classes that stands for none of them.
    """

    boxes: Tensor
    classes: Tensor
    objectness: Tensor | None = None
    bins: Tensor | None = None
    logits: bool = False
    exclusive: bool = False
    powers: tuple[float, float] = (1.0, 1.0)
    background: int | None = None

    def scores(self) -> Tensor:
        """(N, C) in 0..1, background excluded."""
        classes, objectness = self.classes, self.objectness
        if self.logits:
            classes = torch.softmax(classes, -1) if self.exclusive else torch.sigmoid(classes)
            objectness = None if objectness is None else torch.sigmoid(objectness)
        if self.background is not None:
            columns = classes.shape[1]
            classes = classes[:, [k for k in range(columns) if k != self.background % columns]]
        if objectness is None:
            return classes
        if self.powers == (1.0, 1.0):
            return objectness * classes
        a, b = self.powers
        return objectness.clamp(min=_TINY) ** a * classes.clamp(min=_TINY) ** b


def decode(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    """All boxes (N, 4) xyxy in input pixels and scores (N, C) in 0..1.

    Raises InputError where the outputs do not fit, UnsupportedError for a kind without a row in HEADS, and for outputs
    behind NMS, which have no useful gradient.
    """
    boxes, _ = plain.decode({k: v.detach().cpu().numpy() for k, v in outputs.items()}, spec)
    made = parts(outputs, spec)
    assert len(made.boxes) == len(boxes)
    return made.boxes, made.scores()


def parts(outputs: Outputs, spec: DecodeSpec) -> Parts:
    """As `decode`, in parts; for outputs whose shapes have been checked. Raises UnsupportedError as `decode` does."""
    if spec.kind not in HEADS or (spec.kind == "ssd" and len(spec.outputs or outputs) > 2):
        raise UnsupportedError(f"{spec.kind} outputs of this form have no gradient; name the outputs in front of NMS")
    return HEADS[spec.kind]({k: outputs[k] for k in (spec.outputs or outputs)}, spec)


def _corners(cxcywh: Tensor) -> Tensor:
    half = cxcywh[:, 2:4] / 2
    return torch.cat([cxcywh[:, :2] - half, cxcywh[:, :2] + half], 1)


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


def _yolox(outputs: Outputs, spec: DecodeSpec) -> Parts:
    if spec.decoded:
        return _rows(outputs, spec)
    rows = _levels([_flat(x, 5 + spec.num_classes) for x in outputs.values()], spec)
    points, strides = (rows.new_tensor(a) for a in h.cells(spec))
    size = torch.exp(rows[:, 2:4].clamp(max=h.EXP_LIMIT)) * strides
    boxes = _corners(torch.cat([(rows[:, :2] + points) * strides, size], 1))
    return Parts(boxes, rows[:, 5:], rows[:, 4:5], logits=spec.scores_are_logits)


def _rows(outputs: Outputs, spec: DecodeSpec) -> Parts:
    """Decoded in the graph: cx, cy, w, h, objectness, classes; other outputs are passed."""
    rows = next(x[0] for x in outputs.values() if x.ndim == 3 and x.shape[2] == 5 + spec.num_classes)
    boxes = _corners(_pixels(rows[:, :4], spec))
    return Parts(boxes, rows[:, 5:], rows[:, 4:5], logits=spec.scores_are_logits)


def _anchored(outputs: Outputs, spec: DecodeSpec) -> Parts:
    """YOLOv3 and YOLOv5, which differ in the box formula alone."""
    if spec.decoded:
        return _rows(outputs, spec)
    left, boxes, scores, channels = list(outputs.values()), [], [], 5 + spec.num_classes  # scores: objectness first
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
        scores.append(rows[..., 4:].reshape(-1, 1 + spec.num_classes))
    every = torch.cat(scores)
    return Parts(_corners(torch.cat(boxes)), every[:, 1:], every[:, :1], logits=spec.scores_are_logits)


def _yolov8(outputs: Outputs, spec: DecodeSpec) -> Parts:
    channels = 4 + spec.num_classes
    found = next(x for x in outputs.values() if x.ndim == 3 and len(x) == 1 and channels in x.shape[1:])
    rows = found[0].T if found.shape[1] == channels else found[0]
    return Parts(_corners(_pixels(rows[:, :4], spec)), rows[:, 4:], logits=spec.scores_are_logits)


def _dfl(outputs: Outputs, spec: DecodeSpec) -> Parts:
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
    bins = sides.reshape(len(sides), 4, -1) if spec.reg_max else None
    if bins is not None:
        shares = torch.softmax(bins, -1)
        sides = shares @ torch.arange(spec.reg_max + 1).to(shares)
    centre, pixels = sides.new_tensor(points), sides.new_tensor(strides)
    boxes = torch.cat([centre - sides[:, :2], centre + sides[:, 2:]], 1) * pixels
    return Parts(boxes, scores, bins=bins, logits=spec.scores_are_logits)


def _fastestdet(outputs: Outputs, spec: DecodeSpec) -> Parts:
    (found,) = outputs.values()
    high, wide = found.shape[2:]
    rows = found.reshape(found.shape[1], -1).T
    y, x = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
    points = torch.stack([x, y], -1).reshape(-1, 2).to(rows)
    centre = (torch.tanh(rows[:, 1:3]) + points) / rows.new_tensor([wide, high])
    sides = rows.new_tensor([spec.input_hw[1], spec.input_hw[0]] * 2)
    boxes = _corners(torch.cat([centre, torch.sigmoid(rows[:, 3:5])], 1) * sides)
    logits = spec.scores_are_logits
    return Parts(boxes, rows[:, 5:], rows[:, :1], logits=logits, exclusive=True, powers=(0.6, 0.4))


def _ssd(outputs: Outputs, spec: DecodeSpec) -> Parts:
    tables = [x[0] if x.ndim == 3 and len(x) == 1 else x for x in outputs.values()]
    columns = spec.num_classes + (spec.background is not None)
    if columns != 4:
        tables = sorted(tables, key=lambda x: x.shape[1] != 4)
    boxes, scores = tables
    if spec.box_format == "yxyx":
        boxes = boxes[:, [1, 0, 3, 2]]
    boxes = _pixels(boxes, spec)
    boxes = _corners(boxes) if spec.box_format == "cxcywh" else boxes
    exclusive = spec.background is not None
    return Parts(boxes, scores, logits=spec.scores_are_logits, exclusive=exclusive, background=spec.background)


HEADS: dict[str, Callable[[Outputs, DecodeSpec], Parts]] = {
    "yolox": _yolox,
    "yolov5": _anchored,
    "yolov3": _anchored,
    "yolov8": _yolov8,
    "dfl": _dfl,
    "nanodet_plus": _dfl,
    "fastestdet": _fastestdet,
    "ssd": _ssd,
}
