"""What several steps need of the images, made once: the statistics of one float graph on one set of images."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from numpy.typing import NDArray

from roadworthy.data.samples import Samples, prefetch
from roadworthy.errors import InputError
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model
from roadworthy.quantize.bias import channel_axes
from roadworthy.quantize.calibrate import calibrate
from roadworthy.quantize.place import place
from roadworthy.quantize.readers import Key
from roadworthy.quantize.statistics import Statistics
from roadworthy.run.targets import TARGETS

RANGE_IMAGES = 8
"""Images on which the layers behind a value are tried with its candidate ranges."""
Progress = Callable[[int], None]


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
