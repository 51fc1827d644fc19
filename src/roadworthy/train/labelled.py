"""Losses against labels: those of the images, and those that a teacher with other outputs makes.

classifier   CE(y, p) with smoothing, less its least value                                (Szegedy et al. 2016)
detector     cells answer for boxes (`matching`, the same for every head); with n the sum of the boxes' weights
                 BCE(objectness, answers) over all cells / n  +  BCE(classes, class * IoU) over those that answer / n
                 + 5 * (1 - IoU) over those that answer / n                                    (Ge et al. 2021)
             without objectness, the classes of all cells by quality focal loss          (Li et al. 2020)
             with a background class, cross-entropy over those that answer and the three times as many that are most
             wrong about the background                                                    (Liu et al. 2016)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as f
from torch import Tensor

from roadworthy.data.preprocess import Geometry
from roadworthy.detect.detections import Detections, Truth
from roadworthy.errors import InputError
from roadworthy.run.torch.heads import Parts
from roadworthy.train.boxes import covered, overlaps
from roadworthy.train.matching import match, places
from roadworthy.train.reading import Seen
from roadworthy.train.target import Target, divergence

BOX_WEIGHT = 5.0
NEGATIVES = 3
LEAST_SIDE = 1.0
"""LabelledBoxes of which the input tensor shows fewer pixels than this on a side are not to be found."""
IGNORED = 0.5
"""Cells whose box lies in an ignored one by more than this share are neither right nor wrong."""


@dataclass(frozen=True)
class LabelledBoxes:
    """Labelled boxes of one image as tensors.

    boxes: (M, 4) xyxy in input pixels.   classes: (M,).   weights: (M,) in 0..1, how sure each is.   ignored: (K, 4).
    """

    boxes: Tensor
    classes: Tensor
    weights: Tensor
    ignored: Tensor


def to_input(truth: Truth, geometry: Geometry) -> Truth:
    """Labels in pixels of the input tensor: the way that detections go back by `Geometry.to_image`, in reverse."""
    x, y = geometry.ratio_xy
    areas = (truth.areas * (x * y)).astype(np.float32)
    return Truth(geometry.to_input(truth.boxes_xyxy), truth.classes, areas, truth.ignore)


def boxes_of(truth: Truth | Detections, input_hw: tuple[int, int], like: Tensor) -> LabelledBoxes:
    """Labels, or detections that stand for labels, cut to the input tensor; what it does not show is left out."""
    boxes = torch.from_numpy(np.array(truth.boxes_xyxy)).to(like)
    height, width = input_hw
    if height and width:
        boxes = torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))
    seen = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(1)
    weights = torch.ones(len(boxes)).to(like)
    ignore = torch.zeros_like(seen)
    if isinstance(truth, Detections):
        weights = torch.from_numpy(np.array(truth.scores)).to(like)
    else:
        ignore = torch.from_numpy(np.array(truth.ignore)).to(seen.device)
    classes = torch.from_numpy(np.array(truth.classes)).to(seen.device)
    wanted = seen & ~ignore
    return LabelledBoxes(boxes[wanted], classes[wanted], weights[wanted], boxes[seen & ignore])


@dataclass(frozen=True)
class Labels:
    """The loss against the labels of an image; 0 for an image without.

    smoothing: of a classifier, the share of the label that is spread evenly over all classes.
    """

    weight: float = 1.0
    smoothing: float = 0.1
    tasks: ClassVar[tuple[str, ...]] = ("classify", "detect")
    compares_outputs: ClassVar[bool] = False

    def __call__(self, student: Seen, target: Target, share: float) -> Tensor:
        if target.truth is None:
            return nothing(student)
        if student.row is not None:
            background = None if student.spec is None else student.spec.background
            return smoothed(student.row, int(target.truth), self.smoothing, background)
        return found_boxes(student, target.truth)


@dataclass(frozen=True)
class SoftLabels:
    """The loss against what teachers with other outputs detect, behind NMS, each box weighted by its score."""

    weight: float = 1.0
    tasks: ClassVar[tuple[str, ...]] = ("detect",)
    compares_outputs: ClassVar[bool] = False

    def __call__(self, student: Seen, target: Target, share: float) -> Tensor:
        losses = [w * found_boxes(student, boxes) for boxes, w in target.soft]
        return torch.stack(losses).sum() if losses else nothing(student)


def nothing(student: Seen) -> Tensor:
    """A loss of 0 that hangs on the student."""
    of = student.row if student.row is not None else student.boxes
    assert of is not None
    return of.sum() * 0


def smoothed(row: Tensor, label: int, smoothing: float, background: int | None = None) -> Tensor:
    """CE of logits (C,) against a smoothed label, less the entropy of the label: 0 at its least.

    background: the column that is no class, which labels do not count.
    """
    classes = len(row) - (background is not None)
    if not 0 <= label < classes:
        raise InputError(f"the label {label} is none of the {classes} classes of the model; count from 0")
    wanted = torch.full_like(row, smoothing / len(row))
    wanted[label + (background is not None and label >= background % len(row))] += 1 - smoothing
    return divergence(wanted, row)


def found_boxes(student: Seen, truth: LabelledBoxes) -> Tensor:
    """The loss of a detector against boxes, see the module."""
    cells, boxes, scores = student.cells, student.boxes, student.scores
    assert cells is not None and boxes is not None and scores is not None and student.spec is not None
    _classes_exist(truth.classes, scores.shape[1])
    points, reach = places(student.spec, boxes)
    found = match(boxes, scores, points, reach, truth.boxes, truth.classes)
    weights = truth.weights[found.truths]
    count = weights.sum().clamp(min=1.0)
    mine, wanted = boxes[found.cells], truth.boxes[found.truths]
    lost = 1 - overlaps(mine, wanted)
    counted = _counted(boxes, truth.ignored)
    counted[found.cells] = True
    classes = truth.classes[found.truths]
    said = _said(cells, classes, found.cells, found.ious * weights, weights, counted)
    return (said + BOX_WEIGHT * (weights * lost).sum()) / count


def _said(cells: Parts, classes: Tensor, rows: Tensor, qualities: Tensor, weights: Tensor, counted: Tensor) -> Tensor:
    """What is wrong about objectness and classes, summed."""
    bce = f.binary_cross_entropy_with_logits
    if cells.objectness is not None:
        there = torch.zeros_like(cells.objectness[:, 0])
        there[rows] = weights
        total = bce(cells.objectness[:, 0][counted], there[counted], reduction="sum")
        logits = cells.classes[rows]
        if cells.exclusive:
            return total + (weights * f.cross_entropy(logits, classes, reduction="none")).sum()
        wanted = torch.zeros_like(logits)
        wanted[torch.arange(len(rows)), classes] = qualities
        return total + bce(logits, wanted, reduction="sum")
    if cells.background is not None:
        return _against_background(cells, classes, rows, weights, counted)
    wanted = torch.zeros_like(cells.classes)
    wanted[rows, classes] = qualities
    focus = (torch.sigmoid(cells.classes) - wanted).abs().square().detach()
    return (focus * bce(cells.classes, wanted, reduction="none"))[counted].sum()


def _against_background(cells: Parts, classes: Tensor, rows: Tensor, weights: Tensor, counted: Tensor) -> Tensor:
    assert cells.background is not None
    columns = cells.classes.shape[1]
    background = cells.background % columns
    logs = f.log_softmax(cells.classes, -1)
    hit = -(weights * logs[rows, classes + (classes >= background)]).sum()
    free = counted.clone()
    free[rows] = False
    wrong = -logs[free, background]
    most = min(len(wrong), NEGATIVES * max(len(rows), 1))
    return hit + wrong.topk(most).values.sum()


def _counted(boxes: Tensor, ignored: Tensor) -> Tensor:
    """(N,) whether a cell is right or wrong at all: not where its box lies in an ignored one."""
    if not len(ignored):
        return torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    return ~(covered(boxes.detach(), ignored) > IGNORED).any(1)


def _classes_exist(classes: Tensor, count: int) -> None:
    if len(classes) and int(classes.max()) >= count:
        raise InputError(
            f"a label has the class {int(classes.max())}, but the model scores {count} classes, counted from 0; use the"
            " labels that the model was trained with"
        )
