"""What lies between the graph and the plan: arrays, steps that compute, and links that only say where elements lie.

The translation (`translate.py`) writes a `Network` with logical shapes only; the placement (`place.py`) decides which
arrays share a buffer, and turns every link that cannot be had for free into a copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from roadworthy.model.encoding import Encoding
from roadworthy.run.native.plan import ARENA, CONSTANT, F32, U8, Op
from roadworthy.run.native.views import Map

Form = Literal["image", "pixels", "rows", "flat", "free", "last", "whole"]
"""How an operation wants an array of logical dims:

image   (1,C,H,W) as (H,W,C), channels contiguous, in the arena, with a border where asked
pixels  the same with any strides
rows    (..,K) as (1,P,K), K contiguous, in the arena
flat    all elements in C order without gaps, as (1,1,n), in the arena
free    any strides; all operands are merged to few dimensions together
last    any strides, but the last dimension contiguous
whole   any strides, all dimensions kept
"""

Border = tuple[int, int, int, int]
"""Pixels at the top, left, bottom and right."""
NO_BORDER: Border = (0, 0, 0, 0)


@dataclass(eq=False)
class Array:
    """A value while it is lowered: logical dims, and codes of `encoding` or float32.

    space, index: where it is bound to lie (graph inputs, outputs, constants), else the arena.
    like: arrays whose order of dimensions it should take over; none: images as (H,W,C), all else in C order.
    ordered: keep C order, whatever the rank.
    """

    name: str
    dims: tuple[int, ...]
    encoding: Encoding | None = None
    space: int = ARENA
    index: int = 0
    data: NDArray | None = None
    like: tuple[Array, ...] = ()
    ordered: bool = False

    @property
    def dtype(self) -> int:
        return F32 if self.encoding is None else U8

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def element_bytes(self) -> int:
        return 4 if self.encoding is None else 1

    def fill(self) -> bytes:
        """What a border of it holds."""
        if self.encoding is None:
            return bytes(4)
        return np.atleast_1d(self.encoding.zero_point).astype(np.uint8).tobytes()


@dataclass(eq=False)
class Operand:
    """An array as a step reads or writes it.

    border: pixels around the image that are read.   dims: what it is broadcast to, or None.
    part: only this part of it.   inside: of a part: another step writes the whole, border and all, before.
    """

    array: Array
    form: Form
    border: Border = NO_BORDER
    dims: tuple[int, ...] | None = None
    part: Map | None = None
    inside: bool = False


@dataclass(eq=False)
class Step:
    """One operation of the plan, before memory.

    pointwise: element k of the result depends on element k of the operands only, so it may overwrite one of them.
    """

    op: Op
    inputs: list[Operand]
    output: Operand
    attributes: tuple[int, ...] = ()
    blobs: tuple[bytes, ...] = ()
    name: str = ""
    pointwise: bool = False


@dataclass(eq=False)
class Link:
    """The elements of `source` and `target` are the same, or those of one are among those of the other.

    forward: from the view of source to that of target (Slice, Reshape, ..).   backward: the other way round (a part of
    a Concat, Reshape).
    """

    source: Array
    target: Array
    forward: Map | None
    backward: Map | None
    name: str = ""


@dataclass
class Network:
    """Steps and links in execution order."""

    items: list[Step | Link] = field(default_factory=list)
    inputs: list[Array] = field(default_factory=list)
    outputs: list[Array] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def step(
        self,
        op: Op,
        inputs: Sequence[Operand],
        output: Operand,
        attributes: Sequence[int] = (),
        blobs: Sequence[bytes] = (),
        name: str = "",
        pointwise: bool = False,
    ) -> Array:
        self.items.append(Step(op, list(inputs), output, tuple(attributes), tuple(blobs), name, pointwise))
        return output.array

    def link(self, source: Array, target: Array, forward: Map | None, backward: Map | None, name: str = "") -> Array:
        self.items.append(Link(source, target, forward, backward, name))
        return target


def constant_array(name: str, data: NDArray, encoding: Encoding | None = None) -> Array:
    """A constant in C order in space 3: float32, or codes of an encoding."""
    made = np.ascontiguousarray(data, np.float32 if encoding is None else np.uint8)
    return Array(name, made.shape or (1,), encoding, CONSTANT, 0, made.reshape(made.shape or (1,)))


def is_image(dims: Sequence[int]) -> bool:
    return len(dims) == 4 and dims[0] == 1
