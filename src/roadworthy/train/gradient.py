"""The gradient of one step: images opened ahead of time, worked on one by one in threads, added in their order.

feed threads:   open, change, preprocess; ask the teachers           bounded, across steps
train threads:  student, loss, gradient of one image                 as many as workers
caller:         sum over the images in order, over the processes in order; from the student's leaves to its parameters
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor

from roadworthy.run.torch.batchnorm import Moments, moments
from roadworthy.run.torch.module import GraphModule
from roadworthy.run.torch.quantized import QuantizedModule
from roadworthy.run.torch.trainable import Trainable
from roadworthy.train.feed import Feed, Item
from roadworthy.train.parallel import World, ordered
from roadworthy.train.schedule import Schedule
from roadworthy.train.state import State

Feeding = Generator[tuple[Item, Any], None, None]


@dataclass(eq=False)
class Result:
    """What one image gave.   parts: the loss under "loss", then its terms.   flat: gradient; None where not finite.

    used: which leaves it depends on.   moments: of what entered the batch normalizations, where they are followed.
    """

    item: Item
    parts: dict[str, float]
    flat: Tensor | None
    used: list[bool]
    moments: Moments = field(default_factory=dict)


class Gradients:
    """Makes the gradients of a student's steps; a context, inside which its threads live.

    bad: called with the first image whose loss is not finite; raises.
    moments: of the last step's images, one each in their order, where batch normalizations are followed; else empty.
    """

    def __init__(
        self, student: Trainable, objective: Any, feed: Feed, schedule: Schedule, world: World, state: State,
        bad: Callable[[Result], None],
    ) -> None:  # fmt: skip
        self.student, self.objective, self.feed, self.schedule = student, objective, feed, schedule
        self.world, self.state, self._bad = world, state, bad
        self.part = world.part(schedule.batch)
        self.threads = 1 if schedule.device == "cuda" else schedule.threads(world.local)
        self.taps: tuple[str, ...] = tuple(getattr(objective, "taps", ()))
        self.mixed = schedule.precision == "bf16" and is_float(student)
        self.follows = schedule.batch_norm == "estimated" and is_float(student) and bool(student.norms)
        self.moments: list[Moments] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Gradients:
        self._compute = self._stack.enter_context(ThreadPoolExecutor(self.threads, thread_name_prefix="train"))
        feeders = self._stack.enter_context(ThreadPoolExecutor(max(self.threads // 2, 1), thread_name_prefix="feed"))
        places = ((s, k) for s in range(self.state.step, self.schedule.steps) for k in self.part)
        ahead = min(2 * len(self.part), 2 * self.threads + 2)
        self._feeding: Feeding = self._stack.enter_context(contextlib.closing(self._fed(feeders, places, ahead)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def step(self) -> tuple[dict[str, float], list[bool]]:
        """The mean gradient over the step's images into `state.flat`; the mean loss with its parts, and which
        parameters it depends on. The same in every process; so is the error of any of them."""
        state, kept, results = self.state, list[Tensor](), list[Result]()
        self.leaves = [*self.student.leaves(), *state.extra.values()]
        total = torch.zeros(sum(t.numel() for t in self.leaves), device=state.flat.device)
        error: BaseException | None = None
        try:
            mine = itertools.islice(self._feeding, len(self.part))
            for result in ordered(self._compute, self._image, mine, self.threads + 1):
                if result.flat is None:
                    self._bad(result)
                elif self.world.first:
                    total.add_(result.flat)
                else:
                    kept.append(result.flat)  # those of earlier ranks come first
                result.flat = None
                results.append(result)
        except Exception as caught:
            error = caught
        self.world.together(error)
        own = [(r.parts, r.used, r.moments) for r in results]
        told = [one for share in self.world.everyone(own) for one in share]
        self.moments = [of for _, _, of in told if of]
        self.world.add_up(total, kept)
        used = [any(column) for column in zip(*(used for _, used, _ in told))]
        slopes = [part if wanted else None for part, wanted in zip(self._views(total), used)]
        count = len(slopes) - len(state.extra)
        gradients = [*self.student.collect(slopes[:count]), *slopes[count:]]
        state.flat.zero_()
        for into, gradient in zip(state.views(state.flat), gradients):
            if gradient is not None:
                into.copy_(gradient)
        state.flat.div_(self.schedule.batch)
        return _mean([parts for parts, *_ in told]), [gradient is not None for gradient in gradients]

    def _views(self, flat: Tensor) -> list[Tensor]:
        """The stretches of a vector as gradients of the leaves."""
        parts = flat.split([t.numel() for t in self.leaves])
        return [part.view(t.shape) for part, t in zip(parts, self.leaves)]

    def _image(self, pair: tuple[Item, Any]) -> Result:
        """Loss and gradient of one image, in a thread of its own."""
        item, target = pair
        state = self.state
        with torch.enable_grad():
            # The cache of cast weights belongs to all threads, and one that leaves empties it for the others.
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.mixed, cache_enabled=False):
                found = self.student(item.x, self.taps)
            if self.mixed:
                found = {k: v.float() if v.is_floating_point() else v for k, v in found.items()}
            loss, terms = self.objective(found, target, self.schedule.share(state.step))
            parts = {"loss": float(loss.detach()), **terms}
            used = [False] * len(self.leaves)
            if not math.isfinite(parts["loss"]):
                return Result(item, parts, None, used)
            flat = torch.zeros(sum(t.numel() for t in self.leaves), device=state.flat.device)
            if loss.requires_grad:  # an image that says nothing is a loss without a graph
                gradients = torch.autograd.grad(loss, self.leaves, allow_unused=True)
                for k, (into, gradient) in enumerate(zip(self._views(flat), gradients)):
                    if gradient is not None:
                        into.copy_(gradient)
                        used[k] = True
        return Result(item, parts, flat, used, moments(self.student, item.x) if self.follows else {})  # type: ignore[arg-type]

    def _fed(self, pool: ThreadPoolExecutor, places: Iterator[tuple[int, int]], ahead: int) -> Feeding:
        yield from ordered(pool, self._fetch, places, ahead)

    def _fetch(self, place: tuple[int, int]) -> tuple[Item, Any]:
        item = self.feed.item(*place)
        item = Item(item.x.to(self.world.device), item.truth, item.name)
        with torch.no_grad():
            return item, self.objective.target(item.x, item.truth)


def is_float(student: Trainable) -> TypeGuard[GraphModule]:
    """Whether a student computes in floats, in any precision; the arithmetic of a quantized one is exact."""
    return isinstance(student, GraphModule) and not isinstance(student, QuantizedModule)


def _mean(parts: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each part over the images, added in their order."""
    names = dict.fromkeys(name for one in parts for name in one)
    return {name: sum(one.get(name, 0.0) for one in parts) / len(parts) for name in names}
