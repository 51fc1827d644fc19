"""Taking a network apart: every matched tensor is cut, so that each layer of b can be judged on its own.

    readers of v in b          read the new graph input "in|v", which is fed with a's value of v
    v (before its codes)       is what b's layer makes of a's tensors: the local result
    v through QuantizeLinear   is what b's readers would see of a's value: the coded value
      and DequantizeLinear
    "a<k>|v"                   is a's own layer, copied next to b's and reading exactly what b's layer reads: the shadow

Local result against shadow shows what weights, biases and attributes did, with the rounding of the inputs taken out;
coded value against a's value shows what the encoding did. A fault therefore shows at the tensor where it was made and
at no other. All of it is one ONNX graph, run without graph optimizations, so that Q/DQ means what the standard says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from roadworthy.check.pairing import PAIR, Graph, Match, Pairing, needed, opsets, serialized

FEED = "in|"
_ROUNDS = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger"}
)


@dataclass(frozen=True, eq=False)
class LocalGraph:
    """b taken apart, for some of the matches.

    model: serialized.   feeds: graph input -> the value of a that it is fed with.
    shadow: match name -> the value that a's copied layer makes, where that is not simply a's own value.
    rounded: names of matches whose layer in b rounds activations inside, at values that a does not have.
    """

    model: bytes
    feeds: dict[str, str]
    shadow: dict[str, str]
    rounded: frozenset[str]


def take_apart(pairing: Pairing, group: Sequence[Match]) -> LocalGraph:
    """The graph in which the layers of b that make the values of `group` stand alone, each beside its shadow."""
    b = pairing.b
    feed_of = {m.root: pairing.input_b if m.is_input else FEED + m.name for m in pairing.matches}
    origin = {pairing.input_b: pairing.input_a}
    origin.update({feed_of[m.root]: m.name for m in pairing.matches if not m.is_input})
    nodes = []
    for node in b.nodes:
        made = onnx.NodeProto()
        made.CopyFrom(node)
        for k, name in enumerate(node.input):
            if name in feed_of:
                made.input[k] = feed_of[name]
        nodes.append(made)
    producer = {o: n for n in nodes for o in n.output}
    constants = {t.name: t for t in b.proto.graph.initializer}
    cut = {m.name for m in pairing.matches} | {pairing.input_a}
    feed_by_name = {name: feed for feed, name in origin.items()}
    shadow: dict[str, str] = {}
    rounded: set[str] = set()
    # Nodes of different operator sets cannot stand in one graph: then a's own values are the measure.
    comparable = opsets(pairing.a.proto) == opsets(b.proto)
    for k, match in enumerate(group):
        if match.is_input or not comparable:
            continue
        read, rounds = _sources(match.root, producer, origin)
        if rounds:
            rounded.add(match.name)
        if all(v in origin for v in read.values()):
            continue  # b's layer reads a's tensors as they are: the shadow would be a's own value
        copied = _shadow(pairing.a, match.name, cut, read, feed_by_name, f"a{k}|", constants)
        nodes.extend(copied)
        shadow[match.name] = f"a{k}|{match.name}"
    wanted = [m.root for m in group if not m.is_input] + [m.coded for m in group if m.coded] + list(shadow.values())
    nodes = needed(nodes, wanted)
    used = {i for n in nodes for i in n.input}
    feeds = {f: name for f, name in origin.items() if f in used}
    shapes = {m.name: m.shape for m in pairing.matches}
    graph = helper.make_graph(
        nodes,
        "local",
        [helper.make_tensor_value_info(f, onnx.TensorProto.FLOAT, shapes.get(n)) for f, n in feeds.items()],
        [helper.make_empty_tensor_value_info(v) for v in dict.fromkeys(wanted)],
        [t for name, t in constants.items() if name in used],
    )
    return LocalGraph(serialized(graph, b.proto), feeds, shadow, frozenset(rounded))


def _sources(root: str, producer: dict[str, onnx.NodeProto], origin: dict[str, str]) -> tuple[dict[str, str], bool]:
    """What the layer that makes `root` reads: value of a -> the value of b's graph that stands for it; and whether it
    rounds anything else on the way."""
    rounds = False
    read: dict[str, str] = {}
    seen: set[str] = set()
    stack = [i for i in producer[root].input if i]
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in origin:
            read.setdefault(origin[name], name)
            continue
        node = producer.get(name)
        if node is None:
            continue
        if node.op_type == PAIR[1]:
            q = producer.get(node.input[0])
            if q is not None and q.op_type == PAIR[0] and q.input[0] in origin:
                # A layer that reads a value both with and without codes is compared on the codes.
                read[origin[q.input[0]]] = name
                continue
        rounds = rounds or node.op_type in _ROUNDS
        stack.extend(i for i in node.input if i)
    return read, rounds


def _shadow(
    a: Graph,
    name: str,
    cut: set[str],
    read: dict[str, str],
    feeds: dict[str, str],
    prefix: str,
    constants: dict[str, onnx.TensorProto],
) -> list[onnx.NodeProto]:
    """Copies of a's nodes between the cut values and `name`; their constants are added to `constants`."""
    chain = {id(n) for n in _behind(a, name, cut)}
    copies = []
    for node in a.nodes:
        if id(node) not in chain:
            continue
        made = onnx.NodeProto()
        made.CopyFrom(node)
        made.name = prefix + node.name
        for k, source in enumerate(node.input):
            if not source:
                continue
            if source in cut:
                made.input[k] = read.get(source, feeds[source])
            elif source in a.constants:
                made.input[k] = "a|" + source
                if made.input[k] not in constants:
                    tensor = onnx.TensorProto()
                    tensor.CopyFrom(a.constants[source])
                    tensor.name = made.input[k]
                    constants[tensor.name] = tensor
            else:
                made.input[k] = prefix + source
        for k, out in enumerate(node.output):
            made.output[k] = prefix + out if out else ""
        copies.append(made)
    return copies


def _behind(a: Graph, name: str, cut: set[str]) -> Iterable[onnx.NodeProto]:
    seen: set[int] = set()
    stack = [a.producer[name]]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        stack.extend(a.producer[i] for i in node.input if i and i not in cut and i in a.producer)
