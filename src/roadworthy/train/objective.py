"""What a student is trained towards: teachers, terms and their sum.

    aim         = objective(student, [original], task)      terms by the task, taps by the graph
    target      = aim.target(x, truth)                      what is known of an image; no gradient, may be kept
    loss, parts = aim(module(x, aim.taps), target, 0.5)     half way through the training

Terms are relative: each is 0 where student and teacher agree, whatever the network, the number of its cells or the size
of its features. Divergences have no bound far from the teacher, and outweigh the others there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from roadworthy.detect.detections import Detections, Truth
from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.model import Model
from roadworthy.model.task import Task
from roadworthy.train.distill import NAMES, Agreement, Logits, Scores
from roadworthy.train.features import Features, Pair, pairs_of
from roadworthy.train.labelled import LabelledBoxes, Labels, SoftLabels, boxes_of
from roadworthy.train.reading import Reader, differences
from roadworthy.train.target import Target, Term
from roadworthy.train.teachers import Teacher

LABELS = ("no", "yes", "only")
DEFAULT: Mapping[str, tuple[Term, ...]] = {
    "classify": (Logits(),),
    "detect": (Agreement(), Scores()),
    "raw": (Agreement(),),
}
"""The terms for each kind of task, without labels."""
UNALIKE: Mapping[str, tuple[Term, ...]] = {"classify": (Features(),), "detect": (SoftLabels(), Features()), "raw": ()}
"""The terms for teachers with other outputs, beside the labels."""
_KINDS = {"classify": "classifiers", "detect": "detectors", "raw": "outputs that are not interpreted"}


@dataclass(frozen=True)
class ObjectiveSettings:
    """terms: instead of the default ones.   weights: of the teachers; empty: all alike.

    labels: "no", what images are labelled with is not looked at; "yes", beside the teachers; "only", instead of them.
    smoothing: of a classifier's labels.   device: where the student is.   seed: of adapters.
    Raises InputError for another word.
    """

    terms: tuple[Term, ...] = ()
    weights: tuple[float, ...] = ()
    labels: str = "no"
    smoothing: float = 0.1
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.labels not in LABELS:
            raise InputError(f"labels is {self.labels!r}; use one of {', '.join(LABELS)}")


class Objective(nn.Module):
    """The loss of one image, as a sum of terms. Safe to call from several threads.

    taps: values wanted of the student beside its outputs.
    Its parameters, if it has any, are adapters between features: trained with the student, thrown away after.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        student: Reader,
        teachers: Sequence[Teacher] = (),
        weights: Sequence[float] = (),
        pairs: Mapping[Features, Sequence[Pair]] | None = None,
        seed: int = 0,
    ) -> None:
        """weights: of the teachers; empty: all alike.   pairs: what each term of features compares."""
        super().__init__()
        self.terms, self.teachers, self.reader = tuple(terms), tuple(teachers), student
        weights = tuple(weights) or (1.0,) * len(teachers)
        if len(weights) != len(teachers) or (weights and min(weights) <= 0):
            raise InputError(f"{len(teachers)} teachers need as many weights above 0, not {weights}")
        self.weights = tuple(w / sum(weights) for w in weights)
        self.alike = tuple(k for k, t in enumerate(teachers) if not differences(student, t.reader))
        self.pairs = {term: tuple(found) for term, found in (pairs or {}).items()}
        every = [p for found in self.pairs.values() for p in found]
        self.taps: tuple[str, ...] = tuple(dict.fromkeys((*student.taps, *(p.student for p in every))))
        self._adapters = nn.ParameterList([p.adapter(seed + k) for k, p in enumerate(every) if p.adapted])

    def target(self, x: Tensor, truth: Truth | int | None = None) -> Target:
        """What is known of one image; no gradient.

        x: the student's input tensor.   truth: boxes in pixels of it, or the index of the image's class, or None.
        """
        seen = tuple(t(x) for t in self.teachers)
        features = {}
        for term, pairs in self.pairs.items():
            counts = Counter(p.teacher_index for p in pairs)
            sides = [p.sized(seen[p.teacher_index].values[p.teacher]) for p in pairs]
            parts = [self.weights[p.teacher_index] / counts[p.teacher_index] for p in pairs]
            features[term] = tuple(zip(sides, parts))
        soft = []
        if any(isinstance(t, SoftLabels) for t in self.terms):
            for k in set(range(len(seen))) - set(self.alike):
                soft.append((self._boxes(self.teachers[k].detections(seen[k]), x), self.weights[k]))
        labels = self._boxes(truth, x) if isinstance(truth, Truth) else truth
        kept = tuple(replace(s, values={name: s.values[name] for name in s.outputs}) for s in seen)
        return Target(kept, self.weights, self.alike, features, labels, tuple(soft))

    def _boxes(self, truth: Truth | Detections, x: Tensor) -> LabelledBoxes:
        return boxes_of(truth, self.reader.task.decode.input_hw, x)

    def forward(self, found: Mapping[str, Tensor], target: Target, share: float) -> tuple[Tensor, dict[str, float]]:
        """The loss of one image, and each term's part in it.

        found: the student's outputs and taps.   share: how much of the training is done, 0..1.
        """
        adapters, features = iter(self._adapters), {}
        for key, pairs in self.pairs.items():
            features[key] = tuple(p.fitted(found[p.student], next(adapters) if p.adapted else None) for p in pairs)
        student = replace(self.reader(found), features=features)
        parts: dict[str, Tensor] = {}
        for term in self.terms:
            name = NAMES[type(term)]
            made = term.weight * term(student, target, share)
            parts[name] = parts[name] + made if name in parts else made
        total = torch.stack(list(parts.values())).sum()
        return total, {name: float(part.detach()) for name, part in parts.items()}

    def check(self, student: object = None) -> None:
        """Raises InputError where a term compares outputs, and no teacher has any like the student's.

        student: anything with `output_names`, which have to be those that the objective was made for.
        """
        names = getattr(student, "output_names", self.reader.outputs)
        if tuple(names) != self.reader.outputs:
            raise InputError(
                f"the student's outputs are {', '.join(names)}, but the objective was made for those of"
                f" {self.reader.source}, {', '.join(self.reader.outputs)}; make it for this student"
            )
        if self.alike or not any(term.compares_outputs for term in self.terms):
            return
        if not self.teachers:
            raise InputError(f"{self.reader.source} has no teacher; give the original, or train with labels only")
        teacher = self.teachers[0].reader
        raise InputError(
            f"the student {self.reader.source} and the teacher {teacher.source} have different outputs"
            f" ({differences(self.reader, teacher)}), so that without labels one cannot learn from the other; give the"
            " network that the student was made from, or images with labels"
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
    Raises InputError for a quantized teacher, for terms of another task, and as `Objective.check` does.
    """
    settings = settings or ObjectiveSettings()
    kind = kind_of(task)
    reader = Reader(student, task, values)
    if settings.labels == "only":
        teachers = ()
    tasks = [m.task or task for m in teachers]
    unalike = [bool(differences(reader, Reader(m, t))) for m, t in zip(teachers, tasks)]
    terms = settings.terms or _defaults(kind, settings, unalike)
    for term in terms:
        if kind not in term.tasks:
            raise InputError(f"the term {NAMES[type(term)]!r} is not made for {_KINDS[kind]}; leave it out")
        if isinstance(term, SoftLabels) and not any(unalike):
            raise InputError("the term 'soft_labels' is for teachers with other outputs than the student; leave it out")
    if kind == "raw" and not any(_is_real(v) for v in g.outputs(student.ir)):
        raise InputError(f"{student.source} gives whole numbers only, which have no gradient; cut it before its ArgMax")
    pairs: dict[Features, list[Pair]] = {}
    for term in terms:
        if isinstance(term, Features):
            pairs[term] = [p for k, m in enumerate(teachers) for p in pairs_of(student, m, k, values, term.pairs)]
            if not pairs[term] and term in settings.terms:
                raise InputError("student and teachers have no features that can be compared; leave the term out")
    pairs = {term: found for term, found in pairs.items() if found}
    terms = tuple(t for t in terms if not isinstance(t, Features) or t in pairs)
    made = []
    for k, (model, own) in enumerate(zip(teachers, tasks)):
        _classes_fit(student, task, model, own, kind)
        wanted = [p.teacher for found in pairs.values() for p in found if p.teacher_index == k]
        made.append(Teacher(model, own, task.preprocess, wanted, settings.device))
    found = Objective(terms, reader, made, settings.weights if teachers else (), pairs, settings.seed)
    found.check()
    return found


def _is_real(value: g.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def kind_of(task: Task) -> str:
    """ "classify", "detect" or "raw"."""
    return "detect" if task.is_detector else task.decode.kind


def _defaults(kind: str, settings: ObjectiveSettings, unalike: Sequence[bool]) -> tuple[Term, ...]:
    """The terms where the user names none.   unalike: of each teacher, whether its outputs are others."""
    if settings.labels == "no":
        return DEFAULT[kind]
    if kind == "raw":
        raise InputError("outputs that are not interpreted have no labels; train without them")
    labels = Labels(smoothing=settings.smoothing)
    if settings.labels == "only":
        return (labels,)
    compared = DEFAULT[kind] if not all(unalike) else ()
    return (*compared, labels, *(UNALIKE[kind] if any(unalike) else ()))


def _classes_fit(student: Model, task: Task, teacher: Model, own: Task, kind: str) -> None:
    """What a detector sees can only be another's labels where their classes are the same."""
    if kind != "detect":
        return
    if own.decode.num_classes != task.decode.num_classes or (
        own.decode.class_names and task.decode.class_names and own.decode.class_names != task.decode.class_names
    ):
        raise InputError(
            f"the teacher {teacher.source} has other classes than the student {student.source}"
            f" ({own.decode.num_classes}: {', '.join(own.names[:3])}, ... against {task.decode.num_classes}:"
            f" {', '.join(task.names[:3])}, ...); give a teacher of the same classes"
        )
