"""TARGETS: what each runtime can do, as a table. One placement function reads it; nothing else asks for a name."""

from __future__ import annotations

from roadworthy.run import openvino, ort
from roadworthy.run.runner import Target

_MOVES = frozenset({"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather",
                    "DepthToSpace", "SpaceToDepth", "Identity"})  # fmt: skip

# QLinear kernels of ONNX Runtime's CPU provider; an elementwise op outside this set runs in float between DQ and Q.
_QLINEAR = frozenset({"Conv", "Gemm", "MatMul", "Add", "Mul", "AveragePool", "GlobalAveragePool", "Concat", "LeakyRelu",
                      "Sigmoid", "Softmax"})  # fmt: skip

TARGETS: dict[str, Target] = {
    "ort": Target(
        name="ort",
        int8_ops=_QLINEAR,
        passthrough_ops=_MOVES | {"Resize"},
        fused_activations=frozenset({"Relu", "Clip"}),
        unit_activations=frozenset(),
        symmetric_activations=False,
        quantized_bias=True,
        load=ort.load,
    ),
    "openvino": Target(
        name="openvino",
        int8_ops=frozenset({"Conv", "Gemm", "MatMul", "Add", "Mul", "AveragePool", "GlobalAveragePool", "Concat"}),
        passthrough_ops=_MOVES | {"Resize"},
        fused_activations=frozenset({"Relu", "Clip", "LeakyRelu", "PRelu"}),
        # oneDNN post-ops: computed on the accumulator before it is quantized.
        unit_activations=frozenset({"SiLU", "HardSwish", "Sigmoid", "Elu", "Tanh", "Gelu", "Mish", "HardSigmoid"}),
        symmetric_activations=False,
        quantized_bias=True,
        load=openvino.load,
    ),
}
