"""From sums to sentences: which tensor is at fault, and what is the fault?

Every layer is judged on what it computes from exactly the inputs that its counterpart gets (see `local`), so rounding
of activations is no part of the noise. What remains for a sound layer is the rounding of its weights, and what remains
for any other node is nothing at all. With step s, fan-in K and weights w of one output channel, rounding moves

    the gain of the weights <w, w'> / <w, w>    by about  s / (sqrt(12) |w|)     (0.23 % or less with 8 bits)
    the gain of the whole layer                 by that over sqrt(channels), less than 0.15 % on the networks measured

so a layer that is 0.8 % off is off for another reason, and a channel that is off by six times the first figure as well.
Measured limit: 2 % in the whole layer is found in every layer tried; 2 % in a single channel is found where the weights
of both models can be compared (not behind a batch norm that was folded) and the channel's weights
have a norm of 87 steps or more, as every channel has whose largest code is near 127.
Fine-tuned weights differ by design: align such a model with its own float form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roadworthy.check.cut import Harmless
from roadworthy.check.moments import Centred, Coverage, Error, Fit, Moments, channel_axis
from roadworthy.check.pairing import Match, Weights
from roadworthy.model.task import Task

GAIN_LIMIT = 0.008
"""A gain farther from 1 than this is no rounding of 8-bit weights."""
CHANNEL_SIGMAS = 6.0
SHIFT_LIMIT = 0.12
"""Median over the channels of |mean shift| / standard deviation; rounding without bias correction reaches 0.03."""
CHANNEL_SHIFT_LIMIT = 0.6
"""The same for a single channel; rounding without bias correction reaches 0.25."""
CORRELATION_LIMIT = 0.9
EXACT_LIMIT_DB = 50.0
"""A node that nothing rounds agrees to float32 precision; half precision still passes."""
LINEAR_LIMIT_DB = 10.0
WIDE_LIMIT, WIDE_LIMIT_STEADY, WIDE_LIMIT_FEW = 1 / 10, 1 / 8, 1 / 20
"""Stale when less of the range than this is ever used: in general; where the images agree on the peak within STEADY;
and on fewer than FEW images, where an encoding measured on many may well reach farther."""
STEADY, FEW = 1.5, 4
COARSE_LIMIT, COARSE_DB = 1 / 5, 20.0
"""Stale also when less than this is used and rounding alone leaves less than this SQNR."""
CLIP_SPAN, CLIP_TO_ROUNDING, CLIP_DB = 1.8, 20.0, 15.0
"""Stale when values reach this much beyond the range (or the SQNR is this low) and clipping outweighs rounding so."""


@dataclass(frozen=True)
class Finding:
    """One fault.

    kind: "input-contract", "decode-contract", "scale", "shift", "permuted", "stale-encoding" or "other".
    where: the layer (or the field of the contract).   text: one sentence.   output: the value, "" for a contract.
    severity: the error that it makes there, relative to the signal (L2); a contract counts as infinite.
    """

    kind: str
    where: str
    text: str
    output: str = ""
    severity: float = math.inf


@dataclass(frozen=True)
class Coding:
    """What a's tensor loses in b's codes.

    error: of the coded value.   clipped_share: fraction of values outside the range by more than half a step.
    used: span of the values seen (and zero) over the span of the codes.   lo, hi: the range of the codes.
    The last four are nan where the parameters of the pair are not constants.
    """

    error: Error
    clipped_share: float
    used: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Tensor:
    """One matched value.

    name: in a.   where: the layer or node that makes it.   op, shape: of the value.   inner: inside a layer.
    accumulated, local, compute, encoding: see `align`; local and compute are None for the network's input, encoding is
    None where b has no codes for the value.
    """

    name: str
    where: str
    op: str
    shape: tuple[int, ...]
    inner: bool
    accumulated: Error
    local: Error | None
    compute: Error | None
    encoding: Coding | None

    @property
    def own_sqnr_db(self) -> float:
        """The lower of the local and the encoding SQNR: what is lost right here."""
        figures = [e for e in (self.local, self.encoding.error if self.encoding else None) if e is not None]
        return min(e.sqnr_db for e in figures)


class Track:
    """The running sums of one match.   rounded: activations are rounded inside b's layer, beyond those it reads."""

    def __init__(self, match: Match, weights: Weights | None, rounded: bool) -> None:
        self.match, self.weights, self.rounded = match, weights, rounded
        self.accumulated, self.local, self.compute, self.encoding = Moments(), Moments(), Moments(), Moments()
        c = match.codes
        self.coverage = None if c is None else Coverage(c.lo, c.hi, c.step)

    def add(
        self,
        value: NDArray,
        free: NDArray,
        reference: NDArray,
        made: NDArray | None,
        shadow: NDArray | None,
        coded: NDArray | None,
    ) -> None:
        """One image: a's value; b's free one; what b's local result is held against, and that result; the shadow; and
        a's value through b's codes."""
        axis = channel_axis(self.match.shape)
        original = Centred(value, axis)
        self.accumulated.add(original, free)
        if made is not None:
            self.local.add(original if reference is value else Centred(reference, axis), made)
            if shadow is not None:
                self.compute.add(Centred(shadow, axis), made)
        if coded is not None:
            self.encoding.add(original, coded)
            if self.coverage is not None:
                self.coverage.add(value)

    @property
    def own(self) -> Moments:
        """What the layer itself did: against the shadow, or against a's value where that is the same."""
        return self.compute if self.compute.n or not self.compute.finite else self.local

    def report(self) -> Tensor:
        m, c = self.match, self.coverage
        coding = None
        if m.coded is not None and c is not None:
            coding = Coding(self.encoding.error(), c.share, c.used, float(c.lo.min()), float(c.hi.max()))
        elif m.coded is not None:
            coding = Coding(self.encoding.error(), *[math.nan] * 4)
        local, own = (None, None) if m.is_input else (self.local.error(), self.own.error())
        return Tensor(m.name, m.where, m.op, m.shape, m.inner, self.accumulated.error(), local, own, coding)


def examine(
    tracks: Sequence[Track],
    task_a: Task | None,
    task_b: Task | None,
    harmless: Harmless = lambda name, least, most: False,
) -> tuple[Finding, ...]:
    """All findings, worst first; contracts before tensors.   harmless: see `cut.harmless_cuts`."""
    found: list[Finding] = []
    if task_a is not None and task_b is not None:
        for line in task_a.differences(task_b):
            kind = "input-contract" if line.startswith("preprocess.") else "decode-contract"
            found.append(Finding(kind, line.split(":")[0], line))
    spans = _shared_spans(tracks)
    for track in tracks:
        computed = None if track.match.is_input else _computed(track)
        encoded = _encoded(track, spans)
        c = track.coverage
        if encoded is not None and encoded.kind == "stale-encoding" and c is not None and c.share > 0:
            encoded = None if harmless(track.match.name, c.least, c.most) else encoded
        found.extend(f for f in (computed, encoded) if f is not None)
    return tuple(sorted(found, key=lambda f: -f.severity))


def _percent(gain: float) -> str:
    return f"{abs(gain - 1) * 100:.1f} % too {'large' if gain > 1 else 'small'}"


def _named(track: Track) -> str:
    m = track.match
    return f"the output of {m.where}" if not m.inner else f"the result of {m.where} before its activation"


def _computed(track: Track) -> Finding | None:
    """A fault of weights, bias or attributes."""
    m, error = track.match, track.own.error()
    if not error.finite:
        return Finding("other", m.where, f"{_named(track)} ({m.name}) overflows: NaN or infinite", m.name, math.inf)
    if not m.linear and error.sqnr_db > (LINEAR_LIMIT_DB if track.rounded else EXACT_LIMIT_DB):
        return None

    def finding(kind: str, text: str) -> Finding:
        return Finding(kind, m.where, text, m.name, error.relative_l2)

    if track.weights is not None:
        text = _permuted(track.weights, m.where)
        if text is not None:
            return finding("permuted", text)
    fit = track.own.fit()
    if not fit.known.any():
        fit = track.own.pooled().fit()
    lost = np.flatnonzero(fit.known & (fit.correlation < CORRELATION_LIMIT)) if fit.count >= 16 else np.empty(0, int)
    if len(lost):
        partners = _exchanged(fit, lost)
        if partners is not None:
            return finding("permuted", f"channels {partners[0]} and {partners[1]} of {_named(track)} are exchanged")
        channels = _listed(lost, len(fit.known))
        return finding("other", f"{_named(track)} does not follow the original in {channels}")
    return _gain(track, fit, finding) or _shift(track, fit, finding) or _rest(track, error, finding)


Report = Callable[[str, str], Finding]
"""(kind, text) -> the finding at the place that is being looked at."""


def _rest(track: Track, error: Error, finding: Report) -> Finding | None:
    limit = LINEAR_LIMIT_DB if track.match.linear or track.rounded else EXACT_LIMIT_DB
    if error.sqnr_db > limit:
        return None
    return finding(
        "other",
        f"{track.match.where} ({track.match.op}) computes something else than the original from the same inputs:"
        f" {error.sqnr_db:.1f} dB",
    )


def _gain(track: Track, fit: Fit, finding: Report) -> Finding | None:
    """The whole layer, by the median slope of its channels; single channels, by their weights."""
    m = track.match
    slopes = fit.slope[fit.known]
    if len(slopes):
        middle = float(np.median(slopes))
        if len(slopes) >= 8:
            spread = 1.4826 * float(np.median(np.abs(slopes - middle)))
        else:
            # Rounding that points along the signal cannot exceed what rounding leaves beside it by much.
            spread = float(np.median(fit.residual[fit.known] / fit.std[fit.known]))
        if abs(middle - 1) > max(GAIN_LIMIT, 5 * 1.2533 * spread / math.sqrt(len(slopes))):
            why = "a weight scale is off" if m.linear else "a constant or an attribute is off"
            return finding("scale", f"{_named(track)} is {_percent(middle)} in every channel: {why}")
    if track.weights is not None:
        gain, sigma = track.weights.gains()
        off = np.abs(gain - 1)
        wrong = np.flatnonzero(off > np.maximum(GAIN_LIMIT, CHANNEL_SIGMAS * sigma))
        if len(wrong):
            worst = int(wrong[np.argmax(off[wrong])])
            more = "" if len(wrong) == 1 else f" (and {len(wrong) - 1} more)"
            return finding(
                "scale",
                f"channel {worst}{more} of {_named(track)} is {_percent(float(gain[worst]))}: the weights of this"
                " channel have a wrong scale",
            )
    return None


def _shift(track: Track, fit: Fit, finding: Report) -> Finding | None:
    m = track.match
    relative = np.abs(fit.shift[fit.known]) / np.maximum(fit.std[fit.known], 1e-12)
    weights = track.weights
    bias = None if weights is None else weights.bias
    if weights is not None and bias is not None and len(bias) == len(fit.shift):
        power = float(bias @ bias)
        part = float(fit.shift @ bias) / max(power, 1e-30)
        left = fit.shift - part * bias
        # Dropped: what is missing on average is the bias itself, in every channel.
        follows = len(bias) >= 4 and float(left @ left) < 0.1 * float(fit.shift @ fit.shift)
        if power > 0 and abs(part + 1) < 0.3 and (follows or weights.bias_gone):
            return finding(
                "shift", f"{_named(track)} is shifted by minus its bias in every channel: the bias is missing"
            )
    if not len(relative):
        return None
    middle = float(np.median(relative))
    if middle > SHIFT_LIMIT:
        return finding(
            "shift", f"the mean of {_named(track)} is off by {middle:.2f} standard deviations in half of its channels"
        )
    known = np.flatnonzero(fit.known)
    worst = int(np.argmax(relative))
    if relative[worst] > CHANNEL_SHIFT_LIMIT and m.linear and fit.count >= 16:
        return finding(
            "shift",
            f"the mean of channel {known[worst]} of {_named(track)} is off by {relative[worst]:.2f} standard"
            " deviations: its bias is wrong",
        )
    return None


def _permuted(weights: Weights, where: str) -> str | None:
    for axis, side in ((weights.axis, "output"), (weights.input_axis, "input")):
        pair = None if axis is None else weights.exchanged(axis)
        if pair is not None:
            return f"{side} channels {pair[0]} and {pair[1]} of the weights of {where} are exchanged"
    return None


def _exchanged(fit: Fit, lost: NDArray) -> tuple[int, int] | None:
    """Two channels that have each other's mean and deviation."""
    if len(lost) != 2:
        return None
    c, d = (int(k) for k in lost)
    scale = 0.1 * max(fit.std[c], fit.std[d])
    crossed = [fit.mean_y[c] - fit.mean[d], fit.mean_y[d] - fit.mean[c], fit.std_y[c] - fit.std[d],
               fit.std_y[d] - fit.std[c]]  # fmt: skip
    return (c, d) if max(map(abs, crossed)) < scale else None


def _listed(channels: NDArray, total: int) -> str:
    if len(channels) == total:
        return "any channel"
    first = ", ".join(str(c) for c in channels[:4])
    return f"channel{'s' if len(channels) > 1 else ''} {first}{' and others' if len(channels) > 4 else ''}"


def _key(track: Track) -> tuple[bytes, bytes] | None:
    c = track.match.codes
    return None if c is None else (c.scale.tobytes(), c.zero_point.tobytes())


def _shared_spans(tracks: Sequence[Track]) -> dict[tuple[bytes, bytes] | None, float]:
    """Values that share one scale (through a Concat or a pool) are judged together: the widest use of each scale."""
    spans: dict[tuple[bytes, bytes] | None, float] = {}
    for track in tracks:
        if track.coverage is not None:
            key = _key(track)
            spans[key] = max(spans.get(key, 0.0), track.coverage.used)
    return spans


def _encoded(track: Track, spans: dict[tuple[bytes, bytes] | None, float]) -> Finding | None:
    """A fault of the Q/DQ pair behind a value."""
    m, c, coverage = track.match, track.match.codes, track.coverage
    if m.coded is None:
        return None
    error = track.encoding.error()
    called = f"the codes of {m.where if not m.is_input else 'the input ' + m.name} ({m.name})"
    if not error.finite:
        return Finding("other", m.where, f"{called} are read as NaN or infinite", m.name)
    if c is None or coverage is None:
        return None

    def finding(kind: str, text: str) -> Finding:
        return Finding(kind, m.where, text, m.name, error.relative_l2)

    if c.scale.shape != c.read_scale.shape or not np.array_equal(c.scale, c.read_scale):
        ratio = float(np.median(c.read_scale) / np.median(c.scale))
        return finding(
            "scale",
            f"{called} are written with scale {float(np.median(c.scale)):.5g} and read with"
            f" {float(np.median(c.read_scale)):.5g}: every reader gets values {_percent(ratio)}",
        )
    if not np.array_equal(c.zero_point, c.read_zero_point):
        return finding(
            "shift", f"{called} are written and read with different zero points: every reader gets them shifted"
        )
    stale = "the encoding is stale, or was measured on other images"
    if coverage.clip_to_rounding > CLIP_TO_ROUNDING and (coverage.used > CLIP_SPAN or error.sqnr_db < CLIP_DB):
        return finding(
            "stale-encoding",
            f"{called} cover {float(c.lo.min()):.4g} to {float(c.hi.max()):.4g}, but values reach from"
            f" {coverage.least:.4g} to {coverage.most:.4g} and {100 * coverage.share:.2g} % are clipped: {stale}",
        )
    limit = WIDE_LIMIT_STEADY if coverage.peak_ratio < STEADY else WIDE_LIMIT
    limit = COARSE_LIMIT if error.sqnr_db < COARSE_DB else limit
    if 0.0 < spans[_key(track)] < (WIDE_LIMIT_FEW if coverage.images < FEW else limit):
        return finding(
            "stale-encoding",
            f"{called} cover {float(c.lo.min()):.4g} to {float(c.hi.max()):.4g}, but values only reach from"
            f" {coverage.least:.4g} to {coverage.most:.4g}: {stale}",
        )
    return None


def first_divergence(tensors: Sequence[Tensor], findings: Sequence[Finding]) -> tuple[str | None, str]:
    """The layer of the first value, in execution order, that has a finding or whose own error stands out.

    An error stands out when its SQNR lies 12 dB and 4 robust deviations (1.4826 MAD) below the median of all values
    that lose anything, and below 30 dB; or below 10 dB in any case.   Returns the layer, or None, and a sentence.
    """
    faults = {f.output: f for f in reversed(findings) if f.output}
    figures = np.array([t.own_sqnr_db for t in tensors])
    lossy = figures[figures < 100.0]
    limit = 10.0
    if len(lossy):
        middle = float(np.median(lossy))
        spread = 1.4826 * float(np.median(np.abs(lossy - middle)))
        limit = max(10.0, min(30.0, middle - max(12.0, 4 * spread)))
    for tensor, own in zip(tensors, figures):
        if tensor.name in faults:
            return tensor.where, f"first divergence at {tensor.where}: {faults[tensor.name].text}"
        if own < limit:
            return tensor.where, (
                f"first divergence at {tensor.where} ({tensor.name}): {own:.1f} dB on its own,"
                f" where the median is {float(np.median(lossy)):.1f} dB"
            )
    return None, "no divergence: the error accumulates evenly" if len(lossy) else "no divergence: the two are equal"
