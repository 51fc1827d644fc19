"""What calibration remembers, against NumPy over all values at once."""

from __future__ import annotations

import gc
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from onnx_graphs import N, build, ort, rand
from roadworthy.errors import InputError
from roadworthy.model.model import load
from roadworthy.quantize import calibrate as calibration
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.statistics import BINS, COUNTED, Statistics


def batches(kind: str) -> list[NDArray]:
    rng = np.random.default_rng(1)
    sizes = {"steady": [1, 1, 1], "growing": [1, 3, 40, 2], "shrinking": [50, 1, 0.01], "one sided": [1, 2, 30]}[kind]
    made = [(s * rng.normal(size=(1, 4, 30, 30))).astype(np.float32) for s in sizes]
    return [np.abs(b) for b in made] if kind == "one sided" else made


@pytest.mark.parametrize("kind", ["steady", "growing", "shrinking", "one sided"])
def test_extremes_and_histogram(kind: str):
    parts = batches(kind)
    stats = Statistics(channel_axis=1)
    for part in parts:
        stats.update(part)
    every = np.concatenate([p.reshape(-1) for p in parts])
    assert (stats.lo, stats.hi, stats.count) == (float(every.min()), float(every.max()), every.size)
    assert stats.hist.sum() == every.size  # no count is lost when bins merge
    edges = np.linspace(stats.hist_lo, stats.hist_hi, BINS + 1)
    wanted = np.histogram(every, edges)[0]
    # A value on an edge may fall to either side of it in float32: at most a few per bin, and the sums agree.
    assert np.abs(np.cumsum(stats.hist) - np.cumsum(wanted)).max() <= 0.002 * every.size
    used = stats.hist_hi - stats.hist_lo
    assert used < 4.1 * (stats.hi - stats.lo) or kind == "shrinking"
    assert_allclose(stats.channel_mean, np.mean([p.mean((0, 2, 3)) for p in parts], 0), atol=1e-5)


def test_a_large_tensor_is_sampled_evenly_and_its_extremes_are_exact():
    rng = np.random.default_rng(2)
    parts = [(rng.normal(size=(1, 8, 96, 96)) + np.linspace(0, 20, 96)).astype(np.float32) for _ in range(4)]
    parts[2][0, 3, 17, 55] = 1e3
    stats = Statistics()
    for part in parts:
        stats.update(part)
    every = np.concatenate([p.reshape(-1) for p in parts])
    assert (stats.hi, stats.lo, stats.count) == (1e3, float(every.min()), every.size)
    assert 0.6 * 4 * COUNTED < stats.hist.sum() <= 4 * COUNTED
    # Columns differ in mean by up to 20: a sample that met only some of them would be far off.
    cumulative = np.cumsum(stats.hist) / stats.hist.sum()
    for q in (0.05, 0.25, 0.5, 0.75, 0.95):
        at = stats.centres[np.searchsorted(cumulative, q)]
        assert at == pytest.approx(np.quantile(every, q), abs=0.3 + (stats.hist_hi - stats.hist_lo) / BINS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite(bad: float):
    x = rand(1, 3, 4, 4).copy()
    x[0, 1, 2, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinite"):
        Statistics().update(x)


def test_memory_does_not_grow_with_the_images():
    stats, x = Statistics(channel_axis=1), rand(1, 3, 64, 64)
    stats.update(x)

    def after(count: int) -> int:
        for k in range(count):
            stats.update(x * np.float32(1 + k))
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    first, second = after(20), after(200)
    tracemalloc.stop()
    assert second - first < 10_000


def test_statistics_survive_a_file():
    stats = Statistics(channel_axis=1)
    for part in batches("growing"):
        stats.update(part)
    back = Statistics.from_arrays(stats.to_arrays())
    assert (back.lo, back.hi, back.count) == (stats.lo, stats.hi, stats.count)
    np.testing.assert_array_equal(back.hist, stats.hist)
    np.testing.assert_array_equal(back.centres, stats.centres)
    np.testing.assert_array_equal(back.channel_mean, stats.channel_mean)


def test_what_is_remembered_is_forgotten_with_the_next_tensor():
    stats = Statistics()
    stats.update(np.ones(3, np.float32))
    assert [stats.remember("key", lambda s, _: s.hi) for _ in range(2)] == [1.0, 1.0]
    stats.update(np.full(3, 9, np.float32))
    assert stats.remember("key", lambda s, _: s.hi) == 9.0


NODES = [N("Conv", ["x", "w"], ["a"]), N("Relu", ["a"], ["r"]), N("Conv", ["r", "v"], ["y"])]
WEIGHTS = {"w": rand(4, 3, 3, 3), "v": rand(5, 4, 1, 1)}


@pytest.mark.parametrize("most", [1 << 26, 200, 1])
def test_calibration_is_what_onnx_runtime_computes(most: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration, "MAX_TAPPED", most)  # one run per image, two, or one per value
    images = [rand(1, 3, 8, 8, seed=k) for k in range(5)]
    model = load(build(NODES, WEIGHTS))
    seen: list[int] = []
    found = calibrate(model, ["a", "x", "y"], iter(images), 2, seen.append, {"r": 1, "x": 1})
    assert seen == [1, 2, 3, 4, 5] and set(found) == {"a", "x", "y", "r"}
    assert not found["r"].histogram and found["a"].histogram
    inside = build(NODES, WEIGHTS, outputs=("a", "r", "y"))
    values = [ort(inside, x) | {"x": x} for x in images]
    for name, stats in found.items():
        every = np.stack([v[name] for v in values])
        assert_allclose((stats.lo, stats.hi), (every.min(), every.max()), rtol=1e-5, atol=1e-6)
    assert_allclose(found["r"].channel_mean, np.mean([v["r"].mean((0, 2, 3)) for v in values], 0), atol=1e-5)


def test_the_result_does_not_depend_on_threads():
    images = [rand(1, 3, 8, 8, seed=k) for k in range(4)]
    model = load(build(NODES, WEIGHTS))
    one, three = (calibrate(model, ["a", "r", "y"], images, k) for k in (1, 3))
    for name in one:
        np.testing.assert_array_equal(one[name].hist, three[name].hist)
        assert (one[name].lo, one[name].hi) == (three[name].lo, three[name].hi)


def test_calibration_without_images_or_with_bad_ones():
    model = load(build([N("Exp", ["x"], ["e"], name="blow"), N("Neg", ["e"], ["y"])]))
    with pytest.raises(InputError, match="no images to calibrate with"):
        calibrate(model, ["e"], [])
    good, bad = rand(1, 3, 8, 8), np.full((1, 3, 8, 8), 1e4, np.float32)
    with pytest.raises(InputError, match=r"on calibration image 2 the tensor 'e' .* becomes NaN or infinite"):
        calibrate(model, ["e"], [good, bad])
    with pytest.raises(
        InputError, match=r"image 1 became a tensor of shape \(1, 3, 4, 4\), but .* takes \(1, 3, 8, 8\)"
    ):
        calibrate(model, ["e"], [rand(1, 3, 4, 4)])
    with pytest.raises(KeyError):
        calibrate(model, ["nowhere"], [good])


def test_ranges_double_rather_than_follow():
    stats = Statistics()
    limits = []
    for size in (1, 3, 10, 100):
        stats.update(np.array([-size, size], np.float32))
        limits.append((stats.hist_lo, stats.hist_hi))
    assert all(a[0] >= b[0] and a[1] <= b[1] for a, b in pairwise(limits))


@pytest.mark.parametrize("kind", ["steady", "growing", "shrinking", "one sided"])
def test_every_channel_alone(kind: str):
    parts = [b * np.array([1, 0, 100, 0.01], np.float32).reshape(1, 4, 1, 1) for b in batches(kind)]
    stats = Statistics(channel_axis=1, per_channel=True)
    for part in parts:
        stats.update(part)
    every = np.concatenate([p.reshape(4, -1) for p in parts], 1)
    for c, one in enumerate(stats.each_channel()):
        assert (one.lo, one.hi) == (float(every[c].min()), float(every[c].max()))
        assert 380 < one.hist.sum() == one.count <= 3 * 512
        assert one.hist_lo < one.lo and one.hist_hi > one.hi
        # The standard error of the median of n values with spread s is at most about 1.25 s / sqrt(n); four of them.
        median = one.centres[np.searchsorted(np.cumsum(one.hist) / one.count, 0.5)]
        width = one.centres[1] - one.centres[0]
        assert abs(median - np.median(every[c])) <= width + 4 * 1.25 * every[c].std() / np.sqrt(one.count)


def test_channels_survive_a_file_and_do_not_grow_with_the_images():
    stats = Statistics(channel_axis=1, per_channel=True)
    for part in batches("growing"):
        stats.update(part)
    before = stats.channels
    assert before is not None
    back = Statistics.from_arrays(stats.to_arrays()).channels
    assert back is not None and back.seen == before.seen
    for name in ("lo", "hi", "hist", "hist_lo", "hist_hi"):
        np.testing.assert_array_equal(getattr(back, name), getattr(before, name))
    assert before.hist.nbytes == 4 * 256 * 4
    with pytest.raises(ValueError, match="need the axis"):
        Statistics(per_channel=True)
    with pytest.raises(ValueError, match="not followed"):
        Statistics(channel_axis=1).each_channel()
