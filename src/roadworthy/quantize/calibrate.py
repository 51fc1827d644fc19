"""Calibration: one streaming pass of the images through the float network, in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from numpy.typing import NDArray

from roadworthy.errors import InputError
from roadworthy.model.model import Model
from roadworthy.quantize.statistics import Statistics
from roadworthy.run.ort import OrtRunner

Progress = Callable[[int], None]


def calibrate(
    model: Model,
    values: Sequence[str],
    tensors: Iterable[NDArray],
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, Statistics]:
    """Statistics of the named values over all input tensors.

    tensors: float32 arrays in the model's input shape, one image each; consumed once and not kept.
    Raises InputError when there is none, or when a value overflows (naming it).
    """
    runner = OrtRunner(model.float_bytes(), threads)
    statistics = {name: Statistics() for name in values}
    taps = [v for v in values if v != model.input_name]
    seen = 0
    for tensor in tensors:
        found = runner.run({model.input_name: tensor}, taps)
        found[model.input_name] = tensor
        for name, gathered in statistics.items():
            try:
                gathered.update(found[name])
            except ValueError as error:
                raise InputError(
                    f"on calibration image {seen + 1} the tensor {name!r} of {model.source} becomes NaN or infinite;"
                    " check the preprocessing, or the model"
                ) from error
        seen += 1
        if progress:
            progress(seen)
    if not seen:
        raise InputError("there are no images to calibrate with; hand in a folder that holds some")
    return statistics
