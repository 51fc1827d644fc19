"""The fixed-point form: its numbers against exact rational arithmetic, its curves against the functions, its network
against the float form, and what it refuses."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from onnx_graphs import N, build, rand
from random_encodings import feeds
from random_graphs import random_int8_model
from roadworthy.errors import UnsupportedError
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model, load
from roadworthy.run import arithmetic as ar
from roadworthy.run.arithmetic.fixed import curve_range
from roadworthy.run.reference import ReferenceRunner

RNG = np.random.default_rng(0)
NAMES = ["leaky_relu", "hard_sigmoid", "hard_swish", "silu", "sigmoid", "tanh", "gelu_tanh", "gelu_erf", "mish",
         "elu", "softplus", "clip"]  # fmt: skip
PARAMETERS = {"leaky_relu": (0.1, 0.0), "hard_sigmoid": (0.2, 0.5), "elu": (1.0, 0.0), "clip": (-0.7, 1.9)}
ENCODINGS = [(0.03, 10), (0.01, 28), (0.004, 0), (0.004, 255), (0.008, 128), (0.5, 1), (1.7, 200)]


def function(name: str) -> ar.Function:
    return ar.Function(name, *PARAMETERS.get(name, ()))


def encoding(scale: float, zero: int = 0) -> Encoding:
    return Encoding(np.asarray(scale, np.float32), np.asarray(zero))


def exact_codes(f: ar.Function, y: Encoding, v: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(ar.exact(f, v) / float(y.scale)) + int(y.zero_point), 0, 255)


# Numbers


def test_a_multiplier_is_the_nearest_of_31_bits():
    m = np.exp(RNG.uniform(np.log(2.0**-32), np.log(2.0**29) - 1e-9, 4000))
    steps, shift = ar.multiplier(m, "it")
    assert steps.dtype == shift.dtype == np.int32
    assert (steps >= 2**30).all() and (shift >= 2).all() and (shift <= 62).all()
    for one, M, S in zip(m, steps, shift):
        assert abs(Fraction(one) * 2 ** int(S) - int(M)) <= Fraction(1, 2)


def test_multipliers_at_the_ends():
    def one(m: float) -> tuple[int, int]:
        steps, shift = ar.multiplier(m, "it")
        return int(steps[0]), int(shift[0])

    assert one(1.0) == (2**30, 30)
    assert one(float(np.nextafter(1.0, 0))) == (2**30, 30)  # rounds up to the next power of two
    assert one(2.0**-32) == (2**30, 62)
    assert one(2.0**-33) == (2**29, 62)
    assert one(2.0**-62 * 2.5) == (2, 62)  # half to even
    assert one(1e-30) == (0, 62)
    assert one(2.0**29 * (1 - 2.0**-31)) == (2**31 - 1, 2)
    for m in (2.0**29, float(np.nextafter(2.0**29, 0)), np.inf, np.nan, -1.0):
        with pytest.raises(
            UnsupportedError, match=r"the layer 'stem' has no fixed-point form: .* use the target native"
        ):
            ar.multiplier(np.array([0.5, m]), "the layer 'stem'")


def test_scaling_rounds_halves_up_whatever_the_sign():
    v = np.concatenate([RNG.integers(-(2**31) + 1, 2**31, 500), [2**31 - 1, 1 - 2**31, 0, 1, -1, 3, -3]])
    for m, s in ((2**31 - 1, 2), (2**30, 31), (2**30, 30), (1234567891, 47), (3, 62), (2**31 - 1, 62)):
        got = ar.scale32(v, np.asarray(m), np.asarray(s))
        wanted = [(Fraction(int(x) * m, 2**s) + Fraction(1, 2)).__floor__() for x in v]
        assert got.tolist() == wanted
    assert ar.scale32(np.array([1, 3, -1, -3]), np.asarray(2**30), np.asarray(31)).tolist() == [1, 2, 0, -1]


@pytest.mark.parametrize("ratio", [1e-7, 0.003, 0.7, 1.0, 33.3, 9e5])
def test_a_sum_is_that_of_real_numbers(ratio: float):
    """Both products are off by at most 255 half steps of 2^-S, which is 255 / 2^20 of a code."""
    a, b, y = encoding(0.02 * ratio, 3), encoding(0.013 * ratio, 200), encoding(0.02, 40)
    k = ar.fixed_add("sum", a, b, y)
    assert max(k.a[0], k.b[0]) <= 2**21 and (max(k.a[0], k.b[0]) >= 2**20 or k.shift[0] == 46)
    p, q = (RNG.integers(0, 256, 5000) for _ in range(2))
    total = (p - 3) * k.a[0].astype(np.int64) + (q - 200) * k.b[0].astype(np.int64)
    assert np.abs(total).max() < 2**31
    got = (total + (1 << (int(k.shift[0]) - 1))) >> int(k.shift[0])
    real = ((p - 3) * float(a.scale) + (q - 200) * float(b.scale)) / float(y.scale)
    assert np.abs(got - real).max() <= 0.5 + 255 / 2**20 * max(1, ratio)


def test_a_sum_of_far_too_large_operands_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="the sum 'join' has no fixed-point form"):
        ar.fixed_add("join", encoding(1.0), encoding(1.0), encoding(1e-7))


def test_averages_over_every_number_of_positions():
    m, s = ar.fixed_average("pool", encoding(0.1, 7), encoding(0.05, 9), 9)
    assert (m[0], s[0]) == (0, 2) and len(m) == len(s) == 10
    ratio = Fraction(float(np.float32(0.1))) / Fraction(float(np.float32(0.05)))
    for n in range(1, 10):
        assert abs(ratio / n * 2 ** int(s[n]) - int(m[n])) < 1


# Curves


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("scale", "zero"), ENCODINGS)
def test_a_curve_is_the_function(name: str, scale: float, zero: int):
    """Within one code everywhere, and the code of the function but where it lies close to a tie. Of a thousand
    accumulators the 16-bit curve gets at most 40 wrong by one, where an 8-bit table in front gets a third wrong."""
    f, y = function(name), encoding(scale, zero)
    curve = ar.fit_curve(f, y)
    lo, hi = curve_range(f, y)
    v = np.concatenate([np.linspace(1.5 * lo - 0.1, 1.5 * hi + 0.1, 20001), [-1e9, 1e9, 0.0]])
    p = np.clip(np.rint(v / curve.step) + curve.zero, -32768, 32767).astype(np.int64)
    made = ar.interpolate(curve.table, p) * (curve.worth / 128)
    codes = np.clip(np.rint(made / float(y.scale)) + zero, 0, 255)
    wanted = exact_codes(f, y, v)
    assert np.abs(codes - wanted).max() <= 1
    assert (codes != wanted).mean() <= 0.04
    assert (codes[-3:-1] == wanted[-3:-1]).all()  # far away; in truth most values lie there


def test_zero_is_an_entry_of_a_curve_so_that_kinks_there_are_sharp():
    """A leaky ReLU between whose entries zero lay would be off by up to a quarter of an entry's step."""
    f, y = function("leaky_relu"), encoding(0.01, 28)
    curve = ar.fit_curve(f, y)
    assert curve.zero % 128 == 0 and ar.interpolate(curve.table, np.array([curve.zero]))[0] == 0
    near = np.arange(-128, 129)
    off = ar.interpolate(curve.table, curve.zero + near) * (curve.worth / 128) - ar.exact(f, near * curve.step)
    assert np.abs(off).max() <= curve.worth / 2 * (1 + 1e-6)  # nothing but the rounding of entries


def test_a_curve_for_many_scales_serves_each_channel():
    f = function("silu")
    y = Encoding(np.array([0.05, 0.02, 0.004], np.float32), np.array([6, 14, 70]), axis=1)
    curve, (lo, hi) = ar.fit_curve(f, y), curve_range(f, y)
    v = np.linspace(lo, hi, 40001)
    made = ar.interpolate(curve.table, np.rint(v / curve.step).astype(np.int64) + curve.zero) * (curve.worth / 128)
    for scale, zero in zip(y.scale, y.zero_point):
        one = encoding(float(scale), int(zero))
        codes = np.clip(np.rint(made / float(scale)) + zero, 0, 255)
        assert np.abs(codes - exact_codes(f, one, v)).max() <= 1
        own = ar.changing_range(f, one)
        assert own is not None and lo <= own[0] and own[1] <= hi
    assert hi == pytest.approx(ar.changing_range(f, encoding(0.05, 6))[1])  # type: ignore[index]


# Networks


def outputs_of(model: Model, runner: ReferenceRunner) -> dict[str, ar.Operation]:
    return {str(o.output.name): o for o in runner.operations if o.form not in ("float", "move")}


def test_fixed_point_is_within_a_code_of_the_float_form():
    """On equal input codes, operation by operation: one code apart at most, and rarely; curves against ten-bit tables
    and polynomials a little more often."""
    seen: dict[str, list[float]] = {}
    for seed in range(60):
        model = random_int8_model(seed)
        try:
            fixed = ReferenceRunner(model, "fixed")
        except UnsupportedError:
            continue
        x = feeds(model, seed)
        ours, theirs = fixed.all_codes(x), ReferenceRunner(model).all_codes(x)
        for name, operation in outputs_of(model, fixed).items():
            if name not in ours or any(not np.array_equal(ours[i], theirs[i]) for i in inputs_of(operation, ours)):
                continue
            apart = np.abs(ours[name].astype(int) - theirs[name].astype(int))
            kind = operation.form if operation.unit is None else fixed.layer(operation.unit)[0].kind
            assert apart.max() <= (2 if kind == "fixed_curve" else 1), f"seed {seed}: {kind} {name}"
            seen.setdefault(kind, []).append(float((apart > 0).mean()))
    assert {"fixed", "fixed_table", "fixed_curve", "add", "mul", "average", "linear", "concat", "table"} <= set(seen)
    for kind in ("fixed", "fixed_table", "add", "mul", "concat", "table"):
        assert np.mean(seen[kind]) < 0.002, (kind, np.mean(seen[kind]))
    assert np.mean(seen["fixed_curve"]) < 0.1


def inputs_of(operation: ar.Operation, codes: dict) -> list[str]:
    return [str(v.name) for v in operation.inputs if str(v.name) in codes]


def chain(**encodings: Encoding) -> Model:
    """x -> Mul by 2 (a) -> Conv (b) -> Exp (c) -> Conv (d) -> Sigmoid (y)."""
    weights = {"k": np.array(2.0, np.float32), "v": rand(4, 3, 1, 1, seed=1), "w": rand(4, 4, 1, 1, seed=2)}
    nodes = [
        N("Mul", ["x", "k"], ["a"], name="twice"),
        N("Conv", ["a", "v"], ["b"], name="first"),
        N("Exp", ["b"], ["c"], name="exponential"),
        N("Conv", ["c", "w"], ["d"], name="second"),
        N("Sigmoid", ["d"], ["s"], name="end"),
        N("Exp", ["s"], ["y"], name="last"),
    ]
    model = load(build(nodes, weights, (1, 3, 5, 5)))
    weight = Encoding(np.full(4, 0.02, np.float32), np.zeros(4, np.int64), 8, True, 0)
    return model.with_encodings({"v": weight, "w": weight, **encodings}, "by hand")


def test_floats_may_make_the_picture_and_follow_the_last_layer():
    codes = {n: encoding(0.03, 128) for n in "abcd"}
    plain = chain(**codes)
    assert ReferenceRunner(plain, "fixed").run({"x": rand(1, 3, 5, 5)})["y"].shape == (1, 4, 5, 5)


@pytest.mark.parametrize(
    ("missing", "named"),
    [("b", "Exp 'exponential'"), ("c", "Exp 'exponential'"), ("v", "Conv 'first'"), ("bv", "Conv 'first'")],
)
def test_a_float_between_integers_is_refused_by_name(missing: str, named: str):
    from roadworthy.run.native.lower import lower

    model = chain(**{n: encoding(0.03, 128) for n in "abcd"})
    kept = {n: e for n, e in model.encodings.items() if n not in missing}
    if missing == "c":
        kept["d"] = encoding(0.03, 128)
        del kept["w"]
        kept["y"] = kept["s"] = encoding(0.01)
    model = model.with_encodings(kept, "less")
    if missing == "c":  # then the second layer is a float one, and the table behind it the integer reader
        named = "Exp 'exponential'"
    for make in (lambda: ReferenceRunner(model, "fixed"), lambda: lower(model, arithmetic="fixed")):
        with pytest.raises(UnsupportedError, match=f"^{named}.* computes in float.*use the target native"):
            make()
