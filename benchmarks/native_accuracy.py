"""Accuracy of the native target's encodings, step by step: every convolution in int8, labels for the final figure only.

    python benchmarks/native_accuracy.py MODEL DATA [--images 128] [--held]

Each row is one variant: drop against the labels on the test images (or, with --held, on the training images that were
not calibrated with), and the task distance to the original's outputs on those images, which needs no labels and is far
less noisy. The network runs on ONNX Runtime, in float with every rounding written out as Q/DQ nodes.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from roadworthy import recipe as recipes
from roadworthy.check.accuracy import predict, tensor_of
from roadworthy.check.contract import settle_task
from roadworthy.check.judge import Judge, distance
from roadworthy.data.readers import read
from roadworthy.data.samples import Samples
from roadworthy.model.model import load
from roadworthy.model.qdq import to_qdq
from roadworthy.quantize.refine import refine
from roadworthy.recipe import CorrectBias, Fold, Quantize, Recipe
from roadworthy.run.ort import OrtRunner
from roadworthy.run.targets import TARGETS

BEST = (Quantize("native"), CorrectBias())


@contextmanager
def setting(channels: bool = True, **refined: float) -> Iterator[None]:
    """The native target with other choices than its own, while the block runs."""
    kept, native = recipes.refine, TARGETS["native"]
    recipes.refine = functools.partial(refine, **refined)  # type: ignore[assignment]
    TARGETS["native"] = replace(native, channel_activations=channels)
    try:
        yield
    finally:
        recipes.refine, TARGETS["native"] = kept, native


VARIANTS = {
    "one scale per tensor, minmax": ((Quantize("native", "minmax"),), {"channels": False, "table": 0}),
    "+ scales per channel": ((Quantize("native", "minmax"),), {"table": 0}),
    "+ bias correction": ((Quantize("native", "minmax"), CorrectBias()), {"table": 0}),
    "+ ranges by the readers' error": (BEST, {"table": 0}),
    "+ tables (as shipped)": (BEST, {}),
    "tables everywhere": (BEST, {"table": 1e9}),
    "Concats never share": (BEST, {"share": 0}),
    "percentile": ((Quantize("native", "percentile"), CorrectBias()), {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--held", action="store_true")
    options = parser.parse_args()
    model, dataset = load(options.model), read(options.data)
    runner = TARGETS["ort"].runner(model.float_bytes())
    task, _ = settle_task(model, dataset, None, lambda: runner)
    model = model.with_task(task)
    used = {s.name for s in Recipe((), options.images).choose(dataset.calibration)}
    held = Samples((s for s in dataset.calibration if s.name not in used), dataset.calibration.kind)
    judge = Judge.of(task, held if options.held else dataset.test, lambda: runner, 0.5)
    tensors = [tensor_of(s, task)[0] for s in list(judge.samples)[::4]]
    wanted = [runner.run({model.input_name: t}) for t in tensors]
    print(f"original: {judge.metric} {judge.original_value:.2f} on {len(judge.samples)} images")
    print("| encodings | int8 layers | tables | drop | distance |\n|---|---|---|---|---|")
    for name, (steps, choices) in VARIANTS.items():
        with setting(**choices):  # type: ignore[arg-type]
            made = Recipe((Fold(), *steps), options.images).apply(model, dataset.calibration)
            placement = steps[0].placement(Fold()(model, dataset.calibration), dataset.calibration.take(1))
        candidate = OrtRunner(to_qdq(made))
        away = np.mean([distance(w, candidate.run({model.input_name: t}), task) for t, w in zip(tensors, wanted)])
        tables = sum(p in made.encodings for p in placement.tables)
        drop = judge(predict(candidate, task, judge.samples)).drop
        layers = f"{len(placement.int8)} of {len(placement.int8) + len(placement.why_float)}"
        print(f"| {name} | {layers} | {tables} | {drop:+.2f} | {away:.3f} |", flush=True)


if __name__ == "__main__":
    main()
