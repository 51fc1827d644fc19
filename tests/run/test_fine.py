"""The table of ten bits in front of an activation: that it covers what changes, and how far it is from the function."""

from __future__ import annotations

import numpy as np
import pytest

from roadworthy.errors import UnsupportedError
from roadworthy.model.encoding import Encoding
from roadworthy.run import arithmetic as ar

F = np.float32
NAMES = ["leaky_relu", "hard_sigmoid", "hard_swish", "silu", "sigmoid", "tanh", "gelu_tanh", "gelu_erf", "mish",
         "elu", "softplus"]  # fmt: skip
PARAMETERS = {"leaky_relu": (0.1, 0.0), "hard_sigmoid": (0.2, 0.5), "elu": (1.0, 0.0)}
ENCODINGS = [(0.03, 10), (0.01, 28), (0.004, 0), (0.004, 255), (0.008, 128), (0.5, 1), (1.7, 200)]


def function(name: str) -> ar.Function:
    return ar.Function(name, *PARAMETERS.get(name, ()))


def encoding(scale: float, zero: int) -> Encoding:
    return Encoding(np.asarray(scale, F), np.asarray(zero))


def codes(f: ar.Function, y: Encoding, v: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(ar.exact(f, v) / float(y.scale)) + int(y.zero_point), 0, 255)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("scale", "zero"), ENCODINGS)
def test_codes_are_constant_outside_of_the_range_and_change_at_its_ends(name: str, scale: float, zero: int):
    f, y = function(name), encoding(scale, zero)
    bounds = ar.changing_range(f, y)
    far = np.geomspace(1e-5, 1e4, 400)
    if bounds is None:
        assert len(set(codes(f, y, np.concatenate([-far, far])))) == 1
        return
    lo, hi = bounds
    assert lo < hi
    assert set(codes(f, y, lo - far)) == {codes(f, y, np.array([-1e9]))[0]}
    assert set(codes(f, y, hi + far)) == {codes(f, y, np.array([1e9]))[0]}
    width = 1e-9  # the ends are exact to the last bits; a result with two codes has both at one place
    if hi - lo < width:
        return
    assert codes(f, y, np.array([lo + width]))[0] != codes(f, y, np.array([lo - width]))[0]
    assert codes(f, y, np.array([hi - width]))[0] != codes(f, y, np.array([hi + width]))[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("scale", "zero"), ENCODINGS)
def test_the_table_is_as_close_as_it_says(name: str, scale: float, zero: int):
    """On all values, far ones too: half a code of rounding y, and sqrt(FINE) of half a code of rounding p, by its slope
    (the slope between two entries, which may exceed that of their middle by the curvature: 1 %)."""
    f, y = function(name), encoding(scale, zero)
    fine = ar.fine_table(f, y)
    if fine is None:
        bounds = ar.changing_range(f, y)
        if bounds is not None:  # then ten bits are too coarse indeed
            v = np.linspace(min(bounds[0], 0), max(bounds[1], 0), 1023)
            assert (np.abs(np.diff(ar.exact(f, v))).max() / scale) ** 2 > ar.FINE * 0.99
        return
    assert fine.table.shape == (1024,) and fine.table.dtype == np.uint8 and 0 <= fine.zero <= 1023
    v = np.concatenate([np.linspace(-30, 30, 60001), [-1e6, 1e6]])
    made = fine.table[np.clip(np.rint(v / fine.step) + fine.zero, 0, 1023).astype(int)]
    true = np.clip(ar.exact(f, v) / float(y.scale) + int(y.zero_point), 0, 255)
    assert np.abs(made - true).max() <= 0.5 + 1.01 * ar.FINE**0.5 / 2
    assert fine.table[0] == codes(f, y, np.array([-1e9]))[0] and fine.table[-1] == codes(f, y, np.array([1e9]))[0]


def test_what_no_layer_has_behind_it_is_refused():
    with pytest.raises(UnsupportedError, match="exp"):
        ar.fine_table(ar.Function("exp"), encoding(0.1, 0))


def test_silu_with_the_usual_ranges_takes_it_and_wide_tails_do_not():
    assert ar.fine_table(function("silu"), encoding(0.03, 10)) is not None
    assert ar.fine_table(function("sigmoid"), encoding(1 / 255, 0)) is not None
    assert ar.fine_table(function("leaky_relu"), encoding(0.1, 128)) is None  # 1280 codes of p on the left
