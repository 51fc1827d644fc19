"""Two graphs side by side: which values they have in common, through which codes they go, and which weights make them.

A value is known by its name in a. In b it has a root (the float value before its codes) and, where a Q/DQ pair follows,
a coded value (what the readers of the codes see); exporters differ in which of the two keeps the name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.model import Model
from roadworthy.model.units import ANCHORS, Unit, units

PAIR = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True, eq=False)
class Codes:
    """A Q/DQ pair with constant parameters.   lo, hi, step: range and step of the codes, shaped to broadcast."""

    lo: NDArray[np.float32]
    hi: NDArray[np.float32]
    step: NDArray[np.float32]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    read_scale: NDArray[np.float32]
    read_zero_point: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Match:
    """One value that both graphs have.

    name: in a.   where: the layer (or node) that makes it.   op: its operator.   shape: of the value.
    inner: it lies inside a layer (the convolution's result in front of its activation).
    linear: it is the direct result of weights.   is_input: it is the network's input.
    clamped: b has no activation of its own here; the range of its codes cuts the values off, as a ReLU would.
    root: b's float value before its codes.   coded: b's value behind its Q/DQ pair, or None.   codes: that pair.
    """

    name: str
    where: str
    op: str
    shape: tuple[int, ...]
    inner: bool
    linear: bool
    is_input: bool
    clamped: bool
    root: str
    coded: str | None
    codes: Codes | None


class Graph:
    """A ModelProto with lookups by value name."""

    def __init__(self, model: Model) -> None:
        self.proto = g.to_proto(model.ir)
        self.nodes = list(self.proto.graph.node)
        self.producer = {o: n for n in self.nodes for o in n.output if o}
        self.constants = {t.name: t for t in self.proto.graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
        live = {model.input_name}
        for node in self.nodes:
            if any(i in live for i in node.input):
                live.update(node.output)
        self.live = live

    def array(self, name: str) -> NDArray | None:
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def constant(self, name: str) -> NDArray | None:
        """A float constant; codes are expanded: DequantizeLinear of constants, or Mul of a Cast and a scale."""
        array = self.array(name)
        node = self.producer.get(name)
        if array is not None or node is None:
            return array
        if node.op_type in ("Cast", "Identity"):
            source = self.constant(node.input[0])
            return None if source is None else source.astype(np.float32)
        parts = [self.constant(i) for i in node.input if i]
        if any(p is None for p in parts):
            return None
        values = [np.asarray(p) for p in parts]
        if node.op_type == "Mul":
            return (values[0].astype(np.float32) * values[1]).astype(np.float32)
        if node.op_type != PAIR[1]:
            return None
        codes, scale = values[0].astype(np.float64), values[1].astype(np.float64)
        zero = values[2].astype(np.float64) if len(values) > 2 else np.zeros(())
        if scale.size > 1:
            shape = [1] * codes.ndim
            shape[next((x.i for x in node.attribute if x.name == "axis"), 1)] = -1
            scale, zero = scale.reshape(shape), zero.reshape(shape) if zero.size > 1 else zero
        return ((codes - zero) * scale).astype(np.float32)

    def step(self, name: str, channels: int) -> NDArray[np.float64]:
        """The step of a constant's codes per output channel; zeros where it has none."""
        node = self.producer.get(name)
        scale = None if node is None or node.op_type not in ("Mul", PAIR[1]) else self.array(node.input[1])
        if scale is None:
            return np.zeros(channels)
        flat = scale.reshape(-1).astype(np.float64)
        return flat if len(flat) == channels else np.full(channels, flat.max())

    def is_anchor(self, name: str) -> bool:
        return name in self.producer and self.producer[name].op_type in ANCHORS

    def only(self, names: Iterable[str]) -> bytes:
        """The part of the graph that makes these values, with them as its outputs."""
        wanted = sorted(names)
        nodes = needed(self.nodes, wanted)
        used = {i for n in nodes for i in n.input}
        graph = helper.make_graph(
            nodes,
            "part",
            [v for v in self.proto.graph.input if v.name in used],
            [helper.make_empty_tensor_value_info(v) for v in wanted],
            [t for name, t in self.constants.items() if name in used],
        )
        return serialized(graph, self.proto)

    def pair(self, name: str) -> tuple[str, str | None, onnx.NodeProto | None, onnx.NodeProto | None]:
        """root, coded value, Q and DQ of a value that is called `name`."""
        maker = self.producer.get(name)
        if maker is not None and maker.op_type == PAIR[1]:
            q = self.producer.get(maker.input[0])
            if q is not None and q.op_type == PAIR[0] and q.input[0] in self.live:
                return q.input[0], name, q, maker
        for q in self.readers.get(name, ()):
            if q.op_type == PAIR[0]:
                for dq in self.readers.get(q.output[0], ()):
                    if dq.op_type == PAIR[1]:
                        return name, dq.output[0], q, dq
        return name, None, None, None


def _codes(graph: Graph, q: onnx.NodeProto | None, dq: onnx.NodeProto | None, rank: int) -> Codes | None:
    if q is None or dq is None:
        return None
    scale, read_scale = graph.array(q.input[1]), graph.array(dq.input[1])
    zero = graph.array(q.input[2]) if len(q.input) > 2 and q.input[2] else np.zeros((), np.uint8)
    read_zero = graph.array(dq.input[2]) if len(dq.input) > 2 and dq.input[2] else np.zeros((), np.uint8)
    if scale is None or read_scale is None or zero is None or read_zero is None or zero.dtype.kind not in "iu":
        return None
    info = np.iinfo(zero.dtype)
    shape = [1] * rank
    if scale.size > 1:
        axis = next((a.i for a in q.attribute if a.name == "axis"), 1)
        shape[axis] = -1
    s, z = scale.reshape(shape).astype(np.float32), zero.reshape(-1).astype(np.int64)
    z = z.reshape(shape) if z.size > 1 else z.reshape([1] * rank)
    lo, hi = (np.asarray((edge - z) * s, np.float32) for edge in (info.min, info.max))
    return Codes(lo, hi, s, scale.astype(np.float32), zero.astype(np.int64), read_scale.astype(np.float32),
                 read_zero.astype(np.int64))  # fmt: skip


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of one layer in both models.

    a, b: float arrays of one shape.   step: of b's codes, (C,) along `axis`, 0 where b's weights are float.
    axis: of the output channels.   input_axis: of the input channels, None where there is one per group.
    bias: a's bias (C,), or None.   bias_gone: b adds nothing, or zeros, where a adds a bias.
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    step: NDArray[np.float64]
    axis: int
    input_axis: int | None
    bias: NDArray[np.float64] | None
    bias_gone: bool

    def gains(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """<w, w'> / <w, w> of every output channel, and the standard deviation that rounding gives it, both (C,)."""
        w, v = self._rows(self.a, self.axis), self._rows(self.b, self.axis)
        power = (w * w).sum(1)
        gain = np.where(power > 0, (w * v).sum(1) / np.where(power > 0, power, 1.0), 1.0)
        return gain, np.where(power > 0, self.step / np.sqrt(12 * np.where(power > 0, power, 1.0)), np.inf)

    def exchanged(self, axis: int) -> tuple[int, int] | None:
        """Two channels along an axis each of which is, in b, what the other is in a."""
        w, v = self._rows(self.a, axis), self._rows(self.b, axis)
        norm_w, norm_v = np.linalg.norm(w, axis=1), np.linalg.norm(v, axis=1)
        close = (w * v).sum(1) / np.maximum(norm_w * norm_v, 1e-30)
        noise = np.linalg.norm(v - w, axis=1)
        allowed = 3 * float(self.step.max(initial=0.0)) * np.sqrt(w.shape[1] / 12)
        odd = np.flatnonzero((close < 0.995) & (noise > np.maximum(allowed, 1e-6 * norm_w)))
        if len(odd) < 2 or len(odd) > 64:
            return None
        cross = (w[odd] @ v[odd].T) / np.maximum(norm_w[odd][:, None] * norm_v[odd], 1e-30)
        best = cross.argmax(1)
        for k, other in enumerate(best):
            if other != k and best[other] == k and cross[k, other] > 0.98 and cross[other, k] > 0.98:
                return int(odd[k]), int(odd[other])
        return None

    @staticmethod
    def _rows(x: NDArray, axis: int) -> NDArray[np.float64]:
        return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).astype(np.float64)


def weights_of(pairing: Pairing, match: Match) -> Weights | None:
    """The weights behind a match, where both models make it with the same operator from constant weights."""
    if not match.linear:
        return None
    node_a, node_b = pairing.a.producer.get(match.name), pairing.b.producer.get(match.root)
    bias = None
    if node_a is not None and node_a.op_type == "Add":
        # MatMul and Add: the constant is the bias.
        bias = next((c for c in map(pairing.a.constant, node_a.input) if c is not None), None)
        node_a = next((pairing.a.producer[i] for i in node_a.input if i in pairing.a.producer), None)
        if node_b is not None:
            node_b = next((pairing.b.producer[i] for i in node_b.input if pairing.b.is_anchor(i)), None)
    elif node_a is not None and len(node_a.input) > 2:
        bias = pairing.a.constant(node_a.input[2])
    if node_a is None or node_b is None or node_a.op_type != node_b.op_type or node_a.op_type not in ANCHORS:
        return None
    a, b = pairing.a.constant(node_a.input[1]), pairing.b.constant(node_b.input[1])
    attributes = {x.name: x for x in node_a.attribute}
    groups = attributes["group"].i if "group" in attributes else 1
    if a is None or b is None or a.shape != b.shape or (node_a.op_type == "ConvTranspose" and groups > 1):
        return None
    transposed = node_a.op_type == "Gemm" and "transB" in attributes and attributes["transB"].i
    axis = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if transposed else a.ndim - 1}.get(node_a.op_type, a.ndim - 1)
    step = pairing.b.step(node_b.input[1], a.shape[axis])
    other = (1 - axis if axis < 2 else axis - 1) if a.ndim >= 2 and groups == 1 else None
    flat = None if bias is None else np.asarray(bias, np.float64).reshape(-1)
    gone = False
    if flat is not None and node_a.op_type != "MatMul":
        theirs = pairing.b.constant(node_b.input[2]) if len(node_b.input) > 2 else np.zeros(1)
        gone = theirs is not None and not theirs.any()
    return Weights(a, b, step, axis, other, flat, gone)


def linear_point(unit: Unit) -> g.Value:
    """Where a layer's weights and bias have done their work, in front of the activation."""
    nodes = [n for n in unit.nodes if n.op_type == "Add"] if unit.anchor.op_type == "MatMul" else []
    return nodes[0].outputs[0] if nodes else unit.anchor.outputs[0]


class Pairing:
    """Two models with the values that they have in common.

    matches: in a's execution order, the input first.   unmatched: a's layer outputs that b has no value for.
    Raises InputError where inputs or values of the same name differ in shape, or where nothing matches.
    """

    def __init__(self, a: Model, b: Model) -> None:
        if a.input_shape != b.input_shape:
            raise InputError(
                f"{b.source} takes an input of {_times(b.input_shape)} and {a.source} one of {_times(a.input_shape)};"
                " only two forms of one network with one input size can be aligned"
            )
        self.a, self.b = Graph(a), Graph(b)
        self.input_a, self.input_b = a.input_name, b.input_name
        found: list[Match] = []
        missing: list[str] = []
        root, coded, q, dq = self.b.pair(self.input_b)
        if coded is not None:
            codes = _codes(self.b, q, dq, len(a.input_shape))
            found.append(
                Match(a.input_name, a.input_name, "Input", a.input_shape, False, False, True, False, root, coded, codes)
            )
        self._walk(a, b, found, missing)
        if not [m for m in found if not m.is_input]:
            raise InputError(
                f"{a.source} and {b.source} have no value name in common; align a model with a compressed form of"
                " itself, exported with the names kept"
            )
        self.matches, self.unmatched = tuple(found), tuple(missing)

    def _walk(self, a: Model, b: Model, found: list[Match], missing: list[str]) -> None:
        home: dict[str, Unit] = {str(v.name): u for u in units(a.ir) for n in u.nodes for v in n.outputs}
        values_b = g.values(b.ir)
        finals = set(a.output_names)
        for node in g.nodes(a.ir):
            for value in node.outputs:
                name = str(value.name)
                shape = g.static_shape(value)
                if name not in self.a.live or shape is None or getattr(value.dtype, "name", "FLOAT") != "FLOAT":
                    continue
                if node.op_type == PAIR[1] and name not in finals:
                    continue
                unit = home.get(name)
                linear = unit is not None and name == str(linear_point(unit).name)
                inner = unit is not None and name != str(unit.output.name)
                if name not in self.b.producer or name not in self.b.live:
                    if not inner:
                        missing.append(name)
                    continue
                root, coded, q, dq = self.b.pair(name)
                if inner and not linear and coded is None:
                    continue
                other = g.static_shape(values_b.get(root))
                if other is not None and other != shape:
                    raise InputError(
                        f"the value {name!r} is {_times(shape)} in {a.source} and {_times(other)} in {b.source};"
                        " only two forms of one network can be aligned, not a network and a pruned one"
                    )
                maker = self.b.producer.get(root)
                where = unit.name if unit is not None else str(node.name)
                op = node.op_type
                if unit is not None and unit.activation is not None and not inner:
                    op = f"{unit.anchor.op_type}+{unit.activation}"
                if unit is None and maker is not None and maker.op_type in ANCHORS:
                    # A batch norm of a that b has folded: b's layer is what makes the value.
                    where, op, linear = maker.name or where, maker.op_type, True
                codes = _codes(self.b, q, dq, len(shape))
                made_by = "" if maker is None else maker.op_type
                bends = ("Relu", "Clip")
                clamped = codes is not None and node.op_type in bends and made_by not in bends
                linear = linear or (clamped and made_by in ANCHORS)
                found.append(Match(name, where, op, shape, inner, linear, False, clamped, root, coded, codes))


def needed(nodes: list[onnx.NodeProto], wanted: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that the wanted values depend on, in the order given."""
    needed = set(wanted)
    kept = []
    for node in reversed(nodes):
        if any(o in needed for o in node.output):
            kept.append(node)
            needed.update(i for i in node.input if i)
    return kept[::-1]


def serialized(graph: onnx.GraphProto, like: onnx.ModelProto) -> bytes:
    imports = list(like.opset_import)
    return helper.make_model(graph, opset_imports=imports, ir_version=like.ir_version).SerializeToString()


def opsets(proto: onnx.ModelProto) -> dict[str, int]:
    """Operator set versions by domain, the standard one under ""."""
    return {"" if o.domain == "ai.onnx" else o.domain: o.version for o in proto.opset_import}


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"
