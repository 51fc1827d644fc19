"""The PyTorch bridge on a real network: how far its module is from ONNX Runtime, and both from float64.

    python benchmarks/bridge.py MODEL DATA [--task TASK] [--images 32]

One row per output and pair: over the images, the largest difference over the largest value ("largest": median, worst,
and how many images lie above 1e-4), and the root mean square of the difference over that of the values ("rms": mean and
worst). Neither module nor ONNX Runtime is the truth: float64 is, and the rows against it say who rounds how much.
Then: whether writing the untouched parameters back gives the same bytes, and milliseconds and peak memory of a forward
pass and of one with gradients. Fails where module and ONNX Runtime are further apart than 1e-4 by root mean square.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from roadworthy.check.accuracy import tensor_of
from roadworthy.check.agreement import compare_runners
from roadworthy.data.readers import read
from roadworthy.jobs.compress import settle_task
from roadworthy.model.model import load
from roadworthy.optimize import fold
from roadworthy.run import torch as bridge
from roadworthy.run.targets import TARGETS, WITNESSES

LIMIT = 1e-4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--task")
    parser.add_argument("--images", type=int, default=32)
    given = parser.parse_args()
    original, dataset = load(given.model), read(given.data)
    ort = TARGETS["ort"].runner(original.float_bytes())
    task, _ = settle_task(original, dataset, given.task, lambda: ort, 0)
    model = fold(original)
    samples = dataset.test.take(min(given.images, len(dataset.test)), 0)

    def tensors() -> Iterator[NDArray]:
        return (tensor_of(s, task)[0] for s in samples)

    module = bridge.module_of(model)
    runner, ours = TARGETS["ort"].runner(model.float_bytes()), WITNESSES["torch"](model)
    exact = WITNESSES["float64"](model)
    print(f"{given.model}: {len(samples)} images, {torch.get_num_threads()} threads, PyTorch {torch.__version__}")
    worst = 0.0
    pairs = (("module - ort", runner, ours), ("ort - float64", exact, runner), ("module - float64", exact, ours))
    for title, a, b in pairs:
        images = [compare_runners(a, b, [x]) for x in tensors()]
        for found in zip(*images):
            largest, rms = (np.array([getattr(f, name) for f in found]) for name in ("relative", "rms"))
            over = f"{(largest > LIMIT).sum()} of {len(largest)}"
            print(
                f"  {title:17} {found[0].name:12} largest: median {np.median(largest):.1e}, worst {largest.max():.1e},"
                f" {over} above {LIMIT:.0e}   rms: mean {rms.mean():.1e}, worst {rms.max():.1e}"
            )
            worst = max(worst, float(rms.max()) if a is runner else 0.0)
    same = bridge.write_back(model, module).float_bytes() == model.float_bytes()
    print(f"  write-back: {'the same bytes' if same else 'OTHER BYTES'}")
    x = torch.from_numpy(np.array(next(tensors())))
    with torch.no_grad():
        forward = _timed(lambda: module(x))
    held = _peak_mb()
    parameters = list(module.parameters())
    both = _timed(lambda: torch.autograd.grad(_sum(module(x)), parameters, allow_unused=True))
    print(f"  forward {forward:.1f} ms, with gradients {both:.1f} ms; peak memory {held:.0f} and {_peak_mb():.0f} MB")
    sys.exit(worst > LIMIT or not same)


def _sum(outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([v.sum() for v in outputs.values() if v.is_floating_point()]).sum()


def _timed(run) -> float:  # type: ignore[no-untyped-def]
    """Median of ten, in ms, after two."""
    took = []
    for _ in range(12):
        start = time.perf_counter()
        run()
        took.append(1000 * (time.perf_counter() - start))
    return float(np.median(took[2:]))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
