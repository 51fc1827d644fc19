"""Recipes: a tuple of steps, written as YAML and read back.

A step is a sentence, `Quantize(target="ort", observer="mse")`. A recipe applied to the same model and images with the
same seed gives the same bytes. Steps that look at images share one calibration pass.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from roadworthy.data.samples import Samples
from roadworthy.errors import InputError
from roadworthy.model.model import Model
from roadworthy.steps.bias import CorrectBias
from roadworthy.steps.calibration import Calibration
from roadworthy.steps.context import Context, Contextual
from roadworthy.steps.equalize import Equalize
from roadworthy.steps.finetune import Finetune
from roadworthy.steps.fold import Fold
from roadworthy.steps.quantize import Quantize
from roadworthy.steps.round import Round
from roadworthy.steps.settings import plain, read_settings
from roadworthy.steps.smooth import Smooth
from roadworthy.steps.store import StoreWeights
from roadworthy.steps.threshold import SetThreshold

__all__ = [
    "STEPS", "Calibration", "CorrectBias", "Equalize", "Finetune", "Fold", "Quantize", "Recipe", "Round",
    "SetThreshold", "Smooth", "Step", "StoreWeights", "read_recipe",
]  # fmt: skip

VERSION = 1
CHOICES = ("random", "coverage")
"""How calibration images are chosen: by lot, or by how much of the ranges inside the network they cover."""


class Step(Protocol):
    """One that wants to know more than its images has `within`, too: see steps/context.py."""

    def __call__(self, model: Model, samples: Samples) -> Model: ...


STEPS: dict[str, type[Any]] = {
    "fold": Fold,
    "equalize": Equalize,
    "smooth": Smooth,
    "quantize": Quantize,
    "store_weights": StoreWeights,
    "correct_bias": CorrectBias,
    "round": Round,
    "finetune": Finetune,
    "set_threshold": SetThreshold,
}


@dataclass(frozen=True)
class Recipe:
    """A tuple of steps.

    images: how many calibration images are used.   seed: of every random choice.   by: one of CHOICES, how the images
    are chosen (`choose` in YAML). "coverage" takes those whose values reach furthest, each for what it adds to the ones
    before it (quantize/coverage.py); it looks at every image once, at 512 drawn by the seed where there are more.
    """

    steps: tuple[Any, ...]
    images: int = 128
    seed: int = 0
    by: str = "random"

    def choose(self, samples: Samples, model: Model | None = None) -> Samples:
        """The calibration images this recipe uses, in the order of the set.

        model: the float model with its task; only a choice by coverage needs it.   Raises InputError for an unknown
        kind of choice, and where the model is missing.
        """
        if self.by not in CHOICES:
            raise InputError(f"calibration images are chosen by {self.by!r}; known are {', '.join(CHOICES)}")
        if self.by == "coverage" and self.images < len(samples):
            if model is None:
                raise InputError("choosing images by coverage needs the model; hand it to Recipe.choose")
            return Calibration.covering(Fold()(model, samples), samples, self.images, self.seed)
        return samples.take(min(self.images, len(samples)), self.seed)

    def apply(self, model: Model, samples: Samples, original: Model | None = None) -> Model:
        """Apply all steps in order.

        samples: all calibration images; most steps get those that `choose` chooses.   original: what a training learns
        from, where that is not the model itself (a quantized or pruned one is trained further).
        """
        chosen = self.choose(samples, model)
        context = Context(model if original is None else original, samples, chosen, self.seed)
        for step in self.steps:
            model = step.within(model, context) if isinstance(step, Contextual) else step(model, chosen)
        return model

    @property
    def training(self) -> Finetune | None:
        """The step that trains, where there is one."""
        return next((s for s in self.steps if isinstance(s, Finetune)), None)

    @property
    def untrained(self) -> Recipe:
        """The recipe without any training."""
        return replace(self, steps=tuple(s for s in self.steps if not isinstance(s, Finetune)))

    def to_yaml(self, notes: dict[str, str] | None = None) -> str:
        """YAML text; notes (hashes, versions) become a `made_with` section that replaying compares."""
        import yaml

        rows = []
        for step in self.steps:
            settings = {f.name: getattr(step, f.name) for f in fields(step) if getattr(step, f.name) != f.default}
            rows.append({_name_of(step): {k: plain(v) for k, v in settings.items()}})
        document: dict[str, Any] = {"version": VERSION, "images": self.images, "seed": self.seed}
        if self.by != "random":
            document["choose"] = self.by
        document["steps"] = rows
        if notes:
            document["made_with"] = notes
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)

    def describe(self) -> dict[str, Any]:
        steps = [{_name_of(s): asdict(s)} for s in self.steps]
        return {"images": self.images, "seed": self.seed, "choose": self.by, "steps": steps}


def _name_of(step: Any) -> str:
    return next(name for name, kind in STEPS.items() if type(step) is kind)


def read_recipe(path: str | Path) -> tuple[Recipe, dict[str, str]]:
    """A recipe from a YAML file, and its `made_with` notes.

    Raises InputError naming the step or setting at fault; unknown ones are refused, never ignored.
    """
    import yaml

    try:
        document = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"the recipe {path} is not YAML: {' '.join(str(error).split())[:160]}") from error
    if not isinstance(document, dict) or not isinstance(document.get("steps"), list):
        raise InputError(f"the recipe {path} needs a list `steps`")
    unknown = set(document) - {"version", "images", "seed", "choose", "steps", "made_with"}
    if unknown:
        raise InputError(f"the recipe {path} has the unknown key `{min(map(str, unknown))}`")
    if document.get("version") != VERSION:
        raise InputError(f"the recipe {path} is of version {document.get('version')}; this program reads {VERSION}")
    for key, least in (("images", 1), ("seed", 0)):
        value = document.get(key, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"`{key}` in the recipe {path} must be a whole number from {least} up")
    by = document.get("choose", "random")
    if by not in CHOICES:
        raise InputError(f"`choose` in the recipe {path} is {by!r}; known are {', '.join(CHOICES)}")
    steps = tuple(_read_step(row, path) for row in document["steps"])
    made_with = document.get("made_with") or {}
    if not isinstance(made_with, dict):
        raise InputError(f"`made_with` in the recipe {path} must be a mapping")
    return Recipe(steps, document.get("images", 128), document.get("seed", 0), by), dict(made_with)


def _read_step(row: Any, path: str | Path) -> Any:
    if isinstance(row, str):
        row = {row: {}}
    if not isinstance(row, dict) or len(row) != 1:
        raise InputError(
            f"each step of the recipe {path} is a name with its settings, as in `- quantize: {{target: ort}}`"
        )
    name, settings = next(iter(row.items()))
    if name not in STEPS:
        raise InputError(f"the recipe {path} has the unknown step `{name}`; known are {', '.join(STEPS)}")
    settings = settings or {}
    if not isinstance(settings, dict):
        raise InputError(f"`{name}` in the recipe {path} must be followed by settings, as in `{{target: ort}}`")
    return read_settings(STEPS[name], settings, name, f"the recipe {path}")
