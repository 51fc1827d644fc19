"""Every method of quantization alone, the search that combines them, and the established tools, on the same images.

    python benchmarks/methods.py MODEL DATA [--targets ort openvino native] [--images 64] [--seed 0] [--thorough]
    python benchmarks/methods.py street

Columns: drop in points of mAP or top-1 on the test images with its 95 % interval (paired bootstrap), the task distance
on held-out calibration images (what the search decides by), the signal-to-noise ratio of the outputs on these in dB, the
bytes of what is shipped, and the seconds it took to make. Latency is the business of benchmarks/native.py and
compare.py. Without labels the original's own answers stand in (docs/decisions/0003).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from compare import IR, nncf_ptq, ort_static, runner_of
from roadworthy.check.accuracy import predict
from roadworthy.check.contract import settle_task
from roadworthy.check.judge import Judge, distance
from roadworthy.check.machine import environment
from roadworthy.data.readers import read
from roadworthy.data.samples import Sample, Samples
from roadworthy.jobs.sample import dataset as street_dataset
from roadworthy.jobs.sample import detector as street_detector
from roadworthy.jobs.search import Search
from roadworthy.jobs.trial import Ui
from roadworthy.model.model import load
from roadworthy.model.units import units
from roadworthy.recipe import CorrectBias, Equalize, Fold, Quantize, Recipe, Round, Smooth, StoreWeights
from roadworthy.run.targets import TARGETS

Steps = Callable[[str], tuple[Any, ...]]

METHODS: dict[str, Steps] = {
    "extreme ranges (minmax)": lambda t: (Quantize(t, "minmax"),),
    "+ bias correction": lambda t: (Quantize(t, "minmax"), CorrectBias()),
    "percentile": lambda t: (Quantize(t, "percentile"), CorrectBias()),
    "kl": lambda t: (Quantize(t, "kl"), CorrectBias()),
    "aciq": lambda t: (Quantize(t, "aciq"), CorrectBias()),
    "least error (mse; default)": lambda t: (Quantize(t), CorrectBias()),
    "default, Smooth 0.5": lambda t: (Smooth(0.5), Quantize(t), CorrectBias()),
    "default, Equalize": lambda t: (Equalize(), Quantize(t), CorrectBias()),
    "default, weights per tensor": lambda t: (Quantize(t, granularity="tensor"), CorrectBias()),
    "the same, Equalize": lambda t: (Equalize(), Quantize(t, granularity="tensor"), CorrectBias()),
    "default, Round": lambda t: (Quantize(t), Round()),
    "default, measured bias": lambda t: (Quantize(t), CorrectBias("empirical")),
    "default, scales powers of two": lambda t: (Quantize(t, scales="power_of_two"), CorrectBias()),
    "weights only, stored": lambda t: (StoreWeights(), CorrectBias()),
}


class Silent(Ui):
    pass


def thumbnails(samples: Samples) -> Samples:
    """The pictures at 32 by 32 pixels, unlabelled: what a CIFAR network can be fed where no CIFAR is at hand."""
    import cv2

    def small(sample: Sample) -> Sample:
        def make() -> np.ndarray:
            return np.asarray(cv2.resize(sample.image(), (32, 32), interpolation=cv2.INTER_AREA), np.uint8)

        return Sample(sample.name, load=make, key=f"32/{sample.name}")

    return Samples([small(s) for s in samples])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="an ONNX file, or `street`")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--task")
    parser.add_argument("--targets", nargs="+", default=[n for n, t in TARGETS.items() if t.available()])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--thumbnails", action="store_true", help="feed the pictures at 32x32, unlabelled")
    parser.add_argument("--thorough", action="store_true", help="also the thorough search")
    parser.add_argument("--only", nargs="+", help="methods whose names contain one of these words")
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()

    if options.model == "street":
        model, dataset = load(street_detector()), street_dataset(options.seed)
    else:
        model, dataset = load(options.model), read(options.data)
    calibration, test = dataset.calibration, dataset.test
    if options.thumbnails:
        calibration, test = thumbnails(calibration), thumbnails(test)
    runner = TARGETS["ort"].runner(model.float_bytes(), options.threads)
    task, _ = settle_task(model, dataset, options.task, lambda: runner)
    model = model.with_task(task)
    judge = Judge.of(task, test, lambda: runner, 0.5)
    searches = {
        (t, effort): Search(
            model, task, calibration, judge, t, effort, options.seed, options.threads, Silent(), lambda t, d, w: w()
        )
        for t in options.targets
        for effort in ("normal", *(["thorough"] if options.thorough else []))
    }
    probes = next(iter(searches.values())).probes
    print(f"original: {judge.metric} {judge.original_value:.2f} on {len(test)} images against {judge.reference.kind};")
    print(f"{options.images} calibration images (the search takes its own number), {len(probes)} held out\n")
    print("| target | method | drop | 95 % interval | distance | SQNR dB | kB | s |\n|---|---|---|---|---|---|---|---|")

    def row(target: str, name: str, data: bytes, run: Any, seconds: float) -> None:
        apart, noise, signal = [], 0.0, 0.0
        for tensor, want in probes:
            got = run.run({run.input_names[0]: tensor})
            apart.append(distance(want, got, task))
            for key, value in want.items():
                noise += float(np.square(got[key].astype(np.float64) - value).sum())
                signal += float(np.square(value.astype(np.float64)).sum())
        found = predict(run, task, test)
        judged, interval = judge(found), judge.interval(found, 0)
        told = "" if interval is None else f"{interval.low:+.2f} to {interval.high:+.2f}"
        ratio = 10 * np.log10(signal / max(noise, 1e-30))
        print(
            f"| {target} | {name} | {judged.drop:+.2f} | {told} | {np.mean(apart):.4f} | {ratio:.1f} |"
            f" {len(data) / 1e3:.0f} | {seconds:.1f} |",
            flush=True,
        )

    for target in options.targets:
        methods = dict(METHODS)
        if TARGETS[target].tables:
            active = tuple(u.name for u in units(Fold()(model, calibration).ir) if u.activation is not None)
            methods["default, no 8-bit tables"] = lambda t, a=active: (Quantize(t, exact_activations=a), CorrectBias())
        for name, steps in methods.items():
            if options.only and not any(word in name for word in options.only):
                continue
            started = time.monotonic()
            recipe = Recipe((Fold(), *steps(target)), options.images, options.seed)
            trial = searches[target, "normal"].build(name, name, recipe)
            seconds = time.monotonic() - started
            row(target, name, trial.deployed, TARGETS[target].runner(trial.deployed, options.threads), seconds)
        for (where, effort), search in searches.items():
            if where != target or (options.only and "search" not in options.only):
                continue
            started = time.monotonic()
            plain = search.plain_int8()
            if plain is not None:
                best = search.improved(plain)
                seconds = time.monotonic() - started
                run = TARGETS[target].runner(best.deployed, options.threads)
                kept = [type(s).__name__ for s in best.recipe.steps]
                row(target, f"**search, {effort}** ({', '.join(kept)})", best.deployed, run, seconds)
    if not options.no_peers:
        chosen = calibration.take(min(options.images, len(calibration)), options.seed)
        with tempfile.TemporaryDirectory() as folder:
            for label, tool, where in (("ONNX Runtime static", ort_static, "ort"), ("NNCF", nncf_ptq, IR)):
                started = time.monotonic()
                made = tool(model, task, chosen, Path(folder))
                if made is not None:
                    data = made[0] if isinstance(made, tuple) else made
                    row(where, f"peer: {label}", data, runner_of(where, data), time.monotonic() - started)
    machine = environment(options.threads)
    print(f"\n{machine.get('cpu')}; {machine.get('versions')}")


if __name__ == "__main__":
    main()
