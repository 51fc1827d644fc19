"""Functions of one value: the float32 sequences against the true functions, and these against Python's own."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnx_graphs import N, build
from roadworthy.errors import UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.model import load
from roadworthy.model.units import units
from roadworthy.run.arithmetic import (
    BINARY,
    NONE,
    UNARY,
    Function,
    evaluate,
    evaluate_pair,
    exact,
    fit_polynomial,
    function_of_node,
    function_of_unit,
    polynomial,
    polynomial_range,
    range_below,
    softmax,
)

F = np.float32
X = np.concatenate([np.linspace(-30, 30, 120001), [0.0, -0.0, 1e-30, -1e-30]]).astype(F)
PARAMETERS = {
    "clip": (-1.0, 6.0),
    "leaky_relu": (0.1,),
    "hard_sigmoid": (0.2, 0.5),
    "elu": (0.7,),
    "affine": (1.5, -0.2),
}
ULP = 2.0**-23


def function(name: str) -> Function:
    return Function(name, *PARAMETERS.get(name, ()))


@pytest.mark.parametrize("name", UNARY)
def test_the_float32_sequence_follows_the_true_function(name: str):
    """exp is right to about one unit in the last place, each further operation adds half of one of its result, and no
    sequence has more than ten behind exp or log: eight units of the largest of 1, |x| and |y|. (Test mutation: without
    its first coefficient log would be 80 units off.)"""
    x = np.abs(X[X != 0]) if name in ("sqrt", "log", "reciprocal") else X
    x = x[x > 1e-6] if name == "reciprocal" else x
    y = exact(function(name), x)
    size = np.maximum(1.0, np.maximum(np.abs(y), np.where(name in ("exp", "reciprocal"), 0, np.abs(x))))
    assert np.abs(evaluate(function(name), x) - y).max() <= (8 * ULP * size).max()
    assert (np.abs(evaluate(function(name), x) - y) <= 8 * ULP * size).all()


@pytest.mark.parametrize("name", UNARY)
def test_shapes_do_not_change_a_bit(name: str):
    """A single number, which NumPy is quick to widen to float64, gives the bits that it gives in an array."""
    x = np.abs(X[::5001]) + F(0.1)
    together = evaluate(function(name), x)
    assert together.dtype == np.float32
    alone = np.array([evaluate(function(name), v) for v in x])
    assert alone.dtype == np.float32 and np.array_equal(alone, together)
    assert np.array_equal(evaluate(function(name), x.reshape(-1, 1, 1)).reshape(-1), together)


LIBRARY = {
    "sigmoid": lambda x: 0.5 * (1 + math.tanh(x / 2)),
    "silu": lambda x: 0.5 * x * (1 + math.tanh(x / 2)),
    "gelu_erf": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "mish": lambda x: x * math.tanh(math.log(1 + math.exp(x))),
    "softplus": lambda x: math.log(1 + math.exp(x)),
    "elu": lambda x: x if x > 0 else 0.7 * (math.exp(x) - 1),
    "tanh": math.tanh,
    "hard_swish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "hard_sigmoid": lambda x: max(0, min(1, 0.2 * x + 0.5)),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_the_true_function_by_the_mathematics_of_python(name: str):
    x = np.linspace(-12, 12, 241)
    wanted = np.array([LIBRARY[name](float(v)) for v in x])
    # The parameters 0.2 and 0.7 are rounded to float32 first.
    np.testing.assert_allclose(exact(function(name), x), wanted, rtol=1e-9, atol=2e-7 if name in PARAMETERS else 1e-12)


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("exp", 0.0, 1.0),
        ("exp", -1000.0, float(evaluate(Function("exp"), F(-87)))),
        ("exp", 1000.0, float(evaluate(Function("exp"), F(88)))),
        ("sigmoid", 0.0, 0.5),
        ("sigmoid", 40.0, 1.0),
        ("tanh", 0.0, 0.0),
        ("tanh", -50.0, -1.0),
        ("silu", 0.0, 0.0),
        ("silu", 50.0, 50.0),
        ("elu", 3.0, 3.0),
        ("log", 1.0, 0.0),
        ("log", 0.0, -87.33655),
        ("mish", 90.0, 90.0),
        ("softplus", 90.0, 90.0),
        ("gelu_erf", 9.0, 9.0),
        ("gelu_tanh", 9.0, 9.0),
        ("hard_swish", 3.0, 3.0),
        ("hard_swish", -3.0, 0.0),
        ("leaky_relu", -2.0, float(F(-2) * F(0.1))),
    ],
)
def test_values_worked_out_by_hand(name: str, x: float, y: float):
    assert evaluate(function(name), F(x)) == F(y)


def test_log_near_one():
    """Between sqrt(1/2) and sqrt(2) the result is f + (rest): a rounding of at most 0.35 (2^-26) and the polynomial's:
    half of 2^-24 in all, ten times as sharp as the bound over the whole range."""
    x = np.linspace(0.7072, 1.4142, 100001).astype(F)
    assert np.abs(evaluate(Function("log"), x) - np.log(x.astype(np.float64))).max() <= 2**-25


def test_exp_step_by_step():
    """The sequence of docs/engine.md for one number, in scalars of NumPy, which round each operation on their own."""
    for value in (0.3, -1.7, 5.123, -80.25, 87.9):
        x = F(value)
        k = np.rint(x * F(1.44269504))
        r = x - k * F(0.693359375)
        r = r - k * F(-2.12194440e-4)
        p = F(8.289708e-3)
        for c in (4.189783e-2, 1.6667648e-1, 4.999915e-1, 9.999997e-1, 1.0):
            p = F(F(p * r) + F(c))
        assert evaluate(Function("exp"), x) == np.ldexp(p, int(k))


def test_powers():
    x = np.array([2, -2, -2, -2, -2, 0.5, 9, 1e-3], F)
    y = np.array([3, 3, 2, -1, 0.5, -2, 0.5, 1.5], F)
    made = evaluate_pair("pow", x, y)
    assert np.isnan(made[4])
    wanted = [8, -8, 4, -0.5, 4, 3, 1e-4**1.125]
    keep = [0, 1, 2, 3, 5, 6, 7]
    # y * log|x| is at most 11 and has two roundings and log's error of one unit: 3 * 11 * 2^-24, and exp's own.
    np.testing.assert_allclose(made[keep], wanted, rtol=5e-6)
    assert set(BINARY) == {"add", "sub", "mul", "div", "max", "min", "pow"}


def test_softmax_sums_in_lanes():
    """With e = 1 in lane 0 and 2^-24 elsewhere the order decides: added one by one to 1, each would be lost."""
    tiny = F(np.log(2.0**-24))
    row = np.full(48, tiny, F)
    row[[0, 17]] = 0, np.log(0.7)
    lanes = evaluate(Function("exp"), row).reshape(3, 16)
    total = lanes[0] + lanes[1] + lanes[2]
    assert not np.array_equal(total, lanes[2] + lanes[1] + lanes[0])
    for half in (8, 4, 2, 1):
        total = np.array([total[i] + total[i + half] for i in range(half)], F)
    assert softmax(row)[0] == F(1) / total[0] and total[0] > 1
    ragged = np.random.default_rng(0).normal(size=(3, 21)).astype(F)
    parts = np.exp(ragged.astype(np.float64))
    np.testing.assert_allclose(softmax(ragged), parts / parts.sum(-1, keepdims=True), rtol=2e-6)


WORST = {"silu": 5e-4, "mish": 5.2e-4, "tanh": 2.7e-4, "sigmoid": 1.4e-4, "elu": 1.4e-4, "softplus": 1.4e-4,
         "gelu_tanh": 1e-4, "gelu_erf": 1.4e-4}  # fmt: skip
"""Largest error of the pieces: asymptotes end where they are about as wrong. The others are straight or quadratic
themselves: what remains is the rounding of two products and two sums of at most 40."""


@pytest.mark.parametrize("name", ["relu", "clip", "leaky_relu", "hard_sigmoid", "hard_swish", *WORST])
def test_pieces_follow_the_function(name: str):
    f = function(name)
    c, a, b = fit_polynomial(f, *polynomial_range(f))
    assert c.shape == (3, 32) and c.dtype == np.float32
    x = np.linspace(-40, 40, 400001).astype(F)
    error = np.abs(polynomial(c, a, b, x) - exact(f, x))
    assert error.max() <= WORST.get(name, 4 * 40 * 2**-24)
    if name in ("relu", "clip"):
        assert error.max() == 0
    kinks = {"relu": [0], "clip": [-1, 6], "leaky_relu": [0], "hard_swish": [-3, 3], "hard_sigmoid": [-2.5, 2.5]}
    for kink in kinks.get(name, []):
        near = [*np.nextafter(F(kink), F([-100, 100])).tolist(), kink]
        np.testing.assert_allclose(polynomial(c, a, b, np.array(near, F)), exact(f, near), atol=4e-7)
    # Where the coefficients come from does not matter far outside: the asymptotes are exact.
    far = polynomial(c, a, b, np.array([-1e6, 1e6], F))
    np.testing.assert_allclose(far, exact(f, np.array([-1e6, 1e6])), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["silu", "mish", "gelu_tanh", "gelu_erf", "softplus"])
@pytest.mark.parametrize("top", [0.05, 0.9, 3.0, 100.0])
def test_pieces_below_the_highest_code(name: str, top: float):
    """What the codes can hold is fitted at least as well, what they cannot is at least as high as the highest."""
    f = function(name)
    lo, hi = range_below(f, top)
    assert lo == polynomial_range(f)[0] and 0 < hi <= polynomial_range(f)[1]
    c, a, b = fit_polynomial(f, lo, hi)
    x = np.linspace(-40, 40, 400001).astype(F)
    made, true = polynomial(c, a, b, x), exact(f, x)
    assert np.abs(np.minimum(made, top) - np.minimum(true, top)).max() <= WORST[name]
    if name == "silu" and top <= 3:
        assert np.abs(np.minimum(made, top) - np.minimum(true, top))[x > lo].max() <= 2.7e-4


def test_bounds_of_any_kind_have_pieces():
    for lo, hi in ((-np.inf, 2.0), (0.5, np.inf), (-np.inf, np.inf), (1.0, 1.0), (-0.013, 0.47)):
        f = Function("clip", lo, hi)
        c, a, b = fit_polynomial(f, *polynomial_range(f))
        x = np.linspace(-20, 20, 10001).astype(F)
        np.testing.assert_allclose(polynomial(c, a, b, x), np.clip(x, F(lo), F(hi)), atol=2e-6)
    with pytest.raises(UnsupportedError, match="exp"):
        polynomial_range(Function("exp"))


@pytest.mark.parametrize(
    ("node", "constants", "wanted"),
    [
        (N("Clip", ["x", "", "a"], ["y"]), {"a": F(6)}, Function("clip", -np.inf, 6)),
        (N("Clip", ["x"], ["y"]), {}, Function("clip", -np.inf, np.inf)),
        (N("Add", ["a", "x"], ["y"]), {"a": F([[2]])}, Function("affine", 1, 2)),
        (N("Sub", ["a", "x"], ["y"]), {"a": F(2)}, Function("affine", -1, 2)),
        (N("Sub", ["x", "a"], ["y"]), {"a": F(2)}, Function("affine", 1, -2)),
        (N("Div", ["x", "a"], ["y"]), {"a": F(4)}, Function("affine", 0.25, 0)),
        (N("Div", ["x", "a"], ["y"]), {"a": F(0)}, None),
        (N("Div", ["a", "x"], ["y"]), {"a": F(1)}, Function("reciprocal")),
        (N("Max", ["x", "a"], ["y"]), {"a": F(-1)}, Function("clip", -1, np.inf)),
        (N("Pow", ["x", "a"], ["y"]), {"a": F(2)}, Function("square")),
        (N("Pow", ["x", "a"], ["y"]), {"a": F(3)}, None),
        (N("Mul", ["x", "x"], ["y"]), {}, Function("square")),
        (N("Add", ["x", "a"], ["y"]), {"a": F([1, 2])}, None),
        (N("Add", ["x", "a"], ["y"]), {"a": np.zeros((1, 1, 1, 1, 1), F)}, None),  # it adds a dimension
        (N("PRelu", ["x", "a"], ["y"]), {"a": F([[[0.2]], [[0.2]]])}, Function("leaky_relu", float(F(0.2)))),
        (N("PRelu", ["x", "a"], ["y"]), {"a": F([[[0.2]], [[0.3]]])}, None),
        (N("Elu", ["x"], ["y"]), {}, Function("elu", 1.0)),
        (N("Softmax", ["x"], ["y"]), {}, None),
    ],
)
def test_what_a_node_computes(node, constants, wanted):
    model = load(build([node], constants, (1, 2, 4, 2)))
    assert function_of_node(g.nodes(model.ir)[0]) == wanted


def test_bounds_known_only_at_run_time_are_refused_by_name():
    nodes = [N("ReduceMin", ["x"], ["m"], keepdims=0), N("Clip", ["x", "m"], ["y"], name="late")]
    model = load(build(nodes))
    with pytest.raises(UnsupportedError, match="'late'"):
        function_of_node(g.nodes(model.ir)[1])


def test_activation_of_a_unit():
    weights = {"w": np.ones((2, 3, 1, 1), F), "k": np.ones((2, 1, 1), F), "s": F([[[0.1]], [[0.2]]])}
    conv = N("Conv", ["x", "w"], ["c"])
    for tail, wanted in (
        ([N("Sigmoid", ["c"], ["s1"]), N("Mul", ["c", "s1"], ["y"])], Function("silu")),
        ([N("HardSigmoid", ["c"], ["h"], alpha=1 / 6), N("Mul", ["c", "h"], ["y"])], Function("hard_swish")),
        ([N("HardSwish", ["c"], ["y"])], Function("hard_swish")),
        ([N("Gelu", ["c"], ["y"], approximate="tanh")], Function("gelu_tanh")),
        ([N("LeakyRelu", ["c"], ["y"], alpha=0.25)], Function("leaky_relu", 0.25)),
        ([N("Mul", ["c", "k"], ["y"])], None),
    ):
        model = load(build([conv, *tail], weights, opset=20, ir=9))
        assert function_of_unit(units(model.ir)[0]) == wanted
    model = load(build([conv, N("PRelu", ["c", "s"], ["y"], name="slopes")], weights))
    with pytest.raises(UnsupportedError, match="'slopes'"):
        function_of_unit(units(model.ir)[0])
    assert NONE.clamp is None and Function("relu").clamp == (0.0, np.inf)


def test_codes_of_functions_are_those_of_the_contract():
    assert list(UNARY.values()) == list(range(22)) and list(BINARY.values()) == list(range(7))
