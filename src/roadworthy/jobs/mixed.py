"""Mixed precision: how many bits the weights of each layer get, and which layers stay in float, under budgets.

    1. Every layer's damage at every width is worked out (quantize/damages.py): the squared task distance with that
       layer alone rounded. What its activations do in int8 is added where float is a choice.
    2. What every choice costs: bytes in the very file that is shipped, microseconds in the runtime.
    3. The choices of least total damage within the budgets, exactly (quantize/allocate.py).
    4. The candidate is built, and its distance measured on calibration images that were not calibrated with.

    predicted distance^2 = (distance of 8 bits everywhere)^2 + sum of damages beyond 8 bits

Fewer bits save bytes where weights are packed, which is in plans; an ONNX file holds a byte for each code of up to 8
bits. They never change the time: the arithmetic is that of int8. Only int8 against float does.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.check.accuracy import tensor_of
from roadworthy.check.bench import Entry, bench
from roadworthy.check.judge import distance
from roadworthy.data.samples import Samples
from roadworthy.errors import InputError
from roadworthy.jobs.limits import BeyondLimits, Limits
from roadworthy.jobs.search import FASTER, Search
from roadworthy.jobs.training import trained
from roadworthy.jobs.trial import Trial, Ui
from roadworthy.model import graph as g
from roadworthy.model.encoding import narrow_codes
from roadworthy.model.model import Model
from roadworthy.model.qdq import to_qdq
from roadworthy.model.task import Task
from roadworthy.model.units import Unit, units
from roadworthy.quantize.allocate import Allocation, Budget, Choice, allocate, least
from roadworthy.quantize.damages import damages
from roadworthy.quantize.place import multiplications
from roadworthy.quantize.sensitivity import Damage, layers_of_weights
from roadworthy.quantize.weights import Wish, weight_encoding
from roadworthy.recipe import Calibration, CorrectBias, Quantize, Recipe, StoreWeights
from roadworthy.run.targets import TARGETS
from roadworthy.steps.context import FEWEST

WIDTHS = (3, 4, 5, 6, 8)
FLOAT = "float"
"""The setting of a layer whose weights are not touched."""
PROBES = 8
"""Images on which damages are measured."""
HELD = 48
"""Most images, of those not calibrated with, on which candidates are measured."""
POINTS = 6
FRONT = 3.0
"""The front reaches down to the size at which the predicted distance is this many times that of 8 bits."""
APART = 0.03
"""Sizes of the front that differ less from what was asked for are left out."""
ATTEMPTS = 4
SPARE = 128
"""Bytes that the digits of a refitted threshold may take."""

Outputs = dict[str, NDArray]


@dataclass(eq=False)
class Point:
    """One allocation.   predicted, measured: task distance to the original.   settings: layer -> bits, or "float"."""

    trial: Trial
    settings: Mapping[str, int | str]
    predicted: float
    measured: float

    @property
    def bytes(self) -> int:
        return len(self.trial.deployed)

    @property
    def file(self) -> str:
        """The name of its recipe's file."""
        return f"{self.trial.target}-{self.bytes}.yaml"


def mixed(
    model: Model,
    task: Task,
    calibration: Samples,
    target: str,
    base: Recipe,
    limits: Limits,
    *,
    threads: int = 0,
    ui: Ui | None = None,
    points: int = POINTS,
    floats: bool = False,
) -> list[Point]:
    """The allocation of least damage within the limits, and the front around it: smallest first, dominated ones left
    out (an allocation that is no smaller and measured no better than another).

    base: a recipe with `Quantize` or `StoreWeights` in it; only the bits of its layers (and which are left in float)
    change.   points: how many sizes are tried; 1 gives that within the limits alone.   floats: layers may stay in
    float; with a limit on latency they always may.
    Raises InputError where the limits cannot be met, naming the least that can be reached.
    """
    floats = floats or limits.max_latency_ms is not None
    return _around(Mixer(model, task, calibration, target, base, threads, ui or Ui(), floats), limits, points)


def _around(mixer: Mixer, limits: Limits, points: int, spare: bool = False) -> list[Point]:
    """See `mixed`.   spare: leave room for a threshold that is written into the file later, where there is some."""
    try:
        wanted = (
            mixer.within(replace(limits, max_bytes=limits.max_bytes - SPARE)) if spare and limits.max_bytes else None
        )
    except InputError:
        wanted = None
    wanted = wanted or mixer.within(limits)
    found = [wanted]
    for size in mixer.sizes(points, limits.max_bytes):
        if points > 1 and abs(size / wanted.bytes - 1) > APART:
            found.append(mixer.within(replace(limits, max_bytes=size)))
    return undominated(found, wanted)


def under_limits(search: Search) -> list[Trial]:
    """What the search finds where the model may cost no more than its limits; the front is left in `search.points`.

    Raises BeyondLimits where they cannot be met, naming the least that can be reached.
    """
    limits = search.limits
    free = search.unlimited()
    spare = SPARE if search.task.is_detector else 0
    fitting = [t for t in free if limits.fits(len(t.deployed) + spare) and _quick_enough(search, t)]
    if fitting:
        return fitting
    int8 = next((t for t in search.trials if t.variant == "int8" and (t.ratio or 0.0) >= FASTER), None)
    base = int8 or next(t for t in search.trials if any(isinstance(s, StoreWeights) for s in t.recipe.steps))
    for trial in free:
        over = len(trial.deployed) - (limits.max_bytes or len(trial.deployed))
        trial.why = f"rejected: {over:,} bytes too large" if over > 0 else "rejected: too slow"
    points = 1 if search.effort == "quick" else POINTS
    mixer = Mixer(
        search.model, search.task, search.calibration, search.target, base.recipe.untrained, search.threads, search.ui,
        limits.max_latency_ms is not None or not TARGETS[search.target].whole,
    )  # fmt: skip
    try:
        search.points = _around(mixer, limits, points, search.task.is_detector)
    except InputError as refusal:
        raise BeyondLimits(f"on {search.target}, {refusal}") from refusal
    for point in search.points:
        search.trials.append(point.trial)
        search.evaluate(point.trial)
    inside = [p for p in search.points if limits.fits(p.bytes)]
    best = min(inside, key=lambda p: p.measured)
    for point in search.points:
        if point is best:
            point.trial.why = "chosen: the least damage within the limits"
        else:
            point.trial.why = "rejected: more damage" if limits.fits(point.bytes) else "rejected: too large"
    if best.trial.judgement is None or best.trial.judgement.holds:
        return [best.trial]
    best.trial.distance = search.distance(best.trial)
    better = trained(search, best.trial)
    if better is None or not limits.fits(len(better.deployed) + spare):
        return [best.trial]
    search.evaluate(better)
    return [better]


def front(search: Search, found: list[Trial]) -> None:
    """The sizes that fewer bits would reach, for the report of a thorough search: left in `search.points`, each with
    its drop and its recipe. What was found stays what is shipped. Only where fewer bits make the file smaller."""
    from roadworthy.jobs.layers import stored_counts

    # Its bits are shared out without training: a front of trained models would cost a training for each point.
    base = next(
        (t for t in found if t.variant in ("int8", "int8, trained") and stored_counts(t.deployed) is not None), None
    )
    if base is None:
        return
    mixer = Mixer(
        search.model, search.task, search.calibration, search.target, base.recipe.untrained, search.threads, search.ui
    )  # fmt: skip
    search.points = _around(mixer, Limits(), POINTS)
    for point in search.points:
        search.evaluate(point.trial)
        point.trial.why = "for the table of sizes"


def _quick_enough(search: Search, trial: Trial) -> bool:
    limit = search.limits.max_latency_ms
    if limit is None:
        return True
    result = bench([Entry(trial.name, trial.deployed, search.target)], threads=search.threads or None, quick=True)
    return result[trial.name].runtime.median_ms <= limit


def undominated(points: Iterable[Point], keep: Point | None = None) -> list[Point]:
    """Smallest first; each measured better than all that are smaller.   keep: stays whatever it measures."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bytes, p.measured)):
        if point is keep or all(p.measured > point.measured for p in front):
            front.append(point)
    return front


@dataclass(eq=False)
class Mixer:
    """Everything that allocations of one model on one target have in common; measured once, when it is needed."""

    model: Model
    task: Task
    calibration: Samples
    target: str
    base: Recipe
    threads: int = 0
    ui: Ui = field(default_factory=Ui)
    floats: bool = False
    apart: str = field(default="", init=False)

    # Candidates

    def within(self, limits: Limits) -> Point:
        """The allocation of least damage within the limits, built and measured.

        Sizes are predicted to the byte but for a few roundings; where a file comes out larger, it is tried again with
        that much less.
        """
        asked = limits.max_bytes
        for _ in range(ATTEMPTS):
            found = self.allocation(replace(limits, max_bytes=asked))
            point = self.point(found)
            if limits.max_bytes is None or point.bytes <= limits.max_bytes:
                return point
            asked = (asked or 0) - (point.bytes - limits.max_bytes)
        raise InputError(
            f"no allocation of at most {limits.max_bytes:,} bytes was found; the nearest has {point.bytes:,}"
        )

    def allocation(self, limits: Limits) -> Allocation:
        """The choices of least damage.   Raises InputError where the limits cannot be met."""
        micros = None if limits.max_latency_ms is None else limits.max_latency_ms * 1e3
        budget = Budget(limits.max_bytes, micros, None, self.fixed_bytes, self._times.fixed if micros else 0.0)
        return allocate(self.choices(micros is not None), budget, self._shared)

    def recipe(self, settings: Mapping[str, int | str]) -> Recipe:
        """The base recipe with these settings of layers; what is not said has 8 bits."""
        step = self._step
        bits = tuple((n, int(b)) for n, b in settings.items() if b not in (FLOAT, 8))
        left = tuple(dict.fromkeys((*step.float_weights, *(n for n, b in settings.items() if b == FLOAT))))
        made = replace(step, weight_bits=8, bits=bits, float_weights=left)
        return replace(self.base, steps=tuple(made if s is step else s for s in self.base.steps))

    def point(self, found: Allocation) -> Point:
        """An allocation, built and measured."""
        started = time.monotonic()
        settings = found.settings
        trial = self._build("mixed", self.recipe(settings))
        measured = self._distance(trial)
        trial.seconds = time.monotonic() - started
        trial.name = f"mixed, {len(trial.deployed) / 1e3:.0f} kB"
        trial.variant = f"{_kind(self._step)}, {_told(settings)} ({len(trial.deployed) / 1e3:.0f} kB)"
        most = sum(self._damage_at_most(n) for n in settings)
        predicted = float(max(self.floor + found.damage - most, 0.0) ** (1 / self._power))
        self.ui.note(f"{trial.name}: distance {measured:.3f} on {self.apart}, predicted {predicted:.3f}")
        return Point(trial, settings, predicted, measured)

    def sizes(self, points: int, limit: int | None) -> list[int]:
        """Sizes of the front, largest first: from 8 bits everywhere down to where the damage is no longer bearable."""
        most, layers = len(self.whole.deployed), self.choices(False)
        low = int(least(layers, "bytes", self._shared)) + self.fixed_bytes
        if low >= most or points < 2:
            return []
        ladder = np.linspace(low, most, 33).astype(int)
        base = sum(self._damage_at_most(n) for n in layers)

        def bearable(size: int) -> bool:
            found = allocate(layers, Budget(bytes=int(size), fixed_bytes=self.fixed_bytes), self._shared)
            return self.floor + found.damage - base <= FRONT**self._power * max(self.floor, 1e-12)

        bottom = next((int(s) for s in ladder if bearable(s)), most)
        bottom = min(bottom, limit or bottom)
        return sorted({int(s) for s in np.linspace(max(bottom, low), most, points)}, reverse=True)

    # What is measured once

    @cached_property
    def whole(self) -> Trial:
        """The base recipe with all layers at their most bits."""
        return self._build("8 bits", self.recipe({}))

    @cached_property
    def floor(self) -> float:
        """Energy of the distance that is left at most bits: what activations do."""
        return self._distance(self.whole) ** self._power

    @cached_property
    def fixed_bytes(self) -> int:
        """What the file holds beside the weights that choices are about."""
        weights: dict[str, int] = {}
        for name, unit in self._units.items():
            weights[str(unit.weight.name)] = self._bytes[name][max(WIDTHS)]
        return len(self.whole.deployed) - sum(weights.values())

    def choices(self, timed: bool) -> dict[str, list[Choice]]:
        """Layer -> its choices.   timed: with latencies.   Where float is one, int8 costs what activations lose."""
        made: dict[str, list[Choice]] = {}
        for name, unit in self._units.items():
            macs = multiplications(unit)
            quick, slow = (self._times.int8[name], self._times.floats[name]) if timed else (0.0, 0.0)
            inside = self._inside[name] if self.floats else 0.0
            made[name] = [
                Choice(b, self._damages[name, b] + inside, size, quick, macs * b * 8)
                for b, size in self._bytes[name].items()
            ]
            if self.floats:
                size = 4 * g.constant(unit.weight).size  # type: ignore[union-attr]
                made[name].append(Choice(FLOAT, 0.0, size, slow, macs * 32 * 32))
        return made

    def _damage_at_most(self, name: str) -> float:
        """What is part of the floor already."""
        return self._damages[name, max(WIDTHS)] + (self._inside[name] if self.floats else 0.0)

    @cached_property
    def _step(self) -> Any:
        for step in self.base.steps:
            if isinstance(step, Quantize | StoreWeights):
                return step
        raise InputError("mixed precision needs a recipe with the step `quantize` or `store_weights`")

    @cached_property
    def _prepared(self) -> Model:
        """The float graph in front of the step that quantizes."""
        chosen, made = self.base.choose(self.calibration, self.model), self.model
        for step in self.base.steps[: self.base.steps.index(self._step)]:
            made = step(made, chosen)
        return made

    @cached_property
    def _units(self) -> dict[str, Unit]:
        """The layers that have a choice: those that the base recipe gives codes to."""
        coded = {u.name for u in units(self.whole.model.ir) if str(u.weight.name) in self.whole.model.encodings}
        return {u.name: u for u in units(self._prepared.ir) if u.name in coded}

    @property
    def _power(self) -> int:
        """What makes an energy of a distance; that of a raw task is one already."""
        return 1 if self.task.decode.kind == "raw" else 2

    @cached_property
    def _shared(self) -> list[tuple[str, ...]]:
        groups = (tuple(u.name for u in g if u.name in self._units) for g in layers_of_weights(self._prepared).values())
        return [group for group in groups if len(group) > 1]

    @cached_property
    def _wish(self) -> Wish:
        step = self._step
        return Wish(8, (), step.granularity == "tensor", step.grid, getattr(step, "scales", "free") != "free")

    @cached_property
    def _damages(self) -> Damage:
        chosen = self.base.choose(self.calibration, self.model)
        probes = chosen.take(min(PROBES, len(chosen)), self.base.seed)
        statistics = Calibration.of(self._prepared, chosen, ())
        with self.ui.stage(f"damage of {len(units(self._prepared.ir))} layers", 100) as advance:
            return damages(
                self._prepared,
                lambda: (tensor_of(s, self.task)[0] for s in probes),
                lambda a, b: distance(a, b, self.task) ** self._power,
                statistics,
                WIDTHS,
                self._wish,
                self._step.weight_observer,
                seed=self.base.seed,
                progress=lambda done, of: advance(100 * done // of),
            )

    @cached_property
    def _inside(self) -> dict[str, float]:
        """Energy of the distance with one layer's input and result in 8 bits and all else in float."""
        from roadworthy.jobs.layers import activation_damages

        chosen, encodings = self.base.choose(self.calibration, self.model), self.whole.model.encodings
        if isinstance(self._step, StoreWeights):  # its weights are all that is rounded
            return dict.fromkeys(self._units, 0.0)

        def alone(unit: Unit) -> Model:
            values = [str(v.name) for v in (unit.input, unit.weight, *unit.inner, unit.output)]
            kept = {name: encodings[name] for name in values if name in encodings}
            return CorrectBias()(self._prepared.with_encodings(kept, "one layer"), chosen)

        return activation_damages(
            alone, self._units, self._probes[:PROBES],
            lambda a, b: distance(a, b, self.task) ** self._power, self.threads, self.ui,
        )  # fmt: skip

    @cached_property
    def _times(self) -> Any:
        from roadworthy.jobs.layers import layer_latencies

        return layer_latencies(self.model, self.whole, self.target, self._units, self.threads)

    @cached_property
    def _bytes(self) -> dict[str, dict[int, int]]:
        """Layer -> width -> bytes of its weight in the file; only widths that save some."""
        from roadworthy.jobs.layers import stored_counts

        counts = stored_counts(self.whole.deployed)
        found = {}
        for name, unit in self._units.items():
            weight = g.constant(unit.weight)
            assert weight is not None
            if counts is None:
                found[name] = {max(WIDTHS): weight.size}
                continue
            count = counts.get(name, weight.size)
            found[name] = {b: _packed_bytes(count, self._codes(unit, b)) for b in WIDTHS}
        return found

    def _codes(self, unit: Unit, bits: int) -> int:
        """How many different codes the weight has at that width."""
        weight = g.constant(unit.weight)
        assert weight is not None
        axis = unit.weight_axis if unit.per_channel else None
        encoding = weight_encoding(weight, self._wish.spec(bits, axis, self._step.weight_observer))
        return len(np.unique(narrow_codes(weight, encoding)))

    @cached_property
    def _probes(self) -> list[tuple[NDArray, Outputs]]:
        """Images that were not calibrated with (all, where none is left), and the original's outputs for them."""
        used = {s.name for s in self.base.choose(self.calibration, self.model)}
        rest = self.calibration.where(lambda s: s.name not in used)
        held = rest if len(rest) >= FEWEST else self.calibration
        self.apart = "held-out images" if held is rest else "the images they were calibrated with: too few to spare any"
        held = held.take(min(HELD, len(held)), self.base.seed)
        runner = TARGETS["ort"].runner(self.model.float_bytes(), self.threads)
        tensors = (tensor_of(s, self.task)[0] for s in held)
        return [(t, runner.run({self.model.input_name: t})) for t in tensors]

    def distances(self, trial: Trial) -> NDArray[np.float64]:
        """(probes,) task distances to the original on the probes, on the target itself."""
        runner = TARGETS[self.target].runner(trial.deployed, self.threads)
        away = [distance(want, runner.run({self.model.input_name: t}), self.task) for t, want in self._probes]
        return np.array(away, np.float64)

    def _distance(self, trial: Trial) -> float:
        """Root of the mean squared distance, of a raw task the mean distance."""
        return float(np.mean(self.distances(trial) ** self._power) ** (1 / self._power))

    def _build(self, name: str, recipe: Recipe) -> Trial:
        made = recipe.apply(self.model, self.calibration)
        return Trial(name, name, self.target, recipe, to_qdq(made), made)


def _packed_bytes(count: int, codes: int) -> int:
    """Bytes of a weight of int8 codes in a plan: a palette and indices where that is smaller (docs/engine.md)."""
    bits = max((codes - 1).bit_length(), 1)
    packed = -(-(4 + codes) // 4) * 4 + -(-count * bits // 8)
    return -(-(min(packed, count) if bits <= 7 else count) // 64) * 64


def _kind(step: Any) -> str:
    return "int8" if isinstance(step, Quantize) else "int8-stored weights"


def _told(settings: Mapping[str, int | str]) -> str:
    """What an allocation is, in words: the range of its bits, and how many layers are in float."""
    bits = sorted({int(b) for b in settings.values() if b != FLOAT})
    left = sum(b == FLOAT for b in settings.values())
    words = [f"{bits[0]} to {bits[-1]} bits" if len(bits) > 1 else f"{bits[0]} bits"] if bits else []
    return ", ".join([*words, *([f"{left} in float"] if left else [])])
