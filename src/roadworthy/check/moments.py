"""Streaming comparison of two tensors, channel by channel, in memory that does not grow with the images.

    d = y - x        Cxx = sum (x - mean x)^2        Cxd = sum (x - mean x) d        Cdd = sum (d - mean d)^2
    gain = 1 + sum x d / sum x^2      slope = 1 + Cxd / Cxx      residual = Cdd - Cxd^2 / Cxx

Everything is kept in terms of the difference, so that a gain of 1.000001 is not lost in float32 sums; the centred sums
of two images are merged by the pairwise update of Chan, Golub and LeVeque ("Updating Formulae and a Pairwise Algorithm
for Computing Sample Variances", 1979).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXACT_DB = 150.0
"""What a SQNR is reported as where nothing differs: float32 arithmetic itself ends there."""
_TINY = 1e-30


@dataclass(frozen=True)
class Error:
    """How far y is from x, over all images.

    sqnr_db: 10 log10(sum x^2 / sum (y - x)^2), at most EXACT_DB.   cosine: of the angle between x and y.
    max_error: largest |y - x|.   relative_l2: |y - x| / |x|.   gain: least-squares slope <x, y> / <x, x>.
    worst_gain: the gain of the channel where it is farthest from 1.   worst_channel: its index; channels that carry
        less than a thousandth of the mean signal are passed over.
    mean_shift: mean of y - x, as a fraction of the root mean square of x.   finite: false where y is NaN or infinite.
    """

    sqnr_db: float
    cosine: float
    max_error: float
    relative_l2: float
    gain: float
    worst_gain: float
    worst_channel: int
    mean_shift: float
    finite: bool = True


@dataclass(frozen=True, eq=False)
class Fit:
    """The regression y = slope * x + intercept of every channel; all arrays are (C,) float64.

    slope: 1 where it cannot be told.   shift: mean of y - x.   mean, std: of x.   mean_y, std_y: of y.
    residual: root mean square of what the line leaves over.   correlation: of x and y.   count: values per channel.
    known: channels in which x varies enough for all of this to mean something.
    """

    slope: NDArray[np.float64]
    shift: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    mean_y: NDArray[np.float64]
    std_y: NDArray[np.float64]
    residual: NDArray[np.float64]
    correlation: NDArray[np.float64]
    known: NDArray[np.bool_]
    count: int


def channel_rows(x: NDArray, axis: int | None) -> NDArray:
    """(C, N) with the channels first; (1, N) when axis is None."""
    if axis is None or x.ndim == 0:
        return x.reshape(1, -1)
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """1 for N,C,H,W and N,C,D,H,W; the last axis of matrices; none for vectors."""
    return 1 if len(shape) >= 4 else (len(shape) - 1 if len(shape) >= 2 else None)


class Centred:
    """One tensor made ready to be compared with several others.

    value: as it is.   axis: of its channels, None for one.   rows: (C, N) less its mean.   mean, power: (C,) of rows.
    """

    def __init__(self, value: NDArray, axis: int | None) -> None:
        self.value, self.axis = value, axis
        rows = channel_rows(value, axis)
        mean = rows.mean(1)
        self.rows = rows - mean[:, None]
        self.mean = mean.astype(np.float64)
        self.power = np.einsum("cn,cn->c", self.rows, self.rows).astype(np.float64)


class Moments:
    """Sums of one pair of tensors over images."""

    def __init__(self) -> None:
        self.n = 0  # values per channel
        self.max_error = 0.0
        self.finite = True
        self.mx = self.md = self.cxx = self.cxd = self.cdd = np.zeros(1)

    def add(self, x: Centred, y: NDArray) -> None:
        """One more image; y of x's shape. What overflows float32, squared, counts as not finite."""
        with np.errstate(over="ignore", invalid="ignore"):
            self._add(x, y)

    def _add(self, x: Centred, y: NDArray) -> None:
        d = y - x.value
        largest = float(max(d.max(), -d.min())) if d.size else 0.0
        if not np.isfinite(largest):
            self.finite = False
            return
        self.max_error = max(self.max_error, largest)
        n, mx, cxx = x.rows.shape[1], x.mean, x.power
        if largest == 0.0:
            md = cxd = cdd = np.zeros(len(mx))
        else:
            d2 = channel_rows(d, x.axis)
            md = d2.mean(1).astype(np.float64)
            cxd = np.einsum("cn,cn->c", x.rows, d2).astype(np.float64)  # x.rows are centred, so d need not be
            cdd = np.maximum(np.einsum("cn,cn->c", d2, d2).astype(np.float64) - n * md * md, 0.0)
            if not np.isfinite(md.sum() + cxd.sum() + cdd.sum()):
                self.finite = False
                return
        if self.n == 0:
            self.mx, self.md, self.cxx, self.cxd, self.cdd, self.n = mx, md, cxx, cxd, cdd, n
            return
        dx, dd, weight = mx - self.mx, md - self.md, self.n * n / (self.n + n)
        self.cxx = self.cxx + cxx + dx * dx * weight
        self.cxd = self.cxd + cxd + dx * dd * weight
        self.cdd = self.cdd + cdd + dd * dd * weight
        self.mx = self.mx + dx * (n / (self.n + n))
        self.md = self.md + dd * (n / (self.n + n))
        self.n += n

    def error(self) -> Error:
        xx = self.cxx + self.n * self.mx**2
        xd = self.cxd + self.n * self.mx * self.md
        dd = self.cdd + self.n * self.md**2
        signal, cross, noise = float(xx.sum()), float(xd.sum()), float(dd.sum())
        if not self.finite:
            nan = float("nan")
            return Error(0.0, 0.0, float("inf"), float("inf"), nan, nan, 0, nan, False)
        total = max(self.n * len(xx), 1)
        loud = xx > 1e-3 * xx.mean()
        gains = np.where(loud, 1.0 + xd / np.maximum(xx, _TINY), 1.0)
        worst = int(np.argmax(np.abs(gains - 1.0)))
        yy = signal + 2 * cross + noise
        # A signal of zero that stays zero is exact, not undefined.
        cosine = 1.0 if noise == 0 else (signal + cross) / max(np.sqrt(signal * max(yy, 0.0)), _TINY)
        return Error(
            sqnr_db=_db(signal, noise),
            cosine=float(np.clip(cosine, -1.0, 1.0)),
            max_error=self.max_error,
            relative_l2=float(np.sqrt(noise / max(signal, _TINY))) if noise else 0.0,
            gain=1.0 + cross / signal if signal > _TINY else 1.0,
            worst_gain=float(gains[worst]),
            worst_channel=worst,
            mean_shift=float(self.md.mean() / max(np.sqrt(signal / total), _TINY)) if noise else 0.0,
        )

    def pooled(self) -> Moments:
        """The same sums with all channels taken as one, for tensors with too few values per channel."""
        one = Moments()
        n, channels = self.n, len(self.mx)
        mx, md = self.mx.mean(), self.md.mean()
        dx, dd = self.mx - mx, self.md - md
        one.n, one.mx, one.md = n * channels, np.array([mx]), np.array([md])
        one.cxx = np.array([(self.cxx + n * dx * dx).sum()])
        one.cxd = np.array([(self.cxd + n * dx * dd).sum()])
        one.cdd = np.array([(self.cdd + n * dd * dd).sum()])
        return one

    def fit(self) -> Fit:
        """The regression of every channel."""
        n = max(self.n, 1)
        std = np.sqrt(self.cxx / n)
        power = np.sqrt(np.mean(self.cxx / n + self.mx**2))
        known = (std > 1e-4 * power) & (self.n >= 3) & (std > 1e-12)
        cxx = np.where(known, self.cxx, 1.0)
        cyy = np.maximum(self.cxx + 2 * self.cxd + self.cdd, 0.0)
        residual = np.maximum(self.cdd - self.cxd**2 / cxx, 0.0)
        correlation = np.where(known, (self.cxx + self.cxd) / np.sqrt(np.maximum(cxx * cyy, _TINY)), 1.0)
        return Fit(
            slope=np.where(known, 1.0 + self.cxd / cxx, 1.0),
            shift=self.md.copy(),
            mean=self.mx.copy(),
            std=std,
            mean_y=self.mx + self.md,
            std_y=np.sqrt(cyy / n),
            residual=np.sqrt(residual / n),
            correlation=correlation,
            known=known,
            count=self.n,
        )


def _db(signal: float, noise: float) -> float:
    if noise <= 0.0:
        return EXACT_DB
    return float(np.clip(10 * np.log10(max(signal, _TINY) / noise), -EXACT_DB, EXACT_DB))


class Coverage:
    """How the values of a tensor lie in the range of their codes.   lo, hi: the range; scalars or per channel."""

    def __init__(self, lo: NDArray, hi: NDArray, step: NDArray) -> None:
        self.lo, self.hi, self.step = lo, hi, step
        self.count = self.clipped = 0
        self.excess = 0.0
        self.least, self.most = 0.0, 0.0
        self.images = 0
        self._peaks = (np.inf, 0.0)  # smallest and largest span of one image

    def add(self, x: NDArray) -> None:
        """One more image."""
        self.count += x.size
        least, most = float(x.min()), float(x.max())
        if not (np.isfinite(least) and np.isfinite(most)):
            return
        self.images += 1
        self.least, self.most = min(self.least, least), max(self.most, most)
        span = max(most, 0.0) - min(least, 0.0)
        self._peaks = (min(self._peaks[0], span), max(self._peaks[1], span))
        if least >= float(np.max(self.lo)) and most <= float(np.min(self.hi)):
            return
        beyond = x - np.clip(x, self.lo, self.hi)
        self.excess += float(np.einsum("i,i->", beyond.reshape(-1), beyond.reshape(-1)))
        self.clipped += int(np.count_nonzero(np.abs(beyond) > 0.5 * self.step))

    @property
    def share(self) -> float:
        """Fraction of the values that lie outside the range by more than half a step."""
        return self.clipped / max(self.count, 1)

    @property
    def used(self) -> float:
        """The span of the values seen (with zero) over the span of the range; above 1 where it clips."""
        return (self.most - self.least) / max(float(np.max(self.hi) - np.min(self.lo)), _TINY)

    @property
    def peak_ratio(self) -> float:
        """Largest over smallest span of a single image: near 1 where a few images tell the range."""
        return self._peaks[1] / max(self._peaks[0], _TINY)

    @property
    def clip_to_rounding(self) -> float:
        """Noise power of clipping over step^2 / 12, the noise power of rounding."""
        return self.excess / max(self.count, 1) / max(float(np.mean(self.step**2)) / 12, _TINY)
