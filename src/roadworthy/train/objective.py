"""What a student is trained towards: teachers, terms and their sum.

aim     = objective(student, [original])       terms by the task, taps by the graph
target  = aim.target(x)                        what the teachers say; no gradient, may be kept
loss, parts = aim(module(x, aim.taps), target, share=0.5)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from roadworthy.errors import InputError
from roadworthy.model.model import Model
from roadworthy.model.task import Task
from roadworthy.train.distill import Agreement, Logits, Scores, Target, Term
from roadworthy.train.reading import Reader
from roadworthy.train.teachers import Teacher

DEFAULT: Mapping[str, tuple[Term, ...]] = {
    "classify": (Agreement(), Logits(temperature=1.0)),
    "detect": (Agreement(), Scores()),
    "raw": (Agreement(),),
}
"""The terms for each kind of task, without labels."""


@dataclass(frozen=True)
class ObjectiveSettings:
    """terms: instead of those of DEFAULT.   weights: of the teachers; empty: all alike.   device: the student's."""

    terms: tuple[Term, ...] = ()
    weights: tuple[float, ...] = ()
    device: str = "cpu"


class Objective(nn.Module):
    """The loss of one image, as a sum of terms. Safe to call from several threads.

    taps: values wanted of the student beside its outputs.
    """

    def __init__(self, terms: Sequence[Term], student: Reader, teachers: Sequence[Teacher], weights: Sequence[float]):
        super().__init__()
        self.terms, self.teachers = tuple(terms), tuple(teachers)
        self.weights = tuple(w / sum(weights) for w in weights)
        self.reader = student
        self.alike = tuple(k for k, t in enumerate(teachers) if not differences(student, t.reader))
        self.taps: tuple[str, ...] = tuple(dict.fromkeys(student.taps))

    def target(self, x: Tensor, truth: Any = None) -> Target:
        """What the teachers say of one input tensor.   truth: labels of the image, in pixels of the input, or None."""
        return Target(tuple(t(x) for t in self.teachers), self.weights, self.alike)

    def forward(self, found: Mapping[str, Tensor], target: Target, share: float) -> tuple[Tensor, dict[str, float]]:
        """The loss of one image, and each term's part in it.

        found: the student's outputs and taps.   share: how much of the training is done, 0..1.
        """
        student = self.reader(found)
        parts = {type(t).__name__.lower(): t.weight * t(student, target, share) for t in self.terms}
        total = sum(parts.values())
        assert isinstance(total, Tensor)
        return total, {name: float(part.detach()) for name, part in parts.items()}

    def check(self, student: Any = None) -> None:
        """Raises InputError when no teacher has outputs that can be compared with the student's."""
        for teacher in self.teachers:
            found = differences(self.reader, teacher.reader)
            if found:
                raise InputError(
                    f"the student {self.reader.source} and the teacher {teacher.reader.source} have different outputs"
                    f" ({found}), so they cannot be compared number by number; give the network that the student was"
                    " made from as teacher, or images with labels"
                )


def objective(
    student: Model,
    teachers: Sequence[Model],
    task: Task,
    settings: ObjectiveSettings | None = None,
    values: Collection[str] | None = None,
) -> Objective:
    """The objective for a student; its terms by the task where `settings` names none.

    task: of the student, and of the teachers that have none of their own.   values: what the student lets be tapped
    (`Trainable.value_names`); None: every value of its graph.
    Raises InputError for a quantized teacher, and as `Objective.check` does.
    """
    settings = settings or ObjectiveSettings()
    kind = kind_of(task)
    terms = settings.terms or DEFAULT[kind]
    reader = Reader(student, task, values)
    made = [Teacher(m, m.task or task, device=settings.device) for m in teachers]
    found = Objective(terms, reader, made, settings.weights or (1.0,) * len(made))
    found.check()
    return found


def kind_of(task: Task) -> str:
    """ "classify", "detect" or "raw"."""
    return "detect" if task.is_detector else task.decode.kind


def differences(a: Reader, b: Reader) -> str:
    """How the outputs of two networks differ, in words; empty where they can be compared number by number."""
    if len(a.shapes) != len(b.shapes) or list(a.shapes.values()) != list(b.shapes.values()):
        return f"{_shapes(a)} against {_shapes(b)}"
    return ""


def _shapes(reader: Reader) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape or ()))}" for name, shape in reader.shapes.items())
