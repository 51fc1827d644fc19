"""Calibration in a job: which images, one pass over them before anything else looks at images, and what they cover.

The images cover a share of the ranges that all images together reach inside the network (quantize/coverage.py). That
share, and how many images chosen by coverage would do, is told in every report: it says whether more images, or others,
could matter to ranges at all. To know it, the other images are run once, for two numbers a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from roadworthy.data.samples import Samples
from roadworthy.errors import InputError
from roadworthy.jobs.search import calibration_images
from roadworthy.jobs.trial import Ui
from roadworthy.model.model import Model
from roadworthy.quantize.coverage import choose, coverage
from roadworthy.recipe import CHOICES, Calibration, Fold, Recipe
from roadworthy.steps.calibration import POOL

AUTO = "auto"
FEWEST = 16
ENOUGH = 0.99
"""Share of the ranges beyond which more images are not worth their time."""
LOOKED_AT = 4
"""Where images are drawn by lot, so many times as many are looked at to say what they cover; never more than POOL."""


@dataclass(frozen=True)
class Covered:
    """What the calibration images cover.

    used: how many they are.   seen, every: how many images were looked at, and how many there are.   share: of the
    ranges of those looked at, 0..1.   best, best_share: the fewest images (a power of two) that cover ENOUGH when they
    are chosen by coverage, and what they cover; or as many as are used.   by: how the used ones were chosen.
    """

    used: int
    seen: int
    every: int
    share: float
    best: int
    best_share: float
    by: str

    def __str__(self) -> str:
        if self.used >= self.every:
            return f"all {self.every} calibration images are used" if self.every > 1 else "the one image is used"
        among = f"{self.every} images" if self.seen == self.every else f"{self.seen} images looked at (of {self.every})"
        told = f"{self.used} of {among}{' chosen by coverage' if self.by == 'coverage' else ''} cover"
        told += f" {_percent(self.share)} of the ranges of all"
        if self.by == "coverage" and self.best >= self.used:
            return told
        better = f"{self.best} chosen by coverage would cover {_percent(self.best_share)}"
        return f"{told}; {better}" + ("; more do not help" if self.best_share >= ENOUGH else "")


@dataclass(frozen=True)
class Chosen:
    """The images of a job.   recipe: no steps, but how the images are chosen.   images: the very ones."""

    recipe: Recipe
    images: Samples
    covered: Covered

    @property
    def wanted(self) -> int:
        return self.recipe.images


def check_choice(images: int | str | None, by: str, recipe: str | None) -> None:
    """Raises InputError for settings that mean nothing, or that a recipe decides."""
    if images is not None and images != AUTO and (isinstance(images, str | bool) or images < 1):
        raise InputError(f"--images is {images!r}; give a number from 1 up, or auto")
    if by not in CHOICES:
        raise InputError(f"--choose is {by!r}; known are {', '.join(CHOICES)}")
    if recipe is not None and (images is not None or by != "random"):
        raise InputError(
            "a recipe says which calibration images it uses; leave out --images and --choose, or edit `images` and"
            f" `choose` in {recipe}"
        )


def choose_images(
    model: Model,
    calibration: Samples,
    replay: Recipe | None,
    images: int | str | None,
    by: str,
    effort: str,
    seed: int,
    ui: Ui,
) -> Chosen:
    """The images to calibrate with, and what they cover.   replay: a recipe that decides.   images: how many, AUTO for
    the fewest that would cover ENOUGH, or None for what the effort takes."""
    most = calibration_images(effort, len(calibration), images if isinstance(images, int) else None)
    recipe = replay or Recipe((), most, seed, by)
    count = min(recipe.images, len(calibration))
    if count == len(calibration) and images != AUTO:
        return Chosen(recipe, calibration, Covered(count, count, count, 1.0, count, 1.0, recipe.by))
    scan = recipe.by == "coverage" or images == AUTO
    pool = calibration.take(POOL if scan else min(POOL, LOOKED_AT * count), recipe.seed)
    folded = Fold()(model, calibration)
    with ui.stage("what the images cover", len(pool)) as advance:
        lo, hi = Calibration.extremes(folded, pool, advance)
    _, covered = choose(lo, hi, len(pool))
    best = fewest(covered, count)
    if images == AUTO:
        recipe = Recipe((), best, seed, by)
        count = best
    chosen = recipe.choose(calibration, model)
    names = {s.name for s in chosen}
    share = coverage(lo, hi, [k for k, s in enumerate(pool) if s.name in names])
    told = Covered(count, len(pool), len(calibration), share, best, float(covered[best - 1]), recipe.by)
    ui.note(f"calibration: {told}")
    return Chosen(recipe, chosen, told)


def fewest(covered: np.ndarray, most: int) -> int:
    """The smallest power of two, from FEWEST, of images that cover ENOUGH; at most `most`.

    covered: what the best 1, 2, ... images cover.
    """
    count = FEWEST
    while count < most and count <= len(covered) and covered[count - 1] < ENOUGH:
        count *= 2
    return max(min(count, most, len(covered)), 1)


def calibrate(model: Model, chosen: Samples, ui: Ui) -> None:
    """One pass over the calibration images, shared by all that follows."""
    folded = Fold()(model, chosen)
    with ui.stage("calibration", len(chosen)) as advance:
        Calibration.of(folded, chosen, (), advance)


def _percent(share: float) -> str:
    """Never rounded up to all."""
    return "100 %" if share >= 1 else f"{min(np.floor(1000 * share) / 10, 99.9):.3g} %"
