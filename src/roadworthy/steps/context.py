"""What a step may know beside the model and the images that the recipe calibrates with; and how images are divided.

Most steps are called as `(model, samples)`. A step that needs more has a method `within(model, context)`, and a recipe
calls that one instead. No image serves two of these ends:

    held out     candidates are compared on them (jobs/search.py), so that no figure that decides is flattered
    watched      a training decides on them which of its states to deliver, and when to stop
    trained on   the rest, the images that ranges were taken from among them

One function says which they are, for the search and for the training. Images are told apart by what is in their files,
not by their names: a copy under another name goes where its original goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from roadworthy.data.samples import Samples
from roadworthy.errors import InputError
from roadworthy.model.model import Model

FEWEST = 4
"""Fewer images than these tell nothing apart."""
SHARE = 5
"""At most one image in so many is watched: of those that are not held out."""


@dataclass(frozen=True, eq=False)
class Context:
    """original: the network that the recipe is applied to, or was given as the original: what a step learns from.

    every: all calibration images.   chosen: those that the recipe calibrates with.   seed: the recipe's.
    """

    original: Model
    every: Samples
    chosen: Samples
    seed: int = 0


@runtime_checkable
class Contextual(Protocol):
    """A step that wants to know more."""

    def within(self, model: Model, context: Context) -> Model: ...


@dataclass(frozen=True, eq=False)
class Division:
    """Images by what they are for; no image is in two."""

    trained: Samples
    watched: Samples
    held_out: Samples


def held_out(every: Samples, chosen: Samples, count: int, seed: int) -> Samples:
    """Up to `count` images that nothing is fitted to: a draw from those that the recipe does not calibrate with.

    Empty where it calibrates with all of them.
    """
    rest = _without(every, chosen)
    return rest.take(count, seed) if count else rest[:0]


def divide(context: Context, held: int, watched: int, most: int = 0) -> Division:
    """The images of a training.   held, watched: how many, at most.   most: to train on; 0: all that are left.

    Raises InputError where images are to be watched and there are too few to spare any.
    """
    every, seed = context.every, context.seed
    out = held_out(every, context.chosen, held, seed)
    rest = _without(every, out)
    count = min(watched, len(rest) // SHARE)
    if watched and count < min(watched, FEWEST):
        raise InputError(
            f"{_images(len(every))} too few to hold any out for training; give at least"
            f" {FEWEST * SHARE + (held if len(out) else 0)}"
        )
    seen = rest.take(count, seed) if count else rest[:0]
    left = _without(rest, seen)
    if not len(left):
        raise InputError("there are no images to train on; give a set with images to calibrate and train with")
    return Division(left.take(most, seed) if most else left, seen, out)


def _without(samples: Samples, others: Samples) -> Samples:
    """The samples that are none of the others, nor copies of them."""
    known = {s.digest() for s in others}
    return samples.where(lambda s: s.digest() not in known)


def _images(count: int) -> str:
    return "1 calibration image is" if count == 1 else f"{count} calibration images are"
