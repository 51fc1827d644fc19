"""The step that trains: which images it sees, that it can be replayed and interrupted, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_graphs import N, build, rand
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError, MissingExtraError
from roadworthy.jobs.search import Search
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import to_qdq
from roadworthy.model.task import Task
from roadworthy.recipe import CorrectBias, Finetune, Fold, Quantize, Recipe, read_recipe
from roadworthy.run import torch as bridge
from roadworthy.steps import finetune
from roadworthy.steps.context import Context, divide, held_out
from roadworthy.steps.training import Training

SIDE = 16
TASK = Task(
    Preprocess((SIDE, SIDE), resize="stretch", scale=1 / 255),
    DecodeSpec("classify", num_classes=3, scores_are_logits=True),
)
STEP = Finetune(steps=24, batch=2, lr=0.03, watched=4, held_out=5, evaluations=3)
TRAINED = Recipe((Fold(), Quantize("native", weight_bits=3), CorrectBias(), STEP), images=8)


@pytest.fixture(autouse=True)
def nothing_remembered() -> Iterator[None]:
    Training.forget()
    yield
    Training.forget()


def network(classes: int = 3) -> Model:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(0, 0.4, (8, 3, 3, 3)), "v": rng.normal(0, 0.4, (classes, 8, 1, 1))}
    nodes = [
        N("Conv", ["x", "w"], ["a"], name="stem", pads=[1, 1, 1, 1]),
        N("Relu", ["a"], ["b"], name="relu"),
        N("Conv", ["b", "v"], ["c"], name="tell"),
        N("GlobalAveragePool", ["c"], ["d"], name="pool"),
        N("Flatten", ["d"], ["y"], name="flat"),
    ]
    made = {k: v.astype(np.float32) for k, v in weights.items()}
    return load(build(nodes, made, (1, 3, SIDE, SIDE)), task=TASK)


def images(count: int = 40, opened: list[str] | None = None, classes: bool = False) -> Samples:
    """Noise of different brightness.   opened: is told every image that is opened."""

    def sample(index: int) -> Sample:
        def image() -> np.ndarray:
            if opened is not None:
                opened.append(f"{index:02d}")
            rng = np.random.default_rng([4, index])
            return rng.integers(0, 60 + 5 * (index % 40), (SIDE, SIDE, 3), np.uint8)

        return Sample(f"{index:02d}", load=image, key=f"noise {index}", label=index % 3 if classes else None)

    return Samples((sample(k) for k in range(count)), "classes" if classes else "images")


def names(samples: Samples) -> set[str]:
    return {s.name for s in samples}


# Which images


def test_no_image_serves_two_ends_and_the_search_compares_on_those_that_are_held_out():
    every, original = images(60), network()
    search = Search(original, TASK, every, None, "native", "quick", 3, 1, None, None)  # type: ignore[arg-type]
    chosen = search.recipe().choose(every)
    division = divide(Context(original, every, chosen, 3), search.held_out_count, 4)
    assert names(division.held_out) == names(search.held_out) and len(search.held_out) == 12
    assert len(division.watched) == 4 and len(division.trained) == 60 - 12 - 4
    assert not names(division.held_out) & names(chosen)
    assert names(division.trained) | names(division.watched) | names(division.held_out) == names(every)
    assert names(held_out(every, chosen, 12, 4)) != names(search.held_out)  # another seed, other images


def test_a_copy_under_another_name_serves_the_end_of_its_original():
    every = images(60)
    twins = Samples([*every, *(Sample(f"copy of {s.name}", load=s.load, key=s.key) for s in every)])
    division = divide(Context(network(), twins, twins.take(30, 0), 0), 12, 8)
    ends = [{s.key for s in part} for part in (division.held_out, division.watched, division.trained)]
    assert all(ends) and not (ends[0] & ends[1] or ends[0] & ends[2] or ends[1] & ends[2])
    assert not ends[0] & {s.key for s in twins.take(30, 0)}
    alike = Samples(Sample(f"{k}", load=every[0].load, key="one") for k in range(60))
    search = Search(network(), TASK, alike, None, "native", "quick", 3, 1, None, None)  # type: ignore[arg-type]
    assert search.held_out is alike  # there is no other image


def test_a_limit_on_images_takes_some_of_those_that_are_left():
    every = images()
    whole = divide(Context(network(), every, every[:8], 0), 5, 4)
    some = divide(Context(network(), every, every[:8], 0), 5, 4, most=7)
    assert len(some.trained) == 7 and names(some.trained) < names(whole.trained)
    assert names(some.watched) == names(whole.watched) and names(some.held_out) == names(whole.held_out)


def test_too_few_images_are_refused_with_the_number_that_would_do():
    with pytest.raises(InputError, match=r"12 calibration images are too few to hold any out .* at least 22"):
        divide(Context(network(), images(12), images(12)[:4], 0), 2, 24)
    every = images(22)
    assert len(divide(Context(network(), every, every[:4], 0), 2, 24).watched) == 4
    assert len(divide(Context(network(), images(12), images(12)[:4], 0), 0, 0).trained) == 12  # nothing watched
    with pytest.raises(InputError, match=r"12 calibration images are .* at least 30$"):  # 4 could be held out, not 10
        divide(Context(network(), images(12), images(12)[:8], 0), 10, 24)
    assert len(divide(Context(network(), images(30), images(30)[:8], 0), 10, 24).watched) == 4
    with pytest.raises(InputError, match=r"29 calibration images are .* at least 30$"):
        divide(Context(network(), images(29), images(29)[:8], 0), 10, 24)
    with pytest.raises(InputError, match=r"^1 calibration image is too few"):
        divide(Context(network(), images(1), images(1), 0), 0, 24)


# Training


def test_training_opens_no_image_that_is_held_out():
    pytest.importorskip("torch")
    opened: list[str] = []
    every, original = images(40, opened), network()
    model = TRAINED.untrained.apply(original, every)
    opened.clear()
    context = Context(original, every, TRAINED.choose(every), 0)
    STEP.within(model, context)
    division = STEP.division(context)
    assert set(opened) <= names(division.trained) | names(division.watched)
    assert set(opened) & names(division.trained) and names(division.watched) <= set(opened)
    assert len(division.held_out) == 5 and not set(opened) & names(division.held_out)


def test_a_recipe_that_trains_replays_to_the_same_bytes(tmp_path: Path):
    pytest.importorskip("torch")
    every, original = images(), network()
    first = to_qdq(TRAINED.apply(original, every))
    record = Training.heard[-1]
    assert record.steps == 24 and record.distances is not None and record.distances[1] <= record.distances[0]
    assert (record.images, record.watched, record.held_out) == (31, 4, 5)
    (tmp_path / "r.yaml").write_text(TRAINED.to_yaml())
    again, _ = read_recipe(tmp_path / "r.yaml")
    assert again == TRAINED
    Training.forget()
    with Training.kept_on(None, workers=3):  # threads change nothing
        assert to_qdq(again.apply(original, every)) == first
    assert to_qdq(TRAINED.untrained.apply(original, every)) != first  # it was not for nothing
    other = replace(TRAINED, seed=1)
    assert to_qdq(other.apply(original, every)) != first


def test_an_interrupted_training_goes_on_to_the_same_bytes(tmp_path: Path):
    pytest.importorskip("torch")
    every, original = images(), network()
    undisturbed = to_qdq(TRAINED.apply(original, every))
    Training.forget()
    told: list[int] = []

    def stop(done: int, *_: Any) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Training.kept_on(tmp_path, stop):
        TRAINED.apply(original, every)
    assert len(list(tmp_path.glob("training-*.rwt"))) == 1
    with Training.kept_on(tmp_path, lambda done, *_: told.append(done)):
        assert to_qdq(TRAINED.apply(original, every)) == undisturbed
    assert told == list(range(4, 25))


def test_one_process_trains_once():
    pytest.importorskip("torch")
    every, original, told = images(), network(), []
    with Training.kept_on(None, lambda done, *_: told.append(done)):
        first, again = (TRAINED.apply(original, every) for _ in range(2))
    assert len(told) == 24 and again is first and len(Training.heard) == 2


def test_a_float_network_learns_from_another():
    pytest.importorskip("torch")
    every, original = images(), network()
    student = load(build_noisy(original), task=TASK)
    made = Recipe((replace(STEP, steps=30, lr=0.01),), images=8).apply(student, every, original)
    before, after = Training.heard[-1].distances or (0.0, 0.0)
    assert after < 0.7 * before and not made.encodings


def build_noisy(model: Model) -> bytes:
    from roadworthy.model import graph as g

    ir = g.clone(model.ir)
    rng = np.random.default_rng(1)
    for name in ("w", "v"):
        value = g.values(ir)[name]
        array = g.constant(value)
        assert array is not None
        g.set_constant(value, (array + rng.normal(0, 0.1, array.shape)).astype(np.float32))
    return g.to_bytes(ir)


# What is refused


def test_words_of_the_step_are_the_rows_of_the_tables():
    pytest.importorskip("torch")
    from roadworthy.run.torch.surrogates import GRADIENTS
    from roadworthy.train.augment import AUGMENTS
    from roadworthy.train.distill import TERMS
    from roadworthy.train.objective import LABELS
    from roadworthy.train.schedule import OPTIMIZERS, STATISTICS

    assert tuple(GRADIENTS) == finetune.GRADIENTS and tuple(AUGMENTS) == finetune.AUGMENTS
    assert tuple(TERMS) == finetune.TERMS and finetune.LABELS == LABELS
    assert OPTIMIZERS == finetune.OPTIMIZERS and STATISTICS == finetune.STATISTICS


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bridge, "available", lambda: False)
    with pytest.raises(MissingExtraError, match=r"fine-tuning needs PyTorch: .*roadworthy\[train\]"):
        TRAINED.apply(network(), images())


def test_a_quantized_teacher_and_missing_labels_are_refused():
    pytest.importorskip("torch")
    every, original = images(), network()
    model = TRAINED.untrained.apply(original, every)
    with pytest.raises(InputError, match=r"teacher .* is quantized"):
        STEP.within(model, Context(model, every, every[:8], 0))
    with pytest.raises(InputError, match="no labels that a classify task can learn from; leave labels at no"):
        replace(STEP, labels="yes").within(model, Context(original, every, every[:8], 0))
    known = images(classes=True)
    replace(STEP, labels="yes", steps=1).within(model, Context(original, known, known[:8], 0))


def test_settings_that_mean_nothing_are_refused():
    for wrong in ({"gradient": "luck"}, {"steps": 0}, {"noise": 0.0}, {"labels": "some"}, {"terms": ("hope",)},
                  {"terms": ("labels",)}, {"terms": ("logits",), "labels": "yes"}):  # fmt: skip
        with pytest.raises(InputError, match=r"`Finetune\."):
            Finetune(**wrong)
    assert Finetune(terms=("logits", "labels"), labels="yes").terms  # both say the same


def test_fewer_bits_learn_faster():
    from roadworthy.steps.finetune import learning_rate

    nodes, weights = [N("Conv", ["x", "w"], ["y"])], {"w": rand(4, 3, 1, 1)}
    model = load(build(nodes, weights, (1, 3, 5, 5), outputs=["y"]))

    def rate(bits: int) -> float:
        zero = np.zeros(4, np.int64)
        return learning_rate(
            model.with_encodings({"w": Encoding(np.full(4, 0.1, np.float32), zero, bits, True, 0)}, "q")
        )

    assert learning_rate(model) > rate(4) > rate(6) > rate(8) == 1e-5
