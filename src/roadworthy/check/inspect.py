"""What a network costs, node by node: parameters, multiply-accumulates, operations and memory traffic.

    Conv             MACs = outputs * (C_in / groups) * kernel area
    ConvTranspose    MACs = inputs * (C_out / groups) * kernel area
    Gemm, MatMul     MACs = outputs * K
    every node       FLOPs = 2 * MACs + bias adds + operations per element (table `PER_OUTPUT`)
                     intensity = FLOPs / (bytes read + weight bytes + bytes written)

Counts follow the graph as a runtime sees it: what depends on constants alone is free (it is folded at load), views
(Reshape and its like) move nothing, and a Q/DQ pair is an annotation: the value it surrounds is carried at the width
of the integer. An operator that is in no table is listed by name as not counted; nothing is guessed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from roadworthy.errors import InputError

# Operations per output element. An exponential, a root, a rounding or a comparison is one operation.
PER_OUTPUT: dict[str, int] = {
    "Add": 1, "Sub": 1, "Mul": 1, "Div": 1, "Pow": 1, "Mod": 1, "PRelu": 2, "Where": 1,
    "Abs": 1, "Neg": 1, "Ceil": 1, "Floor": 1, "Round": 1, "Sign": 1, "Reciprocal": 1, "Not": 1,
    "And": 1, "Or": 1, "Xor": 1, "Equal": 1, "Greater": 1, "GreaterOrEqual": 1, "Less": 1, "LessOrEqual": 1,
    "Exp": 1, "Log": 1, "Sqrt": 1, "Sin": 1, "Cos": 1, "Erf": 1, "Tanh": 1,
    "Relu": 1, "LeakyRelu": 2, "Clip": 2, "ThresholdedRelu": 1, "Elu": 3, "Selu": 4, "Celu": 4,
    "Sigmoid": 4, "HardSigmoid": 4, "HardSwish": 5, "Swish": 5, "Softplus": 3, "Softsign": 3, "Mish": 5, "Gelu": 5,
    "BatchNormalization": 2, "InstanceNormalization": 8, "LayerNormalization": 8, "GroupNormalization": 8,
    "Softmax": 5, "LogSoftmax": 6, "LpNormalization": 3,
    "QuantizeLinear": 4, "DequantizeLinear": 2, "DynamicQuantizeLinear": 6,
}  # fmt: skip
# Operations per input element: reductions read each once.
PER_INPUT: dict[str, int] = {
    "GlobalAveragePool": 1, "GlobalMaxPool": 1, "ReduceMean": 1, "ReduceSum": 1, "ReduceMax": 1, "ReduceMin": 1,
    "ReduceProd": 1, "ReduceL1": 2, "ReduceL2": 2, "ReduceSumSquare": 2, "ReduceLogSumExp": 2, "ArgMax": 1,
    "ArgMin": 1, "CumSum": 1,
}  # fmt: skip
MOVES = frozenset({
    "Concat", "Slice", "Split", "Transpose", "Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND",
    "Pad", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Cast", "Range", "ConstantOfShape", "Constant", "OneHot",
    "NonZero", "EyeLike",
})  # fmt: skip
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Shape", "Size"})
INTERPOLATION_TAPS = {"nearest": 0, "linear": 2, "cubic": 4}  # per axis that changes

# Which constant inputs are learned parameters, by operator. Elementwise operands count where they are no literals,
# that is, where they hold more than one element.
LEARNED: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1), "ConvInteger": (1,),
    "MatMulInteger": (0, 1), "QLinearConv": (3, 8), "QLinearMatMul": (0, 3), "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2), "GroupNormalization": (1, 2), "PRelu": (1,),
    "Gather": (0,), "Add": (0, 1), "Sub": (0, 1), "Mul": (0, 1), "Div": (0, 1),
}  # fmt: skip
LITERAL_OK = frozenset({"Add", "Sub", "Mul", "Div"})
# Which inputs hold activations where a quantized operator has scales and zero points among its inputs.
ACTIVATIONS: dict[str, tuple[int, ...]] = {"QLinearConv": (0,), "QLinearMatMul": (0, 3)}


@dataclass(frozen=True)
class LayerCost:
    """The cost of one node.

    name: the node's name, or its first output where it has none.   op: ONNX operator type.
    output, shape: name and shape of its first output (None where it could not be inferred).
    parameters: learned values held by this node; values shared by several nodes count at the first.
    macs: multiply-accumulates.   flops: 2 * macs plus all other arithmetic.
    bytes_read, bytes_written: activations.   bytes_weights: constants, each read once; int8 weights take one byte.
    note: why the node is not counted; empty where it is.
    """

    name: str
    op: str
    output: str
    shape: tuple[int, ...] | None
    parameters: int = 0
    macs: int = 0
    flops: int = 0
    bytes_read: int = 0
    bytes_weights: int = 0
    bytes_written: int = 0
    note: str = ""

    @property
    def traffic_bytes(self) -> int:
        """Bytes moved when nothing stays in cache between nodes."""
        return self.bytes_read + self.bytes_weights + self.bytes_written

    @property
    def intensity(self) -> float:
        """FLOPs per byte of traffic (the abscissa of the roofline model); 0 where nothing is moved."""
        return self.flops / self.traffic_bytes if self.traffic_bytes else 0.0


@dataclass(frozen=True)
class Totals:
    """Sums over a network; the fields are those of `LayerCost`.

    convolutions: number of Conv, ConvTranspose, ConvInteger and QLinearConv nodes.
    by_op: operator -> number of nodes, most frequent first.
    not_counted: one line per node whose cost is unknown; the sums leave it out.
    """

    nodes: int
    convolutions: int
    parameters: int
    macs: int
    flops: int
    bytes_read: int
    bytes_weights: int
    bytes_written: int
    by_op: dict[str, int] = field(default_factory=dict)
    not_counted: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        return {**asdict(self), "not_counted": list(self.not_counted)}


def inspect(model: onnx.ModelProto) -> list[LayerCost]:
    """The cost of every node that runs, in graph order; nodes fed by constants alone are left out.

    model: a network with static shapes. It is not changed.
    Raises InputError when an input has a dynamic dimension or the graph is empty.
    Source: the arithmetic of the ONNX operator definitions; MACs as MobileNet (2017) and YOLOX (2021) count them.
    """
    return _Graph(model).costs()


def totals(layers: Iterable[LayerCost]) -> Totals:
    """The sums over `inspect`'s list."""
    layers = list(layers)
    ops = Counter(layer.op for layer in layers)
    return Totals(
        nodes=len(layers),
        convolutions=sum(ops[op] for op in ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv")),
        parameters=sum(layer.parameters for layer in layers),
        macs=sum(layer.macs for layer in layers),
        flops=sum(layer.flops for layer in layers),
        bytes_read=sum(layer.bytes_read for layer in layers),
        bytes_weights=sum(layer.bytes_weights for layer in layers),
        bytes_written=sum(layer.bytes_written for layer in layers),
        by_op=dict(ops.most_common()),
        not_counted=tuple(f"{layer.name}: {layer.note}" for layer in layers if layer.note),
    )


def table_rows(layers: Iterable[LayerCost]) -> list[dict[str, Any]]:
    """One plain dict per node, for JSON and for the console: `LayerCost`'s fields and `intensity`."""
    rows = []
    for layer in layers:
        row = asdict(layer)
        row["shape"] = None if layer.shape is None else list(layer.shape)
        row["intensity"] = round(layer.intensity, 3)
        rows.append(row)
    return rows


class _Graph:
    """Shapes, constants and consumers of one model, and the cost of its nodes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        if not graph.node:
            raise InputError(f"the graph `{graph.name}` has no nodes, so there is nothing to inspect; give a network")
        initializers = {tensor.name for tensor in graph.initializer}
        initializers |= {sparse.values.name for sparse in graph.sparse_initializer}
        for value in graph.input:
            dims = value.type.tensor_type.shape.dim
            if value.name not in initializers and any(dim.dim_value <= 0 for dim in dims):
                shown = [dim.dim_value if dim.dim_value > 0 else dim.dim_param or "?" for dim in dims]
                raise InputError(f"input `{value.name}` has the dynamic shape {shown}; fix it before inspecting")
        inferred = _infer(model).graph
        self.nodes: Sequence[onnx.NodeProto] = graph.node
        self.outputs = {value.name for value in graph.output}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: dict[str, int] = {}
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            tensor = value.type.tensor_type
            self.types[value.name] = tensor.elem_type
            if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
                self.shapes[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
        for initializer in inferred.initializer:  # those of the file, and what was evaluated for its shapes
            self.shapes[initializer.name] = tuple(initializer.dims)
            self.types[initializer.name] = initializer.data_type
        self.producer = {output: node for node in graph.node for output in node.output if output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.constants = set(initializers)
        for node in graph.node:
            by_shape = node.op_type in ("Shape", "Size") and node.input[0] in self.shapes
            if by_shape or (_is_known(node) and all(name in self.constants for name in node.input if name)):
                self.constants.update(node.output)
        self.consumed = self.consumers.keys() | self.outputs
        self.counted_parameters: set[str] = set()

    def costs(self) -> list[LayerCost]:
        return [self.cost(node) for node in self.nodes if not all(o in self.constants for o in node.output if o)]

    def cost(self, node: onnx.NodeProto) -> LayerCost:
        output = node.output[0]
        shape = self.shapes.get(output)
        name = node.name or output
        if not _is_known(node):
            operator = node.op_type if node.domain in _STANDARD else f"{node.domain}.{node.op_type}"
            return LayerCost(name, node.op_type, output, shape, note=f"operator {operator} is not counted")
        present = [value for value in (*node.input, *node.output) if value]
        unknown = next((value for value in present if value not in self.shapes), None)
        if unknown is not None:
            return LayerCost(name, node.op_type, output, shape, note=f"the shape of `{unknown}` is unknown")
        macs, other = self.arithmetic(node)
        read, weights, written = self.traffic(node)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and read == written == 0:
            other = 0
        learned, flops = self.parameters(node), 2 * macs + other
        return LayerCost(name, node.op_type, output, shape, learned, macs, flops, read, weights, written)

    def size(self, value: str) -> int:
        return math.prod(self.shapes[value])

    def arithmetic(self, node: onnx.NodeProto) -> tuple[int, int]:
        """(multiply-accumulates, other operations)."""
        op = node.op_type
        if op in COUNTERS:
            return COUNTERS[op](self, node)
        if op in PER_OUTPUT:
            return 0, PER_OUTPUT[op] * self.size(node.output[0])
        if op in PER_INPUT:
            return 0, PER_INPUT[op] * self.size(node.input[0])
        return 0, 0

    def traffic(self, node: onnx.NodeProto) -> tuple[int, int, int]:
        """Bytes of (activations read, constants read, activations written)."""
        if node.op_type in VIEWS:
            return 0, 0, 0
        if node.op_type == "QuantizeLinear" and self.bits(node.input[0]) == self.bits(node.output[0]):
            return 0, 0, 0  # written as an integer by the node before
        if node.op_type == "DequantizeLinear" and node.output[0] not in self.outputs:
            return 0, 0, 0  # read as an integer by the nodes behind
        read = weights = 0
        for index, value in enumerate(node.input):
            if value in self.constants:
                weights += _bytes(self.size(value), self.stored_bits(value))
            elif value and index in ACTIVATIONS.get(node.op_type, (index,)):
                elements = self.size(value)
                if node.op_type in ("Slice", "Gather", "GatherElements", "GatherND"):
                    elements = min(elements, self.size(node.output[0]))  # only what is taken is read
                read += _bytes(elements, self.bits(value))
        written = sum(_bytes(self.size(value), self.bits(value)) for value in node.output if value in self.consumed)
        return read, weights, written

    def bits(self, value: str) -> int:
        """Width at which an activation is carried: that of the integer where Q/DQ surrounds it."""
        if value not in self.outputs:
            producer = self.producer.get(value)
            if producer is not None and producer.op_type == "DequantizeLinear":
                return self.own_bits(producer.input[0])
            readers = self.consumers.get(value, [])
            if producer is not None and readers and all(reader.op_type == "QuantizeLinear" for reader in readers):
                return self.own_bits(readers[0].output[0])
        return self.own_bits(value)

    def own_bits(self, value: str) -> int:
        return _BITS.get(self.types.get(value, 0), 32)

    def stored_bits(self, value: str) -> int:
        """Width of a constant: the integer's where it is dequantized on the way."""
        walk: str | None = value
        while walk is not None and (producer := self.producer.get(walk)) is not None:
            if producer.op_type == "DequantizeLinear":
                return self.own_bits(producer.input[0])
            walk = producer.input[0] if producer.op_type in _REARRANGES else None
        return self.own_bits(value)

    def parameters(self, node: onnx.NodeProto) -> int:
        count = 0
        for index in LEARNED.get(node.op_type, ()):
            value = node.input[index] if index < len(node.input) else ""
            if value not in self.constants or (node.op_type in LITERAL_OK and self.size(value) == 1):
                continue
            if self.types.get(value) == onnx.TensorProto.INT64:
                continue  # indices or a shape, nothing learned
            root = value
            while (producer := self.producer.get(root)) is not None and producer.op_type in _REARRANGES:
                root = producer.input[0]
            if root not in self.counted_parameters:
                self.counted_parameters.add(root)
                count += self.size(value)
        return count

    def attribute(self, node: onnx.NodeProto, name: str, default: Any) -> Any:
        return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _conv(graph: _Graph, node: onnx.NodeProto) -> tuple[int, int]:
    weight = graph.shapes[node.input[3 if node.op_type == "QLinearConv" else 1]]  # O, I / groups, kernel...
    bias_at = {"Conv": 2, "QLinearConv": 8}.get(node.op_type)
    outputs = graph.size(node.output[0])
    return outputs * math.prod(weight[1:]), outputs * _has(node, bias_at)


def _conv_transpose(graph: _Graph, node: onnx.NodeProto) -> tuple[int, int]:
    weight = graph.shapes[node.input[1]]  # I, O / groups, kernel...
    return graph.size(node.input[0]) * math.prod(weight[1:]), graph.size(node.output[0]) * _has(node, 2)


def _gemm(graph: _Graph, node: onnx.NodeProto) -> tuple[int, int]:
    a = graph.shapes[node.input[0]]
    inner = a[0] if graph.attribute(node, "transA", 0) else a[1]
    outputs = graph.size(node.output[0])
    return outputs * inner, outputs * _has(node, 2)


def _matmul(graph: _Graph, node: onnx.NodeProto) -> tuple[int, int]:
    return graph.size(node.output[0]) * graph.shapes[node.input[0]][-1], 0


def _pool(graph: _Graph, node: onnx.NodeProto) -> tuple[int, int]:
    return 0, graph.size(node.output[0]) * math.prod(graph.attribute(node, "kernel_shape", [1]))


def _resize(graph: _Graph, node: onnx.NodeProto) -> tuple[int, int]:
    mode = graph.attribute(node, "mode", b"nearest").decode()
    before, after = graph.shapes[node.input[0]], graph.shapes[node.output[0]]
    axes = sum(a != b for a, b in zip(before, after))
    taps = INTERPOLATION_TAPS[mode] ** axes if axes and mode != "nearest" else 0
    return 0, graph.size(node.output[0]) * max(2 * taps - 1, 0)  # a weighted sum of `taps` values


def _operands(graph: _Graph, node: onnx.NodeProto) -> tuple[int, int]:
    return 0, graph.size(node.output[0]) * (len(node.input) - 1)


COUNTERS: dict[str, Callable[[_Graph, onnx.NodeProto], tuple[int, int]]] = {
    "Conv": _conv,
    "ConvInteger": _conv,
    "QLinearConv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "Resize": _resize,
    "Upsample": _resize,
    "Sum": _operands,
    "Max": _operands,
    "Min": _operands,
    "Mean": _operands,
}
_REARRANGES = {"DequantizeLinear", "QuantizeLinear", "Cast", "Transpose"} | (VIEWS - {"Shape", "Size"})
_STANDARD = ("", "ai.onnx")


def _is_known(node: onnx.NodeProto) -> bool:
    tables = (VIEWS, MOVES, PER_OUTPUT, PER_INPUT, COUNTERS)
    return node.domain in _STANDARD and any(node.op_type in table for table in tables)


# Operators that exporters build shapes with. They are evaluated only where inference alone leaves shapes open.
_SHAPE_OPS = {
    "Shape", "Size", "Constant", "ConstantOfShape", "Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Reshape",
    "Transpose", "Cast", "Identity", "Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Floor", "Ceil", "Min", "Max",
    "Where", "Equal", "Range", "Split", "Expand", "Flatten", "ReduceProd",
}  # fmt: skip
_SMALL = 4096  # elements; no shape computation is longer


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all shapes that follow from its inputs. Shape inference does not look into ConstantOfShape,
    Slice or Pad chains; those are evaluated here and handed back to it as initializers, until nothing new comes."""
    work = model
    while True:
        try:
            inferred = onnx.shape_inference.infer_shapes(work, data_prop=True)
        except (onnx.shape_inference.InferenceError, ValueError) as error:
            line = (str(error).strip().splitlines() or ["no reason given"])[0]
            name = model.graph.name
            raise InputError(f"ONNX shape inference fails on graph `{name}`: {line}; check the file") from error
        found = _evaluate_shapes(inferred.graph)
        if not found:
            return inferred
        if work is model:
            work = onnx.ModelProto()
            work.CopyFrom(model)
        kept = [node for node in work.graph.node if not set(node.output) & found.keys()]
        del work.graph.node[:]
        work.graph.node.extend(kept)
        work.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in found.items())


def _evaluate_shapes(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Values of the nodes that follow from small constants and known shapes; empty when no shape is open."""
    shapes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    }
    if all(output in shapes or not output for node in graph.node for output in node.output):
        return {}
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer if math.prod(t.dims) <= _SMALL}
    found: dict[str, np.ndarray] = {}
    for node in graph.node:
        if node.domain not in _STANDARD or node.op_type not in _SHAPE_OPS:
            continue
        if node.op_type in ("Shape", "Size") and node.input[0] in shapes:
            feeds = {node.input[0]: np.broadcast_to(np.float32(0), shapes[node.input[0]])}  # no memory behind it
        elif all(name in values for name in node.input if name):
            feeds = {name: values[name] for name in node.input if name}
        else:
            continue
        if node.op_type in ("ConstantOfShape", "Expand") and np.prod(feeds[node.input[-1]]) > _SMALL:
            continue
        try:
            results = ReferenceEvaluator(node).run(None, feeds)
        except Exception:  # the evaluator raises what NumPy raises; such a node stays unknown and is named later
            continue
        for name, value in zip(node.output, results):
            if isinstance(value, np.ndarray | np.generic) and value.size <= _SMALL:
                values[name] = found[name] = np.asarray(value)
    return found


def _bits_of_types() -> dict[int, int]:
    """Bits per element of every ONNX tensor type; sub-byte types by the number in their name."""
    bits = {}
    for name, number in onnx.TensorProto.DataType.items():
        digits = "".join(c if c.isdigit() else " " for c in name).split()
        bits[number] = {"FLOAT": 32, "DOUBLE": 64, "BOOL": 8}.get(name, int(digits[0]) if digits else 32)
    return bits


_BITS = _bits_of_types()


def _bytes(elements: int, bits: int) -> int:
    return (elements * bits + 7) // 8


def _has(node: onnx.NodeProto, index: int | None) -> int:
    return int(index is not None and len(node.input) > index and bool(node.input[index]))
