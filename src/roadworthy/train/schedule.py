"""`Schedule`: how long and how fast to train.

    lr(step) = lr * (step + 1) / warmup                                               in the first `warmup` steps
    lr(step) = lr * (LAST + (1 - LAST) * (1 + cos(pi * t)) / 2)                        t = 0..1 over the rest

A linear warm-up (Goyal et al. 2017) and half a cosine (Loshchilov and Hutter 2017): a function of the step alone, so
that a training that goes on after an interruption needs no state for it.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, fields
from typing import Any

from roadworthy.errors import InputError

OPTIMIZERS = ("adamw", "sgd")
PRECISIONS = ("float32", "bf16")
DEVICES = ("cpu", "cuda")
STATISTICS = ("frozen", "estimated")
LAST = 0.01
"""The learning rate at the end, as a share of the highest."""
UNTOLD = ("workers",)
"""Fields that change how fast a result is found, and not the result."""


@dataclass(frozen=True)
class Schedule:
    """Settings of a training; frozen, so that it can be written into a recipe.

    steps: optimizer steps.   batch: images of a step; its gradient is their mean.
    lr: highest learning rate of weights; bias_lr of biases and slopes, scale_lr of quantization scales (None: as lr).
        With "adamw" in shares: of each tensor's root mean square as it was before training, and of each scale.
    weight_decay: of weights alone (decoupled from the gradient with "adamw").   warmup: steps of rising learning rate.
    clip: largest norm of the whole gradient; 0 for no limit.   momentum: of "sgd".
    ema: decay of the running average of the parameters, 0 for none; shorter at the beginning, (1 + t) / (10 + t).
    evaluate_every: steps between evaluations, 0 for the end only.   patience: evaluations without a better one after
    which training stops, 0 for never.
    seed: of order, augmentation and whatever is drawn for a step.   workers: threads, 0 for one per core.
    batch_norm: "frozen", normalizations keep their statistics; "estimated", those follow the images of each step (float
    students with normalizations that were not folded).
    device: "cpu" or "cuda".   precision: "float32", or "bf16" for convolutions and products of float networks.

    Raises InputError for a value outside of these.
    """

    steps: int = 400
    batch: int = 8
    lr: float = 1e-4
    scale_lr: float | None = None
    bias_lr: float | None = None
    weight_decay: float = 0.0
    warmup: int = 20
    clip: float = 10.0
    ema: float = 0.99
    optimizer: str = "adamw"
    momentum: float = 0.9
    evaluate_every: int = 50
    patience: int = 0
    seed: int = 0
    workers: int = 0
    batch_norm: str = "frozen"
    device: str = "cpu"
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name, lowest in (("steps", 1), ("batch", 1), ("warmup", 0), ("evaluate_every", 0), ("patience", 0),
                             ("seed", 0), ("workers", 0)):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise InputError(f"{name} is {value!r}; use a whole number from {lowest} up")
        for name in ("lr", "scale_lr", "bias_lr", "weight_decay", "clip"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value < math.inf):
                raise InputError(f"{name} is {value!r}; use a finite number from 0 up")
        for name in ("ema", "momentum"):
            value = getattr(self, name)
            if not (_is_number(value) and 0 <= value < 1):
                raise InputError(f"{name} is {value!r}; use a number from 0 to below 1")
        for name, allowed in (("optimizer", OPTIMIZERS), ("device", DEVICES), ("precision", PRECISIONS),
                              ("batch_norm", STATISTICS)):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(allowed)}")

    def factor(self, step: int) -> float:
        """What the learning rates of a step (0-based) are multiplied by."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        t = (step - self.warmup) / max(self.steps - 1 - self.warmup, 1)
        return LAST + (1 - LAST) * (1 + math.cos(math.pi * min(t, 1.0))) / 2

    def share(self, step: int) -> float:
        """How far the training is at a step (0-based): 0 at the first, 1 at the last."""
        return step / max(self.steps - 1, 1)

    def rate(self, kind: str) -> float:
        """The highest learning rate of a kind of parameters: "weights", "biases" or "scales"."""
        own = {"biases": self.bias_lr, "scales": self.scale_lr}.get(kind)
        return self.lr if own is None else own

    def decay(self, step: int) -> float:
        """The share of the old average that stays after a step (0-based)."""
        return min(self.ema, (1 + step) / (10 + step))

    def threads(self, processes: int = 1) -> int:
        """Threads of each of the processes on this machine."""
        if self.workers:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(cores // processes, 1)

    def facts(self) -> dict[str, Any]:
        """The fields that decide the result, by name."""
        return {k: v for k, v in asdict(self).items() if k not in UNTOLD}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


FIELDS = tuple(f.name for f in fields(Schedule))
