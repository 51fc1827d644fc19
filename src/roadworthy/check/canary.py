"""A canary for compute: is the machine giving its full throughput right now?

Shared and virtual machines are often bimodal: for a second or two, two threads get half the throughput they had,
because two virtual cores share one physical core, or because somebody else computes. A latency taken then says
nothing about the model. So every sample stands between two short bursts of arithmetic, and counts only if both are
about as fast as the machine was at its best:

    level     = FLOP/s of the slowest of n threads, each multiplying matrices of its own that fit its L2 cache
    reference = 90th percentile of all levels of the run (the best, less a lucky outlier or a second of boost clock)
    quiet     = level before >= 0.85 * reference   and   level after >= 0.85 * reference   and   waited <= 5 %

where `waited` is what the kernel says of the sample itself: how long its threads stood ready and got no core, as a
fraction of its duration. The canary sees what lies below the kernel (a shared physical core, a lowered clock), the
kernel sees other processes; a burst that begins on an idle core can slip past those.

Each thread runs a single-threaded product: a BLAS that splits one product over threads would hide a slow core behind
a fast one, and would measure its own synchronisation.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

THRESHOLD = 0.85
WAITED = 0.05
SIZE = 256  # three float32 matrices of this size take 768 KiB
BURST_S = 0.008
# Set for the canary's process: the threads are ours, not the BLAS library's.
ONE_THREAD = {
    name: "1"
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
}  # fmt: skip


def reference(levels: Sequence[float]) -> float:
    """The level of an undisturbed machine: the 90th percentile of what was seen (any unit)."""
    return float(np.percentile(levels, 90)) if len(levels) else 0.0


def gate(
    brackets: Sequence[tuple[float, float]], waited: Sequence[float] = (), threshold: float = THRESHOLD
) -> list[bool]:
    """Which samples were taken on a quiet machine.

    brackets: canary levels (before, after) of each sample, in any one unit.
    waited: fraction of each sample's duration that its threads waited for a core; empty where it is not known.
    threshold: fraction of the reference below which a canary is slow.
    Returns one bool per sample.
    """
    limit = threshold * reference([level for bracket in brackets for level in bracket])
    waits = waited or [0.0] * len(brackets)
    return [min(bracket) >= limit and wait <= WAITED for bracket, wait in zip(brackets, waits, strict=True)]


class Canary:
    """Threads that wait for `level()` and then all compute at once; BLAS must be limited to one thread per call."""

    def __init__(self, threads: int) -> None:
        self._start = threading.Barrier(threads + 1)
        self._end = threading.Barrier(threads + 1)
        self._seconds = [0.0] * threads
        self._repeats = 1
        for index in range(threads):
            threading.Thread(target=self._compute, args=(index,), daemon=True).start()
        for _ in range(3):  # the first call pays for buffers and clocks; the others fit the burst to this CPU
            self.level()
            self._repeats = min(max(round(self._repeats * BURST_S / max(self._seconds)), 1), 10_000)

    def level(self) -> float:
        """FLOP/s of the slowest thread over one burst of about 8 ms."""
        self._start.wait()
        self._end.wait()
        return self._repeats * 2.0 * SIZE**3 / max(self._seconds)

    def _compute(self, index: int) -> None:
        a = np.full((SIZE, SIZE), 0.5, np.float32)
        b, c = a.copy(), a.copy()
        while True:
            self._start.wait()
            start = time.perf_counter()
            for _ in range(self._repeats):
                np.matmul(a, b, out=c)  # lets go of the interpreter lock while it computes
            self._seconds[index] = time.perf_counter() - start
            self._end.wait()
