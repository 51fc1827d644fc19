"""Alignment: two forms of one network, tensor by tensor, on a few images: where do they part, and whose fault is it?

    accumulated   b runs freely from the image; what its layers read against a's tensors
    local         b's layer is fed with a's tensors (through b's own codes); its result against a's
    compute       the same result against what a's layer makes of exactly the same inputs: weights, biases, attributes
    encoding      a's tensor through b's Q/DQ pair: rounding and clipping

A network whose accumulated error grows while no local error stands out has no fault; it has a budget. The distinction
of layer-wise and graph-wise error is that of PPQ's analysis; the cut that isolates a layer is in `local`, the rules
that turn figures into findings are in `findings`.

Names are how values are matched, so both models must come from one graph: fold, quantize and store keep the names of
float values. A step that rescales tensors (cross-layer equalization) makes every tensor differ by design; align its
result with the equalized float model instead of the original.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.check.cut import harmless_cuts
from roadworthy.check.findings import Coding, Finding, Tensor, Track, examine, first_divergence
from roadworthy.check.local import LocalGraph, take_apart
from roadworthy.check.moments import Error
from roadworthy.check.pairing import Match, Pairing, weights_of
from roadworthy.errors import InputError, UnsupportedError
from roadworthy.model.model import Model

if TYPE_CHECKING:
    from rich.table import Table

Progress = Callable[[int], None]
MEMORY_BYTES = 768 << 20
"""Tensors held at a time; a network with more is walked in several passes per image."""
_COPIES = 6  # a's value, b's free one, its local result, the shadow, the coded value, and the difference

__all__ = ["Alignment", "Coding", "Error", "Finding", "Tensor", "align", "table"]


@dataclass(frozen=True, eq=False)
class Alignment:
    """The outcome.

    tensors: every matched value in execution order.   findings: faults, worst first; empty for a sound model.
    first: the value where the two first part, in one sentence, or why there is none.   first_where: its layer, or None.
    unmatched: layer outputs of a that b has no value for (folded away).   images: how many were looked at.
    """

    tensors: tuple[Tensor, ...]
    findings: tuple[Finding, ...]
    first: str
    first_where: str | None
    unmatched: tuple[str, ...]
    images: int

    def rows(self, inner: bool = False) -> list[dict[str, Any]]:
        """One dict per layer output and per output of another node, in execution order, for reports.

        `sqnr_db`, `cosine` and `max_error` are accumulated. `local_sqnr_db` is the lowest of the layer's own tensors,
        the codes of its output included. inner: also rows for values inside a layer (in front of the activation).
        """
        worst: dict[str, float] = {}
        for t in self.tensors:
            worst[t.where] = min(worst.get(t.where, math.inf), t.own_sqnr_db)
        return [
            {
                "name": t.where,
                "op": t.op,
                "output": t.name,
                "shape": list(t.shape),
                "sqnr_db": t.accumulated.sqnr_db,
                "local_sqnr_db": t.own_sqnr_db if inner else worst[t.where],
                "cosine": t.accumulated.cosine,
                "max_error": t.accumulated.max_error,
            }
            for t in self.tensors
            if inner or not t.inner
        ]

    def to_json(self) -> str:
        """Everything, as JSON; figures that are not finite become null."""
        document = {
            "images": self.images,
            "first_divergence": {"where": self.first_where, "text": self.first},
            "findings": [asdict(f) for f in self.findings],
            "unmatched": list(self.unmatched),
            "tensors": [asdict(t) for t in self.tensors],
        }
        return json.dumps(_plain(document), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def align(
    a: Model,
    b: Model,
    tensors: Iterable[NDArray],
    threads: int = 0,
    progress: Progress | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> Alignment:
    """Compare b with a, tensor by tensor.

    a, b: as `load` gives them, Q/DQ nodes still in the graph; a is the original.
    tensors: float32 arrays in the models' input shape, one image each, consumed once and not kept; 4 to 16 images
        are enough, and one is enough for most faults.   threads: 0 uses every core.
    progress: called with the number of images done.   memory_bytes: tensors held at a time, a rough bound.
    Raises InputError when there is no image, one has a wrong shape, a's values are not finite, or the two models are
    not forms of one network (other input, other shapes, no value name in common).
    """
    pairing = Pairing(a, b)
    passes = [_Pass(pairing, group, threads, a.source) for group in _groups(pairing.matches, memory_bytes)]
    images = 0
    for tensor in tensors:
        x = np.ascontiguousarray(tensor, np.float32)
        if x.shape != a.input_shape:
            raise InputError(
                f"image {images + 1} is a tensor of shape {x.shape}, but {a.source} takes {a.input_shape};"
                " use the preprocessing of its task"
            )
        for one in passes:
            one.add(x, images + 1)
        images += 1
        if progress:
            progress(images)
    if not images:
        raise InputError("there are no images to align on; hand in at least one input tensor")
    tracks = [track for one in passes for track in one.tracks]
    found = tuple(t.report() for t in tracks)
    findings = examine(tracks, a.task, b.task, harmless_cuts(b))
    where, text = first_divergence(found, findings)
    return Alignment(found, findings, text, where, pairing.unmatched, images)


def _groups(matches: tuple[Match, ...], memory_bytes: int) -> list[list[Match]]:
    """Consecutive matches whose tensors fit the bound together; at least one in each group."""
    groups: list[list[Match]] = [[]]
    held = 0
    for match in matches:
        size = 4 * math.prod(match.shape) * _COPIES
        if groups[-1] and held + size > memory_bytes:
            groups.append([])
            held = 0
        groups[-1].append(match)
        held += size
    return groups


class _Session:
    """Some values of one graph in ONNX Runtime: without graph optimizations, so that Q/DQ means what the standard says,
    and without a memory arena, which would keep the peak of every pass."""

    def __init__(self, model: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = False
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise UnsupportedError(
                f"ONNX Runtime cannot load the model: {str(error).strip().splitlines()[0][:300]}"
            ) from error
        self._names = [o.name for o in self._session.get_outputs()]
        self._inputs = {i.name for i in self._session.get_inputs()}

    def run(self, feeds: dict[str, NDArray]) -> dict[str, NDArray]:
        values = self._session.run(None, {n: x for n, x in feeds.items() if n in self._inputs})
        return dict(zip(self._names, values))


class _Pass:
    """The sessions and running sums for one group of matches."""

    def __init__(self, pairing: Pairing, group: list[Match], threads: int, source: str) -> None:
        self.source = source
        self.input_a, self.input_b = pairing.input_a, pairing.input_b
        self.local: LocalGraph = take_apart(pairing, group)
        self.tracks = [Track(m, weights_of(pairing, m), m.name in self.local.rounded) for m in group]
        names_a = {m.name for m in group} | set(self.local.feeds.values())
        names_b = {m.coded or m.root for m in group}
        self.a = _Session(pairing.a.only(names_a - {self.input_a}), threads)
        self.b = _Session(pairing.b.only(names_b - {self.input_b}), threads)
        self.apart = _Session(self.local.model, threads)

    def add(self, x: NDArray[np.float32], number: int) -> None:
        """One image."""
        original = {**self.a.run({self.input_a: x}), self.input_a: x}
        for track in self.tracks:
            if not np.isfinite(original[track.match.name].sum(dtype=np.float64)):
                raise InputError(
                    f"on image {number} the tensor {track.match.name!r} of {self.source} becomes NaN or infinite;"
                    " check the preprocessing, or the model"
                )
        free = {**self.b.run({self.input_b: x}), self.input_b: x}
        apart = self.apart.run({feed: original[name] for feed, name in self.local.feeds.items()})
        for track in self.tracks:
            m = track.match
            value = original[m.name]
            shadow = self.local.shadow.get(m.name)
            made = None if m.is_input else _same(value, apart[m.root], m)
            copied = None if shadow is None else apart[shadow]
            reference = value
            if m.clamped and m.codes is not None and made is not None:
                made, reference = (np.clip(v, m.codes.lo, m.codes.hi) for v in (made, value))
                copied = None if copied is None else np.clip(copied, m.codes.lo, m.codes.hi)
            coded = None if m.coded is None else apart[m.coded]
            track.add(value, _same(value, free[m.coded or m.root], m), reference, made, copied, coded)


def _same(a: NDArray, b: NDArray, match: Match) -> NDArray:
    if a.shape != b.shape:
        raise InputError(
            f"the value {match.name!r} has shape {a.shape} in one model and {b.shape} in the other;"
            " only two forms of one network can be aligned"
        )
    return b if b.dtype == np.float32 else b.astype(np.float32)


def table(alignment: Alignment, top: int = 15) -> Table:
    """A rich table of the layers, lowest accumulated SQNR first.   top: how many; 0 shows all."""
    from rich.table import Table

    made = Table(title=f"Worst tensors on {alignment.images} images", caption=alignment.first)
    for heading in ("layer", "op", "output"):
        made.add_column(heading, overflow="fold")
    for heading in ("SQNR dB", "local dB", "cosine", "max error"):
        made.add_column(heading, justify="right")
    rows = sorted(alignment.rows(), key=lambda r: r["sqnr_db"])
    for r in rows[: top or None]:
        made.add_row(
            r["name"], r["op"], r["output"], f"{r['sqnr_db']:.1f}", f"{r['local_sqnr_db']:.1f}", f"{r['cosine']:.5f}",
            f"{r['max_error']:.4g}",
        )  # fmt: skip
    return made
