"""What training recovers, by method: every convolution in int8 on the native engine, the same number of steps for each.

    python benchmarks/training.py MODEL DATA [--bits 8 4] [--steps 60] [--batch 8] [--seeds 3] [--only NAMES ...]
        [--kept FILE] [--set KEY=VALUE ...]

A seed draws the calibration images (--images), the held-out ones, and everything in training. Of each run: the task
distance to the original on 32 held-out images (label-free; decisions are made by it), the drop against the labels of
the test images, and the seconds that training took. The table gives means and standard deviations over the seeds.
--kept: runs are added to this file as they finish, one JSON object a line, and are not repeated when the script is
started again. --only: rows by their names. Other settings of Finetune: --set lr=2e-5 scale_lr=1e-4 ...
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from roadworthy.check.accuracy import predict, tensor_of
from roadworthy.check.contract import settle_task
from roadworthy.check.judge import Judge, distance
from roadworthy.data.readers import read
from roadworthy.model.model import load
from roadworthy.model.qdq import to_qdq
from roadworthy.recipe import CorrectBias, Finetune, Fold, Quantize, Recipe
from roadworthy.run.targets import TARGETS
from roadworthy.steps.context import held_out
from roadworthy.steps.training import Training

HELD = 32
ROWS: dict[str, dict[str, Any] | None] = {
    "no training": None,
    "STE": {"gradient": "ste"},
    "LSQ": {"gradient": "lsq"},
    "DSQ": {"gradient": "dsq"},
    "Fourier": {"gradient": "fourier"},
    "Quant-Noise, STE, half": {"gradient": "ste", "noise": 0.5},
    "LSQ on labels alone": {"gradient": "lsq", "labels": "only"},
    "LSQ, teacher and labels": {"gradient": "lsq", "labels": "yes"},
    "teacher alone, in float": {},
}
"""Settings of Finetune; the last one trains the float network, which is quantized afterwards."""


def main() -> None:
    options = _options()
    model, dataset = load(options.model), read(options.data)
    runner = TARGETS["ort"].runner(model.float_bytes(), 1)
    task, _ = settle_task(model, dataset, None, lambda: runner)
    model = model.with_task(task)
    judge = Judge.of(task, dataset.test, lambda: runner, 0.5)
    print(f"original: {judge.metric} {judge.original_value:.2f} on {len(dataset.test)} images; {options.steps} steps of"
          f" {options.batch} images", flush=True)  # fmt: skip
    kept = Path(options.kept) if options.kept else None
    lines = kept.read_text().splitlines() if kept and kept.exists() else []
    runs: list[dict[str, Any]] = [json.loads(line) for line in lines]
    Training.workers, Training.progress = options.workers, _told
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for bits in options.bits:
            for name, settings in ROWS.items():
                if options.only and name not in options.only:
                    continue
                steps = 0 if settings is None else options.steps
                facts = {"row": name, "bits": bits, "seed": seed, "steps": steps, "batch": options.batch}
                facts["set"] = options.set if steps else []
                if any(all(run[k] == v for k, v in facts.items()) for run in runs):
                    continue
                started = time.monotonic()
                recipe = _recipe(name, settings, bits, seed, options)
                made = recipe.apply(model, dataset.calibration)
                seconds = time.monotonic() - started
                candidate = TARGETS["native"].runner(to_qdq(made), options.workers)
                held = held_out(dataset.calibration, recipe.choose(dataset.calibration), HELD, seed)
                away = []
                for tensor in (tensor_of(s, task)[0] for s in held):
                    feeds = {model.input_name: tensor}
                    away.append(distance(runner.run(feeds), candidate.run(feeds), task))
                found = judge(predict(candidate, task, dataset.test))
                runs.append({**facts, "distance": float(np.mean(away)), "drop": found.drop, "seconds": seconds})
                print(runs[-1], flush=True)
                if kept:
                    with kept.open("a") as file:
                        file.write(json.dumps(runs[-1]) + "\n")
    _table(runs, options)


def _recipe(name: str, settings: dict[str, Any] | None, bits: int, seed: int, options: argparse.Namespace) -> Recipe:
    plain = (Fold(), Quantize("native", weight_bits=bits), CorrectBias())
    if settings is None:
        return Recipe(plain, options.images, seed)
    more = {k: _value(v) for k, v in (pair.split("=", 1) for pair in options.set)}
    tuned = replace(Finetune(steps=options.steps, batch=options.batch, held_out=HELD), **{**more, **settings})
    in_float = name.endswith("in float")
    return Recipe((plain[0], tuned, *plain[1:]) if in_float else (*plain, tuned), options.images, seed)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


def _told(step: int, steps: int, parts: Mapping[str, float], left: float) -> None:
    if step % 50 == 0 or "distance" in parts:
        found = ", ".join(f"{k} {v:.4g}" for k, v in parts.items())
        print(f"  {step} of {steps}: {found}; {left:.0f} s left", file=sys.stderr, flush=True)


def _table(runs: list[dict[str, Any]], options: argparse.Namespace) -> None:
    print("\n| weights | method | seeds | held-out distance | drop | seconds |\n|---|---|---|---|---|---|")

    def spread(values: list[float], digits: int) -> str:
        deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{deviation}"

    for bits in options.bits:
        for name in ROWS:
            alike = [r for r in runs if r["row"] == name and r["bits"] == bits and (
                r["steps"] == 0 or (r["steps"] == options.steps and r["set"] == options.set))]  # fmt: skip
            if alike:
                cells = [spread([r[k] for r in alike], n) for k, n in (("distance", 4), ("drop", 2), ("seconds", 0))]
                print(f"| {bits} bits | {name} | {len(alike)} | {' | '.join(cells)} |")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--bits", nargs="*", type=int, default=(8, 4))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=128, help="to calibrate with; leave 32 to hold out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--kept")
    return parser.parse_args()


if __name__ == "__main__":
    main()
