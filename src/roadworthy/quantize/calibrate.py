"""Calibration: one streaming pass of the images through the float network, in memory that does not grow with them.

All values that are looked at are read in one run per image, or in several where they would take more memory than
MAX_TAPPED values at a time. The statistics of different values are updated side by side; each sees its images in order,
so that the result does not depend on the threads.

A long pass can be interrupted: what was gathered so far is handed out now and then, and a later pass goes on from it to
the very same statistics.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.model import Model
from roadworthy.quantize.statistics import Statistics
from roadworthy.run.ort import TapReader

Progress = Callable[[int], None]
Begun = tuple[int, Mapping[str, Statistics]]
"""Images seen, and the statistics of them."""
MAX_TAPPED = 1 << 26
"""Most float32 values that are held at a time: 256 MB."""
CHECKPOINT_IMAGES, CHECKPOINT_SECONDS = 64, 30.0
"""After so many images, or so long, an unfinished pass is handed out."""


def calibrate(
    model: Model,
    values: Sequence[str],
    tensors: Iterable[NDArray],
    threads: int = 0,
    progress: Progress | None = None,
    channel_axes: Mapping[str, int] | None = None,
    per_channel: Collection[str] = (),
    begun: Begun | None = None,
    checkpoint: Callable[[int, Mapping[str, Statistics]], None] | None = None,
) -> dict[str, Statistics]:
    """Statistics of the named values over all input tensors.

    channel_axes: values whose channel means are wanted, and the axis of their channels; a value that is only in here
    gets extremes and means, but no histogram.   per_channel: values whose channels are
    followed each (along axis 1 where none is given).

    begun: what an interrupted pass with the same arguments left; `tensors` then begin with the image behind it, and the
    statistics are updated in place.   checkpoint: is given images and statistics so far, now and then, before
    `progress` is told; it must be done with them when it returns.

    tensors: float32 arrays in the model's input shape, one image each; consumed once and not kept.
    Raises InputError when there is none, when one has another shape, or when a value overflows (naming it).
    """
    axes, counted = dict(channel_axes or {}), frozenset(values)
    statistics = {
        name: Statistics(axes.get(name, 1 if name in per_channel else None), name in counted, name in per_channel)
        for name in dict.fromkeys((*values, *axes, *per_channel))
    }
    seen = 0
    if begun is not None:
        if set(begun[1]) != set(statistics):
            raise ValueError("the interrupted pass gathered other values")
        seen, statistics = begun[0], {name: begun[1][name] for name in statistics}
    readers = tap_readers(model, [v for v in statistics if v != model.input_name], threads)
    workers = threads or min(os.cpu_count() or 1, 8)
    kept, kept_at = seen, time.monotonic()
    with ThreadPoolExecutor(workers, thread_name_prefix="statistics") as pool:

        def update(found: Mapping[str, NDArray]) -> None:
            # Largest first, dealt out in turn: no worker is left with one long tensor at the end.
            names = sorted((n for n in found if n in statistics), key=lambda n: -found[n].size)
            parts = [names[k::workers] for k in range(workers)]
            for done in [pool.submit(_update, statistics, found, part) for part in parts]:
                if (name := done.result()) is not None:
                    raise InputError(
                        f"on calibration image {seen + 1} the tensor {name!r} of {model.source} becomes NaN or"
                        " infinite; check the preprocessing, or the model"
                    )

        for tensor in tensors:
            if tensor.shape != model.input_shape:
                raise InputError(
                    f"calibration image {seen + 1} became a tensor of shape {tensor.shape}, but {model.source} takes"
                    f" {model.input_shape}; correct the size in the task"
                )
            tensor = np.ascontiguousarray(tensor, np.float32)
            update({model.input_name: tensor})
            for reader in readers:
                update(reader.read(tensor))
            seen += 1
            now = time.monotonic()
            if checkpoint and (seen - kept >= CHECKPOINT_IMAGES or now - kept_at >= CHECKPOINT_SECONDS):
                checkpoint(seen, statistics)
                kept, kept_at = seen, time.monotonic()
            if progress:
                progress(seen)
    if not seen:
        raise InputError("there are no images to calibrate with; hand in a folder that holds some")
    return statistics


def _update(statistics: Mapping[str, Statistics], found: Mapping[str, NDArray], names: Sequence[str]) -> str | None:
    """Update some statistics; the name of a value that is not finite, if there is one."""
    for name in names:
        try:
            statistics[name].update(found[name])
        except ValueError:
            return name
    return None


def tap_readers(model: Model, names: Sequence[str], threads: int = 0) -> list[TapReader]:
    """Readers for all named values, each of at most MAX_TAPPED numbers (or one value), over one shared memory.

    Raises KeyError for a name that the graph does not have, or whose shape is not known.
    """
    known = g.values(model.ir)
    groups: list[dict[str, tuple[int, ...]]] = []
    sizes: list[int] = []
    for name in names:
        shape = g.static_shape(known[name])
        if shape is None:
            raise KeyError(name)
        size = int(np.prod(shape))
        if not groups or sizes[-1] + size > MAX_TAPPED:
            groups.append({})
            sizes.append(0)
        groups[-1][name] = shape
        sizes[-1] += size
    if not groups:
        return []
    data, memory = model.float_bytes(), np.empty(max(sizes), np.float32)
    return [TapReader(data, shapes, memory, threads) for shapes in groups]
