"""Sensitivities: a network in which the layer that matters is known, and curvatures that can be worked out."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_graphs import N, build, rand
from roadworthy.check.judge import distance as task_distance
from roadworthy.data.preprocess import Preprocess
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError, MissingExtraError
from roadworthy.jobs import sample
from roadworthy.model.model import Model, load
from roadworthy.model.task import Task
from roadworthy.model.units import units
from roadworthy.optimize import fold
from roadworthy.quantize import sensitivity as s

GAINS = (0.03, 0.1, 1.0, 0.05)
MATTERS = "c2"


def needs_torch(name: str) -> None:
    if name in ("fisher", "hessian"):
        pytest.importorskip("torch")


def task_of(kind: str, classes: int, hw: tuple[int, int] = (8, 8), **fields: object) -> Task:
    return Task(Preprocess(size_hw=hw), DecodeSpec(kind, classes, hw, **fields))  # type: ignore[arg-type]


def planted(gains: tuple[float, ...] = GAINS) -> Model:
    """Layers of equal size and equal weights' spread side by side, each with a gain of its own, summed."""
    nodes, weights = [], {}
    for k, gain in enumerate(gains):
        nodes += [N("Conv", ["x", f"w{k}"], [f"c{k}"], name=f"c{k}"), N("Mul", [f"c{k}", f"g{k}"], [f"m{k}"])]
        weights |= {f"w{k}": rand(5, 3, 3, 3, seed=k), f"g{k}": np.float32(gain)}
    nodes += [
        N("Sum", [f"m{k}" for k in range(len(gains))], ["s"]),
        N("Relu", ["s"], ["r"]),
        N("GlobalAveragePool", ["r"], ["p"]),
        N("Flatten", ["p"], ["y"]),
    ]
    return load(build(nodes, weights), task=task_of("classify", 5, scores_are_logits=True))


def images(count: int = 6, shape: tuple[int, ...] = (1, 3, 8, 8)) -> s.Tensors:
    def make() -> Iterator[NDArray]:
        return (rand(*shape, seed=100 + k) for k in range(count))

    return make


def measure(name: str, model: Model, bits: tuple[int, ...] = (3, 4, 8), **more: object) -> s.Damage:
    needs_torch(name)
    task = model.task
    assert task is not None
    made = {"tensors": images(), "seed": 0, "distance": lambda a, b: task_distance(a, b, task), **more}
    return s.SENSITIVITIES[name](model, bits=bits, **made)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", s.SENSITIVITIES)
def test_the_layer_that_matters_is_found(name: str):
    model = planted()
    damage = measure(name, model)
    assert set(damage) == {(u.name, b) for u in units(model.ir) for b in (3, 4, 8)}
    for b in (3, 4, 8):
        others = [d for (layer, bits), d in damage.items() if bits == b and layer != MATTERS]
        # A gain ten times larger: ten times in distance, a hundredfold in all that is quadratic.
        assert damage[MATTERS, b] > 4 * max(others) > 0
    for layer in ("c0", "c1", "c2", "c3"):
        assert damage[layer, 3] > damage[layer, 4] > 4 * damage[layer, 8]


@pytest.mark.parametrize("name", s.SENSITIVITIES)
def test_equal_layers_are_told_to_be_equal(name: str):
    damage = measure(name, planted((0.5, 0.5, 0.5)), (4,))
    assert max(damage.values()) < 3 * min(damage.values())


@pytest.mark.parametrize("name", s.SENSITIVITIES)
def test_same_seed_same_result(name: str):
    model, seen = planted(), []
    first = measure(name, model, (4,), progress=lambda done, of: seen.append((done, of)))
    assert first == measure(name, model, (4,))
    assert seen and all(0 < done <= of for done, of in seen) and seen[-1][0] == seen[-1][1]
    if name in ("fisher", "hessian"):
        assert first != measure(name, model, (4,), seed=1)


@pytest.mark.parametrize("name", s.SENSITIVITIES)
def test_refusals(name: str):
    with pytest.raises(InputError, match="no images"):
        measure(name, planted(), tensors=lambda: iter(()))


def test_distance_needs_a_distance():
    with pytest.raises(InputError, match="distance="):
        s.SENSITIVITIES["distance"](planted(), images())


def test_only_gradients_need_torch(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert measure("sqnr", planted(), (4,))
    for name in ("fisher", "hessian"):
        with pytest.raises(MissingExtraError, match=r"roadworthy\[train\]"):
            s.SENSITIVITIES[name](planted(), images())


def test_images_come_in_chunks_that_do_not_show(monkeypatch):
    whole = measure("sqnr", planted(), (4,))
    monkeypatch.setattr(s, "CHUNK", 4)
    for key, value in measure("sqnr", planted(), (4,)).items():
        assert value == pytest.approx(whole[key], rel=1e-12)


def test_a_rounding_of_ones_own():
    model = planted()
    exact = measure("sqnr", model, (4,), rounded=lambda unit, bits: s.nearest(unit, 16))
    assert max(exact.values()) < 1e-4 * min(measure("sqnr", model, (4,)).values())


@pytest.mark.parametrize("name", s.SENSITIVITIES)
def test_layers_that_share_a_weight_have_one_damage(name: str):
    nodes = [N("Conv", ["x", "w"], ["a"], name="a"), N("Conv", ["a", "w"], ["b"], name="b"),
             N("GlobalAveragePool", ["b"], ["p"]), N("Flatten", ["p"], ["y"])]  # fmt: skip
    model = load(build(nodes, {"w": rand(3, 3, 3, 3)}), task=task_of("classify", 3, scores_are_logits=True))
    damage = measure(name, model, (4,))
    assert damage["a", 4] == damage["b", 4] > 0 and list(s.layers_of_weights(model)) == ["w"]


# What can be worked out.


def linear(classes: int = 4, features: int = 6) -> Model:
    nodes = [N("Flatten", ["x"], ["f"]), N("Gemm", ["f", "w"], ["y"], name="layer", transB=1)]
    return load(build(nodes, {"w": 0.2 * rand(classes, features)}, (1, features, 1, 1)),
                task=task_of("classify", classes, scores_are_logits=True))  # fmt: skip


def softmax(z: NDArray) -> NDArray:
    e = np.exp(z - z.max())
    return e / e.sum()


def test_fisher_and_trace_of_a_softmax_layer():
    """F[c, k] = p[c] (1 - p[c]) x[k]^2, and the trace of the Hessian is its sum.

    With p between 0.1 and 0.5 a draw of (p - y)^2 spreads by up to 2.7 times its mean: 5 % of 3000 draws, of which 12 %
    is more than two and a typical class (p = 0.25) has 2 %.
    """
    pytest.importorskip("torch")
    shape = (1, 6, 1, 1)
    each = []
    for x in images(3, shape)():
        p = softmax(0.2 * rand(4, 6).astype(np.float64) @ x.reshape(-1))
        each.append(np.outer(p * (1 - p), x.reshape(-1) ** 2))
    found = s.fisher_of_weights(linear(), images(3, shape), draws=1000)["w"]
    np.testing.assert_allclose(found, np.mean(each, 0), rtol=0.12)
    # A product spreads by 2 (H off its diagonal: 3.0 and 1.0 for these images) about a mean of 3: 4 % of 400 of them.
    trace = s.hessian_traces(linear(), images(2, shape), probes=200)["w"]
    assert trace == pytest.approx(np.sum(each[:2]) / 2, rel=0.15)


def small_network() -> tuple[Model, NDArray]:
    nodes = [N("Conv", ["x", "w"], ["c"], name="one"), N("Sigmoid", ["c"], ["a"]), N("Flatten", ["a"], ["f"]),
             N("Gemm", ["f", "v"], ["y"], name="two", transB=1)]  # fmt: skip
    weights = {"w": 0.5 * rand(2, 2, 2, 2), "v": 0.3 * rand(3, 8)}
    task = task_of("classify", 3, scores_are_logits=True)
    return load(build(nodes, weights, (1, 2, 3, 3)), task=task), rand(1, 2, 3, 3)


def test_curvature_by_finite_differences():
    """The second difference of KL(p_w || p_w + h e_i), weight by weight in float64, is the diagonal of the Fisher, and
    its sum the trace; the softmax is written out here."""
    torch = pytest.importorskip("torch")
    from roadworthy.run import torch as bridge
    from roadworthy.run.torch.curvature import squared_gradients, traces

    model, x = small_network()
    module = bridge.module_of(model).double()

    def logs() -> NDArray:
        with torch.no_grad():
            return np.log(softmax(module(torch.from_numpy(x).double())["y"].numpy().reshape(-1)))

    fixed, h = logs(), 1e-4
    second: dict[str, NDArray] = {}
    for name in ("w", "v"):
        flat = module.constant(name).detach().reshape(-1)
        second[name] = np.zeros(len(flat))
        for i in range(len(flat)):
            for step in (h, -h):
                flat[i] += step
                second[name][i] += (np.exp(fixed) * (fixed - logs())).sum() / h**2
                flat[i] -= step
    found = squared_gradients(module, ["w", "v"], [x], model.task, 0, 2000)
    for name, wanted in second.items():
        # Three labels of about p = 1/3: a draw spreads by about its mean, 2 % of 2000 of them.
        np.testing.assert_allclose(found[name].reshape(-1), wanted, rtol=0.1, atol=1e-7)
    estimated = traces(module, ["w", "v"], [x], model.task, 0, 600)
    for name, wanted in second.items():
        assert estimated[name] == pytest.approx(wanted.sum(), rel=0.15)


KINDS = {
    "raw": task_of("raw", 0),
    "yolox": task_of("yolox", 2, strides=(4,), scores_are_logits=True),
    "classify": task_of("classify", 28),
}


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_labels_and_expected_loss_tell_one_curvature(kind: str):
    """The mean of squared slopes of `drawn` is the diagonal of the Hessian of `expected`, whose slope is zero."""
    torch = pytest.importorskip("torch")
    from roadworthy.run.torch.likelihood import drawn, expected

    start = torch.from_numpy(rand(1, 7, 2, 2).astype(np.float64))
    if kind == "classify":
        start = torch.softmax(start.reshape(1, -1), 1)
    task = KINDS[kind]
    slope = torch.autograd.functional.jacobian(lambda y: expected({"y": y}, task), start)
    if kind == "classify":  # probabilities without a softmax behind them: the log alone has a slope
        slope = slope - slope.mean()
    assert slope.abs().max() < 1e-9
    bend = torch.autograd.functional.hessian(lambda y: expected({"y": y}, task), start)
    diagonal = bend.reshape(start.numel(), -1).diagonal()
    generator, squares = torch.Generator().manual_seed(0), []
    for _ in range(400):
        y = start.clone().requires_grad_()
        squares.append(torch.autograd.grad(drawn({"y": y}, task, generator), y)[0].reshape(-1) ** 2)
    draws = torch.stack(squares)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - diagonal).abs() <= 5 * error + 1e-9).all()


def test_fisher_foretells_the_damage():
    """A raw task is Gaussian: KL is half the noise over the mean square, n numbers times NSR / 2. Inputs are white, so
    that the diagonal is all there is but for chance: 36 products of 216 positions, some 10 %."""
    pytest.importorskip("torch")
    nodes = [N("Conv", ["x", "w"], ["y"], name="one")]
    model = load(build(nodes, {"w": rand(6, 3, 3, 3)}), task=task_of("raw", 0))
    foretold, noise = measure("fisher", model, (3, 4)), measure("sqnr", model, (3, 4))
    for key, value in noise.items():
        assert foretold[key] == pytest.approx(6 * 6 * 6 * value / 2, rel=0.25), key


def test_the_street_detector():
    """On a trained detector, the gradients of one image order layers much as the distance on another does."""
    pytest.importorskip("torch")
    from scipy.stats import spearmanr

    model = fold(load(sample.detector()))
    task = model.task
    assert task is not None
    chosen = [task.preprocess(s.image())[0] for s in sample.scenes(2, 3, "x")]
    truth = measure("distance", model, (4,), tensors=lambda: iter(chosen[1:]))
    found = measure("fisher", model, (4,), tensors=lambda: iter(chosen[:1]))
    assert spearmanr([truth[k] for k in truth], [found[k] for k in truth])[0] > 0.5
