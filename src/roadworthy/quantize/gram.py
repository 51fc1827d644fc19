"""Second moments of what layers read, gathered in one pass over the images, and weights as stacks of matrices.

Of every layer and image some output pixels are drawn (from the image's number alone); the patches x under them enter

    mean = sum x / n      A = sum x x^T / n

per group of a convolution. Memory does not grow with the images: layers whose moments would take more than MOST_HELD
numbers together are gathered in several passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.model import Model
from roadworthy.model.units import Unit
from roadworthy.quantize.calibrate import tap_readers
from roadworthy.run import arithmetic as ar

F64 = NDArray[np.float64]

MOST_INPUTS = 6144
"""Widest group of inputs (K): its moments take K * K * 8 bytes."""
WORK = 1 << 25
"""Multiplications that one layer's moments may cost per image, as far as MIN_PATCHES allows."""
MIN_PATCHES, MAX_PATCHES = 128, 1024
MOST_HELD = 1 << 25
"""Most numbers of moments that are gathered at a time: 256 MB."""


def refusal(unit: Unit) -> str | None:
    """Why the weights of a unit are not one matrix per group, as the end of a sentence; None where they are."""
    weight, anchor = _weight(unit), unit.anchor
    if not np.isfinite(weight).all():
        return "its weight is not finite"
    if anchor.op_type == "MatMul" and weight.ndim != 2:
        return f"its weight has {weight.ndim} dimensions"
    if anchor.op_type in ("Conv", "ConvTranspose") and weight.ndim != 4:
        return f"it is a convolution over {weight.ndim - 2} dimensions"
    if anchor.op_type == "ConvTranspose":
        kernel = tuple(weight.shape[2:])
        if tuple(g.attribute(anchor, "strides", (1, 1))) != kernel or set(g.attribute(anchor, "dilations", (1, 1))) != {
            1
        }:
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
        weight, shape = _weight(unit), g.static_shape(unit.input)
        assert shape is not None
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

    def choose(self, image: int) -> NDArray[np.int64]:
        """Which output pixels (or rows of a matrix) of the image with this number are looked at."""
        if self.count == self.positions:
            return np.arange(self.positions)
        return np.sort(np.random.default_rng(image).choice(self.positions, self.count, replace=False))

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
        return np.ascontiguousarray(found.reshape(self.groups, per, len(chosen), taps).transpose(0, 2, 1, 3)).reshape(
            self.groups, len(chosen), per * taps
        )


@dataclass(eq=False)
class Moments:
    """Running sums of one layer: how many patches, their sum (groups, K), their products' sum (groups, K, K)."""

    patches: Patches
    count: int = 0
    total: F64 = field(default_factory=lambda: np.zeros(0))
    products: F64 = field(default_factory=lambda: np.zeros(0))

    def add(self, x: NDArray, image: int) -> None:
        """One image's input of the layer, as the float network makes it."""
        drawn = self.patches.of(x, self.patches.choose(image))
        total = drawn.sum(1, dtype=np.float64)
        # In float64, then rounded: how a matrix product is split among threads would else show in the last bits, and a
        # weight between two codes would go one way or the other.
        exact = drawn.astype(np.float64)
        products = (exact.swapaxes(1, 2) @ exact).astype(np.float32).astype(np.float64)
        if self.count:
            total += self.total
            products += self.products
        self.total, self.products = total, products
        self.count += drawn.shape[1]

    @property
    def mean(self) -> F64:
        """(groups, K) mean input."""
        return self.total / self.count

    def moment(self, centred: bool) -> F64:
        """(groups, K, K) mean product of two inputs, or their covariance."""
        found = self.products / self.count
        return found - self.mean[:, :, None] * self.mean[:, None, :] if centred else found


def gather(
    model: Model,
    layers: Sequence[Unit],
    tensors: Callable[[], Iterable[NDArray]],
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[Unit, Moments]]:
    """Every unit with the moments of its input in the float network, in the order given.

    tensors: makes the inputs of the model, one image each; asked again for every pass.   progress: images seen so far.
    Raises InputError when there is no image, or when an input becomes NaN or infinite (naming the layer).
    """
    seen = 0
    for part in _parts(layers):
        held = [Moments(Patches(u)) for u in part]
        readers = tap_readers(model, list(dict.fromkeys(n for u in part if (n := _name(u)) != model.input_name)))
        number = 0
        for number, tensor in enumerate(tensors(), 1):
            tensor = np.ascontiguousarray(tensor, np.float32)
            _add({model.input_name: tensor}, part, held, number)
            for reader in readers:
                _add(reader.read(tensor), part, held, number)
            seen += 1
            if progress:
                progress(seen)
        if not number:
            raise InputError("there are no images to learn the rounding from; hand in a folder that holds some")
        while held:  # freed one by one
            unit, moments = part.pop(0), held.pop(0)
            if not np.isfinite(moments.products).all():
                raise InputError(
                    f"the input of the layer {unit.name!r} of {model.source} becomes NaN or infinite; check the"
                    " preprocessing, or the model"
                )
            yield unit, moments


def _name(unit: Unit) -> str:
    return str(unit.input.name)


def _add(found: Mapping[str, NDArray], part: Sequence[Unit], held: Sequence[Moments], image: int) -> None:
    for unit, moments in zip(part, held):
        if _name(unit) in found:
            moments.add(found[_name(unit)], image)


def _parts(layers: Sequence[Unit]) -> Iterator[list[Unit]]:
    """Layers in order, at most MOST_HELD numbers of moments (or one layer) at a time."""
    part: list[Unit] = []
    held = 0
    for unit in layers:
        rows = to_rows(unit, _weight(unit))
        size = rows.shape[0] * rows.shape[2] ** 2
        if part and held + size > MOST_HELD:
            yield part
            part, held = [], 0
        part.append(unit)
        held += size
    if part:
        yield part


def _weight(unit: Unit) -> NDArray:
    array = g.constant(unit.weight)
    assert array is not None
    return array
