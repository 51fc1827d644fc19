"""Units: a weighted operator together with the activation behind it, found from topology alone.

A SiLU is written as Sigmoid and Mul, a hard-swish as HardSigmoid and Mul or as Add, Clip, Div and Mul; a quantizer
that looks at nodes one by one puts an 8-bit rounding between each of these and loses the network's accuracy. A unit is
what the report calls a layer, and the only thing that is ever put into int8 or kept in float.
"""

from __future__ import annotations

from dataclasses import dataclass

from roadworthy.model import graph as g

ANCHORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that own weights; input 1 is the weight."""

_WHOLE = {
    "Relu": "Relu", "Clip": "Clip", "LeakyRelu": "LeakyRelu", "PRelu": "PRelu", "HardSwish": "HardSwish",
    "Gelu": "Gelu", "Mish": "Mish", "Elu": "Elu", "Tanh": "Tanh", "Sigmoid": "Sigmoid", "HardSigmoid": "HardSigmoid",
    "Swish": "SiLU",
}  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """One layer.

    name: the anchor's node name.   anchor: Conv, ConvTranspose, Gemm or MatMul with constant weights.
    nodes: anchor first, then the nodes of the activation.   activation: its name, or None.
    inner: values between the anchor and the last node.   output: the value the rest of the graph reads.
    """

    name: str
    anchor: g.Node
    nodes: tuple[g.Node, ...]
    activation: str | None
    inner: tuple[g.Value, ...]
    output: g.Value

    @property
    def input(self) -> g.Value:
        value = self.anchor.inputs[0]
        assert value is not None
        return value

    @property
    def weight(self) -> g.Value:
        value = self.anchor.inputs[1]
        assert value is not None
        return value

    @property
    def bias(self) -> g.Value | None:
        return self.anchor.inputs[2] if len(self.anchor.inputs) > 2 else None

    @property
    def bias_add(self) -> g.Node | None:
        """The Add that is a MatMul's bias: the only reader of the product, which the Add of a hard-swish is not."""
        second = self.nodes[1] if len(self.nodes) > 1 and self.anchor.op_type == "MatMul" else None
        alone = len(list(self.anchor.outputs[0].uses())) == 1
        return second if second is not None and second.op_type == "Add" and alone else None

    @property
    def weight_axis(self) -> int:
        """Axis of the weight along which output channels lie."""
        op = self.anchor.op_type
        if op == "Conv":
            return 0
        if op == "Gemm":
            return 0 if g.attribute(self.anchor, "transB", 0) else 1
        rank = len(g.constant(self.weight).shape)  # type: ignore[union-attr]
        return 1 if op == "ConvTranspose" else rank - 1

    @property
    def per_channel(self) -> bool:
        """Whether output channels lie along one axis of the weight (not so for a grouped ConvTranspose, nor for a
        MatMul with a vector or a stack of matrices)."""
        if self.anchor.op_type == "MatMul":
            return len(g.constant(self.weight).shape) == 2  # type: ignore[union-attr]
        return self.anchor.op_type != "ConvTranspose" or g.attribute(self.anchor, "group", 1) == 1


def _only_reader(value: g.Value) -> g.Node | None:
    readers = list(value.consumers())
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def _is_scalar(value: g.Value | None, expected: float) -> bool:
    array = g.constant(value)
    return array is not None and array.size == 1 and abs(float(array.reshape(-1)[0]) - expected) < 1e-6


def _other(node: g.Node, value: g.Value) -> g.Value | None:
    rest = [v for v in node.inputs if v is not value]
    return rest[0] if len(rest) == 1 else None


def _gate(value: g.Value) -> tuple[str, tuple[g.Node, ...], g.Value] | None:
    """An activation of the form x * f(x): SiLU, hard-swish, Mish, from their parts."""
    readers = list(dict.fromkeys(value.consumers()))
    if len(readers) != 2 or value.is_graph_output():
        return None
    for first, mul in (readers, readers[::-1]):
        if mul.op_type != "Mul":
            continue
        chain, end = [first], first.outputs[0]
        name = {"Sigmoid": "SiLU"}.get(first.op_type)
        if first.op_type == "HardSigmoid" and _is_hard_swish_gate(first):
            name = "HardSwish"
        if first.op_type == "Softplus":
            tanh = _only_reader(end)
            if tanh is not None and tanh.op_type == "Tanh":
                chain, end, name = [first, tanh], tanh.outputs[0], "Mish"
        if first.op_type == "Add" and _is_scalar(_other(first, value), 3.0):
            name, end = _hard_swish_tail(chain, end)
        if name is None:
            continue
        if _other(mul, value) is end and _only_reader(end) is mul:
            tail, out = _division_by_six(mul) if name == "HardSwish/6" else ([], mul.outputs[0])
            if out is None:
                continue
            return name.split("/")[0], (*chain, mul, *tail), out
    return None


def _is_hard_swish_gate(node: g.Node) -> bool:
    """clip(x / 6 + 1/2, 0, 1); the operator's own default is another slope."""
    return abs(g.attribute(node, "alpha", 0.2) - 1 / 6) < 1e-4 and abs(g.attribute(node, "beta", 0.5) - 0.5) < 1e-4


def _hard_swish_tail(chain: list[g.Node], end: g.Value) -> tuple[str | None, g.Value]:
    """Behind x + 3: Clip to 0..6, then a division by 6 here or after the product."""
    clip = _only_reader(end)
    if clip is None or clip.op_type != "Clip" or len(clip.inputs) < 3:
        return None, end
    if not (_is_scalar(clip.inputs[1], 0.0) and _is_scalar(clip.inputs[2], 6.0)):
        return None, end
    chain.append(clip)
    end = clip.outputs[0]
    scale = _only_reader(end)
    if scale is not None and _divides_by_six(scale, end):
        chain.append(scale)
        return "HardSwish", scale.outputs[0]
    return "HardSwish/6", end


def _divides_by_six(node: g.Node, value: g.Value) -> bool:
    if node.op_type == "Div":
        return node.inputs[0] is value and _is_scalar(node.inputs[1], 6.0)
    return node.op_type == "Mul" and _is_scalar(_other(node, value), 1 / 6)


def _division_by_six(mul: g.Node) -> tuple[list[g.Node], g.Value | None]:
    reader = _only_reader(mul.outputs[0])
    if reader is None or not _divides_by_six(reader, mul.outputs[0]):
        return [], None
    return [reader], reader.outputs[0]


def units(model: g.IrModel) -> list[Unit]:
    """All units of a graph in execution order. Anchors whose weights are computed at run time are not units."""
    found = []
    for node in g.nodes(model):
        if node.op_type not in ANCHORS or node.domain not in ("", "ai.onnx"):
            continue
        if len(node.inputs) < 2 or g.constant(node.inputs[1]) is None:
            continue
        out = node.outputs[0]
        parts: tuple[g.Node, ...] = (node,)
        activation = None
        # A bias written as an Add of a constant behind MatMul belongs to the unit, too.
        reader = _only_reader(out)
        biased = node.op_type == "MatMul" and reader is not None and reader.op_type == "Add"
        if biased and reader is not None and g.constant(_other(reader, out)) is not None:
            parts, out = (*parts, reader), reader.outputs[0]
            reader = _only_reader(out)
        gate = _gate(out)
        if gate is not None:
            activation, chain, end = gate
            parts, out = (*parts, *chain), end
        elif reader is not None and reader.op_type in _WHOLE and reader.inputs[0] is out:
            activation, parts, out = _WHOLE[reader.op_type], (*parts, reader), reader.outputs[0]
        inner = tuple(v for n in parts for v in n.outputs if v is not out)
        found.append(Unit(node.name or out.name or "", node, parts, activation, inner, out))
    return found
