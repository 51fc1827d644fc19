"""What a network says of an image, in the form that losses are written in: logits, boxes, distributions.

A graph often ends in sigmoids or a softmax, where the slope of a loss vanishes just where it is most wrong. So the
scores are read in front of them. The tail of a graph is whatever lies between there and the outputs and only moves
numbers about; it is walked again with the logits in place of the scores:

    conv -> z -> Sigmoid -> p -> Concat, Reshape, Transpose -> output          what the network computes
            z -------------------> Concat, Reshape, Transpose -> the same rows, holding logits

Where that cannot be done (scores that are products, say), the logits are log(p / (1 - p)), or log p of a softmax.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError, UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.model import Model
from roadworthy.model.task import Task
from roadworthy.run.torch.heads import Parts, parts
from roadworthy.run.torch.moves import MOVES

LEAST = 1e-6
"""Scores closer to 0 or 1 count as that close, where a logit has to be worked out from a score."""
COMPARED = ("kind", "num_classes", "strides", "anchors", "decoded", "reg_max", "box_format", "background")
"""What has to be equal in two decode specs for their outputs to mean the same, number by number."""


@dataclass(frozen=True)
class Seen:
    """What one network says of one image.

    values: outputs and taps by name.   outputs: names of the outputs.
    row: of a classifier, (C,) logits, background included.
    cells: of a detector, its parts with logits.   boxes, scores: of a detector, (N, 4) and (N, C) as decoded.
    spec: of both, how they were read.
    features: of a student, its side of the pairs of each term, in the teachers' channels.
    """

    values: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    row: Tensor | None = None
    cells: Parts | None = None
    boxes: Tensor | None = None
    scores: Tensor | None = None
    features: Mapping[Any, tuple[Tensor, ...]] = field(default_factory=dict)
    spec: DecodeSpec | None = None


class Reader:
    """Reads what a network found; made for its graph and task.   taps: the values it wants beside the outputs.

    values: the values that may be tapped, where those of the graph are not all.
    """

    def __init__(self, model: Model, task: Task, values: Collection[str] | None = None) -> None:
        self.source, self.task = model.source, task
        self.outputs = model.output_names
        self.shapes = {str(v.name): g.static_shape(v) for v in g.outputs(model.ir)}
        spec = task.decode
        self._tail = None
        if spec.kind != "raw" and not spec.scores_are_logits:
            tail = _Tail(model, spec.outputs or self.outputs)
            if (values is None or set(tail.leaves) <= set(values)) and tail.gives_logits(spec):
                self._tail = tail
        self.taps: tuple[str, ...] = () if self._tail is None else tuple(self._tail.leaves)

    def __call__(self, found: Mapping[str, Tensor]) -> Seen:
        """found: outputs and taps of one image, as the network returned them."""
        return seen(found, self.outputs, self.task.decode, None if self._tail is None else self._tail(found))


def seen(
    found: Mapping[str, Tensor],
    outputs: tuple[str, ...],
    spec: DecodeSpec,
    logits: Mapping[str, Tensor] | None = None,
) -> Seen:
    """What outputs say.   logits: the outputs with logits in place of scores, where they are known."""
    if spec.kind == "raw":
        return Seen(found, outputs)
    read = {k: found[k] for k in (spec.outputs or outputs)}
    before = logits or (read if spec.scores_are_logits else None)
    if spec.kind == "classify":
        row = _row(before or read, spec)
        return Seen(found, outputs, row if before else torch.log(row.clamp(min=LEAST)), spec=spec)
    whole = parts(read, spec)
    cells = parts(before, replace(spec, scores_are_logits=True)) if before else _with_logits(whole)
    return Seen(found, outputs, cells=cells, boxes=whole.boxes, scores=whole.scores(), spec=spec)


def differences(a: Reader, b: Reader) -> str:
    """How the outputs of two networks differ, in words; empty where they can be compared number by number."""
    if list(a.shapes.values()) != list(b.shapes.values()):
        return f"{_shapes(a)} against {_shapes(b)}"
    one, other = a.task.decode, b.task.decode
    for name in COMPARED:
        if getattr(one, name) != getattr(other, name):
            return f"both {_shapes(a)}, but {name} {getattr(one, name)} against {getattr(other, name)}"
    return ""


def _shapes(reader: Reader) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape or ()))}" for name, shape in reader.shapes.items())


def _row(outputs: Mapping[str, Tensor], spec: DecodeSpec) -> Tensor:
    """The scores of a classifier, (C,)."""
    columns = spec.num_classes + (spec.background is not None)
    fitting = [
        x
        for x in outputs.values()
        if x.numel() == max(x.shape, default=0) and x.numel() == (columns if spec.num_classes else x.numel())
    ]
    if len(fitting) != 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in outputs.values())
        raise InputError(f"classify: no single output scores {columns} classes among {shapes}; check the decode spec")
    return fitting[0].reshape(-1)


def _with_logits(cells: Parts) -> Parts:
    """Parts whose scores have been through sigmoid or softmax, as if they had not."""
    p = cells.classes.clamp(LEAST, 1 - LEAST)
    objectness = None if cells.objectness is None else torch.logit(cells.objectness, LEAST)
    classes = torch.log(p) if cells.exclusive else torch.logit(p)
    return replace(cells, classes=classes, objectness=objectness, logits=True)


class _Tail:
    """The end of a graph behind its last sigmoids.   leaves: names of the values it starts from."""

    def __init__(self, model: Model, outputs: Collection[str]) -> None:
        values = g.values(model.ir)
        self.outputs = tuple(outputs)
        self.leaves: dict[str, tuple[int, ...] | None] = {}
        self._constants: dict[str, Tensor] = {}
        self._nodes: list[tuple[g.Node, bool]] = []
        self._squashed: set[str] = set()
        wanted = {name for name in outputs if name in values}
        for node in reversed(g.nodes(model.ir)):
            if not wanted & {v.name for v in node.outputs}:
                continue
            data = [v for v in node.inputs if v is not None and v.name and g.constant(v) is None]
            squash = node.op_type in ("Sigmoid", "Softmax")
            if not squash and node.op_type not in MOVES:
                continue
            self._nodes.append((node, squash))
            wanted -= {str(v.name) for v in node.outputs}
            for v in node.inputs:
                array = g.constant(v)
                if v is not None and v.name and array is not None:
                    self._constants[v.name] = torch.from_numpy(np.array(array))
            if squash:
                self._squashed.add(str(data[0].name))
                self.leaves[str(data[0].name)] = g.static_shape(data[0])
            else:
                wanted |= {str(v.name) for v in data}
        self._nodes.reverse()
        self.leaves |= {name: g.static_shape(values[name]) for name in sorted(wanted)}

    def __call__(self, found: Mapping[str, Tensor], squashed: bool = False) -> dict[str, Tensor]:
        """The outputs worked out from the leaves.   squashed: with the sigmoids, as the network has it."""
        values = {name: found[name] for name in self.leaves}
        for node, squash in self._nodes:
            inputs = [None if v is None or not v.name else self._value(values, v.name) for v in node.inputs]
            if not squash:
                made = MOVES[node.op_type](node, inputs)
            elif not squashed:
                made = [values[str(node.inputs[0].name)]]  # type: ignore[union-attr]
            else:
                x = values[str(node.inputs[0].name)]  # type: ignore[union-attr]
                made = [
                    torch.sigmoid(x) if node.op_type == "Sigmoid" else torch.softmax(x, g.attribute(node, "axis", -1))
                ]
            values.update({str(v.name): tensor for v, tensor in zip(node.outputs, made)})
        return {name: values[name] for name in self.outputs}

    def _value(self, values: Mapping[str, Tensor], name: str) -> Tensor:
        return values[name] if name in values else self._constants[name]

    def gives_logits(self, spec: DecodeSpec) -> bool:
        """Whether decoding the logits gives the boxes and scores of the outputs, tried on random leaves."""
        if not self._squashed or any(shape is None for shape in self.leaves.values()):
            return False
        draw = torch.Generator().manual_seed(0)
        leaves = {k: torch.randn(shape or (), generator=draw, dtype=torch.float64) for k, shape in self.leaves.items()}
        logits = replace(spec, scores_are_logits=True)
        try:
            if spec.kind == "classify":
                scores = _row(self(leaves, squashed=True), spec)
                return torch.allclose(torch.softmax(_row(self(leaves), logits), -1), scores, atol=1e-9)
            a, b = parts(self(leaves, squashed=True), spec), parts(self(leaves), logits)
            return torch.allclose(a.boxes, b.boxes, atol=1e-6) and torch.allclose(a.scores(), b.scores(), atol=1e-9)
        except (InputError, UnsupportedError, StopIteration, RuntimeError, IndexError, ValueError):
            return False
