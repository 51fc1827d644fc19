"""Every term of the loss for every kind of output it speaks of: least where both sides agree, with the right slope.

Everything is in float64. A central difference over a step of 1e-6 is good to about 1e-9 of the values it is taken of.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_decoders import CASES

from roadworthy.check.judge import distance
from roadworthy.data.preprocess import Preprocess
from roadworthy.detect.decode import decode
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError
from roadworthy.model.task import Task

torch = pytest.importorskip("torch")

from roadworthy.train.distill import TERMS, Agreement, Boxes, Features, Logits, Scores  # noqa: E402
from roadworthy.train.labelled import Labels, SoftLabels, boxes_of  # noqa: E402
from roadworthy.train.reading import seen  # noqa: E402
from roadworthy.train.target import Target, temperature_at  # noqa: E402

CLASSIFIER = {
    "classify": (lambda r: {"y": r.normal(size=(1, 7))}, DecodeSpec("classify", 7, scores_are_logits=True)),
    "classify-softmax": (lambda r: {"y": r.dirichlet(np.ones(7), 1)}, DecodeSpec("classify", 7)),
    "classify-background": (
        lambda r: {"y": r.normal(size=(1, 8))}, DecodeSpec("classify", 7, scores_are_logits=True, background=0),
    ),
}  # fmt: skip
RAW = {"raw": (lambda r: {"y": r.normal(size=(1, 3, 4, 4)), "z": r.normal(size=(1, 5))}, DecodeSpec("raw"))}
HEADS = ("yolox", "yolox-logits", "yolov5", "yolov8", "dfl-maps", "dfl-plain", "fastestdet", "ssd-yxyx", "ssd")
OUTPUTS = [*HEADS, *CLASSIFIER, *RAW]


def kind_of(name: str) -> str:
    return "classify" if name in CLASSIFIER else "raw" if name in RAW else "detect"


def outputs_of(name: str, seed: int = 7) -> tuple[dict[str, Any], DecodeSpec]:
    """Outputs in float64, and how they are decoded."""
    if name in CASES:
        made, spec, *_ = CASES[name](np.random.default_rng(seed))
    else:
        make, spec = {**CLASSIFIER, **RAW}[name]
        made = make(np.random.default_rng(seed))
    found = {k: torch.from_numpy(np.array(v)).double() for k, v in made.items()}
    # Distances to the sides, where they are numbers, are positive in a network that was trained.
    return {k: v.abs() for k, v in found.items()} if name == "dfl-plain" else found, spec


def student_of(outputs: dict[str, Any], spec: DecodeSpec, terms: Any = None) -> Any:
    """What is seen, with the outputs as its features."""
    features = {terms: tuple(_image(v) for v in outputs.values())} if terms is not None else {}
    return replace(seen(outputs, tuple(outputs), spec), features=features)


def _image(x: Any) -> Any:
    return (
        x if x.ndim == 4 else x.reshape(1, -1, 1, 1) if x.ndim == 2 else x.movedim(-1, 1).reshape(1, x.shape[-1], -1, 1)
    )


def target_of(name: str, term: Any, seed: int = 7) -> Target:
    """One teacher, whose outputs are those of `name`; its detections or best class stand for labels."""
    outputs, spec = outputs_of(name, seed)
    teacher = student_of(outputs, spec, term)
    features = {key: tuple((x, 1 / len(outputs)) for x in found) for key, found in teacher.features.items()}
    truth: Any = None
    if kind_of(name) == "classify":
        truth = int(teacher.row[-7:].argmax())  # background, where there is one, comes first
    elif kind_of(name) == "detect":
        truth = labels(teacher)
    return Target((teacher,), (1.0,), (0,), features, truth, ((truth, 1.0),))


def labels(teacher: Any, count: int = 3) -> Any:
    """The likeliest few boxes of a teacher as labels, wherever they lie."""
    from roadworthy.detect.detections import Detections

    best, classes = teacher.scores.max(1)
    rows = best.topk(count).indices
    made = Detections(teacher.boxes[rows].numpy(), best[rows].clamp(max=1).numpy(), classes[rows].numpy())
    return boxes_of(made, (0, 0), teacher.boxes)


def settings() -> list[tuple[str, Any]]:
    found = []
    for key, make in TERMS.items():
        term = make()
        if isinstance(term, Features):
            found += [(f"{key}-{kind}", replace(term, kind=kind)) for kind in ("l2", "cosine", "channel")]
        else:
            found.append((key, term))
    return found


TRIED = [(name, key, term) for name in OUTPUTS for key, term in settings() if kind_of(name) in term.tasks]
IDS = [f"{name}-{key}" for name, key, _ in TRIED]


DETACHED = (Scores, SoftLabels, Labels)
"""Terms in which weights, or which cell answers for which box, follow the student without a slope of their own."""
SMOOTH = [(n, k, t) for n, k, t in TRIED if not isinstance(t, DETACHED) or kind_of(n) == "classify"]


@pytest.mark.parametrize("name, key, term", SMOOTH, ids=[f"{n}-{k}" for n, k, _ in SMOOTH])
def test_slope_is_what_differences_say(name: str, key: str, term: Any) -> None:
    target = target_of(name, term, seed=8)
    outputs, spec = outputs_of(name)

    def run(values: dict[str, Any]) -> Any:
        return term(student_of(values, spec, term), target, 0.3)

    given = {k: v.requires_grad_() for k, v in outputs.items()}
    slopes = torch.autograd.grad(run(given), list(given.values()), allow_unused=True)
    draw = torch.Generator().manual_seed(0)
    ways = [torch.randn(v.shape, generator=draw, dtype=torch.float64) for v in given.values()]
    wanted = sum(float((s * w).sum()) for s, w in zip(slopes, ways) if s is not None)
    ends = [run({k: v.detach() + e * w for (k, v), w in zip(outputs.items(), ways)}) for e in (1e-6, -1e-6)]
    found = float((ends[0] - ends[1]).detach()) / 2e-6
    assert found == pytest.approx(wanted, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name, key, term", TRIED, ids=IDS)
def test_a_step_downhill_goes_down(name: str, key: str, term: Any) -> None:
    target = target_of(name, term, seed=8)
    outputs, spec = outputs_of(name)
    given = [v.requires_grad_() for v in outputs.values()]
    before = term(student_of(outputs, spec, term), target, 0.3)
    slopes = torch.autograd.grad(before, given, allow_unused=True)
    steep = sum(float(s.square().sum()) for s in slopes if s is not None)
    if key == "distribution" and not spec.reg_max:
        assert steep == 0 and before == 0
        return
    assert steep > 0
    step = 1e-4 * float(before.detach()) / steep
    moved = {k: v.detach() - (0 if s is None else step * s) for (k, v), s in zip(outputs.items(), slopes)}
    lost = float(before.detach() - term(student_of(moved, spec, term), target, 0.3))
    assert 0.5e-4 * float(before.detach()) < lost < 2e-4 * float(before.detach())


AGREEING = [(n, k, t) for n, k, t in TRIED if not isinstance(t, Labels | SoftLabels)]


@pytest.mark.parametrize("name, key, term", AGREEING, ids=[f"{n}-{k}" for n, k, _ in AGREEING])
def test_zero_where_student_and_teacher_agree_and_flat_there(name: str, key: str, term: Any) -> None:
    outputs, spec = outputs_of(name)
    target = target_of(name, term)
    given = {k: v.requires_grad_() for k, v in outputs.items()}
    for share in (0.0, 0.5, 1.0):
        found = term(student_of(given, spec, term), target, share)
        assert abs(float(found.detach())) < 1e-9
    if not isinstance(term, Agreement | Boxes):  # 1 - IoU has a kink at its least, on purpose: small errors count too
        for slope in torch.autograd.grad(found, list(given.values()), allow_unused=True):
            assert slope is None or float(slope.abs().max()) < 1e-7


def test_temperature_falls_to_one():
    found = [temperature_at(4.0, share) for share in np.linspace(0, 1, 11)]
    assert found[0] == 4.0 and found[-1] == 1.0 and found == sorted(found, reverse=True)
    assert temperature_at(4.0, 0.5) == pytest.approx(2.5) and temperature_at(4.0, 2.0) == 1.0


def test_logits_as_in_the_paper():
    """T^2 KL of the softened distributions, written out."""
    target = target_of("classify", None, seed=8)
    outputs, spec = outputs_of("classify")
    p, q = (x.row.numpy() for x in (seen(outputs, ("y",), spec), target.teachers[0]))
    for start, share, t in ((4.0, 0.0, 4.0), (4.0, 1.0, 1.0), (3.0, 0.5, 2.0)):
        soft = [np.exp(v / t) / np.exp(v / t).sum() for v in (q, p)]
        wanted = t * t * (soft[0] * np.log(soft[0] / soft[1])).sum()
        assert float(Logits(temperature=start)(seen(outputs, ("y",), spec), target, share)) == pytest.approx(wanted)


def test_background_counts_little():
    """A hundred cells in which both see next to nothing change the loss less than one where the teacher sees much."""
    spec = DecodeSpec("yolov8", 2, (64, 64), scores_are_logits=True)
    wanted = torch.zeros(1, 101, 6, dtype=torch.float64)
    wanted[..., :4] = torch.tensor([32.0, 32.0, 20.0, 20.0])
    wanted[..., 4:] = -5.5
    wanted[0, 0, 4] = 2.0
    target = Target((seen({"y": wanted}, ("y",), spec),), (1.0,), (0,))
    one, many = wanted.clone(), wanted.clone()
    one[0, 0, 4] -= 1.0
    many[0, 1:, 4:] += 1.1  # from 0.004 to 0.012
    for term in (Scores(), Agreement()):
        losses = [float(term(seen({"y": x}, ("y",), spec), target, 0.0)) for x in (one, many)]
        assert losses[0] > 3 * losses[1] > 0


@pytest.mark.parametrize("name", ["yolox", "fastestdet", "yolov8", "ssd", "classify", "classify-softmax", "raw"])
def test_agreement_is_what_candidates_are_compared_by(name: str):
    """Without softness and with one class it is `judge.distance` itself, where all cells count in both."""
    outputs, spec = outputs_of(name)
    theirs, _ = outputs_of(name, seed=8)
    if name == "raw":
        outputs, theirs = ({"y": x["y"]} for x in (outputs, theirs))
    task = Task(Preprocess((64, 96)), spec)
    given = [{k: v.float().numpy() for k, v in x.items()} for x in (theirs, outputs)]
    if kind_of(name) == "detect":
        scores = [decode(g, spec)[1].max(1) for g in given]
        cells = (scores[0] > 0.05) | (scores[1] > 0.05)
        assert 0 < cells.sum() < 400
    term = Agreement(softness=0.0 if name == "raw" else 1e-9)
    target = Target((seen(theirs, tuple(theirs), spec),), (1.0,), (0,))
    found = float(term(seen(outputs, tuple(outputs), spec), target, 0.0))
    wanted = distance(*given, task)
    if (
        kind_of(name) == "detect"
    ):  # several classes: sqrt of the sum of squares is between the largest and sqrt(C) of it
        assert wanted * 0.9 < found < wanted * spec.num_classes**0.5 * 1.1
    else:
        assert found == pytest.approx(wanted, rel=1e-5)


def test_several_teachers_are_averaged_as_probabilities():
    one, other = target_of("classify", None, 8).teachers[0], target_of("classify", None, 9).teachers[0]
    outputs, spec = outputs_of("classify")
    both = Target((one, other), (0.25, 0.75), (0, 1))
    shares = 0.25 * torch.softmax(one.row, 0) + 0.75 * torch.softmax(other.row, 0)
    mean = Target((seen({"y": shares.log()[None]}, ("y",), spec),), (1.0,), (0,))
    student = seen(outputs, ("y",), spec)
    for term in (Logits(temperature=1.0), Agreement()):
        assert float(term(student, both, 0.0)) == pytest.approx(float(term(student, mean, 0.0)), rel=1e-12)
    alone = Target((one, other), (0.25, 0.75), (1,))  # the first has other outputs, and is left out
    assert float(Logits()(student, alone, 1.0)) == pytest.approx(
        float(Logits()(student, Target((other,), (1.0,), (0,)), 1.0))
    )


def test_boxes_of_several_teachers_are_the_mean_by_score():
    from roadworthy.train.distill import teacher_boxes

    spec = DecodeSpec("yolov8", 1, (64, 64))

    def teacher(x: float, score: float) -> Any:
        return seen({"y": torch.tensor([[[x, 32.0, 10.0, 10.0, score]]], dtype=torch.float64)}, ("y",), spec)

    target = Target((teacher(20, 0.9), teacher(40, 0.1)), (0.5, 0.5), (0, 1))
    boxes, best = teacher_boxes(target, torch.tensor([0]))
    assert boxes[0].tolist() == pytest.approx([22 - 5, 27, 22 + 5, 37]) and float(best[0]) == pytest.approx(0.5)


def test_unknown_comparison_is_refused():
    with pytest.raises(InputError, match="features are compared by 'l3'; use one of l2, cosine, channel"):
        Features(kind="l3")
