"""Learned rounding of one layer: against the best of all codes, found by trying them all."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from roadworthy.quantize.learned import solve
from roadworthy.quantize.rounding import METHODS, Grid, damped, descend, descent, loss, nearest, sequential

LEARNED = [m for m in METHODS if m != "nearest"]
MOST = {"descent": 1.5, "sequential": 1.75, "adaround": 1.5}
"""How far above the least error each method may end, all planted rows together. There is no bound in theory that says
as much; the nearest codes end 26 times above it."""


def correlated(k: int, seed: int = 0, groups: int = 1) -> np.ndarray:
    """Moments of inputs that share two causes: errors of their weights add up, or cancel."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(groups, k, 2))
    return mixing @ mixing.swapaxes(1, 2) + 0.02 * np.eye(k)


def rows(k: int, n: int = 6, groups: int = 1, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(groups, n, k))


def floor_or_ceil(target: np.ndarray, moment: np.ndarray, scale: float) -> np.ndarray:
    """(N,) least error of each row when every weight is rounded down or up: all 2^K ways are tried."""
    ups = np.array(list(product((0.0, 1.0), repeat=target.shape[-1])))
    found = []
    for row in target[0]:
        d = (np.floor(row / scale) + ups) * scale - row
        found.append(((d @ moment[0]) * d).sum(1).min())
    return np.array(found)


@pytest.mark.parametrize("method", LEARNED)
def test_correlated_inputs_need_more_than_the_nearest_codes(method: str):
    grid, least, error, plain = Grid(np.array(0.5), -7, 7), 0.0, 0.0, 0.0
    for seed in range(6):
        moment, target = correlated(10, seed), rows(10, seed=seed + 10)
        made = METHODS[method](target, moment, grid)
        assert (made / 0.5 == np.rint(made / 0.5)).all() and np.abs(made).max() <= 7 * 0.5
        least += floor_or_ceil(target, moment, 0.5).sum()
        error += loss(made, target, moment).sum()
        plain += loss(nearest(target, moment, grid), target, moment).sum()
    assert plain > 10 * least  # the fault is there
    assert error < MOST[method] * least


@pytest.mark.parametrize("method", LEARNED)
def test_uncorrelated_inputs_are_rounded_to_the_nearest(method: str):
    grid, target = Grid(np.array(0.25), -7, 7), rows(40)
    moment = np.diag(np.linspace(0.5, 3.0, 40))[None]
    assert np.array_equal(METHODS[method](target, moment, grid), nearest(target, moment, grid))


@pytest.mark.parametrize("method", METHODS)
def test_weights_on_the_grid_stay(method: str):
    grid, moment = Grid(np.array(0.25), -7, 7), correlated(20)
    target = np.clip(np.rint(rows(20) / 0.25), -7, 7) * 0.25
    assert np.array_equal(METHODS[method](target, moment, grid), target)
    made, scale = solve(target, moment, grid, method, np.full(6, 1e-30))
    assert np.array_equal(made, target) and scale is not None and (scale == np.float32(0.25)).all()


@pytest.mark.parametrize("groups", [1, 5])
def test_blocks_and_groups_do_not_change_the_codes(groups: int, monkeypatch: pytest.MonkeyPatch):
    moment, target = damped(correlated(30, groups=groups)), rows(30, 3, groups)
    grid = Grid(np.full((groups, 3, 1), 0.5), -7, 7)
    whole = sequential(target, moment, grid), descent(target, moment, grid)
    monkeypatch.setattr("roadworthy.quantize.rounding.BLOCK", 7)
    for found, wanted in zip((sequential(target, moment, grid), descent(target, moment, grid)), whole):
        assert np.array_equal(found, wanted)
    for k in range(groups):
        alone = sequential(target[k : k + 1], moment[k : k + 1], Grid(np.array(0.5), -7, 7))
        assert np.array_equal(alone[0], whole[0][k])


def test_sequential_rounding_is_the_plain_one_column_at_a_time():
    """The same codes as feeding each weight's error forward by the inverse moments, as OPTQ states it."""
    moment, target = damped(correlated(24)), rows(24, 4)
    order = np.argsort(-np.diagonal(moment[0]), kind="stable")
    inverse = np.linalg.inv(moment[0][np.ix_(order, order)])
    open_rows, made = target[0][:, order].copy(), np.zeros((4, 24))
    for j in range(24):
        made[:, j] = np.clip(np.rint(open_rows[:, j] / 0.5), -7, 7) * 0.5
        error = (open_rows[:, j] - made[:, j]) / inverse[j, j]
        open_rows[:, j:] -= error[:, None] * inverse[j, j:]
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    back = np.empty_like(made)
    back[:, order] = made
    assert np.array_equal(sequential(target, moment, Grid(np.array(0.5), -7, 7))[0], back)


def test_no_weight_can_move_alone_after_a_descent():
    grid, moment, target = Grid(np.array(0.5), -7, 7), damped(correlated(16)), rows(16)
    made = descend(nearest(target, moment, grid), target, moment, grid, 100)
    error = loss(made, target, moment)
    for k in range(16):
        for step in (-0.5, 0.5):
            moved = made.copy()
            moved[:, :, k] += step
            outside = np.abs(moved[:, :, k]) > 3.5
            assert ((loss(moved, target, moment) >= error - 1e-9) | outside).all()


@pytest.mark.parametrize("method", METHODS)
def test_only_levels_that_occur(method: str):
    levels = np.array([-64, -16, -4, 0, 4, 16, 64])
    grid, moment, target = Grid(np.array(0.05), -127, 127, levels), correlated(12), rows(12)
    made = METHODS[method](target, moment, grid)
    assert np.isin(np.rint(made / 0.05), levels).all()
    assert loss(made, target, moment).sum() <= loss(nearest(target, moment, grid), target, moment).sum()


def test_scales_that_are_too_wide_are_fitted():
    moment, target = damped(np.eye(30)[None] + 0.1), rows(30)
    wide = np.full((1, 6, 1), np.abs(target).max() / 3)
    grid = Grid(wide, -7, 7)
    kept, none = solve(target, moment, grid, "descent", None)
    fitted, scale = solve(target, moment, grid, "descent", np.full(6, 1e-30))
    assert none is None and scale is not None and scale.dtype == np.float32
    assert loss(fitted, target, moment).sum() < 0.9 * loss(kept, target, moment).sum()
    codes = fitted / scale.astype(np.float64).reshape(1, 6, 1)
    assert np.abs(codes - np.rint(codes)).max() < 1e-9 and np.abs(codes).max() <= 7 + 1e-9
    _, floor = solve(target, moment, grid, "descent", wide.reshape(-1))
    assert floor is not None and (floor >= wide.reshape(-1).astype(np.float32)).all()


@pytest.mark.parametrize("method", LEARNED)
def test_no_row_is_worse_than_its_nearest_rounding(method: str):
    for seed in range(4):
        moment, target = damped(correlated(12, seed)), rows(12, 5, seed=seed)
        grid = Grid(np.full((1, 5, 1), 0.7), -3, 3)
        made, _ = solve(target, moment, grid, method, None)
        assert (loss(made, target, moment) <= loss(nearest(target, moment, grid), target, moment)).all()
