"""Time per operation of a network on the native engine, with the fraction of what the CPU can do at most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from roadworthy.run.native.plan import U8, Plan
from roadworthy.run.native.runner import NativeRunner, engine, plan_of

REPEATS, ROUNDS = 200, 10


@dataclass(frozen=True)
class LayerTime:
    """One operation.

    name: the layer's.   us: median microseconds in the quickest of ROUNDS rounds.   share: of the frame, 0..1.
    gops: operations (two per multiply-add) per nanosecond, 0 where it has none.   fraction: of the peak measured
    beside it with the same number of threads; None without multiply-adds.
    """

    name: str
    op: str
    us: float
    share: float
    macs: int
    gops: float
    fraction: float | None


def layer_times(model: bytes, threads: int = 1, repeats: int = REPEATS) -> list[LayerTime]:
    """Every operation in order of execution, measured on random input.

    model: bytes of a plan or of an ONNX file.   The peak is that of vpdpbusd (or the path's own way of multiplying
    codes) for layers on codes and of fused multiply-adds for float layers, times threads.
    """
    data = plan_of(model)
    plan, runner = Plan.from_bytes(data), NativeRunner(data, threads)
    random = np.random.default_rng(0)
    inputs = [random.random(shape).astype(np.float32) for _, shape in runner.session.inputs]
    rounds, peaks = [], []
    for _ in range(ROUNDS):
        rounds.append(runner.session.profile(inputs, max(repeats // ROUNDS, 1)))
        peaks.append(engine().peak_gops(runner.session.isa, 10.0))
    int8, float32 = (threads * max(column) for column in zip(*peaks))
    # The quickest round: a disturbance of the machine lasts longer than one, and takes from the peak as well.
    rows = min(rounds, key=lambda r: sum(ns for _, _, ns, _ in r))
    total = sum(ns for _, _, ns, _ in rows) or 1
    found = []
    for op, (name, code, ns, macs) in zip(plan.ops, rows, strict=True):
        on_codes = plan.tensors[op.tensors[0]].dtype == U8
        gops = 2 * macs / max(ns, 1)
        fraction = gops / (int8 if on_codes else float32) if macs else None
        found.append(LayerTime(name, code.lower(), ns / 1e3, ns / total, macs, gops, fraction))
    return found
