"""TARGETS: what each runtime can do, as a table. One placement function reads it; nothing else asks for a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from roadworthy.run import openvino, ort
from roadworthy.run.runner import Runner, Target

if TYPE_CHECKING:
    from roadworthy.model.model import Model

_MOVES = frozenset({"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather",
                    "DepthToSpace", "SpaceToDepth", "Identity"})  # fmt: skip

# QLinear kernels of ONNX Runtime's CPU provider; an elementwise op outside this set runs in float between DQ and Q.
_QLINEAR = frozenset({"Conv", "Gemm", "MatMul", "Add", "Mul", "AveragePool", "GlobalAveragePool", "Concat", "LeakyRelu",
                      "Sigmoid", "Softmax"})  # fmt: skip

# Activations behind a layer that the native engine computes inside it, by table or polynomial.
_NATIVE_ACTIVATIONS = frozenset({"LeakyRelu", "Sigmoid", "SiLU", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Mish",
                                 "Elu"})  # fmt: skip


def _load_native(model: bytes, threads: int = 0) -> Runner:
    from roadworthy.run.native.runner import load

    return load(model, threads)


def _native_plan(model: bytes) -> bytes:
    from roadworthy.run.native.runner import plan_of

    return plan_of(model)


def _load_fixed(model: bytes, threads: int = 0) -> Runner:
    from roadworthy.run.native.runner import load

    return load(model, threads, "fixed")


def _fixed_plan(model: bytes) -> bytes:
    from roadworthy.run.native.runner import plan_of

    return plan_of(model, "fixed")


def _native_available() -> bool:
    try:
        return find_spec("roadworthy.run.native.runner") is not None and find_spec("roadworthy._native") is not None
    except ModuleNotFoundError:
        return False


_NATIVE = Target(
    name="native",
    # Functions of one value stand for themselves here: on codes they are tables.
    int8_ops=frozenset(
        {
            "Conv",
            "Gemm",
            "MatMul",
            "Add",
            "Mul",
            "AveragePool",
            "GlobalAveragePool",
            "ReduceMean",
            "Concat",
            "Relu",
            "Clip",
            "LeakyRelu",
            "Sigmoid",
            "HardSigmoid",
            "HardSwish",
            "Tanh",
            "Gelu",
            "Mish",
            "Elu",
            "Swish",
        }
    ),
    passthrough_ops=_MOVES | {"Resize", "Pad"},
    fused_activations=frozenset({"Relu", "Clip"}),
    unit_activations=_NATIVE_ACTIVATIONS,
    symmetric_activations=False,
    quantized_bias=True,
    load=_load_native,
    available=_native_available,
    missing="the native engine is not built; install a C++ compiler (Debian: `apt install g++`) and then"
    " Roadworthy again",
    file="model.rwp",
    deploy=_native_plan,
    channel_activations=True,
    tables=True,
    whole=True,
)

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
        activation_bits=(8, 16),
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
        activation_bits=(8, 16),
        available=openvino.available,
        missing="the target openvino is not installed; `pip install 'roadworthy[openvino]'`",
    ),
    "native": _NATIVE,
    # For devices without floating point: the same codes, other multipliers; run on this engine to show what they give.
    "fixed": replace(_NATIVE, name="fixed", load=_load_fixed, deploy=_fixed_plan, simulated=True),
}


def _witness_torch(model: Model) -> Runner:
    from roadworthy.run.torch import TorchRunner

    return TorchRunner(model)


def _witness_float64(model: Model) -> Runner:
    from roadworthy.run.torch import TorchRunner

    return TorchRunner(model, exact=True)


def _witness_reference(model: Model) -> Runner:
    from roadworthy.run.reference import ReferenceRunner

    return ReferenceRunner(model)


WITNESSES: dict[str, Callable[[Model], Runner]] = {
    "torch": _witness_torch,
    "float64": _witness_float64,
    "reference": _witness_reference,
}
"""Runners to compare with, which are no place to deploy to: nothing compresses for them, measures or budgets them.
`torch` and `float64` run the float graph, whatever the encodings, on PyTorch and in the precision that their names say;
`reference` is the oracle of the native engine's arithmetic."""
