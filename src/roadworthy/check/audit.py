"""What every rounded value costs alone: the float network with one value rounded to its codes, and nothing else.

    damage(v) = mean over images of distance(outputs, outputs with v rounded)          check/judge.distance
    all together: about sqrt(sum of damage(v)^2), as roundings of different values are nearly independent

The values in front of 8-bit tables are the ones that a quantizer can do without, at the price of a slower activation:
`harmful` names those to give up. A bound on the error of each tensor cannot say it: four of YOLOX-Nano's fifty tables,
each within the bound, do most of the damage of all (docs/decisions/0008).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from roadworthy.check.judge import distance
from roadworthy.model import graph as g
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model
from roadworthy.model.task import Task
from roadworthy.run.ort import OrtRunner

Probes = Sequence[tuple[NDArray, dict[str, NDArray]]]
"""Input tensors, and the original's outputs for them."""


def damages(
    model: Model,
    task: Task,
    probes: Probes,
    encodings: Mapping[str, Encoding],
    names: Collection[str],
    threads: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Value -> what rounding it alone does to the outputs of the float graph.   names: values with encodings."""
    found = {}
    for done, name in enumerate(names, 1):
        found[name] = damage(model, task, probes, {name: encodings[name]}, threads)
        if progress:
            progress(done)
    return found


def damage(model: Model, task: Task, probes: Probes, encodings: Mapping[str, Encoding], threads: int = 0) -> float:
    """What rounding all these values together does."""
    runner = OrtRunner(rounded_at(model, encodings), threads)
    return float(np.mean([distance(want, runner.run({model.input_name: x}), task) for x, want in probes]))


def harmful(alone: Mapping[str, float], base: float, share: float) -> list[str]:
    """The fewest values, worst first, without which the others together add at most `share` to `base`.

    base: the damage of everything else that is rounded.   share: of base, as a rise of the root of the sum of squares.
    """
    allowed = base**2 * ((1 + share) ** 2 - 1)
    harmless, total = 0, 0.0
    order = sorted(alone, key=lambda n: alone[n])
    for name in order:
        total += alone[name] ** 2
        if total > allowed:
            break
        harmless += 1
    return order[harmless:][::-1]


def rounded_at(model: Model, encodings: Mapping[str, Encoding]) -> bytes:
    """The float graph with these values rounded to their codes, in plain arithmetic: no runtime makes integers of it.

    x' = clamp(round(x / s), qmin - z, qmax - z) s
    """
    proto = onnx.load_model_from_string(model.float_bytes())
    values = g.values(model.ir)
    parts: dict[str, list[onnx.NodeProto]] = {}
    for name, e in encodings.items():
        rank = len(g.static_shape(values[name]) or ())
        shape = [1] * rank
        if e.axis is not None:
            shape[e.axis] = -1
        at = f"@audit/{name}"
        for tag, array in (("s", e.scale), ("lo", e.qmin - e.zero_point), ("hi", e.qmax - e.zero_point)):
            shaped = np.asarray(array, np.float32)
            shaped = shaped if e.axis is None else shaped.reshape(shape)
            proto.graph.initializer.append(numpy_helper.from_array(shaped, f"{at}/{tag}"))
        parts[name] = [
            helper.make_node("Div", [name, f"{at}/s"], [f"{at}/1"]),
            helper.make_node("Round", [f"{at}/1"], [f"{at}/2"]),
            helper.make_node("Max", [f"{at}/2", f"{at}/lo"], [f"{at}/3"]),
            helper.make_node("Min", [f"{at}/3", f"{at}/hi"], [f"{at}/4"]),
            helper.make_node("Mul", [f"{at}/4", f"{at}/s"], [at]),
        ]
    nodes = [n for i in proto.graph.input for n in parts.get(i.name, ())]
    for node in proto.graph.node:
        for k, name in enumerate(node.input):
            if name in parts:
                node.input[k] = f"@audit/{name}"
        nodes.append(node)
        nodes += [n for o in node.output for n in parts.get(o, ())]
    made = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(made)
    return proto.SerializeToString()
