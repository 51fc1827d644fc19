"""The networks that a student learns from: run exactly as they are, without gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from roadworthy.errors import InputError
from roadworthy.model.model import Model
from roadworthy.model.task import Task
from roadworthy.run.targets import TARGETS
from roadworthy.run.torch import module_of
from roadworthy.train.reading import Reader, Seen


class Teacher:
    """A float network, on ONNX Runtime where the student is on the CPU (faster, and the original to the last bit), else
    on the student's device.

    taps: values wanted beside the outputs.   Calls may come from several threads at once.
    """

    def __init__(self, model: Model, task: Task, taps: Sequence[str] = (), device: str = "cpu") -> None:
        if model.encodings:
            raise InputError(f"the teacher {model.source} is quantized; give the original, which it was made from")
        self.model, self.task, self.reader = model, task, Reader(model, task)
        self.taps = tuple(dict.fromkeys((*self.reader.taps, *taps)))
        self._runner = TARGETS["ort"].runner(model.float_bytes(), 1) if device == "cpu" else None
        self._module = None if self._runner else module_of(model).to(device)
        if self._runner:  # the session with taps is made before threads ask for it
            self._runner.run({model.input_name: np.zeros(model.input_shape, np.float32)}, self.taps)

    def __call__(self, x: Tensor) -> Seen:
        """What the teacher sees in one input tensor, in the type of `x`."""
        with torch.no_grad():
            if self._module is not None:
                return self.reader(self._module(x, self.taps))
            assert self._runner is not None
            feeds = {self.model.input_name: np.ascontiguousarray(x.detach().numpy(), np.float32)}
            found = self._runner.run(feeds, self.taps)
            return self.reader({k: _tensor(v, x) for k, v in found.items()})


def _tensor(array: np.ndarray, like: Tensor) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.to(like.dtype) if tensor.is_floating_point() else tensor
