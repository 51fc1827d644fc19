"""Views: where the elements of a value lie in a buffer, and how that changes when only their order changes.

Element (i, j, ..) lies at offset + i*strides[0] + j*strides[1] + .., counted in elements. Transpose, Slice and the like
only rewrite these numbers; Reshape does where the merged or split dimensions lie evenly. What cannot be said this way
is None, and then somebody has to copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class View:
    """dims, strides (elements), offset (elements) within a buffer."""

    dims: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def dense(self) -> bool:
        """Whether the elements lie in C order without gaps."""
        return all(d == 1 or s == w for d, s, w in zip(self.dims, self.strides, c_strides(self.dims)))


Map = Callable[[View], View | None]
"""From the view of one value to the view of another that shares its elements, or None."""


def c_strides(dims: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for d in reversed(dims):
        strides.append(step)
        step *= d
    return tuple(reversed(strides))


def contiguous(dims: Sequence[int]) -> View:
    return View(tuple(dims), c_strides(dims))


def transpose(view: View, order: Sequence[int]) -> View:
    return View(tuple(view.dims[k] for k in order), tuple(view.strides[k] for k in order), view.offset)


def inverse(order: Sequence[int]) -> tuple[int, ...]:
    made = [0] * len(order)
    for k, axis in enumerate(order):
        made[axis] = k
    return tuple(made)


def take(view: View, axis: int, start: int, step: int, count: int) -> View:
    """Elements start, start + step, .. along an axis."""
    dims, strides = list(view.dims), list(view.strides)
    offset = view.offset + start * strides[axis]
    dims[axis], strides[axis] = count, strides[axis] * step
    return View(tuple(dims), tuple(strides), offset)


def expand(view: View, dims: Sequence[int]) -> View:
    """NumPy's broadcasting: missing and single dimensions repeat with stride 0."""
    missing = len(dims) - len(view.dims)
    own = (1,) * missing + view.dims
    steps = (0,) * missing + view.strides
    return View(tuple(dims), tuple(0 if o == 1 and d != 1 else s for o, s, d in zip(own, steps, dims)), view.offset)


def reshape(view: View, dims: Sequence[int]) -> View | None:
    """The same elements in C order of the logical indices under other dimensions; None where no strides say that."""
    dims = tuple(dims)
    if math.prod(dims) != view.size:
        return None
    if dims == view.dims:
        return view
    if view.size == 0:
        return None
    old = [(d, s) for d, s in zip(view.dims, view.strides) if d != 1]
    strides: list[int] = []
    k = 0
    n = 0
    while n < len(dims):
        if dims[n] == 1:
            strides.append(0)
            n += 1
            continue
        # The smallest group of old dimensions and of new ones with equal products.
        group, product_old = [old[k]], old[k][0]
        k += 1
        first, product_new = n, dims[n]
        n += 1
        while product_old != product_new:
            if product_old < product_new:
                group.append(old[k])
                product_old *= old[k][0]
                k += 1
            else:
                product_new *= dims[n]
                n += 1
        if any(a[1] != b[0] * b[1] for a, b in pairwise(group)):
            return None
        step = group[-1][1]
        made = []
        for d in reversed(dims[first:n]):
            made.append(step)
            step *= d
        strides.extend(reversed(made))
    # A single dimension may have any stride; the one that an image of that shape has keeps later maps simple.
    for i in range(len(dims) - 1, -1, -1):
        if dims[i] == 1:
            strides[i] = strides[i + 1] * dims[i + 1] if i + 1 < len(dims) else 1
    return View(dims, tuple(strides), view.offset)


def merged(views: Sequence[View], limit: int) -> list[View] | None:
    """Views of one shape with as few dimensions as all of them allow, single ones gone; None if more than `limit`
    remain. The last dimension is kept apart from the others only where strides ask for it."""
    dims = views[0].dims
    kept = [k for k, d in enumerate(dims) if d != 1] or [len(dims) - 1]
    groups: list[list[int]] = [[kept[0]]]
    for k in kept[1:]:
        last = groups[-1][-1]
        if all(v.strides[last] == v.strides[k] * dims[k] for v in views):
            groups[-1].append(k)
        else:
            groups.append([k])
    if len(groups) > limit:
        return None
    shape = tuple(math.prod(dims[k] for k in group) for group in groups)
    return [View(shape, tuple(v.strides[group[-1]] for group in groups), v.offset) for v in views]


def by_stride(view: View) -> tuple[int, ...]:
    """The dimensions from the widest stride to the narrowest; equal ones keep their order, single ones come first."""
    return tuple(sorted(range(len(view.dims)), key=lambda k: (view.dims[k] != 1, -view.strides[k], k)))
