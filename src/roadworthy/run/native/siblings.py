"""Sibling convolutions, which read the same input in the same way, as one convolution with the channels of all.

A kernel computes 16 or 64 output channels at a time, so that two narrow convolutions cost more than one wide one. The
merged result M holds the results side by side. Often one of them, B, is part of a Concat Z, as in a cross-stage block:

    Z = concat(P, B)        A, B siblings

Then P, B and A lie side by side in one buffer W: Z is its front, M its back, and still nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from roadworthy.model.encoding import Encoding
from roadworthy.run.native.moves import taken
from roadworthy.run.native.network import Array, Link, Network, Operand, Step, is_image
from roadworthy.run.native.plan import ARENA, Op

_COUT = 9
_PER_CHANNEL = (0, 1, 2, 3, 6, 7)
"""Blobs with one entry per output channel; the table and the polynomial are shared."""


def merge_siblings(network: Network) -> int:
    """Merge what can be merged; the number of convolutions saved."""
    groups: dict[tuple, list[Step]] = {}
    for item in network.items:
        if isinstance(item, Step) and item.op == Op.CONV and item.output.form == "image" and item.output.part is None:
            own = (*item.attributes[:_COUT], *item.attributes[_COUT + 1 :])
            x = item.inputs[0]
            key = (x.array, x.border, x.part, own, item.blobs[4], item.blobs[5], item.output.array.dims[2:])
            groups.setdefault(key, []).append(item)
    return sum(_merge(network, steps) for steps in groups.values() if len(steps) > 1)


def _merge(network: Network, steps: list[Step]) -> int:
    parts: dict[Array, list[Link]] = {}
    for item in network.items:
        if isinstance(item, Link) and item.backward is not None:
            parts.setdefault(item.source, []).append(item)
    free = [s for s in steps if s.output.array not in parts and s.output.array.space == ARENA]
    ends = [s for s in steps if s not in free]
    for step in ends:
        whole = _whole(network, parts, step.output.array)
        if whole is not None and free:
            array, first = whole
            _side_by_side(network, [step, *free] if not first else [*free, step], array, first)
            return len(free)
    if len(free) > 1:
        _side_by_side(network, free, None, False)
        return len(free) - 1
    return 0


def _whole(network: Network, parts: dict[Array, list[Link]], array: Array) -> tuple[Array, bool] | None:
    """The Concat that an array is the first or last part of, and whether it is the first; None where it is something
    else, or where the Concat is itself part of something."""
    links = parts[array]
    if len(links) != 1 or links[0].forward is not None:
        return None
    whole = links[0].target
    into = [i for i in network.items if isinstance(i, Link) and i.target is whole]
    same_pixels = is_image(whole.dims) and whole.dims[2:] == array.dims[2:]
    if whole.space != ARENA or whole in parts or not same_pixels or any(i.forward is not None for i in into):
        return None
    if array.dims[1] == whole.dims[1] or [i.source for i in into].count(array) != 1:
        return None
    return (whole, into[0].source is array) if array in (into[0].source, into[-1].source) else None


def _side_by_side(network: Network, steps: Sequence[Step], whole: Array | None, whole_behind: bool) -> None:
    arrays = [s.output.array for s in steps]
    counts = [a.dims[1] for a in arrays]
    starts = [0, *accumulate(counts)]
    merged = Array("+".join(a.name for a in arrays), (1, starts[-1], *arrays[0].dims[2:]), _encoding(arrays))
    first = steps[0]
    numbers = (*first.attributes[:_COUT], starts[-1], *first.attributes[_COUT + 1 :])
    blobs = tuple(
        b"".join(s.blobs[k] for s in steps) if k in _PER_CHANNEL else first.blobs[k] for k in range(len(first.blobs))
    )
    name = "+".join(s.name for s in steps)
    made: list[Step | Link] = [Step(Op.CONV, first.inputs, Operand(merged, "image"), numbers, blobs, name)]
    made += [Link(merged, a, taken(1, starts[k], 1, counts[k]), None, a.name) for k, a in enumerate(arrays)]
    if whole is not None:
        shared = counts[-1] if whole_behind else counts[0]
        width = whole.dims[1] + starts[-1] - shared
        wide = Array(f"{whole.name}+", (1, width, *whole.dims[2:]), merged.encoding)
        at_whole, at_merged = (starts[-1] - shared, 0) if whole_behind else (0, whole.dims[1] - shared)
        made.append(Link(merged, wide, None, taken(1, at_merged, 1, starts[-1]), wide.name))
        last = max(k for k, i in enumerate(network.items) if isinstance(i, Link) and i.target is whole)
        host = Link(whole, wide, None, taken(1, at_whole, 1, whole.dims[1]), wide.name)
        network.items.insert(last + 1, host)
    place = min(network.items.index(s) for s in steps)
    kept = [i for k, i in enumerate(network.items) if i not in steps or k == place]
    at = kept.index(network.items[place])
    network.items[:] = [*kept[:at], *made, *kept[at + 1 :]]


def _encoding(arrays: Sequence[Array]) -> Encoding | None:
    """The encoding of arrays side by side: the common one, or one entry per channel."""
    encodings = [a.encoding for a in arrays]
    same = all(e == encodings[0] for e in encodings)
    if encodings[0] is None or (same and encodings[0].axis is None):
        return encodings[0]
    scale = [np.broadcast_to(a.encoding.scale, a.dims[1]) for a in arrays if a.encoding is not None]
    zero = [np.broadcast_to(a.encoding.zero_point, a.dims[1]) for a in arrays if a.encoding is not None]
    return Encoding(np.concatenate(scale), np.concatenate(zero), 8, False, 1)
