"""Choosing calibration images by what they cover of the ranges, against brute force and ONNX Runtime's values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnx_graphs import N, build, rand
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import to_qdq
from roadworthy.model.task import Task
from roadworthy.quantize.coverage import choose, coverage, extremes
from roadworthy.recipe import Calibration, Fold, Quantize, Recipe
from roadworthy.run.ort import OrtRunner

SIDE = 16


def network() -> Model:
    nodes = [
        N("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        N("Relu", ["a"], ["r"]),
        N("Conv", ["r", "v"], ["b"], name="second"),
        N("Relu", ["b"], ["s"]),
        N("Conv", ["s", "u"], ["c"], name="third"),
        N("GlobalAveragePool", ["c"], ["y"]),
    ]
    weights = {"w": rand(8, 3, 3, 3) / 5, "v": rand(6, 8, 3, 3, seed=1) / 8, "u": rand(6, 6, 3, 3, seed=2) / 8}
    task = Task(Preprocess((SIDE, SIDE), "stretch", scale=1 / 255), DecodeSpec("raw"))
    return load(build(nodes, weights, (1, 3, SIDE, SIDE)), task)


def pictures(levels: list[int]) -> Samples:
    """One picture of noise up to each level."""

    def sample(k: int, level: int) -> Sample:
        pixels = np.random.default_rng(k).integers(0, level, (SIDE, SIDE, 3)).astype(np.uint8)
        return Sample(f"{k:03d}", load=lambda: pixels, key=f"{k} {level}")

    return Samples([sample(k, level) for k, level in enumerate(levels)])


def test_extremes_are_those_of_the_values():
    model, samples = network(), pictures([40, 255, 90])
    assert model.task is not None
    tensors = [model.task.preprocess(s.image())[0] for s in samples]
    lo, hi = extremes(model, ["x", "a", "s"], tensors)
    runner = OrtRunner(model.float_bytes())
    for k, tensor in enumerate(tensors):
        found = runner.run({"x": tensor}, ["x", "a", "s"])
        for j, name in enumerate(("x", "a", "s")):
            assert lo[k, j] == pytest.approx(found[name].min(), rel=1e-5, abs=1e-6)
            assert hi[k, j] == pytest.approx(found[name].max(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_extremes_name_the_image_that_breaks_the_network(wrong: float):
    model = network()
    bad = np.zeros((1, 3, SIDE, SIDE), np.float32)
    bad[0, 1, 2, 3] = wrong
    with pytest.raises(InputError, match=r"calibration image 2 the tensor '[xa]' of .* NaN or infinite"):
        extremes(model, ["x", "a"], [np.zeros_like(bad), bad])
    with pytest.raises(InputError, match="no images to calibrate with"):
        extremes(model, ["x"], [])


@pytest.mark.parametrize("seed", range(5))
def test_the_greedy_choice_reaches_its_share_of_the_best(seed: int):
    rng = np.random.default_rng(seed)
    lo, hi = -rng.gamma(0.5, size=(9, 7)), rng.gamma(0.5, size=(9, 7))
    order, covered = choose(lo, hi, 9)
    assert sorted(order) == list(range(9)) and covered[-1] == pytest.approx(1.0)
    assert np.all(np.diff(covered) >= 0)
    for count in (1, 2, 4):
        assert choose(lo, hi, count)[0] == order[:count]  # a larger count adds to a smaller one
        assert coverage(lo, hi, order[:count]) == pytest.approx(covered[count - 1])
        best = max(coverage(lo, hi, some) for some in itertools.combinations(range(9), count))
        assert (1 - 1 / np.e) * best <= covered[count - 1] <= best + 1e-9


def test_a_value_that_is_always_zero_is_no_obstacle():
    lo, hi = np.zeros((3, 2)), np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    assert choose(lo, hi, 2)[0][0] == 2


def _error(model: Model, made: Model, samples: Samples) -> float:
    """Mean squared error of the quantized network's output, relative to its size."""
    assert model.task is not None
    a, b = OrtRunner(model.float_bytes(), 1), OrtRunner(to_qdq(made), 1)
    tensors = [model.task.preprocess(s.image())[0] for s in samples]
    want = np.stack([a.run({"x": t})["y"] for t in tensors])
    have = np.stack([b.run({"x": t})["y"] for t in tensors])
    return float(np.square(have - want).mean() / np.square(want).mean())


def test_a_rare_loud_image_is_needed_and_found():
    """Of 40 images two are loud; of 4 drawn by lot none is, so that extreme ranges cut what is loud."""
    model, samples = network(), pictures([255 if k in (9, 31) else 40 for k in range(40)])
    steps = (Fold(), Quantize("ort", "minmax"))
    lot, best = Recipe(steps, 4), Recipe(steps, 4, by="coverage")
    assert not {"009", "031"} & {s.name for s in lot.choose(samples)}
    assert {"009", "031"} & {s.name for s in best.choose(samples, model)}
    loud = samples.where(lambda s: s.name in ("009", "031"))
    by_lot, by_coverage = (_error(model, r.apply(model, samples), loud) for r in (lot, best))
    assert by_lot > 0.2 and by_coverage < 0.01 * by_lot


def test_images_that_are_all_alike_lose_nothing():
    model, samples = network(), pictures([200] * 24)
    steps = (Fold(), Quantize("ort"))
    by_lot, by_coverage = (
        _error(model, Recipe(steps, 8, by=by).apply(model, samples), samples) for by in ("random", "coverage")
    )
    assert by_coverage < 1.3 * by_lot + 1e-6


def test_the_choice_is_repeatable_nested_and_in_the_order_of_the_set():
    model, samples = network(), pictures([50 + 9 * k % 200 for k in range(20)])
    few, more = (Recipe((), n, by="coverage").choose(samples, model) for n in (3, 7))
    names = [s.name for s in more]
    assert len(few) == 3 and len(more) == 7 and names == sorted(names) and {s.name for s in few} < set(names)
    Calibration.forget()
    assert [s.name for s in Recipe((), 7, by="coverage").choose(samples, network())] == names
    assert Recipe((), 20, by="coverage").choose(samples) is samples  # all: nothing to look at


def test_what_cannot_be_chosen():
    samples = pictures([50] * 4)
    with pytest.raises(InputError, match="needs the model"):
        Recipe((), 2, by="coverage").choose(samples)
    with pytest.raises(InputError, match="chosen by 'best'; known are random, coverage"):
        Recipe((), 2, by="best").choose(samples)


def test_of_very_many_images_only_a_pool_is_looked_at(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("roadworthy.steps.calibration.POOL", 6)
    looks: list[int] = []

    def watched(k: int) -> Sample:
        pixels = np.full((SIDE, SIDE, 3), 10 + k, np.uint8)
        return Sample(f"{k}", load=lambda: looks.append(k) or pixels, key=f"watched {k}")  # type: ignore[func-returns-value]

    Recipe((), 2, by="coverage").choose(Samples([watched(k) for k in range(30)]), network())
    assert len(looks) == 6
