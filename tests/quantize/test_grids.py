"""Weights of few bits: linear, logarithmic and k-means grids, scales that are powers of two."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from onnx_graphs import rand
from roadworthy.model.encoding import Encoding, QuantSpec, encoding_of_range, narrow_codes, power_of_two_above
from roadworthy.quantize.quantize import snap_to_powers_of_two
from roadworthy.quantize.statistics import Statistics
from roadworthy.quantize.weights import GRIDS, clusters, weight_encoding

RNG = np.random.default_rng(5)
SHAPES = {
    "normal": RNG.normal(size=(8, 6, 3, 3)),
    "laplace": RNG.laplace(size=(8, 6, 3, 3)),
    "heavy tails": RNG.standard_t(3, (8, 6, 3, 3)),
    "depthwise": RNG.normal(size=(16, 1, 3, 3)) * np.geomspace(0.01, 3, 16).reshape(-1, 1, 1, 1),
    "pruned": RNG.normal(size=(8, 6, 3, 3)) * (RNG.random((8, 6, 3, 3)) < 0.3),
    "constant": np.full((8, 6, 3, 3), 0.25),
    "zero": np.zeros((8, 6, 3, 3)),
    "one number": np.full((1, 1, 1, 1), -0.7),
}
DATA = {k: v.astype(np.float32) for k, v in SHAPES.items()}


def error(w: np.ndarray, encoding: Encoding) -> float:
    return float(np.square(encoding.dequantize(narrow_codes(w, encoding)).astype(np.float64) - w).sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("shape", DATA)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_keeps_its_promises(grid: str, shape: str, bits: int):
    w = DATA[shape]
    for axis in (0, None):
        for power_of_two in (False, True):
            spec = QuantSpec(bits, True, axis, True, "mse", grid, power_of_two)
            encoding = weight_encoding(w, spec)
            codes = narrow_codes(w, encoding)
            assert codes.dtype == np.int8 and codes.min() >= -127
            assert len(np.unique(codes)) <= min(2**bits, 255)
            back = encoding.dequantize(codes)
            assert (narrow_codes(back, encoding) == codes).all()  # what lies on the grid stays where it is
            assert (back[w == 0] == 0).all()  # what was pruned stays so
            assert encoding == weight_encoding(w, spec)
            if power_of_two:
                assert (np.frexp(encoding.scale)[0] == 0.5).all()
            if encoding.levels is not None:
                assert set(np.unique(codes)) <= set(encoding.levels)
                assert encoding.index_bits <= bits


def test_codes_of_few_bits_are_symmetric():
    for bits in range(2, 9):
        codes = narrow_codes(DATA["normal"], weight_encoding(DATA["normal"], QuantSpec(bits, True, 0, True)))
        assert codes.max() == 2 ** (bits - 1) - 1 and codes.min() == -codes.max()


def test_the_nearest_level_is_taken():
    encoding = Encoding(np.float32(0.5), np.int64(0), 8, True, levels=(-9, 0, 1, 4, 100))
    x = np.float32([-99, -2.26, -2.24, -0.1, 0.24, 0.26, 1.24, 1.26, 25.9, 26.1, 99])
    assert encoding.quantize(x).tolist() == [-9, -9, 0, 0, 0, 1, 1, 4, 4, 100, 100]
    brute = np.asarray(encoding.levels)[np.abs(x[:, None] / 0.5 - np.asarray(encoding.levels)).argmin(1)]
    assert encoding.quantize(x).tolist() == brute.tolist()
    assert encoding != Encoding(np.float32(0.5), np.int64(0), 8, True) and encoding.index_bits == 3


@pytest.mark.parametrize("levels", [(), (1, 1), (2, 1), (0, 128), (-128, 0)])
def test_impossible_levels(levels: tuple):
    with pytest.raises(ValueError, match="level"):
        Encoding(np.float32(1), np.int64(0), 8, True, levels=levels)


def test_logarithmic_levels():
    def levels(bits: int, code_bits: int = 8) -> list[int]:
        made = weight_encoding(DATA["normal"], QuantSpec(bits, True, 0, True, "mse", "log2"), code_bits)
        assert made.levels is not None and made.bits == code_bits
        return [v for v in made.levels if v >= 0]

    assert levels(2) == [0, 64] and levels(3) == [0, 16, 32, 64]
    assert levels(4) == levels(6) == [0, 1, 2, 4, 8, 16, 32, 64]  # 7 magnitudes are all that int8 has
    assert levels(5, 16) == [0, *(2**k for k in range(15))]


def test_clusters_are_the_best_there_are():
    """Against every way to cut sorted numbers into three."""
    for seed in range(5):
        x = np.sort(np.random.default_rng(seed).standard_t(3, 24))
        x /= np.abs(x).max()

        def cost(cuts: tuple[int, ...], x: np.ndarray = x) -> float:
            return sum(float(np.square(p - p.mean()).sum()) for p in np.split(x, cuts))

        best = min(cost(c) for c in combinations(range(1, 24), 2))
        centres = clusters(x, np.ones(24), 3)
        found = float(np.square(x - centres[np.abs(x[:, None] - centres).argmin(1)]).sum())
        assert found < 1.5 * best + 1e-4  # Lloyd ends in a local minimum; chance ends at several times the best


def test_clusters_of_a_normal_density_reach_the_theory():
    """Max (1960): 4, 8 and 16 levels reach 9.30, 14.62 and 20.22 dB on a normal density."""
    w = np.random.default_rng(0).normal(size=(64, 1000)).astype(np.float32)
    for bits, wanted in ((2, 9.30), (3, 14.62), (4, 20.22)):
        encoding = weight_encoding(w, QuantSpec(bits, True, 0, True, "mse", "kmeans"))
        assert 10 * np.log10(np.square(w).sum() / error(w, encoding)) == pytest.approx(wanted, abs=0.15)


@pytest.mark.parametrize("shape", ["normal", "laplace", "heavy tails"])
def test_clips_of_few_bits_lie_far_inside(shape: str):
    """Down to 0.6 of the largest weight is not enough below 4 bits; at 8 bits nothing is lost."""
    w = DATA[shape].reshape(8, -1)
    for bits, gain in ((2, 0.7), (3, 0.8), (4, 0.95)):
        wide, clipped = (weight_encoding(w, QuantSpec(bits, True, 0, True, o)) for o in ("minmax", "mse"))
        assert error(w, clipped) < gain * error(w, wide)
        top = 2 ** (bits - 1) - 1
        for row, scale in zip(w, clipped.scale):
            tried = [np.abs(row).max() * f / top for f in np.linspace(0.1, 1, 300)]
            least = min(float(np.square(np.clip(np.rint(row / s), -top, top) * s - row).sum()) for s in tried)
            assert float(np.square(np.clip(np.rint(row / scale), -top, top) * scale - row).sum()) < 1.15 * least


def test_the_third_power_spares_the_largest_weights():
    """It clips less than least squares do, gains on minmax all the same, and leaves alone what has no tails."""
    w = DATA["heavy tails"].reshape(8, -1)
    of = {o: weight_encoding(w, QuantSpec(4, True, 0, True, o)) for o in ("minmax", "mse", "l3")}
    assert (of["mse"].scale <= of["l3"].scale).all() and (of["l3"].scale < of["minmax"].scale).any()
    cubed = {o: float((np.abs(e.dequantize(narrow_codes(w, e)) - w) ** 3).sum()) for o, e in of.items()}
    assert cubed["l3"] <= 0.95 * cubed["mse"] and cubed["l3"] < 0.9 * cubed["minmax"]
    two = np.float32([[-1, 1, 1, -1]])
    flat = [weight_encoding(two, QuantSpec(4, True, 0, True, o)) for o in ("minmax", "l3")]
    assert flat[0] == flat[1]


def test_which_grid_serves_which_weights():
    """Clusters need no shape; a logarithmic grid is for tails, and wasted on a flat density."""
    tails, flat = RNG.standard_t(2, (4, 400)).astype(np.float32), RNG.uniform(-1, 1, (4, 400)).astype(np.float32)
    of = {(k, g): error(w, weight_encoding(w, QuantSpec(4, True, 0, True, "mse", g)))
          for k, w in (("tails", tails), ("flat", flat)) for g in GRIDS}  # fmt: skip
    assert of["tails", "log2"] < 0.7 * of["tails", "linear"] and of["tails", "kmeans"] < of["tails", "log2"]
    assert of["flat", "log2"] > 2 * of["flat", "linear"] and of["flat", "kmeans"] < 1.02 * of["flat", "linear"]
    many = {g: error(tails, weight_encoding(tails, QuantSpec(8, True, 0, True, "mse", g))) for g in GRIDS}
    assert many["kmeans"] == many["linear"]  # 8 bits name every code


def test_powers_of_two_above():
    scale = np.float32([1.0, 1.0001, 0.75, 2**-20, 3e-8])
    assert power_of_two_above(scale).tolist() == [1.0, 2.0, 1.0, 2**-20, 2**-24]
    e = encoding_of_range(-1.0, 3.0, QuantSpec(power_of_two=True))
    assert e.scale == 2**-5 and e.range[0] <= -1 and e.range[1] >= 3
    w = DATA["normal"]
    free, shifted = (weight_encoding(w, QuantSpec(8, True, 0, True, "mse", "linear", p)) for p in (False, True))
    assert (shifted.scale / free.scale > 0.5).all() and (shifted.scale / free.scale < 2).all()
    assert error(w, shifted) < 4 * error(w, free)


def test_scales_of_activations_become_powers_of_two():
    stats = Statistics()
    stats.update(rand(20000) * 4)
    spike = Statistics()
    spike.update(np.append(rand(16000), 33.0).astype(np.float32))
    encodings = {
        "a": encoding_of_range(stats.lo, stats.hi, QuantSpec()),
        "a moved": encoding_of_range(stats.lo, stats.hi, QuantSpec()),
        "spike": encoding_of_range(spike.lo, spike.hi, QuantSpec()),
        "unknown": encoding_of_range(0, 1.1, QuantSpec()),
        "channels": Encoding(np.float32([0.3, 0.01]), np.int64([0, 128]), axis=1),
    }
    made = snap_to_powers_of_two(encodings, {"a": stats, "spike": spike})
    assert all((np.frexp(e.scale)[0] == 0.5).all() for e in made.values())
    assert made["a"] == made["a moved"]
    assert made["unknown"].scale == 2**-7 and made["channels"].scale.tolist() == [0.5, 2**-6]
    assert made["channels"].zero_point.tolist() == [0, 128]
    assert made["spike"].scale < encodings["spike"].scale  # one value in 16000 may be cut
    exact = snap_to_powers_of_two(encodings, {"spike": spike}, ("spike",))["spike"]
    assert exact.scale > encodings["spike"].scale and exact.range[1] >= 33
