"""The networks that a student learns from: run exactly as they are, without gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as f
from numpy.typing import NDArray
from torch import Tensor

from roadworthy.data.preprocess import Preprocess
from roadworthy.detect.decode import detect
from roadworthy.detect.detections import Detections
from roadworthy.errors import InputError
from roadworthy.model.model import Model
from roadworthy.model.task import Task
from roadworthy.run.targets import TARGETS
from roadworthy.run.torch import module_of
from roadworthy.train.reading import Reader, Seen

SOFT_FLOOR = 0.1
"""Detections that stand for labels have this score at least; each counts as much as its score."""


class Teacher:
    """A float network, on ONNX Runtime where the student is on the CPU (faster, and the original to the last bit), else
    on the student's device.

    task: its own.   preprocess: of the student, whose input tensors it is called with; where it differs, they are
    turned into what the teacher takes.   taps: values wanted beside the outputs.
    Calls may come from several threads at once. Raises InputError for a quantized network.
    """

    def __init__(
        self, model: Model, task: Task, preprocess: Preprocess, taps: Sequence[str] = (), device: str = "cpu"
    ) -> None:
        if model.encodings:
            raise InputError(f"the teacher {model.source} is quantized; give the original, which it was made from")
        self.model, self.task, self.reader = model, task, Reader(model, task)
        self._given = preprocess
        self.taps = tuple(dict.fromkeys((*self.reader.taps, *taps)))
        self._runner = TARGETS["ort"].runner(model.float_bytes(), 1) if device == "cpu" else None
        self._module = None if self._runner else module_of(model).to(device)
        if self._runner:  # the session with taps is made before threads ask for it
            self._runner.run({model.input_name: np.zeros(model.input_shape, np.float32)}, self.taps)

    def __call__(self, x: Tensor) -> Seen:
        """What the teacher sees in one input tensor of the student, in the type of `x`."""
        with torch.no_grad():
            given = converted(x, self._given, self.task.preprocess)
            if self._module is not None:
                return self.reader(self._module(given, self.taps))
            assert self._runner is not None
            feeds = {self.model.input_name: np.ascontiguousarray(given.numpy(), np.float32)}
            found = self._runner.run(feeds, self.taps)
            return self.reader({k: _tensor(v, x) for k, v in found.items()})

    def detections(self, seen: Seen) -> Detections:
        """What the teacher detects, behind NMS, in pixels of the student's input."""
        outputs = {name: seen.values[name].detach().cpu().float().numpy() for name in seen.outputs}
        (high, wide), (own_high, own_wide) = self._given.size_hw, self.task.preprocess.size_hw
        factors = np.array([wide / own_wide, high / own_high] * 2, np.float32)
        return detect(outputs, self.task.decode, lambda boxes: boxes * factors, SOFT_FLOOR)


def converted(x: Tensor, given: Preprocess, wanted: Preprocess) -> Tensor:
    """The input tensor that another preprocessing would have made of the picture in `x`, stretched to its size.

    x: (1, C, H, W) or (1, H, W, C), as `given` makes it.   Letterboxes and crops stay as they are in the picture.
    """
    same = ("size_hw", "color", "layout", "scale", "mean", "std")
    if all(getattr(given, field) == getattr(wanted, field) for field in same):
        return x
    picture = x if given.layout == "nchw" else x.permute(0, 3, 1, 2)
    levels = (picture * _along(given.std, x) + _along(given.mean, x)) / given.scale
    if given.size_hw != wanted.size_hw:
        levels = f.interpolate(levels, wanted.size_hw, mode="bilinear", align_corners=False, antialias=True)
    if given.color != wanted.color:
        blue_green_red = levels.flip(1) if given.color == "rgb" else levels.expand(1, 3, *levels.shape[2:])
        if wanted.color == "gray":
            levels = (blue_green_red * _along((0.114, 0.587, 0.299), x)).sum(1, keepdim=True)
        else:
            levels = blue_green_red.flip(1) if wanted.color == "rgb" else blue_green_red
    made = (levels * wanted.scale - _along(wanted.mean, x)) / _along(wanted.std, x)
    return made if wanted.layout == "nchw" else made.permute(0, 2, 3, 1)


def _along(values: Sequence[float], like: Tensor) -> Tensor:
    return like.new_tensor(values).reshape(1, -1, 1, 1)


def _tensor(array: NDArray, like: Tensor) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.to(like.dtype) if tensor.is_floating_point() else tensor
