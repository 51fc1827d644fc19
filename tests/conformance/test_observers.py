"""Every row of OBSERVERS, against brute force and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from roadworthy.model.encoding import QuantSpec, encoding_of_range
from roadworthy.quantize.observers import (
    OBSERVERS,
    aciq,
    encode,
    kl,
    laplace_clip,
    minmax,
    mse,
    normal_clip,
    percentile,
)
from roadworthy.quantize.statistics import BINS, COUNTED, Statistics

RNG = np.random.default_rng(0)
N = 16000  # below COUNTED: every value enters the histogram
SHAPES: dict[str, NDArray] = {
    "normal": RNG.normal(size=N),
    "relu": np.maximum(RNG.normal(size=N), 0),
    "relu6": np.clip(RNG.normal(2, 4, size=N), 0, 6),
    "heavy tails": RNG.standard_t(2, size=N),
    "one outlier": np.append(RNG.normal(size=N), 300.0),
    "uniform": RNG.uniform(-1, 3, size=N),
    "exponential": -RNG.exponential(size=N),
    "silu": (lambda v: v / (1 + np.exp(-v)))(RNG.normal(0, 3, size=N)),
    "far from zero": RNG.normal(50, 1, size=N),
    "constant": np.full(N, 2.5),
    "zero": np.zeros(N),
    "tiny": 1e-12 * RNG.normal(size=N),
}
DATA = {k: v.astype(np.float32) for k, v in SHAPES.items()}
SPECS = {
    "uint8": QuantSpec(),
    "int8": QuantSpec(signed=True),
    "symmetric int8": QuantSpec(signed=True, symmetric=True),
    "symmetric uint8": QuantSpec(symmetric=True),
    "uint4": QuantSpec(bits=4),
}


def measured(x: NDArray) -> Statistics:
    stats = Statistics()
    for part in np.array_split(x, 3):
        stats.update(part)
    return stats


def true_error(x: NDArray, lo: float, hi: float, spec: QuantSpec) -> float:
    return float(np.mean((encoding_of_range(lo, hi, spec).fake(x).astype(np.float64) - x) ** 2))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("shape", DATA)
@pytest.mark.parametrize("observer", OBSERVERS)
def test_every_observer_gives_a_range_within_the_extremes(observer: str, shape: str, spec: str):
    x = DATA[shape]
    lo, hi = OBSERVERS[observer](measured(x), SPECS[spec])
    # Zero belongs to every encoding, so a range that lies apart from it may reach there.
    assert min(float(x.min()), 0) <= lo <= hi <= max(float(x.max()), 0)
    encoding = encode(measured(x), QuantSpec(**{**SPECS[spec].__dict__, "observer": observer}))
    assert encoding.fake(np.zeros(1))[0] == 0
    again = encode(measured(x), QuantSpec(**{**SPECS[spec].__dict__, "observer": observer}))
    assert again == encoding


def test_minmax_is_exact():
    for x in DATA.values():
        assert minmax(measured(x), QuantSpec()) == (float(x.min()), float(x.max()))


@pytest.mark.parametrize("shape", ["normal", "heavy tails", "uniform", "one outlier"])
def test_percentile_is_the_quantile_of_numpy(shape: str):
    x, stats = DATA[shape], measured(DATA[shape])
    lo, hi = percentile(stats, QuantSpec())
    width = (stats.hist_hi - stats.hist_lo) / BINS
    for found, q in ((lo, 0.00005), (hi, 0.99995)):
        # The bin of the order statistic on either side of the quantile.
        below, above = np.quantile(x, q, method="lower"), np.quantile(x, q, method="higher")
        assert below - width <= found <= above + width


@pytest.mark.parametrize("spec", ["uint8", "symmetric int8", "uint4"])
@pytest.mark.parametrize(
    "shape", ["normal", "relu", "relu6", "heavy tails", "one outlier", "uniform", "exponential", "silu"]
)
def test_mse_comes_close_to_an_exhaustive_search(shape: str, spec: str):
    x, wish = DATA[shape], SPECS[spec]
    found = true_error(x, *mse(measured(x), wish), wish)
    lo, hi = float(x.min()), float(x.max())
    factors = np.concatenate([np.linspace(0.02, 0.3, 15), np.linspace(0.35, 1, 14)])
    sample = x[::4] if shape != "one outlier" else np.append(x[:-1:4], x[-1])
    pairs = (
        [(f, f) for f in factors]
        if wish.symmetric or lo >= 0 or hi <= 0
        else [(a, b) for a in factors for b in factors]
    )
    best = min(pairs, key=lambda p: true_error(sample, lo * p[0], hi * p[1], wish))
    # The search shrinks ends one after the other on a histogram of 2048 bins; 5 % of the error is 0.2 dB.
    assert found <= 1.05 * true_error(x, lo * best[0], hi * best[1], wish)


def test_mse_beats_minmax_at_few_bits_and_keeps_a_spike_at_the_end():
    x, few = DATA["normal"], SPECS["uint4"]
    assert true_error(x, *mse(measured(x), few), few) < 0.7 * true_error(x, float(x.min()), float(x.max()), few)
    lo, hi = mse(measured(DATA["relu6"]), QuantSpec())
    assert lo == 0 and hi == pytest.approx(6, rel=0.03)


@pytest.mark.parametrize("shape", ["relu6", "relu", "silu", "uniform", "constant"])
def test_kl_is_not_led_astray_by_point_masses(shape: str):
    """Zeros behind a ReLU and sixes behind a ReLU6 once made KL choose a tenth of the range."""
    x = DATA[shape]
    lo, hi = kl(measured(x), QuantSpec())
    error = true_error(x, lo, hi, QuantSpec()) + 1e-12
    assert 10 * np.log10(np.mean(x.astype(np.float64) ** 2) / error) > 30  # dB; 8 bits reach about 40
    if shape == "relu6":
        assert hi == pytest.approx(6, rel=0.03)


def test_kl_cuts_off_a_lone_outlier():
    x = DATA["one outlier"]
    lo, hi = kl(measured(x), QuantSpec())
    assert hi < 200 and lo < 0


def test_aciq_has_the_clips_of_the_paper():
    """Banner et al. give 2.83, 3.89 and 5.03 times b, and 1.71, 2.15 and 2.55 times the standard deviation."""
    assert [laplace_clip(b) for b in (2, 3, 4)] == pytest.approx([2.83, 3.89, 5.03], abs=0.01)
    assert [normal_clip(b) for b in (2, 3, 4)] == pytest.approx([1.71, 2.15, 2.55], abs=0.01)


@pytest.mark.parametrize("shape", ["normal", "laplace", "relu", "exponential"])
def test_aciq_clips_where_few_bits_gain_by_it(shape: str):
    x = DATA[shape] if shape in DATA else RNG.laplace(size=N).astype(np.float32)
    few = SPECS["uint4"]
    found, wide, least = (true_error(x, *f(measured(x), few), few) for f in (aciq, minmax, mse))
    assert found < 0.7 * wide and found < 1.25 * least


@pytest.mark.parametrize("shape", ["normal", "uniform", "relu6", "constant", "far from zero"])
def test_aciq_does_no_harm_at_eight_bits(shape: str):
    x, spec = DATA[shape], QuantSpec()
    assert true_error(x, *aciq(measured(x), spec), spec) <= 1.1 * true_error(x, *minmax(measured(x), spec), spec)


def test_nothing_measured():
    with pytest.raises(ValueError, match="nothing was measured"):
        encode(Statistics(), QuantSpec())


def test_counted_is_what_these_tests_assume():
    assert N + 1 <= COUNTED
