"""Placement: which arrays share a buffer and where in it they lie. Nothing is copied that a view can say.

Every link is first a wish. Walking backwards, the inputs of a Concat (and what is reshaped into a result) are hosted by
what they become part of; everything else that only changes places is hosted by what it comes from. An array that nobody
hosts is a root: it gets a buffer, laid out in the order of dimensions in which it comes to be. Then the views are found
from the roots down. Where a view cannot be said in strides, or where an operation cannot write or read it (channels
not contiguous, no border around it), a copy takes the wish's place, and the views are worked out again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from roadworthy.run.native.network import NO_BORDER, Array, Border, Form, Link, Network, Operand, Step, is_image
from roadworthy.run.native.plan import ARENA, Op
from roadworthy.run.native.views import View, by_stride, contiguous, expand, inverse, reshape, transpose

_IMAGE_ORDER = (0, 2, 3, 1)


@dataclass(frozen=True)
class Layout:
    """A root's buffer in elements.   image: stored as (H,W,C) with `pixel` elements from one pixel to the next."""

    view: View
    elements: int
    image: bool = False
    pixel: int = 0
    border: Border = NO_BORDER


@dataclass
class Placement:
    """Where every array lies: its root, its view in logical dims, and the layouts of the roots."""

    network: Network
    borders: dict[Array, Border] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    host: dict[Array, tuple[Link, bool]] = field(default_factory=dict)
    layouts: dict[Array, Layout] = field(default_factory=dict)
    places: dict[Array, tuple[Array, View]] = field(default_factory=dict)
    order: dict[Array, View] = field(default_factory=dict)
    makers: dict[Array, list[Step | Link]] = field(default_factory=dict)
    written: dict[Array, list[Array | None]] = field(default_factory=dict)

    def root(self, array: Array) -> Array:
        return self.places[array][0]

    def view(self, array: Array) -> View:
        return self.places[array][1]

    def hosted(self, link: Link) -> bool:
        """Whether the link holds without a copy: as a wish, or because both sides came to lie where it wants them."""
        if any(a in self.host and self.host[a][0] is link for a in (link.source, link.target)):
            return True
        if self.root(link.source) is not self.root(link.target):
            return False
        pair = copy_views(self, link)
        return pair is not None and pair[0] == pair[1]

    def aligned(self, array: Array) -> bool:
        """Whether the array is a range of channels of a root stored as an image, and so has the root's border."""
        root, view = self.places[array]
        layout = self.layouts[root]
        if not (layout.image and is_image(array.dims) and array.dims[2:] == root.dims[2:]):
            return False
        same_steps = all(array.dims[k] == 1 or view.strides[k] == layout.view.strides[k] for k in (2, 3))
        inside = 0 <= view.offset - layout.view.offset < max(layout.pixel, 1)
        return same_steps and inside and (array.dims[1] == 1 or view.strides[1] == 1)

    def border(self, array: Array) -> Border:
        return self.layouts[self.root(array)].border if self.aligned(array) else NO_BORDER

    def may_have_border(self, root: Array) -> bool:
        """Whoever writes into a buffer also fills its border, so everything written there must be whole pixels."""
        return (
            root.space == ARENA
            and self.layouts[root].image
            and all(a is not None and self.aligned(a) for a in self.written[root])
        )


def place(network: Network) -> Placement:
    """Decide where every array lies; inserts the copies that are needed into the network."""
    failed: set[int] = set()
    borders: dict[Array, Border] = {}
    copies: dict[tuple[Array, str, tuple[int, ...]], Array] = {}
    while True:
        made = Placement(network, borders, failed)
        made.host = _wishes(network, failed)
        if _located(made) and _writable(made) and _readable(made, copies):
            return made


def _wishes(network: Network, failed: set[int]) -> dict[Array, tuple[Link, bool]]:
    """array -> the link that hosts it, and whether it is the link's source (part of what comes after it)."""
    host: dict[Array, tuple[Link, bool]] = {}
    for link in reversed(network.items):
        if isinstance(link, Step) or id(link) in failed:
            continue
        source, target = link.source, link.target
        onward = target in host or target.space != ARENA or link.forward is None
        if link.backward is not None and onward and source.space == ARENA and source not in host:
            host[source] = (link, True)
        elif link.forward is not None and target.space == ARENA and target not in host:
            host[target] = (link, False)
    return host


def _located(made: Placement) -> bool:
    """Work out all views; false where a wish failed."""
    for item in made.network.items:
        made.makers.setdefault(item.output.array if isinstance(item, Step) else item.target, []).append(item)
    arrays: dict[Array, None] = dict.fromkeys([*made.network.inputs, *made.network.outputs])
    for item in made.network.items:
        pair = (
            [*(o.array for o in item.inputs), item.output.array]
            if isinstance(item, Step)
            else [item.source, item.target]
        )
        arrays.update(dict.fromkeys(pair))
    before = len(made.failed)
    for array in arrays:
        _locate(made, array)
    if len(made.failed) != before:
        return False
    made.written = {a: [] for a in arrays if a not in made.host}
    for item in made.network.items:
        if isinstance(item, Step):
            if not item.output.inside:
                whole = item.output.part is None and item.output.form in ("image", "pixels")
                made.written[made.root(item.output.array)].append(item.output.array if whole else None)
        elif not made.hosted(item):
            if _needs_a_middle(made, item):
                return False
            made.written[made.root(item.target)].append(_copied(made, item))
    return True


def _copied(made: Placement, link: Link) -> Array | None:
    """The array whose border a copy fills: the target, or its source where that is a range of its channels."""
    if link.backward is None:
        return link.target
    root, target = made.places[link.target]
    part = link.backward(target)
    if part is None:
        return link.target
    if not is_image(part.dims):
        return None
    probe = Array("", part.dims, link.target.encoding)
    made.places[probe] = (root, part)
    return probe


def _locate(made: Placement, array: Array) -> tuple[Array, View]:
    found = made.places.get(array)
    if found is not None:
        return found
    if array in made.host:
        link, is_source = made.host[array]
        other = link.target if is_source else link.source
        root, view = _locate(made, other)
        change = link.backward if is_source else link.forward
        assert change is not None
        own = change(view)
        if own is None:
            made.failed.add(id(link))
        else:
            made.places[array] = (root, own)
            return root, own
    layout = made.layouts[array] = _layout(made, array)
    made.places[array] = (array, layout.view)
    return made.places[array]


def dense(dims: Sequence[int], order: Sequence[int]) -> View:
    """Without gaps, the last of `order` innermost."""
    return transpose(contiguous([dims[k] for k in order]), inverse(order))


def _natural(made: Placement, array: Array) -> View:
    """How the array would lie if it were made without knowing where it goes: decides the order of dimensions."""
    found = made.order.get(array)
    if found is None:
        # Deep networks: work out what comes first without recursion through the whole graph.
        stack = [array]
        while stack:
            last = stack[-1]
            open_ones = [a for a in _ancestors(made, last) if a not in made.order]
            if open_ones:
                stack.extend(open_ones[:1])
            else:
                made.order[stack.pop()] = _natural_of(made, last)
        found = made.order[array]
    return found


def _ancestors(made: Placement, array: Array) -> list[Array]:
    if array.space != ARENA or array.ordered:
        return []
    makers = made.makers.get(array, [])
    if not makers:
        return []
    first = makers[0]
    if isinstance(first, Step):
        return [] if first.output.form in ("image", "rows", "flat") else list(array.like[:1])
    return [first.source]


def _natural_of(made: Placement, array: Array) -> View:
    plain = dense(array.dims, _IMAGE_ORDER) if is_image(array.dims) else contiguous(array.dims)
    if array.space != ARENA or array.ordered:
        return contiguous(array.dims)
    before, makers = _ancestors(made, array), made.makers.get(array)
    form = makers[0].output.form if makers and isinstance(makers[0], Step) else None
    if form in ("rows", "flat"):
        return contiguous(array.dims)
    if not before:
        return plain
    if before[0].space != ARENA and isinstance(made.makers[array][0], Step):
        return plain  # a plane-wise image that comes in becomes one of pixels
    known = made.order[before[0]]
    first = made.makers[array][0]
    if isinstance(first, Link) and first.forward is not None:
        return first.forward(known) or plain
    if len(known.dims) != len(array.dims):
        return plain
    order = by_stride(known)
    if form == "last":
        order = (*(k for k in order if k != len(order) - 1), len(order) - 1)
    return dense(array.dims, order)


def _layout(made: Placement, array: Array) -> Layout:
    if array.space != ARENA:
        return Layout(contiguous(array.dims), array.size)
    order = by_stride(_natural(made, array))
    dims = array.dims
    wide = [k for k in order if dims[k] != 1]
    if not (is_image(dims) and wide == [k for k in (2, 3, 1) if dims[k] != 1]):
        return Layout(dense(dims, order), array.size)
    _, c, h, w = dims
    pixel = _pixel(c)
    border = top, left, bottom, right = made.borders.get(array, NO_BORDER)
    row = (w + left + right) * pixel
    view = View(dims, ((h + top + bottom) * row, 1, row, pixel), top * row + left * pixel)
    return Layout(view, (h + top + bottom) * row, True, pixel, border)


def _pixel(c: int) -> int:
    """Elements from one pixel to the next: a multiple of 4, as kernels multiply 4 codes at a time; fewer stay dense, as
    in a stem. A multiple of 16 was measured to be slower (24 channels: 4 %), as more memory is touched."""
    return c if c < 4 else -(-c // 4) * 4


def adapt(operand: Operand, view: View) -> View | None:
    """The view as the operation wants it (dims of the operation, not of the graph); None where it cannot be had."""
    if operand.part is not None:
        part = operand.part(view)
        if part is None:
            return None
        view = part
    if operand.dims is not None and operand.dims != view.dims:
        view = expand(view, operand.dims)
    if operand.form in ("image", "pixels"):
        dims, strides = view.dims, view.strides
        return View((dims[2], dims[3], dims[1]), (strides[2], strides[3], strides[1]), view.offset)
    if operand.form == "rows":
        return reshape(view, (1, math.prod(view.dims[:-1]), view.dims[-1]))
    if operand.form == "flat":
        return View((1, 1, view.size), (view.size, view.size, 1), view.offset) if view.dense else None
    return view


def _fits(operand: Operand, view: View) -> bool:
    own = adapt(operand, view)
    if own is None:
        return False
    if operand.form in ("pixels", "free", "whole"):
        return True
    return own.dims[-1] == 1 or own.strides[-1] == 1


def _writable(made: Placement) -> bool:
    before = len(made.failed)
    for item in made.network.items:
        if isinstance(item, Step) and not _fits(item.output, made.view(item.output.array)):
            assert item.output.array in made.host, f"{item.name}: no layout of the result suits it"
            made.failed.add(id(made.host[item.output.array][0]))
    return len(made.failed) == before


def _readable(made: Placement, copies: dict[tuple[Array, str, tuple[int, ...]], Array]) -> bool:
    """Whether every step can read its operands; borders grow and copies are inserted where not."""
    items: list[Step | Link] = []
    done: set[Array] = set()
    changed = False
    for item in made.network.items:
        if isinstance(item, Step):
            done.add(item.output.array)
            for operand in item.inputs:
                if not _reads(made, operand):
                    changed = True
                    key = (operand.array, operand.form, operand.dims or operand.array.dims)
                    if copies.get(key) not in done:
                        copies[key] = _private(operand)
                        form: Form = "pixels" if operand.form == "image" else "free"
                        source = Operand(operand.array, form, NO_BORDER, operand.dims)
                        items.append(Step(Op.COPY, [source], Operand(copies[key], form), name=item.name))
                        done.add(copies[key])
                    operand.array, operand.dims = copies[key], None
                elif operand.border != NO_BORDER:
                    changed |= _grow(made, operand)
        items.append(item)
    made.network.items = items
    return not changed


def _private(operand: Operand) -> Array:
    array = operand.array
    return Array(f"{array.name}.copy", operand.dims or array.dims, array.encoding, ordered=operand.form != "image")


def _reads(made: Placement, operand: Operand) -> bool:
    root, view = made.places[operand.array]
    if not _fits(operand, view):
        return False
    # Kernels may read whole vectors over the end: only our own memory has room for that.
    if operand.form in ("image", "rows", "flat") and root.space != ARENA:
        return False
    return operand.border == NO_BORDER or (made.aligned(operand.array) and made.may_have_border(root))


def _grow(made: Placement, operand: Operand) -> bool:
    root = made.root(operand.array)
    known = made.borders.get(root, NO_BORDER)
    top, left, bottom, right = (max(a, b) for a, b in zip(known, operand.border))
    made.borders[root] = (top, left, bottom, right)
    return made.borders[root] != known


def copy_views(made: Placement, link: Link) -> tuple[View, View] | None:
    """Views of one shape for source and target of a link that has become a copy; None where there are none."""
    source, target = made.view(link.source), made.view(link.target)
    if link.backward is not None:
        part = link.backward(target)
        if part is not None:
            return source, part
    if link.forward is not None:
        seen = link.forward(source)
        if seen is not None:
            return seen, target
    return None


def _needs_a_middle(made: Placement, link: Link) -> bool:
    """A Reshape of one odd order into another goes through an array in C order; true when one was inserted."""
    if copy_views(made, link) is not None:
        return False
    middle = Array(f"{link.target.name}.ordered", link.source.dims, link.source.encoding, ordered=True)
    at = made.network.items.index(link)
    step = Step(Op.COPY, [Operand(link.source, "free")], Operand(middle, "free"), name=link.name)
    made.network.items[at : at + 1] = [step, Link(middle, link.target, link.forward, link.backward, link.name)]
    return True
