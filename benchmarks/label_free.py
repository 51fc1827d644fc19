"""Does the label-free estimate of the drop agree with labels? Drops of several candidates, measured both ways.

    python benchmarks/label_free.py MODEL DATA

Candidates from harmless to broken: stored weights at 8 bits, int8 for ONNX Runtime with each observer, with and without
bias correction. Each is run once on the test images and held against the labels, and against the reference that stands
in for labels (check/accuracy.py).
"""

from __future__ import annotations

import argparse

from roadworthy.check.accuracy import Reference, predict, reference_of
from roadworthy.check.contract import settle_task
from roadworthy.check.judge import Judge
from roadworthy.data.readers import read
from roadworthy.data.samples import Samples
from roadworthy.model.model import load
from roadworthy.model.qdq import to_qdq
from roadworthy.recipe import CorrectBias, Fold, Quantize, Recipe, StoreWeights
from roadworthy.run.targets import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    options = parser.parse_args()
    model, dataset = load(options.model), read(options.data)
    runner = TARGETS["ort"].runner(model.float_bytes())
    task, _ = settle_task(model, dataset, None, lambda: runner)
    model = model.with_task(task)
    labelled = Judge.of(task, dataset.test, lambda: runner, 0.5)
    bare = Samples((type(s)(s.name, s.path) for s in dataset.test), "images")
    drawn: Reference = reference_of(lambda: runner, task, bare)
    unlabelled = Judge(task, bare, labelled.original, drawn, 0.5)
    values = f"{labelled.original_value:.2f} by labels, {unlabelled.original_value:.2f} estimated without"
    print(f"original: {labelled.metric} {values}")
    print("| candidate | drop by labels | estimated without |\n|---|---|---|")
    recipes = {"stored weights": (StoreWeights(), CorrectBias()), "stored, bias not corrected": (StoreWeights(),)}
    for observer in ("percentile", "mse", "minmax"):
        recipes[f"int8, {observer}"] = (Quantize("ort", observer=observer), CorrectBias())
        recipes[f"int8, {observer}, bias not corrected"] = (Quantize("ort", observer=observer),)
    for name, steps in recipes.items():
        made = Recipe((Fold(), *steps)).apply(model, dataset.calibration)
        found = predict(TARGETS["ort"].runner(to_qdq(made)), task, dataset.test)
        print(f"| {name} | {labelled(found).drop:+.2f} | {unlabelled(found).drop:+.2f} |", flush=True)


if __name__ == "__main__":
    main()
