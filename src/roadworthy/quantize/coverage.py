"""Which images to calibrate with: those that cover the ranges, each chosen for what it adds to the ones before it.

    lo[i, t], hi[i, t]   extremes of tensor t on image i            LO[t], HI[t]   over all images, zero included
    covered(S) = mean over t of  (max over S of hi - min over S of lo) / (HI - LO)         0..1

The greedy choice by covered() is the standard one for sums that saturate: it reaches at least 1 - 1/e of what any
choice of as many images could (Nemhauser, Wolsey, Fisher, "An analysis of approximations for maximizing submodular set
functions", 1978). The extremes are found inside the network (ReduceMin, ReduceMax), so an image costs little more than
running it, and two numbers for each tensor are kept of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.model import Model
from roadworthy.run.ort import OrtRunner

_FLOAT = onnx.TensorProto.FLOAT


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
    runner = OrtRunner(_with_extremes(model, values), threads)
    rows = []
    for tensor in tensors:
        found = runner.run({model.input_name: np.ascontiguousarray(tensor, np.float32)})
        rows.append(found["@range/all"])
        rows[-1], sums = rows[-1][: 2 * len(values)], rows[-1][2 * len(values) :]
        bad = np.flatnonzero(~np.isfinite(rows[-1]) | np.tile(np.isnan(sums), 2))
        if len(bad):
            raise InputError(
                f"on calibration image {len(rows)} the tensor {values[bad[0] % len(values)]!r} of {model.source}"
                " becomes NaN or infinite; check the preprocessing, or the model"
            )
        if progress:
            progress(len(rows))
    if not rows:
        raise InputError("there are no images to calibrate with; hand in a folder that holds some")
    table = np.stack(rows)
    return table[:, : len(values)], table[:, len(values) :]


def _with_extremes(model: Model, values: Sequence[str]) -> bytes:
    """The network with one output: all minima, then all maxima, then all sums: extremes may pass over a NaN."""
    proto = onnx.load_model_from_string(model.float_bytes())
    opset = g.opset(model.ir)
    for op, tag in (("ReduceMin", "lo"), ("ReduceMax", "hi"), ("ReduceSum", "sum")):
        for k, name in enumerate(values):
            proto.graph.node.append(helper.make_node(op, [name], [f"@range/{tag}/{k}"], keepdims=0))
            proto.graph.node.append(
                helper.make_node("Reshape", [f"@range/{tag}/{k}", "@range/one"], [f"@range/{tag}1/{k}"])
            )
    assert opset >= 13
    proto.graph.initializer.append(helper.make_tensor("@range/one", onnx.TensorProto.INT64, [1], [1]))
    every = [f"@range/{tag}1/{k}" for tag in ("lo", "hi", "sum") for k in range(len(values))]
    proto.graph.node.append(helper.make_node("Concat", every, ["@range/all"], axis=0))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("@range/all", _FLOAT, [len(every)]))
    return proto.SerializeToString()


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
