"""What calibration remembers of a tensor: extremes and a histogram, in memory that does not grow with the images.

The histogram starts with the range of the first batch. When a value falls outside, the range doubles and neighbouring
bins are added in pairs, so that one pass is enough and no count is lost. Of a large tensor the histogram counts an even
sample; extremes and means are those of all values. Every observer reads the same statistics.
`pack` and `unpack` carry a table of them, finished or not, into a file and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from roadworthy.quantize.channels import ChannelHistograms

BINS = 2048
COUNTED = 1 << 14
"""Most values of one tensor that enter the histogram: about 10 % more time than the extremes take."""


class Statistics:
    """Running extremes and histogram of one tensor.

    lo, hi: exact extremes seen.   count: number of values seen.   hist: (BINS,) float64 counts over hist_lo..hist_hi
    of at most COUNTED values of each tensor.
    channel_axis: where given, `channel_mean` follows the mean of every channel along this axis, too.
    channels: where wanted, extremes and histograms of every channel along that axis.
    """

    def __init__(self, channel_axis: int | None = None, histogram: bool = True, per_channel: bool = False) -> None:
        if per_channel and channel_axis is None:
            raise ValueError("statistics per channel need the axis of the channels")
        self.channel_axis = channel_axis
        self.histogram = histogram
        self.channels = ChannelHistograms() if per_channel else None
        self._channel_sum: NDArray[np.float64] | None = None
        self._batches = 0
        self._remembered: dict[Hashable, Any] = {}
        self.lo = np.inf
        self.hi = -np.inf
        self.count = 0
        self.hist: NDArray[np.float64] = np.zeros(BINS)
        self.hist_lo = 0.0
        self.hist_hi = 0.0

    def update(self, x: NDArray) -> None:
        """Add all values of a tensor. Raises ValueError when one is NaN or infinite."""
        self._remembered.clear()
        flat = np.ascontiguousarray(x, np.float32).reshape(-1)
        if not flat.size:
            return
        lo, hi = float(flat.min()), float(flat.max())
        if not (np.isfinite(lo) and np.isfinite(hi)):
            raise ValueError("a value is NaN or infinite")
        if self.channel_axis is not None:
            others = tuple(k for k in range(x.ndim) if k != self.channel_axis % x.ndim)
            mean = x.mean(others, dtype=np.float32).astype(np.float64)
            self._channel_sum = mean if self._channel_sum is None else self._channel_sum + mean
            self._batches += 1
            if self.channels is not None:
                rows = x if x.ndim == 1 else np.moveaxis(x, self.channel_axis, 0)
                self.channels.update(rows.reshape(len(rows), -1))
        if self.histogram:
            self._count(flat, lo, hi)
        self.lo, self.hi, self.count = min(self.lo, lo), max(self.hi, hi), self.count + flat.size

    def _count(self, flat: NDArray[np.float32], lo: float, hi: float) -> None:
        if not self.count:
            pad = max((hi - lo) * 1e-6, 1e-12 + 1e-6 * max(abs(lo), abs(hi)))
            self.hist_lo, self.hist_hi = lo - pad, hi + pad
        while lo <= self.hist_lo or hi >= self.hist_hi:
            self._double(down=lo <= self.hist_lo)
        # A step that shares no factor with the size meets every column; its start moves from image to image.
        step = -(-flat.size // COUNTED)
        while math.gcd(step, flat.size) > 1:
            step += 1
        sample = np.ascontiguousarray(flat[self.count % step :: step])
        # OpenCV's histogram counts float32 in one pass, about ten times faster than np.histogram.
        self.hist += cv2.calcHist([sample], [0], None, [BINS], [self.hist_lo, self.hist_hi]).reshape(-1)

    def remember(self, key: Hashable, compute: Callable[[Statistics, Any], Any]) -> Any:
        """compute(self, key), once: many candidates ask the same statistics for the same encoding."""
        if key not in self._remembered:
            self._remembered[key] = compute(self, key)
        return self._remembered[key]

    def _double(self, down: bool) -> None:
        span = self.hist_hi - self.hist_lo
        pairs = self.hist.reshape(-1, 2).sum(1)
        empty = np.zeros(BINS // 2)
        if down:
            self.hist_lo -= span
            self.hist = np.concatenate([empty, pairs])
        else:
            self.hist_hi += span
            self.hist = np.concatenate([pairs, empty])

    @property
    def channel_mean(self) -> NDArray[np.float64]:
        """(C,) mean of every channel over all images. Raises ValueError when it was not followed."""
        if self._channel_sum is None:
            raise ValueError("channel means were not followed")
        return self._channel_sum / self._batches

    @property
    def centres(self) -> NDArray[np.float64]:
        """(BINS,) the middle of every bin."""
        width = (self.hist_hi - self.hist_lo) / len(self.hist)
        return self.hist_lo + width * (np.arange(len(self.hist), dtype=np.float64) + 0.5)

    def each_channel(self) -> list[Statistics]:
        """The statistics of every channel alone, with CHANNEL_BINS bins. Raises ValueError when not followed."""
        found = self.channels
        if found is None:
            raise ValueError("statistics per channel were not followed")
        made = []
        for c in range(len(found.lo)):
            one = Statistics()
            one.lo, one.hi, one.hist = float(found.lo[c]), float(found.hi[c]), found.hist[c].astype(np.float64)
            one.hist_lo, one.hist_hi = float(found.hist_lo[c]), float(found.hist_hi[c])
            one.count = int(found.hist[c].sum())
            made.append(one)
        return made

    def to_arrays(self) -> dict[str, NDArray]:
        """Everything gathered, as arrays to be kept in a file."""
        arrays = {
            "numbers": np.array([self.lo, self.hi, self.hist_lo, self.hist_hi], np.float64),
            "counts": np.array([self.count, self._batches, int(self.histogram)], np.int64),
            "axis": np.array([] if self.channel_axis is None else [self.channel_axis], np.int64),
            "hist": self.hist,
        }
        if self._channel_sum is not None:
            arrays["channel_sum"] = self._channel_sum
        if self.channels is not None:
            arrays.update(self.channels.to_arrays())
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray]) -> Statistics:
        """The way back from `to_arrays`."""
        made = cls(int(arrays["axis"][0]) if len(arrays["axis"]) else None, bool(arrays["counts"][2]))
        made.lo, made.hi, made.hist_lo, made.hist_hi = (float(v) for v in arrays["numbers"])
        made.count, made._batches = int(arrays["counts"][0]), int(arrays["counts"][1])
        made.hist = arrays["hist"]
        made._channel_sum = arrays.get("channel_sum")
        if "channel_hist" in arrays:
            made.channels = ChannelHistograms.from_arrays(arrays)
        return made


def pack(table: Mapping[str, Statistics]) -> dict[str, NDArray]:
    """A table of statistics as arrays; `unpack` is the way back, and updating may go on behind it."""
    arrays: dict[str, NDArray] = {"names": np.array(list(table), np.str_)}
    for k, s in enumerate(table.values()):
        arrays.update({f"{k}.{name}": value for name, value in s.to_arrays().items()})
    return arrays


def unpack(arrays: Mapping[str, NDArray]) -> dict[str, Statistics]:
    """The way back from `pack`."""
    parts: dict[str, dict[str, NDArray]] = {}
    for key, value in arrays.items():
        number, dot, name = key.partition(".")
        if dot:
            parts.setdefault(number, {})[name] = value
    return {str(name): Statistics.from_arrays(parts[str(k)]) for k, name in enumerate(arrays["names"])}
