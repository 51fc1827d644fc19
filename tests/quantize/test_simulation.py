"""The exported file against a simulation in NumPy, written here from the definition of quantization.

Every value with an encoding is rounded to its codes, every weight to its codes, every bias to int32 at input scale x
weight scale, and everything between is float64. ONNX Runtime accumulates in int32 and rescales in float32, whose error
(2^-23 of a code) decides only values that lie that close to the middle between two codes. One such value moves one
code by one, and what is read from it by less than one code of the output: all results must lie within one code, and
all but a few be equal.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from onnx_graphs import N, build, ort, rand
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import from_qdq, to_qdq
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import place
from roadworthy.quantize.quantize import activation_encodings, quantize_units
from roadworthy.run.targets import TARGETS

X = [rand(1, 3, 16, 16, seed=k) for k in range(4)]


def quantized(model: Model, target: str = "ort", observer: str = "minmax", **others) -> Model:
    placement = place(model.ir, TARGETS[target], **others)
    statistics = calibrate(model, placement.observed, X, 1, per_channel=placement.channels)
    activations = activation_encodings(placement, statistics, TARGETS[target], observer)
    return quantize_units(model, placement, activations, observer, {n: 8 for n in placement.why_float})


class Simulation:
    """Layers in float64 with the roundings that the encodings ask for."""

    def __init__(self, encodings: dict[str, Encoding], weights: dict[str, NDArray]) -> None:
        self.encodings, self.weights = encodings, weights

    def round(self, name: str, x: NDArray) -> NDArray:
        e = self.encodings[name]
        q = np.clip(np.round(x / float(e.scale)) + int(e.zero_point), 0, 255)
        return (q - int(e.zero_point)) * float(e.scale)

    def weight(self, name: str) -> NDArray:
        e, w = self.encodings[name], self.weights[name].astype(np.float64)
        shape = [1] * w.ndim
        shape[e.axis] = -1
        scale = e.scale.astype(np.float64).reshape(shape)
        return np.clip(np.round(w / scale), -127, 127) * scale

    def bias(self, name: str, source: str, weight: str) -> NDArray:
        scale = np.float64(self.encodings[source].scale) * self.encodings[weight].scale.astype(np.float64)
        return np.round(self.weights[name] / scale) * scale


def conv(x: NDArray, w: NDArray, b: NDArray | float = 0.0, stride: int = 1, groups: int = 1) -> NDArray:
    """(1, C, H, W) and (O, C / groups, k, k) -> (1, O, H', W'), padded by k // 2."""
    k = w.shape[2]
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    windows = sliding_window_view(padded, (k, k), (2, 3))[:, :, ::stride, ::stride]  # 1, C, H', W', k, k
    _, c, h, wide = windows.shape[:4]
    grouped = windows.reshape(1, groups, c // groups, h, wide, k, k)
    kernels = w.reshape(groups, -1, *w.shape[1:])
    out = np.einsum("ngchwij,gocij->ngohw", grouped, kernels).reshape(1, -1, h, wide)
    return out + np.reshape(b, (1, -1, 1, 1))


WEIGHTS = {
    "stem": rand(8, 3, 3, 3) / 5, "stem_b": rand(8),
    "deep": rand(8, 1, 3, 3) / 3, "deep_b": rand(8, seed=1),
    "point": 0.3 * rand(6, 16, 1, 1), "point_b": rand(6),
    "full": rand(384, 10) / 20, "full_b": rand(10),
    "to": np.array([1, -1]),
}  # fmt: skip
NODES = [
    N("Conv", ["x", "stem", "stem_b"], ["c0"], strides=[2, 2], pads=[1, 1, 1, 1]),
    N("Relu", ["c0"], ["a"]),
    N("Conv", ["a", "deep", "deep_b"], ["d"], group=8, pads=[1, 1, 1, 1]),
    N("Add", ["a", "d"], ["s"]),
    N("Relu", ["s"], ["r"]),
    N("MaxPool", ["r"], ["m"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    N("Concat", ["m", "a"], ["j"], axis=1),
    N("Conv", ["j", "point", "point_b"], ["p"]),
    N("Reshape", ["p", "to"], ["f"]),
    N("Gemm", ["f", "full", "full_b"], ["y"]),
]


def simulate(s: Simulation, x: NDArray) -> NDArray:
    x = s.round("x", x.astype(np.float64))
    a = s.round("a", np.maximum(conv(x, s.weight("stem"), s.bias("stem_b", "x", "stem"), stride=2), 0))
    d = s.round("d", conv(a, s.weight("deep"), s.bias("deep_b", "a", "deep"), groups=8))
    r = s.round("r", np.maximum(a + d, 0))
    windows = sliding_window_view(np.pad(r, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf), (3, 3), (2, 3))
    j = s.round("j", np.concatenate([windows.max((4, 5)), a], 1))
    p = s.round("p", conv(j, s.weight("point"), s.bias("point_b", "j", "point")))
    return s.round("y", p.reshape(1, -1) @ s.weight("full") + s.bias("full_b", "f", "full"))


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_a_network_equals_its_simulation(observer: str):
    model = quantized(load(build(NODES, WEIGHTS, (1, 3, 16, 16))), observer=observer)
    assert {"x", "a", "d", "r", "m", "j", "p", "f", "y"} == {k for k in model.encodings if k not in WEIGHTS}, (
        "the simulation rounds other values than the placement"
    )
    exported = to_qdq(model)
    steps = steps_apart(exported, model)
    assert np.abs(steps).max() < 1.01 and np.mean(np.abs(steps) < 0.01) > 0.9


def steps_apart(exported: bytes, model: Model) -> NDArray:
    """Codes between the file's outputs and the simulation's; the last image exceeds the ranges: saturation."""
    simulation = Simulation(dict(model.encodings), WEIGHTS)
    images = [*X, 3 * rand(1, 3, 16, 16, seed=9)]
    difference = [ort(exported, x)["y"] - simulate(simulation, x) for x in images]
    return np.concatenate(difference) / float(model.encodings["y"].scale)


def test_a_wrong_scale_would_be_noticed():
    model = quantized(load(build(NODES, WEIGHTS, (1, 3, 16, 16))))
    full = model.encodings["full"]
    wrong = Encoding(full.scale * np.float32(1.02), full.zero_point, 8, True, full.axis)
    exported = to_qdq(model.with_encodings({**model.encodings, "full": wrong}, "two per cent off"))
    assert np.mean(np.abs(steps_apart(exported, model)) < 0.01) < 0.9


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("beta", [1.0, 3.0])
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_whatever_its_factors(alpha: float, beta: float, transposed: int):
    k = rand(768, 7) / 20
    weights = {"k": k.T.copy() if transposed else k, "o": 4 * rand(7), "to": np.array([1, -1])}
    nodes = [
        N("Reshape", ["x", "to"], ["f"]),
        N("Gemm", ["f", "k", "o"], ["y"], alpha=alpha, beta=beta, transB=transposed),
    ]
    model = quantized(load(build(nodes, weights, (1, 3, 16, 16))))
    assert sum(not e.signed for e in model.encodings.values()) == 3  # x, f and y: it does compute in int8
    x = X[0]
    exact = alpha * x.reshape(1, -1) @ k + beta * weights["o"]
    step = float(model.encodings["y"].scale)
    # Rounding 768 inputs and weights at 8 bits: a standard deviation of about half a code of the output, six of them.
    assert np.abs(ort(to_qdq(model), x)["y"] - exact).max() < 3 * step


def test_one_weight_and_one_bias_under_two_input_scales():
    # The second layer's input is 1000 times as large: a bias stored for the first scale would be 1000 times too small.
    weights = {"w": rand(3, 3, 1, 1) / 2, "b": rand(3), "k": np.float32(1000)}
    nodes = [
        N("Conv", ["x", "w", "b"], ["a"]),
        N("Mul", ["a", "k"], ["c"]),
        N("Conv", ["c", "w", "b"], ["y"]),
    ]
    model = quantized(load(build(nodes, weights, (1, 3, 16, 16))))
    simulation = Simulation(dict(model.encodings), weights)
    s, x = simulation, X[0]
    a = s.round("a", conv(s.round("x", x.astype(np.float64)), s.weight("w"), s.bias("b", "x", "w")))
    y = s.round("y", conv(s.round("c", 1000 * a), s.weight("w"), s.bias("b", "c", "w")))
    for data in (to_qdq(model), to_qdq(from_qdq(load(to_qdq(model))))):
        assert np.abs(ort(data, x)["y"] - y).max() < 1.01 * float(model.encodings["y"].scale)


def test_a_bias_that_would_not_fit_int32_widens_the_scales_of_its_weights():
    # Weights near zero have a tiny scale; the bias of 5 would be 5 / (0.02 * 1e-12) codes.
    weights = {"w": np.float32(1e-10) * rand(3, 3, 1, 1), "b": np.array([5, -5, 0], np.float32)}
    model = quantized(load(build([N("Conv", ["x", "w", "b"], ["y"])], weights, (1, 3, 16, 16))))
    result = ort(to_qdq(model), X[0])["y"]
    np.testing.assert_allclose(result[0, :, 0, 0], [5, -5, 0], atol=float(model.encodings["y"].scale))


def test_a_shared_weight_is_wide_enough_for_the_biases_of_both_layers():
    tiny = np.float32(1e-9) * rand(3, 3, 1, 1)
    weights = {"w": tiny, "small": np.zeros(3, np.float32), "large": np.array([5, -5, 1], np.float32)}
    nodes = [N("Conv", ["x", "w", "large"], ["a"]), N("Conv", ["x", "w", "small"], ["b"]), N("Add", ["a", "b"], ["y"])]
    for order in (nodes, [nodes[1], nodes[0], nodes[2]]):
        model = quantized(load(build(order, weights, (1, 3, 16, 16))))
        result = ort(to_qdq(model), X[0])["y"]
        np.testing.assert_allclose(result[0, :, 0, 0], [5, -5, 1], atol=2 * float(model.encodings["a"].scale))


@pytest.mark.parametrize("bits", [8, 16])
def test_stored_weights_compute_what_their_codes_say(bits: int):
    nodes = [N("ConvTranspose", ["x", "t"], ["a"], strides=[2, 2]), N("Conv", ["a", "w"], ["y"])]
    weights = {"t": rand(3, 5, 4, 4), "w": rand(16, 5, 3, 3)}
    model = load(build(nodes, weights, (1, 3, 16, 16)))
    placement = place(model.ir, TARGETS["ort"], keep_float=frozenset(u.name for u in _units(model)))
    stored = quantize_units(model, placement, {}, "minmax", {u.name: bits for u in _units(model)})
    assert all(e.storage and e.bits == bits for e in stored.encodings.values()) and len(stored.encodings) == 2
    rounded = {}
    for name, axis in (("t", 1), ("w", 0)):
        others = tuple(k for k in range(4) if k != axis)
        scale = np.abs(weights[name]).max(others, keepdims=True) / (2 ** (bits - 1) - 1)
        rounded[name] = (np.round(weights[name] / scale) * scale).astype(np.float32)
    wanted = ort(build(nodes, rounded, (1, 3, 16, 16)), X[0])["y"]
    np.testing.assert_allclose(ort(to_qdq(stored), X[0])["y"], wanted, atol=2e-5 * np.abs(wanted).max())


def _units(model: Model) -> list:
    from roadworthy.model.units import units

    return units(model.ir)
