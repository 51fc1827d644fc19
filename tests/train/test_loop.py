"""The training loop: it learns, the same bits with any number of threads, and it delivers the best it has seen."""

from __future__ import annotations

import math
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small_training import TASK, Imitation, network, pictures, weights_of  # noqa: E402

from onnx_graphs import N, build  # noqa: E402
from roadworthy.errors import InputError, TrainingError  # noqa: E402
from roadworthy.model.model import load  # noqa: E402
from roadworthy.run.torch.module import GraphModule as Student  # noqa: E402
from roadworthy.train.checkpoint import Checkpoints, read  # noqa: E402
from roadworthy.train.feed import Feed  # noqa: E402
from roadworthy.train.gradient import is_float  # noqa: E402
from roadworthy.train.loop import Interrupted, Trained, train  # noqa: E402
from roadworthy.train.parallel import one_thread_each, run_all  # noqa: E402
from roadworthy.train.schedule import LAST, Schedule  # noqa: E402
from roadworthy.train.state import State  # noqa: E402

SHORT = Schedule(steps=30, batch=4, lr=0.02, warmup=3, ema=0.9, evaluate_every=10, workers=2)


def run(schedule: Schedule = SHORT, student: Any = None, aim: Any = None, **given: Any) -> Trained:
    aim = aim or Imitation(network(1))
    feed = Feed(pictures(12), TASK, schedule.batch, schedule.seed)
    given = {"evaluate": aim.distance, **given}
    return train(student or Student(network(0)), aim, feed, schedule, **given)


def test_a_student_learns_what_the_teacher_says():
    told: list[tuple] = []
    found = run(progress=lambda *a: told.append(a))
    before, after = found.distances
    assert after < 0.5 * before
    assert found.best_step in (10, 20, 30) and found.stopped == "all 30 steps were made"
    assert [h["step"] for h in found.history] == list(range(31))
    assert found.model.history[-1] == f"train: 30 steps, the best after {found.best_step}"
    measured = [h[k] for h in found.history for k in ("distance", "distance of the average") if k in h]
    assert len(measured) == 7 and min(measured) == after
    assert [a[:2] for a in told] == [(k, 30) for k in range(1, 31)] and told[-1][3] == 0.0
    assert set(told[0][2]) == {"loss", "out", "inside", "norm", "lr"} and "distance" in told[9][2]
    assert found.peak_mb > 50


def test_what_is_delivered_is_what_was_evaluated():
    aim, student = Imitation(network(1)), Student(network(0))
    found = run(student=student, aim=aim)
    assert aim.distance(student) == found.distances[1]  # the student holds the best state
    assert aim.distance(Student(found.model)) == found.distances[1]  # and so does the model


def test_threads_change_nothing():
    made = [run(replace(SHORT, workers=n)) for n in (1, 2, 5)]
    assert len({weights_of(t.model) for t in made}) == 1
    assert made[0].history == made[1].history == made[2].history
    assert weights_of(run(replace(SHORT, seed=1)).model) != weights_of(made[0].model)


def test_operators_use_one_thread_inside_and_what_was_set_before_afterwards():
    seen: set[int] = set()

    class Watching(Imitation):
        def __call__(self, *a: Any) -> Any:
            seen.add(torch.get_num_threads())
            return super().__call__(*a)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        run(replace(SHORT, steps=2), aim=Watching(network(1)))
        assert seen == {1} and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_step_is_that_of_the_whole_batch(optimizer: str):
    """Four images one by one against their mean loss in one graph, by torch.optim with the rates of the schedule.

    Sums in another order differ by some 2^-24 of their terms: a gradient by 1e-6 of the largest. AdamW divides by
    the gradient's size, so that only where that is tiny could a step differ; SGD passes it on.
    """
    schedule = replace(SHORT, steps=3, warmup=2, optimizer=optimizer, ema=0.0, clip=0.05, bias_lr=0.5, weight_decay=0.1)
    aim, student, feed = Imitation(network(1)), Student(network(0)), Feed(pictures(12), TASK, 4, 0)
    train(student, aim, feed, schedule)
    twin = Student(network(0))
    named = dict(twin.named_parameters())
    groups = []
    for name, parameter in named.items():
        size = float(parameter.detach().square().mean().sqrt()) if optimizer == "adamw" else 1.0
        rate, decay = (0.02, 0.1) if name.endswith("weight") else (0.5, 0.0)
        groups.append({"params": [parameter], "rate": rate * size, "weight_decay": decay / size})
    kinds = {"adamw": torch.optim.AdamW(groups), "sgd": torch.optim.SGD(groups, lr=1.0, momentum=0.9)}
    for step, factor in enumerate((0.5, 1.0, 1.0)):
        kinds[optimizer].zero_grad()
        losses = [aim(twin(i.x, aim.taps), aim.target(i.x, None), 0.0)[0] for i in feed.items(step)]
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(list(twin.parameters()), 0.05)
        for group in kinds[optimizer].param_groups:
            group["lr"] = group["rate"] * factor
        kinds[optimizer].step()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter, named[name], rtol=1e-4, atol=1e-6)


def test_groups_have_their_own_rates_and_only_weights_decay():
    schedule = Schedule(lr=0.1, bias_lr=0.2, weight_decay=0.3, optimizer="sgd")
    groups = State(Student(network()), schedule, {}).optimizer.param_groups
    assert [(g["highest"], g["weight_decay"], len(g["params"])) for g in groups] == [(0.1, 0.3, 2), (0.2, 0.0, 2)]
    assert schedule.rate("scales") == 0.1 and replace(schedule, scale_lr=0.0).rate("scales") == 0.0


def test_a_step_is_a_share_of_what_it_changes():
    """Adam's first step moves every number of a tensor by its rate, whatever the gradient: 1 % of the tensor's root
    mean square here, in small layers as in large ones. Its epsilon, 1e-8, takes a little where gradients are small."""
    student = Student(network(0))
    for name, factor in (("a.weight", 30.0), ("b.weight", 1 / 30), ("b.bias", 100.0)):
        student.constant(name).data.mul_(factor)
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    schedule = replace(SHORT, steps=1, warmup=0, lr=0.01, ema=0.0, clip=0.0)
    train(student, Imitation(network(1)), Feed(pictures(12), TASK, 4), schedule)
    for name, parameter in student.named_parameters():
        share = float((parameter.detach() - before[name]).norm() / before[name].norm())
        assert share == pytest.approx(0.01, rel=1e-3), name


def test_the_rate_rises_in_a_line_and_falls_by_half_a_cosine():
    schedule = Schedule(steps=101, warmup=20)
    assert [schedule.factor(k) for k in (0, 9, 19, 20)] == [0.05, 0.5, 1.0, 1.0]
    assert schedule.factor(60) == pytest.approx((1 + LAST) / 2) and schedule.factor(100) == pytest.approx(LAST)
    assert schedule.share(0) == 0 and schedule.share(100) == 1 and Schedule(steps=1).share(0) == 0


def test_nothing_worse_than_the_beginning_is_delivered():
    began = network(0)
    found = run(replace(SHORT, lr=3.0, ema=0.0), aim=Imitation(began), student=Student(began))
    assert found.best_step == 0 and found.distances == (0.0, 0.0)
    assert weights_of(found.model) == weights_of(began)


def test_training_stops_when_nothing_gets_better():
    aim = Imitation(network(1))
    found = run(replace(SHORT, evaluate_every=5, patience=2), aim=aim, evaluate=lambda student: 1.0)
    assert found.stopped == "2 evaluations brought nothing better"
    assert found.history[-1]["step"] == 10 and found.best_step == 0
    assert math.isinf(run(replace(SHORT, steps=2), aim=aim, evaluate=lambda student: math.nan).distances[1])


def test_patience_outlives_an_interruption(tmp_path: Path):
    schedule, path = replace(SHORT, evaluate_every=5, patience=2), tmp_path / "c.rwt"

    def interrupt(step: int, *_: object) -> None:
        if step in (7, 10):
            signal.raise_signal(signal.SIGINT)

    for _ in range(2):
        with pytest.raises(Interrupted):
            run(schedule, evaluate=lambda student: 1.0, checkpoints=Checkpoints(path, resume=True), progress=interrupt)
    found = run(schedule, evaluate=lambda student: 1.0, checkpoints=Checkpoints(path, resume=True))
    assert found.history[-1]["step"] == 10


def test_the_average_follows_its_formula():
    """(1 + t) / (10 + t) of the old and the rest of the new, until `ema` is less."""
    kept = [p.detach().double() for p in Student(network(0)).parameters()]
    for steps, decay in ((1, 0.1), (2, 2 / 11), (3, 0.2)):
        schedule = replace(SHORT, steps=3, ema=0.2)
        feed, student = Feed(pictures(12), TASK, 4, 0), Student(network(0))

        def stop(step: int, *_: object, steps: int = steps) -> None:
            if step == steps:
                raise KeyboardInterrupt

        with pytest.raises(Interrupted):
            train(student, Imitation(network(1)), feed, schedule, progress=stop)
        kept = [decay * a + (1 - decay) * p.detach().double() for a, p in zip(kept, student.parameters())]
    averaged = Student(network(0))
    train(averaged, Imitation(network(1)), Feed(pictures(12), TASK, 4, 0), replace(SHORT, steps=3, ema=0.2))
    for wanted, parameter in zip(kept, averaged.parameters()):
        torch.testing.assert_close(parameter.double(), wanted, rtol=0, atol=4 * 2**-24 * float(wanted.abs().max()))


def test_without_evaluation_the_average_is_delivered():
    found, last = run(evaluate=None), run(replace(SHORT, ema=0.0), evaluate=None)
    assert found.averaged and found.best_step == 30 and found.distances is None
    assert not last.averaged and weights_of(found.model) != weights_of(last.model)
    assert [h["loss"] for h in found.history] == [h["loss"] for h in last.history]


def test_students_are_told_the_step_and_whether_it_is_an_evaluation():
    told: list[tuple[int, bool]] = []

    class Listening(Student):
        def prepare(self, step: int, seed: int) -> None:
            assert seed == 7
            told.append((step, self.training))

    run(replace(SHORT, steps=2, evaluate_every=0, seed=7, ema=0.0), student=Listening(network(0)))
    assert told == [(-1, False), (0, True), (1, True), (-1, False), (-1, False)]


def test_parameters_of_the_objective_are_trained_and_thrown_away(tmp_path: Path):
    class Adapting(torch.nn.Module, Imitation):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            object.__setattr__(self, "teacher", Student(network(1)))
            self.adapter = torch.nn.Parameter(torch.ones(3))

        def forward(self, found: Any, target: Any, share: float) -> Any:
            return (self.adapter * found["y"] - target["y"]).square().mean(), {}

        __call__ = torch.nn.Module.__call__

    aim = Adapting()
    found = run(replace(SHORT, steps=4), aim=aim, checkpoints=Checkpoints(tmp_path / "c.rwt", every_seconds=0))
    assert (aim.adapter != 1).all() and "adapter" not in str(found.model.ir.graph.initializers.keys())
    other = Adapting()
    run(replace(SHORT, steps=4), aim=other, checkpoints=Checkpoints(tmp_path / "c.rwt", resume=True))
    assert torch.equal(aim.adapter, other.adapter)


def test_an_image_that_says_nothing_is_no_gradient():
    class Silent(Imitation):
        def __call__(self, *a: Any) -> Any:
            return torch.zeros(()), {}

    began = network(0)
    found = run(
        replace(SHORT, steps=3, weight_decay=0.5), student=Student(began), aim=Silent(network(1)), evaluate=None
    )
    assert weights_of(found.model) == weights_of(began)


def test_half_precision_is_for_float_students_only():
    half = run(replace(SHORT, precision="bf16"))
    assert 0 < abs(half.history[1]["loss"] - run().history[1]["loss"]) < 0.05 * half.history[1]["loss"]
    assert half.distances[1] < 0.5 * half.distances[0]
    from roadworthy.run.torch.quantized import QuantizedModule

    assert is_float(Student(network())) and not is_float(QuantizedModule.__new__(QuantizedModule))


def test_statistics_of_batch_normalization_stay_or_follow_the_images():
    rng = np.random.default_rng(2)
    shapes = {"w": (4, 3, 3, 3), "gamma": 4, "beta": 4, "mean": 4, "var": 4, "v": (3, 4, 1, 1)}
    nodes = [
        N("Conv", ["x", "w"], ["a"], name="conv"),
        N("BatchNormalization", ["a", "gamma", "beta", "mean", "var"], ["n"], name="norm"),
        N("Relu", ["n"], ["m"], name="relu"),
        N("Conv", ["m", "v"], ["b"], name="tell"),
        N("GlobalAveragePool", ["b"], ["p"], name="pool"),
        N("Flatten", ["p"], ["y"], name="flat"),
    ]
    weights = {k: np.abs(rng.normal(1, 0.3, v)).astype(np.float32) for k, v in shapes.items()}
    model = load(build(nodes, weights, (1, 3, 16, 16)), task=TASK)
    schedule = replace(SHORT, lr=0.0, ema=0.0, steps=60, warmup=0)
    frozen, student = Student(model), Student(model)
    run(schedule, student=frozen, aim=Imitation(model), evaluate=None)
    assert torch.equal(frozen.constant("mean"), torch.from_numpy(weights["mean"]))
    run(replace(schedule, batch_norm="estimated"), student=student, aim=Imitation(model), evaluate=None)
    images = [i.x for step in range(40, 60) for i in Feed(pictures(12), TASK, 4).items(step)]
    read = torch.cat([student(x, ["a"])["a"] for x in images]).transpose(0, 1).reshape(4, -1)
    # What is left of the beginning is 0.9^60 = 0.2 %; the rest is a mean over the last steps' images, weighted.
    torch.testing.assert_close(student.constant("mean"), read.mean(1).detach(), rtol=0.05, atol=0)
    torch.testing.assert_close(student.constant("var"), read.var(1).detach(), rtol=0.1, atol=0)


def test_settings_of_threads_close_in_any_order():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        a, b = one_thread_each(), one_thread_each()
        a.__enter__()
        b.__enter__()
        a.__exit__(None, None, None)
        assert torch.get_num_threads() == 1
        b.__exit__(None, None, None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# What can go wrong.


class Broken(Student):
    """From step 3 on its last weights are so large that what they make is infinite."""

    def prepare(self, step: int, seed: int) -> None:
        if step == 3:
            self.constant("b.weight").data.fill_(3e38)


def test_an_infinite_output_names_its_layer_and_keeps_the_checkpoint(tmp_path: Path):
    kept = Checkpoints(tmp_path / "c.rwt", every_seconds=0)
    sentence = (
        r"training stopped in step 4: the output of layer 'tell' became NaN or infinite on 0\d\d; train with a lower"
        r" learning rate than 0.02; the last good checkpoint is kept in .*c.rwt$"
    )
    with pytest.raises(TrainingError, match=sentence):
        run(student=Broken(network(0)), checkpoints=kept)
    assert run(checkpoints=Checkpoints(kept.path, resume=True)).history[-1]["step"] == 30


def test_a_state_is_kept_once_it_is_known_to_be_good(tmp_path: Path):
    """Finite weights are not enough: the last step before the loss overflows leaves some. What is kept goes on."""
    path = tmp_path / "c.rwt"

    class Leaping(State):
        def descend(self, used: list[bool]) -> float:
            norm = super().descend(used)
            if self.step == 4:
                with torch.no_grad():
                    self.parameters[-1].fill_(3e38)  # finite, but its square is not
            return norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("roadworthy.train.loop.State", Leaping)
        with pytest.raises(TrainingError, match=r"stopped in step 5: .*the last good checkpoint is kept"):
            run(checkpoints=Checkpoints(path, every_seconds=0))
    assert read(path)["state"]["step"] == 3
    assert weights_of(run(checkpoints=Checkpoints(path, resume=True)).model) == weights_of(run().model)


def test_an_infinite_gradient_names_its_parameter():
    class Rooted(Imitation):
        taps = ("m", "b.bias")

        def __call__(self, found: Any, target: Any, share: float) -> Any:
            loss, parts = super().__call__(found, target, share)
            return loss + (found["b.bias"] - found["b.bias"].detach()).square().sum().sqrt(), parts

    with pytest.raises(TrainingError, match=r"the gradient of 'b.bias' of layer 'tell' became NaN or infinite"):
        run(aim=Rooted(network(1)))


def test_a_loss_that_is_not_finite_by_itself_names_its_term():
    class Nan(Imitation):
        def __call__(self, found: Any, target: Any, share: float) -> Any:
            loss, parts = super().__call__(found, target, share)
            return loss * math.nan, {**parts, "angle": math.nan}

    with pytest.raises(TrainingError, match=r"the loss term 'angle' became NaN or infinite on 0\d\d, though"):
        run(aim=Nan(network(1)))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_step_keeps_everything_and_says_so(tmp_path: Path, number: signal.Signals):
    path = tmp_path / "kept" / "c.rwt"

    def interrupt(step: int, *_: object) -> None:
        if step == 5:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"interrupted after 5 of 30 steps; go on with --resume from .*c.rwt$"):
        run(checkpoints=Checkpoints(path), progress=interrupt)
    assert signal.getsignal(number) is before
    told: list[int] = []
    found = run(checkpoints=Checkpoints(path, resume=True), progress=lambda step, *_: told.append(step))
    assert told[0] == 6 and weights_of(found.model) == weights_of(run().model)
    with pytest.raises(Interrupted, match=r"interrupted after 5 of 30 steps; nothing was kept$"):
        run(progress=interrupt)


def test_bad_settings_are_one_sentence():
    for field, value in (("steps", 0), ("batch", True), ("lr", -1.0), ("ema", 1.0), ("optimizer", "lion"),
                         ("clip", math.inf), ("precision", "fp8"), ("device", "tpu"), ("patience", -1)):  # fmt: skip
        with pytest.raises(InputError, match=f"^{field} is "):
            Schedule(**{field: value})
    with pytest.raises(InputError, match=r"batch of 3, but the feed one of 4"):
        train(Student(network()), Imitation(network(1)), Feed(pictures(4), TASK, 4), replace(SHORT, batch=3))
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match=r"PyTorch finds no GPU here"):
            run(replace(SHORT, device="cuda"))


def test_run_all_gives_results_in_order_and_holds_few():
    drawn: list[int] = []

    def inputs() -> Any:
        for k in range(20):
            drawn.append(k)
            yield torch.full((1, 3, 16, 16), float(k))

    student = Student(network())
    for k, found in enumerate(run_all(student, inputs(), workers=3)):
        assert len(drawn) <= k + 4 + 1
        assert (
            torch.equal(found["y"], student(torch.full((1, 3, 16, 16), float(k)))["y"]) and not found["y"].requires_grad
        )
