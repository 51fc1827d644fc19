"""Processes: killed at any moment and gone on, or several that train together; the weights are the same to the bit."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from small_training import rest  # noqa: E402

from roadworthy.train.schedule import Schedule  # noqa: E402

SCHEDULE = Schedule(steps=24, batch=4, lr=0.02, warmup=3, ema=0.9, evaluate_every=6, workers=2)


@pytest.fixture(scope="module")
def processes():
    """A process that knows PyTorch and has run nothing, and is copied for each training."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["small_training", "roadworthy.train.loop", "torch.distributed", "torch._dynamo"])
    return context


def undisturbed(processes, folder: Path, schedule: Schedule = SCHEDULE, **options: object) -> bytes:
    one = processes.Process(target=rest, args=(schedule, str(folder), "alone", options))
    one.start()
    one.join(60)
    assert one.exitcode == 0
    return (folder / "alone.onnx").read_bytes()


def test_killed_at_any_moment_and_resumed_gives_the_same_bytes(processes, tmp_path: Path):
    wanted = undisturbed(processes, tmp_path)
    kills = 0
    for attempt, wait in enumerate((0.0, 0.1, 0.03, 0.2)):
        child = processes.Process(target=rest, args=(SCHEDULE, str(tmp_path), "killed", {"resume": True, "slow": 0.03}))
        before = stamp(tmp_path / "killed.rwt")
        child.start()
        while attempt and child.is_alive() and stamp(tmp_path / "killed.rwt") == before:  # until it has saved
            time.sleep(0.002)
        time.sleep(wait)
        child.kill()
        child.join(30)
        kills += child.exitcode == -9
    assert kills >= 2, "it was done before it could be killed"
    last = processes.Process(target=rest, args=(SCHEDULE, str(tmp_path), "killed", {"resume": True}))
    last.start()
    last.join(60)
    assert last.exitcode == 0
    assert (tmp_path / "killed.onnx").read_bytes() == wanted
    assert not list(tmp_path.glob("*.part"))


def stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.parametrize("size", [2, 3])
def test_processes_give_the_bits_of_one(processes, tmp_path: Path, size: int):
    schedule = replace(SCHEDULE, steps=8, batch=5)
    wanted = undisturbed(processes, tmp_path, schedule)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = [{"rank": rank, "size": size, "port": port} for rank in range(size)]
    children = [processes.Process(target=rest, args=(schedule, str(tmp_path), "rank", o)) for o in options]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [c.exitcode for c in children] == [0] * size
    assert [(tmp_path / f"rank{rank}.onnx").read_bytes() == wanted for rank in range(size)] == [True] * size
    assert os.environ.get("WORLD_SIZE") is None


def test_memory_does_not_grow_with_the_images(processes, tmp_path: Path):
    """48 images of 2.9 MB more, each seen once: 138 MB if they were kept. What is in flight, a few images in each
    thread, is the same in both; 30 MB are for the allocator, whose threads keep some of what they free."""
    peaks = []
    for steps in (3, 15):
        schedule = replace(SCHEDULE, steps=steps, evaluate_every=0)
        undisturbed(processes, tmp_path, schedule, images=4 * steps, hw=(800, 1200))
        peaks.append(float((tmp_path / "alone.mb").read_text()))
    assert peaks[1] - peaks[0] < 30
