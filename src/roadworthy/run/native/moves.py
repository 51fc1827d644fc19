"""Operators that only move values: views wherever strides can say it, copies elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding
from roadworthy.run.arithmetic import NONE, Operation, requant_table
from roadworthy.run.native.focus import slice_ranges
from roadworthy.run.native.network import Array, Operand, constant_array, is_image
from roadworthy.run.native.plan import Op
from roadworthy.run.native.translate import Translator, elementwise_form, shape_of, unsupported
from roadworthy.run.native.views import Map, View, inverse, reshape, take, transpose


def _source(tr: Translator, node: g.Node, moves_channels: bool = True) -> Array:
    """The first input; in float where its scales per channel would not follow."""
    x = tr.array(node.inputs[0])
    if moves_channels and x.encoding is not None and x.encoding.axis is not None:
        return tr.float_array(node.inputs[0])
    return x


def _moved(tr: Translator, value: g.Value, x: Array, forward: Map | None, backward: Map | None) -> None:
    y = Array(str(value.name), shape_of(value), x.encoding)
    tr.settle(value, tr.link(x, y, forward, backward, str(value.name)))


def shaped(dims: Sequence[int]) -> Map:
    def change(view: View) -> View | None:
        return reshape(view, dims)

    return change


def ordered(order: Sequence[int]) -> Map:
    def change(view: View) -> View:
        return transpose(view, order)

    return change


def taken(axis: int, start: int, step: int, count: int) -> Map:
    def change(view: View) -> View:
        return take(view, axis, start, step, count)

    return change


def then(*maps: Map) -> Map:
    def change(view: View) -> View | None:
        now: View | None = view
        for each in maps:
            if now is None:
                return None
            now = each(now)
        return now

    return change


def move_identity(tr: Translator, operation: Operation) -> None:
    node = operation.nodes[0]
    tr.settle(node.outputs[0], tr.array(node.inputs[0]))


def move_reshape(tr: Translator, operation: Operation) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    node = operation.nodes[0]
    x, out = _source(tr, node), node.outputs[0]
    _moved(tr, out, x, shaped(shape_of(out)), shaped(x.dims))


def move_transpose(tr: Translator, operation: Operation) -> None:
    node = operation.nodes[0]
    x = _source(tr, node)
    order = tuple(g.attribute(node, "perm", None) or range(len(x.dims))[::-1])
    raw = tr.raw.get(str(node.inputs[0].name)) if node.inputs[0] is not None else None
    if raw is not None and x.encoding is not None and x.encoding == tr.encoding(node.outputs[0]):
        x = raw  # turned first and quantized then: the codes are the same, and go straight where they are read
    _moved(tr, node.outputs[0], x, ordered(order), ordered(inverse(order)))


def move_slice(tr: Translator, operation: Operation) -> None:
    node = operation.nodes[0]
    cut = slice_ranges(node)
    if cut is None:
        raise unsupported(node, "its bounds are computed at run time")
    if any(count == 0 for _, _, count in cut.values()):
        raise unsupported(node, "its result is empty")
    x, out = _source(tr, node), node.outputs[0]
    backwards = {axis: rng for axis, rng in cut.items() if rng[1] < 0}
    if backwards:
        axis, (start, step, count) = next(iter(backwards.items()))
        if len(cut) > 1:
            raise unsupported(node, "it reverses one axis and cuts others")
        tr.settle(out, picked(tr, x, axis, [start + step * k for k in range(count)], str(out.name)))
        return
    _moved(tr, out, x, then(*(taken(axis, *rng) for axis, rng in cut.items())), None)


def move_split(tr: Translator, operation: Operation) -> None:
    node = operation.nodes[0]
    x = _source(tr, node)
    axis, start = g.attribute(node, "axis", 0) % len(x.dims), 0
    for value in node.outputs:
        count = shape_of(value)[axis]
        if value.name:
            _moved(tr, value, x, taken(axis, start, 1, count), None)
        start += count


def move_gather(tr: Translator, operation: Operation) -> None:
    node = operation.nodes[0]
    indices, x, out = g.constant(node.inputs[1]), _source(tr, node), node.outputs[0]
    if indices is None:
        raise unsupported(node, "its indices are computed at run time")
    axis = g.attribute(node, "axis", 0) % len(x.dims)
    places = [int(v) % x.dims[axis] for v in indices.reshape(-1)]
    step = _even(places)
    if step:
        _moved(tr, out, x, then(taken(axis, places[0], step, len(places)), shaped(shape_of(out))), None)
        return
    made = picked(tr, x, axis, places, f"{out.name}.picked")
    _moved(tr, out, made, shaped(shape_of(out)), shaped(made.dims))


def _even(places: Sequence[int]) -> int:
    """The step of evenly rising places, else 0."""
    steps = {b - a for a, b in pairwise(places)} or {1}
    return max(min(steps), 0) if len(steps) == 1 else 0


def picked(tr: Translator, x: Array, axis: int, places: Sequence[int], name: str) -> Array:
    """The given places along an axis: one view if they are evenly spaced, a GATHER of channels, else part by part."""
    dims = tuple(len(places) if k == axis else d for k, d in enumerate(x.dims))
    y = Array(name, dims, x.encoding, like=(x,))
    step = _even(places)
    if step:
        return tr.link(x, y, taken(axis, places[0], step, len(places)), None, name)
    if axis == 1 and is_image(dims):
        blob = np.asarray(places, np.int32).tobytes()
        return tr.network.step(Op.GATHER, [Operand(x, "image")], Operand(y, "image"), (), (blob,), name)
    start = 0
    while start < len(places):
        count = 1
        while start + count < len(places) and places[start + count] == places[start] + count:
            count += 1
        cut = tuple(count if k == axis else d for k, d in enumerate(x.dims))
        part = Array(f"{name}.{start}", cut, x.encoding)
        tr.link(x, part, taken(axis, places[start], 1, count), None, name)
        tr.link(part, y, None, taken(axis, start, 1, count), name)
        start += count
    return y


def move_depth_to_space(tr: Translator, operation: Operation) -> None:
    node = operation.nodes[0]
    x, b = _source(tr, node), g.attribute(node, "blocksize")
    _, c, h, w = x.dims
    if g.attribute(node, "mode", "DCR") == "DCR":
        _through(tr, node.outputs[0], x, (b, b, c // b**2, h, w), (2, 3, 0, 4, 1))
    else:
        _through(tr, node.outputs[0], x, (c // b**2, b, b, h, w), (0, 3, 1, 4, 2))


def move_space_to_depth(tr: Translator, operation: Operation) -> None:
    node = operation.nodes[0]
    x, b = _source(tr, node), g.attribute(node, "blocksize")
    _, c, h, w = x.dims
    _through(tr, node.outputs[0], x, (c, h // b, b, w // b, b), (2, 4, 0, 1, 3))


def _through(tr: Translator, out: g.Value, x: Array, inner: tuple[int, ...], order: tuple[int, ...]) -> None:
    """Two links with the split and reordered dims between them, so that a copy, if one is needed, has dims for it."""
    outer = tuple(inner[k] for k in order)
    middle = Array(f"{out.name}.blocks", outer, x.encoding)
    back = then(ordered(inverse(order)), shaped(x.dims))
    tr.link(x, middle, then(shaped(inner), ordered(order)), back, str(out.name))
    _moved(tr, out, middle, shaped(shape_of(out)), shaped(outer))


def move_cast(tr: Translator, operation: Operation) -> None:
    node = operation.nodes[0]
    if g.attribute(node, "to") != 1:
        raise unsupported(node, "it casts to something else than float32")
    move_identity(tr, operation)


def move_expand(tr: Translator, operation: Operation) -> None:
    node = operation.nodes[0]
    x, out = _source(tr, node), node.outputs[0]
    dims = shape_of(out)
    y = Array(str(out.name), dims, x.encoding)
    form = elementwise_form(dims)
    tr.settle(out, tr.copy(Operand(x, form, dims=dims), Operand(y, form), str(out.name)))


def concat(tr: Translator, operation: Operation) -> None:
    """Every input is written where it belongs in the result; inputs with other codes are requantized into it."""
    node, out = operation.nodes[0], operation.output
    dims, wanted = shape_of(out), tr.encoding(out)
    axis, start = g.attribute(node, "axis") % len(dims), 0
    sources = [v for v in node.inputs if v is not None]
    encodings = {tr.array(v).encoding for v in sources}
    common = wanted
    if wanted is None and len(encodings) == 1:
        common = next(iter(encodings))  # still codes: floats only when somebody reads floats
    if common is not None and common.axis is not None:
        common = None
    y = Array(str(out.name), dims, common)
    for k, value in enumerate(sources):
        part = _part(tr, value, common, operation, f"{out.name}.{k}")
        tr.link(part, y, None, taken(axis, start, 1, part.dims[axis]), str(out.name))
        start += part.dims[axis]
    tr.settle(out, y)


def _part(tr: Translator, value: g.Value, wanted: Encoding | None, operation: Operation, name: str) -> Array:
    x = tr.array(value)
    if wanted is None:
        return tr.float_array(value)
    if operation.form == "concat":
        assert x.encoding is not None
        if x.encoding == wanted and operation.clamp == NONE:
            return x
        return tr.table(x, requant_table(x.encoding, wanted, operation.clamp), wanted, name)
    return x if x.encoding == wanted else tr.coded(x, wanted, name)


def pad(tr: Translator, operation: Operation) -> None:
    """The source is written into the middle of the result, constants around it; edges and mirrors are index tables."""
    node = operation.nodes[0]
    x, out = _source(tr, node), node.outputs[0]
    dims, mode = shape_of(out), g.attribute(node, "mode", "constant")
    before = pads_before(node, len(x.dims))
    after = [d - s - b for d, s, b in zip(dims, x.dims, before)]
    if any(b < 0 for b in (*before, *after)):
        raise unsupported(node, "it crops")
    if mode != "constant":
        _pad_by_index(tr, node, x, before, dims, mode)
        return
    fill = g.constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.zeros(1)
    if fill is None:
        raise unsupported(node, "its value is computed at run time")
    number = np.asarray(fill, np.float32).reshape(-1)[:1] if fill.size else np.zeros(1, np.float32)
    if x.encoding is not None:
        # Only what the codes say exactly can stay codes; otherwise the operation is one of floats.
        exact = x.encoding.fake(number) == number
        if operation.form == "float" and not exact.all():
            x = tr.float_array(node.inputs[0])
    data = number if x.encoding is None else x.encoding.quantize(number)
    constant = constant_array(f"{out.name}.fill", data, x.encoding)
    y = x
    for axis in [k for k in range(len(dims)) if before[k] or after[k]]:
        wide = tuple(dims[k] if k == axis else d for k, d in enumerate(y.dims))
        made = Array(f"{out.name}.{axis}", wide, x.encoding, like=(y,))
        tr.link(y, made, None, taken(axis, before[axis], 1, y.dims[axis]), str(out.name))
        for start, count in ((0, before[axis]), (before[axis] + y.dims[axis], after[axis])):
            if count:
                piece = tuple(count if k == axis else d for k, d in enumerate(wide))
                target = Operand(made, "free", part=taken(axis, start, 1, count))
                tr.copy(Operand(constant, "free", dims=piece), target, str(out.name))
        y = made
    tr.settle(out, y)


def pads_before(node: g.Node, rank: int) -> list[int]:
    amounts = g.constant(node.inputs[1])
    given = node.inputs[3] if len(node.inputs) > 3 else None
    axes = g.constant(given)
    if amounts is None or (given is not None and axes is None):
        raise unsupported(node, "its amounts are computed at run time")
    places = range(rank) if axes is None else [int(a) % rank for a in axes]
    before = [0] * rank
    for k, axis in enumerate(places):
        before[axis] = int(amounts[k])
        if int(amounts[k + len(places)]) < 0:
            before[axis] = -1
    return before


def _pad_by_index(
    tr: Translator, node: g.Node, x: Array, before: Sequence[int], dims: Sequence[int], mode: str
) -> None:
    if not is_image(dims) or dims[1] != x.dims[1] or mode not in ("reflect", "edge", "wrap"):
        raise unsupported(node, f"it pads by {mode}, or not over height and width")
    tables = []
    for axis in (2, 3):
        amounts = (before[axis], dims[axis] - x.dims[axis] - before[axis])
        tables.append(np.pad(np.arange(x.dims[axis]), amounts, mode).astype(np.int32).tobytes())  # type: ignore[call-overload]
    out = node.outputs[0]
    y = Array(str(out.name), tuple(dims), x.encoding)
    tr.settle(out, tr.network.step(Op.RESIZE_NEAREST, [Operand(x, "image")], Operand(y, "image"), (), tables, y.name))
