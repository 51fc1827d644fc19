"""What several steps need of the images, made once: the statistics of one float graph on one set of images.

Two shelves stand behind it. The most recent graphs are kept in memory, so that candidates that change the graph
(Equalize, Smooth) do not push each other out. And whoever lends a `Shelf` (`with Calibration.kept_on(shelf):`) gets
every finished pass to keep for another run, and every unfinished one to go on from.

A pass is named by all that it depends on: the float graph, the images and their order, how an image becomes a tensor,
and which values are read at the same time, as that decides what the runtime fuses. So a pass from a shelf is, to the
last bit, what measuring again would give.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from roadworthy.data.samples import Samples, prefetch
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model
from roadworthy.quantize.bias import channel_axes
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.coverage import choose, extremes
from roadworthy.quantize.place import Placement, place
from roadworthy.quantize.readers import Key
from roadworthy.quantize.statistics import Statistics, pack, unpack
from roadworthy.run.targets import TARGETS
from roadworthy.steps.settings import task_of

RANGE_IMAGES = 8
"""Images on which the layers behind a value are tried with its candidate ranges."""
KEPT = 3
"""Graphs, each on one set of images, whose statistics are kept in memory."""
POOL = 512
"""Most images that a choice by coverage looks at: of more a draw by the seed."""
Progress = Callable[[int], None]
Arrays = Mapping[str, NDArray]
GraphKey = tuple[str, str, str]
Extremes = tuple[NDArray, NDArray]
K = TypeVar("K")
T = TypeVar("T")


class Shelf(Protocol):
    """Where measurements outlive a process. An entry that is damaged is no entry; nothing here raises for one."""

    def get(self, key: str) -> Arrays | None:
        """A finished measurement."""
        ...

    def put(self, key: str, arrays: Arrays) -> None:
        """Keep a finished measurement."""
        ...

    def begun(self, key: str) -> Arrays | None:
        """An unfinished one."""
        ...

    def put_begun(self, key: str, arrays: Arrays) -> None:
        """Keep an unfinished one until it is finished, in place of what was kept before."""
        ...


class Calibration:
    """The statistics of one float graph on one set of images; made once and shared by all steps and candidates."""

    _kept: dict[GraphKey, dict[str, Statistics]] = {}  # noqa: RUF012 - at most KEPT entries, the most recent last
    _ranges: dict[GraphKey, dict[Key, Encoding]] = {}  # noqa: RUF012 - likewise
    _extremes: dict[GraphKey, Extremes] = {}  # noqa: RUF012 - likewise
    _channels: dict[str, dict[str, Statistics]] = {}  # noqa: RUF012 - likewise
    _shelf: Shelf | None = None

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

        The first time, every value is measured that any target could ask for, whichever layers are kept in float: what
        else is read from a runtime decides what it fuses, so statistics taken for one candidate differ in the last bit
        from those taken for two.
        """
        key = cls._key(model, samples)
        known = _recent(cls._kept, key, {})
        if not known:
            every = _placements(model)
            # A value that shares the codes of another is on its own as soon as that one's layer stays in float.
            asked = (v for p in every for v in (*p.observed, *p.source))
            values = tuple(dict.fromkeys((*asked, *values)))
            channels = {*channels, *(v for p in every for v in p.channels)}
        missing = [v for v in values if v not in known or not known[v].histogram]
        missing += [v for v in channels if v in known and known[v].channels is None and v not in missing]
        axes = {n: a for n, a in channel_axes(model).items() if n not in known or n in missing}
        if missing or axes:
            again = {v for v in missing if v in known and known[v].channels is not None}
            followed = {v for v in channels if v not in known or v in missing} | again
            known = {**known, **cls._measured(model, samples, missing, axes, followed, progress)}
            _remember(cls._kept, key, known)
        return known

    @classmethod
    def channels_of(cls, model: Model, samples: Samples, axes: Mapping[str, int]) -> dict[str, Statistics]:
        """Extremes, means and histograms of every channel of some values, along these axes, and nothing else: what
        steps that rescale channels ask for."""
        key = cls._name(model, samples, ["channels", sorted(axes.items())])
        found = _recent(cls._channels, key, None)
        if found is None:
            found = cls._measured(model, samples, (), axes, axes, None)
        return _remember(cls._channels, key, found)

    @classmethod
    def _measured(
        cls,
        model: Model,
        samples: Samples,
        values: Sequence[str],
        axes: Mapping[str, int],
        channels: Collection[str],
        progress: Progress | None,
    ) -> dict[str, Statistics]:
        """One pass over the images; from the shelf where it has it, and from where it was interrupted."""
        preprocess, shelf = task_of(model, "calibration").preprocess, cls._shelf
        name = cls._name(model, samples, [list(values), sorted(axes.items()), sorted(channels)])
        if shelf is not None and (kept := shelf.get(name)) is not None:
            return unpack(kept)
        begun = None
        if shelf is not None and (half := shelf.begun(name)) is not None:
            begun = int(half["seen"]), unpack(half)

        def checkpoint(seen: int, table: Mapping[str, Statistics]) -> None:
            if shelf is not None:
                shelf.put_begun(name, {**pack(table), "seen": np.array(seen)})

        rest = samples if begun is None else samples[begun[0] :]
        tensors = prefetch(rest, lambda s: preprocess(s.image())[0])
        found = calibrate(
            model, values, tensors, 0, progress, axes, sorted(channels), begun, checkpoint if shelf else None
        )
        if shelf is not None:
            shelf.put(name, pack(found))
        return found

    @classmethod
    def few(cls, model: Model, samples: Samples) -> Callable[[], Iterable[NDArray]]:
        """Input tensors of the first RANGE_IMAGES images, made when they are asked for."""
        preprocess = task_of(model, "calibration").preprocess
        return lambda: (preprocess(s.image())[0] for s in samples.take(min(RANGE_IMAGES, len(samples)), 0))

    @classmethod
    def ranges(cls, model: Model, samples: Samples) -> dict[Key, Encoding]:
        """What `encodings_by_readers` has found on these images so far; to be added to."""
        key = cls._key(model, samples)
        return _remember(cls._ranges, key, _recent(cls._ranges, key, {}))

    @classmethod
    def extremes(cls, model: Model, samples: Samples, progress: Progress | None = None) -> Extremes:
        """Least and largest number of every value that a target would quantize, both (images, values)."""
        preprocess = task_of(model, "choosing images by coverage").preprocess
        key, shelf = cls._key(model, samples), cls._shelf
        found = _recent(cls._extremes, key, None)
        if found is None:
            values = list(dict.fromkeys(v for p in _placements(model) for v in p.observed))
            name = cls._name(model, samples, ["extremes", values])
            if shelf is not None and (kept := shelf.get(name)) is not None:
                found = kept["lo"], kept["hi"]
            else:
                found = extremes(model, values, prefetch(samples, lambda s: preprocess(s.image())[0]), 0, progress)
                if shelf is not None:
                    shelf.put(name, {"lo": found[0], "hi": found[1]})
        return _remember(cls._extremes, key, found)

    @classmethod
    def covering(cls, model: Model, samples: Samples, count: int, seed: int) -> Samples:
        """The `count` images that cover most of the ranges together, out of POOL at most, in the order of the set.

        model: the folded float graph.   A larger count adds to a smaller one.
        """
        pool = samples.take(POOL, seed)
        picked = {pool[k].name for k in choose(*cls.extremes(model, pool), count)[0]}
        return samples.where(lambda s: s.name in picked)

    @classmethod
    @contextmanager
    def kept_on(cls, shelf: Shelf | None) -> Iterator[None]:
        """Inside, measurements are looked for on a shelf, and put there."""
        before, cls._shelf = cls._shelf, shelf
        try:
            yield
        finally:
            cls._shelf = before

    @classmethod
    def forget(cls) -> None:
        """Let go of everything that is kept in memory."""
        for table in (cls._kept, cls._ranges, cls._extremes, cls._channels):
            table.clear()

    @staticmethod
    def _key(model: Model, samples: Samples) -> GraphKey:
        """What the statistics depend on: the graph, the images in their order, and how an image becomes a tensor."""
        preprocess = repr(model.task.preprocess) if model.task else ""
        order = hashlib.sha256(json.dumps([s.name for s in samples]).encode()).hexdigest()
        return model.fingerprint, f"{samples.content_id}/{order}", preprocess

    @classmethod
    def _name(cls, model: Model, samples: Samples, what: Any) -> str:
        """The name of one pass on a shelf."""
        return hashlib.sha256(json.dumps([*cls._key(model, samples), what]).encode()).hexdigest()


def _placements(model: Model) -> list[Placement]:
    return [place(model.ir, target) for target in TARGETS.values()]


def _recent(table: dict[K, T], key: K, default: Any) -> T:
    """An entry, which becomes the most recent one."""
    if key in table:
        table[key] = table.pop(key)
    return table.get(key, default)


def _remember(table: dict[K, T], key: K, value: T) -> T:
    """Keep an entry as the most recent one; the oldest ones beyond KEPT go."""
    table.pop(key, None)
    table[key] = value
    while len(table) > KEPT:
        del table[next(iter(table))]
    return value
