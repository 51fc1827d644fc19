"""Pad in front of a convolution becomes the convolution's own padding.

    conv(pad(x, p), pads=q) = conv(x, pads=p + q)      when the padded value is zero, on spatial axes only

Padding a convolution is free; a Pad node copies the tensor, and stands between two int8 operators.
"""

from __future__ import annotations

from roadworthy.model import graph as g


def fold_pad(model: g.IrModel) -> list[str]:
    notes = []
    for node in g.nodes(model):
        if node.op_type == "Pad":
            refusal = _fold(model, node)
            notes.append(f"{node.name}: {refusal or 'folded into the convolution behind it'}")
    return notes


def _fold(model: g.IrModel, pad: g.Node) -> str | None:
    value = pad.outputs[0]
    readers = list(value.consumers())
    if g.attribute(pad, "mode", "constant") != "constant":
        return "not folded: it does not pad with a constant"
    pads = g.constant(pad.inputs[1]) if len(pad.inputs) > 1 else None
    if pads is None or (len(pad.inputs) > 3 and pad.inputs[3] is not None):
        return "not folded: its amounts are not constant, or it names axes"
    fill = pad.inputs[2] if len(pad.inputs) > 2 else None
    if fill is not None:
        array = g.constant(fill)
        if array is None or (array.size and float(array.reshape(-1)[0]) != 0.0):
            return "not folded: it does not pad with zero"
    rank = len(pads) // 2
    if rank < 3 or pads[:2].any() or pads[rank : rank + 2].any() or (pads < 0).any():
        return "not folded: it pads batch or channels, or crops"
    if value.is_graph_output() or not readers or any(r.op_type != "Conv" for r in readers):
        return "not folded: something other than a convolution reads it"
    if any(g.attribute(r, "auto_pad", "NOTSET") not in ("NOTSET", "VALID") for r in readers):
        return "not folded: the convolution pads automatically"
    spatial = [*pads[2:rank], *pads[rank + 2 :]]
    for conv in readers:
        own = g.attribute(conv, "pads", (0,) * len(spatial))
        if g.attribute(conv, "auto_pad", "NOTSET") == "VALID":
            own = (0,) * len(spatial)
            g.drop_attribute(conv, "auto_pad")
        g.set_attribute(conv, "pads", [int(a) + int(b) for a, b in zip(own, spatial)])
    source = pad.inputs[0]
    assert source is not None
    g.replace_uses(value, source)
    g.remove_node(model, pad)
    return None
