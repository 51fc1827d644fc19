"""Learned rounding of networks: what each kind of layer gains, what is left alone, and that codes survive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_graphs import N, build, ort, rand
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.readers import read
from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.encoding import QuantSpec, narrow_codes
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import from_qdq, to_qdq
from roadworthy.model.task import Task
from roadworthy.model.units import units
from roadworthy.quantize import gram
from roadworthy.quantize.learned import plan, round_weights
from roadworthy.quantize.weights import weight_encoding
from roadworthy.recipe import CorrectBias, Fold, Quantize, Recipe, Round, StoreWeights
from roadworthy.run.targets import TARGETS

MIX = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)


def correlated(seed: int) -> np.ndarray:
    """An image of six channels that follow two causes, with a mean."""
    causes = np.random.default_rng(seed).normal(size=(2, 8, 8)).astype(np.float32)
    for axis in (1, 2, 1, 2, 1, 2):  # neighbours are alike
        causes = causes + np.roll(causes, 1, axis)
    noise = np.random.default_rng(seed + 1000).normal(size=(6, 8, 8)).astype(np.float32)
    return (np.einsum("cm,mhw->chw", MIX, causes / causes.std()) + 0.05 * noise + 0.5)[None].astype(np.float32)


def white(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 6, 8, 8)).astype(np.float32)


SEEN, UNSEEN = range(24), range(100, 112)
ROWS = [N("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]), N("Reshape", ["t", "to"], ["f"])]
TO = {"to": np.array([64, 6])}
LAYERS: dict[str, tuple[list[Any], dict[str, np.ndarray]]] = {
    "conv": ([N("Conv", ["x", "w", "b"], ["y"])], {"w": rand(8, 6, 1, 1), "b": rand(8)}),
    "padded conv without bias": ([N("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])], {"w": rand(8, 6, 3, 3)}),
    "strides and dilations": (
        [N("Conv", ["x", "w"], ["y"], strides=[2, 1], dilations=[1, 2], pads=[1, 0, 0, 2])],
        {"w": rand(8, 6, 3, 2)},
    ),
    "groups": ([N("Conv", ["x", "w", "b"], ["y"], group=2)], {"w": rand(8, 3, 2, 2), "b": rand(8)}),
    "depthwise": ([N("Conv", ["x", "w", "b"], ["y"], group=6)], {"w": rand(6, 1, 3, 3), "b": rand(6)}),
    "deconvolution": ([N("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])], {"w": rand(6, 4, 2, 2)}),
    "gemm": ([*ROWS, N("Gemm", ["f", "w", "b"], ["y"], transB=1)], {"w": rand(9, 6), "b": rand(9), **TO}),
    "gemm with alpha": ([*ROWS, N("Gemm", ["f", "w", "b"], ["y"], alpha=2.0, beta=0.5)],
                        {"w": rand(6, 9), "b": rand(9), **TO}),
    "matmul": ([*ROWS, N("MatMul", ["f", "w"], ["y"])], {"w": rand(6, 9), **TO}),
    "matmul with bias": ([*ROWS, N("MatMul", ["f", "w"], ["m"]), N("Add", ["m", "b"], ["y"])],
                         {"w": rand(6, 9), "b": rand(9), **TO}),
    "shared": ([N("Conv", ["x", "w", "b"], ["a"]), N("Conv", ["x", "w"], ["c"], strides=[2, 2]),
                N("Flatten", ["a"], ["d"]), N("Flatten", ["c"], ["e"]), N("Concat", ["d", "e"], ["y"], axis=1)],
               {"w": rand(8, 6, 1, 1), "b": rand(8)}),
}  # fmt: skip


def coarse(case: str, bits: int = 3, **changed: np.ndarray) -> Model:
    """The case's layer with a weight of so many bits that is only stored."""
    nodes, weights = LAYERS[case]
    model = load(build(nodes, {**weights, **changed}, (1, 6, 8, 8)))
    unit = units(model.ir)[0]
    axis = unit.weight_axis
    encoding = weight_encoding(constant(unit.weight), QuantSpec(bits, True, axis, True, "mse"))
    return model.with_encodings({str(unit.weight.name): encoding}, "coarse")


def constant(value: g.Value | None) -> np.ndarray:
    array = g.constant(value)
    assert array is not None
    return array


def rounded(model: Model) -> bytes:
    """The network with its weights after a round trip through their codes."""
    ir = g.clone(model.ir)
    for unit in units(ir):
        encoding = model.encodings[str(unit.weight.name)]
        g.set_constant(unit.weight, encoding.dequantize(narrow_codes(constant(unit.weight), encoding)))
    return g.to_bytes(ir)


def error(model: Model, original: bytes, images: list[np.ndarray]) -> float:
    """Mean squared error of the output after rounding."""
    data = rounded(model)
    return float(np.mean([np.square(ort(data, x)["y"] - ort(original, x)["y"]).mean() for x in images]))


@pytest.mark.parametrize("case", LAYERS)
def test_correlated_inputs_are_rounded_with_less_error(case: str):
    model = coarse(case)
    original = model.float_bytes()
    held = [correlated(k) for k in UNSEEN]
    # The rival has its bias corrected as well, by the same means.
    plain = round_weights(model, lambda: map(correlated, SEEN), "nearest", refit=False)
    learned = round_weights(model, lambda: map(correlated, SEEN), refit=False)
    fitted = round_weights(model, lambda: map(correlated, SEEN))
    most = 0.8 if case == "depthwise" else 0.7  # nine inputs leave less that could cancel
    assert error(learned, original, held) < most * error(plain, original, held)
    assert error(fitted, original, held) < most * error(plain, original, held)
    for made in (learned, fitted):
        ((name, encoding),) = made.encodings.items()
        codes = narrow_codes(constant(g.values(made.ir)[name]), encoding)
        assert np.abs(codes).max() <= 3
        assert np.array_equal(encoding.dequantize(codes), constant(g.values(made.ir)[name]))
    assert dict(learned.encodings) == dict(model.encodings) and model.float_bytes() == original


@pytest.mark.parametrize("case", ["conv", "depthwise", "gemm"])
def test_uncorrelated_inputs_leave_the_nearest_codes(case: str):
    model = coarse(case, 6)
    made = round_weights(model, lambda: map(white, range(200)), refit=False)
    encoding = model.encodings["w"]
    before, after = (narrow_codes(constant(g.values(m.ir)["w"]), encoding) for m in (model, made))
    assert (before != after).mean() < 0.1  # moments of 200 images are not exactly white
    held = [white(k) for k in range(1000, 1020)]
    plain = round_weights(model, lambda: map(white, range(200)), "nearest", refit=False)
    assert error(made, model.float_bytes(), held) < 1.02 * error(plain, model.float_bytes(), held)


def test_layers_that_cannot_be_learned_are_left_alone_with_a_reason():
    weights = {
        "a": rand(6, 4, 3, 3),
        "w": rand(6, 6, 1, 1),
        "n": rand(6, 6, 1, 1, seed=3),
        "h": rand(6, 6, 1, 1, seed=4),
    }
    nodes = [
        N("ConvTranspose", ["x", "a"], ["p"], strides=[2, 2], name="overlap"),
        N("Conv", ["x", "w"], ["q"], name="fine"),
        N("Conv", ["x", "n"], ["r"], name="reads"),
        N("Add", ["n", "n"], ["s"]),
        N("Conv", ["x", "h"], ["u"], name="half"),
    ]
    model = load(build(nodes, weights, (1, 6, 8, 8), outputs=("p", "q", "r", "s", "u")))
    encodings = {
        n: weight_encoding(a, QuantSpec(16 if n == "h" else 4, True, 1 if n == "a" else 0, True))
        for n, a in weights.items()
    }
    model = model.with_encodings(encodings, "coarse")
    groups, reasons = plan(model)
    assert [u.name for group in groups for u in group.layers] == ["fine"]
    assert "windows overlap" in reasons["overlap"] and "16 bits" in reasons["half"]
    assert "no layer" in reasons["reads"]
    made = round_weights(model, lambda: map(correlated, range(4)))
    assert made.history[-1] == "round: 1 layers by descent, 3 left alone"
    for name in ("a", "n", "h"):
        assert np.array_equal(constant(g.values(made.ir)[name]), weights[name])
    assert "dimensions" in reasons_of(N("MatMul", ["x", "w"], ["y"]), rand(1, 6, 8, 8))
    assert "more than" in reasons_of(N("Gemm", ["f", "w"], ["y"]), rand(gram.MOST_INPUTS + 1, 2))


def reasons_of(node: Any, weight: np.ndarray) -> str:
    first = [N("Expand", ["x", "by"], ["e"]), N("Reshape", ["e", "to"], ["f"])] if node.op_type == "Gemm" else []
    extra = {"by": np.array([17, 6, 8, 8]), "to": np.array([-1, len(weight)])} if first else {}
    if first:
        first = [N("Gemm", ["s", "v"], ["f"]), N("Flatten", ["x"], ["s"])][::-1]
        extra = {"v": rand(384, len(weight))}
    model = load(build([*first, node], {"w": weight, **extra}, (1, 6, 8, 8)))
    return plan(model.with_encodings({"w": weight_encoding(weight, QuantSpec(4, True, None, True))}, ""))[1][
        units(model.ir)[-1].name
    ]


def test_one_weight_that_two_layers_read_differently_is_left_alone():
    nodes = [*ROWS, N("Gemm", ["f", "w"], ["a"], name="a"), N("Gemm", ["f", "w"], ["c"], transB=1, name="c"),
             N("Add", ["a", "c"], ["y"])]  # fmt: skip
    model = load(build(nodes, {"w": rand(6, 6), **TO}, (1, 6, 8, 8)))
    model = model.with_encodings({"w": weight_encoding(rand(6, 6), QuantSpec(4, True, None, True))}, "coarse")
    assert plan(model) == ([], dict.fromkeys("ac", "its weight is shared with a, which reads it in another way"))
    assert round_weights(model, lambda: [correlated(0)]).float_bytes() == model.float_bytes()


@pytest.mark.parametrize("case", LAYERS)
def test_moments_are_those_of_the_layer_itself(case: str, monkeypatch: pytest.MonkeyPatch):
    """With every pixel looked at, the rows' means and energies are those of ONNX Runtime's output (bias aside)."""
    monkeypatch.setattr(gram, "MAX_PATCHES", 10**6)
    nodes, weights = LAYERS[case]
    model = load(build(nodes, {**weights, **({"b": 0 * weights["b"]} if "b" in weights else {})}, (1, 6, 8, 8)))
    unit = units(model.ir)[0]
    ((_, moments),) = gram.gather(model, [unit], lambda: map(correlated, range(5)))
    w = gram.to_rows(unit, constant(unit.weight).astype(np.float64)) * g.attribute(unit.anchor, "alpha", 1.0)
    found = [ort(model.float_bytes(), correlated(k))["y"] for k in range(5)]
    if case == "shared":
        found = [y[:, : 8 * 64].reshape(1, 8, 8, 8) for y in found]
    outs = np.concatenate([np.moveaxis(y, 1, -1).reshape(-1, y.shape[1]) if y.ndim == 4 else y for y in found])
    mean, energy = (w @ moments.mean[..., None])[..., 0], ((w @ moments.moment(False)) * w).sum(-1)
    if case == "deconvolution":
        mean, energy = (a.reshape(4, 4).mean(1) for a in (mean, energy))
    np.testing.assert_allclose(mean.reshape(-1), outs.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(energy.reshape(-1), np.square(outs.astype(np.float64)).mean(0), rtol=1e-4)


def test_gathering_in_several_passes_gives_the_same(monkeypatch: pytest.MonkeyPatch):
    model = load(build([N("Conv", ["x", "w"], ["a"]), N("Relu", ["a"], ["r"]), N("Conv", ["r", "v"], ["y"])],
                       {"w": rand(8, 6, 3, 3), "v": rand(4, 8, 1, 1)}, (1, 6, 8, 8)))  # fmt: skip
    whole = list(gram.gather(model, units(model.ir), lambda: map(correlated, range(3))))
    monkeypatch.setattr(gram, "MOST_HELD", 1)
    seen: list[int] = []
    parts = list(gram.gather(model, units(model.ir), lambda: map(correlated, range(3)), seen.append))
    assert seen == [1, 2, 3, 4, 5, 6]
    for (_, a), (_, b) in zip(whole, parts):
        assert np.array_equal(a.products, b.products) and np.array_equal(a.total, b.total)


def small() -> tuple[Model, Samples]:
    weights = {
        "w": rand(8, 3, 3, 3) / 5,
        "v": rand(8, 1, 3, 3) / 2,
        "u": rand(6, 8, 1, 1) / 3,
        "b": rand(8),
        "c": rand(6),
    }
    nodes = [
        N("Conv", ["x", "w", "b"], ["a"], name="stem"),
        N("Relu", ["a"], ["r"]),
        N("Conv", ["r", "v"], ["d"], name="depthwise", group=8),
        N("Sigmoid", ["d"], ["s"]),
        N("Mul", ["d", "s"], ["m"]),
        N("Conv", ["m", "u", "c"], ["y"], name="last"),
    ]
    task = Task(Preprocess((16, 16), "stretch", scale=1 / 255), DecodeSpec("raw"))

    def picture(k: int) -> Sample:
        pixels = np.random.default_rng(k).integers(0, 256, (20, 24, 3), np.uint8)
        return Sample(f"{k}.png", load=lambda: pixels, key=str(k))

    return load(build(nodes, weights, (1, 3, 16, 16)), task), Samples([picture(k) for k in range(6)])


@pytest.mark.parametrize("target", TARGETS)
def test_the_step_is_repeatable_and_its_codes_survive_the_file(target: str):
    model, images = small()
    recipe = Recipe((Fold(), Quantize(target), Round()), images=5)
    made = recipe.apply(model, images)
    assert to_qdq(made) == to_qdq(recipe.apply(small()[0], small()[1]))
    back = from_qdq(load(to_qdq(made)))
    again = {str(u.name): u for u in units(back.ir)}
    for unit in units(made.ir):
        encoding = made.encodings[str(unit.weight.name)]
        other = again[unit.name]
        codes = narrow_codes(constant(other.weight), back.encodings[str(other.weight.name)])
        assert np.array_equal(codes, narrow_codes(constant(unit.weight), encoding))
    assert to_qdq(CorrectBias()(made, images)) == to_qdq(made)  # the weights are exact, so nothing is left to correct
    assert to_qdq(Recipe((*recipe.steps[:2], Round(images=2)), images=5).apply(model, images)) != to_qdq(made)


def test_a_layer_whose_sums_could_overflow_keeps_what_it_had(monkeypatch: pytest.MonkeyPatch):
    model, images = small()
    quantized = Quantize("native")(model, images)
    calls: list[str] = []

    def refuse(unit: Any, encodings: Any) -> str | None:
        calls.append(unit.name)
        return "too large" if calls.count(unit.name) > 1 else None

    monkeypatch.setattr("roadworthy.quantize.learned.int8_refusal", refuse)
    made = Round()(quantized, images)
    assert dict(made.encodings) == dict(quantized.encodings)
    for before, after in zip(units(quantized.ir), units(made.ir)):
        encoding = made.encodings[str(after.weight.name)]
        assert np.array_equal(*(narrow_codes(constant(u.weight), encoding) for u in (before, after)))


def test_what_the_step_refuses():
    model, images = small()
    stored = StoreWeights()(model, images)
    with pytest.raises(InputError, match="there are no images to learn"):
        Round()(stored, Samples([]))
    with pytest.raises(InputError, match="needs the task"):
        Round()(load(model.float_bytes()), images)
    with pytest.raises(InputError, match="put Round behind Quantize or StoreWeights"):
        Recipe((Fold(), Round(), Quantize("ort")), images=4).apply(model, images)
    left = StoreWeights(float_weights=tuple(u.name for u in units(model.ir)))(model, images)
    assert to_qdq(Round()(left, images)) == to_qdq(left)  # a recipe may leave every layer as it is
    broken = load(build([N("Log", ["x"], ["l"]), N("Conv", ["l", "w"], ["y"], name="last")],
                        {"w": rand(8, 6, 3, 3)}, (1, 6, 8, 8)))  # fmt: skip
    broken = broken.with_encodings({"w": weight_encoding(rand(8, 6, 3, 3), QuantSpec(4, True, 0, True))}, "")
    with pytest.raises(InputError, match="'last' of the model becomes NaN or infinite"):
        round_weights(broken, lambda: [white(0)])


@pytest.mark.assets
def test_a_real_network_comes_closer(assets: Path):
    """ResNet-56 with weights of 8 and 4 bits alone, on small photographs that were not looked at."""
    images = read(assets / "imagenet" / "labels.csv").calibration
    preprocess = Preprocess((32, 32), "stretch", color="rgb", scale=1 / 255, mean=(0.48,) * 3, std=(0.22,) * 3)
    task = Task(preprocess, DecodeSpec("classify"))
    model = Fold()(load(assets / "models" / "cifar10_resnet56.onnx", task), images)
    chosen = images.take(8, 0)
    held = [s for s in images if s not in set(chosen)][:8]
    tensors = [task.preprocess(s.image())[0] for s in held]
    original = TARGETS["ort"].runner(model.float_bytes(), 2)
    wanted = [next(iter(original.run({model.input_name: t}).values())) for t in tensors]

    def away(made: Model) -> float:
        runner = TARGETS["ort"].runner(rounded(made), 2)
        found = [next(iter(runner.run({model.input_name: t}).values())) for t in tensors]
        return float(np.mean([np.square(a - b).mean() for a, b in zip(found, wanted)]))

    for bits, most in ((8, 1.0), (4, 0.5)):
        encodings = {
            str(u.weight.name): weight_encoding(constant(u.weight), QuantSpec(bits, True, u.weight_axis, True, "mse"))
            for u in units(model.ir)
        }
        stored = model.with_encodings(encodings, "coarse")
        assert away(Round("sequential")(stored, chosen)) < most * away(CorrectBias()(stored, chosen))
