"""Bit allocation: equal to brute force on small cases, exact at the limit, and clear where nothing fits."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from roadworthy.errors import InputError
from roadworthy.quantize.allocate import Allocation, Budget, Choice, allocate, least, undominated

BITS = (3, 4, 5, 6, 8)


def random_layers(seed: int, count: int, bits: tuple[int, ...] = BITS) -> dict[str, list[Choice]]:
    """Layers of very different size and sensitivity; damage falls four times a bit, more or less."""
    rng = random.Random(seed)
    made = {}
    for k in range(count):
        size, macs = rng.randint(1, 4000), rng.randint(1, 100000)
        weight = 10 ** rng.uniform(-6, 0)
        made[f"l{k}"] = [
            Choice(b, weight * 4.0 ** (3 - b) * noise, size * b // 8 + 3, rng.uniform(1, 9), macs * b * 8)
            for b in bits
            for noise in [rng.uniform(0.5, 1.5)]
        ]
    return made


def brute(layers: dict[str, list[Choice]], budget: Budget) -> float | None:
    """The least damage of all combinations within the budget."""
    best = None
    for combination in itertools.product(*layers.values()):
        if budget.bytes is not None and sum(c.bytes for c in combination) + budget.fixed_bytes > budget.bytes:
            continue
        if budget.latency_us is not None and sum(c.latency_us for c in combination) > budget.latency_us:
            continue
        if budget.bit_operations is not None and sum(c.bit_operations for c in combination) > budget.bit_operations:
            continue
        damage = sum(c.damage for c in combination)
        best = damage if best is None else min(best, damage)
    return best


def between(layers: dict[str, list[Choice]], cost: str, share: float) -> float:
    low = sum(min(getattr(c, cost) for c in choices) for choices in layers.values())
    high = sum(max(getattr(c, cost) for c in choices) for choices in layers.values())
    return low + share * (high - low)


@pytest.mark.parametrize("seed", range(12))
def test_equals_brute_force_under_one_budget(seed: int):
    layers = random_layers(seed, 5)
    budget = Budget(bytes=int(between(layers, "bytes", 0.1 + 0.07 * seed)) + 50, fixed_bytes=50)
    found = allocate(layers, budget)
    assert found.bytes <= budget.bytes  # type: ignore[operator]
    assert found.damage == pytest.approx(brute(layers, budget), rel=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_equals_brute_force_under_three_budgets(seed: int):
    layers = random_layers(100 + seed, 5)
    budget = Budget(
        int(between(layers, "bytes", 0.5)),
        between(layers, "latency_us", 0.5),
        int(between(layers, "bit_operations", 0.6)),
    )
    best = brute(layers, budget)
    if best is None:
        with pytest.raises(InputError, match="cannot be met"):
            allocate(layers, budget)
        return
    found = allocate(layers, budget)
    assert found.damage == pytest.approx(best, rel=1e-9)
    assert found.latency_us <= budget.latency_us and found.bit_operations <= budget.bit_operations  # type: ignore[operator]


def test_every_budget_gives_its_own_allocation_down_to_the_last_byte():
    """A limit met exactly is met; one byte less is not, and takes another choice."""
    layers = {"a": [Choice(8, 0.0, 1000003), Choice(4, 1.0, 500001)], "b": [Choice(8, 0.0, 7), Choice(4, 2.0, 3)]}
    assert allocate(layers, Budget(bytes=1000010)).settings == {"a": 8, "b": 8}
    assert allocate(layers, Budget(bytes=1000009)).settings == {"a": 4, "b": 8}
    assert allocate(layers, Budget(bytes=500007)).settings == {"a": 4, "b": 4}


def test_large_damages_of_one_layer_do_not_drown_small_ones():
    """The choice between damages of 1e-9 and 3e-9 is made right beside one of 1e6."""
    layers = {
        "huge": [Choice(8, 1e-8, 10), Choice(3, 1e6, 1)],
        "a": [Choice(8, 1e-9, 10), Choice(3, 3e-9, 1)],
        "b": [Choice(8, 1e-9, 10), Choice(3, 2e-9, 1)],
    }
    assert allocate(layers, Budget(bytes=21)).settings == {"huge": 8, "a": 8, "b": 3}


def test_a_budget_that_cannot_be_met_says_what_can():
    layers = random_layers(3, 6)
    low = int(least(layers, "bytes")) + 40
    with pytest.raises(InputError) as caught:
        allocate(layers, Budget(bytes=low - 1, fixed_bytes=40))
    told = re.findall(r"[\d,]+(?= bytes)", str(caught.value))
    assert int(told[-1].replace(",", "")) == low
    assert allocate(layers, Budget(bytes=low, fixed_bytes=40)).bytes == low


@pytest.mark.parametrize(
    ("lowest_us", "asked_us", "told"),
    [
        (1234.2, 500.0, r"budget of 0\.5 ms .* is 1\.24 ms"),
        (45.0, 44.0, r"0\.044 ms .* 0\.045 ms"),
        (120_700.0, 9e4, "90 ms .* 121 ms"),
    ],
)
def test_times_are_told_in_milliseconds_that_suffice(lowest_us: float, asked_us: float, told: str):
    layers = {"a": [Choice(8, 0.0, 1, lowest_us)]}
    with pytest.raises(InputError, match=told) as caught:
        allocate(layers, Budget(latency_us=asked_us))
    enough = float(re.findall(r"([\d.,]+) ms", str(caught.value))[-1])
    assert allocate(layers, Budget(latency_us=enough * 1e3)).settings == {"a": 8}


def test_budgets_that_exclude_each_other_are_told_apart_from_such_that_are_too_small():
    layers = {"a": [Choice("small", 0.0, 1, 9.0), Choice("fast", 0.0, 9, 1.0)]}
    with pytest.raises(InputError, match="together"):
        allocate(layers, Budget(bytes=2, latency_us=2.0))


def test_without_a_limit_the_least_damage_is_taken():
    layers = random_layers(4, 20)
    found = allocate(layers, Budget())
    assert found.damage == pytest.approx(sum(min(c.damage for c in choices) for choices in layers.values()))


def test_dominated_choices_are_left_out():
    best, worse, other = Choice(8, 1.0, 10), Choice(7, 1.5, 10), Choice(4, 2.0, 5)
    assert undominated([worse, other, best]) == (best, other)
    # Latency has no limit here: being faster excuses nothing.
    fast = Choice("fast", 1.5, 10, latency_us=-1.0)
    assert undominated([best, fast], Budget(bytes=20)) == (best,)
    assert undominated([best, fast]) == (best, fast)
    assert undominated([best, best]) == (best,)


def test_shared_weights_take_one_choice_and_count_once():
    layers = {
        "a": [Choice(8, 0.0, 100, 2.0), Choice(4, 1.0, 50, 2.0)],
        "b": [Choice(8, 0.0, 100, 3.0), Choice(4, 5.0, 50, 3.0)],
        "c": [Choice(8, 0.0, 100, 1.0), Choice(4, 5.5, 50, 1.0)],
    }
    # Alone, a would be rounded first; together with b it costs 6, so c is.
    found: Allocation = allocate(layers, Budget(bytes=150), shared=[("a", "b")])
    assert found.settings == {"a": 8, "b": 8, "c": 4}
    assert (found.bytes, found.damage, found.latency_us) == (150, 5.5, 6.0)
    assert least(layers, "bytes", [("a", "b")]) == 100
    free = allocate(layers, Budget(bytes=250))
    assert free.settings == {"a": 4, "b": 8, "c": 8} and free.bytes == 250


def test_more_bytes_never_mean_more_damage_and_the_solver_is_quick():
    layers = random_layers(7, 120)
    low, high = int(least(layers, "bytes")), sum(choices[-1].bytes for choices in layers.values())
    damages = [allocate(layers, Budget(bytes=low + (high - low) * k // 8)).damage for k in range(9)]
    assert all(a >= b * (1 - 1e-9) for a, b in itertools.pairwise(damages))
    again = allocate(layers, Budget(bytes=low + (high - low) // 2))
    assert again.settings == allocate(layers, Budget(bytes=low + (high - low) // 2)).settings


@pytest.mark.parametrize("damage", [float("nan"), float("inf"), -1.0])
def test_damages_that_are_none_are_refused(damage: float):
    with pytest.raises(ValueError, match="'odd'"):
        allocate({"odd": [Choice(8, damage, 1)]}, Budget(bytes=5))
