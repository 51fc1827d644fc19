"""From a placed network to a plan: tensors as the operations want them, buffers in the arena, constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from roadworthy.errors import UnsupportedError
from roadworthy.run.native.arena import Life, assign, padded
from roadworthy.run.native.network import NO_BORDER, Array, Link, Network, Operand, Step, is_image
from roadworthy.run.native.pack import packed_operation
from roadworthy.run.native.place import Placement, adapt, copy_views
from roadworthy.run.native.plan import ALIGN, ARENA, CONSTANT, DTYPE_BYTES, MAX_RANK, Op, Plan, PlanOp, PlanTensor, Port
from roadworthy.run.native.views import View, merged

MAX_ARENA = 4 << 30


@dataclass(frozen=True)
class _Tensor:
    """A tensor before its buffer has an address."""

    array: Array
    root: Array
    view: View
    bordered: bool = False


@dataclass
class _Op:
    code: Op
    tensors: list[_Tensor]
    attributes: tuple[int, ...] = ()
    blobs: tuple[bytes, ...] = ()
    name: str = ""
    pointwise: bool = False


@dataclass
class _Emitter:
    placement: Placement
    ops: list[_Op] = field(default_factory=list)
    constants: bytearray = field(default_factory=bytearray)
    constant_at: dict[Array, int] = field(default_factory=dict)
    base: dict[Array, int] = field(default_factory=dict)


def emit(network: Network, placement: Placement, text: str = "", in_place: bool = True) -> Plan:
    """The plan of a network whose arrays have their places."""
    made = _Emitter(placement)
    for item in network.items:
        if isinstance(item, Step):
            made.ops.append(_step(placement, item))
        elif not placement.hosted(item):
            made.ops.append(_copy(placement, item))
    arena, unshared = _addresses(made, in_place)
    numbers: dict[PlanTensor, int] = {}
    ops = []
    for op in made.ops:
        ids = tuple(numbers.setdefault(_tensor(made, t), len(numbers)) for t in op.tensors)
        ops.append(PlanOp(op.code, ids, *packed_operation(op.code, op.attributes, op.blobs), op.name))
    ports = []
    for array in (*network.inputs, *network.outputs):
        view = placement.view(array)
        flat = merged([view], MAX_RANK) if len(view.dims) > MAX_RANK else [view]
        assert flat is not None
        tensor = _tensor(made, _Tensor(array, placement.root(array), flat[0]))
        ports.append(Port(numbers.setdefault(tensor, len(numbers)), array.dims, array.name))
    split = len(network.inputs)
    constants = bytes(made.constants) + bytes(-len(made.constants) % ALIGN)
    return Plan(tuple(numbers), tuple(ops), tuple(ports[:split]), tuple(ports[split:]), arena, constants, text,
                tuple(network.notes), unshared)  # fmt: skip


def _views(step: Step, operands: Sequence[Operand], views: Sequence[View]) -> list[View]:
    """The operands of a step in the dims of its operation."""
    own = [adapt(o, v) for o, v in zip(operands, views)]
    assert all(v is not None for v in own), step.name
    known = [v for v in own if v is not None]
    form = operands[-1].form
    if form == "free":
        return _few(known, MAX_RANK, step.name)
    if form == "last":
        return _few_before_last(known, step.name)
    if form == "whole" and len(known[0].dims) > MAX_RANK:
        raise _too_deep(step.name)
    return known


def _few(views: Sequence[View], limit: int, name: str) -> list[View]:
    made = merged(views, limit)
    if made is None:
        raise _too_deep(name)
    return made


def _few_before_last(views: Sequence[View], name: str) -> list[View]:
    outer = [View(v.dims[:-1] or (1,), v.strides[:-1] or (0,), v.offset) for v in views]
    made = _few(outer, MAX_RANK - 1, name)
    return [View((*m.dims, v.dims[-1]), (*m.strides, v.strides[-1]), m.offset) for m, v in zip(made, views)]


def _too_deep(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"{name!r} moves values over more than {MAX_RANK} dimensions at once, which the native engine cannot;"
        " choose another target"
    )


def _step(placement: Placement, step: Step) -> _Op:
    operands = [*step.inputs, step.output]
    if step.op == Op.COPY:
        gathered = _as_gather(placement, step)
        if gathered is not None:
            return gathered
    views = _views(step, operands, [placement.view(o.array) for o in operands])
    tensors = [
        _Tensor(o.array, placement.root(o.array), v, o.part is None and o.form in ("image", "pixels"))
        for o, v in zip(operands, views)
    ]
    return _Op(step.op, tensors, step.attributes, step.blobs, step.name, step.pointwise)


def _copy(placement: Placement, link: Link) -> _Op:
    """A link that did not come for free."""
    found = copy_views(placement, link)
    assert found is not None
    source, target = found
    roots = placement.root(link.source), placement.root(link.target)
    if is_image(source.dims) and is_image(target.dims):
        probe = Array(link.name, target.dims, link.target.encoding)
        placement.places[probe] = (roots[1], target)
        placement.places.setdefault(link.source, (roots[0], source))
        read = Array(link.name, source.dims, link.source.encoding)
        placement.places[read] = (roots[0], source)
        return _step(placement, Step(Op.COPY, [Operand(read, "pixels")], Operand(probe, "pixels"), name=link.name))
    gathered = _gather_of(link, source, target, roots)
    if gathered is not None:
        return gathered
    own = _few([source, target], MAX_RANK, link.name)
    tensors = [_Tensor(a, r, v) for a, r, v in zip((link.source, link.target), roots, own)]
    return _Op(Op.COPY, tensors, name=link.name)


def _gather_of(link: Link, source: View, target: View, roots: tuple[Array, Array]) -> _Op | None:
    """A channel shuffle, whole: the dims that lie inside a pixel of the target, and the pixels themselves."""
    made = merged([source, target], MAX_RANK)
    if made is None or roots[0].space != ARENA or roots[1].space != ARENA:
        return None
    source, target = made
    order = sorted(range(len(target.dims)), key=lambda k: target.strides[k])
    inner: list[int] = []
    step = 1
    for k in order:
        if target.strides[k] != step:
            break
        inner.append(k)
        step *= target.dims[k]
    outer = [k for k in order if k not in inner]
    if not inner or len(outer) > 2:
        return None
    index = np.zeros(1, np.int64)
    for k in inner:
        index = (np.arange(target.dims[k]) * source.strides[k])[:, None] + index[None]
        index = index.reshape(-1)
    span = int(index.max()) + 1
    if index.min() < 0 or span > 65536 or any(source.strides[k] < span for k in outer):
        return None
    pixels = [*(1,) * (2 - len(outer)), *(target.dims[k] for k in outer[::-1])]

    def image(view: View, channels: int) -> View:
        steps = [*(0,) * (2 - len(outer)), *(view.strides[k] for k in outer[::-1])]
        return View((pixels[0], pixels[1], channels), (steps[0], steps[1], 1), view.offset)

    tensors = [_Tensor(link.source, roots[0], image(source, span)), _Tensor(link.target, roots[1], image(target, step))]
    return _Op(Op.GATHER, tensors, (), (index.astype(np.int32).tobytes(),), link.name)


def _as_gather(placement: Placement, step: Step) -> _Op | None:
    """A copy of every n-th channel of an image is a GATHER."""
    source, target = step.inputs[0], step.output
    if source.dims is not None or source.part is not None or target.part is not None or target.form != "pixels":
        return None
    x, y = adapt(source, placement.view(source.array)), adapt(target, placement.view(target.array))
    roots = placement.root(source.array), placement.root(target.array)
    assert x is not None and y is not None
    every, channels = x.strides[2], x.dims[2]
    span = (channels - 1) * every + 1
    if every < 2 or channels < 2 or y.strides[2] != 1 or any(r.space != ARENA for r in roots):
        return None
    if any(d > 1 and s < span for d, s in zip(x.dims[:2], x.strides[:2])):
        return None  # a plane-wise image, which is a matter of transposing
    index = (np.arange(channels) * every).astype(np.int32).tobytes()
    wide = View((*x.dims[:2], span), (*x.strides[:2], 1), x.offset)
    tensors = [_Tensor(source.array, roots[0], wide), _Tensor(target.array, roots[1], y, True)]
    return _Op(Op.GATHER, tensors, (), (index,), step.name)


def _addresses(made: _Emitter, in_place: bool) -> tuple[int, int]:
    """Give every buffer its address; the bytes of the arena, and what they would be without reuse."""
    layouts = made.placement.layouts
    first: dict[Array, int] = {}
    last: dict[Array, int] = {}
    for k, op in enumerate(made.ops):
        for tensor in op.tensors:
            first.setdefault(tensor.root, k)
            last[tensor.root] = k
            if tensor.root.space == CONSTANT and tensor.root not in made.constant_at:
                made.constants += bytes(-len(made.constants) % ALIGN)
                made.constant_at[tensor.root] = len(made.constants)
                assert tensor.root.data is not None
                made.constants += np.ascontiguousarray(tensor.root.data).tobytes()
    shared = _overwrites(made, first, last) if in_place else {}
    roots = [r for r in first if r.space == ARENA]
    groups: dict[Array, list[Array]] = {}
    for root in roots:
        host = root
        while host in shared:
            host = shared[host]
        groups.setdefault(host, []).append(root)
    lives = [
        Life(max(_bytes(made, r) for r in group), min(first[r] for r in group), max(last[r] for r in group))
        for group in groups.values()
    ]
    if not lives:
        return ALIGN, ALIGN
    offsets, total = assign(lives)
    if total > MAX_ARENA:
        raise UnsupportedError(
            f"the network needs {total >> 20} MiB for its values, and the native engine allows {MAX_ARENA >> 20};"
            " use a smaller input"
        )
    for group, offset in zip(groups.values(), offsets):
        made.base.update(dict.fromkeys(group, offset))
    assert all(root in layouts for root in roots)
    return total, sum(padded(_bytes(made, r)) for r in roots)


def _bytes(made: _Emitter, root: Array) -> int:
    return max(made.placement.layouts[root].elements, 1) * root.element_bytes


def _overwrites(made: _Emitter, first: dict[Array, int], last: dict[Array, int]) -> dict[Array, Array]:
    """root -> the root whose buffer it takes over: results of elementwise operations that lie just as an operand
    nobody reads any more."""
    found: dict[Array, Array] = {}
    layouts = made.placement.layouts
    for k, op in enumerate(made.ops):
        if not op.pointwise:
            continue
        y = op.tensors[-1]
        if y.root.space != ARENA or first[y.root] != k:
            continue
        for x in op.tensors[:-1]:
            a, b = layouts.get(x.root), layouts.get(y.root)
            # Another operand in the same buffer, somewhere else, would be overwritten while it is read.
            if any(o.root is x.root and o.view != x.view for o in op.tensors[:-1]):
                continue
            same_place = x.root.space == ARENA and x.view == y.view and a == b and x.array.dtype == y.array.dtype
            if same_place and last[x.root] == k and x.root is not y.root and _whole(y):
                found[y.root] = x.root
                break
    return found


def _whole(tensor: _Tensor) -> bool:
    return math.prod(tensor.view.dims) == tensor.root.size


def _tensor(made: _Emitter, tensor: _Tensor) -> PlanTensor:
    array, root, view = tensor.array, tensor.root, tensor.view
    bytes_each = DTYPE_BYTES[array.dtype]
    at = made.base.get(root, 0) if root.space == ARENA else made.constant_at.get(root, 0)
    border, fill = NO_BORDER, b""
    if tensor.bordered and root.space == ARENA:
        border = made.placement.border(array)
        fill = array.fill() if any(border) else b""
    strides = tuple(1 if d == 1 and s == 0 else s for d, s in zip(view.dims, view.strides))
    if any(border):
        # A view of a single row or column may have any step there; the border lies where the buffer has it.
        strides = (*made.placement.layouts[root].view.strides[2:], 1)
    index = root.index if root.space != CONSTANT else 0
    return PlanTensor(array.dtype, root.space, at + view.offset * bytes_each, view.dims, strides, index, border, fill)
