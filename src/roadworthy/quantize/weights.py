"""Weights: symmetric codes, one scale per output channel, narrow range (so that -x is exact and int16 sums are safe).

scale[c] = clip[c] / qmax        clip[c] = f * max |w[c]|, f = 1 (minmax) or the f of least squared error (mse)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from roadworthy.model.encoding import Encoding, QuantSpec

_FACTORS = np.linspace(1.0, 0.6, 33)
_TINY = 1e-12
MAX_BIAS_CODE = 2.0**30


def weight_encoding(weight: NDArray, spec: QuantSpec) -> Encoding:
    """Encoding of a weight tensor along spec.axis (None: one scale for all).

    Raises ValueError when the spec is not symmetric and signed.
    """
    if not (spec.symmetric and spec.signed):
        raise ValueError("weights are quantized symmetric and signed")
    w = np.asarray(weight, np.float32)
    rows = w.reshape(1, -1) if spec.axis is None else np.moveaxis(w, spec.axis, 0).reshape(w.shape[spec.axis], -1)
    qmax = (1 << (spec.bits - 1)) - 1
    peak = np.maximum(np.abs(rows).max(1), _TINY)
    clip = peak.copy()
    if spec.observer == "mse" and spec.bits <= 8:
        best = np.full(len(rows), np.inf)
        for f in _FACTORS:
            scale = (peak * f / qmax)[:, None]
            error = ((np.clip(np.rint(rows / scale), -qmax, qmax) * scale - rows) ** 2).sum(1)
            better = error < best
            best = np.where(better, error, best)
            clip = np.where(better, peak * f, clip)
    scale = (clip / qmax).astype(np.float32)
    if spec.axis is None:
        return Encoding(scale[0], np.zeros((), np.int64), spec.bits, True)
    return Encoding(scale, np.zeros(len(scale), np.int64), spec.bits, True, spec.axis)


def widen_for_bias(encoding: Encoding, bias: NDArray | None, input_scale: float | NDArray) -> Encoding:
    """Raise the scales of channels whose bias would not fit int32 at scale input_scale * weight scale.

    input_scale: one, or (a depthwise layer) one per channel.   It happens where a channel's weights are almost zero:
    the codes lose nothing that matters there.
    """
    if bias is None:
        return encoding
    needed = np.abs(np.asarray(bias, np.float64)) / (input_scale * MAX_BIAS_CODE)
    if encoding.axis is None:
        needed = needed.max()
    scale = np.maximum(encoding.scale, needed.astype(np.float32))
    return encoding if np.array_equal(scale, encoding.scale) else replace(encoding, scale=scale)
