"""Bias correction by measurement: the mean of each layer's *result* brought back to what it was before quantization.

Layers are taken in graph order, those of one depth together, each after everything in front of it was corrected. With
p the value in front of the activation f, y the result as its readers see it, and E the mean over an image:

    d[c] = E y'[c] - E y[c]          averaged over images, with its standard error e[c]
    b'[c] = b[c] - k[c] d[c] / E f'(p'[c])      k = max(0, 1 - e^2 / d^2)

(Nagel et al., ICCV 2019, correct the mean in front of the activation; but a mean there counts values that the
activation turns to zero.) Where f is flat there is nothing to gain, and the bias stays. The first half of the images
decides b'; a layer keeps it only if the squared error of its result shrinks on the other half.

The network runs as Q/DQ on ONNX Runtime, whatever the target: its layers differ from the target's in last bits only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model
from roadworthy.model.qdq import RAW, to_qdq
from roadworthy.model.units import Unit, units
from roadworthy.quantize.bias import add_to_bias
from roadworthy.quantize.curve import Curve
from roadworthy.quantize.place import before_activation
from roadworthy.run.ort import OrtRunner

IMAGES = 16
"""Most images that are held in memory and used, half of them for the check."""
POSITIONS = 512
"""Most positions of a channel and image that are looked at."""
FLAT = 0.1
"""Least mean slope of an activation: below, a bias hardly moves the mean."""
Progress = Callable[[int, int], None]
Array = NDArray[np.float64]


def correct_by_measurement(
    model: Model, start: Model, tensors: Sequence[NDArray], progress: Progress | None = None
) -> Model:
    """`start` with biases corrected layer by layer.

    model: the quantized model whose float graph is the reference.   start: the same with the biases to begin with.
    tensors: inputs, 4 or more; at most IMAGES are used.   progress: is told depths done and their number.
    """
    tensors = list(tensors)[:IMAGES]
    original = model.float_bytes()
    by_depth = depths(model)
    made, kept, tried = start, 0, 0
    for done, names in enumerate(by_depth):
        layers = [_Layer.of(made, u) for u in units(made.ir) if u.name in names]
        layers = [layer for layer in layers if layer is not None]
        if layers:
            found = _measure(original, made, [y for y in layers if y is not None], tensors)
            tried += len(found)
            moves = {name: amount for name, amount in found.items() if amount is not None}
            kept += len(moves)
            made = _moved(made, moves)
        if progress:
            progress(done + 1, len(by_depth))
    return made.with_ir(made.ir, f"correct bias by measurement: {kept} of {tried} layers")


def depths(model: Model) -> list[set[str]]:
    """Names of the units whose weights have an encoding, by how many units lie in front of them; none of one depth
    reads another."""
    of_anchor = {id(u.anchor): u for u in units(model.ir)}
    depth: dict[str, int] = {}
    found: dict[int, set[str]] = {}
    for node in g.nodes(model.ir):
        level = max((depth.get(str(v.name), 0) for v in node.inputs if v is not None), default=0)
        unit = of_anchor.get(id(node))
        if unit is not None:
            if str(unit.weight.name) in model.encodings:
                found.setdefault(level, set()).add(unit.name)
            level += 1
        depth.update({str(v.name): level for v in node.outputs})
    return [found[level] for level in sorted(found)]


@dataclass(frozen=True, eq=False)
class _Layer:
    """name: of the unit.   before: the value in front of its activation.   axis: of its channels.   inner, outer:
    encodings of that value and of the result, where they have one."""

    name: str
    before: str
    axis: int
    curve: Curve | None
    inner: Encoding | None
    outer: Encoding | None

    @classmethod
    def of(cls, model: Model, unit: Unit) -> _Layer | None:
        value = before_activation(unit)
        if g.static_shape(value) is None:
            return None
        curve = None if unit.output is value else Curve(model.ir, unit, value)
        inner = model.encodings.get(str(value.name)) if curve is not None else None
        axis = 1 if unit.anchor.op_type in ("Conv", "ConvTranspose") else -1
        return cls(unit.name, str(value.name), axis, curve, inner, model.encodings.get(str(unit.output.name)))

    def rows(self, p: NDArray) -> Array:
        """(C, positions), an even sample."""
        rows = np.moveaxis(p, self.axis, 0)
        rows = rows.reshape(len(rows), -1)
        step = -(-rows.shape[1] // POSITIONS)
        while step > 1 and rows.shape[1] % step == 0:  # a step that shares no column with the next row
            step += 1
        return rows[:, ::step].astype(np.float64)

    def function(self, p: Array) -> Array:
        return p if self.curve is None else self.curve(p)

    def result(self, p: Array) -> Array:
        """What readers see, from the value in front of the activation, (C, positions)."""
        if self.inner is not None:
            p = _fake(self.inner, p)
        y = self.function(p)
        return y if self.outer is None else _fake(self.outer, y)


def _fake(encoding: Encoding, rows: Array) -> Array:
    """A round trip through codes, of (C, positions); in float64, as the values are only averaged."""
    scale, zero = (np.asarray(v, np.float64).reshape(-1, 1) for v in (encoding.scale, encoding.zero_point))
    return np.asarray((np.clip(np.rint(rows / scale) + zero, encoding.qmin, encoding.qmax) - zero) * scale)


def _measure(original: bytes, made: Model, layers: list[_Layer], tensors: Sequence[NDArray]) -> dict[str, Array | None]:
    """Layer name -> what to add to its bias, or None where that would not help."""
    names = [y.before for y in layers]
    quantized, wanted = _tapped(to_qdq(made), names), _tapped(original, names)
    half = max(len(tensors) // 2, 1)
    differences: dict[str, list[Array]] = {y.name: [] for y in layers}
    slopes: dict[str, list[Array]] = {y.name: [] for y in layers}
    amounts: dict[str, Array] = {}
    gained = dict.fromkeys(differences, 0.0)
    for k, tensor in enumerate(tensors):
        if k == half:
            amounts = {name: _amount(differences[name], slopes[name]) for name in differences}
        have, want = quantized.read(tensor), wanted.read(tensor)
        for layer in layers:
            p, target = layer.rows(have[layer.before]), layer.function(layer.rows(want[layer.before]))
            y = layer.result(p)
            if k < half:
                step = np.maximum(p.std(1, keepdims=True), 1e-6) / 16
                slope = (layer.function(p + step) - layer.function(p - step)).mean(1) / (2 * step[:, 0])
                differences[layer.name].append((y - target).mean(1))
                slopes[layer.name].append(slope)
            else:
                after = layer.result(p + amounts[layer.name][:, None])
                energy = max(float(np.square(target).mean()), 1e-30)  # each image counts alike
                gained[layer.name] += float((np.square(y - target) - np.square(after - target)).mean()) / energy
    return {name: amount if gained[name] > 0 and amount.any() else None for name, amount in amounts.items()}


def _amount(differences: list[Array], slopes: list[Array]) -> Array:
    each = np.stack(differences)
    d, slope = each.mean(0), np.stack(slopes).mean(0)
    error = each.var(0, ddof=1) / len(each) if len(each) > 1 else np.square(d)
    share = np.maximum(1 - error / np.maximum(np.square(d), 1e-30), 0.0)
    return np.where(slope > FLAT, -share * d / np.maximum(slope, FLAT), 0.0)


class _tapped:
    """A network cut down to some of its values.   names: as in the float graph."""

    def __init__(self, model: bytes, names: Sequence[str]) -> None:
        proto = onnx.load_model_from_string(model)
        made = {o for node in proto.graph.node for o in node.output}
        # A result that is rounded for the caller has its unrounded value under a name of its own.
        self._of = {name: name + RAW if name + RAW in made else name for name in names}
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in sorted(set(self._of.values())))
        self._runner = OrtRunner(proto.SerializeToString())

    def read(self, tensor: NDArray) -> dict[str, NDArray]:
        found = self._runner.run({self._runner.input_names[0]: tensor})
        return {name: found[real] for name, real in self._of.items()}


def _moved(model: Model, amounts: dict[str, Array]) -> Model:
    if not amounts:
        return model
    ir = g.clone(model.ir)
    for unit in units(ir):
        if unit.name in amounts:
            add_to_bias(ir, unit, amounts[unit.name])
    return Model(ir, model.encodings, model.task, model.history, model.source, model.sha256, model.size)
