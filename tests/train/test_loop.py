"""The training loop: it learns, the same bits with any number of threads, and it delivers the best it has seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from training import TASK, Imitation, Student, network, pictures, weights_of  # noqa: E402

from roadworthy.train.feed import Feed  # noqa: E402
from roadworthy.train.loop import Trained, train  # noqa: E402
from roadworthy.train.schedule import Schedule  # noqa: E402

SHORT = Schedule(steps=30, batch=4, lr=0.02, warmup=3, ema=0.9, evaluate_every=10, workers=2)


def run(schedule: Schedule = SHORT, **given: object) -> Trained:
    aim = Imitation(network(1))
    feed = Feed(pictures(12), TASK, schedule.batch, schedule.seed)
    return train(Student(network(0)), aim, feed, schedule, **{"evaluate": aim.distance, **given})  # type: ignore[arg-type]


def test_a_student_learns_what_the_teacher_says():
    found = run()
    before, after = found.distances
    assert after < 0.5 * before
    assert found.best_step in (10, 20, 30) and found.stopped == "all 30 steps were made"
    assert [h["step"] for h in found.history] == list(range(31))
    assert found.model.history[-1] == f"train: 30 steps, the best after {found.best_step}"


def test_threads_change_nothing():
    made = [run(replace(SHORT, workers=n)) for n in (1, 2, 5)]
    assert len({weights_of(t.model) for t in made}) == 1
    assert made[0].history == made[1].history == made[2].history
    assert weights_of(run(replace(SHORT, seed=1)).model) != weights_of(made[0].model)
