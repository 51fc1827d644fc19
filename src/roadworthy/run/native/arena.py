"""Arena: offsets for buffers that are alive at different times, so that they can share memory.

Finding the least memory is bin packing over time; the usual greedy answer is to take the buffers in some order and put
each at the lowest gap that is free for its whole life, the tightest gap that fits. Several orders are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

ALIGN = 64
SLACK = 128
"""Bytes behind every buffer: kernels load whole vectors and may read over the end."""


@dataclass(frozen=True)
class Life:
    """A buffer: its bytes, and the first and last operation that touches it (both included)."""

    size: int
    first: int
    last: int


def padded(size: int) -> int:
    """Bytes that a buffer takes in the arena."""
    return (size + SLACK + ALIGN - 1) // ALIGN * ALIGN


_ORDERS: tuple[Callable[[Life], tuple[int, ...]], ...] = (
    lambda b: (-b.size, b.first),
    lambda b: (b.first, -b.size),
    lambda b: (-(b.last - b.first + 1) * b.size, b.first),
    lambda b: (-(b.last - b.first), -b.size),
)
"""Largest first; oldest first; largest in bytes and time; longest first."""


def assign(lives: Sequence[Life]) -> tuple[list[int], int]:
    """Offsets of the buffers, multiples of 64, and the bytes of the arena; the best of a few orders."""
    best: tuple[list[int], int] | None = None
    for order in _ORDERS:
        found = _greedy(lives, sorted(range(len(lives)), key=lambda k: (*order(lives[k]), k)))
        if best is None or found[1] < best[1]:
            best = found
    assert best is not None
    return best


def _greedy(lives: Sequence[Life], order: Sequence[int]) -> tuple[list[int], int]:
    offsets = [0] * len(lives)
    placed: list[int] = []
    total = 0
    for k in order:
        life, need = lives[k], padded(lives[k].size)
        rivals = sorted((offsets[p], offsets[p] + padded(lives[p].size)) for p in placed
                        if lives[p].first <= life.last and life.first <= lives[p].last)  # fmt: skip
        at, tightest, end = -1, 0, 0
        for low, high in rivals:
            gap = low - end
            if gap >= need and (at < 0 or gap < tightest):
                at, tightest = end, gap
            end = max(end, high)
        offsets[k] = end if at < 0 else at
        total = max(total, offsets[k] + need)
        placed.append(k)
    return offsets, total
