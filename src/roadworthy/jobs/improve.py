"""Improvements: what is tried on top of a plain int8 model, one thing after the other, each kept where it helps.

A candidate's worth is the task distance between its outputs and the original's on calibration images that nothing was
calibrated with: it needs no labels, is far less noisy than mAP, and leaves the test images for the verdict. An
improvement is kept when it lowers the distance by more than GAIN; else the model stays as it was.

Every row of IMPROVEMENTS is a function of the recipe so far: what it would become, or None where that makes no sense.
It may ask the search for measurements. To add a method, add a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from roadworthy.check.audit import damages, harmful
from roadworthy.model.units import units
from roadworthy.quantize.place import before_activation
from roadworthy.recipe import CorrectBias, Equalize, Fold, Quantize, Recipe, Round, Smooth
from roadworthy.run.targets import TARGETS

if TYPE_CHECKING:
    from roadworthy.jobs.search import Search
    from roadworthy.jobs.trial import Trial

GAIN = 0.02
"""Least share by which the held-out distance must fall: less is what another draw of images does by itself."""
AUDITED = 12
"""Held-out images on which single tables are tried."""
TABLES = 0.05
"""Most share by which all 8-bit tables that are kept may raise the distance, by what each does alone."""


@dataclass(frozen=True)
class Improvement:
    """name: for the report.   efforts: where it is tried.   change: recipe so far -> recipe to try, or None."""

    name: str
    efforts: frozenset[str]
    change: Callable[[Search, Trial], Recipe | None]


def quantize_of(recipe: Recipe) -> Quantize:
    return next(s for s in recipe.steps if isinstance(s, Quantize))


def with_quantize(recipe: Recipe, **fields: Any) -> Recipe:
    """The recipe with other settings of its Quantize."""
    return replace(recipe, steps=tuple(replace(s, **fields) if isinstance(s, Quantize) else s for s in recipe.steps))


def _observer(name: str) -> Callable[[Search, Trial], Recipe | None]:
    def change(search: Search, best: Trial) -> Recipe | None:
        return None if quantize_of(best.recipe).observer == name else with_quantize(best.recipe, observer=name)

    return change


def _exact_activations(search: Search, best: Trial) -> Recipe | None:
    """Without the 8-bit tables that cost accuracy: each is tried alone in the float network."""
    if not TARGETS[search.target].tables:
        return None
    folded, model = Fold()(search.model, search.calibration), best.model
    made_by = {str(before_activation(u).name): u.name for u in units(folded.ir) if u.activation is not None}
    tables = [p for p in made_by if p in model.encodings]
    if not tables or best.distance is None:
        return None
    with search.ui.stage(f"8-bit tables on {search.target}", len(tables)) as advance:
        alone = damages(folded, search.task, search.probes[:AUDITED], model.encodings, tables, search.threads, advance)
    search.note_sensitivity(
        "task distance with only this activation as an 8-bit table", {made_by[p]: d for p, d in alone.items()}
    )
    everything = sum(d**2 for d in alone.values())
    base = max(best.distance**2 - everything, 0.25 * best.distance**2) ** 0.5
    names = tuple(sorted(made_by[p] for p in harmful(alone, base, TABLES)))
    return with_quantize(best.recipe, exact_activations=names) if names else None


def _behind_fold(step: Any) -> Callable[[Search, Trial], Recipe | None]:
    """With a rewriting of the float graph in front of everything that rounds."""

    def change(search: Search, best: Trial) -> Recipe | None:
        steps = tuple(s for s in best.recipe.steps if type(s) is not type(step))
        return replace(best.recipe, steps=(steps[0], step, *steps[1:]))

    return change


def _equalized(search: Search, best: Trial) -> Recipe | None:
    """Only one scale for all channels of a weight gains by it: it is known to cost a little where each has its own."""
    return None if quantize_of(best.recipe).granularity == "channel" else _behind_fold(Equalize())(search, best)


def _rounded(search: Search, best: Trial) -> Recipe | None:
    """Learned rounding right behind Quantize."""
    at = next(k for k, s in enumerate(best.recipe.steps) if isinstance(s, Quantize)) + 1
    return replace(best.recipe, steps=(*best.recipe.steps[:at], Round(), *best.recipe.steps[at:]))


def _measured_bias(search: Search, best: Trial) -> Recipe | None:
    """Not behind learned rounding, which corrects biases itself and leaves other weights to be measured against."""
    if any(isinstance(s, Round) for s in best.recipe.steps):
        return None
    steps = (CorrectBias("empirical") if isinstance(s, CorrectBias) else s for s in best.recipe.steps)
    return replace(best.recipe, steps=tuple(steps))


EVERY = frozenset({"normal", "thorough"})
THOROUGH = frozenset({"thorough"})
IMPROVEMENTS: tuple[Improvement, ...] = (
    Improvement("exact activations", EVERY, _exact_activations),
    Improvement("percentile ranges", EVERY, _observer("percentile")),
    Improvement("extreme ranges", EVERY, _observer("minmax")),
    Improvement("ranges by divergence", THOROUGH, _observer("kl")),
    Improvement("equalized layers", EVERY, _equalized),
    Improvement("outliers moved into weights", EVERY, _behind_fold(Smooth(0.5))),
    Improvement("more outliers moved into weights", THOROUGH, _behind_fold(Smooth(0.75))),
    Improvement("learned rounding", THOROUGH, _rounded),
    Improvement("measured bias", THOROUGH, _measured_bias),  # in place of learned rounding, where that did not help
)
