"""The network that is trained, quantized as it is deployed or float, and what it says to images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from roadworthy.model.model import Model
from roadworthy.run.torch.module import GraphModule
from roadworthy.run.torch.quantized import QatSettings, QuantizedModule
from roadworthy.run.torch.trainable import Trainable
from roadworthy.train.parallel import run_all


def student_of(model: Model, gradient: str = "lsq", noise: float = 1.0) -> GraphModule:
    """A module to train.   gradient, noise: see QatSettings; a model without encodings has neither.

    Raises UnsupportedError for an operator that has no gradient, naming it.
    """
    return (
        QuantizedModule(model, QatSettings(gradient=gradient, noise=noise)) if model.encodings else GraphModule(model)
    )


def says(student: Trainable, tensors: Iterable[NDArray], workers: int = 1) -> Iterator[dict[str, NDArray]]:
    """The outputs for each input tensor, in order; memory does not grow with their number."""
    device = next((p.device for _, p in student.named_parameters()), torch.device("cpu"))
    inputs = (torch.from_numpy(np.array(t, np.float32)).to(device) for t in tensors)
    for found in run_all(student, inputs, workers):
        yield {name: value.cpu().numpy() for name, value in found.items()}
