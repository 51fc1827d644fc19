"""Accuracy of the native target's encodings, step by step: every convolution in int8, labels for the final figure only.

    python benchmarks/native_accuracy.py MODEL DATA [--images 64] [--draws 3] [--swap]

Each row is one variant, on the native engine: the task distance to the original's outputs on training images that were
not calibrated with, which needs no labels and is what decisions are made by, and the drop against the labels of the
test images. Mean and standard deviation over several draws of the calibration images. A few minutes per model.
--swap calibrates on the test images and tests on the training images.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from roadworthy.check.accuracy import predict, tensor_of
from roadworthy.check.contract import settle_task
from roadworthy.check.judge import Judge, distance
from roadworthy.data.readers import read
from roadworthy.data.samples import Samples
from roadworthy.model.model import load
from roadworthy.model.qdq import to_qdq
from roadworthy.quantize.refine import refine
from roadworthy.recipe import CorrectBias, Fold, Quantize, Recipe
from roadworthy.run.targets import TARGETS
from roadworthy.steps import quantize as recipes

HELD = 48
"""Most held-out images: the distance is an average over thousands of boxes or probabilities."""
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
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--swap", action="store_true")
    options = parser.parse_args()
    model, dataset = load(options.model), read(options.data)
    calibration, test = dataset.calibration, dataset.test
    if options.swap:
        calibration, test = test, calibration
    runner = TARGETS["ort"].runner(model.float_bytes())
    task, _ = settle_task(model, dataset, None, lambda: runner)
    model = model.with_task(task)
    folded, judge = Fold()(model, calibration), Judge.of(task, test, lambda: runner, 0.5)
    print(f"original: {judge.metric} {judge.original_value:.2f} on {len(test)} images; {options.draws} draws")
    away: dict[str, list[float]] = {name: [] for name in VARIANTS}
    drops: dict[str, list[float]] = {name: [] for name in VARIANTS}
    layers: dict[str, list[str]] = {name: [] for name in VARIANTS}
    for seed in range(options.draws):
        chosen = Recipe((), options.images, seed).choose(calibration)
        used = {s.name for s in chosen}
        held = Samples((s for s in calibration if s.name not in used), calibration.kind).take(HELD, 0)
        tensors = [tensor_of(s, task)[0] for s in held]
        wanted = [runner.run({model.input_name: t}) for t in tensors]
        for name, (steps, choices) in VARIANTS.items():
            made = folded
            with setting(**choices):  # type: ignore[arg-type]
                for step in steps:
                    made = step(made, chosen)
                placement = steps[0].placement(folded, chosen)
            candidate = TARGETS["native"].runner(to_qdq(made))
            found = [distance(w, candidate.run({model.input_name: t}), task) for t, w in zip(tensors, wanted)]
            away[name].append(float(np.mean(found)))
            drops[name].append(judge(predict(candidate, task, test)).drop)
            tables = sum(p in made.encodings for p in placement.tables)
            layers[name].append(f"{tables} of {len(placement.int8)}")
            print(f"  draw {seed}, {name}: {away[name][-1]:.3f}, {drops[name][-1]:+.2f}", file=sys.stderr, flush=True)
    print("| encodings | tables, of int8 layers | held-out distance | drop |\n|---|---|---|---|")
    for name in VARIANTS:
        d, v = away[name], drops[name]
        row = f"{np.mean(d):.3f} +- {np.std(d):.3f} | {np.mean(v):+.2f} +- {np.std(v):.2f}"
        print(f"| {name} | {', '.join(dict.fromkeys(layers[name]))} | {row} |")


if __name__ == "__main__":
    main()
