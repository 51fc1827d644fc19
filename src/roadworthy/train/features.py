"""Which tensors inside a student are compared with which inside a teacher, and what makes them comparable.

Candidates are the tensors a network hands on: those where a stage ends (a reader has a lower resolution), and those its
last layers read. Tensors of one name and shape are a pair; the rest pair in order by shape; what is still left, by
resolution, through a 1x1 convolution from the student's channels to the teacher's, which is trained with the student
and thrown away after (FitNets, Romero et al. 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as f
from torch import Tensor

from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.model import Model
from roadworthy.model.units import units
from roadworthy.train.reading import Seen
from roadworthy.train.target import Target, divergence, relative_noise

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Features:
    """How far pairs of tensors inside student and teachers differ, averaged over the pairs of each teacher.

    kind: "l2", squared error over the square of the teacher's (Romero et al. 2015); "cosine", 1 - cosine of the
        channels at each position; "channel", T^2 KL of the softmax over the positions of each channel (Shu et al.
        2021), which says where a channel looks and not how strongly.
    temperature: of "channel", all the time.
    pairs: (student's, teacher's) names of values; empty: chosen by `features.pairs_of`.
    """

    weight: float = 1.0
    kind: str = "l2"
    temperature: float = 4.0
    pairs: tuple[tuple[str, str], ...] = ()
    tasks: ClassVar[tuple[str, ...]] = ("classify", "detect", "raw")
    compares_outputs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.kind not in COMPARISONS:
            raise InputError(f"features are compared by {self.kind!r}; use one of {', '.join(COMPARISONS)}")

    def __call__(self, student: Seen, target: Target, share: float) -> Tensor:
        compare, wanted = COMPARISONS[self.kind], target.features[self]
        found = [compare(x, y, self.temperature) * part for x, (y, part) in zip(student.features[self], wanted)]
        return torch.stack(found).sum()


def _l2(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    return relative_noise(x, y)


def _cosine(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    return 1 - f.cosine_similarity(x, y, dim=1, eps=1e-6).mean()


def _channel(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    if x.ndim != 4 or x.shape[2] * x.shape[3] == 1:  # one position has one place to look
        return _l2(x, y, temperature)
    wanted = torch.softmax(y.flatten(2) / temperature, -1)
    return temperature * temperature * divergence(wanted, x.flatten(2) / temperature).mean()


COMPARISONS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"l2": _l2, "cosine": _cosine, "channel": _channel}


@dataclass(frozen=True)
class Pair:
    """Two values that are to agree.   teacher_index: whose.   shapes: of the student's value, then the teacher's."""

    student: str
    teacher: str
    teacher_index: int
    shapes: tuple[Shape, Shape]

    @property
    def adapted(self) -> bool:
        """Whether the student's channels have to be turned into the teacher's."""
        return self.shapes[0][1] != self.shapes[1][1]

    def adapter(self, seed: int) -> Tensor:
        """A first 1x1 convolution, (C of the teacher, C of the student, 1, 1), that keeps the variance."""
        inputs, outputs = self.shapes[0][1], self.shapes[1][1]
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(outputs, inputs, 1, 1, generator=draw) / inputs**0.5

    def fitted(self, x: Tensor, adapter: Tensor | None) -> Tensor:
        """The student's value in the teacher's channels."""
        if adapter is None:
            return x
        weight = adapter.to(x.dtype)
        return f.conv2d(x, weight) if x.ndim == 4 else x @ weight[:, :, 0, 0].T

    def sized(self, x: Tensor) -> Tensor:
        """The teacher's value at the student's resolution."""
        size = self.shapes[0][2:]
        if x.ndim != 4 or tuple(x.shape[2:]) == size:
            return x
        return f.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)


def candidates(model: Model) -> dict[str, Shape]:
    """The tensors that a network hands on, (1, C, H, W) or (1, C), in order of execution."""
    found: dict[str, Shape] = {}
    last = _last_inputs(model)
    for node in g.nodes(model.ir):
        if node.op_type == "Pad":
            continue
        for value in node.outputs:
            shape = g.static_shape(value)
            if not value.name or shape is None or len(shape) not in (2, 4) or shape[0] != 1:
                continue
            if value.name in last or (len(shape) == 4 and _is_reduced(value, shape)):
                found[value.name] = shape
    return found


def _is_reduced(value: g.Value, shape: Shape) -> bool:
    """Whether a reader makes something smaller of it, channels apart; the end of a stage is where units do so."""
    for reader in value.consumers():
        made = g.static_shape(reader.outputs[0])
        if made is None or len(made) != 4 or reader.inputs[0] is not value:
            continue
        smaller = made[2] * made[3] < shape[2] * shape[3]
        if (
            smaller
            if reader.op_type in ("Conv", "MaxPool", "AveragePool")
            else reader.op_type == "Pad" and _is_reduced(reader.outputs[0], made)
        ):
            return True
    return False


def _last_inputs(model: Model) -> set[str]:
    """Names of the values that those layers read behind which no other layer comes."""
    anchors = {id(u.anchor): u for u in units(model.ir)}
    found: set[str] = set()
    left, met = [v.producer() for v in g.outputs(model.ir)], set()
    while left:
        node = left.pop()
        if node is None or id(node) in met:
            continue
        met.add(id(node))
        if id(node) in anchors:
            found.add(str(anchors[id(node)].input.name))
        else:
            left += [v.producer() for v in node.inputs if v is not None]
    return found


def pairs_of(
    student: Model,
    teacher: Model,
    index: int,
    values: Collection[str] | None = None,
    named: Sequence[tuple[str, str]] = (),
) -> tuple[Pair, ...]:
    """The pairs of a student and one teacher.

    index: of the teacher.   values: what may be tapped in the student; None: all.
    named: (student's, teacher's) names to pair instead of what would be chosen.
    Raises InputError naming a value that does not exist or cannot be compared.
    """
    if named:
        return tuple(_named(student, teacher, index, *names) for names in named)
    ours = {k: v for k, v in candidates(student).items() if values is None or k in values}
    theirs = candidates(teacher)
    found: list[Pair] = []

    def take(mine: str, other: str) -> None:
        found.append(Pair(mine, other, index, (ours.pop(mine), theirs.pop(other))))

    for name in [k for k in ours if theirs.get(k) == ours[k]]:
        take(name, name)
    for name, shape in list(ours.items()):
        other = next((k for k, v in theirs.items() if v == shape), None)
        if other is not None:
            take(name, other)
    sides = student.input_shape, teacher.input_shape
    met: set[Shape] = set()
    for name, shape in reversed(list(ours.items())):  # the last of a resolution has seen the most
        other = next((k for k, v in reversed(theirs.items()) if _same_stride(shape, v, *sides)), None)
        if other is not None and shape[2:] not in met:
            met.add(shape[2:])
            take(name, other)
    return tuple(found)


def _same_stride(a: Shape, b: Shape, a_input: Shape, b_input: Shape) -> bool:
    if len(a) != len(b):
        return False
    return len(a) == 2 or all(round(max(a_input[1:]) / n) == round(max(b_input[1:]) / m) for n, m in zip(a[2:], b[2:]))


def _named(student: Model, teacher: Model, index: int, mine: str, other: str) -> Pair:
    shapes = _shape(student, mine), _shape(teacher, other)
    if len(shapes[0]) != len(shapes[1]):
        raise InputError(
            f"the features {mine!r} {shapes[0]} and {other!r} {shapes[1]} cannot be compared; pair tensors of as many"
            " axes"
        )
    return Pair(mine, other, index, shapes)


def _shape(model: Model, name: str) -> Shape:
    value = g.values(model.ir).get(name)
    shape = g.static_shape(value)
    if value is None or shape is None or len(shape) not in (2, 4):
        what = "is no value" if value is None else f"has the shape {shape}"
        raise InputError(
            f"the feature {name!r} {what} of {model.source}; name a tensor (1, C, H, W) or (1, C) of the graph"
        )
    return shape
