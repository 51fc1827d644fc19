"""The C example with a real detector: built on its own, what it links, holds and takes.

    python benchmarks/c_example.py MODEL DATA [--task TASK] [--images 64] [--threads 1 2] [--build DIR]

Compresses the model for the native engine (`Fold, Quantize(target="native"), CorrectBias`), writes the plan, builds
examples/c with CMake against the sources, runs it on a test image as PPM, and counts allocations with
native/tests/allocations.cc (it counts malloc and its relatives). Fails where a promise of the example is broken: 20 MB
resident, 30 ms of loading, no allocation after the first frame, nothing linked beyond the C and C++ run time.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2

from roadworthy.check.contract import settle_task
from roadworthy.data.readers import read
from roadworthy.model.model import load
from roadworthy.recipe import CorrectBias, Fold, Quantize, Recipe
from roadworthy.run.native.lower import lower
from roadworthy.run.targets import TARGETS

ROOT = Path(__file__).parents[1]
MOST_MB, MOST_LOAD_MS = 20.0, 30.0
SYSTEM = {"linux-vdso.so.1", "libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "libpthread.so.0"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--task")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "c_example")
    options = parser.parse_args()

    dataset = read(options.data)
    model = load(options.model)
    original = TARGETS["ort"].runner(model.float_bytes())
    task, _ = settle_task(model, dataset, options.task, lambda: original)
    recipe = Recipe((Fold(), Quantize("native"), CorrectBias()), options.images, 0)
    plan = lower(recipe.apply(model.with_task(task), dataset.calibration)).to_bytes()
    options.build.mkdir(parents=True, exist_ok=True)
    plan_path, image_path = options.build / "model.rwp", options.build / "image.ppm"
    plan_path.write_bytes(plan)
    cv2.imwrite(str(image_path), next(iter(dataset.test)).image())

    tell("cmake", "-S", ROOT / "examples/c", "-B", options.build, "-DCMAKE_BUILD_TYPE=Release")
    tell("cmake", "--build", options.build, "-j", "2")
    program = options.build / "detect"
    broken = []
    linked = {line.split()[0].rsplit("/", 1)[-1] for line in tell("ldd", program).splitlines()}
    linked = {name for name in linked if not name.startswith("ld-linux")}
    print(
        f"program {program.stat().st_size / 1e6:.2f} MB, plan {len(plan) / 1e6:.2f} MB,"
        f" links {', '.join(sorted(linked))}"
    )
    if linked - SYSTEM:
        broken.append(f"links {', '.join(sorted(linked - SYSTEM))}")
    for threads in options.threads:
        text = tell(program, plan_path, image_path, str(threads))
        print(text, end="")
        load_ms, peak_mb = (float(v) for v in re.search(r"loaded in (\S+) ms, peak memory (\S+) MB", text).groups())  # type: ignore[union-attr]
        if load_ms > MOST_LOAD_MS:
            broken.append(f"{load_ms} ms to load")
        if peak_mb > MOST_MB:
            broken.append(f"{peak_mb} MB resident")
    counter = options.build / "allocations"
    library = next(options.build.rglob("libroadworthy.a"))
    source, include = ROOT / "native/tests/allocations.cc", ROOT / "native/include"
    tell(os.environ.get("CXX", "c++"), "-std=c++17", "-O1", "-I", include, source, library, "-lpthread", "-o", counter)
    counted = subprocess.run([counter, plan_path], capture_output=True, text=True, check=False)
    print(counted.stdout, end="")
    if counted.returncode:
        broken.append("allocates after the first frame")
    if broken:
        sys.exit("broken: " + "; ".join(broken))


def tell(*command: str | Path) -> str:
    """Runs a command; its output, or the end of the program with what it said."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"`{command[0]}` failed: {done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
