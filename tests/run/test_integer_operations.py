"""Operations on codes that are no layers, over all pairs of codes, in Python's integers and fractions.

A result is the exact value of the two codes, rounded once to a code. The formulas of docs/engine.md round a float32
multiplier (2^-24 of a sum of at most 255 steps of ratio at most 4), two products and a sum: at most 2^-12 of a code. So
the code is the nearest one, and only within that distance of a tie may it be the other neighbour.
"""

from __future__ import annotations

from fractions import Fraction as Q

import numpy as np
import pytest
from numpy.typing import NDArray
from test_integer_layers import per_channel, quantized, s8, u8

from onnx_graphs import N, build, rand
from roadworthy.errors import UnsupportedError
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model, load
from roadworthy.run import arithmetic as ar
from roadworthy.run.reference import ReferenceRunner

F = np.float32
NEAR = 2.0**-12


def nearest(found: NDArray, exact: NDArray, target: Encoding, lo: int = 0, hi: int = 255) -> None:
    """Every code is the exact value in steps, rounded and clamped, or the other neighbour next to a tie."""
    steps = exact / float(target.scale) + int(target.zero_point)
    wanted = np.clip(steps, lo, hi)
    assert np.abs(found - wanted).max() <= 0.5 + NEAR
    sure = np.abs(steps - np.floor(steps) - 0.5) > NEAR
    assert np.array_equal(found[sure], np.clip(np.rint(steps), lo, hi)[sure])
    assert sure.mean() > 0.3 and len(np.unique(found)) > 3


def all_pairs(a: Encoding, b: Encoding) -> tuple[NDArray[np.float32], NDArray, NDArray]:
    """An input (1, 2, 256, 256) whose two channels run over all codes of a and b, and the exact values."""
    codes = np.arange(256)
    left, right = a.dequantize(codes), b.dequantize(codes)
    x = np.stack(np.broadcast_arrays(left[:, None], right[None]))[None]
    exact = [(codes - int(e.zero_point)).astype(np.float64) * float(e.scale) for e in (a, b)]
    return x.astype(F), exact[0][:, None], exact[1][None]


def joined(op: str, a: Encoding, b: Encoding, y: Encoding, tail: str | None = None, **attributes: int) -> Model:
    sizes = {"one": np.array([1, 1], np.int64), "six": F(6), "low": F(-1)}
    nodes = [N("Split", ["x", "one"], ["a", "b"], axis=1), N(op, ["a", "b"], ["s" if tail else "y"], **attributes)]
    if tail:
        nodes.append(N(tail, ["s", *(["low", "six"] if tail == "Clip" else [])], ["y"]))
    return quantized(nodes, sizes, (1, 2, 256, 256), a=a, b=b, y=y)


SCALES = {
    "ragged": (u8(0.0371, 100), u8(0.0113, 7), u8(0.0449, 83)),
    "ties": (u8(0.5, 128), u8(0.25, 3), u8(1, 90)),
    "saturating": (u8(0.5, 0), u8(2, 250), u8(0.5, 128)),
    "same": (u8(0.1, 30), u8(0.1, 30), u8(0.1, 30)),
}


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("tail", [None, "Relu", "Clip"])
def test_add(scales: str, tail: str | None):
    a, b, y = SCALES[scales]
    x, left, right = all_pairs(a, b)
    model = joined("Add", a, b, y, tail)
    (operation,) = [o for o in ar.operations(model) if o.form == "add"]
    assert len(operation.nodes) == (2 if tail else 1)
    low, high = {None: (-np.inf, np.inf), "Relu": (0, np.inf), "Clip": (-1, 6)}[tail]
    lo, hi = (int(np.clip(np.rint(v / float(y.scale)) + int(y.zero_point), 0, 255)) for v in (low, high))
    nearest(ReferenceRunner(model).codes({"x": x}, ["y"])["y"][0, 0].astype(float), left + right, y, lo, hi)


@pytest.mark.parametrize("scales", SCALES)
def test_mul(scales: str):
    a, b, y = SCALES[scales]
    wide = Encoding(y.scale * F(4), y.zero_point)
    x, left, right = all_pairs(a, b)
    model = joined("Mul", a, b, wide, "Relu")
    assert [o.form for o in ar.operations(model)] == ["float", "mul"]
    found = ReferenceRunner(model).codes({"x": x}, ["y"])["y"][0, 0].astype(float)
    nearest(found, left * right, wide, int(wide.zero_point))


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("tail", [None, "Relu"])
def test_concat(scales: str, tail: str | None):
    a, b, y = SCALES[scales]
    x, left, right = all_pairs(a, b)
    model = joined("Concat", a, b, y, tail, axis=1)
    assert ar.operations(model)[-1].form == "concat"
    found = ReferenceRunner(model).codes({"x": x}, ["y"])["y"][0].astype(float)
    low = int(y.zero_point) if tail else 0
    for part, exact in zip(found, (left, right)):
        nearest(part, np.broadcast_to(exact, part.shape), y, low)
    if scales == "same" and not tail:
        assert np.array_equal(found[0][:, 0], np.arange(256))


def test_a_tie_of_a_sum_goes_to_the_even_step():
    a, b, y = SCALES["ties"]  # steps of 1/2 and 1/4 on a grid of 1
    x = all_pairs(a, b)[0]
    found = ReferenceRunner(joined("Add", a, b, y)).codes({"x": x}, ["y"])["y"][0, 0]
    for i, j in ((129, 3), (131, 3), (127, 3), (128, 5), (129, 7)):
        total = Q(i - 128, 2) + Q(j - 3, 4)
        assert found[i, j] == round(total) + 90, (i, j)  # Python rounds half to even, too


def test_a_sum_onto_a_scale_per_channel():
    y = per_channel([0.05, 0.1], [100, 3])
    nodes = [N("Add", ["x", "x"], ["y"]), N("Conv", ["y", "w"], ["z"], group=2)]
    model = quantized(nodes, {"w": np.ones((2, 1, 1, 1), F)}, (1, 2, 1, 256), x=u8(0.03, 50), y=y, w=s8(1))
    assert ar.operations(model)[0].form == "add"
    values = u8(0.03, 50).dequantize(np.arange(256))
    x = np.broadcast_to(values, (1, 2, 1, 256))
    found = ReferenceRunner(model).codes({"x": x}, ["y"])["y"][0, :, 0].astype(float)
    for k in range(2):
        nearest(found[k], 2 * values.astype(np.float64), u8(float(y.scale[k]), int(y.zero_point[k])))


def test_a_gate_over_a_map():
    nodes = [N("GlobalAveragePool", ["x"], ["p"]), N("Sigmoid", ["p"], ["g"]), N("Mul", ["x", "g"], ["y"])]
    x_code, p, gate, y = u8(0.02, 128), u8(0.004, 120), u8(1 / 255), u8(0.015, 128)
    model = quantized(nodes, {}, (1, 5, 6, 7), x=x_code, p=p, g=gate, y=y)
    assert [o.form for o in ar.operations(model)] == ["average", "table", "mul"]
    x = rand(1, 5, 6, 7)
    codes = ReferenceRunner(model).codes({"x": x}, ["x", "p", "g", "y"])
    centred = codes["x"].astype(int) - 128
    means = np.array([[Q(int(v), 42) for v in row] for row in centred.sum((2, 3))]).astype(float) * float(x_code.scale)
    assert np.abs(codes["p"][0, :, 0, 0] - (means[0] / float(p.scale) + 120)).max() <= 0.5 + NEAR
    values = (codes["p"].astype(float) - 120) * float(p.scale)
    assert np.array_equal(codes["g"], np.rint(255 / (1 + np.exp(-values))))
    exact = centred * float(x_code.scale) * codes["g"] / 255
    assert np.abs(codes["y"] - np.clip(exact / float(y.scale) + 128, 0, 255)).max() <= 0.5 + NEAR


@pytest.mark.parametrize("counting", [0, 1])
@pytest.mark.parametrize("ceil", [0, 1])
def test_averages_count_their_positions(counting: int, ceil: int):
    how = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1], "ceil_mode": ceil}
    model = quantized(
        [N("AveragePool", ["x"], ["y"], count_include_pad=counting, **how)],
        {},
        (1, 2, 6, 6),
        x=u8(0.1, 99),
        y=u8(0.07, 99),
    )
    assert ar.operations(model)[0].form == "average"
    codes = np.random.default_rng(0).integers(0, 256, (1, 2, 6, 6))
    found = ReferenceRunner(model).codes({"x": u8(0.1, 99).dequantize(codes)}, ["y"])["y"]
    for c, i, j in np.ndindex(*found.shape[1:]):
        rows, columns = range(2 * i - 1, 2 * i + 2), range(2 * j, 2 * j + 2)
        inside = [(r, k) for r in rows for k in columns if 0 <= r < 6 and 0 <= k < 6]
        padded = [(r, k) for r in rows for k in columns if -1 <= r < 7 and 0 <= k < 7]
        total = sum(int(codes[0, c, r, k]) - 99 for r, k in inside)
        exact = Q(total, len(padded if counting else inside)) * Q(10, 7)
        assert abs(int(found[0, c, i, j]) - min(max(float(exact) + 99, 0), 255)) <= 0.5 + NEAR
    assert ar.average_constants(u8(0.1, 99), u8(0.07, 99), 6).tolist() == [0] + [
        float(F(float(F(0.1)) / (float(F(0.07)) * n))) for n in range(1, 7)
    ]


def test_the_mean_over_pixels():
    for keep in (0, 1):
        nodes = [N("ReduceMean", ["x", "k"], ["y"], keepdims=keep)]
        model = quantized(nodes, {"k": np.array([-1, 2])}, (1, 3, 4, 5), x=u8(0.1, 9), y=u8(0.1, 9))
        assert ar.operations(model)[0].form == "average"
        x = 10 * np.abs(rand(1, 3, 4, 5))
        codes = ReferenceRunner(model).codes({"x": x}, ["x", "y"])
        assert codes["y"].shape == ((1, 3, 1, 1) if keep else (1, 3))
        assert np.abs(codes["y"].ravel() - codes["x"].mean((2, 3)).ravel()).max() <= 0.5 + NEAR


def test_linear_resize_blends_codes():
    nodes = [N("Resize", ["x", "", "k"], ["y"], mode="linear", coordinate_transformation_mode="half_pixel")]
    code = u8(0.1, 17)
    model = quantized(nodes, {"k": F([1, 1, 2, 2])}, (1, 1, 1, 3), x=code, y=code)
    assert ar.operations(model)[0].form == "linear"
    x = code.dequantize(np.array([0, 100, 10])).reshape(1, 1, 1, 3)
    # Between the pixels at 3/4 and 1/4: 0, 25, 75, 77.5 -> 78 (even), 32.5 -> 32, 10; the rows are the same.
    assert ReferenceRunner(model).codes({"x": x}, ["y"])["y"][0, 0].tolist() == [[0, 25, 75, 78, 32, 10]] * 2


def test_tables_hold_the_nearest_code_of_every_value():
    source, target = u8(0.05, 120), u8(0.02, 14)
    for function in (ar.Function("silu"), ar.Function("clip", -1, 2), ar.Function("affine", 0.5, 0.25)):
        values = (np.arange(256) - 120) * float(source.scale)
        wanted = np.clip(np.rint(ar.exact(function, values) / float(target.scale)) + 14, 0, 255)
        assert np.array_equal(ar.function_table(function, source, target), wanted)
    assert np.array_equal(ar.requant_table(source, source), np.arange(256))
    # What is no number has the code of zero.
    assert ar.function_table(ar.Function("log"), source, target)[0] == 14


MOVES = {
    "Transpose": ([N("Transpose", ["x"], ["y"], perm=[0, 2, 1, 3])], {}),
    "MaxPool": ([N("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])], {}),
    "Slice": ([N("Slice", ["x", *"abc"], ["y"])], {"a": np.array([1]), "b": np.array([3]), "c": np.array([1])}),
    "Pad": ([N("Pad", ["x", "a"], ["y"])], {"a": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "Resize": ([N("Resize", ["x", "", "a"], ["y"], mode="nearest")], {"a": F([1, 1, 2, 2])}),
    "Reshape": ([N("Reshape", ["x", "a"], ["y"])], {"a": np.array([1, -1])}),
    "Gather": ([N("Gather", ["x", "a"], ["y"], axis=1)], {"a": np.array([2, 0])}),
}


@pytest.mark.parametrize("op", MOVES)
def test_moves_keep_codes(op: str):
    """With one encoding on both sides nothing is rounded again; the value is that of the float operator."""
    nodes, weights = MOVES[op]
    code = u8(0.03, 77)
    model = quantized(nodes, weights, (1, 4, 6, 5), x=code, y=code)
    assert ar.operations(model)[0].form == "move"
    x = rand(1, 4, 6, 5)
    plain = ReferenceRunner(quantized(nodes, weights, (1, 4, 6, 5)))
    assert np.array_equal(ReferenceRunner(model).run({"x": x})["y"], plain.run({"x": code.fake(x)})["y"])
    other = quantized(nodes, weights, (1, 4, 6, 5), x=code, y=u8(0.05, 3))
    assert ar.operations(other)[0].form == "float"
    through = ReferenceRunner(other).codes({"x": x}, ["y"])["y"]
    assert np.array_equal(through, u8(0.05, 3).quantize(plain.run({"x": code.fake(x)})["y"]))


def test_a_part_that_nobody_reads_can_be_tapped():
    nodes = [N("Split", ["x", "k"], ["a", "b"], axis=1), N("Relu", ["b"], ["y"])]
    code = u8(0.03, 77)
    model = load(build(nodes, {"k": np.array([1, 2])}, (1, 3, 2, 2))).with_encodings({"x": code, "b": code}, "by hand")
    assert ar.operations(model)[0].form == "move"
    x = rand(1, 3, 2, 2)
    assert np.array_equal(ReferenceRunner(model).run({"x": x}, ["a"])["a"], code.fake(x)[:, :1])


def test_what_computes_in_float_when_an_encoding_is_missing():
    a, b, y = SCALES["ragged"]
    whole = joined("Add", a, b, y)
    for name in ("a", "b", "y"):
        rest = {k: v for k, v in whole.encodings.items() if k != name}
        assert [o.form for o in ar.operations(whole.with_encodings(rest, "less"))] == ["float", "float"]
    x = all_pairs(a, b)[0]
    float_sum = whole.with_encodings({"y": y, "a": a}, "less")
    found = ReferenceRunner(float_sum).codes({"x": x}, ["y"])["y"][0, 0]
    assert np.array_equal(found, y.quantize(a.fake(x)[0, 0] + x[0, 1]))


def test_codes_seen_by_float_readers_are_dequantized():
    code = u8(0.5, 10)
    model = quantized([N("Sigmoid", ["x"], ["y"])], {}, (1, 1, 1, 3), x=code)
    x = F([0.7, -0.3, 9]).reshape(1, 1, 1, 3)
    assert np.array_equal(ReferenceRunner(model).run({"x": x})["y"], ar.evaluate(ar.Function("sigmoid"), code.fake(x)))


def test_a_constant_with_codes_is_its_codes():
    model = quantized([N("Add", ["x", "k"], ["y"])], {"k": F(0.3)}, (1, 1, 1, 2), k=u8(0.25))
    assert ReferenceRunner(model).run({"x": np.zeros((1, 1, 1, 2), F)})["y"].ravel().tolist() == [0.25, 0.25]


def test_stored_weights_are_their_codes():
    w = rand(2, 3, 1, 1)
    stored = Encoding(np.abs(w).max((1, 2, 3)) / F(127), np.zeros(2), 8, True, 0, storage=True)
    model = quantized([N("Conv", ["x", "w"], ["y"])], {"w": w}, (1, 3, 2, 2), w=stored, x=u8(0.02, 128))
    assert ar.operations(model)[0].refusal == "its weight is only stored as integers"
    x = rand(1, 3, 2, 2)
    exact = np.einsum("oc,chw->ohw", stored.fake(w)[:, :, 0, 0].astype(float), u8(0.02, 128).fake(x)[0].astype(float))
    assert np.array_equal(ReferenceRunner(model).run({"x": x})["y"][0], exact.astype(F))


def test_resizes_that_are_not_supported_say_so():
    for mode, how in (
        ("linear", {"antialias": 1}),
        ("nearest", {"coordinate_transformation_mode": "tf_crop_and_resize"}),
    ):
        node = N("Resize", ["x", "r" if mode == "nearest" else "", "k"], ["y"], mode=mode, name="odd", **how)
        weights = {"k": F([1, 1, 2, 2]), "r": F([0, 0, 0, 0, 1, 1, 1, 1])}
        used = {n: weights[n] for n in node.input if n in weights}
        with pytest.raises(UnsupportedError, match="Resize 'odd'"):
            ReferenceRunner(quantized([node], used, (1, 1, 4, 4))).run({"x": rand(1, 1, 4, 4)})
