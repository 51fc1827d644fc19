"""Latency, throughput, memory and load time of models on targets, as ratios that hold on a restless machine.

Every model runs in a process of its own, and only one computes at a time:

    round:  canary, A runs k frames, canary, B runs k frames, canary, ...        (the order turns with each round)

A sample counts only if the canaries on both sides of it were fast (see `canary`). Then

    latency       median, 90th percentile and minimum over all frames of the counted samples
    ratio         median latency of the first entry / median latency of this one; 2.0 is twice as fast as the first
    ratio_spread  quartiles of the same ratio taken round by round, from samples that are neighbours in time

Runtime is the call of the runtime alone; end to end is decoded BGR image -> preprocess -> run -> decode, NMS included:
by OpenCV and NumPy around the runtime, or in one call where the runtime has one (a native plan with its task).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from roadworthy.check.bench_worker import END_TO_END, RUNTIME, Worker
from roadworthy.check.canary import ONE_THREAD, THRESHOLD, gate, reference
from roadworthy.check.machine import environment, usable_cores
from roadworthy.data.preprocess import Preprocess
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError
from roadworthy.run.native.plan import MAGIC as PLAN_MAGIC
from roadworthy.run.native.plan import Plan
from roadworthy.run.targets import TARGETS

Progress = Callable[[float, str], None]

MIN_ROUNDS = 3  # even when the time is up
MIN_QUIET = 3  # samples an entry needs before its figures may rest on the quiet ones alone
SAMPLE_MS = 50.0  # frames_per_sample is chosen to fill this; a disturbance of the machine lasts longer
_LOAD_TIMEOUT_S = 300.0
_SAMPLE_TIMEOUT_S = 120.0


@dataclass(frozen=True, eq=False)
class Entry:
    """One thing to measure.

    label: its name in the result, unique.   model: a serialized ONNX model with static shapes (a symbolic first
    dimension is taken as 1), or a native plan.   target: a key of TARGETS, or `package.module:function` of your own,
    where the function takes (model bytes, threads) and returns a Runner.
    frames: images, uint8 (H, W, 3) BGR, for end to end; with them `preprocess`, and `decode` unless the raw outputs
    are the result.
    """

    label: str
    model: bytes
    target: str = "ort"
    frames: Sequence[NDArray[np.uint8]] = ()
    preprocess: Preprocess | None = None
    decode: DecodeSpec | None = None


@dataclass(frozen=True)
class Latency:
    """Milliseconds per frame over the counted frames, and frames per second of one stream (frames / time spent)."""

    median_ms: float
    p90_ms: float
    min_ms: float
    qps: float
    frames: int


@dataclass(frozen=True)
class Measured:
    """What was measured of one entry.

    load_ms: loading the model into a running runtime.   peak_mb: largest resident size of its process;
    base_mb: the same before the model was loaded (Python, NumPy, the runtime with a model of one node).
    file_bytes: size of the ONNX file.   ratio, ratio_spread: see the module; the spread is None below two rounds.
    stages_ms: medians of preprocess, run and decode within the end-to-end frames.
    samples, dropped: samples taken and samples that a slow canary disqualified.
    per_round_ms: round -> median of the runtime in the counted sample of that round.
    """

    label: str
    target: str
    runtime: Latency
    end_to_end: Latency | None
    stages_ms: dict[str, float] | None
    ratio: float
    ratio_spread: tuple[float, float] | None
    end_to_end_ratio: float | None
    end_to_end_spread: tuple[float, float] | None
    load_ms: float
    peak_mb: float
    base_mb: float
    file_bytes: int
    samples: int
    dropped: int
    per_round_ms: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchResult:
    """All entries in the order given; the first is the baseline of the ratios.

    quiet: the figures rest on undisturbed samples. Where it is False a ratio is no ground for a decision: runtimes
    suffer unequally when a core is taken from them (their threads wait for each other).
    canary: reference and median GFLOP/s per thread, and the threshold.
    notes: what a reader of the figures must know.
    """

    entries: tuple[Measured, ...]
    threads: int
    rounds: int
    seconds: float
    quiet: bool
    canary: dict[str, float]
    environment: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __getitem__(self, label: str) -> Measured:
        """The entry of that label; KeyError where there is none."""
        for entry in self.entries:
            if entry.label == label:
                return entry
        raise KeyError(label)

    def compare(
        self, base: str, label: str, draws: int = 1000, seed: int = 0
    ) -> tuple[float, tuple[float, float] | None]:
        """Median latency of `base` over that of `label` in the rounds that both have, and its 95 % interval from draws
        of these rounds (None below MIN_ROUNDS of them)."""
        a, b = self[base], self[label]
        shared = sorted(a.per_round_ms.keys() & b.per_round_ms.keys())
        if len(shared) < MIN_ROUNDS:
            return a.runtime.median_ms / b.runtime.median_ms, None
        pairs = np.array([(a.per_round_ms[r], b.per_round_ms[r]) for r in shared])
        drawn = np.random.default_rng(seed).integers(0, len(pairs), (draws, len(pairs)))
        medians = np.median(pairs[drawn], axis=1)
        low, high = np.percentile(medians[:, 0] / medians[:, 1], [2.5, 97.5])
        whole = np.median(pairs, axis=0)
        return float(whole[0] / whole[1]), (float(low), float(high))

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict per entry, ratios first, as the report's speed table takes them."""
        return [
            {
                "label": entry.label,
                "target": entry.target,
                "ratio": entry.ratio,
                "ratio_spread": list(entry.ratio_spread) if entry.ratio_spread else None,
                "median_ms": entry.runtime.median_ms,
                "p90_ms": entry.runtime.p90_ms,
                "min_ms": entry.runtime.min_ms,
                "qps": entry.runtime.qps,
                "frames": entry.runtime.frames,
                "end_to_end_ms": entry.end_to_end.median_ms if entry.end_to_end else None,
                "end_to_end_p90_ms": entry.end_to_end.p90_ms if entry.end_to_end else None,
                "end_to_end_ratio": entry.end_to_end_ratio,
                "end_to_end_spread": list(entry.end_to_end_spread) if entry.end_to_end_spread else None,
                "stages_ms": entry.stages_ms,
                "load_ms": entry.load_ms,
                "peak_mb": entry.peak_mb,
                "base_mb": entry.base_mb,
                "file_bytes": entry.file_bytes,
                "samples": entry.samples,
                "dropped": entry.dropped,
            }
            for entry in self.entries
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        rest = {key: value for key, value in asdict(self).items() if key not in ("entries", "notes")}
        return {"entries": self.rows(), **rest, "notes": list(self.notes)}


@dataclass(frozen=True)
class Sample:
    """Frames of one entry between two canaries (levels in FLOP/s), and the fraction of the time it got no core."""

    round: int
    entry: int
    kind: str
    before: float
    after: float
    frames_ms: tuple[float, ...]
    stages_ms: tuple[tuple[float, float, float], ...] = ()
    waited: float = 0.0


def bench(
    entries: Sequence[Entry],
    *,
    threads: int | None = None,
    rounds: int | None = None,
    frames_per_sample: int | None = None,
    seconds: float | None = None,
    quick: bool = False,
    progress: Progress | None = None,
) -> BenchResult:
    """Measure entries against each other.

    threads: what each runtime may use; None means every usable core.
    rounds: quiet rounds wanted (default 40, quick 10).   seconds: time to measure in, loading not included (default 7,
    quick 2.5); while the machine is restless it may take up to twice that, and never fewer than 3 rounds.
    frames_per_sample: None chooses it so that a sample takes about 50 ms.
    quick: about 4 seconds for two small models, for searches; the spread is wider.
    progress: called with (fraction done 0..1, what is being done).
    Raises InputError for entries that cannot be measured, RoadworthyError when a worker fails, dies or hangs; no
    process outlives the call.
    """
    threads = usable_cores() if threads is None else threads
    rounds = (10 if quick else 40) if rounds is None else rounds
    seconds = (2.5 if quick else 7.0) if seconds is None else seconds
    feeds = _check(entries, threads, rounds, frames_per_sample, seconds)
    say = progress or (lambda fraction, text: None)
    begun = time.monotonic()
    with ExitStack() as stack:
        # All processes start at once, so that imports overlap; they are ended in any case, Ctrl-C included.
        bird = Worker("the canary", ONE_THREAD)
        stack.callback(bird.close)
        workers = []
        for entry in entries:
            workers.append(Worker(f"`{entry.label}` on {entry.target}"))
            stack.callback(workers[-1].close)
        drive = _Drive(entries, workers, bird, threads, say)
        drive.load(feeds, frames_per_sample, SAMPLE_MS / 2 if quick else SAMPLE_MS)
        played = drive.play(rounds, seconds)
        memory = [worker.ask(_LOAD_TIMEOUT_S, do="memory") for worker in workers]
    say(1.0, "done")
    measured, notes = summarize(drive.samples, [entry.label for entry in entries])
    quiet = not notes
    results = [
        Measured(
            label=entry.label,
            target=entry.target,
            load_ms=loaded["load_ms"],
            base_mb=loaded["base_mb"],
            peak_mb=memory["peak_mb"],
            file_bytes=len(entry.model),
            **figures,
        )
        for entry, loaded, memory, figures in zip(entries, drive.loaded, memory, measured)
    ]
    notes += [
        f"`{entries[index].label}` on {entries[index].target} keeps its threads spinning between frames, "
        "which slows whatever runs beside it"
        for index in sorted(drive.spinning)
    ]
    return BenchResult(
        entries=tuple(results),
        threads=threads,
        rounds=played,
        seconds=round(time.monotonic() - begun, 2),
        quiet=quiet,
        canary={
            "reference_gflops": reference(drive.levels) / 1e9,
            "median_gflops": float(np.median(drive.levels)) / 1e9,
            "threshold": THRESHOLD,
        },
        environment=environment(threads),
        notes=tuple(notes),
    )


@dataclass
class _Drive:
    """The parent's loop: one worker computes at a time, with a canary on either side."""

    entries: Sequence[Entry]
    workers: Sequence[Worker]
    bird: Worker
    threads: int
    say: Progress
    levels: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    loaded: list[dict[str, float]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    spinning: set[int] = field(default_factory=set)

    def load(self, feeds: Sequence[Mapping[str, NDArray]], frames_per_sample: int | None, sample_ms: float) -> None:
        nothing, nothing_feeds = _nothing()
        for index, (entry, worker) in enumerate(zip(self.entries, self.workers)):
            self.say(0.2 * index / len(self.entries), f"loading {entry.label}")
            base = worker.ask(
                _LOAD_TIMEOUT_S,
                do="start",
                target=entry.target,
                threads=self.threads,
                nothing=nothing,
                nothing_feeds=nothing_feeds,
            )
            loaded = worker.ask(
                _LOAD_TIMEOUT_S,
                do="load",
                model=entry.model,
                feeds=dict(feeds[index]),
                frames=tuple(entry.frames),
                preprocess=entry.preprocess,
                decode=entry.decode,
            )
            self.loaded.append({**base, **loaded})
            self.counts.append(frames_per_sample or min(max(round(sample_ms / max(loaded["frame_ms"], 1e-3)), 1), 200))
        self.bird.ask(_LOAD_TIMEOUT_S, do="canary_start", threads=self.threads)

    def play(self, rounds: int, seconds: float) -> int:
        """Take rounds until enough of them are quiet or the time is up; returns how many were taken."""
        slots = [(index, RUNTIME) for index in range(len(self.entries))]
        slots += [(index, END_TO_END) for index, entry in enumerate(self.entries) if entry.frames]
        begun = time.monotonic()
        wait_left_s = seconds / 2
        taken = 0
        while True:
            spent = time.monotonic() - begun
            fewest = self._fewest_quiet(slots) if self.samples else 0
            late = spent >= seconds and (fewest >= MIN_QUIET or spent >= 2 * seconds)
            if fewest >= rounds or taken >= 2 * rounds or (taken >= MIN_ROUNDS and late):
                return taken
            done = min(max(spent / seconds, fewest / rounds), 1.0)
            self.say(0.2 + 0.8 * done, f"round {taken + 1}, {fewest} quiet")
            for index, kind in turn(slots, taken):
                before, waited_s = self._await_quiet(wait_left_s)
                wait_left_s -= waited_s
                count = self.counts[index]
                reply = self.workers[index].ask(_SAMPLE_TIMEOUT_S, do="frames", kind=kind, count=count)
                if not reply["settled"]:
                    self.spinning.add(index)
                frames, stages = tuple(reply["frames_ms"]), tuple(reply["stages_ms"])
                after = self._level()
                self.samples.append(Sample(taken, index, kind, before, after, frames, stages, reply["waited"]))
            taken += 1

    def _level(self) -> float:
        self.levels.append(self.bird.ask(_SAMPLE_TIMEOUT_S, do="canary"))
        return self.levels[-1]

    def _await_quiet(self, budget_s: float) -> tuple[float, float]:
        """(level right before the next sample, seconds waited): while the canary is slow, a sample would be lost."""
        level = self.levels[-1] if self.levels else self._level()
        begun = time.monotonic()
        while level < THRESHOLD * reference(self.levels) and time.monotonic() - begun < min(budget_s, 0.5):
            time.sleep(0.03)
            level = self._level()
        return level, time.monotonic() - begun

    def _fewest_quiet(self, slots: Sequence[tuple[int, str]]) -> int:
        quiet = quiet_samples(self.samples)
        kept = [(sample.entry, sample.kind) for sample, good in zip(self.samples, quiet) if good]
        return min(kept.count(slot) for slot in slots)


def quiet_samples(samples: Sequence[Sample]) -> list[bool]:
    """Which samples count, by the rule of `canary`."""
    return gate([(sample.before, sample.after) for sample in samples], [sample.waited for sample in samples])


def turn(slots: Sequence[tuple[int, str]], number: int) -> list[tuple[int, str]]:
    """The order of a round: it starts one slot later each time and runs backwards every other time, so that over the
    rounds each slot stands at every place and behind every neighbour."""
    start = (number // 2) % len(slots)
    order = [*slots[start:], *slots[:start]]
    return order[::-1] if number % 2 else order


def summarize(samples: Sequence[Sample], labels: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """(the measured fields of each entry, notes), from samples alone.

    Where an entry has fewer than three quiet samples of a kind, all figures rest on all samples, and a note says so:
    mixing quiet samples of one entry with restless ones of another would make a ratio of nothing.
    """
    quiet = quiet_samples(samples)
    kept = [sample for sample, good in zip(samples, quiet) if good]
    notes = []
    kinds = [(entry, kind) for entry in range(len(labels)) for kind in (RUNTIME, END_TO_END)]
    kinds = [key for key in kinds if any((sample.entry, sample.kind) == key for sample in samples)]
    if min(sum((sample.entry, sample.kind) == key for sample in kept) for key in kinds) < MIN_QUIET:
        lost = len(samples) - len(kept)
        if lost:
            notes.append(f"machine never quiet: {lost} of {len(samples)} samples disturbed; figures include them")
        kept = list(samples)
    results = []
    for entry in range(len(labels)):
        runtime = _latency(_frames(kept, entry, RUNTIME))
        whole = _latency(_frames(kept, entry, END_TO_END))
        assert runtime is not None
        stages = [stage for s in kept if (s.entry, s.kind) == (entry, END_TO_END) for stage in s.stages_ms]
        names = ("preprocess", "run", "decode")
        ratio, spread = _ratio(kept, entry, RUNTIME)
        whole_ratio, whole_spread = _ratio(kept, entry, END_TO_END)
        results.append({
            "runtime": runtime,
            "end_to_end": whole,
            "stages_ms": dict(zip(names, np.median(stages, axis=0).tolist())) if stages else None,
            "ratio": ratio,
            "ratio_spread": spread,
            "end_to_end_ratio": whole_ratio,
            "end_to_end_spread": whole_spread,
            "per_round_ms": {
                s.round: float(np.median(s.frames_ms)) for s in kept if (s.entry, s.kind) == (entry, RUNTIME)
            },
            "samples": sum(sample.entry == entry for sample in samples),
            "dropped": sum(sample.entry == entry and not good for sample, good in zip(samples, quiet)),
        })  # fmt: skip
    return results, notes


def _frames(samples: Sequence[Sample], entry: int, kind: str) -> list[float]:
    return [ms for sample in samples if (sample.entry, sample.kind) == (entry, kind) for ms in sample.frames_ms]


def _latency(frames_ms: Sequence[float]) -> Latency | None:
    if not frames_ms:
        return None
    median, p90, least = np.percentile(frames_ms, [50, 90, 0]).tolist()
    return Latency(median, p90, least, 1e3 * len(frames_ms) / math.fsum(frames_ms), len(frames_ms))


def _ratio(samples: Sequence[Sample], entry: int, kind: str) -> tuple[Any, tuple[float, float] | None]:
    """(ratio of medians, quartiles of the paired ratios) of the first entry against this one."""
    first, this = _frames(samples, 0, kind), _frames(samples, entry, kind)
    if not first or not this:
        return None, None
    medians = {
        (sample.round, sample.entry): float(np.median(sample.frames_ms)) for sample in samples if sample.kind == kind
    }
    paired = [medians[r, 0] / ms for (r, e), ms in medians.items() if e == entry and (r, 0) in medians]
    spread = tuple(np.percentile(paired, [25, 75]).tolist()) if len(paired) > 1 else None
    return float(np.median(first) / np.median(this)), spread


def _check(
    entries: Sequence[Entry], threads: int, rounds: int, frames_per_sample: int | None, seconds: float
) -> list[dict[str, NDArray]]:
    """Refuse what cannot be measured; returns the feeds of each entry."""
    if not entries:
        raise InputError("there is nothing to measure: give at least one entry")
    for name, value in (("threads", threads), ("rounds", rounds), ("frames_per_sample", frames_per_sample)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")
    if not seconds > 0:
        raise InputError(f"seconds is {seconds}; it must be positive")
    feeds = []
    for number, entry in enumerate(entries):
        if any(entry.label == other.label for other in entries[:number]):
            raise InputError(f"two entries are called `{entry.label}`; give each a label of its own")
        if entry.target not in TARGETS and ":" not in entry.target:
            raise InputError(f"`{entry.label}`: there is no target `{entry.target}`; choose from {', '.join(TARGETS)}")
        feeds.append(_feeds(entry))
        if not entry.frames:
            continue
        if entry.preprocess is None:
            raise InputError(f"`{entry.label}` has frames but no preprocess; end to end needs both")
        if len(feeds[-1]) != 1:
            raise InputError(f"`{entry.label}` has the inputs {', '.join(feeds[-1])}; end to end needs exactly one")
        for image in entry.frames:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise InputError(
                    f"`{entry.label}`: a frame is {image.dtype} {image.shape}; give uint8 images of (H, W, 3)"
                )
    return feeds


def _feeds(entry: Entry) -> dict[str, NDArray]:
    """Input arrays for the runtime figure: uniform 0..1 from a fixed seed, zeros for integers."""
    random = np.random.default_rng(0)
    if entry.model[:4] == PLAN_MAGIC:
        ports = Plan.from_bytes(entry.model).inputs
        return {port.name: random.random(port.dims).astype(np.float32) for port in ports}
    try:
        graph = onnx.load_model_from_string(entry.model).graph
    except Exception as error:  # protobuf's DecodeError is not part of its public interface everywhere
        raise InputError(f"`{entry.label}` is not an ONNX model; give the bytes of an .onnx file") from error
    constants = {tensor.name for tensor in graph.initializer}
    feeds: dict[str, NDArray] = {}
    for value in graph.input:
        if value.name in constants:
            continue
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        shape = [1 if axis == 0 and size == 0 else size for axis, size in enumerate(dims)]
        if 0 in shape:
            raise InputError(f"`{entry.label}`: input `{value.name}` has the dynamic shape {dims}; fix it first")
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        floating = np.issubdtype(dtype, np.floating)
        feeds[value.name] = random.random(shape).astype(dtype) if floating else np.zeros(shape, dtype)
    if not feeds:
        raise InputError(f"`{entry.label}` has no input, so there is nothing to run; give a network")
    return feeds


def _nothing() -> tuple[bytes, dict[str, NDArray]]:
    """A model of one Relu, and its feeds."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "nothing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    return model.SerializeToString(), {"x": np.zeros((1, 1), np.float32)}
