"""Epilogues in one compiled pass: the plain form's codes, gradients near its own in float64, the same on every path.

Bounds of gradients. u = 2^-24. A derivative of an activation at x is made of at most a dozen roundings and two
exponentials (9.2e-8 each) of terms below 1 + |x|: 2e-6 (1 + |x|) covers it; gelu_erf's sequence is a fit of Phi good to
1e-5. v = y / s_out has a relative error of 8 u at most, so a slope moves by its steepness times 8 u |v|. A sum of n
terms in 16 lanes, at most 256 deep, adds 260 u of the sum of their sizes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

torch = pytest.importorskip("torch")
native = pytest.importorskip("roadworthy._native")

from roadworthy.model.encoding import Encoding  # noqa: E402
from roadworthy.run import arithmetic as ar  # noqa: E402
from roadworthy.run.torch import finish as f  # noqa: E402
from roadworthy.run.torch import fused  # noqa: E402
from roadworthy.run.torch.surrogates import EDGE, GRADIENTS, Gradient, dsq, fourier  # noqa: E402

U = 2.0**-24
SHAPES = {"image": (1, 5, 7, 9), "wide": (1, 2, 70, 71), "rows": (300, 21), "tokens": (2, 5, 19), "one": (1, 137, 1, 1)}
SLOPES = {"ste": GRADIENTS["ste"], "dsq": GRADIENTS["dsq"], "fourier": GRADIENTS["fourier"], "steep": dsq(0.02),
          "long": fourier(5)}  # fmt: skip
EXACT = ("exp", "square", "reciprocal", "none", "relu", "clip", "abs", "neg", "affine", "sqrt", "leaky_relu")
"""Functions whose results and slopes have a small relative error, for arguments that are exact."""
STEEP = {"ste": 0.0, "dsq": 3.0, "fourier": 16.0, "steep": 20.0, "long": 120.0}
"""No slope changes faster than this: 4 top k / sqrt(27) for DSQ, 4 pi sum n w_n for the series."""

ACTIVATIONS = {
    "silu": ar.Function("silu"), "mish": ar.Function("mish"), "gelu_erf": ar.Function("gelu_erf"),
    "gelu_tanh": ar.Function("gelu_tanh"), "sigmoid": ar.Function("sigmoid"), "tanh": ar.Function("tanh"),
    "elu": ar.Function("elu", 0.7), "softplus": ar.Function("softplus"), "hard_swish": ar.Function("hard_swish"),
    "hard_sigmoid": ar.Function("hard_sigmoid", 0.2, 0.5), "leaky_relu": ar.Function("leaky_relu", 0.1),
}  # fmt: skip
REALS = {
    **ACTIVATIONS, "none": ar.NONE, "relu": ar.Function("relu"), "clip": ar.Function("clip", -0.5, 0.75),
    "exp": ar.Function("exp"), "sqrt": ar.Function("sqrt"), "abs": ar.Function("abs"), "neg": ar.Function("neg"),
    "affine": ar.Function("affine", 1.5, -0.3), "reciprocal": ar.Function("reciprocal"), "log": ar.Function("log"),
    "square": ar.Function("square"),
}  # fmt: skip


class Case:
    """A random epilogue of one kind with accumulators, in float32 and as float64."""

    def __init__(self, kind: str, function: ar.Function, shape: tuple[int, ...], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        axis = 1 if len(shape) == 4 else -1
        channels = shape[axis]
        self.kind, self.function = kind, function
        self.along = tuple(-1 if k == axis % len(shape) else 1 for k in range(len(shape))) if axis == 1 else (-1,)
        s_acc = rng.uniform(0.5e-3, 1.5e-3, channels).astype(np.float32)
        reach = 5.0
        y = Encoding(np.float32(2 * reach / 255 * 0.7), np.int64(60))
        p = Encoding(np.float32(2 * reach / 255 * 0.8), np.int64(128))
        zeros = np.zeros(channels, np.int32)
        at = 0 if kind != "table" else int(p.zero_point)
        per = (s_acc.astype(np.float64) / {"table": float(p.scale)}.get(kind, float(y.scale))).astype(np.float32)
        whole = np.full(channels, int(y.zero_point), np.int32)
        if kind == "linear":
            e = ar.Epilogue("linear", zeros, per, whole, lo=60, hi=200, function=function)
        elif kind == "table":
            e = ar.Epilogue("table", zeros, per, zeros + at, table=ar.function_table(function, p, y), function=function)
        elif kind == "fine":
            fine = ar.fine_table(function, y)
            assert fine is not None
            m = (s_acc.astype(np.float64) / fine.step).astype(np.float32)
            e = ar.Epilogue("fine", zeros, m, zeros + fine.zero, table=fine.table, function=function)
        elif kind == "poly":
            poly, a, b = ar.fit_polynomial(function, *ar.range_below(function, y.range[1]))
            inverse = np.full(channels, 1 / float(y.scale), np.float32)
            m = (s_acc.astype(np.float64) * a).astype(np.float32)
            e = ar.Epilogue("poly", zeros, m, whole, inverse, poly=poly, poly_b=b, function=function)
        else:
            e = ar.Epilogue("real", zeros, s_acc, zeros, function=function)
        self.k = f.Finish.of(e, np.zeros((), np.int64) if kind == "real" else y.zero_point, self.along)
        self.s = [s_acc] + [np.full(channels, float(v.scale), np.float32) for v in (y, p)]
        self.acc = np.rint(rng.uniform(-reach, reach, shape) * 1.3e3).astype(np.float32)
        if function.name in ("sqrt", "log", "reciprocal"):
            self.acc = np.abs(self.acc) + 300
        self.grad = rng.normal(0, 1, shape).astype(np.float32)

    def lay(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(self.along)

    def scales(self, dtype: object) -> f.Scales:
        acc, out, before = (torch.from_numpy(self.lay(s)).to(dtype).requires_grad_() for s in self.s)
        real = self.kind == "real"
        return f.Scales(acc, None if real else out, before if self.kind == "table" else None)

    def run(self, gradient: Gradient, isa: str | None, dtype: object = torch.float32) -> list[np.ndarray]:
        """Codes, then the gradients of acc and the scales; by the plain form where isa is None."""
        scales = self.scales(dtype)
        acc = torch.from_numpy(self.acc).to(dtype).requires_grad_()
        if isa is None:
            made = f.plain(self.k, acc, scales, gradient)
        else:
            compiled = fused.compiled(self.k, gradient, isa)
            assert compiled is not None
            made = fused.finish(compiled, self.k.m.shape, acc, scales.acc, scales.out, scales.before)
        made.backward(torch.from_numpy(self.grad).to(made.dtype))
        found = [acc, *(s for s in (scales.acc, scales.out, scales.before) if s is not None)]
        return [made.detach().numpy(), *(t.grad.numpy() for t in found)]


def cases() -> list[tuple[str, str]]:
    kinds = [("linear", "none")]
    for name in ACTIVATIONS:
        kinds += [("table", name), ("fine", name), ("poly", name)]
    return kinds + [("real", name) for name in REALS]


@pytest.mark.parametrize("kind, name", cases())
def test_codes_are_those_of_the_plain_form(kind: str, name: str) -> None:
    for seed, shape in enumerate(SHAPES.values()):
        case = Case(kind, REALS[name], shape, seed)
        plain = case.run(GRADIENTS["ste"], None)[0]
        assert len(np.unique(plain)) > 10
        for isa in native.isas():
            assert np.array_equal(case.run(GRADIENTS["ste"], isa)[0], plain), isa


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("kind, name", [("linear", "none"), ("table", "silu"), ("fine", "mish"), ("real", "gelu_erf")])
def test_paths_give_the_same_bits(kind: str, name: str, slope: str) -> None:
    for seed, shape in enumerate(SHAPES.values()):
        case = Case(kind, REALS[name], shape, seed)
        first, *others = (case.run(SLOPES[slope], isa) for isa in native.isas())
        assert all(np.array_equal(a, b) for other in others for a, b in zip(first, other))


def check_gradients(case: Case, name: str) -> None:
    gradient, function = SLOPES[name], case.function
    s_acc, s_out, s_p = (case.lay(s.astype(np.float64)) for s in case.s)
    acc = case.acc.astype(np.float64)
    table, rounds = case.kind == "table", case.kind != "real"
    u = acc * s_acc / s_p
    x = np.rint(u) * s_p if table else acc * s_acc
    y = x if case.kind == "linear" else ar.exact(function, x)
    v = y / s_out
    if rounds:  # no gradient where rounding decides what is inside
        ends = (float(b - case.k.out_zero) for b in (case.k.lo - EDGE, case.k.hi + EDGE))
        near = np.minimum(*(np.abs(v - end) for end in ends))
        if table:
            z = float(case.k.zero.reshape(-1)[0])
            near = np.minimum(near, np.minimum(np.abs(u + z + EDGE), np.abs(u + z - 255 - EDGE)))
        assert (near > 1e-4).mean() > 0.98
        case.grad[near <= 1e-4] = 0
    exact, found = case.run(gradient, None, torch.float64), case.run(gradient, "")

    grad = np.abs(case.grad.astype(np.float64))
    top = 1.0 if gradient.slope is None else float(gradient.slope(torch.linspace(0, 1, 1001)).max())
    steep = np.abs(torch_slope(function, x)) if case.kind != "linear" else np.ones_like(x)
    fit = 1e-5 if function.name == "gelu_erf" else 2e-6
    error = 16 * U * steep if function.name in EXACT else fit * (1 + np.abs(x))  # of f'
    error_y = 16 * U * np.abs(y) if function.name in EXACT else fit * (1 + np.abs(x))  # of f
    blur = (STEEP[name] * 8 * U * np.abs(v) + 2e-6 * top) if rounds else np.zeros_like(x)  # of the slope at v
    if rounds:
        blur += STEEP[name] * error_y / s_out
    one = 1 / s_out if rounds else np.ones_like(s_out)
    inner, blur_u = (top, STEEP[name] * 8 * U * np.abs(u) + 2e-6 * top) if table else (1.0, np.zeros_like(x))
    h = grad * one * (error * top + steep * blur + 8 * U * steep * top)  # of d f' / s_out
    bound = s_acc * (h * inner + grad * one * steep * top * (blur_u + 8 * U * inner))
    assert (np.abs(found[1] - exact[1]) <= bound).all()

    # Gradients of scales, from their meaning: v depends on acc s_acc alone, or on acc s_acc / s_out.
    def total(values: np.ndarray) -> np.ndarray:
        channel = 1 if acc.ndim == 4 else acc.ndim - 1
        return values.sum(tuple(k for k in range(acc.ndim) if k != channel))

    def near_total(made: np.ndarray, right: np.ndarray, terms: np.ndarray) -> bool:
        return bool((np.abs(made.reshape(-1) - right.reshape(-1)) <= total(terms)).all())

    moved = found[1].astype(np.float64) * acc
    assert near_total(found[2], total(moved / s_acc), 300 * U * np.abs(moved) / s_acc)
    if case.kind == "linear":
        assert near_total(found[3], -total(moved / s_out), 300 * U * np.abs(moved) / s_out)
    elif rounds:
        terms = grad * one**2 * (blur * np.abs(y) + top * error_y + 300 * U * top * np.abs(y))
        assert near_total(found[3], exact[3], terms)
    if table:
        each = (h + 300 * U * grad * one * steep * top) * np.abs(x) / s_p
        assert near_total(found[4], exact[4], each + (bound + 300 * U * np.abs(found[1])) * np.abs(acc) / s_p)


def torch_slope(function: ar.Function, x: np.ndarray) -> np.ndarray:
    t = torch.from_numpy(x).requires_grad_()
    f.torch_function(function, t).sum().backward()
    assert t.grad is not None
    return t.grad.numpy()


def sloped() -> list[tuple[str, str, str]]:
    """Every epilogue with straight-through gradients; every slope with one activation."""
    rounded = [("linear", "none"), ("table", "silu"), ("fine", "mish"), ("poly", "silu")]
    return [(k, n, "ste") for k, n in cases()] + [(k, n, s) for k, n in rounded for s in SLOPES if s != "ste"]


@pytest.mark.parametrize("kind, name, slope", sloped())
def test_gradients_are_those_of_the_plain_form(kind: str, name: str, slope: str) -> None:
    for seed, shape in enumerate(SHAPES.values()):
        check_gradients(Case(kind, REALS[name], shape, seed), slope)


def test_two_threads_at_once() -> None:
    """One epilogue, called by several threads: nothing is kept between calls."""
    case = Case("fine", REALS["silu"], (1, 16, 40, 41))
    compiled = fused.compiled(case.k, GRADIENTS["dsq"])

    def grads(scale: float) -> list[np.ndarray]:
        acc, s = torch.from_numpy(case.acc).mul(scale).requires_grad_(), case.scales(torch.float32)
        made = fused.finish(compiled, case.k.m.shape, acc, s.acc, s.out, s.before)
        made.backward(torch.from_numpy(case.grad))
        return [made.detach().numpy(), acc.grad.numpy(), s.acc.grad.numpy(), s.out.grad.numpy()]

    scales = [1.0, 0.5, 0.25, 1.0] * 6
    alone = {scale: grads(scale) for scale in set(scales)}
    with ThreadPoolExecutor(4) as pool:
        for scale, found in zip(scales, pool.map(grads, scales)):
            assert all(np.array_equal(a, b) for a, b in zip(alone[scale], found))


def test_other_memory_layouts() -> None:
    case = Case("table", REALS["silu"], (1, 5, 7, 9))
    expected = case.run(GRADIENTS["ste"], "")
    acc, s = (
        torch.from_numpy(case.acc).to(memory_format=torch.channels_last).requires_grad_(),
        case.scales(torch.float32),
    )
    assert not acc.is_contiguous()
    made = f.finish(f.replace(case.k, compiled=fused.compiled(case.k, GRADIENTS["ste"])), acc, s, GRADIENTS["ste"])
    made.backward(torch.from_numpy(case.grad).to(memory_format=torch.channels_last))
    found = [made.detach().numpy(), acc.grad.numpy(), s.acc.grad.numpy(), s.out.grad.numpy(), s.before.grad.numpy()]
    assert all(np.array_equal(a, b) for a, b in zip(expected, found))


@pytest.mark.parametrize(
    "kind, name", [("linear", "none"), ("table", "silu"), ("fine", "silu"), ("poly", "silu"), ("real", "silu")]
)
def test_nan_is_passed_on(kind: str, name: str) -> None:
    """A network that diverges has to be noticed: no table swallows what is not a number."""
    case = Case(kind, REALS[name], (1, 5, 7, 9))
    case.acc[0, 2, 3, 4] = np.nan
    for isa in (None, *native.isas()):
        codes = case.run(GRADIENTS["ste"], isa)[0]
        assert np.isnan(codes[0, 2, 3, 4])
        assert np.isnan(codes).sum() == 1


def test_what_does_not_fit_is_refused() -> None:
    case = Case("fine", REALS["silu"], (1, 5, 7, 9))
    compiled = fused.compiled(case.k, GRADIENTS["ste"])
    acc = case.acc.reshape(-1)
    with pytest.raises(ValueError, match="as many elements"):
        compiled.forward(acc, acc[:-1].copy(), 1, 63)
    with pytest.raises(ValueError, match="entry per channel"):
        compiled.backward(acc, acc, acc.copy(), 1, 63, case.s[0], None, None, np.zeros((3, 5), np.float32))
    with pytest.raises(ValueError, match="no epilogue `cubic`"):
        native.Epilogue("cubic", 0, 0, 0, acc, acc, acc, None, None, None, 0, None, "one", 0, 0)


def test_gradients_without_a_compiled_form_are_left_to_pytorch() -> None:
    assert fused.compiled(Case("real", REALS["silu"], (2, 3)).k, fourier(3, fejer=False)) is None
