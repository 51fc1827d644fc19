"""What the tests of the training share: a small student, its teacher, images, and an objective in three lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnx_graphs import N, build
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.detections import Truth
from roadworthy.detect.spec import DecodeSpec
from roadworthy.model.model import Model, load
from roadworthy.model.task import Task
from roadworthy.run.torch.module import GraphModule

SIDE = 16
TASK = Task(
    Preprocess((SIDE, SIDE), resize="letterbox", scale=1 / 255),
    DecodeSpec("classify", num_classes=3, scores_are_logits=True),
)


def network(seed: int = 0) -> Model:
    """Two convolutions and a bias, a SiLU, a pool: 3 numbers for an image."""
    rng = np.random.default_rng(seed)
    weights = {
        "a.weight": rng.normal(0, 0.3, (8, 3, 3, 3)),
        "a.bias": rng.normal(0, 0.1, 8),
        "b.weight": rng.normal(0, 0.3, (3, 8, 1, 1)),
        "b.bias": rng.normal(0, 0.1, 3),
    }
    nodes = [
        N("Conv", ["x", "a.weight", "a.bias"], ["a"], name="stem", pads=[1, 1, 1, 1]),
        N("Sigmoid", ["a"], ["s"], name="gate"),
        N("Mul", ["a", "s"], ["m"], name="silu"),
        N("Conv", ["m", "b.weight", "b.bias"], ["b"], name="tell"),
        N("GlobalAveragePool", ["b"], ["p"], name="pool"),
        N("Flatten", ["p"], ["y"], name="flat"),
    ]
    return load(build(nodes, {k: v.astype(np.float32) for k, v in weights.items()}, (1, 3, SIDE, SIDE)), task=TASK)


class Imitation:
    """Mean squared difference from what another network says."""

    taps = ("m",)

    def __init__(self, teacher: Model) -> None:
        self.teacher = GraphModule(teacher)

    def target(self, x: Tensor, truth: Any) -> dict[str, Tensor]:
        return self.teacher(x, self.taps)

    def __call__(self, found: Mapping[str, Tensor], target: Any, share: float) -> tuple[Tensor, dict[str, float]]:
        out = (found["y"] - target["y"]).square().mean()
        inside = (found["m"] - target["m"]).square().mean()
        return out + 0.1 * inside, {"out": float(out.detach()), "inside": float(inside.detach())}

    def distance(self, student: Any) -> float:
        images = [torch.from_numpy(TASK.preprocess(picture(k))[0]) for k in range(900, 906)]
        with torch.no_grad():
            return float(sum((student(x)["y"] - self.teacher(x)["y"]).abs().mean() for x in images))


def picture(index: int, hw: tuple[int, int] = (20, 24)) -> np.ndarray:
    return np.random.default_rng([3, index]).integers(0, 256, (*hw, 3), np.uint8)


def pictures(count: int, hw: tuple[int, int] = (20, 24), boxes: bool = False) -> Samples:
    def truth(index: int) -> Truth:
        x, y = np.random.default_rng([4, index]).integers(0, 12, 2)
        return Truth.of(np.array([[x, y, x + 8, y + 6]], np.float32), np.array([index % 3]))

    return Samples(
        (
            Sample(f"{k:03d}", load=lambda k=k: picture(k, hw), key=f"{k} {hw}",
                   truth=(lambda k=k: truth(k)) if boxes else None)
            for k in range(count)
        ),
        "boxes" if boxes else "images",
    )  # fmt: skip


def weights_of(model: Model) -> bytes:
    return model.float_bytes()


def rest(schedule: Any, folder: str, name: str, options: Mapping[str, Any]) -> None:
    """One training in a process of its own: checkpoints in folder/name.rwt, the final weights in folder/name.onnx.

    options: every_seconds, resume; rank and size, port: of a training in several processes; slow: seconds for each
    image, so that it can be killed in the middle; images, hw: how many, and their size.
    """
    import os
    import time
    from pathlib import Path

    from roadworthy.train.checkpoint import Checkpoints
    from roadworthy.train.feed import Feed
    from roadworthy.train.loop import train

    if "size" in options:
        os.environ.update(WORLD_SIZE=str(options["size"]), RANK=str(options["rank"]), MASTER_ADDR="127.0.0.1",
                          MASTER_PORT=str(options["port"]))  # fmt: skip
    aim = Imitation(network(1))
    told = aim.target

    def slow(x: Tensor, truth: Any) -> dict[str, Tensor]:
        time.sleep(options.get("slow", 0.0))
        return told(x, truth)

    aim.target = slow  # type: ignore[method-assign]
    path = Path(folder, f"{name}.rwt")
    kept = Checkpoints(path, bool(options.get("resume")), options.get("every_seconds", 0.0))
    samples = pictures(options.get("images", 12), options.get("hw", (20, 24)))
    feed = Feed(samples, TASK, schedule.batch, schedule.seed, options.get("augment", "light"))
    made = train(GraphModule(network(0)), aim, feed, schedule, evaluate=aim.distance, checkpoints=kept)
    Path(folder, f"{name}.mb").write_text(str(made.peak_mb))
    result = Path(folder, f"{name}{options.get('rank', '')}.onnx")
    result.write_bytes(weights_of(made.model) + repr(made.history).encode())
