"""The PyTorch bridge: whole networks against ONNX Runtime, parameters and their way back, refusals.

Bound. PyTorch and ONNX Runtime both compute in float32 and sum in different orders: 1e-4 of the largest result, which
a wrong attribute or axis misses by orders of magnitude.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_reference_ops import ACTIVATIONS, IMAGE

from onnx_graphs import N, build, ort, rand
from random_graphs import random_network
from random_int8 import random_int8_model
from roadworthy.check.agreement import compare_runners
from roadworthy.data.street import scene
from roadworthy.errors import InputError, MissingExtraError, UnsupportedError
from roadworthy.jobs import sample
from roadworthy.model.model import load
from roadworthy.optimize import fold
from roadworthy.run import torch as bridge
from roadworthy.run.ort import OrtRunner
from roadworthy.run.targets import WITNESSES

torch = pytest.importorskip("torch")


def agree(ours: dict, theirs: dict) -> None:
    assert list(ours) == list(theirs)
    for name, wanted in theirs.items():
        assert ours[name].shape == wanted.shape and ours[name].dtype == wanted.dtype == np.float32
        assert np.abs(ours[name] - wanted).max() <= 1e-4 * max(float(np.abs(wanted).max()), 1e-3), name


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_the_right_parameters(name: str):
    weights = {
        "w": rand(5, 4, 3, 3) / 6, "b": rand(5), "three": np.float32(3), "zero": np.float32(0), "six": np.float32(6),
        "slope": np.float32(0.2).reshape(1, 1, 1), "slopes": rand(5, 1, 1),
    }  # fmt: skip
    nodes = [N("Conv", ["x", "w", "b"], ["c"]), *ACTIVATIONS[name]]
    proto, x = build(nodes, weights, IMAGE), 3 * rand(*IMAGE)
    module = bridge.module_of(load(proto))
    slopes = {"prelu, one slope": {"slope"}, "prelu, a slope per channel": {"slopes"}}
    assert set(dict(module.named_parameters())) == {"w", "b", *slopes.get(name, ())}
    agree(bridge.TorchRunner(load(proto)).run({"x": x}), ort(proto, x, optimize=False))


@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed: int):
    rng = np.random.default_rng(seed)
    proto = random_network(lambda n: int(rng.integers(n)), seed)
    model, x = load(proto), rand(1, 3, 8, 8, seed=seed)
    agree(bridge.TorchRunner(model).run({"x": x}), ort(model.float_bytes(), x, optimize=False))
    assert bridge.write_back(model, bridge.module_of(model)).float_bytes() == model.float_bytes()


def check_network(path: Path, scale: float, pictures: Sequence[np.ndarray]) -> None:
    """On pictures the module is within 1e-4 of ONNX Runtime, by the largest value of each output. Both round, ONNX
    Runtime on other code paths than PyTorch; in float64 the module has no rounding to speak of, and against that it may
    be off by four times what ONNX Runtime is."""
    model = fold(load(path))
    sized = [cv2.resize(p, model.input_shape[:1:-1]).transpose(2, 0, 1)[None] for p in pictures]
    tensors = [p.astype(np.float32) * np.float32(scale) for p in sized]
    theirs, ours = OrtRunner(model.float_bytes(), 1), WITNESSES["torch"](model)
    for found in compare_runners(theirs, ours, tensors):
        assert found.images == len(tensors) and 0 < found.relative <= 1e-4 and found.rms <= 1e-5, found
    module = bridge.module_of(model)
    exact = copy.deepcopy(module).double()
    truth = WITNESSES["float64"](model)
    for off, own in zip(compare_runners(truth, ours, tensors), compare_runners(truth, theirs, tensors)):
        assert own.relative <= 1e-4 and off.off <= 4 * max(own.off, 2**-22 * own.largest)
    assert bridge.write_back(model, module).float_bytes() == model.float_bytes()
    assert bridge.write_back(model, exact).float_bytes() == model.float_bytes()
    assert len(list(module.parameters())) > 20


def test_the_street_detector():
    check_network(sample.detector(), 1 / 255, [scene(k)[0] for k in range(3)])


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "scale"),
    [("yolox_nano", 1), ("fastestdet", 1 / 255), ("cifar10_resnet56", 1 / 255), ("mobilenet_v1_075", 1 / 255)],
)
def test_real_models(name: str, scale: float, assets: Path):
    files = sorted((assets / "imagenet").glob("*.JPEG"))[:3]
    check_network(assets / "models" / f"{name}.onnx", scale, [scene(0)[0], *(cv2.imread(str(f)) for f in files)])


NODES = [N("Conv", ["x", "a.0.weight", "forward"], ["c"]), N("Relu", ["c"], ["r"]), N("Conv", ["r", ".v"], ["y"])]
WEIGHTS = {"a.0.weight": rand(4, 3, 3, 3), "forward": rand(4), ".v": rand(2, 4, 1, 1)}


def test_parameters_bear_the_names_of_initializers():
    model = load(build(NODES, WEIGHTS))
    module = bridge.module_of(model)
    assert set(dict(module.named_parameters())) == set(WEIGHTS) == set(module.state_dict())
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(module.constant(name).detach().numpy(), array)
    module.load_state_dict({n: 2 * t for n, t in module.state_dict().items()}, strict=False)
    np.testing.assert_array_equal(module.constant("a.0.weight").detach().numpy(), 2 * WEIGHTS["a.0.weight"])


def test_what_was_trained_is_written_back():
    model = load(build(NODES, WEIGHTS))
    module, x = bridge.module_of(model), rand(1, 3, 8, 8)
    before = model.float_bytes()
    optimizer = torch.optim.SGD(module.parameters(), 1e-5)
    for _ in range(10):
        optimizer.zero_grad()
        (module(torch.from_numpy(x))["y"] ** 2).sum().backward()
        optimizer.step()
    trained = bridge.write_back(model, module)
    assert model.float_bytes() == before and trained.history[-1] == "train"
    agree(ort(trained.float_bytes(), x), {"y": module(torch.from_numpy(x))["y"].detach().numpy()})
    assert np.square(ort(trained.float_bytes(), x)["y"]).sum() < 0.9 * np.square(ort(before, x)["y"]).sum()
    # In float64, and back: the same float32 numbers.
    assert bridge.write_back(model, bridge.module_of(trained).double()).float_bytes() == trained.float_bytes()


def test_taps_are_in_the_graph():
    model = load(build(NODES, WEIGHTS))
    module, x = bridge.module_of(model), torch.from_numpy(rand(1, 3, 8, 8)).requires_grad_()
    found = module(x, ("r", "x", "y"))
    assert list(found) == ["y", "r", "x"] and found["x"] is x
    slope, tapped = torch.autograd.grad(found["y"].sum(), [x, found["r"]])
    kernel = torch.from_numpy(WEIGHTS[".v"]).sum(0).reshape(1, 4, 1, 1)
    torch.testing.assert_close(tapped, kernel.expand_as(tapped))
    assert slope.abs().sum() > 0
    with pytest.raises(KeyError, match="nowhere"):
        module(x, ("nowhere",))


def test_shared_weights_are_one_parameter():
    nodes = [N("Conv", ["x", "w"], ["a"]), N("Conv", ["a", "w"], ["y"])]
    module = bridge.module_of(load(build(nodes, {"w": rand(3, 3, 3, 3)})))
    x = torch.from_numpy(rand(1, 3, 8, 8))
    (both,) = torch.autograd.grad(module(x)["y"].sum(), list(module.parameters()))
    w = torch.from_numpy(rand(3, 3, 3, 3)).requires_grad_()
    plain = torch.nn.functional.conv2d
    torch.testing.assert_close(both, torch.autograd.grad(plain(plain(x, w), w).sum(), w)[0])


def test_an_unknown_operator_is_named():
    with pytest.raises(UnsupportedError, match=r"Det 'area'"):
        bridge.module_of(load(build([N("Det", ["x"], ["y"], name="area")])))


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"roadworthy\[train\]"):
        bridge.module_of(load(build(NODES, WEIGHTS)))


def test_refusals():
    model = load(build(NODES, WEIGHTS))
    module = bridge.module_of(model)
    with pytest.raises(InputError, match=r"the input 'x' has the shape \(1, 3, 4, 4\)"):
        module(torch.zeros(1, 3, 4, 4))
    with pytest.raises(InputError, match="'w' cannot be written"):
        bridge.write_back(model, bridge.module_of(load(build([N("Conv", ["x", "w"], ["y"])], {"w": rand(4, 3, 3, 3)}))))
    with torch.no_grad():
        module.constant("forward")[0] = torch.nan
    with pytest.raises(InputError, match="'forward' became NaN"):
        bridge.write_back(model, module)


def test_parameters_have_kinds():
    """Weights once, though one is a bias elsewhere; the 3 of a hard-swish and running statistics are not trained."""
    nodes = [
        N("Conv", ["x", "w", "b"], ["c"]),
        N("BatchNormalization", ["c", "gamma", "beta", "mean", "variance"], ["n"]),
        N("PRelu", ["n", "slope"], ["p"]),
        N("MatMul", ["p", "m"], ["q"]),
        N("Add", ["q", "k"], ["r"]),
        N("MatMul", ["r", "m"], ["s"]),
        N("Add", ["s", "three"], ["t"]),
        N("Clip", ["t", "zero", "six"], ["u"]),
        N("Mul", ["s", "u"], ["v"]),
        N("Div", ["v", "six"], ["y"]),
    ]
    weights = {
        "w": rand(4, 3, 3, 3), "b": rand(4), "gamma": rand(4), "beta": rand(4), "mean": rand(4), "slope": rand(4, 1, 1),
        "variance": np.abs(rand(4)), "m": rand(6, 6), "k": rand(6), "three": np.float32(3), "zero": np.float32(0),
        "six": np.float32(6),
    }  # fmt: skip
    model = load(build(nodes, weights))
    module = bridge.module_of(model)
    groups = module.groups()
    assert {k: sorted(v) for k, v in groups.items()} == {
        "weights": ["m", "w"], "biases": ["b", "beta", "gamma", "k", "slope"],
    }  # fmt: skip
    assert sorted(n for names in groups.values() for n in names) == sorted(n for n, _ in module.named_parameters())
    module.prepare(0, 0)
    with torch.no_grad():
        module.constant("gamma").mul_(2)
    trained = module.model("train: 1 step")
    assert trained.history[-1] == "train: 1 step"
    np.testing.assert_array_equal(bridge.module_of(trained).constant("gamma").detach().numpy(), 2 * weights["gamma"])


def test_what_nobody_reads_any_more_is_freed():
    """Without gradients a chain of twenty holds two values at a time: what is read, and the input."""
    names = ["x", *(f"v{k}" for k in range(19)), "y"]
    chain = [N("Exp", [a], [b], name=b) for a, b in itertools.pairwise(names)]
    module = bridge.module_of(load(build(chain)))
    seen: list[weakref.ref] = []
    alive: list[int] = []
    with torch.no_grad():
        for _, inputs in module.walk(torch.zeros(1, 3, 8, 8), (), {}, set(names)):
            seen.append(weakref.ref(inputs[0]))
            alive.append(sum(ref() is not None for ref in seen))
            del inputs
    assert len(alive) == 20 and max(alive) == 2


def test_several_threads_at_once():
    """Forward passes share the parameters and write nothing: the same bytes as one after the other."""
    module = bridge.module_of(load(build(NODES, WEIGHTS)))
    xs = [torch.from_numpy(rand(1, 3, 8, 8, seed=k)) for k in range(16)]
    parameters = list(module.parameters())

    def slopes(x):  # type: ignore[no-untyped-def]
        return torch.autograd.grad(module(x)["y"].square().sum(), parameters)

    alone = [slopes(x) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(slopes, xs))
    assert all(torch.equal(a, b) for one, other in zip(alone, together) for a, b in zip(one, other))


@pytest.mark.parametrize("quantized", [False, True])
def test_copies_are_trained_apart(quantized: bool):
    if quantized:
        from roadworthy.run.torch.quantized import QatSettings, QuantizedModule

        module = QuantizedModule(random_int8_model(3), QatSettings(gradient="lsq", noise=0.5))
    else:
        module = bridge.module_of(load(build(NODES, WEIGHTS))).double()
    x = torch.from_numpy(rand(*module.input_shape)).to(next(module.parameters()).dtype)
    name = next(iter(dict(module.named_parameters())))
    with torch.no_grad():
        module.constant(name).mul_(1.5)
    module.prepare(-1, 0)
    wanted = {k: v.detach().clone() for k, v in module(x).items()}
    other = copy.deepcopy(module)
    assert type(other) is type(module) and all(torch.equal(v, wanted[k]) for k, v in other(x).items())
    with torch.no_grad():
        other.constant(name).mul_(-1)
    other.prepare(-1, 0)
    assert all(torch.equal(v, wanted[k]) for k, v in module(x).items())
    assert not all(torch.equal(v, wanted[k]) for k, v in other(x).items())
