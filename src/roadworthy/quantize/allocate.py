"""Bit allocation: which choice for which layer, as an integer program, solved exactly.

    minimize    sum_{l,c} damage[l,c] x[l,c]                x[l,c] in {0, 1},  sum_c x[l,c] = 1 for every layer l
    subject to  sum_{l,c} cost[l,c] x[l,c] + fixed <= limit     for every cost that has a limit

the multiple-choice knapsack of HAWQ-V3 (Yao et al., "HAWQ-V3: Dyadic Neural Network Quantization", ICML 2021), where
the costs are bytes, latency and bit operations (multiplications x weight bits x activation bits). HiGHS solves it
through `scipy.optimize.milp`. Damages must add up: take noise energies (squares), not amplitudes.

Layers that share a weight are one layer here: one choice, whose bytes count once.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from roadworthy.errors import InputError

COSTS = {"bytes": "bytes", "latency_us": "latency", "bit_operations": "bit operations"}
"""What a choice costs: the field of `Choice`, and its name."""
_SCALED = 1e3
"""The optimum in the units that HiGHS sees: its absolute tolerance of 1e-6 is then one of 1e-9 of the optimum."""


@dataclass(frozen=True)
class Choice:
    """One way to treat one layer.

    setting: what it is, e.g. bits of the weights (or a word such as "float"); compared between layers that share.
    damage: additive, at least 0.   bytes, latency_us, bit_operations: what it costs.
    """

    setting: int | str
    damage: float
    bytes: int = 0
    latency_us: float = 0.0
    bit_operations: int = 0


@dataclass(frozen=True)
class Budget:
    """Limits on whole-model costs; None is no limit.   fixed_*: what the model costs beside all choices."""

    bytes: int | None = None
    latency_us: float | None = None
    bit_operations: int | None = None
    fixed_bytes: int = 0
    fixed_latency_us: float = 0.0

    def limits(self) -> dict[str, float]:
        """Cost -> what is left of its limit for the choices."""
        fixed = {"bytes": self.fixed_bytes, "latency_us": self.fixed_latency_us, "bit_operations": 0}
        return {k: getattr(self, k) - fixed[k] for k in COSTS if getattr(self, k) is not None}


@dataclass(frozen=True)
class Allocation:
    """The best choice of every layer, and what they come to together with the fixed costs."""

    choices: Mapping[str, Choice]
    damage: float
    bytes: int
    latency_us: float
    bit_operations: int

    @property
    def settings(self) -> dict[str, int | str]:
        return {name: choice.setting for name, choice in self.choices.items()}


@dataclass(frozen=True)
class _Row:
    """One decision: the layers that make it together, and its choices."""

    layers: tuple[str, ...]
    choices: tuple[Choice, ...] = field(default_factory=tuple)


def allocate(
    layers: Mapping[str, Sequence[Choice]], budget: Budget, shared: Sequence[Collection[str]] = ()
) -> Allocation:
    """The choices of least total damage within the budget; exact.

    layers: name -> its choices, at least one each.   shared: groups of layers that have one weight between them; they
    take a setting that all of them know.
    Raises InputError where the budget cannot be met, naming the least that can be reached.
    """
    rows = [replace(row, choices=undominated(row.choices, budget)) for row in _rows(layers, shared)]
    limits = budget.limits()
    _reachable(rows, limits, budget)
    picked = _solve(rows, limits)
    if picked is None:
        told = " and ".join(COSTS[k] for k in limits)
        raise InputError(f"the budgets on {told} cannot be met together, though each can alone; raise one of them")
    return _allocation(layers, rows, picked, budget)


def undominated(choices: Sequence[Choice], budget: Budget | None = None) -> tuple[Choice, ...]:
    """The choices that no other choice beats: no worse in damage and in every cost that has a limit (without a budget
    in every cost). Of equals the first stays."""
    costs = list(COSTS) if budget is None else list(budget.limits())
    kept: list[tuple[float, ...]] = []
    found = []

    def figures(choice: Choice) -> tuple[float, ...]:
        return (choice.damage, *(getattr(choice, k) for k in costs))

    for choice in sorted(choices, key=figures):
        mine = figures(choice)
        if not any(all(a <= b for a, b in zip(other, mine)) for other in kept):
            kept.append(mine)
            found.append(choice)
    return tuple(found)


def least(layers: Mapping[str, Sequence[Choice]], cost: str, shared: Sequence[Collection[str]] = ()) -> float:
    """The least that a cost (a key of COSTS) can come to, without what is fixed."""
    return sum(min(getattr(c, cost) for c in row.choices) for row in _rows(layers, shared))


def _rows(layers: Mapping[str, Sequence[Choice]], shared: Sequence[Collection[str]]) -> list[_Row]:
    """The decisions, in the order of the layers."""
    group_of = {name: k for k, group in enumerate(shared) for name in group}
    rows: list[_Row] = []
    seen: set[int] = set()
    for name, choices in layers.items():
        if not choices:
            raise ValueError(f"the layer {name!r} has no choice")
        if any(not np.isfinite(c.damage) or c.damage < 0 for c in choices):
            raise ValueError(f"a damage of the layer {name!r} is negative or not finite")
        group = group_of.get(name)
        if group is None:
            rows.append(_Row((name,), tuple(choices)))
        elif group not in seen:
            seen.add(group)
            together = tuple(n for n in layers if n in set(shared[group]))
            rows.append(_Row(together, _joined([layers[n] for n in together], together)))
    return rows


def _joined(each: Sequence[Sequence[Choice]], names: Sequence[str]) -> tuple[Choice, ...]:
    """One choice per setting that all layers know: damages and times add up, the weight is stored once."""
    tables = [{c.setting: c for c in choices} for choices in each]
    joined = []
    for setting in tables[0]:
        if all(setting in table for table in tables):
            parts = [table[setting] for table in tables]
            joined.append(
                Choice(
                    setting,
                    sum(p.damage for p in parts),
                    max(p.bytes for p in parts),
                    sum(p.latency_us for p in parts),
                    sum(p.bit_operations for p in parts),
                )
            )
    if not joined:
        raise ValueError(f"the layers {', '.join(names)} share a weight, but no setting")
    return tuple(joined)


def _reachable(rows: Sequence[_Row], limits: Mapping[str, float], budget: Budget) -> None:
    for cost, limit in limits.items():
        lowest = sum(min(getattr(c, cost) for c in row.choices) for row in rows)
        if lowest > limit:
            asked = getattr(budget, cost)
            reach = lowest + (asked - limit)
            raise InputError(
                f"the budget of {_told(cost, asked)} cannot be met: the least that can be reached is"
                f" {_told(cost, reach, up=True)}; give at least that"
            )


def _told(cost: str, amount: float, up: bool = False) -> str:
    """An amount with its unit, times in milliseconds.   up: rounded up, so that giving what is told suffices."""
    if cost != "latency_us":
        return f"{amount:,.0f} {COSTS[cost]}"
    ms = amount / 1e3
    if up:
        digit = 10.0 ** (math.floor(math.log10(ms)) - 2) if ms > 0 else 1.0  # three digits that count
        ms = math.ceil(ms / digit - 1e-9) * digit
    return f"{ms:.3g} ms" if ms < 100 else f"{ms:,.0f} ms"


def _solve(rows: Sequence[_Row], limits: Mapping[str, float]) -> list[int] | None:
    """The index of the best choice of every row, or None where the limits cannot be met together.

    Solved twice: the first optimum scales the damages of the second, so that tolerances are relative to it.
    """
    damages = np.array([c.damage for row in rows for c in row.choices])
    scale = damages.max() or 1.0
    picked = _milp(rows, limits, damages / scale)
    if picked is None:
        return None
    total = sum(row.choices[k].damage for row, k in zip(rows, picked))
    if 0 < total < scale * _SCALED:
        # What alone costs more than the whole known solution is in no better one; it only spoils the scaling.
        scaled = np.minimum(damages, 2 * total) * (_SCALED / total)
        again = _milp(rows, limits, scaled)
        if again is not None and sum(row.choices[k].damage for row, k in zip(rows, again)) <= total:
            picked = again
    return picked


def _milp(rows: Sequence[_Row], limits: Mapping[str, float], damages: np.ndarray) -> list[int] | None:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    counts = [len(row.choices) for row in rows]
    starts = np.concatenate([[0], np.cumsum(counts)])
    owner = np.repeat(np.arange(len(rows)), counts)
    columns = np.arange(starts[-1])
    one = csr_array((np.ones(len(columns)), (owner, columns)), shape=(len(rows), len(columns)))
    constraints = [LinearConstraint(one, 1, 1)]
    costs = {k: np.array([getattr(c, k) for row in rows for c in row.choices], np.float64) for k in limits}
    upper = np.ones(len(columns))
    for cost, limit in limits.items():
        # Only what a choice costs beyond the cheapest of its row is asked for, in the largest unit that all are whole
        # numbers of: small numbers keep the solver's tolerances out of the answer.
        base = np.array([min(getattr(c, cost) for c in row.choices) for row in rows], np.float64)
        room, more = limit - base.sum(), costs[cost] - base[owner]
        upper[more > room] = 0
        if (more == np.rint(more)).all():
            unit = float(np.gcd.reduce(np.append(more[more <= room].astype(np.int64), 0)) or 1)
            more, room = more / unit, np.floor(room / unit)
        else:
            more, room = more / (room or 1.0), 1.0
        constraints.append(LinearConstraint(np.where(upper > 0, more, 0)[None, :], -np.inf, room))
    ones = np.ones(len(columns))
    for spare in (0.0, 1e-6, 1e-5):  # HiGHS lets a row pass its limit by 1e-6; then it is asked again with less room
        tight = [constraints[0], *(LinearConstraint(c.A, -np.inf, c.ub - spare) for c in constraints[1:])]
        with _silence():
            result = milp(
                damages, constraints=tight, integrality=ones, bounds=Bounds(0, upper), options={"mip_rel_gap": 0.0}
            )
        if result.x is None:
            return None
        picked = [int(np.argmax(result.x[starts[k] : starts[k + 1]])) for k in range(len(rows))]
        chosen = starts[:-1] + picked
        if all(costs[k][chosen].sum() <= limits[k] for k in limits):
            return picked
    return None


@contextmanager
def _silence() -> Iterator[None]:
    """HiGHS leaves a trace of its own debugging on file descriptor 1, where a command's answer belongs."""
    import ctypes

    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output to spoil
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
        ctypes.CDLL(None).fflush(None)  # what C still holds goes nowhere, too
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _allocation(
    layers: Mapping[str, Sequence[Choice]], rows: Sequence[_Row], picked: Sequence[int], budget: Budget
) -> Allocation:
    chosen: dict[str, Choice] = {}
    for row, k in zip(rows, picked):
        for name in row.layers:
            chosen[name] = next(c for c in layers[name] if c.setting == row.choices[k].setting)
    totals = {k: sum(getattr(row.choices[i], k) for row, i in zip(rows, picked)) for k in ("damage", *COSTS)}
    return Allocation(
        {name: chosen[name] for name in layers},
        totals["damage"],
        totals["bytes"] + budget.fixed_bytes,
        totals["latency_us"] + budget.fixed_latency_us,
        totals["bit_operations"],
    )
