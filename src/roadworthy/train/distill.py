"""The terms of distillation: what each says about how far a student is from its teachers. TERMS is the table.

Every term is a frozen dataclass, called with what the student and the teachers see in one image. It is 0 where they
say the same, and divergences have no bound far from the teacher:

    logits         T^2 KL(teacher || student) of the softmax at temperature T                           classifiers
    scores         the same for objectness and classes of every cell, weighted by its score             detectors
    boxes          1 - GIoU with the teacher's box, weighted by its score                               detectors
    distribution   KL of the distributions of the four sides, weighted by score                         detectors
    agreement      what the product decides by (`check.judge.distance`), smooth                         all
    features       relative noise, angle, or channel-wise KL of pairs of tensors inside                 all

T falls from `temperature` to 1 over the training by half a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from roadworthy.run.torch.heads import Parts
from roadworthy.train.boxes import overlaps
from roadworthy.train.features import Features
from roadworthy.train.labelled import Labels, SoftLabels
from roadworthy.train.reading import Seen
from roadworthy.train.target import Target, Term, binary_divergence, divergence, relative_noise, temperature_at

FLOOR = 0.01
"""Cells whose best score is below this on both sides are background to any threshold in use."""
COUNTED = 0.05
"""Cells above this on either side are those that `check.judge.distance` looks at."""
_TINY = 1e-9


@dataclass(frozen=True)
class Logits:
    """T^2 KL(softmax(q/T) || softmax(p/T)) (Hinton et al. 2015): q the teacher's logits, p the student's.

    temperature: at the beginning. T^2 keeps the size of the gradient, which falls with 1/T^2.
    """

    weight: float = 1.0
    temperature: float = 4.0
    tasks: ClassVar[tuple[str, ...]] = ("classify",)
    compares_outputs: ClassVar[bool] = True

    def __call__(self, student: Seen, target: Target, share: float) -> Tensor:
        t = temperature_at(self.temperature, share)
        shares = target.mean(lambda s: torch.softmax(_row(s) / t, -1))
        return t * t * divergence(shares, _row(student) / t)


@dataclass(frozen=True)
class Scores:
    """KL of objectness and of classes in every cell, both at temperature T, weighted by how much is seen there.

    The weight of a cell is its best score, the teacher's or the student's, whichever is higher: an image has thousands
    of cells of background, which would drown the few that matter.
    """

    weight: float = 1.0
    temperature: float = 1.0
    tasks: ClassVar[tuple[str, ...]] = ("detect",)
    compares_outputs: ClassVar[bool] = True

    def __call__(self, student: Seen, target: Target, share: float) -> Tensor:
        t = temperature_at(self.temperature, share)
        cells, kept, weights = _kept(student, target)
        classes = target.mean(lambda s: _squashed(_cells(s), kept, t))
        own = cells.classes[kept] / t
        found = divergence(classes, own) if cells.exclusive else binary_divergence(classes, own).sum(-1)
        if cells.objectness is not None:
            there = target.mean(lambda s: torch.sigmoid(_objectness(s)[kept] / t))
            found = found + binary_divergence(there, cells.objectness[kept] / t).sum(-1)
        return t * t * (weights * found).sum() / weights.sum().clamp(min=0.1)


@dataclass(frozen=True)
class Boxes:
    """1 - GIoU of the student's box with the teacher's (Rezatofighi et al. 2019), weighted by the teacher's score."""

    weight: float = 1.0
    tasks: ClassVar[tuple[str, ...]] = ("detect",)
    compares_outputs: ClassVar[bool] = True

    def __call__(self, student: Seen, target: Target, share: float) -> Tensor:
        _, kept, _ = _kept(student, target)
        boxes, best = teacher_boxes(target, kept)
        lost = 1 - overlaps(_boxes(student)[kept], boxes, generalized=True)
        return (best * lost).sum() / best.sum().clamp(min=0.1)


@dataclass(frozen=True)
class Distribution:
    """KL of the distributions over the bins of the four sides (Zheng et al. 2022, localization distillation)."""

    weight: float = 1.0
    temperature: float = 1.0
    tasks: ClassVar[tuple[str, ...]] = ("detect",)
    compares_outputs: ClassVar[bool] = True

    def __call__(self, student: Seen, target: Target, share: float) -> Tensor:
        bins = _cells(student).bins
        if bins is None:
            return _boxes(student).sum() * 0
        t = temperature_at(self.temperature, share)
        _, kept, _ = _kept(student, target)
        best = target.mean(lambda s: _best(s)[kept])
        shares = target.mean(lambda s: torch.softmax(_bins(s)[kept] / t, -1))
        found = divergence(shares, bins[kept] / t).mean(-1)
        return t * t * (best * found).sum() / best.sum().clamp(min=0.1)


@dataclass(frozen=True)
class Agreement:
    """What candidates are compared by, `check.judge.distance`, with slopes everywhere.

    Detectors: over the cells that either side scores above 0.05, |change of scores| + score * (1 - IoU), relative to
    the sum of scores. The largest change of any class is replaced by sqrt(sum of squares + e^2) - e over the classes;
    cells come in gradually from FLOOR on.
    Classifiers: total variation of the probabilities, |d| replaced by sqrt(d^2 + e^2) - e.   Raw: noise over signal.
    """

    weight: float = 1.0
    softness: float = 0.01
    tasks: ClassVar[tuple[str, ...]] = ("classify", "detect", "raw")
    compares_outputs: ClassVar[bool] = True

    def __call__(self, student: Seen, target: Target, share: float) -> Tensor:
        e = self.softness
        if student.row is not None:
            shares = target.mean(lambda s: torch.softmax(_row(s), -1))
            change = torch.softmax(student.row, -1) - shares
            return 0.5 * (torch.sqrt(change * change + (e * e / len(shares))) - e / math.sqrt(len(shares))).sum()
        if student.scores is None:
            return _noise(student, target)
        _, kept, seen = _kept(student, target)
        counts = ((seen - FLOOR) / (COUNTED - FLOOR)).clamp(0, 1)
        change = student.scores[kept] - target.mean(lambda s: _scores(s)[kept])
        changed = torch.sqrt((change * change).sum(-1) + e * e) - e
        boxes, best = teacher_boxes(target, kept)
        moved = best * (1 - overlaps(_boxes(student)[kept], boxes))
        return (counts * (changed + moved)).sum() / (counts * best).sum().clamp(min=0.1)


def _squashed(cells: Parts, kept: Tensor, temperature: float) -> Tensor:
    logits = cells.classes[kept] / temperature
    return torch.softmax(logits, -1) if cells.exclusive else torch.sigmoid(logits)


def _noise(student: Seen, target: Target) -> Tensor:
    """Noise over signal of each output, averaged."""
    found = []
    for name in student.outputs:
        if student.values[name].is_floating_point():
            wanted = target.mean(partial(_output, student.outputs.index(name)))
            found.append(relative_noise(student.values[name], wanted))
    return torch.stack(found).mean()


def _output(index: int, seen: Seen) -> Tensor:
    return seen.values[seen.outputs[index]]


def teacher_boxes(target: Target, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (K, 4) and best scores (K,) of the kept cells; of several teachers the mean, by weight and score."""
    best = target.mean(lambda s: _best(s)[kept])
    if len(target.alike) == 1:
        return _boxes(target.teachers[target.alike[0]])[kept], best
    total = target.mean(lambda s: _boxes(s)[kept] * _best(s)[kept, None].clamp(min=_TINY))
    return total / target.mean(lambda s: _best(s)[kept, None].clamp(min=_TINY)), best


def _kept(student: Seen, target: Target) -> tuple[Parts, Tensor, Tensor]:
    """The student's parts, the cells that count, and their weights; of none, the likeliest."""
    wanted = target.mean(_best)
    seen = torch.maximum(wanted, _best(student).detach())
    kept = torch.nonzero(seen > FLOOR)[:, 0]
    if not len(kept):
        kept = wanted.argmax().reshape(1)
    return _cells(student), kept, seen[kept]


def _row(seen: Seen) -> Tensor:
    assert seen.row is not None
    return seen.row


def _cells(seen: Seen) -> Parts:
    assert seen.cells is not None
    return seen.cells


def _objectness(seen: Seen) -> Tensor:
    objectness = _cells(seen).objectness
    assert objectness is not None
    return objectness


def _bins(seen: Seen) -> Tensor:
    bins = _cells(seen).bins
    assert bins is not None
    return bins


def _boxes(seen: Seen) -> Tensor:
    assert seen.boxes is not None
    return seen.boxes


def _scores(seen: Seen) -> Tensor:
    assert seen.scores is not None
    return seen.scores


def _best(seen: Seen) -> Tensor:
    return _scores(seen).amax(-1)


TERMS: Mapping[str, Callable[..., Term]] = {
    "logits": Logits,
    "scores": Scores,
    "boxes": Boxes,
    "distribution": Distribution,
    "agreement": Agreement,
    "features": Features,
    "labels": Labels,
    "soft_labels": SoftLabels,
}
NAMES = {kind: name for name, kind in TERMS.items()}
