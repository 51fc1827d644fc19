"""A small classifier, and a place on the disk with it and a few images: what the tests of the jobs start from.

The classifier knows the strongest colour of an image: class 0 is red, 1 green, 2 blue. It takes RGB in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx

from onnx_graphs import N, build
from roadworthy.check.bench import BenchResult, Entry, Latency, Measured

SIDE = 32
TASK = f"""
preprocess: {{size_hw: [{SIDE}, {SIDE}], resize: stretch, color: rgb, scale: {1 / 255}}}
decode: {{kind: classify, num_classes: 3, scores_are_logits: true}}
"""


def classifier() -> onnx.ModelProto:
    """Convolutions of planted weights: channel k of the last one is colour k minus the mean of the others."""
    rng = np.random.default_rng(5)
    mix = rng.normal(size=(16, 3, 3, 3)).astype(np.float32) * 0.3
    mix[:3] = 0
    mix[range(3), range(3), 1, 1] = 1
    tell = np.zeros((3, 16, 1, 1), np.float32)
    tell[:, :3, 0, 0] = np.eye(3) * 12 - 6
    nodes = [
        N("Conv", ["x", "mix"], ["a"], name="stem", pads=[1, 1, 1, 1]),
        N("Relu", ["a"], ["b"], name="relu"),
        N("Conv", ["b", "tell"], ["c"], name="tell"),
        N("GlobalAveragePool", ["c"], ["d"], name="pool"),
        N("Flatten", ["d"], ["y"], name="flat"),
    ]
    return build(nodes, {"mix": mix, "tell": tell}, (1, 3, SIDE, SIDE))


def picture(index: int, side: int = 40) -> np.ndarray:
    """(side, side, 3) uint8 BGR noise in which one colour is stronger; its class is index % 3."""
    rng = np.random.default_rng([9, index])
    image = rng.integers(20, 170, (side, side, 3), np.uint8)
    image[..., 2 - index % 3] += np.uint8(rng.integers(3, 60))
    return image


def place(folder: Path, count: int = 12) -> Path:
    """model.onnx, task.yaml, images/NN.png and images/labels.csv, unlabelled/NN.png."""
    onnx.save(classifier(), folder / "model.onnx")
    (folder / "task.yaml").write_text(TASK)
    (folder / "images").mkdir()
    (folder / "unlabelled").mkdir()
    rows = ["file,class_index"]
    for index in range(count):
        for where in ("images", "unlabelled"):
            cv2.imwrite(str(folder / where / f"{index:02d}.png"), picture(index))
        rows.append(f"{index:02d}.png,{index % 3}")
    (folder / "images" / "labels.csv").write_text("\n".join(rows))
    return folder


Milliseconds = Callable[[Entry], float]


def int8_twice_as_fast(entry: Entry) -> float:
    return 2.0 if entry.label.startswith("int8") and "stored" not in entry.label else 4.0


def steady(milliseconds: Milliseconds) -> Callable[..., BenchResult]:
    """A benchmark that answers at once and always the same, so that the search goes one way on every machine."""

    def bench(entries: Sequence[Entry], **_: Any) -> BenchResult:
        base = milliseconds(entries[0])
        measured = []
        for entry in entries:
            ms = milliseconds(entry)
            latency = Latency(ms, ms, ms, 1000 / ms, 10)
            ratio, size = base / ms, len(entry.model)
            measured.append(
                Measured(entry.label, entry.target, latency, latency, None, ratio, (ratio, ratio), ratio, None,
                         load_ms=1.0, peak_mb=50.0, base_mb=20.0, file_bytes=size, samples=10, dropped=0)
            )  # fmt: skip
        return BenchResult(tuple(measured), 1, 10, 0.0, True, {}, {"cpu": "steady"})

    return bench
