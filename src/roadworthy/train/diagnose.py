"""What to say when a training leaves the finite numbers: the layer where it began, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from roadworthy.model.model import Model
from roadworthy.model.units import units
from roadworthy.run.torch.trainable import Trainable


def first_bad_layer(graph: Model, student: Trainable, x: Tensor) -> str | None:
    """The name of the first layer, in execution order, whose output is not finite for this image; None if all are."""
    layers = [(u.name, str(u.output.name)) for u in units(graph.ir) if str(u.output.name) in student.value_names]
    with torch.no_grad():
        found = student(x, [value for _, value in layers])
    return next((layer for layer, value in layers if not bool(torch.isfinite(found[value]).all())), None)


def of_loss(graph: Model, student: Trainable, x: Tensor, image: str, parts: Mapping[str, float], advice: str) -> str:
    """Why the loss of an image is not finite.   graph: the student's.   parts: terms of the loss."""
    layer = first_bad_layer(graph, student, x)
    if layer is not None:
        return f"the output of layer {layer!r} became NaN or infinite on {image}; {advice}"
    bad = [term for term, value in parts.items() if not math.isfinite(value)]
    which = f"the loss term {bad[0]!r}" if bad else "the loss"
    return (
        f"{which} became NaN or infinite on {image}, though the output of every layer is finite; leave the term out, or"
        " check what the teacher says about this image"
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
