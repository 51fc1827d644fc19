"""Time and peak memory of calibration, each measurement in a process of its own.

    python benchmarks/calibration.py MODEL DATA [--images 100 2000] [--target ort openvino native] [--peer nncf]

Time is the whole of `Recipe((Fold(), Quantize(target), CorrectBias())).apply`: image decoding, the network, statistics,
ranges, encodings; processor time beside it, of all threads. Peak memory is VmHWM of the process, with all libraries.
Where more images are asked for than DATA has, its files are read again under new names.

--peer nncf runs `nncf.quantize` (defaults, fast bias correction included) on the same images with the same reading and
preprocessing in turn with ours, --rounds times; the fastest of each counts. Its OpenVINO backend stands beside the
target openvino, its ONNX backend beside the others. NNCF must be installed (`pip install nncf`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roadworthy.check.contract import settle_task
from roadworthy.check.machine import environment
from roadworthy.data.readers import read
from roadworthy.data.samples import Sample, Samples
from roadworthy.model.model import Model, load
from roadworthy.recipe import CorrectBias, Fold, Quantize, Recipe
from roadworthy.run.targets import TARGETS


def samples_of(calibration: Samples, count: int) -> Samples:
    """`count` images: those there are, and then their files again under new names."""
    if count <= len(calibration):
        return calibration.take(count)
    files = itertools.islice(itertools.cycle(calibration), count)
    return Samples(Sample(f"{k:06d}/{s.name}", s.path, load=s.load, key=s.key) for k, s in enumerate(files))


def ours(model: Model, samples: Samples, target: str) -> Callable[[], object]:
    recipe = Recipe((Fold(), Quantize(target), CorrectBias()), len(samples))
    return lambda: recipe.apply(model, samples)


def nncf(model: Model, samples: Samples, target: str) -> Callable[[], object]:
    import nncf as peer
    import onnx

    assert model.task is not None
    preprocess, name = model.task.preprocess, model.input_name
    graph: Any = onnx.load_model_from_string(model.float_bytes())
    if target == "openvino":
        import openvino

        graph = openvino.Core().read_model(model.float_bytes(), b"")
    peer.set_log_level(40)
    data = peer.Dataset(samples, lambda s: {name: preprocess(s.image())[0]})
    return lambda: peer.quantize(graph, data, subset_size=len(samples))


def once(model_path: str, data: str, images: int, target: str, who: str) -> dict[str, float]:
    """Measured in this process."""
    model, dataset = load(model_path), read(data)
    task, _ = settle_task(model, dataset, None, lambda: TARGETS["ort"].runner(model.float_bytes()))
    samples = samples_of(dataset.calibration, images)
    work = {"roadworthy": ours, "nncf": nncf}[who](model.with_task(task), samples, target)
    started, used = time.perf_counter(), time.process_time()
    work()
    seconds, processor = time.perf_counter() - started, time.process_time() - used
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1000  # type: ignore[index]
    return {"images": images, "seconds": seconds, "processor": processor, "peak_mb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, nargs="+", default=[100, 2000])
    parser.add_argument("--target", nargs="+", choices=tuple(TARGETS), default=["ort"])
    parser.add_argument("--peer", choices=("nncf",))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        row = once(options.model, options.data, options.images[0], options.target[0], options.once)
        print(json.dumps(row))
        return
    who = ["roadworthy", *([options.peer] if options.peer else [])]
    print("| target | images | by | seconds | processor seconds | peak MB |\n|---|---|---|---|---|---|")
    for target, count in itertools.product(options.target, options.images):
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in who}
        for _, name in itertools.product(range(options.rounds), who):
            arguments = ["--images", str(count), "--target", target, "--once", name]
            command = [sys.executable, __file__, options.model, options.data, *arguments]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            rows[name].append(json.loads(told.stdout.splitlines()[-1]))
        best = {name: {key: min(r[key] for r in found) for key in found[0]} for name, found in rows.items()}
        for name, row in best.items():
            told_row = f"{row['seconds']:.1f} | {row['processor']:.1f} | {row['peak_mb']:.0f}"
            print(f"| {target} | {count} | {name} | {told_row} |", flush=True)
        if options.peer:
            a, b = best["roadworthy"], best[options.peer]
            ratio = f"{a['seconds'] / b['seconds']:.2f} | {a['processor'] / b['processor']:.2f}"
            print(f"| {target} | {count} | ratio | {ratio} | |", flush=True)
    machine = environment()
    print(f"\n{machine.get('cpu')}, {machine.get('cores')} cores; {machine.get('versions')}")


if __name__ == "__main__":
    main()
