"""Weight encodings and bias correction."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from onnx_graphs import N, build, ort, rand
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, QuantSpec, narrow_codes
from roadworthy.model.model import Model, load
from roadworthy.model.units import units
from roadworthy.quantize.bias import channel_axes, correct_bias
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.weights import weight_encoding, widen_for_bias


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("axis", [0, 1, 3, None])
def test_minmax_scales_per_channel(axis: int | None, bits: int):
    w = rand(5, 4, 3, 6)
    encoding = weight_encoding(w, QuantSpec(bits, True, axis, True, "minmax"))
    others = tuple(k for k in range(4) if k != axis)
    wanted = np.abs(w).max(others if axis is not None else None) / (2 ** (bits - 1) - 1)
    assert_allclose(encoding.scale, wanted, rtol=1e-6)
    assert not encoding.zero_point.any()
    q = narrow_codes(w, encoding)
    assert q.min() == -encoding.qmax and q.max() <= encoding.qmax  # -128 is never used
    assert np.abs(encoding.dequantize(q) - w).max() <= 0.5001 * encoding.scale.max()


def test_mse_is_as_good_as_the_best_clip():
    w = np.random.default_rng(3).standard_t(3, size=(6, 200)).astype(np.float32)
    for bits in (4, 8):
        encoding = weight_encoding(w, QuantSpec(bits, True, 0, True, "mse"))
        found = ((encoding.dequantize(narrow_codes(w, encoding)) - w) ** 2).sum(1)
        for row, error in zip(w.astype(np.float64), found):
            top = 2 ** (bits - 1) - 1
            tried = []
            for f in np.linspace(0.6, 1.0, 200):
                scale = f * np.abs(row).max() / top
                tried.append((((np.clip(np.round(row / scale), -top, top)) * scale - row) ** 2).sum())
            # 33 clips are tried, these are 200; the error is rugged between them.
            assert error <= 1.15 * min(tried)


def test_the_lowest_code_is_never_used():
    encoding = Encoding(np.float32([0.01]), np.zeros(1, np.int64), 8, True, 0)
    assert narrow_codes(np.float32([[-10, -1.28, -1.27, 10]]), encoding).tolist() == [[-127, -127, -127, 127]]


def test_unsigned_codes_keep_their_whole_range():
    encoding = Encoding(np.float32(0.5), np.int64(10), 8, False)
    assert narrow_codes(np.float32([-100, -5, 0, 500]), encoding).tolist() == [0, 0, 10, 255]


def test_a_channel_of_zeros_and_a_spec_that_is_not_for_weights():
    w = rand(3, 4)
    w[1] = 0
    encoding = weight_encoding(w, QuantSpec(8, True, 0, True, "mse"))
    assert (encoding.dequantize(narrow_codes(w, encoding))[1] == 0).all()
    with pytest.raises(ValueError, match="symmetric and signed"):
        weight_encoding(w, QuantSpec())


def test_scales_widen_only_where_a_bias_needs_it():
    encoding = Encoding(np.float32([1e-9, 0.1]), np.zeros(2, np.int64), 8, True, 0)
    wide = widen_for_bias(encoding, np.array([4.0, 4.0]), 0.01)
    assert wide.scale[1] == encoding.scale[1]
    assert 4.0 / (0.01 * float(wide.scale[0])) <= 2**31 - 1
    assert widen_for_bias(encoding, None, 0.01) is encoding
    assert widen_for_bias(encoding, np.zeros(2), 0.01) is encoding


LAYERS = {
    "conv": ([N("Conv", ["x", "w", "b"], ["y"])], {"w": rand(4, 3, 1, 1), "b": rand(4)}),
    "conv without bias": ([N("Conv", ["x", "w"], ["y"])], {"w": rand(4, 3, 1, 1)}),
    "groups": (
        [N("Reshape", ["x", "to"], ["r"]), N("Conv", ["r", "w", "b"], ["y"], group=3)],
        {"w": rand(6, 2, 1, 1), "b": rand(6), "to": np.array([1, 6, 8, 4])},
    ),
    "gemm": (
        [N("Flatten", ["x"], ["f"]), N("Gemm", ["f", "w", "b"], ["y"], transB=1)],
        {"w": rand(4, 192), "b": rand(4)},
    ),
    "gemm without bias": ([N("Flatten", ["x"], ["f"]), N("Gemm", ["f", "w"], ["y"])], {"w": rand(192, 4)}),
    "matmul with bias": (
        [N("Flatten", ["x"], ["f"]), N("MatMul", ["f", "w"], ["m"]), N("Add", ["b", "m"], ["y"])],
        {"w": rand(192, 4), "b": rand(4)},
    ),
}
IMAGES = [rand(1, 3, 8, 8, seed=k) + np.float32([1, -2, 3]).reshape(1, 3, 1, 1) for k in range(6)]


def coarse(model: Model, bits: int) -> Model:
    (unit,) = units(model.ir)
    weight = {"w": weight_encoding(only_weight(model), QuantSpec(bits, True, unit.weight_axis, True, "minmax"))}
    return model.with_encodings(weight, "coarse")


def only_weight(model: Model) -> np.ndarray:
    (unit,) = units(model.ir)
    array = g.constant(unit.weight)
    assert array is not None
    return array


def rounded(model: Model) -> bytes:
    """The network with its weight after a round trip through its codes."""
    encoding = model.encodings["w"]
    ir = g.clone(model.ir)
    (unit,) = units(ir)
    g.set_constant(unit.weight, encoding.dequantize(narrow_codes(only_weight(model), encoding)))
    return g.to_bytes(ir)


def mean_output(data: bytes) -> np.ndarray:
    outputs = [ort(data, x)["y"] for x in IMAGES]
    return np.mean([o.mean((0, 2, 3)) if o.ndim == 4 else o[0] for o in outputs], 0)


@pytest.mark.parametrize("case", LAYERS)
def test_the_mean_of_the_output_is_restored(case: str):
    """Weights of 3 bits shift the mean; the corrected bias takes exactly that back (1x1: no padding is involved)."""
    model = load(build(*LAYERS[case]))
    bad = coarse(model, 3)
    statistics = calibrate(model, [], IMAGES, 1, channel_axes=channel_axes(model))
    fixed = correct_bias(bad, statistics)
    true = mean_output(model.float_bytes())
    before, after = (np.abs(mean_output(rounded(m)) - true).max() for m in (bad, fixed))
    assert before > 0.02 and after < 1e-4
    assert ort(bad.float_bytes(), IMAGES[0])["y"].shape == ort(fixed.float_bytes(), IMAGES[0])["y"].shape


@pytest.mark.parametrize("case", LAYERS)
def test_exact_weights_are_left_alone(case: str):
    nodes, weights = LAYERS[case]
    exact = {**weights, "w": np.sign(weights["w"])}  # -1, 0 and 1 times a scale of 1/127: exact in float32
    model = load(build(nodes, exact))
    statistics = calibrate(model, [], IMAGES, 1, channel_axes=channel_axes(model))
    fixed = correct_bias(coarse(model, 8), statistics)
    for x in IMAGES[:2]:
        assert_allclose(ort(fixed.float_bytes(), x)["y"], ort(model.float_bytes(), x)["y"], atol=2e-4)


def test_a_bias_that_two_layers_share_is_corrected_for_each():
    nodes = [N("Conv", ["x", "w", "b"], ["a"]), N("Conv", ["x", "v", "b"], ["c"]), N("Add", ["a", "c"], ["y"])]
    model = load(build(nodes, {"w": rand(4, 3, 1, 1), "v": rand(4, 3, 1, 1, seed=5), "b": rand(4)}))
    encoding = weight_encoding(rand(4, 3, 1, 1), QuantSpec(3, True, 0, True, "minmax"))
    statistics = calibrate(model, [], IMAGES, 1, channel_axes=channel_axes(model))
    fixed = correct_bias(model.with_encodings({"w": encoding}, "coarse"), statistics)
    first, second = units(fixed.ir)
    assert first.bias is not None and second.bias is not None
    assert first.bias.name != "b" and second.bias.name == "b"
