"""Space-to-depth in front of a convolution is a convolution with a larger stride.

Slices x[:, :, i::b, j::b] for all phases (i, j), joined along the channels and convolved with k x k at stride s, read
the same pixels as one convolution of kernel b*k, stride b*s and padding b*p on x itself:

    w'[o, b*ky + i, b*kx + j, c] = w[o, ky, kx, part(i, j) * C + c]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from roadworthy.model import graph as g
from roadworthy.model.units import Unit
from roadworthy.run.arithmetic import Windows
from roadworthy.run.native.network import Array
from roadworthy.run.native.translate import Translator

Focus = tuple[Array, Windows, NDArray]
_Phase = tuple[g.Value, int, int, int, int]


def space_to_depth_source(tr: Translator, unit: Unit, x: Array, at: Windows, weights: NDArray) -> Focus | None:
    """The image in front of a space-to-depth, the windows on it and the rearranged weights; None if there is none."""
    phases = _phases(unit)
    if phases is None or at.dilations != (1, 1) or g.attribute(unit.anchor, "group", 1) != 1:
        return None
    source, (b, _) = phases[0][0], phases[0][3:]
    shape = g.static_shape(source)
    if shape is None or len(shape) != 4 or shape[0] != 1 or shape[2] % b or shape[3] % b:
        return None
    if {(p[1], p[2]) for p in phases} != {(i, j) for i in range(b) for j in range(b)} or len(phases) != b * b:
        return None
    if any(p[0] is not source or p[3:] != (b, b) for p in phases):
        return None
    # Codes must pass through unchanged on the way: whatever has an encoding there has the source's.
    own = tr.encoding(source)
    if any(tr.encoding(v) not in (None, own) for v in _between(unit.input)):
        return None
    made_x = tr.float_array(source) if x.encoding is None else tr.array(source)
    if made_x.encoding != x.encoding:
        return None
    cout, kh, kw, _ = weights.shape
    channels = shape[1]
    made = np.zeros((cout, kh * b, kw * b, channels), weights.dtype)
    for k, (_, i, j, _, _) in enumerate(phases):
        made[:, i::b, j::b] = weights[..., k * channels : (k + 1) * channels]
    windows = Windows(_times(at.kernel, b), _times(at.strides, b), (1, 1), _times(at.pads_begin, b),
                      _times(at.pads_end, b), at.size, (0, 0))  # fmt: skip
    return made_x, windows, made


def _between(value: g.Value) -> list[g.Value]:
    """The value and all values behind the Slices and the Concat that make it."""
    found, stack = [], [value]
    while stack:
        last = stack.pop()
        node = last.producer()
        if node is not None and node.op_type in ("Concat", "Slice"):
            found.append(last)
            stack.extend(v for v in (node.inputs if node.op_type == "Concat" else node.inputs[:1]) if v is not None)
    return found


def _times(pair: tuple[int, int], b: int) -> tuple[int, int]:
    return pair[0] * b, pair[1] * b


def _phases(unit: Unit) -> list[_Phase] | None:
    """(source, first row, first column, row step, column step) of every part of the Concat in front of a layer."""
    concat = unit.input.producer()
    if concat is None or concat.op_type != "Concat" or g.attribute(concat, "axis") not in (1, -3):
        return None
    found = [_phase(v) for v in concat.inputs]
    return None if any(p is None for p in found) else [p for p in found if p is not None]


def _phase(value: g.Value | None) -> _Phase | None:
    start, step = [0, 0], [1, 1]
    while value is not None:
        node = value.producer()
        if node is None or node.op_type != "Slice":
            break
        cut = slice_ranges(node)
        if cut is None or any(axis not in (2, 3) for axis in cut):
            return None
        shape = g.static_shape(node.inputs[0])
        for axis, (first, by, count) in cut.items():
            if by < 1 or shape is None or first + by * count < shape[axis]:  # it must reach the end
                return None
            start[axis - 2] = first + by * start[axis - 2]
            step[axis - 2] *= by
        value = node.inputs[0]
    if value is None or step == [1, 1]:
        return None
    return value, start[0], start[1], step[0], step[1]


def slice_ranges(node: g.Node) -> dict[int, tuple[int, int, int]] | None:
    """axis -> (start, step, count) of a Slice with constant bounds; None where they are computed at run time."""
    shape = g.static_shape(node.inputs[0])
    arrays = [g.constant(v) if v is not None else None for v in node.inputs[1:]]
    given = [v is not None for v in node.inputs[1:]]
    if shape is None or any(g_ and a is None for g_, a in zip(given, arrays)):
        return None
    starts, ends = ([int(v) for v in np.asarray(a).reshape(-1)] for a in arrays[:2])
    axes = [int(v) % len(shape) for v in arrays[2]] if len(arrays) > 2 and arrays[2] is not None else range(len(starts))
    steps = [int(v) for v in arrays[3]] if len(arrays) > 3 and arrays[3] is not None else [1] * len(starts)
    cut = {}
    for start, end, axis, step in zip(starts, ends, axes, steps):
        length = shape[axis]
        stop = None if step < 0 and end < -length else end
        taken = range(length)[slice(start, stop, step)]
        cut[axis] = (taken.start if len(taken) else 0, step, len(taken))
    return cut
