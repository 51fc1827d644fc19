"""Between encodings and Q/DQ nodes. Both directions; exporting and importing gives the same encodings.

On export, a value with an encoding becomes x -> QuantizeLinear -> DequantizeLinear for the readers that compute in
int8, and for all readers where an int8 layer made it. The DequantizeLinear's output is called `x` + SUFFIX, so that
the float value keeps its name. Stored weights become Cast and Mul, which every runtime folds when it loads the model
(ONNX Runtime does not fold DequantizeLinear, and would expand the weights anew for every frame).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from roadworthy.errors import InputError, UnsupportedError
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, narrow_codes
from roadworthy.model.model import Model
from roadworthy.model.opset import raise_opset
from roadworthy.model.qdq_notes import ENCODINGS_KEY, annotated, notes_of, read_notes
from roadworthy.model.task import METADATA_KEY
from roadworthy.model.units import units

SUFFIX = "/dq"
RAW = "/raw"
WIDE_OPSET = 21
"""The first operator set whose QuantizeLinear makes 16-bit codes."""
Notes = Mapping[str, Mapping[str, Any]]
COPY = "/@"
"""Stands between the name of a shared constant and the layer that this copy of it belongs to."""


def to_qdq(model: Model) -> bytes:
    """The model as an ONNX file with Q/DQ nodes, the task contract in its metadata."""
    ir = g.clone(model.ir)
    encodings = model.encodings
    if any(
        e.bits > 8 and g.constant(v) is None for n, v in g.values(ir).items() if (e := encodings.get(n)) is not None
    ):
        raise_opset(ir, WIDE_OPSET)
    constants = _Constants(ir)
    anchors = {id(u.anchor): u for u in units(ir)}
    computes: set[int] = set()
    for unit in anchors.values():
        weight = encodings.get(str(unit.weight.name))
        if weight is not None and not weight.storage and str(unit.input.name) in encodings:
            computes.update(id(n) for n in unit.nodes)
            _quantize_bias(ir, unit.anchor, encodings[str(unit.input.name)], weight, constants)
    written = {n for n, v in g.values(ir).items() if n in encodings and g.constant(v) is not None}
    _quantize_weights(ir, encodings, constants)
    # A weightless operator computes in int8 when everything that it reads and makes has codes.
    for node in g.nodes(ir):
        if id(node) not in anchors and _has_codes(node.inputs, encodings):
            last = _relu_behind(node, encodings) or node
            if _has_codes([v for v in last.outputs if g.is_read(v)], encodings):
                computes.update((id(node), id(last)))
    made_in_int8 = {str(v.name) for n in g.nodes(ir) if id(n) in computes for v in n.outputs}
    for name, value in list(g.values(ir).items()):
        if name in encodings and g.constant(value) is None:
            _insert_pair(ir, value, encodings[name], computes, name in made_in_int8, constants)
    ir = g.strip_docs(g.drop_dead(ir))
    if model.task is not None:
        g.metadata(ir)[METADATA_KEY] = model.task.to_json()
    g.metadata(ir).pop(ENCODINGS_KEY, None)
    if (notes := notes_of({n: encodings[n] for n in written})) is not None:
        g.metadata(ir)[ENCODINGS_KEY] = notes
    return g.to_bytes(ir)


def _has_codes(values: Iterable[g.Value | None], encodings: Mapping[str, Encoding]) -> bool:
    """Whether all of these values that are computed at run time, one at least, have an encoding."""
    computed = [str(v.name) for v in values if v is not None and g.constant(v) is None]
    return bool(computed) and all(name in encodings for name in computed)


def _relu_behind(node: g.Node, encodings: Mapping[str, Encoding]) -> g.Node | None:
    """The ReLU or Clip that is the one reader of a sum or concatenation without codes: the two compute as one."""
    if node.op_type not in ("Add", "Concat") or str(node.outputs[0].name) in encodings:
        return None
    readers = [n for n, _ in node.outputs[0].uses()]
    lone = len(readers) == 1 and not node.outputs[0].is_graph_output()
    return readers[0] if lone and readers[0].op_type in ("Relu", "Clip") else None


class _Constants:
    """Scales and zero points as initializers, each distinct one once."""

    def __init__(self, ir: g.IrModel) -> None:
        self._ir = ir
        self._known: dict[tuple[bytes, tuple[int, ...], str], g.Value] = {}

    def get(self, array: np.ndarray, prefix: str) -> g.Value:
        key = (array.tobytes(), array.shape, str(array.dtype))
        if key not in self._known:
            self._known[key] = g.add_constant(self._ir, f"{prefix}{len(self._known)}", array)
        return self._known[key]

    def pair(self, encoding: Encoding) -> list[g.Value]:
        return [
            self.get(np.asarray(encoding.scale), "s/"),
            self.get(np.asarray(encoding.zero_point).astype(encoding.dtype), "z/"),
        ]


def _insert_pair(
    ir: g.IrModel, value: g.Value, encoding: Encoding, computes: set[int], for_all: bool, constants: _Constants
) -> None:
    name = str(value.name)
    # Where nothing on either side computes in int8, the value is rounded for whoever reads it, as the reference does.
    for_all = for_all or not any(id(n) in computes for n, _ in value.uses())
    readers = [(u.node, u.idx) for u in value.uses() if for_all or id(u.node) in computes]
    is_output = value.is_graph_output() and for_all and value.producer() is not None
    if not readers and not is_output:
        return
    scale, zero = constants.pair(encoding)
    if is_output:
        value.name = name + RAW
    q = g.make_node("QuantizeLinear", [value, scale, zero], [name + "/q"])
    dq = g.make_node("DequantizeLinear", [q.outputs[0], scale, zero], [name if is_output else name + SUFFIX])
    if encoding.axis is not None:
        for node in (q, dq):
            g.set_attribute(node, "axis", encoding.axis)
    made = dq.outputs[0]
    made.shape, made.type = value.shape, value.type
    maker = value.producer()
    if maker is None:
        g.insert_first(ir, [q, dq])
    else:
        g.insert_after(ir, maker, [q, dq])
    for node, index in readers:
        node.replace_input_with(index, made)
    if is_output:
        g.replace_output(ir, value, made)


def _quantize_weights(ir: g.IrModel, encodings: Mapping[str, Encoding], constants: _Constants) -> None:
    for name, value in sorted(ir.graph.initializers.items()):
        encoding = encodings.get(name)
        array = g.constant(value)
        if encoding is None or array is None:
            continue
        if not encoding.storage:
            # OpenVINO (2026.4) folds factors behind a layer into its weights, and so into those of every layer that
            # reads the same constant: each gets a copy.
            for k, (node, index) in enumerate([(use.node, use.idx) for use in value.uses()]):
                own = name if not k else f"{name}{COPY}{node.name}"
                stored = g.add_constant(ir, own + "/q", narrow_codes(array, encoding))
                dq = _dequantize([stored, *constants.pair(encoding)], own + SUFFIX, encoding.axis)
                g.insert_first(ir, [dq])
                node.replace_input_with(index, dq.outputs[0])
        else:
            stored = g.add_constant(ir, name + "/q", narrow_codes(array, encoding))
            # The rank of the scales tells the axis, also where it has length one.
            shape = () if encoding.axis is None else (-1, *[1] * (array.ndim - 1 - encoding.axis))
            scale = constants.get(np.asarray(encoding.scale).reshape(shape), "s/")
            # The Identity keeps OpenVINO (2026.4) from taking Cast and Mul for its own form of compressed weights,
            # with which it computes wrong results for a 1x1 convolution in front of a Transpose and a Softmax.
            cast = g.make_node("Cast", [stored], [name + "/f"], to=1)
            same = g.make_node("Identity", [cast.outputs[0]], [name + "/i"])
            mul = g.make_node("Mul", [same.outputs[0], scale], [name + SUFFIX])
            g.insert_first(ir, [cast, same, mul])
            g.replace_uses(value, mul.outputs[0], outputs_too=False)
        g.drop_constant(ir, name)


def _dequantize(operands: list[g.Value], output: str, axis: int | None) -> g.Node:
    node = g.make_node("DequantizeLinear", operands, [output])
    if axis is not None:
        g.set_attribute(node, "axis", axis)
    return node


def _quantize_bias(ir: g.IrModel, anchor: g.Node, source: Encoding, weight: Encoding, constants: _Constants) -> None:
    """Bias as int32 at scale input scale x weight scale, as integer kernels add it to the accumulator."""
    value = anchor.inputs[2] if len(anchor.inputs) > 2 else None
    bias = g.constant(value)
    if value is None or bias is None or anchor.op_type not in ("Conv", "Gemm") or bias.ndim != 1:
        return
    scale = (np.asarray(source.scale, np.float32) * weight.scale).astype(np.float32)
    q = np.clip(np.rint(bias.astype(np.float64) / scale), -(2**31) + 1, 2**31 - 1).astype(np.int32)
    name = f"{value.name}{COPY}{anchor.name}"
    stored = g.add_constant(ir, name + "/q", q)
    dq = _dequantize([stored, constants.get(scale, "s/")], name + SUFFIX, 0 if scale.ndim else None)
    g.insert_first(ir, [dq])
    anchor.replace_input_with(2, dq.outputs[0])
    g.drop_constant(ir, str(value.name))


def has_qdq(model: Model) -> bool:
    """Whether the graph holds Q/DQ nodes or weights stored as integers."""
    return any(_is_dequantize(n) or _stored_weight(n) for n in g.nodes(model.ir))


def _is_dequantize(node: g.Node) -> bool:
    return node.op_type == "DequantizeLinear"


def _stored_weight(node: g.Node) -> bool:
    """Mul(Cast(integers), scale), all constant."""
    if node.op_type != "Mul" or node.inputs[0] is None:
        return False
    cast = node.inputs[0].producer()
    if cast is None or cast.op_type != "Cast":
        return False
    array = g.constant(cast.inputs[0])
    return array is not None and array.dtype in (np.int8, np.int16) and g.constant(node.inputs[1]) is not None


def from_qdq(model: Model) -> Model:
    """Fold Q/DQ nodes and stored weights back into a float graph with encodings."""
    ir = g.clone(model.ir)
    notes = read_notes(g.metadata(ir).pop(ENCODINGS_KEY, None), model.source)
    found: dict[str, Encoding] = dict(model.encodings)
    for node in g.nodes(ir):
        if _stored_weight(node):
            _import_stored(ir, node, found, notes)
        elif _is_dequantize(node):
            source = node.inputs[0]
            maker = source.producer() if source is not None else None
            if g.constant(source) is not None:
                _import_constant(ir, node, found, notes)
            elif maker is not None and maker.op_type == "QuantizeLinear":
                _import_pair(ir, maker, node, found)
    ir = g.drop_dead(ir)
    g.infer_shapes(ir)
    return model.with_ir(ir, "import Q/DQ").with_encodings(found, f"{len(found)} encodings")


def _encoding_of(node: g.Node, like: np.ndarray | None = None) -> Encoding:
    """The encoding that a QuantizeLinear or DequantizeLinear states.   like: the codes, where they are constant."""
    source = node.inputs[0]
    sides = like.shape if like is not None else tuple(source.shape or ()) if source is not None else ()
    scale = g.constant(node.inputs[1])
    zero = g.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    dtype = zero.dtype if zero is not None else (like.dtype if like is not None else np.dtype(np.uint8))
    called = f"{node.op_type} {node.name!r}"
    if scale is None or (len(node.inputs) > 2 and node.inputs[2] is not None and zero is None):
        raise UnsupportedError(f"{called} computes its scale at run time; only constant scales can be imported")
    if dtype not in _CODES or g.attribute(node, "block_size", 0) or scale.ndim > 1:
        kind = "scales per block" if dtype in _CODES else f"codes of type {dtype}"
        raise UnsupportedError(
            f"{called} has {kind}; 8 or 16 bits with one scale per tensor or channel can be imported"
        )
    scale = scale.astype(np.float32)
    zero = np.zeros(scale.shape, np.int64) if zero is None else zero.astype(np.int64)
    axis = int(g.attribute(node, "axis", 1)) if scale.ndim else None
    if axis is not None and sides:
        axis %= len(sides)
    if scale.size == 1 and (axis is None or not sides or sides[axis] != 1):  # some write one scale as a vector
        scale, zero, axis = scale.reshape(()), zero.reshape(()), None
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise InputError(f"{called} has a scale that is not positive; quantize the model again")
    return Encoding(scale, zero.reshape(scale.shape), 8 * dtype.itemsize, dtype.kind == "i", axis)


_CODES = frozenset(np.dtype(t) for t in (np.int8, np.uint8, np.int16, np.uint16))


def _import_constant(ir: g.IrModel, node: g.Node, found: dict[str, Encoding], notes: Notes) -> None:
    source, out = node.inputs[0], node.outputs[0]
    array = g.constant(source)
    assert array is not None
    name = str(out.name).removesuffix(SUFFIX).split(COPY)[0]
    if array.dtype == np.int32:
        scale = np.asarray(g.constant(node.inputs[1]), np.float32)
        made = _fresh_constant(ir, name, (array * scale.astype(np.float64)).astype(np.float32))
    else:
        encoding = annotated(_encoding_of(node, array), array, notes.get(name))
        expanded = encoding.dequantize(array)
        known = ir.graph.initializers.get(name)
        held = g.constant(known)
        if known is not None and held is not None and found.get(name) == encoding and np.array_equal(held, expanded):
            made = known  # another layer's copy of the same weights
        else:
            made = _fresh_constant(ir, name, expanded)
            found[str(made.name)] = encoding
    g.replace_uses(out, made)
    g.remove_node(ir, node)


def _import_stored(ir: g.IrModel, mul: g.Node, found: dict[str, Encoding], notes: Notes) -> None:
    cast = mul.inputs[0].producer()  # type: ignore[union-attr]
    array = g.constant(cast.inputs[0])  # type: ignore[union-attr]
    scale = g.constant(mul.inputs[1])
    assert array is not None and scale is not None
    axis = array.ndim - scale.ndim if scale.ndim else None
    flat = scale.reshape(-1) if axis is not None else scale.reshape(())
    zero = np.zeros(flat.shape, np.int64)
    name = str(mul.outputs[0].name).removesuffix(SUFFIX)
    encoding = Encoding(flat, zero, 8 * array.dtype.itemsize, True, axis, storage=True)
    encoding = annotated(encoding, array, notes.get(name))
    made = _fresh_constant(ir, name, encoding.dequantize(array))
    found[str(made.name)] = encoding
    g.replace_uses(mul.outputs[0], made)
    g.remove_node(ir, mul)


def _import_pair(ir: g.IrModel, q: g.Node, dq: g.Node, found: dict[str, Encoding]) -> None:
    value, out = q.inputs[0], dq.outputs[0]
    assert value is not None
    name = str(value.name)
    encoding = _encoding_of(q)
    if out.is_graph_output():
        if value.producer() is None or value.is_graph_output():
            raise UnsupportedError(
                f"the output {out.name!r} is nothing but a quantized copy of {name!r}; such a model cannot be imported"
            )
        # The network's output keeps its name, whatever the value in front of the pair was called.
        name = str(out.name)
        found.pop(str(value.name), None)
    if found.get(name, encoding) != encoding:
        raise UnsupportedError(
            f"the value {name!r} is quantized in two ways, which cannot be imported; quantize the float model instead"
        )
    found[name] = encoding
    g.replace_uses(out, value)
    g.remove_node(ir, dq)
    if not list(q.outputs[0].uses()):
        g.remove_node(ir, q)
    value.name = name


def _fresh_constant(ir: g.IrModel, name: str, array: np.ndarray) -> g.Value:
    """An initializer under this name, or under a numbered one where it is taken."""
    unique, k = name, 1
    while unique in ir.graph.initializers:
        unique, k = f"{name}.{k}", k + 1
    return g.add_constant(ir, unique, array)
