"""Budgets of classes, sizes and recall, and the refitted threshold, from the command to the files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from small import SIDE, place

from command import roadworthy
from onnx_graphs import N, build
from roadworthy.check.budgets import Budget, Verdict
from roadworthy.check.judge import Judgement
from roadworthy.check.operating import Refit
from roadworthy.console import accuracy_table
from roadworthy.data.dataset import Dataset
from roadworthy.data.samples import Sample, Samples
from roadworthy.data.street import CLASS_NAMES
from roadworthy.detect.detections import Truth
from roadworthy.detect.evaluate import Interval
from roadworthy.detect.figures import Drops
from roadworthy.errors import InputError, UnsupportedError
from roadworthy.jobs import compress as job
from roadworthy.jobs import pipeline, threshold
from roadworthy.jobs.assess import _drops
from roadworthy.jobs.compress import Outcome, Settings, compress
from roadworthy.jobs.evidence import _recall_sentence
from roadworthy.jobs.sample import detector, scenes
from roadworthy.jobs.search import Search
from roadworthy.jobs.threshold import fit_images
from roadworthy.jobs.trial import Ui
from roadworthy.model.model import load
from roadworthy.recipe import SetThreshold
from roadworthy.run.targets import TARGETS

pytestmark = pytest.mark.usefixtures("speeds")
QUICK = {"target": "ort", "effort": "quick", "threads": 1, "max_drop": 50.0}
NATIVE = pytest.mark.skipif(not TARGETS["native"].available(), reason="the native engine is not built")


def street(out: Path, **options: Any) -> Outcome:
    """The embedded detector on a few scenes; the first class is not labelled on those to test on."""
    kept = []
    for sample in scenes(8, 1001, "test"):
        truth = sample.truth
        assert truth is not None
        fields = ("boxes_xyxy", "classes", "areas", "ignore")
        rest = Truth(*(getattr(truth, field)[truth.classes != 0] for field in fields))
        kept.append(Sample(sample.name, load=sample.load, key=sample.key, truth=rest))
    test = Samples(kept, "boxes", CLASS_NAMES)
    data = Dataset(scenes(6, 1000, "calibration"), test, "boxes", CLASS_NAMES, "a few scenes")
    return compress(detector(), data, out, Settings(**{**QUICK, **options}))


@NATIVE
def test_budgets_and_a_refitted_threshold_from_the_job_to_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every kind of budget stands in the report; the first class has no labels left on the test images, so its budget
    is not measured, which is no `holds`. The threshold is in the ONNX file's task and in the plan's, so in `Detector`
    and the C API; the recipe gives the same bytes."""
    import roadworthy as rw

    own = load(detector()).task
    assert own is not None and own.decode.score_threshold > 0.1
    monkeypatch.setattr(threshold, "refit", lambda *_, **__: Refit(0.3, 0.0625, 80, None, 6, "planted"))
    none, some = CLASS_NAMES[:2]
    budgets = {
        "max_drop_class": ((none, 5.0), (some, 90.0)), "max_drop_size": (("medium", 90.0),), "max_drop_recall": 100.0,
    }  # fmt: skip
    out = tmp_path / "out"
    outcome = street(out, target="native", **budgets)
    report = outcome.report

    rows = {b["name"]: b for b in report["budgets"]}
    assert list(rows)[:5] == [
        "accuracy drop", f"drop of class {none}", f"drop of class {some}", "drop of medium objects", "drop of recall",
    ]  # fmt: skip
    assert rows[f"drop of class {none}"]["verdict"] == "not measured"
    assert outcome.exit_code == 3 and f"NOT MEASURED: drop of class {none}" in report["summary"][0]
    assert "Budgets not measured" in (out / "report.html").read_text()
    before, after = (report["accuracy"][side] for side in ("original", "compressed"))
    assert rows[f"drop of class {some}"]["measured"] == pytest.approx(
        before["per_class"][some] - after["per_class"][some]
    )
    assert rows["drop of medium objects"]["measured"] == pytest.approx(before["medium"] - after["medium"])
    assert rows["drop of recall"]["measured"] == pytest.approx(before["recall"] - after["recall"])
    assert all(low <= high for low, high in (rows[n]["interval"] for n in list(rows)[2:5]))

    assert yaml.safe_load((out / "recipe.yaml").read_text())["steps"][-1] == {"set_threshold": {"value": 0.0625}}
    task = load(out / "model.onnx").task
    assert task is not None and task.decode.score_threshold == after["threshold"] == 0.0625
    found = rw.Detector(out / report["result"]["path"], threads=1).detect(scenes(1, 1001, "test")[0].image())
    assert len(found) and 0.0625 <= found.scores.min() < own.decode.score_threshold
    assert report["task"]["decode"]["score_threshold"] == 0.0625  # of what is shipped
    operating = report["operating"]
    assert (operating["original"], operating["compressed"]) == (own.decode.score_threshold, 0.0625)
    assert (operating["why"], operating["images"]) == ("planted", 6)
    assert (before["recall"], after["recall"]) == pytest.approx((operating["recall"][0], operating["recall"][2]))
    assert operating["recall"][2] >= operating["recall"][1]

    monkeypatch.setattr(threshold, "refit", None)  # a recipe is replayed as it is
    again = street(tmp_path / "again", target="native", recipe=str(out / "recipe.yaml"), **budgets)
    for file in ("model.onnx", "model.rwp"):
        assert (tmp_path / "again" / file).read_bytes() == (out / file).read_bytes()
    assert again.report["operating"]["recall"] == operating["recall"]
    assert again.report["operating"]["why"] == "as the recipe says"


def test_budgets_that_a_candidate_breaks_are_named_while_it_is_judged():
    verdicts = tuple(Verdict(b, d) for b, d in ((Budget("whole", 0.5), 0.1), (Budget("recall", 1.0), 3.0),
                                                (Budget("size", 1.0, "large", "large"), None)))  # fmt: skip
    model, noted, ui = load(detector()), [], Ui()
    ui.note = noted.append  # type: ignore[method-assign, assignment]

    def told(holds: bool, *some: Verdict) -> str:
        judge: Any = type(
            "Fixed", (), {"samples": (), "__call__": lambda *_: Judgement("mAP", 30.0, 0.1, holds, some)}
        )()
        trial: Any = SimpleNamespace(name="int8", deployed=b"", seconds=0.0)
        remember: Any = lambda *_: None  # noqa: E731
        assert model.task is not None
        Search(model, model.task, Samples(()), judge, "ort", "quick", 0, 1, ui, remember).evaluate(trial)
        return str(noted[-1])

    assert told(False, *verdicts) == "int8 on ort: mAP 30.00, drop +0.10; breaks: drop of recall"
    assert told(True, verdicts[0]) == "int8 on ort: mAP 30.00, drop +0.10"


def test_recall_that_falls_by_more_than_a_point_is_said():
    def said(before: float, without: float, after: float, own: float) -> list[str]:
        return _recall_sentence({"original": 0.3, "compressed": own, "recall": [before, without, after]})

    assert said(60.0, 45.0, 52.5, 0.25) == [
        "RECALL FELL by 7.5 points at the operating threshold: 60.0 -> 52.5, at a score of 0.3, refitted to 0.25"
        " (without that 45.0)."
    ]
    assert said(60.0, 45.0, 45.0, 0.3)[0].endswith("at a score of 0.3.")
    assert said(60.0, 45.0, 59.2, 0.2) == said(60.0, 60.0, 60.5, 0.3) == _recall_sentence(None) == []


def test_the_command_takes_budgets_and_says_what_became_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(place(tmp_path))
    args = ["compress", "model.onnx", "--data", "images", "--task", "task.yaml", "--target", "ort", "--threads", 1,
            "--effort", "quick", "--max-drop", 100]  # fmt: skip
    ran = roadworthy(capfd, *args, "--max-drop-class", "0=100", "--max-drop-class", "2=100", "--out", "out")
    assert ran.code == 0, ran.err
    assert "budget drop of class 0: " in ran.out and "budget drop of class 2: " in ran.out
    report = json.loads(Path("out/report.json").read_text())
    assert report["operating"] is None and "set_threshold" not in report["recipe"]  # a classifier has no threshold
    ran = roadworthy(capfd, *args, "--max-drop-class", "50", "--out", "every")
    assert ran.code == 3 and "with at least 20 labels: at most 50: NOT MEASURED" in ran.out
    told = roadworthy(capfd, *args, "--max-drop-class", "3=1", "--out", "o").refusal
    assert told == "--max-drop-class '3' is not among 0 to 2; the classes have no names, as neither the model nor the data gives any"  # fmt: skip  # noqa: E501
    assert "does not end in a number" in roadworthy(capfd, *args, "--max-drop-class", "cat=x", "--out", "o").refusal
    assert (
        "cannot be measured on a classify task"
        in roadworthy(capfd, *args, "--max-drop-recall", 1, "--out", "o").refusal
    )
    assert "--max-drop-recall is -1" in roadworthy(capfd, *args, "--max-drop-recall=-1", "--out", "o").refusal
    assert not Path("o").exists()


def test_the_step_is_for_detectors(tmp_path: Path):
    model = load(detector())
    made = SetThreshold(0.5)(model, Samples(()))
    assert made.task is not None and model.task is not None
    assert made.task.decode.score_threshold == 0.5 != model.task.decode.score_threshold
    classify = replace(model.task, decode=replace(model.task.decode, kind="classify"))
    with pytest.raises(InputError, match=r"set_threshold is for detectors, and .* has a classify task; leave it out"):
        SetThreshold(0.5)(model.with_task(classify), Samples(()))


def test_images_that_did_not_calibrate_are_fitted_on_first():
    calibration = scenes(10, 1000, "calibration")
    used = calibration.take(4, 0)
    names = {s.name for s in used}
    fit = fit_images(calibration, used, 8)
    assert [s.name in names for s in fit] == [False] * 6 + [True] * 2
    assert fit.kind == "boxes" and len({s.name for s in fit}) == 8


def test_eval_tells_what_was_lost_where_the_worst_class_first(capsys: pytest.CaptureFixture[str]):
    def lost(drop: float) -> Interval:
        return Interval(drop, drop - 1, drop + 1)

    task = load(detector()).task
    assert task is not None
    drops = Drops(lost(0.5), {0: lost(0.25), 2: lost(3.0), 1: lost(-1.0)}, {"small": lost(2.0)}, lost(4.0),
                  {0: 60.0, 1: 25.0, 2: 3.0, "small": 40.0})  # fmt: skip
    rows = _drops(drops, task)
    assert [r["of"] for r in rows] == [
        "recall at the operating threshold", "small objects", *(task.names[c] for c in (2, 0, 1))
    ]  # fmt: skip
    accuracy_table({"metric": "mAP", "images": 9, "reference": "labels", "rows": [], "findings": [], "drops": rows,
                    "accuracy": {"model": {}}})  # fmt: skip
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    told = [
        "recall at the operating threshold +4.00 +3.00 to +5.00", "small objects +2.00 +1.00 to +3.00 40",
        f"{task.names[2]} (few labels) +3.00 +2.00 to +4.00 3", f"{task.names[1]} -1.00 -2.00 to +0.00 25",
    ]  # fmt: skip
    assert [lines.index(line) for line in told] == sorted(lines.index(line) for line in told)


# What used to be found late, or not at all


def test_a_plan_takes_no_task(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    (tmp_path / "model.rwp").write_bytes(b"RWPL" + bytes(200))
    args = ("eval", tmp_path / "model.rwp", "--data", tmp_path, "--task", "yolox")
    assert "is a native plan and carries its task, so --task cannot change it" in roadworthy(capfd, *args).refusal


@NATIVE
def test_an_instruction_set_that_is_not_there_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ROADWORTHY_ISA", "nonsense")
    monkeypatch.setattr(job, "load", None)  # nothing is loaded before
    with pytest.raises(InputError, match="`nonsense` is not available here; choose one of portable"):
        compress(detector(), "images", tmp_path / "out")
    monkeypatch.setenv("ROADWORTHY_ISA", "portable")
    Settings(target="ort").check()


@NATIVE
def test_an_operator_that_native_lacks_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(place(tmp_path))
    rng = np.random.default_rng(0)
    nodes = [
        N("Conv", ["x", "w"], ["a"], name="stem"),
        N("Det", ["a"], ["d"], name="odd"),
        N("Flatten", ["d"], ["y"], name="flat"),
    ]
    weights = {"w": rng.normal(size=(3, 3, 1, 1)).astype(np.float32)}
    onnx.save(build(nodes, weights, (1, 3, SIDE, SIDE)), "odd.onnx")

    def measured(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "judge_original", measured)
    with pytest.raises(UnsupportedError, match="Det"):
        compress("odd.onnx", "images", "out", Settings(**{**QUICK, "target": "native", "task": "task.yaml"}))
    assert not Path("out").exists()
    model = job.load("odd.onnx")
    left, (told,) = job.lowered(model, ("ort", "native"), Settings())
    assert left == ("ort",) and told.startswith("not tried on native: ") and "Det" in told
