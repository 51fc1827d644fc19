"""Faults for exported ONNX files: each edits a copy of the bytes at one layer or value, and nothing else.

A layer is named by its convolution's (or Gemm's) node; new initializers are made, because scales are shared.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

ANCHORS = ("Conv", "Gemm", "MatMul")


class Surgery:
    """An ONNX file to be edited by name."""

    def __init__(self, data: bytes) -> None:
        self.proto = onnx.load_model_from_string(data)
        self.graph = self.proto.graph
        self.maker = {o: n for n in self.graph.node for o in n.output}
        self.tensors = {t.name: t for t in self.graph.initializer}

    def bytes(self) -> bytes:
        return self.proto.SerializeToString()

    def layers(self) -> list[onnx.NodeProto]:
        return [n for n in self.graph.node if n.op_type in ANCHORS]

    def layer(self, name: str) -> onnx.NodeProto:
        return next(n for n in self.layers() if n.name == name)

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.tensors[name])

    def new(self, array: np.ndarray) -> str:
        name = f"planted{len(self.tensors)}"
        tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
        self.graph.initializer.append(tensor)
        self.tensors[name] = tensor
        return name

    def is_quantized(self, layer: onnx.NodeProto) -> bool:
        """Whether its weights are stored as integers."""
        return layer.input[1] in self.maker

    def scale_weights(self, layer: onnx.NodeProto, factor: float, channel: int | None = None) -> None:
        """The scale of the weights, of all channels or of one, times factor."""
        expand = self.maker[layer.input[1]]  # DequantizeLinear, or Mul of the cast codes
        scale = self.array(expand.input[1]).copy()
        if channel is None:
            scale = scale * np.float32(factor)
        else:
            scale.reshape(-1)[channel] *= np.float32(factor)
        expand.input[1] = self.new(scale.astype(np.float32))

    def drop_bias(self, layer: onnx.NodeProto) -> None:
        codes = layer.input[2]
        if codes in self.maker:
            expand = self.maker[codes]
            expand.input[0] = self.new(np.zeros_like(self.array(expand.input[0])))
        else:
            layer.input[2] = self.new(np.zeros_like(self.array(codes)))

    def swap_channels(self, layer: onnx.NodeProto, first: int, second: int, axis: int = 0) -> None:
        """Exchange two channels of the weights' codes."""
        expand = self.maker[layer.input[1]]
        holder, slot = expand, 0
        while holder.input[slot] in self.maker:
            holder = self.maker[holder.input[slot]]
        codes = self.array(holder.input[slot]).copy()
        order = np.arange(codes.shape[axis])
        order[[first, second]] = order[[second, first]]
        holder.input[slot] = self.new(np.take(codes, order, axis))

    def pairs(self) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
        """All (QuantizeLinear, DequantizeLinear) of activations, in order."""
        return [
            (self.maker[n.input[0]], n)
            for n in self.graph.node
            if n.op_type == "DequantizeLinear"
            and n.input[0] in self.maker
            and self.maker[n.input[0]].op_type == "QuantizeLinear"
        ]

    def scale_reading(self, pair: tuple[onnx.NodeProto, onnx.NodeProto], factor: float) -> None:
        """The scale with which codes are read, but not the one with which they are written, times factor."""
        dq = pair[1]
        dq.input[1] = self.new((self.array(dq.input[1]) * np.float32(factor)).astype(np.float32))

    def scale_encoding(self, pair: tuple[onnx.NodeProto, onnx.NodeProto], factor: float) -> None:
        """Both scales of a pair times factor: a range that was measured on something else."""
        name = self.new((self.array(pair[0].input[1]) * np.float32(factor)).astype(np.float32))
        pair[0].input[1] = name
        pair[1].input[1] = name
