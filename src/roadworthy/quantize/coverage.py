"""Which images to calibrate with: those that cover the ranges, each chosen for what it adds to the ones before it.

    lo[i, t], hi[i, t]   extremes of tensor t on image i            LO[t], HI[t]   over all images, zero included
    covered(S) = mean over t of  (max over S of hi - min over S of lo) / (HI - LO)         0..1

The greedy choice by covered() is the standard one for sums that saturate: it reaches at least 1 - 1/e of what any
choice of as many images could (Nemhauser, Wolsey, Fisher, "An analysis of approximations for maximizing submodular set
functions", 1978). Two numbers for each tensor are kept of an image. (Reductions inside the network cost 2.5 times as
much as reading every value and looking at it here, and pass over a NaN.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import InputError
from roadworthy.model.model import Model
from roadworthy.quantize.calibrate import tap_readers


def extremes(
    model: Model,
    values: Sequence[str],
    tensors: Iterable[NDArray],
    threads: int = 0,
    progress: Callable[[int], None] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Least and largest number of every value on every image, both (images, values).

    tensors: float32 inputs of the model, one image each; consumed once and not kept.
    Raises InputError when there is none, or when a value is not finite (naming it and the image).
    """
    readers = tap_readers(model, [v for v in values if v != model.input_name], threads)
    lows: list[NDArray[np.float32]] = []
    highs: list[NDArray[np.float32]] = []
    for tensor in tensors:
        tensor = np.ascontiguousarray(tensor, np.float32)
        found = {model.input_name: (tensor.min(), tensor.max())}
        for reader in readers:
            found.update({name: (value.min(), value.max()) for name, value in reader.read(tensor).items()})
        row = np.array([found[name] for name in values], np.float32)
        bad = np.flatnonzero(~np.isfinite(row).all(1))
        if len(bad):
            raise InputError(
                f"on calibration image {len(lows) + 1} the tensor {values[bad[0]]!r} of {model.source} becomes NaN or"
                " infinite; check the preprocessing, or the model"
            )
        lows.append(row[:, 0])
        highs.append(row[:, 1])
        if progress:
            progress(len(lows))
    if not lows:
        raise InputError("there are no images to calibrate with; hand in a folder that holds some")
    return np.stack(lows), np.stack(highs)


def choose(lo: NDArray, hi: NDArray, count: int) -> tuple[list[int], NDArray[np.float64]]:
    """Indices of at most `count` images, best first, and what share of the ranges the first 1, 2, ... of them cover.

    lo, hi: (images, values).   Of equally good images the first is taken, so the choice depends on their order alone.
    """
    lo, hi = np.minimum(lo, 0.0).astype(np.float64), np.maximum(hi, 0.0).astype(np.float64)
    span = np.maximum(hi.max(0) - lo.min(0), 1e-30)
    up, down = hi / span, -lo / span
    have_up, have_down = np.zeros(lo.shape[1]), np.zeros(lo.shape[1])
    chosen: list[int] = []
    covered = []
    left = np.ones(len(lo), bool)
    for _ in range(min(count, len(lo))):
        total = (np.maximum(up, have_up) + np.maximum(down, have_down)).mean(1)
        best = int(np.argmax(np.where(left, total, -1.0)))
        chosen.append(best)
        left[best] = False
        have_up, have_down = np.maximum(have_up, up[best]), np.maximum(have_down, down[best])
        covered.append(float((have_up + have_down).mean()))
    return chosen, np.array(covered)


def coverage(lo: NDArray, hi: NDArray, indices: Sequence[int]) -> float:
    """Share of the ranges of all images that the named ones cover, 0..1."""
    lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
    span = np.maximum(hi.max(0) - lo.min(0), 1e-30)
    some = list(indices)
    return float(((hi[some].max(0) - lo[some].min(0)) / span).mean())
