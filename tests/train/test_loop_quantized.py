"""The loop on a quantized student: what rounding lost is learned back, from the original and images without labels."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small_training import TASK, network, picture, pictures  # noqa: E402

from roadworthy.model.model import Model  # noqa: E402
from roadworthy.recipe import Quantize, Recipe  # noqa: E402
from roadworthy.run.reference import ReferenceRunner  # noqa: E402
from roadworthy.run.torch.module import GraphModule  # noqa: E402
from roadworthy.run.torch.quantized import QatSettings, QuantizedModule  # noqa: E402
from roadworthy.train.checkpoint import Checkpoints  # noqa: E402
from roadworthy.train.feed import Feed  # noqa: E402
from roadworthy.train.loop import Interrupted, Trained, fingerprint, train  # noqa: E402
from roadworthy.train.objective import objective  # noqa: E402
from roadworthy.train.parallel import run_all  # noqa: E402
from roadworthy.train.schedule import Schedule  # noqa: E402

SCHEDULE = Schedule(steps=40, batch=4, lr=0.01, scale_lr=0.005, warmup=4, ema=0.8, evaluate_every=10, workers=2)
HELD_OUT = [torch.from_numpy(TASK.preprocess(picture(k))[0]) for k in range(900, 916)]


@pytest.fixture(scope="module")
def coarse() -> tuple[Model, Model]:
    """The original, and the same with weights of 3 bits."""
    original = network(1)
    return original, Recipe((Quantize(target="native", weight_bits=3),)).apply(original, pictures(12))


def distance(student: Any, original: Model) -> float:
    wanted = run_all(GraphModule(original), HELD_OUT)
    return float(np.mean([
        float((torch.softmax(a["y"], 1) - torch.softmax(b["y"], 1)).abs().sum())
        for a, b in zip(run_all(student, HELD_OUT, 2), wanted)
    ]))  # fmt: skip


def run(coarse: tuple[Model, Model], schedule: Schedule = SCHEDULE, settings: Any = None, **more: Any) -> Trained:
    original, small = coarse
    student = QuantizedModule(small, settings)
    aim = objective(small, [original], TASK, values=student.value_names)
    feed = Feed(pictures(24), TASK, schedule.batch, schedule.seed)
    return train(student, aim, feed, schedule, evaluate=lambda s: distance(s, original), **more)


@pytest.mark.parametrize("settings", [QatSettings("lsq"), QatSettings("ste", noise=0.5)], ids=["lsq", "ste, noise"])
def test_a_quantized_student_gets_better_and_is_what_is_delivered(coarse: tuple[Model, Model], settings: QatSettings):
    found = run(coarse, settings=settings)
    before, after = found.distances
    assert after < 0.5 * before
    assert distance(QuantizedModule(found.model), coarse[0]) == after  # encodings and weights as they were judged
    runner, student = ReferenceRunner(found.model), QuantizedModule(found.model)
    for x in HELD_OUT[:3]:
        wanted, codes = runner.all_codes({"x": x.numpy()}), student.codes(x)
        assert len(wanted) >= 2 and all(np.array_equal(codes[name].numpy(), c) for name, c in wanted.items())


def test_threads_and_interruptions_change_nothing(coarse: tuple[Model, Model], tmp_path: Path):
    settings, schedule = QatSettings("lsq", noise=0.5), replace(SCHEDULE, steps=12, evaluate_every=4)
    wanted = run(coarse, schedule, settings)
    assert fingerprint(run(coarse, replace(schedule, workers=1), settings).model) == fingerprint(wanted.model)

    def interrupt(step: int, *_: object) -> None:
        if step in (3, 8):
            signal.raise_signal(signal.SIGINT)

    for _ in range(2):
        with pytest.raises(Interrupted):
            run(coarse, schedule, settings, checkpoints=Checkpoints(tmp_path / "c", resume=True), progress=interrupt)
    found = run(coarse, schedule, settings, checkpoints=Checkpoints(tmp_path / "c", resume=True))
    assert fingerprint(found.model) == fingerprint(wanted.model) and found.history == wanted.history
