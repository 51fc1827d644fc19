"""The training loop: one for float and quantized students, with or without labels.

    for each step:   gradient = mean over the images of d loss / d parameters;   one step of the optimizer;   average
    every so often:  distance = evaluate(student);   the best state is what is delivered

Images are worked on one by one in threads (a graph has a batch of 1), which gives the same bits as one thread
(parallel.py). The state before the first step is evaluated too: a training never delivers something that is worse, by
that measure, than what it began with.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from roadworthy.errors import InputError, TrainingError
from roadworthy.model.model import Model
from roadworthy.run.torch.batchnorm import follow
from roadworthy.run.torch.quantized import EVALUATION
from roadworthy.run.torch.trainable import Trainable
from roadworthy.train import diagnose
from roadworthy.train.checkpoint import Checkpoints
from roadworthy.train.feed import Feed
from roadworthy.train.gradient import Gradients, Result, is_float
from roadworthy.train.parallel import World, one_thread_each
from roadworthy.train.schedule import Schedule
from roadworthy.train.state import State

Evaluate = Callable[[Trainable], float]
Progress = Callable[[int, int, Mapping[str, float], float], None]
"""(steps done, steps, the mean loss of the last step and its parts, seconds left)"""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a training; the text says where it was kept and how it goes on."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What came of a training.

    model: the best state.   best_step: steps after which it was found, 0: nothing was better than the beginning.
    distances: (before, delivered) as `evaluate` gave them, or None.   averaged: whether it is the running average.
    history: for each step "step", "loss", its parts, "norm" of the gradient, "lr"; where evaluated "distance", and
    "distance of the average".   stopped: why it ended.   peak_mb: largest resident size of a process, in 10^6 bytes.
    """

    model: Model
    history: tuple[Mapping[str, Any], ...]
    best_step: int
    stopped: str
    peak_mb: float
    seconds: float
    distances: tuple[float, float] | None = None
    averaged: bool = False


def train(
    student: Trainable,
    objective: Any,
    feed: Feed,
    schedule: Schedule,
    *,
    evaluate: Evaluate | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Progress | None = None,
    said: str = "train",
) -> Trained:
    """Train a student; it holds the best state afterwards.

    objective: `taps`, values wanted of the student; `target(x, truth)`, what is known of an image; called with what the
    student found, the target, and the share of the training that is done, it gives the image's loss and its parts.
    evaluate: the student's distance on images held out, lower is better; called without gradients, by the first process
    only, with the student in evaluation mode.   said: the line in the model's history.
    Raises TrainingError where a loss, a gradient or a weight stops being finite, Interrupted after Ctrl-C; the last
    checkpoint is kept in both cases. InputError for images that cannot be read, and for a checkpoint that does not fit.
    """
    if schedule.batch != feed.batch:
        raise InputError(f"the schedule has a batch of {schedule.batch}, but the feed one of {feed.batch}; set one")
    with one_thread_each(), World(schedule.device) as world:
        return _Training(student, objective, feed, schedule, world, evaluate, checkpoints, progress).run(said)


class _Training:
    def __init__(
        self,
        student: Trainable,
        objective: Any,
        feed: Feed,
        schedule: Schedule,
        world: World,
        evaluate: Evaluate | None,
        checkpoints: Checkpoints | None,
        progress: Progress | None,
    ) -> None:
        self.student, self.objective, self.feed, self.schedule, self.world = student, objective, feed, schedule, world
        self.evaluate, self.checkpoints = evaluate, checkpoints
        self.progress = progress if world.first else None
        self.graph = student.model("as it was before training")
        for module in (student, objective):
            if isinstance(module, torch.nn.Module):
                module.to(world.device)
        extra = dict(objective.named_parameters()) if isinstance(objective, torch.nn.Module) else {}
        self.state = State(student, schedule, {k: p for k, p in extra.items() if p.requires_grad})
        self.gradients = Gradients(student, objective, feed, schedule, world, self.state, self._refuse_loss)
        self.clean, self.stop = True, False
        self.facts = self._facts() if checkpoints else {}

    # One training.

    def run(self, said: str) -> Trained:
        began, state, steps = time.monotonic(), self.state, self.schedule.steps
        stopped = f"all {steps} steps were made"
        with self._interruptible():
            self._resume()
            if self.evaluate and state.best is None:
                self._judge({})
            if state.step == 0:
                self._save()  # from here on there is always a good state to go back to
            first, since = state.step, time.monotonic()
            with self.gradients:
                while state.step < steps and not self._patience_ended():
                    mark = self._step()
                    last, every = state.step == steps, self.schedule.evaluate_every
                    if self.evaluate and (last or (every and state.step % every == 0)):
                        self._judge(mark)
                    if self.progress:
                        left = (time.monotonic() - since) / (state.step - first) * (steps - state.step)
                        self.progress(state.step, steps, {k: v for k, v in mark.items() if k != "step"}, left)
                    if last:
                        if not self.evaluate:
                            self._ready(training=False)  # a state that cannot be computed with replaces no good one
                        self._save()
                    self._heed()
        if self._patience_ended():
            stopped = f"{state.stale} evaluations brought nothing better"
        best = state.take_best()
        self._ready(training=False)
        found = None if state.best is None else (self._first_distance(), state.best[0])
        averaged = state.best[2] if state.best else bool(state.average)
        peak = max(self.world.everyone(peak_mb()))
        seconds = time.monotonic() - began
        model = self.student.model(f"{said}: {state.step} steps, the best after {best}")
        return Trained(model, tuple(state.history), best, stopped, peak, seconds, found, averaged)

    def _step(self) -> dict[str, Any]:
        state = self.state
        self._ready(training=True)
        parts, used = self.gradients.step()
        if not bool(torch.isfinite(state.flat).all()):
            self._refuse_parameter("the gradient of ", state.views(state.flat))
        if state.step and self._due():
            self._save()  # only now is it known that the state after the last step is good
        rate = self.schedule.lr * self.schedule.factor(state.step)
        self.clean = False
        norm = state.descend(used)
        if self.gradients.moments and is_float(self.student):
            follow(self.student, self.gradients.moments)
        self.clean = True
        mark = {"step": state.step, **parts, "norm": norm, "lr": rate}
        state.history.append(mark)
        return mark

    # Evaluation.

    def _patience_ended(self) -> bool:
        return bool(self.schedule.patience) and self.state.stale >= self.schedule.patience

    def _judge(self, mark: dict[str, Any]) -> None:
        """Evaluate the student, and its average where there is one; keep the best."""
        assert self.evaluate is not None
        state, better = self.state, False
        self.clean = False
        distance = mark["distance"] = self._distance()
        better |= state.found(distance, False)
        if state.average and state.step:
            with state.averaged():
                other = mark["distance of the average"] = self._distance()
                better |= state.found(other, True)
        self.clean = True
        state.stale = 0 if better else state.stale + 1
        if not mark.get("step"):
            state.history.append({"step": 0, **mark})

    def _distance(self) -> float:
        self._ready(training=False)
        with torch.no_grad():
            return self.world.agreed(lambda: float(self.evaluate(self.student)))  # type: ignore[misc]

    def _ready(self, training: bool) -> None:
        if isinstance(self.student, torch.nn.Module):
            self.student.train(training)
        try:
            self.student.prepare(self.state.step if training else EVALUATION, self.schedule.seed)
        except InputError as error:  # a scale that left the range of float32
            self._refuse(str(error))

    def _first_distance(self) -> float:
        return float(self.state.history[0]["distance"])

    # What can go wrong.

    def _refuse_loss(self, found: Result) -> None:
        terms = {k: v for k, v in found.parts.items() if k != "loss"}
        item = found.item
        self._refuse(diagnose.of_loss(self.graph, self.student, item.x, item.name, terms, self._advice))

    def _refuse_parameter(self, what: str, tensors: list[Tensor]) -> None:
        """Refuses where one of these tensors, of the parameters in order, is not finite."""
        if name := self.state.not_finite(tensors):
            self._refuse(diagnose.of_parameter(self.graph, name, what, self._advice))

    @property
    def _advice(self) -> str:
        return f"train with a lower learning rate than {self.schedule.lr:g}"

    def _refuse(self, sentence: str) -> NoReturn:
        kept = ""
        if self.checkpoints and self.checkpoints.path.is_file():
            kept = f"; the last good checkpoint is kept in {self.checkpoints.path}"
        raise TrainingError(f"training stopped in step {self.state.step + 1}: {sentence}{kept}")

    # Checkpoints and interruption.

    def _facts(self) -> dict[str, Any]:
        facts = {
            "student": fingerprint(self.graph),
            "settings of the student": repr(getattr(self.student, "settings", None)),
            "loss": repr(getattr(self.objective, "terms", None)),
            "weights of the teachers": repr(getattr(self.objective, "weights", None)),
            "teachers": [fingerprint(t.model) for t in getattr(self.objective, "teachers", ())],
            **self.schedule.facts(),
        }
        return {**facts, **self.feed.facts} if isinstance(self.feed, Feed) else facts

    def _resume(self) -> None:
        students = self.world.everyone(fingerprint(self.graph)) if self.world.size > 1 else []
        if len(set(students)) > 1:
            raise InputError("the processes of this training began with different networks; give all the same model")
        if self.checkpoints is None:
            return
        saved = self.world.agreed(lambda: self.checkpoints.load(self.facts))  # type: ignore[union-attr]
        if saved is not None:
            self.state.unpack(saved)

    def _due(self) -> bool:
        """By the clock of the first process, which writes."""
        return bool(self.checkpoints) and self.world.agreed(lambda: self.checkpoints.due)  # type: ignore[union-attr]

    def _save(self) -> None:
        self._refuse_parameter("", [p.detach() for p in self.state.parameters])  # a bad state replaces no good one
        if self.checkpoints:
            self.world.agreed(lambda: self.checkpoints.save(self.facts, self.state.pack()))  # type: ignore[union-attr]

    def _heed(self) -> None:
        """Ctrl-C in any process, noticed between two steps."""
        if any(self.world.everyone(self.stop)):
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C (or SIGTERM, by which torchrun and containers end what they run) ends the present step, not the middle
        of it; a second one ends at once, without a checkpoint."""

        def noted(number: int, frame: Any) -> None:
            self.stop = True
            restore()

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

        main = threading.current_thread() is threading.main_thread()
        before = {n: signal.signal(n, noted) for n in (signal.SIGINT, signal.SIGTERM)} if main else {}
        try:
            yield
        except KeyboardInterrupt as interrupt:
            raise Interrupted(self._kept()) from interrupt
        finally:
            restore()

    def _kept(self) -> str:
        state, where = self.state, "nothing was kept"
        good = state.not_finite([p.detach() for p in state.parameters]) is None
        if self.checkpoints and self.clean and good and self.world.first:
            self.checkpoints.save(self.facts, state.pack())
        if self.checkpoints and self.checkpoints.path.is_file():
            where = f"go on with --resume from {self.checkpoints.path}"
        return f"interrupted after {state.step} of {self.schedule.steps} steps; {where}"


def fingerprint(model: Model) -> str:
    """SHA-256 of a graph with its weights and encodings."""
    total = hashlib.sha256(model.fingerprint.encode())
    for name in sorted(model.encodings):
        total.update(name.encode())
        for field in dataclasses.fields(model.encodings[name]):
            value = getattr(model.encodings[name], field.name)
            total.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return total.hexdigest()


def peak_mb() -> float:
    """The largest resident size of this process, in 10^6 bytes: VmHWM, as ru_maxrss starts at that of the parent."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
