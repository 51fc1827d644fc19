"""Transposed convolutions, in float, as convolutions.

y[:, :, s*i + k] sums x[i] * w[k]. Where kernel and stride are the same, no two windows meet: each of the kh*kw taps is
a 1x1 convolution that writes every s-th pixel. Otherwise x is spread out with zeros between its pixels, and the kernel,
turned around, is convolved over it with stride 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from roadworthy.model import graph as g
from roadworthy.model.encoding import narrow_codes
from roadworthy.model.units import Unit
from roadworthy.run.arithmetic import NONE, Epilogue, Windows
from roadworthy.run.native.layers import POINT, dense
from roadworthy.run.native.moves import taken, then
from roadworthy.run.native.network import Array, Operand, constant_array, is_image
from roadworthy.run.native.translate import Translator, shape_of, unsupported


def conv_transpose(tr: Translator, unit: Unit) -> Array:
    """The anchor's result in float, without the activation."""
    node, weights = unit.anchor, _weights(tr, unit)
    x, value = tr.float_array(unit.input), unit.anchor.outputs[0]
    dims = shape_of(value)
    if not is_image(x.dims) or weights.ndim != 4:
        raise unsupported(node, "it is not over one image of height and width")
    groups = g.attribute(node, "group", 1)
    cin, each, *kernel = weights.shape
    stride = tuple(int(s) for s in g.attribute(node, "strides", (1, 1)))
    dilation = tuple(int(d) for d in g.attribute(node, "dilations", (1, 1)))
    # [cin][cout / g][kh][kw] -> [cout][kh][kw][cin / g]
    grouped = weights.reshape(groups, cin // groups, each, *kernel)
    canonical = grouped.transpose(0, 2, 3, 4, 1).reshape(groups * each, *kernel, cin // groups)
    bias = g.constant(unit.bias) if unit.bias is not None else np.zeros(groups * each, np.float32)
    if bias is None:
        raise unsupported(node, "its bias is computed at run time")
    numbers = np.ascontiguousarray(bias, np.float32)
    epilogue = Epilogue("real", numbers, numbers, np.zeros(len(numbers), np.int32), function=NONE)  # type: ignore[arg-type]
    y = Array(str(value.name), dims, None, like=(x,))
    pads = _pads(node, x.dims, dims, kernel, stride, dilation)
    plain = tuple(kernel) == stride and pads == (0, 0) and dilation == (1, 1) and groups == 1
    if plain and dims[2:] == (x.dims[2] * stride[0], x.dims[3] * stride[1]):
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                part = then(taken(2, i, stride[0], x.dims[2]), taken(3, j, stride[1], x.dims[3]))
                w = np.ascontiguousarray(canonical[:, i : i + 1, j : j + 1])
                point = Windows((1, 1), (1, 1), (1, 1), (0, 0), (0, 0), (x.dims[2], x.dims[3]), POINT.overhang)
                dense(tr, x, y, w, epilogue, 0, None, point, "image", unit.name, 1, part)
        return y
    spread = _spread(tr, x, stride, str(value.name))
    reach = tuple((kernel[k] - 1) * dilation[k] for k in (0, 1))
    begin = (reach[0] - pads[0], reach[1] - pads[1])
    if min(begin) < 0:
        raise unsupported(node, "its padding is larger than its kernel")
    at = Windows((kernel[0], kernel[1]), (1, 1), (dilation[0], dilation[1]), begin, (0, 0), (dims[2], dims[3]), (0, 0))
    turned = np.ascontiguousarray(canonical[:, ::-1, ::-1])
    dense(tr, spread, y, turned, epilogue, 0, None, at, "image", unit.name, groups)
    return y


def _weights(tr: Translator, unit: Unit) -> NDArray:
    array, encoding = g.constant(unit.weight), tr.encodings.get(str(unit.weight.name))
    assert array is not None
    if encoding is None:
        return array.astype(np.float32)
    signed = encoding.signed and not encoding.zero_point.any()
    return encoding.dequantize(narrow_codes(array, encoding) if signed else encoding.quantize(array))


def _pads(
    node: g.Node, source: tuple[int, ...], dims: tuple[int, ...], kernel: list[int], stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[int, int]:  # fmt: skip
    """Pixels cut off at the top and left of the full result."""
    auto = g.attribute(node, "auto_pad", "NOTSET")
    stated = g.attribute(node, "pads", (0, 0, 0, 0))
    extra = g.attribute(node, "output_padding", (0, 0))
    if g.attribute(node, "output_shape", None) is None and auto in ("NOTSET", "VALID"):
        return (int(stated[0]), int(stated[1])) if auto == "NOTSET" else (0, 0)
    cut = []
    for k in (0, 1):
        full = stride[k] * (source[2 + k] - 1) + extra[k] + (kernel[k] - 1) * dilation[k] + 1
        total = full - dims[2 + k]
        cut.append(total // 2 if auto != "SAME_LOWER" else total - total // 2)
    return cut[0], cut[1]


def _spread(tr: Translator, x: Array, stride: tuple[int, ...], name: str) -> Array:
    """x with stride - 1 zeros between its pixels."""
    if stride == (1, 1):
        return x
    dims = (1, x.dims[1], (x.dims[2] - 1) * stride[0] + 1, (x.dims[3] - 1) * stride[1] + 1)
    made = Array(f"{name}.spread", dims, None)
    zero = constant_array(f"{name}.zero", np.zeros(1, np.float32))
    tr.copy(Operand(zero, "pixels", dims=dims), Operand(made, "pixels"), name)
    part = then(taken(2, 0, stride[0], x.dims[2]), taken(3, 0, stride[1], x.dims[3]))
    tr.copy(Operand(x, "pixels"), Operand(made, "pixels", part=part, inside=True), name)
    return made
