"""Which function an ONNX node, or the activation of a unit, computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.units import Unit
from roadworthy.run.arithmetic.functions import Function

_PLAIN = {
    "Identity": "none", "Dropout": "none", "Relu": "relu", "Sigmoid": "sigmoid", "HardSwish": "hard_swish",
    "Tanh": "tanh", "Exp": "exp", "Mish": "mish", "Softplus": "softplus", "Sqrt": "sqrt", "Abs": "abs", "Neg": "neg",
    "Reciprocal": "reciprocal", "Log": "log",
}  # fmt: skip
_POWERS = {1.0: "none", 2.0: "square", 0.5: "sqrt", -1.0: "reciprocal"}
_GATES = {"SiLU": "silu", "HardSwish": "hard_swish", "Mish": "mish"}


def function_of_node(node: g.Node) -> Function | None:
    """The function of one value that a node computes; None when it computes something else.

    Raises UnsupportedError for bounds or slopes that are known only at run time.
    """
    op = node.op_type
    if node.domain not in ("", "ai.onnx"):
        return None
    if op in _PLAIN:
        return Function(_PLAIN[op])
    if op in _WITH_ATTRIBUTES:
        return _WITH_ATTRIBUTES[op](node)
    if op in _WITH_NUMBER and len(node.inputs) == 2:
        first, second = node.inputs
        if first is second and op == "Mul":
            return Function("square")
        left, right = _number(first, second), _number(second, first)
        if right is not None:
            return _WITH_NUMBER[op](right, False)
        if left is not None:
            return _WITH_NUMBER[op](left, True)
    return None


def function_of_unit(unit: Unit) -> Function | None:
    """The activation of a unit; None without one. Raises UnsupportedError where the engine has no such function."""
    if unit.activation is None:
        return None
    if len(unit.nodes) > 1 and unit.activation in _GATES and unit.nodes[-1].op_type in ("Mul", "Div"):
        return Function(_GATES[unit.activation])
    found = function_of_node(unit.nodes[-1])
    if found is None:
        raise UnsupportedError(
            f"{unit.nodes[-1].op_type} {unit.nodes[-1].name!r} is no function of one value with fixed numbers"
            " (a slope per channel, perhaps), so that no layer can end in it"
        )
    return found


def _number(value: g.Value | None, beside: g.Value | None) -> float | None:
    """The one number of a constant operand that does not change the shape of the other."""
    array = g.constant(value)
    if array is None or array.size != 1 or array.dtype.kind != "f":
        return None
    shape = g.static_shape(beside)
    fits = array.ndim == 0 or (shape is not None and array.ndim <= len(shape))
    return float(array.reshape(-1)[0]) if fits else None


def _bound(node: g.Node, index: int, absent: float) -> float:
    if len(node.inputs) <= index or node.inputs[index] is None:
        return absent
    array = g.constant(node.inputs[index])
    if array is None:
        raise UnsupportedError(f"Clip {node.name!r} has bounds computed at run time; export it with fixed ones")
    return float(array.reshape(-1)[0])


def _prelu(node: g.Node) -> Function | None:
    slope = g.constant(node.inputs[1])
    if slope is None or slope.size == 0 or (slope != slope.flat[0]).any():
        return None
    return Function("leaky_relu", float(slope.flat[0]))


def _swish(node: g.Node) -> Function | None:
    return Function("silu") if g.attribute(node, "alpha", 1.0) == 1.0 else None


_WITH_ATTRIBUTES: dict[str, Callable[[g.Node], Function | None]] = {
    "Clip": lambda n: Function("clip", _bound(n, 1, -np.inf), _bound(n, 2, np.inf)),
    "LeakyRelu": lambda n: Function("leaky_relu", float(g.attribute(n, "alpha", 0.01))),
    "PRelu": _prelu,
    "HardSigmoid": lambda n: Function(
        "hard_sigmoid", float(g.attribute(n, "alpha", 0.2)), float(g.attribute(n, "beta", 0.5))
    ),
    "Elu": lambda n: Function("elu", float(g.attribute(n, "alpha", 1.0))),
    "Gelu": lambda n: Function("gelu_tanh" if g.attribute(n, "approximate", "none") == "tanh" else "gelu_erf"),
    "Swish": _swish,
}

# number, whether the number is the first operand -> function.
_WITH_NUMBER: dict[str, Callable[[float, bool], Function | None]] = {
    "Add": lambda k, first: Function("affine", 1.0, k),
    "Sub": lambda k, first: Function("affine", -1.0, k) if first else Function("affine", 1.0, -k),
    "Mul": lambda k, first: Function("affine", k, 0.0),
    "Div": lambda k, first: (Function("reciprocal") if k == 1.0 else None) if first else _divided_by(k),
    "Max": lambda k, first: Function("clip", k, np.inf),
    "Min": lambda k, first: Function("clip", -np.inf, k),
    "Pow": lambda k, first: None if first or k not in _POWERS else Function(_POWERS[k]),
}


def _divided_by(k: float) -> Function | None:
    """x / k as x * (1 / k), which rounds 1 / k and the product: at most one unit in the last place from x / k."""
    return Function("affine", 1.0 / k, 0.0) if k != 0 and np.isfinite(np.float32(1.0 / k)) else None
