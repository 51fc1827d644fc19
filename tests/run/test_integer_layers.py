"""Integer layers: constants and results worked out by hand, ties, saturation, padding, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnx_graphs import N, build, ort, rand
from roadworthy.errors import UnsupportedError
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model, load
from roadworthy.model.units import Unit, units
from roadworthy.run import arithmetic as ar
from roadworthy.run.reference import ReferenceRunner

F = np.float32


def u8(scale: float, zero: int = 0) -> Encoding:
    return Encoding(F(scale), np.int64(zero))


def per_channel(scales: list[float], zeros: list[int]) -> Encoding:
    return Encoding(np.array(scales, F), np.array(zeros), axis=1)


def s8(*scales: float, axis: int = 0) -> Encoding:
    if len(scales) == 1:
        return Encoding(F(scales[0]), np.int64(0), 8, True)
    return Encoding(np.array(scales, F), np.zeros(len(scales)), 8, True, axis)


def quantized(nodes: list[onnx.NodeProto], weights: dict, shape: tuple[int, ...], **encodings: Encoding) -> Model:
    """A model with encodings by value name; the outputs are whatever nobody reads."""
    read = {i for n in nodes for i in n.input}
    outputs = [o for n in nodes for o in n.output if o not in read]
    return load(build(nodes, weights, shape, outputs=outputs, opset=20, ir=9)).with_encodings(encodings, "by hand")


def only(model: Model) -> Unit:
    (unit,) = units(model.ir)
    return unit


POINT = np.array([[2, -3], [127, 1]], F).reshape(2, 2, 1, 1)
"""Weights of a 1x1 convolution from two channels to two, whose codes at scale 1 are the numbers themselves."""


def test_a_layer_worked_out_by_hand():
    # x codes 10, 7 at zero 4: values 6, 3 halves.  y0 = 2*3 - 3*1.5 + 0.8, y1 = 127*3*0.5 + 1*1.5*0.5 - 1
    nodes = [N("Conv", ["x", "w", "b"], ["y"])]
    w = POINT * np.array([1, 0.5], F).reshape(2, 1, 1, 1)
    model = quantized(nodes, {"w": w, "b": F([0.8, -1])}, (1, 2, 1, 1), x=u8(0.5, 4), w=s8(1, 0.5), y=u8(0.25, 3))
    e = ar.unit_epilogue(only(model), model.encodings)
    assert (e.kind, e.lo, e.hi) == ("linear", 0, 255)
    assert ar.weights_codes(only(model), model.encodings["w"]).tolist() == [[[[2, -3]]], [[[127, 1]]]]
    # bias: rint(0.8 / 0.5) = 2, minus 4 * (2 - 3); rint(-1 / 0.25) = -4, minus 4 * 128
    assert e.bias.tolist() == [2 + 4, -4 - 512] and e.scale.tolist() == [2, 1] and e.zero.tolist() == [3, 3]
    x = F([3, 1.5]).reshape(1, 2, 1, 1)
    codes = ReferenceRunner(model).codes({"x": x}, ["x", "y"])
    assert codes["x"].ravel().tolist() == [10, 7]
    # acc0 = 20 - 21 + 6 = 5 -> 10 + 3;  acc1 = 1270 + 7 - 516 = 761 + 3 -> saturates
    assert codes["y"].ravel().tolist() == [13, 255]
    out = ReferenceRunner(model).run({"x": x}, ["x"])
    assert out["y"].ravel().tolist() == [2.5, 63.0] and out["x"].ravel().tolist() == [3, 1.5]


def test_ties_go_to_the_even_code_before_the_zero_point_is_added():
    model = quantized(
        [N("Conv", ["x", "w"], ["y"])], {"w": np.ones((1, 1, 1, 1), F)}, (1, 1, 1, 6), x=u8(1), w=s8(1), y=u8(2, 1)
    )
    x = F([1, 3, 5, 7, 2, 255]).reshape(1, 1, 1, 6)  # halves 0.5, 1.5, 2.5, 3.5, 1, 127.5 -> 0, 2, 2, 4, 1, 128
    assert ReferenceRunner(model).codes({"x": x}, ["y"])["y"].ravel().tolist() == [1, 3, 3, 5, 2, 129]


def test_the_input_is_quantized_as_onnx_does():
    model = quantized([N("Relu", ["x"], ["y"])], {}, (1, 1, 1, 5), x=u8(0.5, 128))
    x = F([0.25, 0.75, -0.25, 1e9, -1e9]).reshape(1, 1, 1, 5)
    assert ReferenceRunner(model).codes({"x": x}, ["x"])["x"].ravel().tolist() == [128, 130, 128, 255, 0]


def test_a_clamp_is_a_clamp_of_codes():
    weights = {"w": np.ones((1, 1, 1, 1), F), "six": F(6), "low": F(-1)}
    for tail, lo, hi in (
        (N("Relu", ["c"], ["y"]), 10, 255),
        (N("Clip", ["c", "low", "six"], ["y"]), 8, 22),
        (N("Clip", ["c", "", "six"], ["y"]), 0, 22),
    ):
        model = quantized(
            [N("Conv", ["x", "w"], ["c"]), tail], weights, (1, 1, 1, 256), x=u8(0.5, 128), w=s8(1), y=u8(0.5, 10)
        )
        e = ar.unit_epilogue(only(model), model.encodings)
        assert (e.kind, e.lo, e.hi) == ("linear", lo, hi)
        x = (F(0.5) * np.arange(-128, 128, dtype=F)).reshape(1, 1, 1, 256)
        wanted = np.clip(np.arange(-128, 128) + 10, lo, hi)
        assert np.array_equal(ReferenceRunner(model).codes({"x": x}, ["y"])["y"].ravel(), wanted)


def test_a_clamp_whose_codes_differ_between_channels_takes_the_pieces():
    weights = {"w": np.eye(2, dtype=F).reshape(2, 2, 1, 1), "v": np.ones((2, 1, 1, 1), F)}
    nodes = [N("Conv", ["x", "w"], ["c"]), N("Relu", ["c"], ["y"]), N("Conv", ["y", "v"], ["z"], group=2)]
    model = quantized(nodes, weights, (1, 2, 1, 256), x=u8(0.5, 128), w=s8(1), v=s8(1), y=per_channel([0.5, 2], [7, 0]))
    e = ar.unit_epilogue(units(model.ir)[0], model.encodings)
    assert e.kind == "poly" and e.zero.tolist() == [7, 0] and e.out_scale.tolist() == [2, 0.5]
    steps = np.arange(-128, 128)
    x = np.broadcast_to((F(0.5) * steps.astype(F)), (1, 2, 1, 256))
    y = ReferenceRunner(model).codes({"x": x}, ["y"])["y"][0, :, 0]
    assert np.array_equal(y[0], np.clip(np.maximum(steps, 0) + 7, 0, 255))
    assert np.array_equal(y[1], np.rint(np.maximum(steps, 0) / 4))
    same = replace(model.encodings["y"], zero_point=np.array([5, 5]))
    assert ar.unit_epilogue(units(model.ir)[0], {**model.encodings, "y": same}).kind == "linear"


SILU = [N("Conv", ["x", "w"], ["c"]), N("Sigmoid", ["c"], ["s"]), N("Mul", ["c", "s"], ["y"])]
RAMP = np.linspace(-7, 7, 512, dtype=F).reshape(1, 1, 2, 256)


def silu(x: NDArray) -> NDArray:
    return x / (1 + np.exp(-x.astype(np.float64)))


@pytest.mark.parametrize(
    ("encodings", "kind"),
    [
        ({"y": u8(0.03, 10)}, "fine"),
        ({"y": per_channel([0.03], [10])}, "poly"),
        ({"y": u8(0.03, 10), "c": u8(0.06, 128)}, "table"),
        ({"y": per_channel([0.03], [10]), "c": u8(0.06, 128)}, "poly"),
        ({"c": u8(0.06, 128)}, "real"),
        ({}, "real"),
    ],
)
def test_kinds_of_epilogue_and_what_they_compute(encodings: dict[str, Encoding], kind: str):
    # The layer is the identity, w = 127 codes of 1/127; the two scales have no common ties.
    x = u8(0.0551, 128)
    model = quantized(SILU, {"w": np.ones((1, 1, 1, 1), F)}, RAMP.shape, x=x, w=s8(1 / 127), **encodings)
    e = ar.unit_epilogue(only(model), model.encodings)
    assert e.kind == kind
    runner = ReferenceRunner(model)
    found = runner.run({"x": RAMP}, ["c", "s"])
    entered = x.fake(RAMP)
    if kind == "real":  # the product of codes is exact, four roundings of the scale and of SiLU follow
        np.testing.assert_allclose(found["y"], silu(entered), atol=8 * 2**-23 * 7)
    elif kind == "poly":
        assert np.abs(found["y"] - silu(entered)).max() <= 0.5 * 0.03 * 1.001 + 5e-4
    elif (
        kind == "fine"
    ):  # the errors of both roundings at their largest, where the first may be sqrt(FINE) of the second
        assert np.abs(found["y"] - silu(entered)).max() <= 0.015 * (1 + ar.FINE**0.5)
    else:  # half a step of the pre-activation, through a slope of at most 1.1, and half a step of the result
        assert np.abs(found["y"] - silu(entered)).max() <= 1.1 * 0.03 + 0.015
        held = encodings["c"].fake(entered)
        assert np.array_equal(runner.codes({"x": RAMP}, ["y"])["y"], encodings["y"].quantize(silu(held)))
    np.testing.assert_allclose(found["c"], entered, atol=0.031 if "c" in encodings else 1e-5)
    np.testing.assert_allclose(found["s"], 1 / (1 + np.exp(-found["c"])), atol=1e-6)


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 2, 0, 1)], ids=["plain", "padded"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_depthwise_with_a_scale_and_zero_per_channel(pads: tuple, strides: tuple):
    """The values that the codes stand for, convolved in float64 by ONNX Runtime's rules: one code apart at most where
    the float result lies next to a tie; zeros around the image are zeros whatever the zero points."""
    w, b, c = rand(5, 1, 3, 3), rand(5), 5
    x_code = per_channel([0.01, 0.02, 0.5, 0.003, 0.04], [0, 255, 128, 7, 200])
    nodes = [N("Conv", ["x", "w", "b"], ["y"], group=c, pads=pads, strides=strides)]
    w_code = s8(*(np.abs(w).max((1, 2, 3)) / 127))
    model = quantized(nodes, {"w": w, "b": b}, (1, c, 8, 7), x=x_code, w=w_code, y=u8(0.2, 100))
    assert ar.int8_refusal(only(model), model.encodings) is None
    x = rand(1, c, 8, 7, seed=3)
    rounded = {
        "w": np.clip(np.rint(w / w_code.scale.reshape(5, 1, 1, 1)), -127, 127) * w_code.scale.reshape(5, 1, 1, 1)
    }
    step = x_code.scale * w_code.scale
    rounded["b"] = (np.rint(b / step) * step).astype(F)
    exact = ort(build(nodes, {k: v.astype(F) for k, v in rounded.items()}, (1, c, 8, 7)), x_code.fake(x))["y"]
    found = ReferenceRunner(model).codes({"x": x}, ["y"])["y"].astype(int)
    apart = np.abs(found - u8(0.2, 100).quantize(exact).astype(int))
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01
    assert len(np.unique(found)) > 20


def test_layouts_of_weights():
    w = np.arange(-8, 8, dtype=F).reshape(2, 2, 2, 2)
    model = quantized([N("Conv", ["x", "w"], ["y"])], {"w": w}, (1, 2, 4, 4), x=u8(1), w=s8(1))
    codes = ar.weights_codes(only(model), model.encodings["w"])
    assert all(codes[o, i, j, c] == w[o, c, i, j] for o, c, i, j in np.ndindex(2, 2, 2, 2))
    deep = np.arange(12, dtype=F).reshape(3, 1, 2, 2)
    model = quantized([N("Conv", ["x", "w"], ["y"], group=3)], {"w": deep}, (1, 3, 4, 4), x=u8(1), w=s8(1))
    codes = ar.weights_codes(only(model), model.encodings["w"])
    assert all(codes[i, j, c] == deep[c, 0, i, j] for c, i, j in np.ndindex(3, 2, 2))
    full = np.arange(6, dtype=F).reshape(2, 3)
    for transposed, matrix in ((1, full), (0, full.T.copy())):
        nodes = [N("Flatten", ["x"], ["f"]), N("Gemm", ["f", "w"], ["y"], transB=transposed)]
        model = quantized(nodes, {"w": matrix}, (1, 3, 1, 1), f=u8(1), x=u8(1), w=s8(1, 1, axis=1 - transposed))
        assert ar.weights_codes(only(model), model.encodings["w"]).tolist() == full[:, None, None, :].tolist()
        assert ar.int8_refusal(only(model), model.encodings) is None
    # Whoever has -128 as a code gets -127: -x is exact.
    low = quantized(
        [N("Conv", ["x", "w"], ["y"])], {"w": np.full((1, 2, 1, 1), -200, F)}, (1, 2, 1, 1), x=u8(1), w=s8(1)
    )
    assert (ar.weights_codes(only(low), low.encodings["w"]) == -127).all()


def test_matrix_layers_with_their_biases():
    w, b = rand(4, 3), rand(3)
    x_code, w_code, y_code = u8(0.02, 120), s8(*(np.abs(w).max(0) / 127), axis=1), u8(0.05, 90)
    for nodes in (
        [N("MatMul", ["x", "w"], ["m"]), N("Add", ["m", "b"], ["y"])],
        [N("MatMul", ["x", "w"], ["m"]), N("Add", ["b", "m"], ["y"])],
    ):
        model = quantized(nodes, {"w": w, "b": b}, (1, 5, 2, 4), x=x_code, w=w_code, y=y_code)
        assert ar.pre_activation(only(model)).name == "y" and ar.int8_refusal(only(model), model.encodings) is None
        x = rand(1, 5, 2, 4)
        codes = np.clip(np.rint(w / w_code.scale), -127, 127)
        exact = x_code.fake(x).astype(np.float64) @ (codes * w_code.scale) + b
        found = ReferenceRunner(model).codes({"x": x}, ["y"])["y"].astype(int)
        # The bias is rounded to x scale * weight scale, about 2e-4; half a code is 0.025.
        assert np.abs(found - y_code.quantize(exact).astype(int)).max() <= 1
        assert np.abs(y_code.dequantize(found) - exact).max() <= 0.025 + 2e-4


REFUSALS = {
    "its input has no encoding": {"x": None},
    "its weight has no encoding": {"w": None},
    "its weight is only stored as integers": {"w": Encoding(F(0.01), np.int64(0), 8, True, storage=True)},
    "its weight is not encoded symmetrically in 8 bits": {"w": Encoding(F(0.01), np.int64(1), 8, True)},
    "its weight has scales along another axis than the output channels": {"w": s8(0.01, 0.01, 0.01, axis=1)},
    "its input is not encoded as unsigned 8-bit codes": {"x": Encoding(F(0.01), np.int64(0), 8, True)},
    "its input has a scale per channel": {"x": per_channel([0.01, 0.01, 0.01], [0, 0, 0])},
    "its output is not encoded as unsigned": {"y": Encoding(F(0.01), np.int64(0), 16, False)},
    "its output has scales along an axis": {"y": Encoding(F([0.01] * 8), np.zeros(8), axis=3)},
    "its output scale is too small": {"y": u8(1e-12)},
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_refusals_are_explained(reason: str):
    good = {"x": u8(0.01, 7), "w": s8(0.01), "y": u8(0.02)}
    weights = {"w": rand(4, 3, 1, 1)}
    nodes = [N("Conv", ["x", "w"], ["y"])]
    assert ar.int8_refusal(only(quantized(nodes, weights, (1, 3, 8, 8), **good)), good) is None
    changed = {k: v for k, v in {**good, **REFUSALS[reason]}.items() if v is not None}
    found = ar.int8_refusal(only(quantized(nodes, weights, (1, 3, 8, 8), **changed)), changed)
    assert found is not None and found.startswith(reason)


def test_sums_that_could_overflow_are_refused():
    nodes = [N("Flatten", ["x"], ["f"]), N("Gemm", ["f", "w"], ["y"], transB=1)]
    for count, refused in ((66000, False), (66500, True)):  # 127 * (255 + the zero point's share of 0) * count < 2^31
        weights = {"w": np.ones((1, count), F)}
        codes = {"x": u8(1), "f": u8(1), "w": s8(1 / 127), "y": u8(1e6)}
        model = quantized(nodes, weights, (1, count, 1, 1), **codes)
        reason = ar.int8_refusal(only(model), model.encodings)
        assert (reason == "its sums could pass 31 bits") == refused, reason
    # A bias far beyond int32 is held at 2^30, and must not wrap.
    conv = [N("Conv", ["x", "w", "b"], ["y"])]
    codes = {"x": u8(1e-6), "w": s8(1e-6), "y": u8(1e-3)}
    model = quantized(conv, {"w": np.full((1, 1, 1, 1), 1e-6, F), "b": F([1e6])}, (1, 1, 1, 1), **codes)
    assert ar.unit_epilogue(only(model), codes).bias.tolist() == [2**30]
    # 2^30 steps of 1e-12 are 1.07 codes.
    assert ReferenceRunner(model).codes({"x": np.zeros((1, 1, 1, 1), F)}, ["y"])["y"].ravel().tolist() == [1]


def test_layers_that_the_engine_has_no_integer_form_of():
    cases = {
        "ConvTranspose has no integer form": ([N("ConvTranspose", ["x", "w"], ["y"])], {"w": rand(3, 4, 2, 2)}),
        "its weight is no plain matrix": ([N("MatMul", ["x", "w"], ["y"])], {"w": rand(3, 8, 4)}),
        "its bias is not one finite": (
            [N("MatMul", ["x", "w"], ["m"]), N("Add", ["m", "b"], ["y"])], {"w": rand(8, 4), "b": rand(8, 4)},
        ),
        "PRelu 'many'": (
            [N("Conv", ["x", "w"], ["c"]), N("PRelu", ["c", "s"], ["y"], name="many")],
            {"w": rand(2, 3, 1, 1), "s": rand(2, 1, 1)},
        ),
    }  # fmt: skip
    for reason, (nodes, weights) in cases.items():
        model = quantized(nodes, weights, (1, 3, 8, 8), x=u8(0.01, 128), w=s8(0.01), y=u8(0.1))
        found = ar.int8_refusal(only(model), model.encodings)
        assert found is not None and found.startswith(reason), found
        assert ar.operations(model)[0].refusal == found


def test_other_widths_are_refused_by_name_and_signed_codes_are_moved():
    wide = quantized([N("Relu", ["x"], ["y"])], {}, (1, 1, 1, 1), x=Encoding(F(1), np.int64(0), 16))
    with pytest.raises(UnsupportedError, match="'x' has codes of 16 bits"):
        ReferenceRunner(wide)
    signed = Encoding(F(0.5), np.int64(-3), 8, True)
    model = quantized([N("Neg", ["x"], ["y"])], {}, (1, 1, 1, 4), x=signed)
    x = F([-100, 0, 0.75, 100]).reshape(1, 1, 1, 4)
    assert np.array_equal(ReferenceRunner(model).run({"x": x})["y"], -signed.fake(x))
    assert ReferenceRunner(model).codes({"x": x}, ["x"])["x"].ravel().tolist() == [0, 125, 127, 255]
