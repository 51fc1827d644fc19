"""What is known of one image while training, what a term of the loss is, and the algebra that terms share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as f
from torch import Tensor

from roadworthy.train.reading import Seen


@dataclass(frozen=True)
class Target:
    """What is known of one image.

    teachers: what each teacher sees.   weights: of the teachers, summing to 1.
    alike: which of them have outputs that can be compared with the student's number by number.
    features: the teachers' side of the pairs of each term, each with its share.
    truth: labels of the image (`labelled.LabelledBoxes`, or the index of its class), or None.
    soft: what the other teachers detect (`labelled.LabelledBoxes`), with their weights.
    """

    teachers: tuple[Seen, ...]
    weights: tuple[float, ...]
    alike: tuple[int, ...]
    features: Mapping[Any, tuple[tuple[Tensor, float], ...]] = field(default_factory=dict)
    truth: Any = None
    soft: tuple[tuple[Any, float], ...] = ()

    def mean(self, of: Callable[[Seen], Tensor]) -> Tensor:
        """The weighted mean over the teachers whose outputs are alike."""
        total = sum(self.weights[k] for k in self.alike)
        made = [of(self.teachers[k]) * (self.weights[k] / total) for k in self.alike]
        return made[0] if len(made) == 1 else torch.stack(made).sum(0)


class Term(Protocol):
    """One addend of the loss, a frozen dataclass.

    tasks: of which it speaks: "classify", "detect", "raw".   compares_outputs: whether it needs a teacher whose outputs
    are like the student's, number by number.
    """

    tasks: ClassVar[tuple[str, ...]]
    compares_outputs: ClassVar[bool]

    @property
    def weight(self) -> float:
        """Its factor in the sum."""
        ...

    def __call__(self, student: Seen, target: Target, share: float) -> Tensor:
        """The term for one image, a scalar; share: how much of the training is done, 0..1."""
        ...


def temperature_at(start: float, share: float) -> float:
    """From `start` down to 1 by half a cosine."""
    return 1.0 + (start - 1.0) * 0.5 * (1.0 + math.cos(math.pi * min(max(share, 0.0), 1.0)))


def divergence(teacher: Tensor, logits: Tensor) -> Tensor:
    """KL(teacher || softmax(logits)) over the last axis, in nats.   teacher: probabilities."""
    return (torch.xlogy(teacher, teacher) - teacher * f.log_softmax(logits, -1)).sum(-1)


def binary_divergence(teacher: Tensor, logits: Tensor) -> Tensor:
    """KL between Bernoulli distributions, element by element, in nats.   teacher: probabilities."""
    entropy = torch.xlogy(teacher, teacher) + torch.xlogy(1 - teacher, 1 - teacher)
    return f.binary_cross_entropy_with_logits(logits, teacher, reduction="none") + entropy


def relative_noise(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over the square of what is wanted."""
    return (found - wanted).square().sum() / wanted.square().sum().clamp(min=1e-9)
