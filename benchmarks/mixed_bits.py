"""Mixed bits against the same bits everywhere, in plans of the same size, on the native engine.

    python benchmarks/mixed_bits.py MODEL DATA [--bits 5 4] [--images 64] [--random 5]

For each width: the plan in which every layer has it, and the allocation of least damage that is no larger. Held-out:
root of the mean squared task distance to the original on training images that were not calibrated with (no labels).
Drop: points lost on the test images. The last columns say by how much mixed bits are better on both, with 95 %
intervals (paired bootstrap over images; of the mean distance). Then the predicted and measured distances of random
allocations, and their correlation: damages must add up.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from roadworthy.check.accuracy import Predictions, drop, predict
from roadworthy.check.contract import settle_task
from roadworthy.check.judge import Judge
from roadworthy.data.readers import read
from roadworthy.detect.evaluate import bootstrap_mean
from roadworthy.jobs.limits import Limits
from roadworthy.jobs.mixed import WIDTHS, Mixer, Point
from roadworthy.model.model import load
from roadworthy.quantize.allocate import Allocation
from roadworthy.recipe import CorrectBias, Fold, Quantize, Recipe
from roadworthy.run.targets import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--bits", type=int, nargs="+", default=[5, 4])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--random", type=int, default=5)
    parser.add_argument("--grid", default="linear")
    parser.add_argument("--swap", action="store_true", help="calibrate on the test images, test on the others")
    options = parser.parse_args()
    model, dataset = load(options.model), read(options.data)
    calibration, test = dataset.calibration, dataset.test
    if options.swap:
        calibration, test = test, calibration
    runner = TARGETS["ort"].runner(model.float_bytes())
    task, _ = settle_task(model, dataset, None, lambda: runner)
    model = model.with_task(task)
    judge = Judge.of(task, test, lambda: runner, 0.5)
    base = Recipe((Fold(), Quantize("native", grid=options.grid), CorrectBias()), options.images)
    mixer = Mixer(model, task, calibration, "native", base)

    def judged(point: Point) -> Predictions:
        return predict(TARGETS["native"].runner(point.trial.deployed), task, test)

    started = time.monotonic()
    layers = mixer.choices(False)
    print(f"{len(layers)} layers, their damages and sizes: {time.monotonic() - started:.0f} s")
    print(f"original: {judge.metric} {judge.original_value:.2f} on {len(test)} images; 8 bits everywhere:"
          f" {len(mixer.whole.deployed):,} bytes, held-out {np.sqrt(mixer.floor):.3f}")  # fmt: skip
    print("| plan bytes | bits | held-out, predicted | held-out | drop | better by, distance | better by, points |")
    print("|---|---|---|---|---|---|---|")
    for width in options.bits:
        same = mixer.point(_same(mixer, width))
        best = mixer.within(Limits(same.bytes))
        before, after = judged(same), judged(best)
        gain = drop(before, after, judge.reference, task)
        nearer = bootstrap_mean(mixer.distances(same.trial) - mixer.distances(best.trial), 1000, 0)
        print(
            f"| {same.bytes:,} | {width} | {same.predicted:.3f} | {same.measured:.3f} | {judge(before).drop:.2f} | | |"
        )
        counts = ", ".join(f"{list(best.settings.values()).count(b)} of {b}" for b in WIDTHS)
        print(f"| {best.bytes:,} | {counts} | {best.predicted:.3f} | {best.measured:.3f} | {judge(after).drop:.2f} |"
              f" {nearer.drop:.3f} ({nearer.low:.3f} to {nearer.high:.3f}) |"
              f" {-gain.drop:.2f} ({-gain.high:.2f} to {-gain.low:.2f}) |", flush=True)  # fmt: skip
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(options.random):
        among = rng.choice([b for b in WIDTHS if b > 3], 2, replace=False)
        point = mixer.point(_allocation(mixer, {n: int(rng.choice(among)) for n in layers}))
        pairs.append((point.predicted, point.measured))
        print(f"random allocation of {', '.join(map(str, sorted(among)))} bits: predicted {pairs[-1][0]:.3f},"
              f" measured {pairs[-1][1]:.3f}", flush=True)  # fmt: skip
    if len(pairs) > 2:
        print(f"correlation {np.corrcoef(*zip(*pairs))[0, 1]:.3f}")


def _same(mixer: Mixer, width: int) -> Allocation:
    return _allocation(mixer, dict.fromkeys(mixer.choices(False), width))


def _allocation(mixer: Mixer, bits: dict[str, int]) -> Allocation:
    chosen = {n: next(c for c in choices if c.setting == bits[n]) for n, choices in mixer.choices(False).items()}
    return Allocation(chosen, sum(c.damage for c in chosen.values()), sum(c.bytes for c in chosen.values()), 0.0, 0)


if __name__ == "__main__":
    main()
