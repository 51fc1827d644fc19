"""Steps and recipes. A step is a sentence, `Quantize(target="ort", observer="mse")`; a recipe is a tuple of steps.

A recipe is written as YAML and read back; applied to the same model and images with the same seed it gives the same
bytes. Steps that look at images share one calibration pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from roadworthy.data.samples import Samples, prefetch
from roadworthy.errors import InputError
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model
from roadworthy.model.units import units
from roadworthy.optimize import fold
from roadworthy.quantize.bias import channel_axes, correct_bias
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.observers import OBSERVERS
from roadworthy.quantize.place import Placement, place
from roadworthy.quantize.quantize import activation_encodings, incompatible_merges, quantize_units
from roadworthy.quantize.readers import Key, encodings_by_readers
from roadworthy.quantize.refine import refine
from roadworthy.quantize.statistics import Statistics
from roadworthy.run.arithmetic import int8_refusal
from roadworthy.run.targets import TARGETS

VERSION = 1
RANGE_IMAGES = 8
"""Images on which the layers behind a value are tried with its candidate ranges."""
Progress = Callable[[int], None]


class Step(Protocol):
    def __call__(self, model: Model, samples: Samples) -> Model: ...


class Calibration:
    """The statistics of one float graph on one set of images; made once and shared by all steps and candidates."""

    _kept: dict[tuple[str, str, str], dict[str, Statistics]] = {}  # noqa: RUF012 - one entry, replaced
    _ranges: dict[tuple[str, str, str], dict[Key, Encoding]] = {}  # noqa: RUF012 - likewise

    @classmethod
    def of(
        cls,
        model: Model,
        samples: Samples,
        values: Sequence[str],
        progress: Progress | None = None,
        channels: Collection[str] = (),
    ) -> dict[str, Statistics]:
        """Statistics of at least these values, with channel means of every unit's input, and histograms of every
        channel of `channels`.

        The first time, every value that any target would ask for is measured: what else is read from a runtime decides
        what it fuses, so statistics taken for one target differ in the last bit from those taken for two.
        """
        key = cls._key(model, samples)
        known = cls._kept.get(key, {})
        if not known:
            every = [place(model.ir, t) for t in TARGETS.values()]
            values = tuple(dict.fromkeys((*(v for p in every for v in p.observed), *values)))
            channels = {*channels, *(v for p in every for v in p.channels)}
        missing = [v for v in values if v not in known or not known[v].histogram]
        missing += [v for v in channels if v in known and known[v].channels is None and v not in missing]
        axes = {n: a for n, a in channel_axes(model).items() if n not in known or n in missing}
        if missing or axes:
            task = model.task
            if task is None:
                raise InputError("calibration needs the task of the model; give it with --task")
            preprocess = task.preprocess
            tensors = prefetch(samples, lambda s: preprocess(s.image())[0])
            known = {**known, **calibrate(model, missing, tensors, 0, progress, axes, channels)}
            cls._kept = {key: known}
        return known

    @classmethod
    def few(cls, model: Model, samples: Samples) -> Callable[[], Iterable[NDArray]]:
        """Input tensors of the first RANGE_IMAGES images, made when they are asked for."""
        if model.task is None:
            raise InputError("calibration needs the task of the model; give it with --task")
        preprocess = model.task.preprocess
        return lambda: (preprocess(s.image())[0] for s in samples.take(min(RANGE_IMAGES, len(samples)), 0))

    @classmethod
    def ranges(cls, model: Model, samples: Samples) -> dict[Key, Encoding]:
        """What `encodings_by_readers` has found on these images so far; to be added to."""
        key = cls._key(model, samples)
        if key not in cls._ranges:
            cls._ranges = {key: {}}
        return cls._ranges[key]

    @classmethod
    def put(cls, model: Model, samples: Samples, known: dict[str, Statistics]) -> None:
        """Use statistics that an earlier, interrupted run left behind."""
        cls._kept = {cls._key(model, samples): known}

    @staticmethod
    def _key(model: Model, samples: Samples) -> tuple[str, str, str]:
        """What the statistics depend on: the graph, the images, and how an image becomes a tensor."""
        preprocess = repr(model.task.preprocess) if model.task else ""
        return model.fingerprint, samples.content_id, preprocess


@dataclass(frozen=True)
class Fold:
    """Rewrite the graph without changing what it computes: Pad and batch norm into convolutions."""

    def __call__(self, model: Model, samples: Samples) -> Model:
        return fold(model)


@dataclass(frozen=True)
class Quantize:
    """Put the layers that a target runs in int8 into int8; store the weights of the others as integers.

    target: a key of TARGETS.   observer, weight_observer: keys of OBSERVERS ("minmax" or "mse" for weights). On a
    target that is `whole`, "mse" is the error behind the layers that read a value (quantize/readers.py).
    keep_float: names of layers that compute in float.   wide: names of layers among them whose weights are stored
    with 16 bits instead of 8.   float_weights: names of layers whose weights are not touched at all.
    """

    target: str = "ort"
    observer: str = "mse"
    weight_observer: str = "mse"
    keep_float: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    float_weights: tuple[str, ...] = ()

    def __call__(self, model: Model, samples: Samples) -> Model:
        placement = self.placement(model, samples)
        made = self._encode(model, samples, placement)
        if not TARGETS[self.target].whole:
            return made
        # What the engine would refuse (a sum that could overflow, say) is known only now; it computes in float.
        while refused := {
            u.name: reason
            for u in units(made.ir)
            if u.name in placement.int8 and (reason := int8_refusal(u, made.encodings)) is not None
        }:
            keep = frozenset(placement.why_float) | frozenset(refused)
            again = place(model.ir, TARGETS[self.target], keep)
            placement = replace(again, why_float={**again.why_float, **placement.why_float, **refused})
            made = self._encode(model, samples, placement)
        return made

    def _encode(self, model: Model, samples: Samples, placement: Placement) -> Model:
        target = TARGETS[self.target]
        statistics = Calibration.of(model, samples, placement.observed, channels=placement.channels)
        activations = activation_encodings(placement, statistics, target, self.observer)
        if target.whole:
            if self.observer == "mse":
                images = Calibration.few(model, samples)
                known = Calibration.ranges(model, samples)
                activations = encodings_by_readers(model, placement, statistics, activations, images, known)
            activations = refine(model, placement, statistics, activations)
        store = {n: 16 if n in self.wide else 8 for n in placement.why_float if n not in set(self.float_weights)}
        return quantize_units(model, placement, activations, self.weight_observer, store)

    def placement(self, model: Model, samples: Samples) -> Placement:
        """What runs in int8; Concats whose inputs differ too much in measured range are kept apart."""
        _known_layers(model, (*self.keep_float, *self.wide, *self.float_weights))
        keep = frozenset(self.keep_float) | frozenset(self.float_weights) | frozenset(self.wide)
        target = TARGETS[self.target]
        first = place(model.ir, target, keep)
        if target.whole:  # what differs in range is translated from code to code
            return first
        statistics = Calibration.of(model, samples, first.observed)
        apart = incompatible_merges(first, statistics)
        return place(model.ir, target, keep, frozenset(apart)) if apart else first


@dataclass(frozen=True)
class StoreWeights:
    """Store weights as integers and compute in float: smaller, exactly as fast, almost exactly as accurate.

    weight_observer: "minmax" or "mse".   wide: names of layers stored with 16 bits.
    float_weights: names of layers that are not touched.
    """

    weight_observer: str = "mse"
    wide: tuple[str, ...] = ()
    float_weights: tuple[str, ...] = ()

    def __call__(self, model: Model, samples: Samples) -> Model:
        _known_layers(model, (*self.wide, *self.float_weights))
        names = [u.name for u in units(model.ir) if u.name not in set(self.float_weights)]
        store = {n: 16 if n in self.wide else 8 for n in names}
        nothing = Placement(frozenset(), {}, {})
        return quantize_units(model, nothing, {}, self.weight_observer, store)


@dataclass(frozen=True)
class CorrectBias:
    """Let biases make up for the mean shift that rounding the weights caused."""

    def __call__(self, model: Model, samples: Samples) -> Model:
        if model.task is None and not len(samples):
            return model
        return correct_bias(model, Calibration.of(model, samples, ()))


STEPS: dict[str, type[Any]] = {
    "fold": Fold,
    "quantize": Quantize,
    "store_weights": StoreWeights,
    "correct_bias": CorrectBias,
}


def _known_layers(model: Model, names: Sequence[str]) -> None:
    known = {u.name for u in units(model.ir)}
    for name in names:
        if name not in known:
            raise InputError(
                f"the recipe names the layer {name!r}, which the model does not have; was it made for another?"
            )


@dataclass(frozen=True)
class Recipe:
    """A tuple of steps.   images: how many calibration images are used, chosen by `seed`."""

    steps: tuple[Any, ...]
    images: int = 128
    seed: int = 0

    def choose(self, samples: Samples) -> Samples:
        """The calibration images this recipe uses."""
        return samples.take(min(self.images, len(samples)), self.seed)

    def apply(self, model: Model, samples: Samples) -> Model:
        """Apply all steps in order."""
        chosen = self.choose(samples)
        for step in self.steps:
            model = step(model, chosen)
        return model

    def to_yaml(self, notes: dict[str, str] | None = None) -> str:
        """YAML text; notes (hashes, versions) become a `made_with` section that replaying compares."""
        import yaml

        rows = []
        for step in self.steps:
            settings = {f.name: getattr(step, f.name) for f in fields(step) if getattr(step, f.name) != f.default}
            plain = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
            rows.append({_name_of(step): plain})
        document: dict[str, Any] = {"version": VERSION, "images": self.images, "seed": self.seed, "steps": rows}
        if notes:
            document["made_with"] = notes
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)

    def describe(self) -> dict[str, Any]:
        return {"images": self.images, "seed": self.seed, "steps": [{_name_of(s): asdict(s)} for s in self.steps]}


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
    unknown = set(document) - {"version", "images", "seed", "steps", "made_with"}
    if unknown:
        raise InputError(f"the recipe {path} has the unknown key `{min(map(str, unknown))}`")
    if document.get("version") != VERSION:
        raise InputError(f"the recipe {path} is of version {document.get('version')}; this program reads {VERSION}")
    for key, least in (("images", 1), ("seed", 0)):
        value = document.get(key, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"`{key}` in the recipe {path} must be a whole number from {least} up")
    steps = tuple(_read_step(row, path) for row in document["steps"])
    made_with = document.get("made_with") or {}
    if not isinstance(made_with, dict):
        raise InputError(f"`made_with` in the recipe {path} must be a mapping")
    return Recipe(steps, document.get("images", 128), document.get("seed", 0)), dict(made_with)


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
    known = {f.name: f for f in fields(STEPS[name])}
    for key, value in settings.items():
        if key not in known:
            raise InputError(f"`{name}.{key}` in the recipe {path} is unknown; known are {', '.join(known) or 'none'}")
        if isinstance(known[key].default, tuple):
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                raise InputError(f"`{name}.{key}` in the recipe {path} must be a list of layer names")
        elif not isinstance(value, str):
            raise InputError(f"`{name}.{key}` in the recipe {path} must be a word")
    choices: dict[str, Iterable[str]] = {"target": TARGETS, "observer": OBSERVERS, "weight_observer": ("minmax", "mse")}
    for key, allowed in choices.items():
        if key in settings and settings[key] not in allowed:
            raise InputError(
                f"`{name}.{key}` in the recipe {path} is {settings[key]!r}; known are {', '.join(allowed)}"
            )
    return STEPS[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})
