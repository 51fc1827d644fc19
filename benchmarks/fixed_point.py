"""The fixed-point form of a network: equal to NumPy at every integer value, and how far from the float multipliers.

    python benchmarks/fixed_point.py MODEL DATA [--task TASK] [--images 128] [--check 2] [--draws 1] [--seed 0]

1. On --check test images the engine, asked for every value that is held as codes, against the NumPy reference, with ==,
   on every path that this CPU has, on one and two threads.
2. For each draw of calibration images the same encodings in both forms: task distance to the original's outputs on
   training images that were not calibrated with, and the drop on the test images. The difference of the two drops is
   what the fixed-point form costs.
3. The size of the golden vectors of one image, and whether examples/fixed/check_golden.py finds them right.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roadworthy.check.accuracy import Predictions, drop, predict, tensor_of
from roadworthy.check.contract import settle_task
from roadworthy.check.judge import Judge, distance
from roadworthy.data.readers import read
from roadworthy.data.samples import Samples
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import from_qdq, to_qdq
from roadworthy.recipe import CorrectBias, Fold, Quantize, Recipe
from roadworthy.run.golden import golden_vectors
from roadworthy.run.native.runner import NativeRunner, engine
from roadworthy.run.reference import ReferenceRunner
from roadworthy.run.targets import TARGETS

HELD = 48
CHECK = Path(__file__).parents[1] / "examples" / "fixed" / "check_golden.py"


def check(model: Model, tensors: list[NDArray[np.float32]]) -> tuple[int, int]:
    """Values compared and values that differ, over images, paths and threads."""
    reference = ReferenceRunner(model, "fixed")
    held = {str(v.name) for o in reference.operations for n in o.nodes for v in n.outputs}
    compared = unequal = 0
    for tensor in tensors:
        feeds = {model.input_name: tensor}
        codes = reference.all_codes(feeds)
        names = [n for n in codes if n in held]
        outputs = reference.run(feeds)
        for isa in engine().isas():
            for threads in (1, 2):
                runner = NativeRunner(model, threads, "fixed", isa=isa)
                got = runner.run(feeds, names)
                plain = runner.run(feeds)
                pairs = [(got[n], reference.encodings[n].dequantize(codes[n])) for n in names]
                pairs += [(array[n], outputs[n]) for array in (got, plain) for n in outputs]
                compared += sum(a.size for a, _ in pairs)
                unequal += sum(int((a != b).sum()) for a, b in pairs)
    return compared, unequal


def same_first(a: Predictions, b: Predictions) -> str:
    if a.scores is None or b.scores is None:
        return ""
    return f", the same class on {int((a.scores.argmax(1) == b.scores.argmax(1)).sum())} of {len(a.scores)} images"


def golden(model: Model, tensor: NDArray[np.float32]) -> str:
    made = golden_vectors(model, [tensor])
    with tempfile.TemporaryDirectory() as folder:
        npz, text = Path(folder) / "golden.npz", Path(folder) / "golden.json"
        made.write(npz, text)
        done = subprocess.run([sys.executable, CHECK, npz, text], capture_output=True, text=True, check=False)
        size = (npz.stat().st_size + text.stat().st_size) / 2**20
    return f"{size:.1f} MiB for one image; {done.stdout.strip() or done.stderr.strip()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--task")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--check", type=int, default=2)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model, dataset = load(options.model), read(options.data)
    runner = TARGETS["ort"].runner(model.float_bytes(), 1)
    task, _ = settle_task(model, dataset, options.task, lambda: runner)
    model, calibration, test = model.with_task(task), dataset.calibration, dataset.test
    judge = Judge.of(task, test, lambda: runner, 0.5)
    print(f"original: {judge.metric} {judge.original_value:.2f} on {len(test)} images, against {judge.reference.kind}")
    more = []
    for seed in range(options.seed, options.seed + options.draws):
        recipe = Recipe((Fold(), Quantize("fixed"), CorrectBias()), options.images, seed)
        data = to_qdq(recipe.apply(model, calibration))
        small = from_qdq(load(data))
        if seed == options.seed and options.check:
            compared, unequal = check(small, [tensor_of(s, task)[0] for s in test[: options.check]])
            print(f"engine against NumPy: {compared:,} values compared, {unequal} unequal")
            print(f"golden vectors: {golden(small, tensor_of(calibration[0], task)[0])}")
        used = {s.name for s in recipe.choose(calibration)}
        held = Samples((s for s in calibration if s.name not in used), calibration.kind).take(HELD, 0)
        tensors = [tensor_of(s, task)[0] for s in held]
        wanted = [runner.run({model.input_name: t}) for t in tensors]
        found = {}
        for name in ("native", "fixed"):
            candidate = TARGETS[name].runner(data, 1)
            away = np.mean([distance(w, candidate.run({model.input_name: t}), task) for t, w in zip(tensors, wanted)])
            predictions = predict(candidate, task, test)
            started = time.perf_counter()
            for _ in range(10):
                candidate.run({model.input_name: tensors[0]})
            milliseconds = (time.perf_counter() - started) * 100
            found[name] = judge(predictions).drop, predictions
            print(f"draw {seed}, {name}: distance {away:.4f}, drop {found[name][0]:+.3f}, {milliseconds:.1f} ms")
        apart = found["fixed"][0] - found["native"][0]
        if not judge.raw:
            paired = drop(found["native"][1], found["fixed"][1], judge.reference, task, 300, 0)
            print(f"draw {seed}: 95 % of resampled image sets lie in {paired.low:+.2f} to {paired.high:+.2f}")
        more.append(apart)
        print(
            f"draw {seed}: fixed loses {apart:+.3f} more{same_first(found['native'][1], found['fixed'][1])}", flush=True
        )
    print(f"fixed loses {np.mean(more):+.3f} +- {np.std(more) / np.sqrt(max(len(more) - 1, 1)):.3f} more")


if __name__ == "__main__":
    main()
