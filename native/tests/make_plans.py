"""Writes plans for the C++ test programs: `python native/tests/make_plans.py folder [count]`.

`randomNNN`: random networks of the Python tests, lowered; between them they hold every operation, or this fails.
`packedN`: packed weights of every kind. `fixedNNN`: random networks in fixed point, where nothing in the middle
computes in floats. `taskNN`: a task of every kind around a network of two layers. `street`: the embedded detector in
int8. `real_*`: YOLOX-Nano, FastestDet and MobileNet in int8, where the assets are (ROADWORTHY_ASSETS). `real_fixed`:
YOLOX-Nano again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "tests/run/native")]

from roadworthy.data.preprocess import Preprocess  # noqa: E402
from roadworthy.detect.spec import DecodeSpec  # noqa: E402
from roadworthy.errors import UnsupportedError  # noqa: E402
from roadworthy.jobs import sample  # noqa: E402
from roadworthy.model.model import Model, load  # noqa: E402
from roadworthy.model.task import Task  # noqa: E402
from roadworthy.optimize import fold  # noqa: E402
from roadworthy.quantize.calibrate import calibrate  # noqa: E402
from roadworthy.quantize.place import place  # noqa: E402
from roadworthy.quantize.quantize import activation_encodings, quantize_units  # noqa: E402
from roadworthy.run.native.lower import lower  # noqa: E402
from roadworthy.run.native.plan import Op, Plan  # noqa: E402
from roadworthy.run.targets import TARGETS  # noqa: E402

ASSETS = Path(os.environ.get("ROADWORTHY_ASSETS") or ROOT.parent / "shared" / "assets") / "models"
REAL = {
    "yolox_nano": Task(Preprocess((416, 416)), DecodeSpec("yolox", 80, (416, 416), (8, 16, 32), score_threshold=0.3)),
    "fastestdet": Task(Preprocess((352, 352), "stretch", scale=1 / 255), DecodeSpec("fastestdet", 80, (352, 352))),
    "mobilenet_v1_075": None,
}


def in_int8(model: Model) -> Model:
    """Quantized for the engine; calibrated with noise, as only the shape of the plan matters here."""
    target = TARGETS["native"]
    model = fold(model)
    placement = place(model.ir, target)
    noise = np.random.default_rng(0).uniform(0, 200, model.input_shape).astype(np.float32)
    statistics = calibrate(model, placement.observed, [noise], 2, per_channel=placement.channels)
    activations = activation_encodings(placement, statistics, target, "minmax")
    return quantize_units(model, placement, activations, "minmax", {n: 8 for n in placement.why_float})


def randoms(count: int) -> Iterator[tuple[str, Plan]]:
    from random_graphs import random_int8_model

    for seed in range(count):
        model = random_int8_model(seed, exact=seed % 2 == 0)
        # Every third network computes in floats, so that those kernels are reached too.
        yield f"random{seed:03}", lower(Model(ir=model.ir) if seed % 3 == 2 else model)


def packed() -> Iterator[tuple[str, Plan]]:
    """Weights of few bits and of every grid, as palettes and indices."""
    from test_pack import CASES, quantized

    for number, case in enumerate(CASES.values()):
        plan = lower(quantized(*case))
        if not any(op.code in (Op.CONV, Op.DEPTHWISE) and op.attributes[17] >= 16 for op in plan.ops):
            raise SystemExit("a plan that should hold packed weights has none")
        yield f"packed{number}", plan


def fixed(count: int) -> Iterator[tuple[str, Plan]]:
    from random_graphs import random_int8_model

    for seed in range(count):
        with suppress(UnsupportedError):
            yield f"fixed{seed:03}", lower(random_int8_model(seed), arithmetic="fixed")


def tasks() -> Iterator[tuple[str, Plan]]:
    """Outputs of the shapes that each decoder takes, by one matrix each from the 4x6 means of a small image."""
    from test_detect_decode import CASES

    from onnx_graphs import N, build, rand

    cases = [(case.spec, case.shapes, case.chances >= 0) for case in CASES.values()]
    cases.append((DecodeSpec("classify", 5, scores_are_logits=True, class_names=tuple("abcde")), ((1, 5),), False))
    for number, (spec, outputs, chances) in enumerate(cases):
        nodes = [N("AveragePool", ["x"], ["p"], kernel_shape=[8, 8], strides=[8, 8]), N("Flatten", ["p"], ["f"])]
        weights = {}
        for i, shape in enumerate(outputs):
            size = int(np.prod(shape))
            weights |= {f"w{i}": rand(72, size) * 0.02, f"b{i}": rand(size), f"s{i}": np.array(shape)}
            nodes += [N("Gemm", ["f", f"w{i}", f"b{i}"], [f"g{i}"])]
            nodes += [N("Sigmoid", [f"g{i}"], [f"h{i}"])] if chances else []
            nodes += [N("Reshape", [f"h{i}" if chances else f"g{i}", f"s{i}"], [f"o{i}"])]
        scaled = Preprocess((32, 48), scale=1 / 64, color="rgb" if number % 2 else "bgr")
        names = [f"o{i}" for i in range(len(outputs))]
        model = load(build(nodes, weights, (1, 3, 32, 48), outputs=names), Task(scaled, spec))
        yield f"task{number:02}", lower(in_int8(model) if number % 3 == 0 else model)


def detectors() -> Iterator[tuple[str, Plan]]:
    yield "street", lower(in_int8(load(sample.detector())))
    for name, task in REAL.items():
        if (ASSETS / f"{name}.onnx").is_file():
            model = in_int8(load(ASSETS / f"{name}.onnx", task))
            yield f"real_{name}", lower(model)
            if name == "yolox_nano":
                yield "real_fixed", lower(model, arithmetic="fixed")


def main() -> None:
    folder = Path(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 24
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    written = 0
    for source in (randoms(count), packed(), fixed(count), tasks(), detectors()):
        for name, plan in source:
            (folder / f"{name}.rwp").write_bytes(plan.to_bytes())
            seen.update(op.code.name for op in plan.ops)
            written += 1
    missing = {op.name for op in Op} - seen
    if missing:
        raise SystemExit(f"no plan among {written} has {', '.join(sorted(missing))}; take more random networks")
    print(f"{written} plans with all {len(seen)} operations")


if __name__ == "__main__":
    main()
