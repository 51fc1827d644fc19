"""The trained network is the deployed one: codes of quantized module, reference and engine, with ==."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnx_graphs import N, build, rand
from random_int8 import feeds, random_int8_model
from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, narrow_codes
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import from_qdq, to_qdq
from roadworthy.optimize import fold
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import place
from roadworthy.quantize.quantize import activation_encodings, quantize_units
from roadworthy.quantize.weights import Wish
from roadworthy.run.reference import ReferenceRunner
from roadworthy.run.targets import TARGETS
from roadworthy.run.torch import module_of

torch = pytest.importorskip("torch")


def quantized(model: Model, **settings: object):  # type: ignore[no-untyped-def]
    from roadworthy.run.torch.quantized import QatSettings, QuantizedModule

    return QuantizedModule(model, QatSettings(**settings))  # type: ignore[arg-type]


def moved(module, seed: int = 0, by: float = 0.02) -> None:  # type: ignore[no-untyped-def]
    """Every parameter a little elsewhere, as training would leave it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator) * by
            p.add_(noise if name.startswith("scale:") else noise * p.abs().mean())
    module.prepare(-1, 0)


def equal_codes(model: Model, module, x: np.ndarray) -> int:  # type: ignore[no-untyped-def]
    wanted, found = ReferenceRunner(model).all_codes({model.input_name: x}), module.codes(torch.from_numpy(x))
    assert wanted.keys() == found.keys()
    for name, codes in wanted.items():
        assert np.array_equal(codes, found[name].numpy()), name
    return sum(c.size for c in wanted.values())


@pytest.mark.parametrize("seed", range(40))
def test_random_networks_have_the_codes_of_the_reference(seed: int):
    model = random_int8_model(seed)
    module = quantized(model)
    x = feeds(model, seed)[model.input_name]
    assert equal_codes(model, module, x) > 0
    moved(module, seed)
    try:
        trained = module.model("train")
    except InputError as error:  # said, never deployed as something else
        assert "any more after training" in str(error)
        return
    assert equal_codes(trained, module, x) > 0
    assert equal_codes(from_qdq(load(to_qdq(trained))), module, x) > 0  # through the file that is delivered


def small(name: str, assets: Path, wish: Wish | None = None) -> Model:
    target = TARGETS["native"]
    model = fold(load(assets / "models" / f"{name}.onnx"))
    placement = place(model.ir, target)
    noise = np.random.default_rng(0).normal(size=model.input_shape).astype(np.float32)
    statistics = calibrate(model, placement.observed, [noise], 2, per_channel=placement.channels)
    activations = activation_encodings(placement, statistics, target, "minmax")
    store = dict.fromkeys(placement.why_float, 8)
    return quantize_units(model, placement, activations, "minmax", store, wish or Wish())


@pytest.mark.assets
@pytest.mark.parametrize("name", ["cifar10_resnet56", "fastestdet", "mobilenet_v1_075", "yolox_nano"])
def test_the_deployed_engine_has_the_codes_of_the_training_forward(name: str, assets: Path):
    """At every quantized tensor of the file that is shipped, after parameters and scales have moved."""
    pytest.importorskip("roadworthy._native", reason="needs the compiled engine (make native)")
    model = small(name, assets)
    module = quantized(model)
    moved(module)
    trained = module.model("train")
    x = np.random.default_rng(1).normal(size=model.input_shape).astype(np.float32)
    found = module.codes(torch.from_numpy(x))
    names = [n for n in found if n != model.input_name]  # which the engine gives as it came
    engine = TARGETS["native"].runner(to_qdq(trained), 2)
    wanted = engine.run({model.input_name: x}, names)
    encodings = ReferenceRunner(trained).encodings
    for value in names:
        assert np.array_equal(encodings[value].dequantize(found[value].numpy()), wanted[value]), value


@pytest.mark.assets
@pytest.mark.parametrize("grid, bits", [("linear", 4), ("log2", 4), ("kmeans", 3)])
def test_few_bits_have_the_codes_of_the_reference(grid: str, bits: int, assets: Path):
    model = small("fastestdet", assets, Wish(bits, grid=grid))
    module = quantized(model)
    moved(module)
    x = np.random.default_rng(1).normal(size=model.input_shape).astype(np.float32)
    equal_codes(module.model("train"), module, x)


LAYER = ([N("Conv", ["x", "w", "b"], ["y"])], {"w": rand(4, 3, 1, 1), "b": rand(4)}, (1, 3, 5, 5))


def one_layer(signed_out: bool = True) -> Model:
    nodes, weights, shape = LAYER
    model = load(build(nodes, weights, shape, outputs=["y"]))
    s = np.float32
    encodings = {
        "x": Encoding(s(0.02), np.int64(128)),
        "w": Encoding(np.full(4, 0.01, s), np.zeros(4, np.int64), 8, True, 0),
        "y": Encoding(s(0.015), np.int64(128)),
    }
    return model.with_encodings(encodings, "quantize")


def test_gradients_of_a_step_size_are_those_of_the_paper():
    """d y / d s = (round(v) - v) inside, the clipped code outside; for one layer, against the formula (Esser 2020)."""
    model = one_layer()
    module = quantized(model)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=model.input_shape).astype(np.float32) * 2)
    y = module(x)["y"]
    (slope,) = torch.autograd.grad(y.sum(), [module.constant("scale:y")])
    s = 0.015
    with torch.no_grad():
        codes = torch.round(y / s)
        pre = _accumulated(model, module, x) / s
    inside = (pre >= -128) & (pre <= 127)
    expected = (torch.where(inside, codes - pre, codes) * s).sum()  # by the logarithm of the scale
    assert not inside.all() and inside.any()
    assert abs(float(slope - expected)) < 1e-3 * float((codes - pre).abs().sum() * s)


def _fake_input(model: Model, x):  # type: ignore[no-untyped-def]
    return torch.from_numpy(model.encodings["x"].fake(x.numpy()))


def _accumulated(model: Model, module, x):  # type: ignore[no-untyped-def]
    """The layer in float on what its codes stand for."""
    w = torch.from_numpy(model.encodings["w"].fake(module.constant("w").detach().numpy()))
    steps = torch.round(module.constant("b").detach() / (0.02 * 0.01)) * (0.02 * 0.01)
    return torch.nn.functional.conv2d(_fake_input(model, x), w, steps)


class Faked(torch.autograd.Function):
    """Rounding to given codes and back, straight through: what quantization-aware training is in most tools."""

    @staticmethod
    def forward(ctx, x, encoding, codes):  # type: ignore[no-untyped-def]
        lo, hi = (
            torch.from_numpy(np.array(encoding._shaped((k - encoding.zero_point) * encoding.scale, x.ndim), np.float32))
            for k in (encoding.qmin, encoding.qmax)
        )
        ctx.save_for_backward((x >= lo) & (x <= hi))
        return torch.from_numpy(encoding.dequantize(codes))

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad * ctx.saved_tensors[0], None, None


def simulated(model: Model, plain, x, known):  # type: ignore[no-untyped-def]
    """The values of the float graph, every encoded one replaced by the codes `known`: an oracle for gradients. (With
    codes of its own, what a table or a sum rounds otherwise would soon make it another network.)"""
    from roadworthy.run.torch.operators import OPERATORS

    reference = ReferenceRunner(model)

    def held(name: str, value):  # type: ignore[no-untyped-def]
        encoding = reference.encodings.get(name)
        if encoding is None or not value.is_floating_point():
            return value
        codes = known[name].numpy() if name in known else narrow_codes(value.detach().numpy(), encoding)
        return Faked.apply(value, encoding, codes)

    values = {model.input_name: held(model.input_name, x)}
    for node in g.nodes(model.ir):
        names = [None if v is None or not v.name else str(v.name) for v in node.inputs]
        inputs = [None if n is None else values.get(n) for n in names]
        inputs = [held(n, plain.constant(n)) if n and v is None else v for n, v in zip(names, inputs)]
        for value, made in zip(node.outputs, OPERATORS[node.op_type](node, inputs)):
            values[str(value.name)] = held(str(value.name), made)
    return values


@pytest.mark.assets
@pytest.mark.parametrize("name", ["cifar10_resnet56", "fastestdet", "mobilenet_v1_075", "yolox_nano"])
def test_gradients_are_those_of_rounding_on_the_way(name: str, assets: Path):
    """Straight-through gradients of all values against the simulation in floats; what is clipped differs only where a
    float sum and the exact one lie on two sides of a border: a few codes in a thousand on the way back."""
    model = small(name, assets)
    x = torch.from_numpy(np.random.default_rng(1).normal(size=model.input_shape).astype(np.float32))
    ours, plain = quantized(model, gradient="ste"), module_of(model)
    state = ours._compute(x, None)
    wanted = simulated(model, plain, x, ours.codes(x))
    aims = {n: torch.randn(wanted[n].shape, generator=torch.Generator().manual_seed(0)) for n in model.output_names}
    names = [n for n in state.codes if state.codes[n].requires_grad]

    def gradients(outputs, at):  # type: ignore[no-untyped-def]
        loss = sum((outputs(n) * aim).sum() for n, aim in aims.items())
        return torch.autograd.grad(loss, [at[n] for n in names])

    pairs = zip(gradients(state.real_by_name, state.codes), gradients(wanted.__getitem__, wanted))
    for value, (one, other) in zip(names, pairs):
        encoding = ours.current[value]
        one = one / torch.from_numpy(np.array(encoding._shaped(encoding.scale, one.ndim)))  # by reals, not by codes
        assert float(torch.cosine_similarity(one.reshape(-1), other.reshape(-1), 0)) > 0.98, value
        assert 0.95 < float(one.norm() / other.norm()) < 1.05, value


def test_tied_values_keep_one_scale():
    nodes = [N("Conv", ["x", "w", "b"], ["c"]), N("MaxPool", ["c"], ["y"], kernel_shape=[2, 2])]
    model = load(build(nodes, LAYER[1], LAYER[2], outputs=["y"]))
    both = Encoding(np.float32(0.015), np.int64(128))
    model = model.with_encodings({**one_layer().encodings, "c": both, "y": both}, "quantize")
    module = quantized(model)
    assert [n for n in module.groups()["scales"]] == ["scale:c", "scale:w"]
    moved(module, 3, 0.2)
    trained = module.model("train")
    assert trained.encodings["c"] == trained.encodings["y"] != both
    assert trained.encodings["x"] == model.encodings["x"]  # the image's own


def test_noise_is_of_training_steps_alone():
    model = one_layer()
    module = quantized(model, gradient="ste", noise=0.5)
    x = torch.from_numpy(feeds(model)[model.input_name])
    quiet = module(x)["y"]
    module.prepare(3, 0)
    first = module(x)["y"]
    module.prepare(4, 0)
    other = module(x)["y"]
    module.prepare(3, 0)
    assert torch.equal(module(x)["y"], first) and not torch.equal(first, other)
    module.prepare(-1, 0)
    assert torch.equal(module(x)["y"], quiet) and not torch.equal(first, quiet)


def test_wide_sums_are_exact():
    """Sums beyond 2^24: float32 alone would lose the last bits."""
    rng = np.random.default_rng(0)
    w = (rng.choice([-1.0, 1.0], (2, 2048, 3, 3)) * rng.uniform(0.9, 1.0, (2, 2048, 3, 3))).astype(np.float32)
    model = load(build([N("Conv", ["x", "w"], ["y"])], {"w": w}, (1, 2048, 3, 3), outputs=["y"]))
    scale = np.full(2, 1 / 127, np.float32)
    model = model.with_encodings(
        {"x": Encoding(np.float32(1 / 255), np.int64(0)), "w": Encoding(scale, np.zeros(2, np.int64), 8, True, 0)}, "q"
    )
    x = rng.uniform(0, 1, model.input_shape).astype(np.float32)
    x = np.where(w[:1] > 0, x, 0).astype(np.float32)  # so that the sum really is large
    found = quantized(model)(torch.from_numpy(x))["y"].detach().numpy()
    assert np.array_equal(found, ReferenceRunner(model).run({"x": x})["y"])


@pytest.mark.parametrize(
    "settings, words", [({"gradient": "soft"}, "unknown"), ({"noise": 0.0}, "share"), ({"noise": 1.5}, "share")]
)
def test_settings_that_are_none_are_refused(settings: dict, words: str):
    with pytest.raises(InputError, match=words):
        quantized(one_layer(), **settings)


def test_a_float_model_is_refused():
    nodes, weights, shape = LAYER
    with pytest.raises(InputError, match="no encodings"):
        quantized(load(build(nodes, weights, shape, outputs=["y"])))
