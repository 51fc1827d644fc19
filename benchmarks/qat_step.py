"""What one step of quantization-aware training costs: YOLOX-Nano, 8 pictures, two threads of one core each.

    python benchmarks/qat_step.py [--gradient lsq] [--batch 8] [--workers 2]

    float        the float network
    plain        quantized, epilogues as PyTorch operations, everything made of the parameters for each picture
    fused        the same with epilogues in compiled code (run/torch/fused.py)
    shared       and what is made of the parameters made once for all pictures (`leaves`): what the training loop does

Milliseconds a picture, by the clock and of CPU time, the least of some repetitions; a step's own costs (`prepare`,
`leaves`, `collect`) are in them. Needs the assets (ROADWORTHY_ASSETS) and the extra `train`.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import torch

import roadworthy as rw
from roadworthy.run.torch import fused
from roadworthy.run.torch.module import GraphModule
from roadworthy.run.torch.quantized import QatSettings, QuantizedModule

ASSETS = Path(os.environ.get("ROADWORTHY_ASSETS") or Path(__file__).parents[2] / "shared" / "assets")


def step(module: GraphModule, inputs: list[torch.Tensor], pool: ThreadPoolExecutor, shared: bool) -> None:
    module.prepare(0, 0)
    leaves = module.leaves() if shared else [p for p in module.parameters() if p.requires_grad]

    def one(x: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        loss = sum(v.square().sum() for v in module(x).values()) * 1e-3  # type: ignore[misc]
        return torch.autograd.grad(loss, leaves, allow_unused=True)

    total: list[torch.Tensor | None] = [None] * len(leaves)
    for found in pool.map(one, inputs):
        total = [a if b is None else b if a is None else a + b for a, b in zip(total, found)]
    if shared:
        module.collect(total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gradient", default="lsq")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = rw.read(ASSETS / "coco" / "data.yaml")
    model = rw.settle(rw.load(ASSETS / "models" / "yolox_nano.onnx"), data)
    small = rw.Recipe((rw.Fold(), rw.Quantize(target="native")), images=16).apply(model, data.calibration)
    task = small.task
    assert task is not None
    images = [task.preprocess(s.image())[0] for s in data.calibration.take(given.batch)]
    inputs = [torch.from_numpy(x.copy()) for x in images]
    settings = QatSettings(given.gradient)

    def measure(name: str, module: GraphModule, shared: bool) -> None:
        clock, cpu = [], []
        with ThreadPoolExecutor(given.workers) as pool:
            step(module, inputs, pool, shared)
            for _ in range(given.repeats):
                began = time.perf_counter(), time.process_time()
                step(module, inputs, pool, shared)
                clock.append(time.perf_counter() - began[0])
                cpu.append(time.process_time() - began[1])
        each = 1e3 / given.batch
        print(f"{name:8s} {min(clock) * each:7.1f} ms a picture, {min(cpu) * each:7.1f} ms of CPU time", flush=True)

    print(f"{given.gradient}, batch {given.batch}, {given.workers} workers, load {os.getloadavg()[0]:.1f}")
    measure("float", GraphModule(small), False)
    with mock.patch.object(fused, "_native", None):
        measure("plain", QuantizedModule(small, settings), False)
    measure("fused", QuantizedModule(small, settings), False)
    measure("shared", QuantizedModule(small, settings), True)


if __name__ == "__main__":
    main()
