"""Batch normalization behind a convolution becomes part of its weights.

y = gamma * (w*x + b - mean) / sqrt(var + eps) + beta  =  (k*w)*x + (b - mean)*k + beta,   k = gamma / sqrt(var + eps)
"""

from __future__ import annotations

import numpy as np

from roadworthy.model import graph as g
from roadworthy.model import state


def fold_batchnorm(model: g.IrModel) -> list[str]:
    notes = []
    for node in g.nodes(model):
        if node.op_type == "BatchNormalization":
            refusal = _fold(model, node)
            notes.append(f"{node.name}: {refusal or 'folded into the convolution in front of it'}")
    return notes


def _fold(model: g.IrModel, norm: g.Node) -> str | None:
    source = norm.inputs[0]
    conv = source.producer() if source is not None else None
    if conv is None or conv.op_type not in ("Conv", "ConvTranspose"):
        return "not folded: no convolution in front of it"
    assert source is not None
    if source.is_graph_output() or len(list(source.uses())) != 1:
        return f"not folded: something else reads {source.name}, too"
    if conv.op_type == "ConvTranspose" and g.attribute(conv, "group", 1) != 1:
        return "not folded: the transposed convolution has groups"
    if g.attribute(norm, "training_mode", 0):
        return "not folded: it is in training mode"
    weight = g.constant(conv.inputs[1])
    parameters = [g.constant(v) for v in norm.inputs[1:5]]
    if weight is None or any(p is None for p in parameters):
        return "not folded: weights or statistics are computed at run time"
    gamma, beta, mean, var = (p.astype(np.float64) for p in parameters if p is not None)
    k = gamma / np.sqrt(var + g.attribute(norm, "epsilon", 1e-5))
    axis = 0 if conv.op_type == "Conv" else 1
    shape = [1] * weight.ndim
    shape[axis] = -1
    bias_value = conv.inputs[2] if len(conv.inputs) > 2 else None
    bias = g.constant(bias_value) if bias_value is not None else np.zeros(len(k))
    if bias is None:
        return "not folded: the bias is computed at run time"
    out = norm.outputs[0]
    # New initializers under new names: the old ones may be shared with another layer.
    w = g.add_constant(model, f"{out.name}.bn_weight", (weight * k.reshape(shape)).astype(np.float32))
    b = g.add_constant(model, f"{out.name}.bn_bias", ((bias - mean) * k + beta).astype(np.float32))
    old = [str(v.name) for v in conv.inputs[1:3] if v is not None]
    state.folded(model, norm, old[0], old[1] if len(old) > 1 else None, str(w.name), str(b.name))
    conv.replace_input_with(1, w)
    if len(conv.inputs) < 3:
        conv.resize_inputs(3)
    conv.replace_input_with(2, b)
    # The convolution takes over the name of the normalized value: readers and reports keep knowing it.
    g.replace_uses(out, source)
    name = out.name
    g.remove_node(model, norm)
    source.name = name
    return None
