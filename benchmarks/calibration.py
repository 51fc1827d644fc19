"""Time and peak memory of calibration, each count of images in a process of its own.

    python benchmarks/calibration.py MODEL DATA [--images 128 278] [--target ort]

Time is the whole of `Recipe((Fold(), Quantize(target), CorrectBias())).apply`: image decoding, the network, statistics,
ranges, encodings. Peak memory is VmHWM of the process, with all libraries.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from roadworthy.check.contract import settle_task
from roadworthy.check.machine import environment
from roadworthy.data.readers import read
from roadworthy.model.model import load
from roadworthy.recipe import CorrectBias, Fold, Quantize, Recipe
from roadworthy.run.targets import TARGETS


def once(model_path: str, data: str, images: int, target: str) -> dict[str, float]:
    """Measured in this process."""
    model, dataset = load(model_path), read(data)
    task, _ = settle_task(model, dataset, None, lambda: TARGETS["ort"].runner(model.float_bytes()))
    started = time.perf_counter()
    Recipe((Fold(), Quantize(target), CorrectBias()), images).apply(model.with_task(task), dataset.calibration)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1000  # type: ignore[index]
    return {"images": min(images, len(dataset.calibration)), "seconds": seconds, "peak_mb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, nargs="+", default=[128, 278])
    parser.add_argument("--target", choices=tuple(TARGETS), default="ort")
    parser.add_argument("--once", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(options.model, options.data, options.once, options.target)))
        return
    print("| images | seconds | peak MB |\n|---|---|---|")
    for count in options.images:
        command = [
            sys.executable,
            __file__,
            options.model,
            options.data,
            "--target",
            options.target,
            "--once",
            str(count),
        ]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(f"| {row['images']} | {row['seconds']:.1f} | {row['peak_mb']:.0f} |", flush=True)
    machine = environment()
    print(f"\n{machine.get('cpu')}, {machine.get('cores')} cores; {machine.get('versions')}")


if __name__ == "__main__":
    main()
