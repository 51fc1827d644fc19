"""What the tests of Equalize, Smooth and CorrectBias share: a network, faults planted in it, and its error in int8."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from onnx_graphs import N, build, ort, rand
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.spec import DecodeSpec
from roadworthy.model.encoding import QuantSpec
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import to_qdq
from roadworthy.model.task import Task
from roadworthy.model.units import units
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import Placement
from roadworthy.quantize.quantize import quantize_units
from roadworthy.quantize.rescale import rescale, walk
from roadworthy.quantize.statistics import Statistics
from roadworthy.quantize.weights import weight_encoding

C = 12
TASK = Task(Preprocess((16, 16), "stretch", scale=1 / 255), DecodeSpec("raw"))


def network(act: str = "Relu", seed: int = 0, **fields: float) -> Model:
    """conv 3x3 - act - depthwise - act - conv 1x1 - act - conv 1x1, 12 channels, 16x16."""
    spread = np.random.default_rng(seed).uniform(0.8, 1.25, (6, C)).astype(np.float32)
    weights = {
        "w1": even(C, 3, 3, 3, seed=seed) * spread[0, :, None, None, None] / 3, "b1": rand(C, seed=seed) / 4,
        "w2": even(C, 1, 3, 3, seed=seed) * spread[1, :, None, None, None] / 3, "b2": rand(C, seed=seed + 1) / 4,
        "w3": even(C, C, 1, 1, seed=seed) / 3, "b3": rand(C, seed=seed + 2) / 4,
        "w4": even(5, C, 1, 1, seed=seed) / 3, "b4": rand(5, seed=seed + 3),
    }  # fmt: skip
    if act == "Clip":
        weights.update(zero=np.float32(0), most=np.float32(6))
    nodes = []
    value = "x"
    for k, extra in ((1, {"pads": [1, 1, 1, 1]}), (2, {"pads": [1, 1, 1, 1], "group": C}), (3, {}), (4, {})):
        nodes.append(N("Conv", [value, f"w{k}", f"b{k}"], ["y" if k == 4 else f"c{k}"], name=f"conv{k}", **extra))
        if k < 4:
            nodes.append(N(act, [f"c{k}", *(["zero", "most"] if act == "Clip" else [])], [f"a{k}"], **fields))
            value = f"a{k}"
    return load(build(nodes, weights, (1, 3, 16, 16)), TASK)


def even(*shape: int, seed: int) -> NDArray[np.float32]:
    """Weights of random sign and of sizes between 1/2 and 1: no channel stands out."""
    rng = np.random.default_rng([seed, *shape])
    return (rng.uniform(0.5, 1, shape) * rng.choice([-1, 1], shape)).astype(np.float32)


def planted(model: Model, spread: float = 4.0, seed: int = 3) -> Model:
    """The same function with channels scaled by 2^-spread to 2^spread."""
    found = walk(model, False)
    drawn = np.exp2(np.random.default_rng(seed).uniform(-spread, spread, found.count))
    return rescale(model, found, np.where(found.free, drawn, 1.0), "planted")


def images(count: int = 6, seed: int = 0) -> list[NDArray[np.float32]]:
    return [rand(1, 3, 16, 16, seed=100 * seed + k) for k in range(count)]


def pictures(count: int = 8) -> Samples:
    def picture(k: int) -> Sample:
        pixels = np.random.default_rng(k).integers(0, 256, (16, 16, 3), np.uint8)
        return Sample(f"{k}.png", load=lambda: pixels, key=str(k))

    return Samples([picture(k) for k in range(count)])


def measure(model: Model) -> Callable[[Mapping[str, int]], Mapping[str, Statistics]]:
    return lambda axes: calibrate(model, (), images(), 1, None, axes, axes)


def error(model: Model, exact: Model) -> float:
    """Relative mean squared error of `model` with its Q/DQ nodes against a float model, on other images."""
    data, wanted = to_qdq(model), exact.float_bytes()
    noise = signal = 0.0
    for x in images(4, seed=1):
        a, b = ort(wanted, x, False)["y"].astype(np.float64), ort(data, x, False)["y"].astype(np.float64)
        noise, signal = noise + float(np.square(a - b).sum()), signal + float(np.square(a - a.mean()).sum())
    return noise / signal


def weights_per_tensor(model: Model) -> Model:
    """All weights stored with 8 bits and one scale per tensor; activations in float."""
    found = quantize_units(model, Placement(frozenset(), {}, {}), {}, "minmax", {u.name: 8 for u in units(model.ir)})
    spec = QuantSpec(8, True, None, True, "minmax")
    made = {}
    for unit in units(model.ir):
        name = str(unit.weight.name)
        if name in found.encodings:
            from dataclasses import replace

            from roadworthy.model import graph as g

            made[name] = replace(weight_encoding(np.asarray(g.constant(unit.weight)), spec), storage=True)
    return found.with_encodings(made, "per tensor")
