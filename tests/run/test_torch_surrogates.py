"""Rounding with a gradient: forward against Encoding.quantize with ==, slopes against the staircases they belong to."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from roadworthy.errors import InputError  # noqa: E402
from roadworthy.model.encoding import Encoding  # noqa: E402
from roadworthy.run.torch.surrogates import (  # noqa: E402
    GRADIENTS,
    Gradient,
    dsq,
    fourier,
    noise_mask,
    round_to,
    round_to_levels,
    scale_gradient,
)

LEVELS = {
    "powers of two": (-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64),
    "codebook": (-90, -41, -40, 3, 17, 100),
    "four bits": tuple(range(-7, 8)),
    "two": (0, 5),
}


def values(encoding: Encoding) -> np.ndarray:
    """Random values, values between two codes, and values far outside."""
    rng = np.random.default_rng(3)
    scale = np.max(encoding.scale)
    ties = (np.arange(-300, 300) + 0.5) * float(scale)
    x = np.concatenate([rng.normal(0, 60 * scale, 4001), ties, np.array([0.0, -0.0, 1e30, -1e30, 3e9, -3e9])])
    return np.resize(x.astype(np.float32), (len(x) // 3, 3))


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("bits, signed", [(8, False), (8, True), (4, True), (2, False), (16, False), (16, True)])
@pytest.mark.parametrize("axis", [None, 1])
def test_forward_is_quantize(name: str, bits: int, signed: bool, axis: int | None) -> None:
    scale, zero = np.float32(0.37), np.int64(0 if signed else 1)
    if axis is not None:
        scale, zero = np.array([0.37, 0.011, 2.0], np.float32), np.array([0, 1, -1 if signed else 2])
    encoding = Encoding(scale, zero, bits, signed, axis)
    x = values(encoding)
    v = torch.from_numpy(x) / torch.tensor(encoding.scale)
    found = round_to(v, torch.tensor(encoding.zero_point).float(), encoding.qmin, encoding.qmax, GRADIENTS[name])
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), encoding.quantize(x).astype(np.float32))


@pytest.mark.parametrize("levels", LEVELS.values(), ids=list(LEVELS))
def test_forward_is_quantize_with_levels(levels: tuple[int, ...]) -> None:
    encoding = Encoding(np.float32(0.37), np.int64(0), 8, True, None, False, levels)
    x = values(encoding)
    v = torch.from_numpy(x) / torch.tensor(encoding.scale) + 0.0
    found = round_to_levels(v, levels, GRADIENTS["ste"])
    assert np.array_equal(found.numpy(), encoding.quantize(x).astype(np.float32))


def staircase(gradient: str, v: np.ndarray) -> np.ndarray:
    """The soft function of which the slope is the derivative, written from the papers' formulas in float64."""
    if gradient.startswith("dsq"):
        alpha = float(gradient[3:])
        k, s = np.log(2 / alpha - 1), 1 / (1 - alpha)
        return np.floor(v) + (s * np.tanh(k * (v - np.floor(v) - 0.5)) + 1) / 2
    terms = int(gradient[8:])
    share = (lambda n: 1 - n / (terms + 1)) if gradient.startswith("fourier+") else lambda n: 1.0
    return v + sum(share(n) * (-1) ** n * np.sin(2 * np.pi * n * v) / (np.pi * n) for n in range(1, terms + 1))


SOFT: dict[str, Gradient] = {
    "dsq0.2": GRADIENTS["dsq"],
    "dsq0.02": dsq(0.02),
    "dsq0.9": dsq(0.9),
    "fourier+2": GRADIENTS["fourier"],
    "fourier+1": fourier(1),
    "fourier+7": fourier(7),
    "fourier-3": fourier(3, fejer=False),
}


@pytest.mark.parametrize("name", SOFT)
def test_slopes_are_derivatives_of_their_staircases(name: str) -> None:
    v, h = np.linspace(-2.4937, 2.4937, 998), 1e-5  # no point within h of an integer, where DSQ's has a kink
    expected = (staircase(name, v + h) - staircase(name, v - h)) / (2 * h)
    slope = SOFT[name].slope
    assert slope is not None
    # Central differences err by h^2 / 6 times the third derivative, s k^3 < 100 for DSQ, 8 pi^2 sum w_n n^2 < 3400 for
    # the series; the staircases are sums of up to eight terms below 4, each rounded to 4.4e-16, over 2 h.
    bound = h * h / 6 * 3400 + 2 * 10 * 4.4e-16 / (2 * h)
    assert np.abs(slope(torch.from_numpy(v)).numpy() - expected).max() < bound


@pytest.mark.parametrize("name", SOFT)
def test_slopes_integrate_to_one(name: str) -> None:
    slope = SOFT[name].slope
    assert slope is not None
    v = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000 - 3
    found = slope(v)
    # The middle rule errs by h^2 / 24 times the jump of the derivative over the period, below 1e-7 here.
    assert abs(float(found.mean()) - 1) < 1e-7
    assert bool((found >= 0).all()) == (name != "fourier-3")


def test_staircases_become_round() -> None:
    v = np.linspace(-1.45, 1.45, 88)  # nothing near a border
    v = v[np.abs(v - np.rint(v)) < 0.4]
    assert np.abs(staircase("dsq0.0001", v) - np.rint(v)).max() < 0.2
    assert np.abs(staircase("fourier+400", v) - np.rint(v)).max() < 0.01


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name: str) -> None:
    gradient = GRADIENTS[name]
    v = torch.linspace(-12.3, 12.4, 501, requires_grad=True)
    zero = torch.tensor(3.0, requires_grad=True)
    weights = torch.linspace(1, 2, 501)
    (round_to(v, zero, 0, 7, gradient) * weights).sum().backward()
    at = v.detach().numpy() + 3
    inside = (at >= 0) & (at <= 7)
    slope = np.ones(501, np.float32) if gradient.slope is None else gradient.slope(v.detach()).numpy()
    assert np.array_equal(v.grad.numpy(), weights.numpy() * inside * slope)
    assert zero.grad.shape == ()
    assert float(zero.grad) == float((weights * torch.from_numpy(inside)).sum())


def test_gradients_of_zero_points_by_channel() -> None:
    v = torch.tensor([[0.2, 9.0], [-9.0, 1.7]])
    zero = torch.tensor([[0.0], [1.0]], requires_grad=True)
    round_to(v, zero, 0, 7, GRADIENTS["ste"]).backward(torch.tensor([[2.0, 3.0], [5.0, 7.0]]))
    assert zero.grad.tolist() == [[2.0], [7.0]]


def test_the_last_bit_of_a_quotient_freezes_no_weight() -> None:
    s = torch.tensor(np.random.default_rng(0).uniform(1e-3, 1, 1000).astype(np.float32))
    v = ((s * 7) / s).requires_grad_()
    far = torch.tensor([7.01], requires_grad=True)
    round_to(v, 0.0, -7, 7, GRADIENTS["ste"]).sum().backward()
    round_to(far, 0.0, -7, 7, GRADIENTS["ste"]).sum().backward()
    assert (v > 7).any()
    assert v.grad.tolist() == [1.0] * 1000 and far.grad.tolist() == [0.0]
    w = v.detach().requires_grad_()
    round_to_levels(w, range(-7, 8), GRADIENTS["ste"]).sum().backward()
    assert w.grad.tolist() == [1.0] * 1000


def test_bounds_by_channel() -> None:
    v = torch.tensor([[0.2, 9.0], [-9.0, 1.7]], requires_grad=True)
    made = round_to(v, 0.0, torch.tensor([[-3.0], [-5.0]]), 4.0, GRADIENTS["ste"])
    made.sum().backward()
    assert made.tolist() == [[0.0, 4.0], [-5.0, 2.0]]
    assert v.grad.tolist() == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("name", GRADIENTS)
def test_consecutive_levels_are_plain_rounding(name: str) -> None:
    v = torch.linspace(-9.3, 9.4, 1001)
    a, b = v.clone().requires_grad_(), v.clone().requires_grad_()
    plain = round_to(a, 0.0, -7, 7, GRADIENTS[name])
    leveled = round_to_levels(b, range(-7, 8), GRADIENTS[name])
    assert torch.equal(plain, leveled)
    plain.sum().backward()
    leveled.sum().backward()
    # What is left of v above the lower level is what is left above floor(v), and both are exact.
    assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("name", ["dsq", "fourier"])
def test_levels_rise_as_far_as_the_steps(name: str) -> None:
    """From level to level, the slope's integral is the distance between them."""
    v = torch.arange(-40, 3, 1e-3, dtype=torch.float64).add(5e-4).requires_grad_()
    round_to_levels(v, LEVELS["codebook"], GRADIENTS[name]).sum().backward()
    assert abs(float(v.grad.sum()) * 1e-3 - 43) < 1e-3


def test_one_level_has_no_gradient() -> None:
    v = torch.tensor([1.0, 2.0], requires_grad=True)
    made = round_to_levels(v, [5], GRADIENTS["ste"])
    made.sum().backward()
    assert made.tolist() == [5.0, 5.0]
    assert v.grad.tolist() == [0.0, 0.0]


def test_lsq_gradient_of_a_scale() -> None:
    """Esser et al. 2020, equation 3: -v + round(v) inside, -Q_N or Q_P outside, times the gradient scale."""
    x = torch.tensor([-3.0, -0.31, 0.12, 0.26, 0.9, 4.0], dtype=torch.float64)
    s = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    step = scale_gradient(s, x.numel(), 7)
    assert step.item() == s.item()
    (round_to(x / step, 0.0, -8, 7, GRADIENTS["lsq"]) * step).sum().backward()
    v = x.numpy() / 0.25
    expected = np.where(v <= -8, -8, np.where(v >= 7, 7, np.rint(v) - v)).sum() / np.sqrt(6 * 7)
    assert abs(float(s.grad) - expected) < 1e-13  # six terms below 16, rounded in float64


def test_noise_masks() -> None:
    mask = noise_mask((64, 32, 3, 3), 0.3, 5, 17, "a.weight")
    assert mask.dtype == torch.bool and mask.shape == (64, 32, 3, 3)
    assert torch.equal(mask, noise_mask((64, 32, 3, 3), 0.3, 5, 17, "a.weight"))
    others = [(6, 17, "a.weight"), (5, 18, "a.weight"), (5, 17, "b.weight")]
    assert all(not torch.equal(mask, noise_mask((64, 32, 3, 3), 0.3, *o)) for o in others)
    n = mask.numel()
    assert abs(float(mask.double().mean()) - 0.3) < 5 * (0.3 * 0.7 / n) ** 0.5  # five standard errors
    assert noise_mask((4,), 1.0, 0, 0, "w").all() and not noise_mask((4,), 0.0, 0, 0, "w").any()


def test_noise_masks_leave_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    noise_mask((8,), 0.5, 1, 2, "w")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: dsq(0.0), "alpha is 0.0"),
        (lambda: dsq(1.0), "alpha is 1.0"),
        (lambda: fourier(0), "not 0"),
        (lambda: noise_mask((2,), 1.5, 0, 0, "w"), "is 1.5"),
    ],
)
def test_settings_out_of_range_are_named(make: object, word: str) -> None:
    with pytest.raises(InputError, match=word):
        make()  # type: ignore[operator]
