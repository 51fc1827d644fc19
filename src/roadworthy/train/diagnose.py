"""What to say when a training leaves the finite numbers: the layer where it began, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from roadworthy.model import graph as g
from roadworthy.model.model import Model
from roadworthy.model.units import units
from roadworthy.run.torch.trainable import Trainable


def first_bad_layer(graph: Model, student: Trainable, x: Tensor) -> str | None:
    """The name of the first layer, in execution order, that makes something not finite of finite numbers for this
    image; None where everything is finite. What has no weights (an Exp in a head, say) counts as a layer, too."""
    layers = [(name, made, read) for name, made, read in _layers(graph) if {made, *read} <= student.value_names]
    with torch.no_grad():
        found = student(x, list(dict.fromkeys(v for _, made, read in layers for v in (made, *read))))
    finite = {name: not value.is_floating_point() or bool(torch.isfinite(value).all()) for name, value in found.items()}
    bad = [(name, read) for name, made, read in layers if not finite[made]]
    first = next((name for name, read in bad if all(finite[v] for v in read)), None)
    if first is None and not all(finite[name] for name in student.output_names):
        return bad[0][0]
    return first  # a mask of infinities, which a Softmax takes away again, is no fault


def _layers(graph: Model) -> list[tuple[str, str, tuple[str, ...]]]:
    """Name, output and inputs of each unit, and of each node in none; in execution order. A unit's weights are left
    out: finite or not, they are the layer itself."""
    found: list[tuple[str, str, tuple[str, ...]]] = []
    home = {id(node): unit for unit in units(graph.ir) for node in unit.nodes}
    for node in g.nodes(graph.ir):
        unit = home.get(id(node))
        if unit is not None:
            if node is unit.nodes[-1]:
                found.append((unit.name, str(unit.output.name), (str(unit.input.name),)))
            continue
        read = tuple(str(v.name) for v in node.inputs if v is not None and v.name)
        for value in node.outputs:
            if value.name:
                found.append((str(node.name or value.name), str(value.name), read))
    return found


def of_loss(graph: Model, student: Trainable, x: Tensor, image: str, parts: Mapping[str, float], advice: str) -> str:
    """Why the loss of an image is not finite.   graph: the student's.   parts: terms of the loss."""
    layer = first_bad_layer(graph, student, x)
    if layer is not None:
        return f"the output of layer {layer!r} became NaN or infinite on {image}; {advice}"
    bad = [term for term, value in parts.items() if not math.isfinite(value)]
    which = f"the loss term {bad[0]!r}" if bad else "the loss"
    return (
        f"{which} became NaN or infinite on {image}, though the output of every layer is finite; {advice}, leave the"
        " term out, or check what the teacher says about this image"
    )


def of_parameter(graph: Model, parameter: str, what: str, advice: str) -> str:
    """what: "the gradient of ", or nothing for the parameter itself."""
    bare = parameter.split(":", 1)[-1]  # "scale:conv1.weight"
    layer = ""
    for unit in units(graph.ir):
        if bare in {str(v.name) for v in (unit.weight, unit.bias, unit.output) if v is not None}:
            layer = f" of layer {unit.name!r}"
            break
    return f"{what}{parameter!r}{layer} became NaN or infinite; {advice}"
