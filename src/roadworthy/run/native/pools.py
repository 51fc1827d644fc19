"""Operations on windows and pixels: pools, means over the image, Resize."""

from __future__ import annotations

import numpy as np

from roadworthy.model import graph as g
from roadworthy.run.arithmetic import (
    Operation,
    Windows,
    average_constants,
    fixed_average,
    fixed_weights,
    linear_taps,
    nearest_pixels,
    windows,
)
from roadworthy.run.arithmetic.operations import reduced_axes
from roadworthy.run.native.moves import pads_before, shaped
from roadworthy.run.native.network import Array, Operand, is_image
from roadworthy.run.native.plan import Op
from roadworthy.run.native.translate import Translator, shape_of, unsupported


def _image(tr: Translator, node: g.Node, x: Array) -> Array:
    if not is_image(x.dims):
        raise unsupported(node, "it is not over one image of height and width")
    return x


def _check(node: g.Node, at: Windows, dims: tuple[int, ...]) -> None:
    if at.dilations != (1, 1):
        raise unsupported(node, "its window is dilated")
    if dims[2:] != at.size:  # a shape inference that counts windows which begin behind the image
        raise unsupported(node, f"with ceil_mode its size is {at.size}, but the graph states {dims[2:]}")


def max_pool(tr: Translator, operation: Operation) -> None:
    node, out = operation.nodes[0], operation.output
    if len(node.outputs) > 1 and g.is_read(node.outputs[1]):
        raise unsupported(node, "something reads its positions")
    x = _image(tr, node, tr.array(node.inputs[0]))
    dims = shape_of(out)
    if node.op_type == "ReduceMax" and reduced_axes(node) != (2, 3):
        raise unsupported(node, "it is not over height and width of an image")
    if node.op_type in ("GlobalMaxPool", "ReduceMax"):
        numbers = (x.dims[2], x.dims[3], 1, 1, 0, 0)
        dims = (*x.dims[:2], 1, 1)
    else:
        at = windows(node, (x.dims[2], x.dims[3]), g.attribute(node, "kernel_shape"))
        _check(node, at, shape_of(out))
        numbers = (*at.kernel, *at.strides, *at.pads_begin)
    y = Array(str(out.name), dims, x.encoding, like=(x,))
    tr.network.step(Op.MAXPOOL, [Operand(x, "image")], Operand(y, "image"), numbers, (), str(node.name))
    tr.settle(out, _flattened(tr, out, y))


def average(tr: Translator, operation: Operation) -> None:
    """AveragePool, GlobalAveragePool, and ReduceMean over height and width."""
    node, out = operation.nodes[0], operation.output
    codes = operation.form == "average"
    if node.op_type == "ReduceMean" and reduced_axes(node) != (2, 3):
        raise unsupported(node, "it is not over height and width of an image")
    source = node.inputs[0]
    around = _padding_in_front(tr, node)
    if around is not None:
        source = around[0]
    x = _image(tr, node, tr.array(source) if codes else tr.float_array(source))
    if around is not None:
        at = windows(node, around[2], g.attribute(node, "kernel_shape"))
        _check(node, at, shape_of(out))
        kernel, numbers, dims = at.kernel, (*at.kernel, *at.strides, *around[1], 1), shape_of(out)
    elif node.op_type == "AveragePool":
        at = windows(node, (x.dims[2], x.dims[3]), g.attribute(node, "kernel_shape"))
        _check(node, at, shape_of(out))
        padded = any((*at.pads_begin, *at.pads_end))
        counts = int(bool(g.attribute(node, "count_include_pad", 0)) and padded)
        if counts and any(at.overhang):
            raise unsupported(node, "it counts the padding and reaches beyond it")
        kernel, numbers, dims = at.kernel, (*at.kernel, *at.strides, *at.pads_begin, counts), shape_of(out)
    else:
        kernel = (x.dims[2], x.dims[3])
        numbers, dims = (*kernel, 1, 1, 0, 0, 0), (*x.dims[:2], 1, 1)
    wanted = tr.encoding(out) if codes else None
    y = Array(str(out.name), dims, wanted, like=(x,))
    op, zeros, positions = Op.AVGPOOL, (0, 0), kernel[0] * kernel[1]
    blobs: tuple[bytes, ...] = (b"",)
    if wanted is not None and x.encoding is not None:
        zeros = (int(x.encoding.zero_point), int(wanted.zero_point))
        if tr.fixed:
            m, shift = fixed_average(str(node.name), x.encoding, wanted, positions)
            op, blobs = Op.AVGPOOL_FIXED, (m.tobytes(), shift.tobytes())
        else:
            blobs = (average_constants(x.encoding, wanted, positions).tobytes(),)
    tr.network.step(op, [Operand(x, "image")], Operand(y, "image"), (*numbers, *zeros), blobs, str(node.name))
    tr.settle(out, _flattened(tr, out, y))


def _flattened(tr: Translator, out: g.Value, y: Array) -> Array:
    """The result of a reduction that does not keep its dimensions."""
    if y.dims == shape_of(out):
        return y
    flat = Array(f"{out.name}.flat", shape_of(out), y.encoding)
    return tr.link(y, flat, shaped(flat.dims), shaped(y.dims), str(out.name))


def _padding_in_front(tr: Translator, node: g.Node) -> tuple[g.Value, tuple[int, int], tuple[int, int]] | None:
    """Of a Pad with zeros in front of an AveragePool, which then counts them: its source, the rows and columns it adds
    at the top and left, and the size it gives. None where the two cannot be one operation."""
    pad = node.inputs[0].producer() if node.op_type == "AveragePool" and node.inputs[0] is not None else None
    if pad is None or pad.op_type != "Pad" or g.attribute(pad, "mode", "constant") != "constant":
        return None
    source, padded = pad.inputs[0], g.static_shape(pad.outputs[0])
    shape = g.static_shape(source)
    number = g.constant(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else np.zeros(1)
    if source is None or shape is None or padded is None or not is_image(shape) or padded[:2] != shape[:2]:
        return None
    before = pads_before(pad, 4)
    plain = not any(g.attribute(node, "pads", (0,))) and g.attribute(node, "auto_pad", "NOTSET") == "NOTSET"
    if number is None or number.any() or min(before) < 0 or not plain or g.attribute(node, "ceil_mode", 0):
        return None
    after = [p - s - b for p, s, b in zip(padded, shape, before)]
    kernel = g.attribute(node, "kernel_shape", (1, 1))
    # A window that lies in the padding alone has nothing to do with the image, and the engine refuses it.
    if min(after) < 0 or any(max(before[k], after[k]) >= size for k, size in zip((2, 3), kernel)):
        return None
    if tr.encoding(pad.outputs[0]) not in (None, tr.encoding(source)):
        return None
    return source, (before[2], before[3]), (padded[2], padded[3])


def resize(tr: Translator, operation: Operation) -> None:
    node, out = operation.nodes[0], operation.output
    x = _image(tr, node, tr.array(node.inputs[0]))
    dims, mode = shape_of(out), g.attribute(node, "mode", "nearest")
    if dims[:2] != x.dims[:2]:
        raise unsupported(node, "it resizes more than height and width")
    if mode == "nearest":
        tables = [nearest_pixels(node, axis, x.dims[axis], dims[axis]) for axis in (2, 3)]
        y = Array(str(out.name), dims, x.encoding, like=(x,))
        made = [t.astype(np.int32).tobytes() for t in tables]
        tr.settle(out, tr.network.step(Op.RESIZE_NEAREST, [Operand(x, "image")], Operand(y, "image"), (), made, y.name))
        return
    if mode != "linear":
        raise unsupported(node, f"its mode is {mode}")
    fixed = tr.fixed and operation.form == "linear"
    if operation.form != "linear":
        x = tr.float_array(node.inputs[0])
    y = Array(str(out.name), dims, x.encoding, like=(x,))
    made = []
    for axis in (2, 3):
        taps = linear_taps(node, axis, x.dims[axis], dims[axis])
        weight = fixed_weights(taps) if fixed else taps.weight
        made += [taps.low.astype(np.int32).tobytes(), taps.high.astype(np.int32).tobytes(), weight.tobytes()]
    op = Op.RESIZE_LINEAR_FIXED if fixed else Op.RESIZE_LINEAR
    tr.network.step(op, [Operand(x, "image")], Operand(y, "image"), (), made, str(node.name))
    tr.settle(out, y)
