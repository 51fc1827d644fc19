"""Second moments of what layers read, gathered in one pass over the images, and weights as stacks of matrices.

Of every layer and image some output pixels are drawn (from the seed and the image's number alone); the patches under
them enter

    n = sum 1      mean = sum x / n      A = sum x' x'^T / n - mean' mean'^T      C = sum x x'^T / n - mean mean'^T

per group: x as the float network has it, x' as the quantized one. Memory does not grow with the images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from roadworthy.model import graph as g
from roadworthy.model.units import Unit
from roadworthy.run import arithmetic as ar

MOST_INPUTS = 6144
"""Widest group of inputs (K): its moments take K * K * 8 bytes."""
WORK = 1 << 25
"""Multiplications that one layer's moments may cost per image, as far as MIN_PATCHES allows."""
MIN_PATCHES, MAX_PATCHES = 128, 1024


def refusal(unit: Unit) -> str | None:
    """Why the weights of a unit are not one matrix per group, as the end of a sentence; None where they are."""
    weight = g.constant(unit.weight)
    anchor = unit.anchor
    assert weight is not None
    if not np.isfinite(weight).all():
        return "its weight is not finite"
    if anchor.op_type == "MatMul" and weight.ndim != 2:
        return f"its weight has {weight.ndim} dimensions"
    if anchor.op_type in ("Conv", "ConvTranspose") and weight.ndim != 4:
        return f"it is a convolution over {weight.ndim - 2} dimensions"
    if anchor.op_type == "ConvTranspose":
        kernel = tuple(weight.shape[2:])
        if tuple(g.attribute(anchor, "strides", (1, 1))) != kernel or set(g.attribute(anchor, "dilations", (1, 1))) != {1}:
            return "its windows overlap"
    if g.static_shape(unit.input) is None:
        return "the shape of its input is not known"
    rows = to_rows(unit, weight)
    if rows.shape[-1] > MOST_INPUTS:
        return f"it has {rows.shape[-1]} inputs, more than {MOST_INPUTS}"
    return None


def to_rows(unit: Unit, weight: NDArray) -> NDArray:
    """An array in the layout of the unit's weight as (groups, rows, K)."""
    anchor = unit.anchor
    if anchor.op_type == "Conv":
        groups = g.attribute(anchor, "group", 1)
        return weight.reshape(groups, len(weight) // groups, -1)
    if anchor.op_type == "ConvTranspose":  # every pixel of a window that overlaps no other is a row of its own
        groups = g.attribute(anchor, "group", 1)
        return weight.reshape(groups, len(weight) // groups, -1).swapaxes(1, 2)
    return (weight if unit.weight_axis == 0 else weight.T)[None]


def from_rows(unit: Unit, rows: NDArray, shape: tuple[int, ...]) -> NDArray:
    """The way back from `to_rows`, to an array of this shape."""
    if unit.anchor.op_type == "Conv":
        return rows.reshape(shape)
    if unit.anchor.op_type == "ConvTranspose":
        return rows.swapaxes(1, 2).reshape(shape)
    return rows[0] if unit.weight_axis == 0 else rows[0].T


class Patches:
    """Draws the patches of one unit from its input."""

    def __init__(self, unit: Unit) -> None:
        weight = g.constant(unit.weight)
        shape = g.static_shape(unit.input)
        assert weight is not None and shape is not None
        self.groups, self.rows, self.inputs = to_rows(unit, weight).shape
        self.conv = unit.anchor.op_type == "Conv"
        self.image = unit.anchor.op_type in ("Conv", "ConvTranspose")
        self.transposed = unit.anchor.op_type == "Gemm" and bool(g.attribute(unit.anchor, "transA", 0))
        if self.conv:
            self.at = ar.windows(unit.anchor, (shape[2], shape[3]), (weight.shape[2], weight.shape[3]))
            self.positions = shape[0] * math.prod(self.at.size)
        else:
            self.positions = math.prod(shape) // (self.groups * self.inputs)
        most = WORK // (self.groups * self.inputs**2)
        self.count = min(self.positions, max(MIN_PATCHES, min(most, MAX_PATCHES)))

    def choose(self, image: int, seed: int) -> NDArray[np.int64]:
        """Which output pixels (or rows of a matrix) of this image are looked at."""
        if self.count == self.positions:
            return np.arange(self.positions)
        return np.sort(np.random.default_rng([seed, image]).choice(self.positions, self.count, replace=False))

    def of(self, x: NDArray, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        """(groups, patches, K) float32."""
        if not self.image:
            rows = x.T if self.transposed else x.reshape(-1, self.inputs)
            return rows[chosen][None]
        n, c = x.shape[:2]
        if not self.conv:
            return x.reshape(n, self.groups, -1, x.shape[2] * x.shape[3]).transpose(1, 0, 3, 2).reshape(
                self.groups, -1, self.inputs)[:, chosen]  # fmt: skip
        at = self.at
        (top, left), (bottom, right) = at.pads_begin, at.pads_end
        if top or left or bottom or right:
            x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        height, width = x.shape[2:]
        which, pixel = np.divmod(chosen, math.prod(at.size))
        row, column = np.divmod(pixel, at.size[1])
        corner = row * at.strides[0] * width + column * at.strides[1]
        i, j = np.divmod(np.arange(math.prod(at.kernel)), at.kernel[1])
        offset = i * at.dilations[0] * width + j * at.dilations[1]
        flat = x.reshape(n, c, height * width)
        if n == 1:
            found = flat[0][:, corner[:, None] + offset]  # C, patches, taps
        else:
            found = flat[which[:, None], :, corner[:, None] + offset].transpose(2, 0, 1)
        taps = len(offset)
        per = c // self.groups
        return np.ascontiguousarray(
            found.reshape(self.groups, per, len(chosen), taps).transpose(0, 2, 1, 3)
        ).reshape(self.groups, len(chosen), per * taps)


@dataclass(eq=False)
class Moments:
    """Running sums of one layer; see the head of this file."""

    patches: Patches
    both: bool
    count: float = 0.0
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    mean_rounded: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    square: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    cross: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def add(self, x: NDArray, rounded: NDArray, image: int, seed: int) -> None:
        chosen = self.patches.choose(image, seed)
        p = self.patches.of(x, chosen)
        q = self.patches.of(rounded, chosen) if self.both else p
        first = not self.count
        self.count += len(chosen)
        self.mean = p.sum(1, dtype=np.float64) + (0 if first else self.mean)
        self.square = (q.swapaxes(1, 2) @ q).astype(np.float64) + (0 if first else self.square)
        if self.both:
            self.mean_rounded = q.sum(1, dtype=np.float64) + (0 if first else self.mean_rounded)
            self.cross = (p.swapaxes(1, 2) @ q).astype(np.float64) + (0 if first else self.cross)

    def centred(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """mean, mean', A, C."""
        mean = self.mean / self.count
        other = self.mean_rounded / self.count if self.both else mean
        a = self.square / self.count - other[:, :, None] * other[:, None, :]
        c = self.cross / self.count - mean[:, :, None] * other[:, None, :] if self.both else a
        return mean, other, a, c
