"""Every operator of the PyTorch bridge against ONNX Runtime, and its gradient against finite differences.

Bounds. Forward: 1e-4 of the largest result, as in test_torch. Gradients are taken in float64, where a central
difference of step 1e-6 is good to about 1e-8 of the values; `gradcheck` asks for 1e-5 relative, 1e-7 absolute.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from test_reference_ops import EQUAL, FUNCTIONS, IMAGE, SUMS, resize
from test_torch import agree

from onnx_graphs import N, build, ort, rand
from roadworthy.model import graph as g
from roadworthy.model.model import load
from roadworthy.run import torch as bridge

torch = pytest.importorskip("torch")
from roadworthy.run.torch.operators import CONTRIB, OPERATORS, WITHOUT_GRADIENT  # noqa: E402


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


MORE: dict[str, tuple] = {
    "selu": ([N("Selu", ["x"], ["y"])], {}),
    "celu": ([N("Celu", ["x"], ["y"], alpha=0.6)], {}),
    "softsign": ([N("Softsign", ["x"], ["y"])], {}),
    "thresholded": ([N("ThresholdedRelu", ["x"], ["y"], alpha=0.4)], {}),
    "log softmax": ([N("LogSoftmax", ["x"], ["y"], axis=2)], {}),
    "sine and cosine": ([N("Sin", ["x"], ["s"]), N("Cos", ["s"], ["y"])], {}),
    "sign": ([N("Sign", ["x"], ["y"])], {}),
    "reciprocal": ([N("Exp", ["x"], ["e"]), N("Reciprocal", ["e"], ["y"])], {}),
    "sum of three": ([N("Sum", ["x", "k", "x"], ["y"])], {"k": rand(4, 1, 1)}),
    "mean of two": ([N("Mean", ["x", "k"], ["y"])], {"k": rand(4, 1, 1)}),
    "where": ([N("Less", ["x", "k"], ["c"]), N("Where", ["c", "x", "k"], ["y"])], {"k": rand(7)}),
    "not and or": (
        [N("Greater", ["x", "k"], ["a"]), N("GreaterOrEqual", ["x", "l"], ["b"]), N("LessOrEqual", ["x", "l"], ["e"]),
         N("Equal", ["x", "k"], ["f"]), N("And", ["a", "b"], ["c"]), N("Or", ["c", "f"], ["h"]), N("Not", ["h"], ["d"]),
         N("And", ["d", "e"], ["i"]), N("Cast", ["i"], ["y"], to=1)],
        {"k": rand(7), "l": rand(9, 1)},
    ),
    "instance normalization": (
        [N("InstanceNormalization", ["x", "a", "b"], ["y"], epsilon=0.01)], {"a": rand(4), "b": rand(4, seed=1)},
    ),
    "layer normalization": (
        [N("LayerNormalization", ["x", "a", "b"], ["y"], axis=-2)], {"a": rand(9, 7), "b": rand(9, 7, seed=1)},
    ),
    "l2": ([N("ReduceL2", ["x"], ["y"], axes=[1, -1], keepdims=0)], {}, IMAGE, 17),
    "product": ([N("ReduceProd", ["x"], ["y"], axes=[1])], {}, IMAGE, 17),
    "reduce everything": ([N("ReduceMin", ["x"], ["y"])], {}),
    "best index": ([N("ArgMax", ["x"], ["i"], axis=1), N("Cast", ["i"], ["y"], to=1)], {}),
    "worst index": ([N("ArgMin", ["x"], ["i"], axis=-1, keepdims=0), N("Cast", ["i"], ["y"], to=1)], {}),
    "best three": ([N("TopK", ["x", "k"], ["y", "i"], axis=2)], {"k": i64(3)}),
    "gather elements": ([N("GatherElements", ["x", "k"], ["y"], axis=3)], {"k": np.full((1, 4, 9, 2), -3)}),
    "average pool, dilated": ([N("AveragePool", ["x"], ["y"], kernel_shape=[2, 3], dilations=[2, 2])], {}),
    "pad around": ([N("Pad", ["x", "k"], ["y"], mode="wrap")], {"k": i64(0, 0, 2, 3, 0, 0, 1, -2)}),
    "cubic": resize("cubic", "half_pixel", None, (2, 3)),
    "cubic, smaller": resize("cubic", "align_corners", (4, 11), cubic_coeff_a=-0.5),
    # Functions of one value.
    "tangent": ([N("Tanh", ["x"], ["t"]), N("Tan", ["t"], ["y"])], {}),
    "sinh and cosh": ([N("Sinh", ["x"], ["s"]), N("Cosh", ["x"], ["c"]), N("Add", ["s", "c"], ["y"])], {}),
    "back from trigonometry": (
        [N("Tanh", ["x"], ["t"]), N("Mul", ["t", "k"], ["u"]), N("Asin", ["u"], ["a"]), N("Acos", ["a"], ["b"]),
         N("Atan", ["x"], ["c"]), N("Asinh", ["x"], ["d"]), N("Atanh", ["u"], ["e"]),
         N("Sum", ["b", "c", "d", "e"], ["y"])],
        {"k": np.float32(0.6)},
    ),
    "acosh": ([N("Exp", ["x"], ["e"]), N("Add", ["e", "k"], ["f"]), N("Acosh", ["f"], ["y"])], {"k": np.float32(1.1)}),
    "shrink": ([N("Shrink", ["x"], ["y"], bias=0.2, lambd=0.4)], {}),
    "swish": ([N("Swish", ["x"], ["y"], alpha=1.5)], {}, IMAGE, 24),
    "quick gelu": ([N("QuickGelu", ["x"], ["y"], alpha=1.3, domain="com.microsoft")], {}),
    "gelu of onnx runtime": ([N("Gelu", ["x"], ["y"], domain="com.microsoft")], {}),
    "exclusive or": (
        [N("Greater", ["x", "k"], ["a"]), N("Less", ["x", "l"], ["b"]), N("Xor", ["a", "b"], ["c"]),
         N("Cast", ["c"], ["y"], to=1)],
        {"k": rand(7), "l": rand(9, 1)},
    ),
    "not a number": (
        [N("Log", ["x"], ["a"]), N("IsNaN", ["a"], ["b"]), N("Div", ["x", "k"], ["c"]), N("IsInf", ["c"], ["d"]),
         N("Or", ["b", "d"], ["e"]), N("Cast", ["e"], ["y"], to=1)],
        {"k": np.float32([0, 1, 2, 3, 0, 1, 2])},
    ),
    "modulo as in C": ([N("Mod", ["x", "k"], ["y"], fmod=1)], {"k": np.float32(0.7)}),
    "modulo of integers": (
        [N("Cast", ["x"], ["i"], to=7), N("Mod", ["i", "k"], ["m"]), N("Cast", ["m"], ["y"], to=1)], {"k": i64(-3)},
    ),
    "dropout": ([N("Dropout", ["x"], ["y"])], {}),
    "identity of the input": ([N("Identity", ["x"], ["y"])], {}),
    # Normalizations.
    "group normalization": (
        [N("GroupNormalization", ["x", "a", "b"], ["y"], num_groups=2, epsilon=0.01)],
        {"a": rand(4), "b": rand(4, seed=1)}, IMAGE, 21,
    ),
    "root mean square normalization": (
        [N("RMSNormalization", ["x", "a"], ["y"], axis=2, epsilon=0.01)], {"a": rand(9, 7)}, IMAGE, 23,
    ),
    "local response": ([N("LRN", ["x"], ["y"], size=3, alpha=0.5, beta=0.6, bias=1.2)], {}),
    "local response, wide": ([N("LRN", ["x"], ["y"], size=7, alpha=0.5)], {}),
    "cast": ([N("Cast", ["x"], ["a"], to=11), N("Exp", ["a"], ["b"]), N("Cast", ["b"], ["y"], to=1)], {}),
    "mean and variance": ([N("MeanVarianceNormalization", ["x"], ["y"])], {}),
    "mean and variance along an axis": ([N("MeanVarianceNormalization", ["x"], ["y"], axes=[1, 3])], {}),
    "norm of one": ([N("LpNormalization", ["x"], ["y"], axis=1, p=1)], {}),
    "norm of two": ([N("LpNormalization", ["x"], ["y"], axis=-1)], {}),
    # Reductions and pools.
    "l1": ([N("ReduceL1", ["x", "k"], ["y"], keepdims=0)], {"k": i64(2)}),
    "sum of squares": ([N("ReduceSumSquare", ["x", "k"], ["y"])], {"k": i64(1, 3)}),
    "log of a sum": ([N("Exp", ["x"], ["e"]), N("ReduceLogSum", ["e", "k"], ["y"])], {"k": i64(1)}),
    "log of a sum of exponentials": ([N("ReduceLogSumExp", ["x", "k"], ["y"])], {"k": i64(1, 2)}),
    "pool by a norm": ([N("LpPool", ["x"], ["y"], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1], p=2)], {}),
    "pool by a norm of three": ([N("LpPool", ["x"], ["y"], kernel_shape=[2, 2], p=3)], {}),
    "global pool by a norm": ([N("GlobalLpPool", ["x"], ["y"], p=2)], {}),
    "running sum": ([N("CumSum", ["x", "k"], ["y"])], {"k": np.int64(2)}),
    "running sum, from behind": ([N("CumSum", ["x", "k"], ["y"], reverse=1, exclusive=1)], {"k": np.int64(-1)}),
    "product of tensors": ([N("Einsum", ["x", "k"], ["y"], equation="bchw,wd->bhdc")], {"k": rand(7, 3)}),
    "product with itself": ([N("Einsum", ["x", "x"], ["y"], equation="...ij, ...kj -> ...ik")], {}),
    # Places.
    "gather n": ([N("GatherND", ["x", "k"], ["y"])], {"k": np.array([[0, 1, -2], [0, 3, 8]])}),
    "gather n, per image": (
        [N("GatherND", ["x", "k"], ["y"], batch_dims=2)], {"k": np.array([[[2], [-1], [0], [3]]])},
    ),
    "upper triangle": ([N("Trilu", ["x", "k"], ["y"])], {"k": np.int64(1)}),
    "lower triangle": ([N("Trilu", ["x"], ["y"], upper=0)], {}),
    "one hot": (
        [N("ArgMax", ["x"], ["i"], axis=1, keepdims=0), N("OneHot", ["i", "d", "v"], ["y"], axis=1)],
        {"d": np.int64(4), "v": np.float32([0.5, 2])},
    ),
    "sizes at run time": (
        [N("Abs", ["x"], ["a"]), N("ReduceMax", ["a"], ["m"], keepdims=0), N("Cast", ["m"], ["i"], to=7),
         N("Range", ["zero", "i", "one"], ["r"]), N("Shape", ["r"], ["s"]), N("ConstantOfShape", ["s"], ["c"]),
         N("Size", ["r"], ["n"]), N("Add", ["r", "n"], ["t"]), N("Cast", ["t"], ["f"], to=1),
         N("Add", ["c", "f"], ["y"])],
        {"zero": np.int64(0), "one": np.int64(1)},
    ),
    **{
        f"scatter n, {how}": (
            [N("Slice", ["x", "a", "b", "c"], ["u"]), N("ScatterND", ["x", "k", "u"], ["y"], reduction=how)],
            {"a": i64(0), "b": i64(2), "c": i64(1), "k": np.array([[[0, 3], [0, -3]]])},
        )
        for how in ("none", "add", "mul", "max", "min")
    },
    **{
        f"scatter elements, {how}": (
            [N("Slice", ["x", "a", "b", "c"], ["u"]),
             N("ScatterElements", ["x", "k", "u"], ["y"], axis=2, reduction=how)],
            {"a": i64(4), "b": i64(6), "c": i64(2), "k": np.tile(np.array([[[[1], [-2]]]]), (1, 4, 1, 7))},
        )
        for how in ("none", "add", "mul", "max", "min")
    },
    **{
        f"sample, {mode}, {padding}, {corners}": (
            [N("GridSample", ["x", "k"], ["y"], mode=mode, padding_mode=padding, align_corners=corners)],
            {"k": 1.2 * rand(1, 5, 6, 2)},
        )
        for mode in ("linear", "nearest", "cubic")
        for padding in ("zeros", "border", "reflection")
        for corners in (0, 1)
    },
    "sample at places that are computed": (
        [N("Tanh", ["x"], ["t"]), N("Reshape", ["t", "s"], ["g"]), N("GridSample", ["k", "g"], ["y"])],
        {"s": i64(1, 9, 14, 2), "k": rand(1, 3, 5, 6)},
    ),
}  # fmt: skip

CASES = {**EQUAL, **FUNCTIONS, **SUMS, **MORE}
NO_GRADIENT = {"best index", "worst index", "not and or", "exclusive or", "not a number", "modulo of integers",
               "one hot", "sizes at run time"}  # fmt: skip


def proto_of(case: tuple):  # type: ignore[no-untyped-def]
    nodes, weights, *rest = case
    shape, opset = (*rest, IMAGE, 20)[0], rest[1] if len(rest) > 1 else 20
    outputs = [n for n in ("y", "z") if any(n in node.output for node in nodes)]
    microsoft = [helper.make_opsetid("com.microsoft", 1)]
    made = build(nodes, weights, shape, opset=opset, ir=11 if opset > 20 else 9, outputs=outputs, imports=microsoft)
    return made, shape


@pytest.mark.parametrize("name", CASES)
def test_operator(name: str):
    proto, shape = proto_of(CASES[name])
    x = 3 * rand(*shape)
    agree(bridge.TorchRunner(load(proto)).run({"x": x}), ort(proto, x, optimize=False))


@pytest.mark.parametrize("name", CASES)
def test_gradient(name: str):
    """Of the input and of every parameter; and of the gradient itself, where one can be taken."""
    proto, shape = proto_of(CASES[name])
    module = bridge.module_of(load(proto)).double()
    names = [n for n, _ in module.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for _, p in module.named_parameters()]
    # 0.1 away from the steps of Floor and its like.
    x = np.random.default_rng(3).normal(size=shape) * 1.5
    x = torch.tensor(np.where(np.abs(2 * x - np.rint(2 * x)) < 0.2, x + 0.15, x), requires_grad=True)

    def run(x, *given):  # type: ignore[no-untyped-def]
        return tuple(torch.func.functional_call(module, dict(zip(names, given)), (x,)).values())

    outputs = run(x, *parameters)
    ops = {node.op_type for node in g.nodes(load(proto).ir)}
    assert all(o.requires_grad for o in outputs) == (name not in NO_GRADIENT)
    if name in NO_GRADIENT:
        assert ops & {*WITHOUT_GRADIENT, "Cast"}  # to integers and back
        return
    assert torch.autograd.gradcheck(run, (x, *parameters), atol=1e-7, rtol=1e-5, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *parameters), atol=1e-6, rtol=1e-4, fast_mode=True)


def test_every_operator_has_a_case():
    """No row of the table without one: neither a value nor a gradient goes untried."""
    tried = {(n.domain, n.op_type) for case in CASES.values() for n in g.nodes(load(proto_of(case)[0]).ir)}
    with_gradient = {
        n.op_type
        for name, case in CASES.items()
        if name not in NO_GRADIENT
        for n in g.nodes(load(proto_of(case)[0]).ir)
    }
    assert {o for domain, o in tried if not domain} >= set(OPERATORS) - {"Dropout"}
    assert {o for domain, o in tried if domain == "com.microsoft"} == set(CONTRIB)
    assert with_gradient >= set(OPERATORS) - set(WITHOUT_GRADIENT) - {"Dropout"}
    assert set(WITHOUT_GRADIENT) <= set(OPERATORS) and all(WITHOUT_GRADIENT.values())
