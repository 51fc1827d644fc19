"""Budgets of classes, sizes and recall: what each notices, what it leaves alone, and how a wrong wish is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from roadworthy.check.accuracy import Predictions, Reference, labels_of, sizes_of
from roadworthy.check.budgets import LEAST_LABELS, Budget, budgets_for, check_wishes, wishes
from roadworthy.check.judge import Judge
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.samples import Samples
from roadworthy.detect.detections import Detections, Truth
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError
from roadworthy.model.task import Task

NAMES = ("person", "bicycle", "traffic light", "unseen")
TASK = Task(
    Preprocess((64, 64)), DecodeSpec("yolox", 4, (64, 64), (8,), class_names=NAMES, score_threshold=0.5)
)  # fmt: skip
CLASSES = replace(TASK, decode=replace(TASK.decode, kind="classify"))
RAW = replace(TASK, decode=replace(TASK.decode, kind="raw"))


def scene(images: int = 40) -> tuple[Reference, Predictions]:
    """Boxes of three classes, each of one size (20, 60 and 150 pixels), all found with scores from 0.55 up."""
    rng = np.random.default_rng(0)
    truths, found = [], []
    for _ in range(images):
        side = np.array([20.0, 60.0, 150.0])
        corner = np.stack([np.array([0.0, 50.0, 200.0]), rng.uniform(0, 50, 3)], axis=1)
        boxes = np.concatenate([corner, corner + side[:, None]], axis=1)
        truths.append(Truth.of(boxes, np.arange(3)))
        found.append(Detections(boxes, rng.uniform(0.55, 1, 3), np.arange(3)))
    return Reference("labels", tuple(truths)), Predictions(tuple(found))


def without(predictions: Predictions, kind: int, share: float) -> Predictions:
    """This class is lost on the first images."""
    count = round(share * len(predictions.detections))
    return Predictions(
        tuple(d.keep(d.classes != kind) if k < count else d for k, d in enumerate(predictions.detections))
    )


def judge_with(reference: Reference, original: Predictions, max_drop: float = 100.0, **wish: object) -> Judge:
    budgets = budgets_for(TASK, labels_of(reference, TASK), sizes_of(reference), **wish)  # type: ignore[arg-type]
    return Judge(TASK, Samples(()), original, reference, max_drop, budgets=budgets)


@pytest.mark.parametrize(
    ("wish", "broken"),
    [
        ({"per_class": (("person", 5.0),)}, ["drop of class person"]),
        ({"per_class": (("0", 5.0),)}, ["drop of class person"]),
        ({"per_class": (("*", 5.0),)}, ["drop of class person"]),
        ({"per_class": (("Bicycle", 5.0), ("traffic light", 0.0))}, []),
        ({"per_class": (("person", 30.0), ("*", 5.0))}, []),
        ({"per_size": (("small", 5.0), ("large", 0.0))}, ["drop of small objects"]),
        ({"per_size": (("*", 5.0),)}, ["drop of small objects"]),
        ({"recall": 5.0}, ["drop of recall"]),
        ({"recall": 10.0}, []),
    ],
)
def test_a_quarter_of_one_class_is_lost_behind_a_drop_that_the_whole_allows(wish: dict, broken: list[str]) -> None:
    """All persons of ten images of forty: 25 points of AP of persons and of small objects, 8.3 of mAP and recall."""
    reference, original = scene()
    judge = judge_with(reference, original, 10.0, **wish)
    judged = judge(without(original, 0, 0.25))
    assert 8 < judged.drop < 9
    assert [v.budget.name for v in judged.broken] == broken and judged.holds == (not broken)
    fine = judge(original)
    assert fine.holds and [v.drop for v in fine.verdicts] == [0] * len(judge.budgets)


def test_rows_carry_the_drop_its_interval_and_the_number_of_labels() -> None:
    reference, original = scene()
    judge = judge_with(
        reference, original, per_class=(("person", 5.0), ("*", 2.0)), per_size=(("*", 30.0),), recall=9.0
    )
    rows = {r["name"]: r for r in judge.rows(without(original, 0, 0.25), 0.5, 0)}
    assert list(rows) == [
        "accuracy drop", "drop of class person", "drop of class bicycle", "drop of class traffic light",
        "drop of small objects", "drop of medium objects", "drop of large objects", "drop of recall",
    ]  # fmt: skip
    person = rows["drop of class person"]
    assert person["measured"] == pytest.approx(25, abs=1) and person["verdict"] == "broken"
    assert 10 < person["interval"][0] < person["measured"] < person["interval"][1] < 42
    assert person["note"] == "on 40 labels" and person["metric"] == "AP of one class"
    assert rows["drop of class bicycle"]["verdict"] == rows["drop of small objects"]["verdict"] == "holds"
    assert rows["drop of recall"]["measured"] == pytest.approx(100 / 12)
    assert rows["drop of recall"]["verdict"] == "holds"


def test_recall_is_that_of_the_threshold_that_the_candidate_ships() -> None:
    """Scores fall by a third: mAP does not move at all, recall collapses, and another threshold brings it back."""
    reference, original = scene()
    faint = Predictions(
        tuple(Detections(d.boxes_xyxy, d.scores * np.float32(0.67), d.classes) for d in original.detections)
    )
    judge = judge_with(reference, original, 0.0, recall=1.0)
    judged = judge(faint)
    assert judged.drop == 0 and not judged.holds and judged.verdicts[-1].drop > 30  # type: ignore[operator]
    assert judge(faint, 0.36).holds


def test_what_no_image_shows_is_not_measured_and_not_held() -> None:
    reference, original = scene()
    judge = judge_with(reference, original, per_class=(("unseen", 5.0),))
    judged = judge(original)
    assert [v.word for v in judged.verdicts] == ["holds", "not measured"]
    (_, row) = judge.rows(original, 0.5, 0)
    assert row["measured"] is None and row["interval"] is None and row["verdict"] == "not measured"
    assert row["note"] == "no test image has a label of it that counts; give images that show it"
    drawn = replace(reference, kind="labels drawn")
    note = judge_with(drawn, original, per_class=(("unseen", 5.0),)).rows(original, 0.5, 0)[1]["note"]
    assert note == (
        "the original finds none on the test images; give images that show it; without labels: against labels drawn"
    )


def test_a_limit_for_every_class_asks_for_labels_enough() -> None:
    labels = {0: LEAST_LABELS - 1.0, 1: LEAST_LABELS + 5.0, 2: LEAST_LABELS + 9.0}
    found = budgets_for(TASK, labels, {}, per_class=(("*", 2.0),))
    assert [b.called for b in found] == ["traffic light", "bicycle"]
    (named,) = budgets_for(TASK, labels, {}, per_class=(("person", 2.0),))  # asked for by name: with few, too
    assert named == Budget("class", 2.0, 0, "person", LEAST_LABELS - 1)
    (none,) = budgets_for(TASK, {0: 3.0}, {}, per_class=(("*", 2.0),))
    assert none.which is None and none.name == "drop of class with at least 20 labels"


@pytest.mark.parametrize("labelled", [True, False])
def test_a_class_of_a_classifier(labelled: bool) -> None:
    """Twelve images of each of three classes; class 1 is taken for 2 on nine of them."""
    truth = np.repeat(np.arange(3), 12)
    sure = np.full((36, 4), 0.02, np.float32)
    sure[np.arange(36), truth] = 0.94
    wrong = sure.copy()
    wrong[12:21] = np.roll(sure[12:21], 1, axis=1)
    reference = Reference("labels", labels=truth) if labelled else Reference("its own", probabilities=sure)
    budgets = budgets_for(CLASSES, labels_of(reference, CLASSES), {}, (("bicycle", 10.0), ("person", 10.0)))
    judge = Judge(CLASSES, Samples(()), Predictions(scores=sure), reference, 30.0, budgets=budgets)
    judged = judge(Predictions(scores=wrong))
    assert [v.word for v in judged.verdicts] == ["holds", "broken", "holds"]
    lost = 75.0 if labelled else 100 * 9 * (0.94 - 0.0) / (12 * 0.94 + 24 * 0.02)
    assert judged.verdicts[1].drop == pytest.approx(lost, abs=1e-3)
    row = judge.rows(Predictions(scores=wrong), 0.3, 0)[1]
    assert row["interval"][0] < row["measured"] < row["interval"][1] and row["metric"] == "top-1 of one class"
    assert row["note"].startswith("on 12 labels only")


@pytest.mark.parametrize(
    ("task", "wish", "words"),
    [
        (
            TASK,
            {"per_class": (("persn", 1.0),)},
            r"'persn' is not among the 4 classes that DATA names; did you mean person\?",
        ),
        (
            TASK,
            {"per_class": (("zebra", 1.0),)},
            "'zebra' is not among the 4 classes that DATA names; they are person, bic",
        ),
        (TASK, {"per_class": (("4", 1.0),)}, "'4' is not among the 4 classes"),
        (TASK, {"per_size": (("huge", 1.0),)}, "names the size 'huge'; known are small, medium, large"),
        (
            CLASSES,
            {"per_size": (("small", 1.0),)},
            "--max-drop-size cannot be measured on a classify task; leave it out",
        ),
        (CLASSES, {"recall": 1.0}, "--max-drop-recall cannot be measured on a classify task"),
        (RAW, {"per_class": (("person", 1.0),)}, "--max-drop-class cannot be measured on a raw task; .* --min-sqnr"),
        (
            replace(TASK, decode=replace(TASK.decode, class_names=())),
            {"per_class": (("person", 1.0),)},
            "'person' is not among 0 to 3; the classes have no names",
        ),
    ],
)
def test_wishes_that_cannot_be_held(task: Task, wish: dict, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        budgets_for(task, {}, {}, source="DATA", **wish)
    assert "\n" not in str(caught.value)


def test_wishes_are_read_from_words() -> None:
    assert wishes("--x", ("person=0.5", "2", "a=b=1")) == (("person", 0.5), ("*", 2.0), ("a=b", 1.0))
    for text, words in (("person=abc", "'person=abc' does not end in a number"), ("=2", "names nothing before")):
        with pytest.raises(InputError, match=words):
            wishes("--max-drop-class", (text,))
    for given, words in (
        ((("person", 101.0),), "--max-drop-class person is 101; give points between 0 and 100"),
        ((("*", float("nan")),), "--max-drop-class is nan; give points"),
        ((("person", 1.0), ("person", 2.0)), "person is given twice"),
    ):
        with pytest.raises(InputError, match=words):
            check_wishes("--max-drop-class", given)
