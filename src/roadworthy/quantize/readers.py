"""Ranges by what the readers make of them: the clipping of a value that disturbs the layers behind it least.

The squared error of a tensor says little where a reader saturates: a channel that reaches 139 and only ever pushes a
SiLU to zero may be cut at less than half of that, and gains a bit. So a few calibration images run through every layer
that reads the value, once as it is and once rounded, for each candidate range:

    m = max(|lo|, |hi|)      range(t) = max(lo, -t m) .. min(hi, t m)      t in CLIPS
    error(t) = sum over images and readers of  E |f(conv(x rounded with range(t))) - f(conv(x))|^2 / E |f(conv(x))|^2

f is the reader's activation, E the mean over one image: each image counts alike, a loud one no more than others. The
largest t with at most CUT times the least error is taken, as cutting shifts means, and shifts of many layers add up
where roundings do not: one per channel where only depthwise layers read the value (each channel goes its own way
there), else one per tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, QuantSpec, encoding_of_range, encoding_of_ranges
from roadworthy.model.model import Model
from roadworthy.model.units import Unit, units
from roadworthy.quantize.calibrate import tap_readers
from roadworthy.quantize.place import Placement
from roadworthy.quantize.statistics import Statistics
from roadworthy.run.ort import OrtRunner

CLIPS = (1.0, 0.85, 0.7, 0.55, 0.4)
CUT = 1.5
QUIET = 1e-3
"""Least energy of a channel, as a share of the mean of all: an image on which it is silent says nothing about it."""
Key = tuple[str, int | None, tuple[str, ...]]
"""A value, the axis of its scales, and the names of the layers that read it."""
_CODES = onnx.TensorProto.UINT8
_FLOAT = onnx.TensorProto.FLOAT


def encodings_by_readers(
    model: Model,
    placement: Placement,
    statistics: Mapping[str, Statistics],
    activations: Mapping[str, Encoding],
    tensors: Callable[[], Iterable[NDArray]],
    known: dict[Key, Encoding],
) -> dict[str, Encoding]:
    """The encodings, with those replaced that int8 layers read directly.

    tensors: makes a few inputs of the model.   known: what was found before on the same images; it is added to.
    """
    readers_of = _layers_behind(model, placement)
    keys = {name: (name, activations[name].axis, tuple(u.name for u in behind)) for name, behind in readers_of.items()}
    values = g.values(model.ir)
    searches = {
        name: _Search(model, values[name], behind, statistics[name], activations[name].axis)
        for name, behind in readers_of.items()
        if keys[name] not in known
    }
    if searches:
        readers = tap_readers(model, list(searches))
        for tensor in tensors():
            for reader in readers:
                for name, x in reader.read(np.ascontiguousarray(tensor, np.float32)).items():
                    if name in searches:
                        searches[name].look(x)
        known.update({keys[name]: search.best() for name, search in searches.items()})
    found = {origin: activations[origin] for origin in dict.fromkeys(placement.source.values())}
    found.update({name: known[key] for name, key in keys.items()})
    return {name: found[origin] for name, origin in placement.source.items()}


def _layers_behind(model: Model, placement: Placement) -> dict[str, list[Unit]]:
    """Value with an encoding of its own -> the int8 layers that read it; neither the image nor results."""
    of_anchor = {id(u.anchor): u for u in units(model.ir) if u.name in placement.int8}
    results = {placement.source[name] for name in placement.results}
    found: dict[str, list[Unit]] = {}
    values = g.values(model.ir)
    for origin in dict.fromkeys(placement.source.values()):
        if origin == model.input_name or origin in results:
            continue
        behind = [of_anchor[id(u.node)] for u in values[origin].uses() if id(u.node) in of_anchor and u.idx == 0]
        if behind:
            found[origin] = behind
    return found


class _Search:
    """One value: candidate encodings, and the errors of its readers under each so far."""

    def __init__(self, model: Model, value: g.Value, behind: list[Unit], stats: Statistics, axis: int | None) -> None:
        spec = QuantSpec(axis=axis)
        if axis is not None and stats.channels is not None:
            lo, hi = stats.channels.lo, stats.channels.hi
        else:
            lo, hi = np.asarray(stats.lo), np.asarray(stats.hi)
        size = np.maximum(np.abs(lo), np.abs(hi))
        ranges = [(np.maximum(lo, -t * size), np.minimum(hi, t * size)) for t in CLIPS]
        if axis is None:
            self.candidates = [encoding_of_range(float(a), float(b), spec) for a, b in ranges]
        else:
            self.candidates = [encoding_of_ranges(a, b, spec) for a, b in ranges]
        self.axis = axis
        self._x = str(value.name)
        self._layers = [_layer(model, value, unit, axis) for unit in behind]
        self._sums = [np.zeros(()) for _ in CLIPS]

    def look(self, x: NDArray) -> None:
        """Add one image's errors.   x: the value, as the float network makes it."""
        for layer in self._layers:
            for j, encoding in enumerate(self.candidates):
                feeds = {
                    self._x: x,
                    "@q/scale": np.asarray(encoding.scale),
                    "@q/zero": encoding.zero_point.astype(np.uint8),
                }
                found = layer.run(feeds)
                energy = found["@q/energies"].astype(np.float64)
                energy = np.maximum(energy, QUIET * energy.mean() + 1e-30)
                self._sums[j] = self._sums[j] + found["@q/errors"].astype(np.float64) / energy

    def best(self) -> Encoding:
        """The encoding of least error; of every channel, where it has one each."""
        total = np.stack(self._sums)
        best = np.argmax(total <= CUT * total.min(0), axis=0)  # the first, and so the widest
        if self.axis is None:
            return self.candidates[int(best)]
        at = np.arange(len(best))
        scale = np.stack([e.scale for e in self.candidates])[best, at]
        zero = np.stack([e.zero_point for e in self.candidates])[best, at]
        return Encoding(scale, zero, 8, False, self.axis)


def _layer(model: Model, value: g.Value, unit: Unit, axis: int | None) -> OrtRunner:
    """The unit alone, twice: x, scale, zero -> sums of squared errors and of squares, over all or per channel.

    Names of its own begin with @q/, so that none meets one of the graph.
    """
    x, y = str(value.name), str(unit.output.name)
    operands = [v for n in unit.nodes for v in n.inputs if v is not None]
    constants = {str(v.name): a for v in operands if (a := g.constant(v)) is not None}
    rounded = [helper.make_node("QuantizeLinear", [x, "@q/scale", "@q/zero"], ["@q/codes"]),
               helper.make_node("DequantizeLinear", ["@q/codes", "@q/scale", "@q/zero"], ["@q/x"])]  # fmt: skip
    if axis is not None:
        for node in rounded:
            node.attribute.append(helper.make_attribute("axis", axis))
    again = []
    for part in unit.nodes:
        copy = g.node_proto(part)
        copy.name = "@q/" + copy.name
        copy.input[:] = [n if n in constants or not n else ("@q/x" if n == x else "@q/" + n) for n in copy.input]
        copy.output[:] = ["@q/" + n for n in copy.output]
        again.append(copy)
    rank = len(g.static_shape(unit.output) or ())
    constants["@q/axes"] = np.array([k for k in range(rank) if axis is None or k != axis], np.int64)
    sums = [
        helper.make_node("Sub", ["@q/" + y, y], ["@q/difference"]),
        helper.make_node("Mul", ["@q/difference", "@q/difference"], ["@q/error"]),
        helper.make_node("Mul", [y, y], ["@q/energy"]),
        helper.make_node("ReduceSum", ["@q/error", "@q/axes"], ["@q/errors"], keepdims=0),
        helper.make_node("ReduceSum", ["@q/energy", "@q/axes"], ["@q/energies"], keepdims=0),
    ]
    shape = [] if axis is None else [(g.static_shape(value) or ())[axis]]
    graph = helper.make_graph(
        [*(g.node_proto(n) for n in unit.nodes), *rounded, *again, *sums],
        "layer",
        [
            helper.make_tensor_value_info(x, _FLOAT, g.static_shape(value)),
            helper.make_tensor_value_info("@q/scale", _FLOAT, shape),
            helper.make_tensor_value_info("@q/zero", _CODES, shape),
        ],
        [helper.make_tensor_value_info(n, _FLOAT, None) for n in ("@q/errors", "@q/energies")],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", g.opset(model.ir))])
    proto.ir_version = 10
    return OrtRunner(proto.SerializeToString(), 1)  # small layers; more threads would wait for each other
