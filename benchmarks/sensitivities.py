"""How well each sensitivity foretells what rounding one layer really costs, and what it costs itself.

    python benchmarks/sensitivities.py MODEL DATA [--bits 4] [--images 8] [--held 24]

The truth is the task distance on held-out training images with one layer's weights rounded. Each row is one measure on
other images: Spearman's rank correlation with the truth over layers, and its time. A few minutes per model.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from roadworthy.check.accuracy import tensor_of
from roadworthy.check.contract import settle_task
from roadworthy.check.judge import distance
from roadworthy.data.readers import read
from roadworthy.data.samples import Samples
from roadworthy.model.model import load
from roadworthy.optimize import fold
from roadworthy.quantize.sensitivity import SENSITIVITIES, Tensors
from roadworthy.run.targets import TARGETS


def main() -> None:
    from scipy.stats import spearmanr

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--held", type=int, default=24)
    options = parser.parse_args()
    model, dataset = load(options.model), read(options.data)
    runner = TARGETS["ort"].runner(model.float_bytes())
    task, _ = settle_task(model, dataset, None, lambda: runner)
    model = fold(model.with_task(task))
    chosen = dataset.calibration.take(options.images, 0)
    used = {s.name for s in chosen}
    rest = Samples((s for s in dataset.calibration if s.name not in used), dataset.calibration.kind)

    def tensors(samples: Samples) -> Tensors:
        return lambda: (tensor_of(s, task)[0] for s in samples)

    def apart(a: dict, b: dict) -> float:
        return distance(a, b, task)

    bits = (options.bits,)
    truth = SENSITIVITIES["distance"](model, tensors(rest.take(options.held, 0)), bits, distance=apart)
    print(f"{len(truth)} layers at {options.bits} bits; {options.images} images, truth on {options.held} others")
    print("| measure | rank correlation | found of the damage of the eight worst | seconds |\n|---|---|---|---|")
    keys = sorted(truth, key=lambda k: -truth[k])
    for name, measure in SENSITIVITIES.items():
        started = time.perf_counter()
        found = measure(model, tensors(chosen), bits, 0, distance=apart)
        took = time.perf_counter() - started
        rank = spearmanr([truth[k] for k in truth], [found[k] for k in truth])[0]
        worst = sorted(found, key=lambda k: -found[k])[:8]
        share = sum(truth[k] for k in worst) / sum(truth[k] for k in keys[:8])
        print(f"| {name} | {rank:.3f} | {np.round(share, 2)} | {took:.1f} |", flush=True)


if __name__ == "__main__":
    main()
