"""What calibration remembers of a tensor: extremes and a histogram, in memory that does not grow with the images.

The histogram starts with the range of the first batch. When a value falls outside, the range doubles and neighbouring
bins are added in pairs, so that one pass is enough and no count is lost. Every observer reads the same statistics.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

BINS = 2048


class Statistics:
    """Running extremes and histogram of one tensor.

    lo, hi: exact extremes seen.   count: number of values.   hist: (BINS,) float64 counts over hist_lo..hist_hi.
    """

    def __init__(self) -> None:
        self.lo = np.inf
        self.hi = -np.inf
        self.count = 0
        self.hist: NDArray[np.float64] = np.zeros(BINS)
        self.hist_lo = 0.0
        self.hist_hi = 0.0

    def update(self, x: NDArray) -> None:
        """Add all values of a tensor. Raises ValueError when one is NaN or infinite."""
        flat = np.ascontiguousarray(x, np.float32).reshape(-1)
        if not flat.size:
            return
        lo, hi = float(flat.min()), float(flat.max())
        if not (np.isfinite(lo) and np.isfinite(hi)):
            raise ValueError("a value is NaN or infinite")
        if not self.count:
            pad = max((hi - lo) * 1e-6, 1e-12 + 1e-6 * max(abs(lo), abs(hi)))
            self.hist_lo, self.hist_hi = lo - pad, hi + pad
        self.lo, self.hi, self.count = min(self.lo, lo), max(self.hi, hi), self.count + flat.size
        while lo <= self.hist_lo or hi >= self.hist_hi:
            self._double(down=lo <= self.hist_lo)
        # OpenCV's histogram counts float32 in one pass, about ten times faster than np.histogram. Its counts are
        # float32 and exact up to 2**24, so longer tensors go in pieces.
        for start in range(0, flat.size, 1 << 23):
            piece = flat[start : start + (1 << 23)]
            self.hist += cv2.calcHist([piece], [0], None, [BINS], [self.hist_lo, self.hist_hi]).reshape(-1)

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
    def centres(self) -> NDArray[np.float64]:
        """(BINS,) the middle of every bin."""
        width = (self.hist_hi - self.hist_lo) / BINS
        return self.hist_lo + width * (np.arange(BINS) + 0.5)
