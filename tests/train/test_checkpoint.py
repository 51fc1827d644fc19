"""Checkpoints: whole or not there, of this training or refused, and no way to run code."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from small_training import TASK, Imitation, network, pictures  # noqa: E402

from roadworthy.errors import InputError  # noqa: E402
from roadworthy.run.torch.module import GraphModule as Student  # noqa: E402
from roadworthy.train.checkpoint import MAGIC, Checkpoints, read  # noqa: E402
from roadworthy.train.feed import Feed  # noqa: E402
from roadworthy.train.loop import train  # noqa: E402
from roadworthy.train.schedule import Schedule  # noqa: E402

SHORT = Schedule(steps=4, batch=2, lr=0.01, evaluate_every=2, workers=1)
STATE = {"step": 3, "tensor": torch.arange(4.0), "history": [{"loss": 0.5}]}


def begun(path: Path, **facts: Any) -> Checkpoints:
    return Checkpoints(path, resume=True, every_seconds=0, facts=facts)


def test_what_was_saved_is_loaded(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "c.rwt"
    kept = begun(path, data="abc")
    assert kept.load({"lr": 0.1}) is None
    kept.save({"lr": 0.1}, STATE)
    found = begun(path, data="abc").load({"lr": 0.1})
    assert found["step"] == 3 and torch.equal(found["tensor"], STATE["tensor"]) and found["history"] == [{"loss": 0.5}]
    assert Checkpoints(path).load({"lr": 0.1}) is None  # not to be resumed
    assert [p.name for p in path.parent.iterdir()] == ["c.rwt"]
    kept.drop()
    assert not path.exists()
    kept.drop()


def test_it_is_due_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("roadworthy.train.checkpoint.time.monotonic", lambda: now[0])
    kept = Checkpoints(tmp_path / "c.rwt")
    assert not kept.due
    now[0] = 130.0
    assert kept.due
    kept.save({}, {})
    assert not kept.due


def test_another_training_is_refused_by_what_differs(tmp_path: Path):
    path = tmp_path / "c.rwt"

    def resume(schedule: Schedule = SHORT, began: int = 0, teacher: int = 1, images: int = 6, augment: str = "light"):
        feed = Feed(pictures(images), TASK, schedule.batch, 0, augment)
        train(Student(network(began)), Imitation(network(teacher)), feed, schedule,
              checkpoints=begun(path, teacher=teacher))  # fmt: skip

    resume()
    resume(replace(SHORT, workers=3))  # decides nothing
    for other, sentence in (
        ({"schedule": replace(SHORT, lr=0.02)}, r"lr was 0.01 and is now 0.02"),
        ({"schedule": replace(SHORT, steps=9)}, r"steps was 4 and is now 9"),
        ({"began": 5}, r"not the same student"),
        ({"teacher": 2}, r"teacher was 1 and is now 2"),
        ({"images": 7}, r"not the same images"),
        ({"augment": "strong"}, r"augment was 'light' and is now 'strong'"),
    ):
        with pytest.raises(InputError, match=rf"^the checkpoint .*c.rwt is of another training \({sentence}\); start"):
            resume(**other)


def test_a_damaged_file_is_refused_in_one_sentence(tmp_path: Path):
    path = tmp_path / "c.rwt"
    begun(path).save({}, STATE)
    whole = path.read_bytes()
    for bad in (b"", whole[:20], whole[:-1], whole[:500] + b"\1" + whole[501:], b"nothing of the kind", MAGIC + whole):
        path.write_bytes(bad)
        with pytest.raises(InputError, match=r"^the checkpoint .*c.rwt is damaged or no checkpoint; start"):
            begun(path).load({})
    with pytest.raises(InputError, match=r"cannot be read"):
        read(tmp_path)


def test_reading_runs_no_code(tmp_path: Path):
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    path = tmp_path / "c.rwt"
    begun(path).save({}, {"evil": Evil()})
    with pytest.raises(InputError, match=r"c.rwt is damaged or no checkpoint"):
        begun(path).load({})
    assert not (tmp_path / "made").exists()


def test_a_failed_save_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "c.rwt"
    kept = begun(path)
    kept.save({}, STATE)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("roadworthy.train.checkpoint.os.fsync", full)
    with pytest.raises(InputError, match=r"c.rwt cannot be written \(No space left on device\); make room"):
        kept.save({}, {"step": 4})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["c.rwt"]
