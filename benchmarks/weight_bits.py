"""What weights of few bits cost and save, by bits and grid: every convolution in int8 on the native engine.

    python benchmarks/weight_bits.py MODEL DATA [--images 64] [--held 48] [--test 0] [--only WORDS ...]

Each row: the task distance to the original on training images that were not calibrated with (label-free; decisions are
made by it), the drop against the labels of the test images with its 95 % interval (looked at last), the size of the
plan, and of it the weights. Bias correction follows in every row. --test: how many test images (0: all). --only: rows
whose name holds one of these words.
"""

from __future__ import annotations

import argparse

import numpy as np

from roadworthy.check.accuracy import predict, tensor_of
from roadworthy.check.contract import settle_task
from roadworthy.check.judge import Judge, distance
from roadworthy.data.readers import read
from roadworthy.data.samples import Samples
from roadworthy.model.model import load
from roadworthy.model.qdq import to_qdq
from roadworthy.recipe import CorrectBias, Fold, Quantize, Recipe
from roadworthy.run.native.plan import Op, Plan
from roadworthy.run.targets import TARGETS

ROWS: dict[str, dict[str, object]] = {
    "8 bits": {},
    "8 bits, per tensor": {"granularity": "tensor"},
    "8 bits, scales of 2^k": {"scales": "power_of_two"},
    "6 bits": {"weight_bits": 6},
    "6 bits, l3": {"weight_bits": 6, "weight_observer": "l3"},
    "6 bits, per tensor": {"weight_bits": 6, "granularity": "tensor"},
    "5 bits": {"weight_bits": 5},
    "5 bits, unclipped": {"weight_bits": 5, "weight_observer": "minmax"},
    "5 bits, l3": {"weight_bits": 5, "weight_observer": "l3"},
    "5 bits, kmeans": {"weight_bits": 5, "grid": "kmeans"},
    "4 bits": {"weight_bits": 4},
    "4 bits, unclipped": {"weight_bits": 4, "weight_observer": "minmax"},
    "4 bits, l3": {"weight_bits": 4, "weight_observer": "l3"},
    "4 bits, per tensor": {"weight_bits": 4, "granularity": "tensor"},
    "4 bits, log2": {"weight_bits": 4, "grid": "log2"},
    "4 bits, kmeans": {"weight_bits": 4, "grid": "kmeans"},
    "4 bits, kmeans, per tensor": {"weight_bits": 4, "grid": "kmeans", "granularity": "tensor"},
    "3 bits": {"weight_bits": 3},
    "3 bits, log2": {"weight_bits": 3, "grid": "log2"},
    "3 bits, kmeans": {"weight_bits": 3, "grid": "kmeans"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--held", type=int, default=48)
    parser.add_argument("--test", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=())
    options = parser.parse_args()
    model, dataset = load(options.model), read(options.data)
    calibration, test = dataset.calibration, dataset.test
    if options.test:
        test = test.take(min(options.test, len(test)), 0)
    runner = TARGETS["ort"].runner(model.float_bytes(), 1)
    task, _ = settle_task(model, dataset, None, lambda: runner)
    model = model.with_task(task)
    folded, judge = Fold()(model, calibration), Judge.of(task, test, lambda: runner, 0.5)
    chosen = Recipe((), options.images, 0).choose(calibration)
    used = {s.name for s in chosen}
    held = Samples((s for s in calibration if s.name not in used), calibration.kind).take(options.held, 0)
    tensors = [tensor_of(s, task)[0] for s in held]
    wanted = [runner.run({model.input_name: t}) for t in tensors]
    print(f"original: {judge.metric} {judge.original_value:.2f} on {len(test)} images; {len(chosen)} calibrated with")
    print("| weights | held-out distance | drop (95 %) | plan, kB | weights, kB |\n|---|---|---|---|---|", flush=True)
    for name, settings in ROWS.items():
        if options.only and not any(word in name for word in options.only):
            continue
        made = CorrectBias()(Quantize("native", **settings)(folded, chosen), chosen)  # type: ignore[arg-type]
        exported = to_qdq(made)
        plan = TARGETS["native"].deploy(exported)
        layers = [op for op in Plan.from_bytes(plan).ops if op.code in (Op.CONV, Op.DEPTHWISE)]
        candidate = TARGETS["native"].runner(exported, 1)
        away = np.mean([distance(w, candidate.run({model.input_name: t}), task) for t, w in zip(tensors, wanted)])
        predictions = predict(candidate, task, test)
        interval = judge.interval(predictions, 0)
        spread = f" ({interval.low:+.2f} to {interval.high:+.2f})" if interval is not None else ""
        weights = sum(len(op.blobs[0]) for op in layers) / 1e3
        row = f"{judge(predictions).drop:+.2f}{spread} | {len(plan) / 1e3:.0f} | {weights:.0f}"
        print(f"| {name} | {away:.3f} | {row} |", flush=True)


if __name__ == "__main__":
    main()
