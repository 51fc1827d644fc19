"""What calibration remembers of every channel of a tensor: extremes and a small histogram each.

As in `statistics.py`, a channel's histogram doubles its range when a value falls outside and adds its bins in pairs, so
that one pass is enough. All channels lie in one array (C, CHANNEL_BINS) of int32: 256 kB for 256 channels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

CHANNEL_BINS = 256
COUNTED_PER_CHANNEL = 512
"""Most values of one channel and tensor that enter its histogram."""


class ChannelHistograms:
    """Running extremes and histograms of C channels.

    lo, hi: (C,) exact extremes.   hist: (C, CHANNEL_BINS) counts over hist_lo..hist_hi, each (C,), of an even sample.
    """

    def __init__(self) -> None:
        self.lo: NDArray[np.float64] = np.zeros(0)
        self.hi: NDArray[np.float64] = np.zeros(0)
        self.hist: NDArray[np.int32] = np.zeros((0, CHANNEL_BINS), np.int32)
        self.hist_lo: NDArray[np.float64] = np.zeros(0)
        self.hist_hi: NDArray[np.float64] = np.zeros(0)
        self.seen = 0

    def update(self, rows: NDArray[np.float32]) -> None:
        """rows: (C, values), all finite."""
        lo, hi = rows.min(1).astype(np.float64), rows.max(1).astype(np.float64)
        if not self.seen:
            # Padded by a share of the whole tensor's span: a channel that starts constant does not start from nothing.
            pad = np.maximum((hi - lo) * 1e-6, 1e-12 + 1e-4 * max(hi.max() - lo.min(), np.abs(hi).max()))
            self.lo, self.hi, self.hist_lo, self.hist_hi = lo, hi, lo - pad, hi + pad
            self.hist = np.zeros((len(lo), CHANNEL_BINS), np.int32)
        self.lo, self.hi = np.minimum(self.lo, lo), np.maximum(self.hi, hi)
        self._grow()
        step = -(-rows.shape[1] // COUNTED_PER_CHANNEL)
        while math.gcd(step, rows.shape[1]) > 1:  # as in statistics.py: every column is met
            step += 1
        sample = rows[:, self.seen % step :: step]
        self.seen += 1
        width = (self.hist_hi - self.hist_lo) / CHANNEL_BINS
        at = ((sample - self.hist_lo[:, None]) / width[:, None]).astype(np.int64)
        np.clip(at, 0, CHANNEL_BINS - 1, out=at)
        at += np.arange(len(rows))[:, None] * CHANNEL_BINS
        self.hist += np.bincount(at.reshape(-1), minlength=self.hist.size).reshape(self.hist.shape).astype(np.int32)

    def _grow(self) -> None:
        while True:
            below, above = self.lo <= self.hist_lo, self.hi >= self.hist_hi
            grow = below | above
            if not grow.any():
                return
            down, up = below, above & ~below
            pairs = self.hist.reshape(len(self.hist), -1, 2).sum(2, dtype=np.int32)
            half = CHANNEL_BINS // 2
            self.hist[grow] = 0
            self.hist[down, half:] = pairs[down]
            self.hist[up, :half] = pairs[up]
            span = self.hist_hi - self.hist_lo
            self.hist_lo = np.where(down, self.hist_lo - span, self.hist_lo)
            self.hist_hi = np.where(up, self.hist_hi + span, self.hist_hi)

    def to_arrays(self) -> dict[str, NDArray]:
        """Everything gathered; the ranges as (C, 4) float64: lo, hi, hist_lo, hist_hi."""
        ranges = np.stack([self.lo, self.hi, self.hist_lo, self.hist_hi], 1)
        return {"channel_ranges": ranges, "channel_hist": self.hist, "channel_seen": np.array([self.seen], np.int64)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray]) -> ChannelHistograms:
        """The way back from `to_arrays`."""
        made = cls()
        made.lo, made.hi, made.hist_lo, made.hist_hi = (np.ascontiguousarray(c) for c in arrays["channel_ranges"].T)
        made.hist, made.seen = arrays["channel_hist"], int(arrays["channel_seen"][0])
        return made
