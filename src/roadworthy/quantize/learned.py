"""Learned rounding of a network: every layer's codes chosen for the least error of its output, without labels.

For each layer with an encoded weight: the moments of its input (gram.py) say what an error of its weights does to its
output; the codes that do least are found (rounding.py); the scale of every output channel is fitted to its codes,

    s[c] = (q A t) / (q A q)        q: codes of the row, t: its weights

and the codes found anew, where that lowers the error; the weight that lies on the grid is written into the graph, so
that rounding it gives these codes again; and the bias takes back the mean shift that is left, b' = b + (W - W') E[x].

The moments are those of the float network. Layers fitted to the inputs that the quantized network has, a dozen at a
time, make up for the same errors several times over, and YOLOX-Nano was ruined; one at a time would need a pass over
the images for each, and was not measured. Patches weighted by the slope of the activation brought nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding, narrow_codes
from roadworthy.model.model import Model
from roadworthy.model.units import Unit, units
from roadworthy.quantize import gram
from roadworthy.quantize.bias import add_to_bias
from roadworthy.quantize.rounding import F64, METHODS, Grid, damped, loss, nearest, sequential
from roadworthy.quantize.weights import MAX_BIAS_CODE
from roadworthy.run.arithmetic import int8_refusal

FACTORS = (1.0, 0.9, 0.8, 1.1)
"""Scales that are tried, as multiples of the one that is there."""
REFITS = 2
"""How often scales are then fitted to the codes, and codes found anew."""


@dataclass(frozen=True)
class Group:
    """Layers that read one weight, all in the same way; mostly it is one layer."""

    layers: tuple[Unit, ...]

    @property
    def weight(self) -> g.Value:
        return self.layers[0].weight


def plan(model: Model) -> tuple[list[Group], dict[str, str]]:
    """The weights whose rounding can be learned; and, by name of the layer, why those of others cannot."""
    sharing: dict[str, list[Unit]] = {}
    for unit in units(model.ir):
        if str(unit.weight.name) in model.encodings:
            sharing.setdefault(str(unit.weight.name), []).append(unit)
    groups, reasons = [], {}
    for name, layers in sharing.items():
        reason = _refusal(layers, model.encodings[name])
        if reason is None:
            groups.append(Group(tuple(layers)))
        else:
            reasons.update({u.name: reason for u in layers})
    return groups, reasons


def _refusal(layers: Sequence[Unit], encoding: Encoding) -> str | None:
    if encoding.bits > 8:
        return f"its weight has {encoding.bits} bits"
    if not encoding.signed or encoding.zero_point.any():
        return "its weight is not encoded symmetrically"
    for unit in layers:
        if (reason := gram.refusal(unit)) is not None:
            return reason
    if len(list(layers[0].weight.uses())) > len(layers) or layers[0].weight.is_graph_output():
        return "its weight is read by something that is no layer"
    numbers = np.arange(g.constant(layers[0].weight).size).reshape(g.constant(layers[0].weight).shape)  # type: ignore[union-attr]
    orders = [gram.to_rows(u, numbers) for u in layers]
    if not all(np.array_equal(o, orders[0]) for o in orders):
        return f"its weight is shared with {layers[0].name}, which reads it in another way"
    return None


def round_weights(
    model: Model,
    tensors: Callable[[], Iterable[NDArray]],
    method: str = "descent",
    refit: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Model:
    """A model whose encoded weights lie on their grids, rounded by a method of METHODS; biases make up for the rest.

    tensors: makes float32 inputs of the model, one image each; called once for every pass over the images.
    refit: fit the scales of output channels to the codes (not those that are all powers of two).
    progress: told the images seen so far.
    Raises InputError when there are no images or a value overflows.
    """
    groups, reasons = plan(model)
    ir = g.clone(model.ir)
    fresh = {u.name: u for u in units(ir)}
    encodings = dict(model.encodings)
    layers = [u for group in groups for u in group.layers]
    found = gram.gather(model, layers, tensors, progress) if layers else iter(())
    for group in groups:
        moments = [next(found)[1] for _ in group.layers]
        copies = [fresh[u.name] for u in group.layers]
        _round_group(ir, copies, moments, encodings, method, refit)
    said = f"round: {len(layers)} layers by {method}, {len(reasons)} left alone"
    return replace(model.with_ir(ir, said), encodings=model.with_encodings(encodings, said).encodings)


def _round_group(
    ir: g.IrModel,
    layers: Sequence[Unit],
    moments: Sequence[gram.Moments],
    encodings: dict[str, Encoding],
    method: str,
    refit: bool,
) -> None:
    name = str(layers[0].weight.name)
    encoding, weight = encodings[name], g.constant(layers[0].weight)
    assert weight is not None
    refused = [int8_refusal(u, encodings) for u in layers]
    target = gram.to_rows(layers[0], weight.astype(np.float64))
    total = sum(m.count for m in moments)
    moment = damped(sum(m.moment(_takes_back(u)) * (m.count / total) for u, m in zip(layers, moments)))  # type: ignore[arg-type]
    codes = narrow_codes(weight, encoding)
    made, scale = solve(target, moment, _grid(layers[0], weight, encoding), method,
                        _least_scale(layers, encodings) if refit and _fits(layers[0], encoding) else None)  # fmt: skip
    learned = encoding if scale is None else replace(encoding, scale=scale)
    steps = _scales(layers[0], weight, learned)
    rounded = gram.from_rows(layers[0], np.rint(made / steps), weight.shape).astype(np.int64)
    encodings[name] = learned
    g.set_constant(layers[0].weight, learned.dequantize(rounded))
    if [int8_refusal(u, encodings) for u in layers] != refused:  # other codes, and the sums could overflow
        encodings[name] = encoding
        g.set_constant(layers[0].weight, encoding.dequantize(codes))
    left = target - gram.to_rows(layers[0], np.asarray(g.constant(layers[0].weight), np.float64))
    for unit, m in zip(layers, moments):
        shift = (left @ m.mean[:, :, None])[:, :, 0]
        if unit.anchor.op_type == "ConvTranspose":  # the pixels of a window share a bias
            shift = shift.reshape(-1, int(np.prod(weight.shape[2:]))).mean(1)
        alpha = g.attribute(unit.anchor, "alpha", 1.0) if unit.anchor.op_type == "Gemm" else 1.0
        add_to_bias(ir, unit, shift.reshape(-1) * alpha)


def solve(
    target: F64, moment: F64, grid: Grid, method: str, least_scale: F64 | None
) -> tuple[F64, NDArray[np.float32] | None]:
    """Weights (G, N, K) on the grid; and new scales (G * N,) where they were fitted, else None.

    least_scale: (G * N,) what the scales must not fall below; None keeps them as they are.
    No row is worse than its nearest rounding, on these moments.
    """
    best = nearest(target, moment, grid)
    error = loss(best, target, moment)
    whole = np.broadcast_to(grid.scale, target.shape)
    if least_scale is None:
        return _better(best, error, METHODS[method](target, moment, grid), target, moment)[0], None
    least = least_scale.reshape(error.shape)
    start = scale = whole[..., 0]
    for k in range(len(FACTORS) + REFITS):
        # Clips of other width first, then the scale that suits the codes.
        wish = start * FACTORS[k] if k < len(FACTORS) else _fitted(np.rint(best / scale[..., None]), target, moment)
        wish = np.where(wish > 0.3 * start, wish, scale)
        wish = np.maximum(wish, least).astype(np.float32).astype(np.float64)
        trial = sequential(target, moment, replace(grid, scale=wish[..., None]))
        scale = np.where(loss(trial, target, moment) < error, wish, scale)
        best, error = _better(best, error, trial, target, moment)
    trial = METHODS[method](target, moment, replace(grid, scale=scale[..., None]))
    best, error = _better(best, error, trial, target, moment)
    return best, np.ascontiguousarray(scale).reshape(-1).astype(np.float32)


def _fitted(codes: F64, target: F64, moment: F64) -> F64:
    """(G, N) the scale of each row that suits its codes best; 0 for a row of zeros."""
    pushed = codes @ moment
    energy = (pushed * codes).sum(-1)
    return np.where(energy > 0, (pushed * target).sum(-1) / np.maximum(energy, 1e-300), 0.0)


def _better(best: F64, error: F64, trial: F64, target: F64, moment: F64) -> tuple[F64, F64]:
    """Row by row, the one of less error; of equals the first."""
    other = loss(trial, target, moment)
    wins = other < error
    return np.where(wins[..., None], trial, best), np.where(wins, other, error)


def _scales(unit: Unit, weight: NDArray, encoding: Encoding) -> F64:
    """The scale of every weight, (G, N, K)."""
    shape = [1] * weight.ndim
    if encoding.axis is not None:
        shape[encoding.axis] = -1
    scale = np.broadcast_to(encoding.scale.astype(np.float64).reshape(shape), weight.shape)
    return gram.to_rows(unit, scale)


def _grid(unit: Unit, weight: NDArray, encoding: Encoding) -> Grid:
    levels = getattr(encoding, "levels", None)
    known = None if levels is None else np.asarray(levels, np.int64)
    return Grid(_scales(unit, weight, encoding), -encoding.qmax, encoding.qmax, known)


def _fits(unit: Unit, encoding: Encoding) -> bool:
    """Whether every row has a scale of its own that may be any number."""
    if encoding.axis is None or unit.anchor.op_type == "ConvTranspose":
        return False
    powers = np.frexp(encoding.scale)[0] == 0.5
    return not powers.all() and encoding.axis == unit.weight_axis


def _least_scale(layers: Sequence[Unit], encodings: dict[str, Encoding]) -> F64:
    """(channels,) scales below which a bias of a layer in int8 would not fit 32 bits; see weights.widen_for_bias."""
    scale = encodings[str(layers[0].weight.name)].scale
    least = np.full(scale.shape, 1e-30)
    for unit in layers:
        source, bias = encodings.get(str(unit.input.name)), g.constant(unit.bias)
        if source is not None and bias is not None and bias.size in (1, scale.size):
            # Twice the bias: rounding may add to it.
            needed = 2 * np.abs(bias.astype(np.float64)).reshape(-1) / (source.scale * MAX_BIAS_CODE)
            least = np.maximum(least, np.minimum(needed, scale))
    return least


def _takes_back(unit: Unit) -> bool:
    """Whether the bias can take back any mean shift, so that only what varies around the mean counts."""
    op = unit.anchor.op_type
    if op == "MatMul":
        return len(unit.nodes) > 1 and unit.nodes[1].op_type == "Add"
    return op != "ConvTranspose" and (unit.bias is None or g.constant(unit.bias) is not None)
