"""Bias correction: rounding weights shifts the mean of a layer's output, and the bias can take that back.

    E[y'[c]] - E[y[c]] = sum_k (w'[c,k] - w[c,k]) * E[x[k]]        b'[c] = b[c] - that

with E[x] the mean of each input channel over the calibration images (Nagel et al., "Data-Free Quantization Through
Weight Equalization and Bias Correction", ICCV 2019; the means are measured here). Padding is counted as if it had the
mean of its channel.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from roadworthy.model import graph as g
from roadworthy.model.encoding import narrow_codes
from roadworthy.model.model import Model
from roadworthy.model.units import Unit, units
from roadworthy.quantize.statistics import Statistics


def channel_axes(model: Model) -> dict[str, int]:
    """The values whose channel means bias correction needs, and the axis of their channels."""
    return {str(u.input.name): _axis(u) for u in units(model.ir) if _axis(u) is not None}  # type: ignore[misc]


def _axis(unit: Unit) -> int | None:
    if unit.anchor.op_type == "Conv":
        return 1
    return -1 if unit.anchor.op_type in ("Gemm", "MatMul") else None


def mean_shift(unit: Unit, rounding: NDArray, mean: NDArray) -> NDArray[np.float64]:
    """(output channels,) shift of the output's mean.   rounding: w' - w.   mean: (input channels,)."""
    if unit.anchor.op_type != "Conv":
        matrix = rounding if unit.weight_axis else rounding.T
        return mean @ matrix * (g.attribute(unit.anchor, "alpha", 1.0) if unit.anchor.op_type == "Gemm" else 1.0)
    summed = rounding.sum(tuple(range(2, rounding.ndim)))  # output channels, input channels of a group
    groups = g.attribute(unit.anchor, "group", 1)
    per_output = np.repeat(mean.reshape(groups, -1), len(summed) // groups, axis=0)
    return (summed * per_output).sum(1)


def correct_bias(model: Model, statistics: Mapping[str, Statistics]) -> Model:
    """A model whose biases make up for the rounding of its encoded weights."""
    ir = g.clone(model.ir)
    for unit in units(ir):
        encoding = model.encodings.get(str(unit.weight.name))
        gathered = statistics.get(str(unit.input.name))
        weight = g.constant(unit.weight)
        if encoding is None or weight is None or gathered is None or _axis(unit) is None:
            continue
        rounding = encoding.dequantize(narrow_codes(weight, encoding)).astype(np.float64) - weight
        shift = mean_shift(unit, rounding, gathered.channel_mean)
        add_to_bias(ir, unit, -shift)
    return model.with_ir(ir, "correct bias")


def add_to_bias(ir: g.IrModel, unit: Unit, amount: NDArray) -> None:
    """Add an amount (output channels,) to a unit's bias, in a graph that was just cloned."""
    anchor = unit.anchor
    if anchor.op_type == "MatMul":
        add = unit.bias_add
        if add is None:
            return
        index = next(k for k, v in enumerate(add.inputs) if g.constant(v) is not None)
        node, value = add, add.inputs[index]
    else:
        node, index = anchor, 2
        if len(anchor.inputs) < 3:
            anchor.resize_inputs(3)
        value = anchor.inputs[2]
    old = g.constant(value)
    if value is not None and old is None:
        return
    beta = g.attribute(anchor, "beta", 1.0) if anchor.op_type == "Gemm" else 1.0
    new = (amount / beta + (0.0 if old is None else old)).astype(np.float32)
    if value is not None and len(list(value.uses())) == 1:
        g.set_constant(value, new)
        return
    node.replace_input_with(index, g.add_constant(ir, f"{unit.name}.corrected_bias", new))
