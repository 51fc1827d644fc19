"""Finetune: weights, biases and scales trained until the network says again what the original says."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from roadworthy.check.accuracy import labelled
from roadworthy.check.judge import distance
from roadworthy.data.samples import Samples, prefetch
from roadworthy.errors import InputError
from roadworthy.model.model import Model
from roadworthy.model.task import Task
from roadworthy.model.units import units
from roadworthy.run.targets import TARGETS
from roadworthy.run.torch import need_torch
from roadworthy.steps.context import Context, Division, divide
from roadworthy.steps.settings import Checked, between, choice, task_of
from roadworthy.steps.training import Record, Training

GRADIENTS = ("ste", "lsq", "dsq", "fourier")
AUGMENTS = ("none", "light", "strong")
LABELS = ("no", "yes", "only")
OPTIMIZERS = ("adamw", "sgd")
STATISTICS = ("frozen", "estimated")
TERMS = ("logits", "scores", "boxes", "distribution", "agreement", "features", "labels", "soft_labels")
"""What may be said here without PyTorch at hand; a test holds these against the tables that they are the rows of."""
PACE_STEPS = 3
"""Steps that are made to learn how long one takes; the first does not count."""
FLOAT_RATE, EIGHT_BIT_RATE = 1e-4, 1e-5
FORWARD = 0.4
"""Seconds that looking at an image takes, in those that training on it takes."""

Probes = list[tuple[NDArray, dict[str, NDArray]]]


@dataclass(frozen=True)
class Finetune(Checked):
    """Train the network with the original as its teacher; no labels are needed.

    A quantized model is trained in the arithmetic that it is deployed in (run/torch/quantized.py), a float model as it
    is. It stands at the end of a recipe and is given all calibration images, whatever number the recipe calibrates
    with: `held_out` of them are left for those who compare candidates, `watched` decide which state is delivered (the
    one it began with among them), the rest is trained on.

    steps, batch: optimizer steps, and images in each.   lr: the highest learning rate of weights (0: by their bits, see
    `learning_rate`), scale_lr of quantization scales, bias_lr of biases (0: as lr).   gradient: what stands for the
    derivative of rounding.
    noise: share of each weight that is quantized in a step (Quant-Noise).   augment: how images are changed.
    images: most to train on; 0: all.   evaluations: how often the watched images are looked at; patience: after how
    many without a better one to stop; 0: never.   ema: decay of the running average.   clip: longest gradient.
    labels: "no" learns from the original alone, "yes" from labels too, "only" from labels alone.
    terms: of the loss, names of train/distill.TERMS; empty: those that suit the task.
    batch_norm: "estimated" lets the statistics of normalizations that are not folded follow the images.
    device: "cuda" on a GPU; precision "bf16" there, for float networks.

    Raises MissingExtraError without PyTorch, TrainingError where a number stops being finite, InputError for too few
    images, for a teacher that is quantized, and for one whose outputs are others than the student's.
    """

    steps: int = between(400, 1, 10_000_000)
    batch: int = between(16, 1, 4096)
    lr: float = between(0.0, 0.0, 10.0)
    scale_lr: float = between(0.0, 0.0, 10.0)
    bias_lr: float = between(0.0, 0.0, 10.0)
    gradient: str = choice("lsq", GRADIENTS)
    noise: float = between(1.0, 0.01, 1.0)
    augment: str = choice("light", AUGMENTS)
    labels: str = choice("no", LABELS)
    terms: tuple[str, ...] = ()
    images: int = between(0, 0, 10_000_000)
    watched: int = between(48, 0, 100_000)
    held_out: int = between(32, 0, 100_000)
    evaluations: int = between(8, 1, 100_000)
    patience: int = between(0, 0, 100_000)
    ema: float = between(0.995, 0.0, 0.999999)
    clip: float = between(10.0, 0.0, 1e9)
    weight_decay: float = between(0.0, 0.0, 10.0)
    optimizer: str = choice("adamw", OPTIMIZERS)
    batch_norm: str = choice("frozen", STATISTICS)
    device: str = choice("cpu", ("cpu", "cuda"))
    precision: str = choice("float32", ("float32", "bf16"))

    what: ClassVar[str] = "fine-tuning"

    def __post_init__(self) -> None:
        super().__post_init__()
        for term in self.terms:
            if term not in TERMS:
                raise InputError(f"`Finetune.terms` names {term!r}; known are {', '.join(TERMS)}")
        if self.terms and ("labels" in self.terms) != (self.labels != "no"):
            says = "names labels" if "labels" in self.terms else "does not name labels"
            raise InputError(f"`Finetune.terms` {says}, but `labels` is {self.labels!r}; make both say the same")

    def __call__(self, model: Model, samples: Samples) -> Model:
        """Without a context the model's own float graph is the teacher, and no image is held out."""
        original = model.with_encodings({}, "the float graph")
        return replace(self, held_out=0).within(model, Context(original, samples, samples))

    def within(self, model: Model, context: Context) -> Model:
        """The trained model; `Training` says where it is kept meanwhile and what is told of it."""
        need_torch(self.what)
        if not self.lr:
            return replace(self, lr=learning_rate(model)).within(model, context)
        task = task_of(model if model.task is not None else context.original, self.what)
        division = self.division(context)
        name = self._name(model, context, division, task)
        known = Training.known(name)
        if known is not None:
            return known
        from roadworthy.train.checkpoint import Checkpoints
        from roadworthy.train.loop import train

        file = Training.file(name)
        kept = None if file is None else Checkpoints(file, resume=True, facts={"training": name})
        student, aim, feed = self._prepared(model, context, division, task)
        done = train(
            student, aim, feed, self.schedule(context.seed), evaluate=self._evaluation(context, division, task),
            checkpoints=kept, progress=Training.progress, said="finetune",
        )  # fmt: skip
        made = done.model if done.model.task is not None else done.model.with_task(task)
        record = Record(
            len([m for m in done.history if "loss" in m]), done.best_step, done.stopped, done.seconds, done.peak_mb,
            done.history, done.distances, done.averaged, len(division.trained), len(division.watched),
            len(division.held_out), context.original.source, asdict(self),
        )  # fmt: skip
        return Training.remember(name, made, record)

    def division(self, context: Context) -> Division:
        """Which images serve which end."""
        return divide(context, self.held_out, self.watched, self.images)

    def check(self, model: Model, context: Context) -> None:
        """Everything that can be refused before anything is measured; raises as `within` does."""
        need_torch(self.what)
        division = self.division(context)
        self._prepared(model, context, division, task_of(context.original, self.what))

    def pace(self, model: Model, context: Context) -> float:
        """Seconds that one image takes in training, measured on a few steps."""
        few = replace(self, steps=PACE_STEPS, evaluations=1, lr=self.lr or learning_rate(model))
        division, task = few.division(context), task_of(context.original, few.what)
        from roadworthy.train.loop import train

        marks: list[float] = []
        student, aim, feed = few._prepared(model, context, division, task)
        train(student, aim, feed, few.schedule(context.seed), progress=lambda *_: marks.append(time.monotonic()))
        return (marks[-1] - marks[0]) / ((len(marks) - 1) * self.batch)

    def steps_in(self, seconds: float, pace: float) -> int:
        """How many steps fit into a time.   pace: seconds an image, see `pace`."""
        looking = 2 * (self.evaluations + 1) * self.watched * FORWARD * pace  # the weights and their average
        return max(int((seconds - looking) / (self.batch * pace)), 1)

    def seconds(self, pace: float) -> float:
        """About how long all steps take."""
        return (self.steps * self.batch + 2 * (self.evaluations + 1) * self.watched * FORWARD) * pace

    def schedule(self, seed: int) -> Any:
        """The loop's own settings."""
        from roadworthy.train.schedule import Schedule

        return Schedule(
            steps=self.steps, batch=self.batch, lr=self.lr, scale_lr=self.scale_lr or None,
            bias_lr=self.bias_lr or None, weight_decay=self.weight_decay, warmup=min(20, self.steps // 5),
            clip=self.clip, ema=self.ema, optimizer=self.optimizer, evaluate_every=-(-self.steps // self.evaluations),
            patience=self.patience, seed=seed, workers=Training.workers, device=self.device, precision=self.precision,
            batch_norm=self.batch_norm,
        )  # fmt: skip

    def _prepared(self, model: Model, context: Context, division: Division, task: Task) -> tuple[Any, Any, Any]:
        """Student, objective and feed."""
        if self.labels != "no" and not labelled(task, division.trained):
            raise InputError(
                f"the images to train on have no labels that a {task.decode.kind} task can learn from; leave labels at"
                " no"
            )
        from roadworthy.train.distill import TERMS as KINDS
        from roadworthy.train.feed import Feed
        from roadworthy.train.objective import ObjectiveSettings, objective
        from roadworthy.train.student import student_of

        student = student_of(model, self.gradient, self.noise)
        teacher = context.original if context.original.task is not None else context.original.with_task(task)
        terms = tuple(KINDS[name]() for name in self.terms)
        settings = ObjectiveSettings(terms, labels=self.labels, device=self.device, seed=context.seed)
        aim = objective(model, [teacher], task, settings, student.value_names)
        feed = Feed(division.trained, task, self.batch, context.seed, self.augment, self.labels != "no")
        return student, aim, feed

    def _evaluation(self, context: Context, division: Division, task: Task) -> Callable[[Any], float] | None:
        """The mean task distance to the original on the watched images; their tensors are made anew each time, as
        memory must not grow with their number. What the original says there is worked out once, and small."""
        if not len(division.watched):
            return None
        from roadworthy.train.student import says

        preprocess, workers = task.preprocess, self.schedule(0).threads()
        runner = TARGETS["ort"].runner(context.original.float_bytes(), 1)
        name, watched = context.original.input_name, division.watched

        def tensors() -> Any:
            return prefetch(watched, lambda s: preprocess(s.image())[0])

        wanted = [runner.run({name: t}) for t in tensors()]

        def evaluate(student: Any) -> float:
            found = says(student, tensors(), workers)
            return float(np.mean([distance(want, got, task) for want, got in zip(wanted, found)]))

        return evaluate

    def _name(self, model: Model, context: Context, division: Division, task: Task) -> str:
        """SHA-256 of all that the result depends on."""
        from roadworthy.train.loop import fingerprint

        parts = [
            fingerprint(model), context.original.fingerprint, task.to_json(), context.seed, asdict(self),
            *(_names(s) for s in (division.trained, division.watched)),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def learning_rate(model: Model) -> float:
    """The highest learning rate where none is given, a share of each tensor (train/schedule.py).

    At 8 bits most of what is left is the rounding of activations, which looks random from image to image: larger steps
    follow it, and end up worse than they began. Fewer bits leave more to learn, and farther to go: half as much
    again for each bit less. In float nothing is rounded away.
    """
    bits = [
        e.index_bits for u in units(model.ir)
        if (e := model.encodings.get(str(u.weight.name))) is not None and not e.storage
    ]  # fmt: skip
    return FLOAT_RATE if not bits else EIGHT_BIT_RATE * 1.5 ** max(8 - min(bits), 0)


def _names(samples: Samples) -> str:
    order = hashlib.sha256(json.dumps([s.name for s in samples]).encode()).hexdigest()
    return f"{samples.content_id}/{order}"
