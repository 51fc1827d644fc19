"""`State`: everything a training changes. Parameters, optimizer, running average, the best so far, what happened.

    gradient  g = (sum over the images of a step) / batch,  scaled down to norm `clip` where it is longer
    average   a = d a + (1 - d) p,   d = min(ema, (1 + t) / (10 + t))

Gradients lie in one vector, a stretch for each parameter, so that its norm, its sum over processes and the search for
what is not finite are one operation.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from roadworthy.errors import InputError
from roadworthy.run.torch.trainable import Trainable
from roadworthy.train.schedule import Schedule

EXTRA = "objective."
"""In front of the names of the objective's own parameters (adapters between teacher and student)."""
Tensors = dict[str, Tensor]


class State:
    """What a checkpoint holds, and what an optimizer step does to it.

    step: optimizer steps done.   best: (distance, step, whether it is the average, the student's state) or None.
    stale: evaluations since the best one.   history: plain values, one entry for each step.
    """

    def __init__(self, student: Trainable, schedule: Schedule, extra: Mapping[str, torch.nn.Parameter]) -> None:
        self.student, self.schedule = student, schedule
        self.names, self.parameters, groups = _collect(student, schedule, extra)
        self.extra = dict(extra)
        self.flat = torch.zeros(sum(p.numel() for p in self.parameters), device=self.parameters[0].device)
        self._views = self.views(self.flat)
        kinds: dict[str, Any] = {
            "adamw": lambda: torch.optim.AdamW(groups, lr=schedule.lr, foreach=False),
            "sgd": lambda: torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum, foreach=False),
        }
        self.optimizer: torch.optim.Optimizer = kinds[schedule.optimizer]()
        self.average: list[Tensor] = [p.detach().clone() for p in self.parameters] if schedule.ema else []
        self.step = 0
        self.stale = 0
        self.best: tuple[float, int, bool, Tensors] | None = None
        self.history: list[dict[str, Any]] = []

    def views(self, flat: Tensor) -> list[Tensor]:
        """The stretches of a vector as gradients of the parameters."""
        parts = flat.split([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(parts, self.parameters)]

    def descend(self, used: list[bool]) -> float:
        """One optimizer step along `flat`, the mean gradient; counts it. Returns the gradient's norm before clipping.

        used: whether any image's loss depends on a parameter; the others stay as they are.
        """
        norm = float(torch.linalg.vector_norm(self.flat, dtype=torch.float64))
        if self.schedule.clip and norm > self.schedule.clip:
            self.flat.mul_(self.schedule.clip / norm)
        for parameter, gradient, wanted in zip(self.parameters, self._views, used):
            parameter.grad = gradient if wanted else None
        factor = self.schedule.factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            decay = self.schedule.decay(self.step)
            with torch.no_grad():
                for kept, parameter in zip(self.average, self.parameters):
                    kept.lerp_(parameter, 1 - decay)
        self.step += 1
        return norm

    def not_finite(self, tensors: list[Tensor]) -> str | None:
        """The name of the first parameter whose tensor (itself, or a gradient) holds a NaN or an infinity."""
        return next((n for n, t in zip(self.names, tensors) if not bool(torch.isfinite(t).all())), None)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the student has the average as its parameters."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for kept, parameter in zip(self.average, self.parameters):
            kept.data, parameter.data = parameter.data, kept.data

    def found(self, distance: float, averaged: bool) -> bool:
        """Keep the student as it is now if that is the best so far. A distance that is NaN never is."""
        if self.best is not None and not distance < self.best[0]:
            return False
        self.best = (distance if not math.isnan(distance) else math.inf, self.step, averaged, self._copy())
        return True

    def _copy(self) -> Tensors:
        return {k: v.detach().cpu().clone() for k, v in self.student.state_dict().items()}

    def take_best(self) -> int:
        """Give the student its best state, or the average where nothing was evaluated; the step it is of."""
        if self.best is not None:
            self.student.load_state_dict(self.best[3])
            return self.best[1]
        with torch.no_grad():
            for parameter, kept in zip(self.parameters, self.average):
                parameter.copy_(kept)
        return self.step

    def pack(self) -> dict[str, Any]:
        """Plain values and tensors; what `unpack` takes. The tensors are the living ones: write, then go on."""
        return {
            "step": self.step,
            "stale": self.stale,
            "student": dict(self.student.state_dict()),
            "extra": {k: p.detach() for k, p in self.extra.items()},
            "optimizer": self.optimizer.state_dict(),
            "average": list(self.average),
            "best": None if self.best is None else list(self.best),
            "history": self.history,
        }

    def unpack(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `pack` gave."""
        self.step, self.stale, self.history = saved["step"], saved["stale"], list(saved["history"])
        self.student.load_state_dict(saved["student"])
        with torch.no_grad():
            for name, parameter in self.extra.items():
                parameter.copy_(saved["extra"][name])
            for kept, old in zip(self.average, saved["average"]):
                kept.copy_(old)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.best = None if saved["best"] is None else tuple(saved["best"])


def _collect(
    student: Trainable, schedule: Schedule, extra: Mapping[str, torch.nn.Parameter]
) -> tuple[list[str], list[torch.nn.Parameter], list[dict[str, Any]]]:
    """Names and parameters in the student's order, those of the objective behind them; and the optimizer's groups."""
    own = {n: p for n, p in student.named_parameters() if p.requires_grad}
    kinds = {name: kind for kind, names in student.groups().items() for name in names}
    if not own:
        raise InputError("the network has no weights to train; give one with convolutions or matrix products")
    every = {**own, **{EXTRA + k: p for k, p in extra.items()}}
    groups = []
    for kind in ("weights", "biases", "scales"):
        members = [p for n, p in every.items() if kinds.get(n, "weights") == kind]
        decay = schedule.weight_decay if kind == "weights" else 0.0
        relative = schedule.optimizer == "adamw" and kind != "scales"
        sizes = [_size(p) if relative else 1.0 for p in members]
        for size in dict.fromkeys(sizes):
            alike = [p for p, own in zip(members, sizes) if own == size]
            # AdamW decays by rate times decay; the size is in the rate, and is no reason to decay more.
            groups.append({"params": alike, "weight_decay": decay / size, "highest": schedule.rate(kind) * size})
    return list(every), list(every.values()), groups


def _size(parameter: torch.nn.Parameter) -> float:
    """The root mean square of a tensor: a step of Adam is a number, which says nothing until it is held against what it
    is added to. Folded networks have layers a thousand times as large as others. 1 where all is zero."""
    return float(parameter.detach().double().square().mean().sqrt()) or 1.0
