"""Golden vectors: what a device team needs to check an integer implementation of a network layer by layer.

For some images the codes of every value, and for every operation on codes its parameters, as plain arrays in one
`golden.npz`; `golden.json` says what is what. docs/golden.md has the schema, examples/fixed/check_golden.py recomputes
everything from the two files with NumPy alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model
from roadworthy.model.units import Unit
from roadworthy.run import arithmetic as ar
from roadworthy.run import reference_ops as ops
from roadworthy.run.reference import ReferenceRunner, accumulate

VERSION = 1
PIXELS = 16
"""Places of a layer whose accumulators are kept, evenly spread; all of them where they leave the device."""

Row = dict[str, Any]


@dataclass
class Golden:
    """arrays: name in the npz -> array.   description: what golden.json says."""

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    description: Row = field(default_factory=dict)

    def write(self, npz: Path, text: Path) -> None:
        """Both files; the same bytes for the same vectors."""
        _savez(npz, self.arrays)
        text.write_text(json.dumps(self.description, indent=1) + "\n")


def golden_vectors(
    model: Model, tensors: Sequence[NDArray[np.float32]], layers: Sequence[str] = (), pixels: int = PIXELS
) -> Golden:
    """The golden vectors of a model with its encodings, in fixed point.

    tensors: inputs of the network, one per image, float32 in the model's shape.   layers: names of the layers to keep;
    empty: everything.   pixels: places per layer whose accumulators are kept.
    Raises UnsupportedError where the model has no fixed-point form, InputError for a layer that it does not have.
    """
    runner = ReferenceRunner(model, "fixed")
    made = _Writer(runner, [runner.all_codes({model.input_name: t}) for t in tensors], pixels)
    known = [o.unit.name for o in runner.operations if o.unit is not None and o.form == "unit"]
    for name in layers:
        if name not in known:
            raise InputError(f"the model has no integer layer named {name!r}; it has {', '.join(known[:3])}, ...")
    kept = [o for o in runner.operations if o.form != "float" and (not layers or (o.unit and o.unit.name in layers))]
    rows = [row for operation in kept for row in made.rows(operation)]
    made.golden.description = {
        "format": "roadworthy golden vectors",
        "version": VERSION,
        "arithmetic": "fixed",
        "images": len(tensors),
        "values": made.values,
        "operations": rows,
    }
    return made.golden


class _Writer:
    def __init__(self, runner: ReferenceRunner, codes: list[dict[str, NDArray[np.uint8]]], pixels: int) -> None:
        self.runner, self.codes, self.pixels = runner, codes, pixels
        self.golden = Golden()
        self.values: dict[str, Row] = {}
        self.count = 0

    def put(self, what: str, array: NDArray[Any]) -> str:
        """Keep an array; its name in the npz."""
        name = f"{self.count:04d}.{what}"
        self.golden.arrays[name] = np.ascontiguousarray(array)
        return name

    def value(self, value: g.Value) -> str:
        """Keep the codes of a value, all images together, and its encoding."""
        name = str(value.name)
        if name not in self.values:
            encoding = self.runner.encodings[name]
            key = f"value.{len(self.values):04d}"
            self.golden.arrays[key] = np.stack([c[name] for c in self.codes])
            self.values[name] = {
                "codes": key,
                "scale": np.atleast_1d(encoding.scale).astype(float).tolist(),
                "zero": np.atleast_1d(encoding.zero_point).astype(int).tolist(),
            }
        return name

    def rows(self, operation: ar.Operation) -> list[Row]:
        """The entries of an operation; a Split has one per part."""
        node = operation.nodes[0]
        self.count += 1
        if operation.unit is not None:
            return [self._layer(operation.unit)]
        sources = [v for v in node.inputs if v is not None and g.constant(v) is None]
        row = {"name": str(node.name), "inputs": [self.value(v) for v in sources]}
        if operation.form == "move" and "MaxPool" not in node.op_type:
            return self._moves(node, row)
        row["output"] = self.value(operation.output)
        return [{**row, **_FORMS.get(operation.form, _max_pool)(self, operation)}]

    def _layer(self, unit: Unit) -> Row:
        epilogue, w = self.runner.layer(unit)
        assert isinstance(epilogue, ar.FixedEpilogue)
        source = self.runner.encodings[str(unit.input.name)]
        name = str(unit.input.name)
        row: Row = {"name": unit.name, "kind": "conv" if unit.anchor.op_type == "Conv" else "matrix",
                    "inputs": [self.value(unit.input)]}  # fmt: skip
        if unit.anchor.op_type == "Conv":
            at = ar.windows(unit.anchor, self.codes[0][name].shape[2:], w.shape[2:])
            row.update(strides=at.strides, pads=[*at.pads_begin, *at.pads_end], dilations=at.dilations,
                       groups=g.attribute(unit.anchor, "group", 1))  # fmt: skip
        weights = w if unit.anchor.op_type == "Conv" or unit.weight_axis == 0 else w.T
        row["weights"], row["bias"] = self.put("weights", weights), self.put("bias", epilogue.bias)
        acc = np.stack([accumulate(unit, c[name], source, w, epilogue.bias) for c in self.codes]).astype(np.int32)
        # (images, places, channels)
        flat = (np.moveaxis(acc, 2, -1) if row["kind"] == "conv" else acc).reshape(len(acc), -1, len(epilogue.bias))
        row["epilogue"] = epilogue.kind
        if epilogue.real is not None:
            places = np.arange(flat.shape[1])
            row["host"] = {"scale": self.put("scale", epilogue.real.scale), "function": epilogue.function.name}
        else:
            places = np.unique(np.linspace(0, flat.shape[1] - 1, self.pixels).astype(np.int64))
            row["output"] = self.value(unit.output)
            row["lo"], row["hi"] = epilogue.lo, epilogue.hi
            numbers = {"M": epilogue.m, "S": epilogue.shift, "zero": epilogue.zero, "table": epilogue.table,
                       "M2": epilogue.m2, "S2": epilogue.shift2, "zero2": epilogue.zero2}  # fmt: skip
            row.update({k: self.put(k, v) for k, v in numbers.items() if v is not None})
        row["places"], row["accumulators"] = self.put("places", places), self.put("accumulators", flat[:, places])
        return row

    def _moves(self, node: g.Node, row: Row) -> list[Row]:
        """Where every code comes from, found by moving the numbers 1, 2, ..; what stays 0 is new."""
        source = node.inputs[0]
        shape = self.codes[0][str(source.name)].shape if source is not None else ()
        rest = [None if v is None else g.constant(v) for v in node.inputs[1:]]
        fill = 0
        if node.op_type == "Pad":
            number = np.zeros(1, np.float32) if len(rest) < 2 or rest[1] is None else np.asarray(rest[1], np.float32)
            fill = int(self.runner.encodings[row["inputs"][0]].quantize(number.reshape(-1)[:1])[0])
            rest[1:2] = [np.zeros(1, np.int64)]
        moved = ops.run_node(node, [np.arange(1, 1 + int(np.prod(shape))).reshape(shape), *rest])
        found = []
        for value, index in zip(node.outputs, moved):
            if str(value.name) in self.codes[0]:
                steps = self.put("steps", np.diff(index.reshape(-1), prepend=0).astype(np.int32))
                found.append({**row, "output": self.value(value), "kind": "move", "steps": steps, "fill": fill})
                self.count += 1
        return found


def _encodings(writer: _Writer, operation: ar.Operation) -> list[Encoding]:
    """Of what is computed at run time, then of the result."""
    known = writer.runner.encodings
    return [known[str(v.name)] for v in (*operation.inputs, operation.output)]


def _add(writer: _Writer, operation: ar.Operation) -> Row:
    a, b, y = _encodings(writer, operation)
    channels = 1 if y.axis is None else len(y.scale)
    k = ar.fixed_add(str(operation.nodes[0].name), a, b, y, channels, operation.clamp)
    arrays = {"A": k.a, "B": k.b, "S": k.shift, "zero": k.zero}
    return {"kind": "add", "z": [k.z_a, k.z_b], "lo": k.lo, "hi": k.hi,
            **{name: writer.put(name, v) for name, v in arrays.items()}}  # fmt: skip


def _mul(writer: _Writer, operation: ar.Operation) -> Row:
    a, b, y = _encodings(writer, operation)
    k = ar.fixed_mul(str(operation.nodes[0].name), a, b, y, operation.clamp)
    return {"kind": "mul", "z": [k.z_a, k.z_b, k.z_y], "M": k.m, "S": k.shift, "lo": k.lo, "hi": k.hi}


def _average(writer: _Writer, operation: ar.Operation) -> Row:
    node = operation.nodes[0]
    source, target = _encodings(writer, operation)
    hw = writer.codes[0][str(node.inputs[0].name)].shape[2:]  # type: ignore[union-attr]
    row: Row = {"kind": "average", "z": [int(source.zero_point), int(target.zero_point)]}
    if node.op_type == "AveragePool":
        kernel = g.attribute(node, "kernel_shape")
        _, count = ops.window_sums(node, np.zeros((1, 1, *hw), np.int64))
        row.update(_windows(node, hw, kernel))
    else:
        count = np.full((1, 1), hw[0] * hw[1])
        row.update(kernel=list(hw), strides=[1, 1], pads=[0, 0, 0, 0])
    m, shift = ar.fixed_average(str(node.name), source, target, int(count.max()))
    return {**row, "count": writer.put("count", count), "M": writer.put("M", m), "S": writer.put("S", shift)}


def _windows(node: g.Node, hw: tuple[int, ...], kernel: Sequence[int]) -> Row:
    at = ar.windows(node, (hw[0], hw[1]), (kernel[0], kernel[1]))
    ends = [end + more for end, more in zip(at.pads_end, at.overhang)]
    return {"kernel": list(kernel), "strides": list(at.strides), "pads": [*at.pads_begin, *ends]}


def _max_pool(writer: _Writer, operation: ar.Operation) -> Row:
    node = operation.nodes[0]
    hw = writer.codes[0][str(node.inputs[0].name)].shape[2:]  # type: ignore[union-attr]
    if node.op_type == "GlobalMaxPool":
        return {"kind": "max", "kernel": list(hw), "strides": [1, 1], "pads": [0, 0, 0, 0]}
    return {"kind": "max", **_windows(node, hw, g.attribute(node, "kernel_shape"))}


def _linear(writer: _Writer, operation: ar.Operation) -> Row:
    node, shape = operation.nodes[0], g.static_shape(operation.output) or ()
    row: Row = {"kind": "linear"}
    hw = writer.codes[0][str(node.inputs[0].name)].shape  # type: ignore[union-attr]
    for axis, name in ((2, "row"), (3, "column")):
        taps = ar.linear_taps(node, axis, hw[axis], shape[axis])
        arrays = {f"{name}0": taps.low, f"{name}1": taps.high, f"{name}_share": ar.fixed_weights(taps)}
        row.update({key: writer.put(key, v) for key, v in arrays.items()})
    return row


def _concat(writer: _Writer, operation: ar.Operation) -> Row:
    node, known = operation.nodes[0], writer.runner.encodings
    target, tables = known[str(operation.output.name)], []
    for k, value in enumerate(node.inputs):
        source = known[str(value.name)]  # type: ignore[union-attr]
        same = source == target and operation.clamp == ar.NONE
        table = None if same else writer.put(f"table{k}", ar.requant_table(source, target, operation.clamp))
        tables.append(table)
    return {"kind": "concat", "axis": g.attribute(node, "axis"), "tables": tables}


def _table(writer: _Writer, operation: ar.Operation) -> Row:
    known = writer.runner.encodings
    function = ar.plain_function(operation.nodes[0], known)
    assert function is not None
    source, target = _encodings(writer, operation)
    return {"kind": "table", "table": writer.put("table", ar.function_table(function, source, target))}


_FORMS = {"add": _add, "mul": _mul, "average": _average, "linear": _linear, "concat": _concat, "table": _table}


def _savez(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """np.savez_compressed with a fixed date, so that the same vectors are the same bytes."""
    import io
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in arrays.items():
            held = io.BytesIO()
            np.lib.format.write_array(held, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(entry, held.getvalue())
