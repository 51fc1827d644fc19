"""What single layers cost on a target: codes in the file, microseconds, and what their activations lose in int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roadworthy.check.bench import Entry, bench
from roadworthy.check.machine import usable_cores
from roadworthy.jobs.trial import Trial, Ui
from roadworthy.model.model import Model
from roadworthy.model.qdq import to_qdq
from roadworthy.model.units import Unit
from roadworthy.quantize.place import multiplications
from roadworthy.quantize.sensitivity import Distance
from roadworthy.run.native.layers_table import layer_times
from roadworthy.run.native.runner import is_plan
from roadworthy.run.targets import TARGETS


@dataclass(frozen=True)
class Times:
    """Microseconds of every layer in int8 and in float, and of all that is no layer."""

    int8: Mapping[str, float]
    floats: Mapping[str, float]
    fixed: float


def stored_counts(deployed: bytes) -> dict[str, int] | None:
    """Layer -> codes that its weights have in a plan, padding included; None for a file that does not pack codes."""
    from roadworthy.run.native.plan import Op, Plan

    if not is_plan(deployed):
        return None
    counts: dict[str, int] = {}
    for op in Plan.from_bytes(deployed).ops:
        if op.code in (Op.CONV, Op.DEPTHWISE):
            counts[op.name] = counts.get(op.name, 0) + len(op.blobs[0])
    return counts


def layer_latencies(model: Model, whole: Trial, target: str, layers: Mapping[str, Unit], threads: int) -> Times:
    """The time of every layer on a target: measured where the runtime tells (native), else the measured total, shared
    out by multiplications."""
    if is_plan(whole.deployed):
        tables = []
        for data in (whole.deployed, TARGETS[target].deploy(model.float_bytes())):
            table: dict[str, float] = {}
            for row in layer_times(data, threads or usable_cores()):
                table[row.name] = table.get(row.name, 0.0) + row.us
            tables.append(table)
        quick, slow = tables
        # What becomes of a layer that another merges with, or that stands under another name, is part of the rest.
        known = {n for n in layers if n in quick and n in slow}
        fixed = sum(us for n, us in quick.items() if n not in known)
        return Times({n: quick.get(n, 0.0) if n in known else 0.0 for n in layers},
                     {n: slow.get(n, 0.0) if n in known else 0.0 for n in layers}, fixed)  # fmt: skip
    entries = [Entry("float", model.float_bytes(), target), Entry("int8", whole.deployed, target)]
    result = bench(entries, threads=threads or None, quick=True)
    macs = {n: float(multiplications(u)) for n, u in layers.items()}
    total = sum(macs.values()) or 1.0
    share = {n: m / total for n, m in macs.items()}
    slow_us, quick_us = (1e3 * result[k].runtime.median_ms for k in ("float", "int8"))
    return Times({n: quick_us * s for n, s in share.items()}, {n: slow_us * s for n, s in share.items()}, 0.0)


def activation_damages(
    alone: Callable[[Unit], Model],
    layers: Mapping[str, Unit],
    probes: Sequence[tuple[NDArray, dict[str, NDArray]]],
    energy: Distance,
    threads: int,
    ui: Ui,
) -> dict[str, float]:
    """Mean energy of the difference with one layer in int8 (input, weight and result have codes) and all else in float.

    alone: the model in which only this layer is in int8.   On ONNX Runtime whatever the target: the codes are the same.
    """
    found = {}
    with ui.stage(f"activations of {len(layers)} layers", len(layers)) as advance:
        for done, (name, unit) in enumerate(layers.items(), 1):
            model = alone(unit)
            runner = TARGETS["ort"].runner(to_qdq(model), threads)
            away = [energy(want, runner.run({model.input_name: t})) for t, want in probes]
            found[name] = float(np.mean(away))
            advance(done)
    return found
