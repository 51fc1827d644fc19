"""OPS: what kind each operator is. An operator that no row names is "unknown", and a pass that meets one says so."""

from __future__ import annotations

from typing import Literal

Kind = Literal["compute", "activation", "elementwise", "pool", "move", "join", "reduce", "resize", "shape", "quantize"]

OPS: dict[str, Kind] = {
    # Multiply-accumulate with weights: what quantization is about.
    "Conv": "compute", "ConvTranspose": "compute", "Gemm": "compute", "MatMul": "compute",
    # One value in, one out, a fixed function of it.
    "Relu": "activation", "Clip": "activation", "LeakyRelu": "activation", "PRelu": "activation",
    "Sigmoid": "activation", "HardSigmoid": "activation", "HardSwish": "activation", "Tanh": "activation",
    "Elu": "activation", "Selu": "activation", "Celu": "activation", "Softplus": "activation",
    "Softsign": "activation", "Gelu": "activation", "Mish": "activation", "Swish": "activation",
    "ThresholdedRelu": "activation", "Erf": "activation",
    "Softmax": "activation", "LogSoftmax": "activation",
    "Add": "elementwise", "Sub": "elementwise", "Mul": "elementwise", "Div": "elementwise", "Pow": "elementwise",
    "Exp": "elementwise", "Log": "elementwise", "Sqrt": "elementwise", "Neg": "elementwise", "Abs": "elementwise",
    "Max": "elementwise", "Min": "elementwise", "Floor": "elementwise", "Ceil": "elementwise", "Round": "elementwise",
    "Reciprocal": "elementwise", "Sum": "elementwise", "Mean": "elementwise", "Where": "elementwise",
    "Equal": "elementwise", "Less": "elementwise", "Greater": "elementwise", "Not": "elementwise",
    "LessOrEqual": "elementwise", "GreaterOrEqual": "elementwise", "And": "elementwise", "Or": "elementwise",
    "Mod": "elementwise", "Sign": "elementwise", "Sin": "elementwise", "Cos": "elementwise",
    "BatchNormalization": "elementwise", "InstanceNormalization": "elementwise",
    "LayerNormalization": "elementwise", "GroupNormalization": "elementwise", "LRN": "elementwise",
    "MaxPool": "pool", "AveragePool": "pool", "GlobalAveragePool": "pool", "GlobalMaxPool": "pool", "LpPool": "pool",
    # Values only change place.
    "Reshape": "move", "Transpose": "move", "Flatten": "move", "Squeeze": "move", "Unsqueeze": "move",
    "Slice": "move", "Split": "move", "Gather": "move", "GatherElements": "move", "GatherND": "move",
    "Expand": "move", "Tile": "move", "Pad": "move", "DepthToSpace": "move", "SpaceToDepth": "move",
    "Identity": "move", "Dropout": "move", "Cast": "move", "ScatterND": "move", "ScatterElements": "move",
    "Concat": "join",
    "Resize": "resize", "Upsample": "resize", "GridSample": "resize",
    "ReduceMean": "reduce", "ReduceSum": "reduce", "ReduceMax": "reduce", "ReduceMin": "reduce",
    "ReduceL2": "reduce", "ReduceProd": "reduce", "ArgMax": "reduce", "ArgMin": "reduce", "TopK": "reduce",
    "CumSum": "reduce", "Einsum": "reduce",
    "Shape": "shape", "Size": "shape", "Constant": "shape", "ConstantOfShape": "shape", "Range": "shape",
    "NonZero": "shape", "NonMaxSuppression": "shape", "If": "shape", "Loop": "shape",
    "QuantizeLinear": "quantize", "DequantizeLinear": "quantize",
}  # fmt: skip


def kind(op_type: str) -> Kind | Literal["unknown"]:
    """The row of an operator, or "unknown"."""
    return OPS.get(op_type, "unknown")
