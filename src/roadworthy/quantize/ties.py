"""Ties: which channels of a network may be scaled (or shifted) together without changing what it computes.

Every channel of every value has a number. Layers make new numbers; what only moves values moves the numbers, by
running the very same move on them; what treats channels alike and commutes with a positive factor hands them on:

    f(x / s) = f(x) / s       Relu, LeakyRelu, PRelu, pooling, Resize, zero padding, sums of values of one factor

An Add ties the numbers of its operands. All that is unknown, and results and the image, is *fixed*, with the reason.
What is left are groups of channels, each with the layers that make it and the layers that read it: dividing the
makers' rows by s and multiplying the readers' columns by s changes nothing.

With `shift=True` the same walk asks where a constant may be moved from a layer to its readers, f(x - c) = f(x) - c:
only behind a ReLU, through moves and pools, and into layers of which every output sees the whole constant and that
have a place for it: no padding, no ConvTranspose (its taps fall on different pixels), no MatMul without a bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import RoadworthyError
from roadworthy.model import graph as g
from roadworthy.model.units import Unit, units
from roadworthy.run.reference_moves import MOVES

Ids = NDArray[np.int64]
ZERO = 0
"""The number of zeros that padding adds: they follow any factor."""
CURVED = frozenset({"SiLU", "HardSwish", "Gelu", "Mish"})
"""Activations that are close to commuting with a factor where all values are small, or all far from zero."""
RESULT = "a result of the network"
_COMMUTE = frozenset({"Relu", "LeakyRelu", "PRelu", "Identity", "Dropout"})
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
_REDUCE = frozenset({"ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"})
_TOGETHER = frozenset({"Add", "Sub", "Sum", "Max", "Min"})
_MOVES = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Pad",
                    "DepthToSpace", "SpaceToDepth", "Concat", "Expand", "Tile"})  # fmt: skip


@dataclass(frozen=True, eq=False)
class Layer:
    """A unit and the groups of its channels.   outs: (O,).   ins: (O, I of a group), as the weight is laid out by
    `as_rows`; the group of what each weight is multiplied with."""

    unit: Unit
    outs: Ids
    ins: Ids


@dataclass(frozen=True, eq=False)
class Ties:
    """layers: units in graph order.   reasons: for each group why it is fixed, or None where it is free.
    caps: (value in front of a Clip, its groups (C,), the upper bound).   curved: (unit, its groups (C,)).
    read: (value, axis of its channels, its groups (C,)) of what layers read."""

    layers: tuple[Layer, ...]
    reasons: tuple[str | None, ...]
    caps: tuple[tuple[str, Ids, float], ...]
    curved: tuple[tuple[Unit, Ids], ...]
    read: tuple[tuple[str, int, Ids], ...]

    @property
    def free(self) -> NDArray[np.bool_]:
        return np.array([r is None for r in self.reasons], bool)

    @property
    def count(self) -> int:
        return len(self.reasons)


@dataclass(frozen=True)
class Site:
    """What was found behind one layer.

    layer, readers: names.   channels: how many output channels the layer has.   free: how many of them may take a
    factor.   moved: how many did.   reason: why the others may not, "" where all may.
    """

    layer: str
    readers: tuple[str, ...]
    channels: int
    free: int
    moved: int = 0
    reason: str = ""


def ties(ir: g.IrModel, curved: bool = False, caps: bool = True, shift: bool = False, sums: bool = True) -> Ties:
    """Walk the graph.   curved, caps: hand on the groups through smooth activations and Clips, listing them, so that
    the caller can bound the factors; else they are fixed there.   sums: tie what is added up, else fix it."""
    return _Walk(ir, curved, caps, shift, sums).result()


def sites(found: Ties, factors: NDArray[np.float64] | None = None) -> list[Site]:
    """One row per layer, in graph order.   factors: (groups,), to count those that are not 1."""
    readers: dict[int, list[str]] = {}
    for layer in found.layers:
        for group in np.unique(layer.ins):
            readers.setdefault(int(group), []).append(layer.unit.name)
    rows = []
    for layer in found.layers:
        why = [found.reasons[k] for k in layer.outs]
        fixed = Counter(w for w in why if w is not None)
        names = dict.fromkeys(n for k in np.unique(layer.outs) for n in readers.get(int(k), []))
        moved = 0 if factors is None else int((factors[layer.outs] != 1).sum())
        reason = fixed.most_common(1)[0][0] if fixed else ""
        rows.append(Site(layer.unit.name, tuple(names), len(why), len(why) - sum(fixed.values()), moved, reason))
    return rows


def summary(found: Ties, factors: NDArray[np.float64]) -> str:
    """One line about the layers in front of others."""
    rows = [row for row in sites(found, factors) if row.reason != RESULT]
    moved = sum(row.moved > 0 for row in rows)
    return f"{moved} layers with their readers, {len(rows) - moved} left alone"


def as_rows(unit: Unit, weight: NDArray) -> NDArray:
    """A weight as (O, I of a group, positions), a view where it can be one."""
    groups = g.attribute(unit.anchor, "group", 1) if unit.anchor.op_type == "ConvTranspose" else 1
    if groups > 1:  # (I, O of a group, ...), group behind group along the first axis
        split = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        return split.swapaxes(1, 2).reshape(-1, split.shape[1], split.shape[3])
    if unit.anchor.op_type == "MatMul":  # a vector has one output, a stack of matrices many positions
        rows = weight[None] if weight.ndim == 1 else np.moveaxis(weight, (-1, -2), (0, 1))
    else:
        rows = np.moveaxis(weight, unit.weight_axis, 0)
    return rows.reshape(*rows.shape[:2], -1)


def bias_of(unit: Unit) -> tuple[g.Node, int, NDArray | None]:
    """The node that adds a unit's bias, which of its inputs that is, and the bias (None where there is none)."""
    anchor, add = unit.anchor, unit.bias_add
    if add is None:
        return anchor, 2, g.constant(unit.bias)
    index = next((k for k, v in enumerate(add.inputs) if g.constant(v) is not None), 1)
    return add, index, g.constant(add.inputs[index])


class _Walk:
    def __init__(self, ir: g.IrModel, curved: bool, caps: bool, shift: bool, sums: bool) -> None:
        self._ir, self._curved, self._caps, self._shift = ir, curved, caps, shift
        self._sums = sums
        self._parent: list[int] = [ZERO]
        self._why: dict[int, str] = {}
        self._of: dict[str, Ids] = {}
        self._layers: list[tuple[Unit, Ids, Ids]] = []
        self._clips: list[tuple[str, Ids, float]] = []
        self._bends: list[tuple[Unit, Ids]] = []
        self._read: list[tuple[str, int, Ids]] = []
        self._walk()

    # Groups.

    def _new(self, count: int) -> Ids:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def _find(self, k: int) -> int:
        while self._parent[k] != k:
            self._parent[k] = k = self._parent[self._parent[k]]
        return k

    def _join(self, a: Ids, b: Ids) -> None:
        """Tie numbers pairwise; arrays that broadcast to one shape."""
        if a.shape == b.shape:
            index = tuple(0 if p == q == 0 else slice(None) for p, q in zip(a.strides, b.strides))
            a, b = a[index], b[index]
        pairs = np.stack([v.reshape(-1) for v in np.broadcast_arrays(a, b)], 1)
        for one, two in np.unique(pairs, axis=0).tolist():
            one, two = self._find(one), self._find(two)
            if one == two or ZERO in (one, two):
                continue
            low, high = min(one, two), max(one, two)
            self._parent[high] = low
            if high in self._why:
                self._why.setdefault(low, self._why[high])

    def _fix(self, ids: Ids | None, reason: str | None) -> None:
        if ids is None or reason is None:
            return
        for k in _distinct(ids):
            if k != ZERO:
                self._why.setdefault(self._find(k), reason)

    def _is_fixed(self, ids: Ids) -> bool:
        return all(k == ZERO or self._find(k) in self._why for k in _distinct(ids))

    def _put_fixed(self, node: g.Node, reason: str) -> None:
        """Inputs and outputs of a node that no rule knows."""
        for value in node.inputs:
            self._fix(None if value is None else self._of.get(str(value.name)), reason)
        for value in node.outputs:
            self._put(value, self._fixed_one(reason))

    def _fixed_one(self, reason: str) -> Ids:
        made = self._new(1)
        self._fix(made, reason)
        return made

    def _put(self, value: g.Value, ids: Ids) -> None:
        """Numbers of a value, in any shape that broadcasts to its own."""
        shape = g.static_shape(value)
        if shape is None:
            self._fix(ids, f"the shape of {value.name} is not known")
        else:  # one number fits a scalar, too
            self._of[str(value.name)] = np.broadcast_to(ids.reshape(()) if ids.size == 1 else ids, shape)

    def _put_channels(self, value: g.Value, ids: Ids, axis: int = 1) -> None:
        """Numbers of a value's channels, (C,)."""
        rank = len(g.static_shape(value) or ())
        self._put(value, ids.reshape([-1 if k == axis % rank else 1 for k in range(rank)]) if rank else ids)

    def _along(self, value: g.Value | None, axis: int) -> Ids | None:
        """(channels,) numbers along an axis, or None where they differ within a channel."""
        ids = None if value is None else self._of.get(str(value.name))
        if ids is None or ids.ndim < 2:
            return None
        rows = np.moveaxis(ids, axis, 0)
        if all(stride == 0 or n == 1 for stride, n in zip(rows.strides[1:], rows.shape[1:])):
            return np.ascontiguousarray(rows.reshape(len(rows), -1)[:, 0])
        flat = rows.reshape(len(rows), -1)
        top = flat.max(1)
        return top if bool(((flat == top[:, None]) | (flat == ZERO)).all()) else None

    # The graph.

    def _walk(self) -> None:
        of_anchor = {id(u.anchor): u for u in units(self._ir)}
        for value in g.inputs(self._ir):
            self._put(value, self._fixed_one("the image"))
        done: set[int] = set()
        for node in g.nodes(self._ir):
            if id(node) in of_anchor:
                done.update(self._layer(of_anchor[id(node)]))
            elif id(node) not in done:
                try:
                    self._node(node)
                except (RoadworthyError, ValueError, IndexError, TypeError, ZeroDivisionError):
                    # A form that no rule foresaw. What was tied so far stays tied, which is never wrong.
                    self._put_fixed(node, f"{node.op_type} {node.name} has a form that is not known")
        for value in g.outputs(self._ir):
            self._fix(self._of.get(str(value.name)), RESULT)
        here = {id(n) for n in g.nodes(self._ir)}
        for name, value in g.values(self._ir).items():
            if any(id(n) not in here for n in value.consumers()):  # a branch of an If, the body of a Loop
                self._fix(self._of.get(name), f"a graph inside the graph reads {name}")

    def _layer(self, unit: Unit) -> set[int]:
        """Take in a unit; the nodes of it that need no further look."""
        outs, ins = self._input(unit)
        self._layers.append((unit, outs, ins))
        anchor = unit.anchor
        biased = unit.bias_add
        before = anchor.outputs[0] if biased is None else biased.outputs[0]
        image = anchor.op_type in ("Conv", "ConvTranspose")
        for value in (anchor.outputs[0], before):
            self._put_channels(value, outs, 1 if image else -1)
        known = {id(anchor), id(biased)}
        if str(before.name) not in self._of:  # no shape: all is fixed, and stays so behind it
            return known
        if self._shift:
            if unit.activation != "Relu" or g.is_read(unit.output) is False:
                self._fix(outs, f"no ReLU behind {unit.name}")
            if unit.activation == "Relu":
                self._of[str(unit.output.name)] = self._of[str(before.name)]
                known.update(id(n) for n in unit.nodes)
            return known
        if unit.activation in CURVED:
            self._of[str(unit.output.name)] = self._of[str(before.name)]
            if self._curved and image:
                self._bends.append((unit, outs))
            else:
                self._fix(outs, f"{unit.activation} does not commute with a factor")
            known.update(id(n) for n in unit.nodes)
        return known

    def _input(self, unit: Unit) -> tuple[Ids, Ids]:
        """Numbers of a unit's outputs (O,) and of its inputs (O, I of a group)."""
        anchor = unit.anchor
        weight = g.constant(unit.weight)
        assert weight is not None
        count, each = as_rows(unit, weight).shape[:2]
        outs = self._new(count)
        axis = 1 if anchor.op_type in ("Conv", "ConvTranspose") else -1
        source = self._along(unit.input, axis)
        groups = g.attribute(anchor, "group", 1) if axis == 1 else 1
        refusal = self._refusal(unit, count)
        if refusal:
            self._fix(outs, refusal)
        if refusal or source is None or len(source) != groups * each:
            for value in anchor.inputs:  # a bias may be computed, too
                ids = None if value is None else self._of.get(str(value.name))
                self._fix(ids, refusal or f"{unit.name} reads mixed channels")
            return outs, np.broadcast_to(self._fixed_one("not known"), (count, each)).copy()
        if self._shift:
            self._fix(source, _not_whole(unit))
            if not _takes_bias(unit):
                self._fix(outs, f"{unit.name} has no bias")
        self._read.append((str(unit.input.name), axis, source))
        return outs, np.repeat(source.reshape(groups, each), count // groups, axis=0)

    def _refusal(self, unit: Unit, count: int) -> str:
        """Why no factor may be written into a unit's weights and bias, whatever it reads; "" where it may."""
        anchor = unit.anchor
        _, _, bias = bias_of(unit)
        if len(list(unit.weight.uses())) > 1 or unit.weight.is_graph_output():
            return f"{unit.name} shares its weights"
        if not unit.per_channel or (anchor.op_type == "Gemm" and g.attribute(anchor, "transA", 0)):
            return f"{unit.name} has weights of another layout"
        given = unit.bias is not None or unit.bias_add is not None
        if given and (bias is None or (bias.size != 1 and not bias.size == count == bias.shape[-1])):
            return f"{unit.name} has no bias of one number per channel"
        return ""

    def _node(self, node: g.Node) -> None:
        op = node.op_type
        computed = [v for v in node.inputs if v is not None and g.constant(v) is None]
        sources = [self._of.get(str(v.name)) for v in computed]
        if not computed or node.domain not in ("", "ai.onnx") or any(s is None for s in sources):
            self._put_fixed(node, f"{op} {node.name} is read in a way that is not known")
            return
        known = [s for s in sources if s is not None]
        if (op in _MOVES or op in ("Identity", "Dropout")) and self._move(node):
            return
        if op in _POOLS or op == "Resize":
            channels = self._along(computed[0], 1)
            if channels is not None and self._keeps_channels(node, computed[0]):
                self._put_channels(node.outputs[0], channels)
                for extra in node.outputs[1:]:
                    self._put(extra, self._fixed_one("positions"))
                return
        elif op in _REDUCE:
            if self._reduce(node, known[0]):
                return
        elif not self._shift and self._linear(node, computed, known):
            return
        self._put_fixed(node, f"{op} {node.name} does not keep a factor apart" if not self._shift else f"{op} reads it")

    def _linear(self, node: g.Node, computed: Sequence[g.Value], known: Sequence[Ids]) -> bool:
        op = node.op_type
        out = node.outputs[0]
        if op in _COMMUTE and len(computed) == 1:
            self._of[str(out.name)] = known[0]
            return True
        if op == "Clip" and len(computed) == 1:
            lo, hi = (g.constant(v) for v in (*node.inputs[1:3], None, None)[:2])
            channels = self._along(computed[0], 1)
            if hi is not None and not float(hi.reshape(-1)[0]) > 0:
                return False  # the bound itself comes out nearly everywhere, and it takes no factor
            if self._caps and channels is not None and (lo is None or float(lo.reshape(-1)[0]) == 0):
                self._of[str(out.name)] = known[0]
                if hi is not None:
                    self._clips.append((str(computed[0].name), channels, float(hi.reshape(-1)[0])))
                return True
        if op in _TOGETHER and len(computed) == len(node.inputs) and g.static_shape(out) is not None:
            for other in known[1:]:
                self._join(known[0], other)
            for ids in () if self._sums else known:
                self._fix(ids, f"{op} {node.name} sums up layers' results")
            rows = [self._along(v, 1) for v in computed]
            if all(r is not None and r.shape == rows[0].shape for r in rows):  # type: ignore[union-attr]
                self._put_channels(out, np.maximum.reduce([r for r in rows if r is not None]))
            else:
                self._put(out, np.maximum.reduce(np.broadcast_arrays(*known)))  # ZERO gives way to any other
            return True
        if op in ("Mul", "Div") and g.static_shape(out) is not None:
            if len(computed) == 1 and (op == "Mul" or computed[0] is node.inputs[0]):
                self._put(out, known[0])
                return True
            if op == "Mul" and len(known) == 2:  # a gate of its own, such as that of squeeze and excitation
                for gate, kept in (known, known[::-1]):
                    if self._is_fixed(gate):
                        self._put(out, kept)
                        return True
        return False

    def _keeps_channels(self, node: g.Node, source: g.Value) -> bool:
        before, after = g.static_shape(source), g.static_shape(node.outputs[0])
        if before is None or after is None or len(before) != len(after) or before[1] != after[1]:
            return False
        if node.op_type == "Resize":
            cropped = g.attribute(node, "coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
            return not cropped and g.attribute(node, "mode", "nearest") in ("nearest", "linear")
        counts = node.op_type == "AveragePool" and g.attribute(node, "count_include_pad", 0)
        return not (self._shift and counts and (_pads(node) or g.attribute(node, "ceil_mode", 0)))

    def _reduce(self, node: g.Node, ids: Ids) -> bool:
        axes = g.attribute(node, "axes")
        if axes is None and len(node.inputs) > 1 and (given := g.constant(node.inputs[1])) is not None:
            axes = tuple(int(a) for a in given.reshape(-1))
        if not axes or (self._shift and node.op_type == "ReduceSum"):
            return False
        over = tuple(int(a) % ids.ndim for a in axes)
        first = ids.max(over, keepdims=True)
        if not bool(((ids == first) | (ids == ZERO)).all()):
            return False
        self._put(node.outputs[0], first if g.attribute(node, "keepdims", 1) else first.squeeze(over))
        return True

    def _move(self, node: g.Node) -> bool:
        """Numbers moved exactly as the values are; False where a constant other than zero is mixed in."""
        if node.op_type == "Pad":
            fill = g.constant(node.inputs[2]) if len(node.inputs) > 2 else None
            if self._shift or (fill is not None and fill.any()):
                return False
        inputs: list[NDArray | None] = []
        for index, value in enumerate(node.inputs):
            array = None if value is None else g.constant(value)
            if array is not None and (node.op_type == "Concat" or index == 0):
                array = np.broadcast_to(ZERO if not array.any() and not self._shift else self._fixed_one("a constant"),
                                        array.shape)  # fmt: skip
            inputs.append(array if value is None or array is not None else self._of[str(value.name)])
        try:
            made = MOVES[node.op_type](node, inputs)
        except (RoadworthyError, ValueError, TypeError, IndexError):
            return False
        for value, ids in zip(node.outputs, made):
            if g.static_shape(value) != ids.shape:
                return False
            self._of[str(value.name)] = ids
            channels = self._along(value, 1) if ids.ndim > 1 else None
            if channels is not None:  # kept small; padding follows its channel
                self._put_channels(value, channels)
        return True

    def result(self) -> Ties:
        roots = np.array([self._find(k) for k in range(len(self._parent))], np.int64)
        kept, group = np.unique(roots, return_inverse=True)
        reasons = [self._why.get(int(k)) for k in kept]
        reasons[int(group[ZERO])] = "zero"
        return Ties(
            tuple(Layer(u, group[outs], group[ins]) for u, outs, ins in self._layers),
            tuple(reasons),
            tuple((name, group[ids], hi) for name, ids, hi in self._clips),
            tuple((u, group[ids]) for u, ids in self._bends),
            tuple((name, axis, group[ids]) for name, axis, ids in self._read),
        )


def _distinct(ids: Ids) -> list[int]:
    """The numbers in an array; axes along which it only repeats are looked at once."""
    if not ids.size:
        return []
    found: list[int] = np.unique(ids[tuple(0 if s == 0 else slice(None) for s in ids.strides)]).tolist()
    return found


def _takes_bias(unit: Unit) -> bool:
    """Whether a unit has a bias, or a place for one."""
    return unit.anchor.op_type != "MatMul" or unit.bias_add is not None


def _not_whole(unit: Unit) -> str | None:
    """Why a constant on a unit's input is not one constant on its output that its bias can take; None where it is."""
    if unit.anchor.op_type == "ConvTranspose":
        return f"{unit.name} spreads its taps over different pixels"
    if _pads(unit.anchor):
        return f"{unit.name} pads its input"
    return None if _takes_bias(unit) else f"{unit.name} has no bias"


def _pads(node: g.Node) -> bool:
    """Whether a convolution or pool adds pixels around its input."""
    if g.attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return True
    return any(int(p) for p in g.attribute(node, "pads", ()) or ())
