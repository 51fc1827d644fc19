"""Sensitivity: what it would cost to round the weights of one layer to b bits, all other layers in float.

Four measures with one signature, in SENSITIVITIES. All give `Damage`, (layer, bits) -> expected damage >= 0, which is
meant to be added up over layers, and none looks at a label:

    sqnr      mean of |y' - y|^2 / |y|^2 over images and outputs        one float run for each layer and width
    distance  mean of the task distance between y' and y                the same, in the units that decide
    fisher    1/2 sum_i F_i (w'_i - w_i)^2                              one forward and backward for each image
    hessian   1/2 tr(H) / n |w' - w|^2                                  one double backward for each image and layer

y are the outputs with the weights w, y' those with the rounded w'. F_i = E[(dL/dw_i)^2] with labels drawn from the
network's own prediction is the diagonal of the Fisher matrix; tr(H) is the trace of the layer's block of the Hessian
of KL(p_w || p_w'), which at w' = w is the Fisher matrix itself: `hessian` is `fisher` with one number per layer instead
of one per weight. Both are nats per image, and both need the extra `[train]`.

Rank correlation with the task distance on 24 other images, one layer at 4 bits, measured on 8 images
(benchmarks/sensitivities.py; `hessian` affords 2 of them on YOLOX-Nano):

    MobileNetV1-0.75 (28 layers)   sqnr 0.95   distance 0.94   fisher 0.92   hessian 0.88
    YOLOX-Nano (113 layers)        sqnr 0.94   distance 0.98   fisher 0.94   hessian 0.80

fisher: Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018, and Li et al., "BRECQ",
ICLR 2021, for rounding. hessian: Dong et al., "HAWQ-V2", NeurIPS 2020 (which leaves out the factor 1/2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.encoding import QuantSpec, narrow_codes
from roadworthy.model.model import Model
from roadworthy.model.units import Unit, units
from roadworthy.quantize.weights import weight_encoding
from roadworthy.run.ort import OrtRunner, with_weights_as_inputs

Damage = Mapping[tuple[str, int], float]
"""(layer, bits) -> expected damage of rounding that layer's weights alone. Layers that share a weight have the same
entry, which counts once."""
Tensors = Callable[[], Iterable[NDArray]]
"""Makes the input tensors anew, one image each; they are read several times and never all kept."""
Outputs = dict[str, NDArray]
Distance = Callable[[Outputs, Outputs], float]
"""original outputs, candidate outputs -> distance; `lambda a, b: check.judge.distance(a, b, task)`, say."""
Rounded = Callable[[Unit, int], NDArray]
"""layer, bits -> its weight as it would be after rounding, float32."""
Progress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""

BITS = (3, 4, 5, 6, 8)
CHUNK = 16
"""Images whose tensors and outputs are held at a time."""
MOST_IMAGES = 32
"""Images that gradients are taken of, at most: the time does not grow beyond."""
PRODUCTS = 256
"""Products of Hessian and vector that `hessian` may take; each costs a few forward passes."""
_NOTHING = "there are no images to measure sensitivities with; hand in a folder that holds some"


class Sensitivity(Protocol):
    def __call__(
        self,
        model: Model,
        tensors: Tensors,
        bits: Sequence[int] = BITS,
        seed: int = 0,
        *,
        rounded: Rounded | None = None,
        distance: Distance | None = None,
        progress: Progress | None = None,
    ) -> Damage:
        """The damage of every layer at every width.

        model: its float graph counts; encodings are not looked at.   tensors: float32 in the model's input shape.
        rounded: how a weight is rounded; None is `nearest`.   distance: what "distance" measures.
        Raises InputError when there is no image, or when `distance` is missing where it is needed;
        MissingExtraError where PyTorch is needed and absent.
        """
        ...


def nearest(unit: Unit, bits: int) -> NDArray[np.float32]:
    """The weight of a layer rounded to the nearest code, with the scale of least squared error for each channel."""
    weight = g.constant(unit.weight)
    assert weight is not None
    axis = unit.weight_axis if unit.per_channel else None
    encoding = weight_encoding(weight, QuantSpec(bits, True, axis, True, "mse"))
    return encoding.dequantize(narrow_codes(weight, encoding))


def sqnr(
    model: Model,
    tensors: Tensors,
    bits: Sequence[int] = BITS,
    seed: int = 0,
    *,
    rounded: Rounded | None = None,
    distance: Distance | None = None,
    progress: Progress | None = None,
) -> Damage:
    """Noise over signal of the outputs (the inverse of SQNR), one layer rounded at a time."""
    return _one_by_one(model, tensors, bits, rounded or nearest, noise_over_signal, progress)


def distance(
    model: Model,
    tensors: Tensors,
    bits: Sequence[int] = BITS,
    seed: int = 0,
    *,
    rounded: Rounded | None = None,
    distance: Distance | None = None,
    progress: Progress | None = None,
) -> Damage:
    """The mean of a given distance between the outputs, one layer rounded at a time."""
    if distance is None:
        raise InputError("the sensitivity `distance` needs a function that compares outputs; hand in distance=")
    return _one_by_one(model, tensors, bits, rounded or nearest, distance, progress)


def noise_over_signal(a: Outputs, b: Outputs) -> float:
    """Mean over the outputs of |b - a|^2 / |a|^2; infinite where b is not finite."""
    ratios = []
    for name, wanted in a.items():
        noise = float(((b[name] - wanted).astype(np.float64) ** 2).sum())
        ratios.append(noise / max(float((wanted.astype(np.float64) ** 2).sum()), 1e-30))
    mean = float(np.mean(ratios))
    return mean if np.isfinite(mean) else np.inf


def layers_of_weights(model: Model) -> dict[str, list[Unit]]:
    """Weight name -> the layers that read it, in execution order."""
    found: dict[str, list[Unit]] = {}
    for unit in units(model.ir):
        found.setdefault(str(unit.weight.name), []).append(unit)
    return found


def _one_by_one(
    model: Model, tensors: Tensors, bits: Sequence[int], rounded: Rounded, compare: Distance, progress: Progress | None
) -> Damage:
    """The mean of compare(original, one layer rounded) over all images.

    Weights are handed to one session as inputs, so that nothing is loaded anew for each of hundreds of candidates.
    """
    weights = layers_of_weights(model)
    runner = OrtRunner(with_weights_as_inputs(model.float_bytes(), list(weights)))
    total = {(name, b): 0.0 for name in weights for b in bits}
    images, stream = 0, iter(tensors())
    while chunk := [np.ascontiguousarray(t, np.float32) for t in islice(stream, CHUNK)]:
        originals = [runner.run({model.input_name: t}) for t in chunk]
        for done, (name, b) in enumerate(total):
            weight = rounded(weights[name][0], b)
            for tensor, original in zip(chunk, originals):
                total[name, b] += compare(original, runner.run({model.input_name: tensor, name: weight}))
            if progress:
                progress(images * len(total) + (done + 1) * len(chunk), (images + len(chunk)) * len(total))
        images += len(chunk)
    if not images:
        raise InputError(_NOTHING)
    return {(u.name, b): sum_ / images for (name, b), sum_ in total.items() for u in weights[name]}


def fisher(
    model: Model,
    tensors: Tensors,
    bits: Sequence[int] = BITS,
    seed: int = 0,
    *,
    rounded: Rounded | None = None,
    distance: Distance | None = None,
    progress: Progress | None = None,
) -> Damage:
    """1/2 sum F (w' - w)^2 in nats per image, F the diagonal of the Fisher matrix (see the top)."""
    importance = fisher_of_weights(model, tensors, seed, progress=progress)
    return _of_rounding(model, bits, rounded or nearest, lambda name, error: float((importance[name] * error**2).sum()))


def hessian(
    model: Model,
    tensors: Tensors,
    bits: Sequence[int] = BITS,
    seed: int = 0,
    *,
    rounded: Rounded | None = None,
    distance: Distance | None = None,
    progress: Progress | None = None,
) -> Damage:
    """1/2 tr(H) / n |w' - w|^2 in nats per image, the trace by Hutchinson's estimator (see the top)."""
    trace = hessian_traces(model, tensors, seed, progress=progress)
    return _of_rounding(model, bits, rounded or nearest, lambda name, error: trace[name] * float((error**2).mean()))


def fisher_of_weights(
    model: Model, tensors: Tensors, seed: int = 0, draws: int = 4, progress: Progress | None = None
) -> dict[str, NDArray[np.float64]]:
    """Weight name -> E[(dL/dw)^2], in the weight's shape; the labels are drawn from the model's own prediction.

    The first MOST_IMAGES images count, one at a time.   draws: labels for each image.   Raises as `Sensitivity`.
    """
    from roadworthy.run import torch as bridge

    module, names, images = bridge.module_of(model), list(layers_of_weights(model)), _first(tensors)
    from roadworthy.run.torch.curvature import squared_gradients

    return squared_gradients(module, names, images, model.task, seed, draws, _of(progress, len(images)))


def hessian_traces(
    model: Model, tensors: Tensors, seed: int = 0, probes: int = 1, progress: Progress | None = None
) -> dict[str, float]:
    """Weight name -> trace of its block of the Hessian; the loss needs no labels (run/torch/likelihood.py).

    As many images count as give PRODUCTS products of Hessian and vector, at least 2, one at a time.   probes: random
    vectors for each image and layer.   Raises as `Sensitivity`.
    """
    from roadworthy.run import torch as bridge

    module, names = bridge.module_of(model), list(layers_of_weights(model))
    images = _first(tensors, max(PRODUCTS // (len(names) * probes or 1), 2))
    from roadworthy.run.torch.curvature import traces

    found = traces(module, names, images, model.task, seed, probes, _of(progress, len(images)))
    return {name: max(value, 0.0) for name, value in found.items()}  # below zero only by chance


def _first(tensors: Tensors, most: int = MOST_IMAGES) -> list[NDArray]:
    images = list(islice(tensors(), min(most, MOST_IMAGES)))
    if not images:
        raise InputError(_NOTHING)
    return images


def _of(progress: Progress | None, count: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(done, count)


def _of_rounding(
    model: Model, bits: Sequence[int], rounded: Rounded, quadratic: Callable[[str, NDArray], float]
) -> Damage:
    """Half of quadratic(weight name, rounding error) for every layer and width."""
    found: dict[tuple[str, int], float] = {}
    for name, layers in layers_of_weights(model).items():
        weight = g.constant(layers[0].weight)
        assert weight is not None
        for b in bits:
            damage = quadratic(name, rounded(layers[0], b).astype(np.float64) - weight) / 2
            found.update({(unit.name, b): damage for unit in layers})
    return found


SENSITIVITIES: dict[str, Sensitivity] = {
    "sqnr": sqnr,
    "distance": distance,
    "fisher": fisher,
    "hessian": hessian,
}
