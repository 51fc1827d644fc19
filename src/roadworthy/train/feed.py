"""`Feed`: which images a step sees, and as what.

    place p = step * batch + k  ->  epoch p // N, and in it the image at p % N of an order drawn from (seed, epoch)
    changes drawn from (seed, step, k)

A function of seed, step and index alone: a training that goes on after an interruption sees what it would have seen.
Nothing is kept but the present order: an image is opened, changed and preprocessed when it is asked for.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.detections import Truth
from roadworthy.errors import InputError
from roadworthy.model.task import Task
from roadworthy.train.augment import augment_named
from roadworthy.train.labelled import to_input


@dataclass(frozen=True, eq=False)
class Item:
    """One image of a step.

    x: input tensor, (1, C, H, W) or (1, H, W, C) float32.   name: of the sample.
    truth: boxes in pixels of the input (`Truth`, not clipped), or the index of the image's class, or None.
    """

    x: Tensor
    truth: Truth | int | None
    name: str


class Feed:
    """Images for a training; safe to ask from several threads at once.

    samples: at least one.   task: how they become tensors.   batch: images of a step.   augment: a row of AUGMENTS.
    labels: hand on what is known of the images; False keeps it to itself.
    """

    def __init__(
        self, samples: Samples, task: Task, batch: int, seed: int = 0, augment: str = "light", labels: bool = True
    ) -> None:
        if not len(samples):
            raise InputError("there are no images to train on; give at least one")
        if batch < 1:
            raise InputError(f"batch is {batch}; use a whole number from 1 up")
        self.samples, self.task, self.batch, self.seed = samples, task, batch, seed
        self.augment, self.labels = augment, labels
        self._change = augment_named(augment)
        letterbox = task.preprocess.resize == "letterbox"
        # An image that fills the input never shows a border there; one that is letterboxed does.
        self._fill = task.preprocess.pad_value if letterbox else None
        self._order = functools.lru_cache(maxsize=4)(self._drawn_order)

    def items(self, step: int) -> list[Item]:
        """The images of a step (0-based), in order."""
        return [self.item(step, k) for k in range(self.batch)]

    def item(self, step: int, k: int) -> Item:
        """Image k of a step. Raises InputError for an image that cannot be read."""
        sample = self.sample(step, k)
        image, truth = sample.image(), sample.truth if self.labels else None
        size = image.shape[:2]
        image, truth = self._change(image, truth, np.random.default_rng([self.seed, step, k]), self._fill)
        if self.task.preprocess.resize == "none" and image.shape[:2] != size:
            image, truth = _resized(image, truth, (size[0], size[1]))
        tensor, geometry = self.task.preprocess(image)
        label = sample.label if self.labels and truth is None else None
        return Item(torch.from_numpy(tensor), label if truth is None else to_input(truth, geometry), sample.name)

    def sample(self, step: int, k: int) -> Sample:
        """Which image that is."""
        place = step * self.batch + k
        epoch, at = divmod(place, len(self.samples))
        return self.samples[int(self._order(epoch)[at])]

    def _drawn_order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.samples))

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the items, by name; reads every image once."""
        return {
            "images": self.samples.content_id,
            "order of the images": _names(self.samples),
            "task": self.task.to_json(),
            "batch of the images": self.batch,
            "seed of the images": self.seed,
            "augment": self.augment,
            "labels": self.labels,
        }


def _names(samples: Samples) -> str:
    import hashlib

    return hashlib.sha256("\0".join(s.name for s in samples).encode()).hexdigest()


def _resized(image: NDArray[np.uint8], truth: Truth | None, size_hw: tuple[int, int]) -> tuple[Any, Truth | None]:
    """For models that take images of one size only: a window shown at the size of the whole."""
    import cv2

    ratio = np.array([size_hw[1] / image.shape[1], size_hw[0] / image.shape[0]] * 2, np.float32)
    image = cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    if truth is None:
        return image, None
    areas = (truth.areas * ratio[0] * ratio[1]).astype(np.float32)
    return image, Truth(truth.boxes_xyxy * ratio, truth.classes, areas, truth.ignore)
