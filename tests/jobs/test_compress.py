"""The main job, whole, on models and data so small that it takes a second. Only the stopwatch is replaced."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import yaml
from small import SIDE, place, steady

import roadworthy as rw
from command import roadworthy, tree
from onnx_graphs import ort
from roadworthy.check import accuracy
from roadworthy.check.accuracy import Reference
from roadworthy.check.report_schema import validate
from roadworthy.data.dataset import Dataset
from roadworthy.data.samples import Sample, Samples
from roadworthy.data.street import CLASS_NAMES
from roadworthy.detect.detections import Truth
from roadworthy.errors import InputError
from roadworthy.jobs import original, output, pipeline, search, speed, threshold
from roadworthy.jobs.compress import FILES, Outcome, Settings, compress
from roadworthy.jobs.sample import detector, scenes
from roadworthy.jobs.stages import Stages, pack_reference, unpack_reference
from roadworthy.jobs.trial import Advance, Ui
from roadworthy.run import openvino
from roadworthy.run.targets import TARGETS

pytestmark = pytest.mark.usefixtures("speeds")
QUICK = {"target": "ort", "effort": "quick", "threads": 1}
RAW = f"preprocess: {{size_hw: [{SIDE}, {SIDE}], resize: stretch, color: rgb, scale: {1 / 255}}}\ndecode: {{kind: raw}}"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place(tmp_path))
    return tmp_path


def small(out: str = "out", data: str = "images", **options: Any) -> Outcome:
    """The small classifier; options of Settings, or of compress."""
    told = {k: options.pop(k) for k in ("force", "resume", "ui") if k in options}
    settings = Settings(**{**QUICK, "task": "task.yaml", **options})
    return compress("model.onnx", data, out, settings, **told)


def street(out: Path, **options: Any) -> Outcome:
    """The embedded detector on a handful of scenes."""
    data = Dataset(scenes(12, 1000, "calibration"), scenes(16, 1001, "test"), "boxes", CLASS_NAMES, "a few scenes")
    return compress(detector(), data, out, Settings(**{**QUICK, "max_drop": 5.0, **options}))


def model_bytes(outcome: Outcome) -> bytes:
    return (outcome.folder / "model.onnx").read_bytes()


# What is written


def test_a_detector_from_file_to_report_and_back_by_its_recipe(tmp_path: Path):
    outcome = street(tmp_path / "out")
    assert outcome.exit_code == 0 and outcome.report["verdict"] == "hold"
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted([*FILES, "out"])  # and no stages
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert validate(report) == validate(outcome.report)
    data = model_bytes(outcome)
    assert report["result"]["sha256"] == hashlib.sha256(data).hexdigest() and report["result"]["bytes"] == len(data)
    original = detector().read_bytes()
    assert report["original"]["sha256"] == hashlib.sha256(original).hexdigest()
    assert report["result"]["size_ratio"] == pytest.approx(len(original) / len(data)) and len(data) < len(original) / 3
    assert report["result"]["variant"] == "int8" and report["result"]["speed_ratio"] == 2.0
    weights = [t for t in onnx.load_from_string(data).graph.initializer if len(t.dims) == 4]
    codes = sum(np.prod(t.dims) for t in weights if t.data_type == onnx.TensorProto.INT8)
    assert codes > 0.98 * sum(np.prod(t.dims) for t in weights)
    a, b = report["accuracy"]["original"]["map"], report["accuracy"]["compressed"]["map"]
    assert report["accuracy"]["drop"] == pytest.approx(a - b) and a > 10
    assert {r["placement"] for r in report["layers"]} >= {"int8"}
    assert (tmp_path / "out/recipe.yaml").read_text() == report["recipe"]
    page = (tmp_path / "out/report.html").read_text()
    assert page.rstrip().endswith("</html>") and report["result"]["sha256"][:12] in page

    again = street(tmp_path / "again", recipe=str(tmp_path / "out/recipe.yaml"))
    assert model_bytes(again) == data
    assert not [w for w in again.report["warnings"] if "recipe" in w]


def test_figures_of_a_classifier_against_a_count_by_hand(here: Path):
    outcome = small(max_drop=100.0)
    report = outcome.report
    assert report["accuracy"]["metric"] == "top-1" and report["accuracy"]["reference"] == "labels"
    counted = _lot_of_test_images(report)
    for name, data in (("original", Path("model.onnx").read_bytes()), ("compressed", model_bytes(outcome))):
        right = 0
        for file, label in counted:
            image = cv2.resize(cv2.imread(f"images/{file}"), (SIDE, SIDE))[..., ::-1].transpose(2, 0, 1)[None]
            right += int(ort(data, image.astype(np.float32) / 255)["y"].argmax()) == label
        assert report["accuracy"][name]["top1"] == pytest.approx(100 * right / len(counted))


def _lot_of_test_images(report: dict[str, Any]) -> list[tuple[str, int]]:
    """The test half as the data reader divides it, whose own tests prove the division."""
    from roadworthy.data.readers import read

    test = read("images", split_seed=report["seed"]).test
    assert len(test) == report["data"]["test_images"]
    return [(s.name, int(s.name[:2]) % 3) for s in test]


def test_one_seed_gives_the_same_bytes_and_another_seed_other_images(here: Path):
    first, second = small("a", seed=3), small("b", seed=3)
    assert model_bytes(first) == model_bytes(second)
    assert Path("a/recipe.yaml").read_text() == Path("b/recipe.yaml").read_text()
    assert small("c", seed=4).report["data"]["content_id"] != first.report["data"]["content_id"]


def test_a_recipe_for_another_model_is_told(here: Path):
    small()
    document = yaml.safe_load(Path("out/recipe.yaml").read_text())
    document["made_with"]["model_sha256"] = "0" * 64
    Path("r.yaml").write_text(yaml.safe_dump(document))
    assert any("another model sha256" in w for w in small("again", recipe="r.yaml").report["warnings"])


@pytest.mark.parametrize("setting", ["bits: {nolayer: 4}", "exact_activations: [nolayer]", "keep_float: [nolayer]"])
def test_a_layer_that_a_recipe_makes_up_is_refused_before_anything_is_measured(
    here: Path, monkeypatch: pytest.MonkeyPatch, setting: str
):
    monkeypatch.setattr(original, "predict", None)
    Path("r.yaml").write_text(f"version: 1\nsteps: [{{quantize: {{target: ort, {setting}}}}}]\n")
    with pytest.raises(InputError, match=r"the recipe r\.yaml names the layer 'nolayer'"):
        small(recipe="r.yaml")


# Exit codes


def test_the_command_says_what_it_wrote(here: Path, capfd: pytest.CaptureFixture[str]):
    args = ["compress", "model.onnx", "--data", "images", "--task", "task.yaml", "--target", "ort", "--threads", 1]
    ran = roadworthy(capfd, *args, "--effort", "quick", "--max-drop", 100, "--out", "deep/er/out")
    assert ran.code == 0, ran.err
    assert "2.00x the speed of the original on ort" in ran.out and "quiet" not in ran.out
    assert "budget accuracy drop: " in ran.out and ": holds" in ran.out and "broken" not in ran.out
    assert sorted(p.name for p in Path("deep/er/out").iterdir()) == sorted(FILES)
    assert json.loads(Path("deep/er/out/report.json").read_text())["command"].startswith(
        "roadworthy compress model.onnx"
    )


def test_a_slower_result_is_written_and_exits_with_3(here: Path, speeds, capfd: pytest.CaptureFixture[str]):
    speeds(lambda entry: 2.0 if entry.label.startswith("original") else 4.0)
    args = ["compress", "model.onnx", "--data", "images", "--task", "task.yaml", "--target", "ort", "--threads", 1]
    ran = roadworthy(capfd, *args, "--effort", "quick", "--out", "out")
    assert ran.code == 3 and "not slower than the original on ort: 0.50 x, at least 0.95: broken" in ran.out
    assert json.loads(Path("out/report.json").read_text())["verdict"] == "broken"
    assert sorted(p.name for p in Path("out").iterdir()) == sorted(FILES)


def test_int8_that_breaks_the_budget_gives_way_layer_by_layer(here: Path):
    """Whatever the weights need, a budget of nothing lost can be held: in the end a layer stays as it was."""
    outcome = small(max_drop=0.0, data="unlabelled")
    assert outcome.exit_code == 0 and outcome.report["accuracy"]["drop"] <= 0


# Tasks and data


def test_unlabelled_images_are_judged_by_the_original(here: Path):
    report = small(data="unlabelled", max_drop=100.0).report
    assert "the original" in report["accuracy"]["reference"] and report["data"]["kind"] == "images"


def test_labels_of_another_kind_are_not_used_and_that_is_said(here: Path):
    Path("set/images").mkdir(parents=True)
    Path("set/labels").mkdir()
    for index in range(6):
        Path(f"images/{index:02d}.png").rename(f"set/images/{index:02d}.png")
        Path(f"set/labels/{index:02d}.txt").write_text("0 0.5 0.5 0.2 0.2")
    Path("set/data.yaml").write_text("train: images\nval: images\nnames: [red, green, blue]")
    report = small(data="set/data.yaml", max_drop=100.0).report
    assert "the original" in report["accuracy"]["reference"]
    assert "The labels of set/data.yaml are boxes" in report["data"]["note"]


def test_raw_outputs_are_held_to_a_signal_to_noise_ratio(here: Path):
    Path("raw.yaml").write_text(RAW)
    outcome = small(task="raw.yaml", min_sqnr=10.0)
    (budget,) = [b for b in outcome.report["budgets"] if b["name"] == "output SQNR"]
    assert outcome.exit_code == 0 and budget["direction"] == "at least" and 10 <= budget["measured"] < 80
    assert outcome.report["accuracy"] is None
    # The same recipe against a limit that int8 cannot reach.
    replayed = small("again", task="raw.yaml", min_sqnr=120.0, recipe="out/recipe.yaml")
    assert replayed.exit_code == 3 and model_bytes(replayed) == model_bytes(outcome)


def test_sqnr_is_the_one_that_onnx_runtime_shows(here: Path):
    Path("raw.yaml").write_text(RAW)
    outcome = small(task="raw.yaml", min_sqnr=5.0)
    signal = noise = 0.0
    for file, _ in _lot_of_test_images(outcome.report):
        image = cv2.resize(cv2.imread(f"images/{file}"), (SIDE, SIDE))[..., ::-1].transpose(2, 0, 1)[None]
        x = image.astype(np.float32) / 255
        a, b = ort(Path("model.onnx").read_bytes(), x)["y"], ort(model_bytes(outcome), x)["y"]
        signal, noise = signal + (a**2).sum(), noise + ((a - b) ** 2).sum()
    # Another thread count or order of float additions may move a rounding step: 0.5 dB.
    assert outcome.report["budgets"][0]["measured"] == pytest.approx(10 * np.log10(signal / noise), abs=0.5)


def test_step_by_step_from_python(here: Path):
    data, model = rw.read("images"), rw.load("model.onnx")
    recipe = rw.Recipe((rw.Fold(), rw.Quantize("ort"), rw.Round()), images=4)
    with pytest.raises(InputError, match=r"rw\.settle\(model, dataset\) finds it \(on the command line --task"):
        recipe.apply(model, data.calibration)
    settled = rw.settle(model, data, "task.yaml")
    assert model.task is None and settled.task is not None and settled.task.decode.kind == "classify"
    Path("small.onnx").write_bytes(rw.to_qdq(recipe.apply(settled, data.calibration)))
    again = rw.load("small.onnx").task
    assert again is not None and again.to_json() == settled.task.to_json()


def test_a_mean_that_the_task_file_does_not_tell_is_not_made_up(here: Path):
    """The file says rgb and 1/255 and nothing of ImageNet's mean, so there is none."""
    assert small(max_drop=100.0).report["task"]["preprocess"]["mean"] == [0.0, 0.0, 0.0]


def test_a_task_file_without_preprocessing_leaves_it_to_the_images(here: Path):
    Path("decode.yaml").write_text("decode: {kind: classify, num_classes: 3, scores_are_logits: true}")
    with pytest.raises(InputError, match=r"preprocessing of model\.onnx is not certain: on \d+ images .* `preprocess`"):
        small(task="decode.yaml")


# Targets


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if these targets were not installed."""
    for name in names:
        monkeypatch.setitem(TARGETS, name, replace(TARGETS[name], available=lambda: False))


@pytest.mark.skipif(not TARGETS["native"].available(), reason="the native engine is not built")
def test_native_ships_the_plan_that_was_measured(here: Path, speeds):
    """The plan in the folder is what was judged, gives the very outputs of the ONNX file on the engine, and replays."""
    milliseconds = {"ort": 4.0, "openvino": 3.0, "native": 2.0}
    speeds(lambda entry: milliseconds[entry.target] / (2 if entry.label.startswith("int8 ") else 1))
    outcome = small(target="auto", max_drop=100.0)
    assert outcome.report["result"]["target"] == "native" and outcome.report["result"]["path"] == "model.rwp"
    assert sorted(p.name for p in Path("out").iterdir()) == sorted([*FILES, "model.rwp"])
    plan = Path("out/model.rwp").read_bytes()
    assert outcome.report["result"]["bytes"] == len(plan) == sum(outcome.report["size"]["compressed"].values())
    assert outcome.report["result"]["sha256"] == hashlib.sha256(plan).hexdigest()
    native = TARGETS["native"]
    x = np.random.default_rng(0).random((1, 3, SIDE, SIDE)).astype(np.float32)
    a, b = (native.runner(data, 1).run({"x": x})["y"] for data in (plan, model_bytes(outcome)))
    assert np.array_equal(a, b)
    again = small("again", target="auto", recipe="out/recipe.yaml")
    assert again.report["result"]["target"] == "native" and Path("again/model.rwp").read_bytes() == plan
    small(target="ort", max_drop=100.0, force=True)
    assert sorted(p.name for p in Path("out").iterdir()) == sorted(FILES)  # no plan of another run is left behind


def test_auto_without_openvino_means_onnx_runtime(here: Path, monkeypatch: pytest.MonkeyPatch):
    without(monkeypatch, "openvino", "native")
    assert small(target="auto", max_drop=100.0).report["result"]["target"] == "ort"
    with pytest.raises(InputError, match=r"openvino is not installed.*roadworthy\[openvino\]"):
        small("other", target="openvino")
    Path("r.yaml").write_text("version: 1\nsteps: [{quantize: {target: openvino}}]")
    with pytest.raises(InputError, match=r"r\.yaml cannot be replayed: the target openvino is not installed"):
        small("other", target="auto", recipe="r.yaml")


def test_without_the_engine_auto_says_so_and_native_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(TARGETS, "native", replace(TARGETS["native"], available=lambda: False))
    monkeypatch.setitem(TARGETS, "openvino", replace(TARGETS["openvino"], available=lambda: False))
    report = small(target="auto", max_drop=100.0).report
    assert report["result"]["target"] == "ort"
    (told,) = (w for w in report["warnings"] if w.startswith("not tried on native: "))
    assert "install a C++ compiler" in told
    with pytest.raises(InputError, match=r"native engine is not built; install a C\+\+ compiler.*--target ort"):
        small("other", target="native")


@pytest.mark.skipif(not openvino.available(), reason="OpenVINO is not installed")
def test_auto_takes_the_fastest_target_and_says_why_not_the_other(here: Path, speeds, monkeypatch: pytest.MonkeyPatch):
    without(monkeypatch, "native")
    speeds(lambda entry: {"ort": 4.0, "openvino": 3.0}[entry.target] / (2 if entry.label.startswith("int8 ") else 1))
    report = small(target="auto", max_drop=100.0).report
    assert report["result"]["target"] == "openvino"
    (chosen,) = [c for c in report["candidates"] if c["chosen"]]
    assert not chosen["why"].startswith("rejected")
    assert any("on openvino is faster" in c["why"] for c in report["candidates"])


def test_a_restless_machine_is_asked_three_times_and_the_middle_counts(here: Path, monkeypatch: pytest.MonkeyPatch):
    """The candidate that lost the first measurement may win in the middle one; it must not keep the reason it lost."""
    if not openvino.available():
        pytest.skip("OpenVINO is not installed")
    without(monkeypatch, "native")
    rounds = iter(["ort", "openvino", "openvino"])

    def restless(entries, **more):
        fast = next(rounds)
        slow_original = {True: 1.0, False: 6.0}[fast == "ort"]  # slower than the original at first: ask again
        result = steady(lambda e: slow_original if e.label.startswith("original") else 2.0 + (e.target != fast))(
            entries
        )
        return replace(result, quiet=False)

    monkeypatch.setattr(speed, "bench", restless)
    report = small(target="auto", max_drop=100.0).report
    assert report["result"]["target"] == "openvino" and next(rounds, None) is None
    (chosen,) = [c for c in report["candidates"] if c["chosen"]]
    assert not chosen["why"].startswith("rejected")
    assert "rejected" not in report["summary"][0]
    assert report["summary"][-1].endswith(". The machine was never quiet: these are no figures to quote.")


# Replacing an output


def test_force_replaces_the_whole_output(here: Path):
    small()
    Path("out/recipe.yaml").unlink()
    Path("out/report.html").write_text("old")
    outcome = small(force=True, seed=1)
    assert sorted(p.name for p in Path("out").iterdir()) == sorted(FILES)
    assert Path("out/report.html").read_text() != "old" and outcome.report["seed"] == 1
    assert not [p for p in here.iterdir() if p.name.startswith(".")]


def test_a_failure_while_writing_leaves_the_old_output(here: Path, monkeypatch: pytest.MonkeyPatch):
    small()
    before = tree(here)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "write_html", full)
    with pytest.raises(OSError, match="No space"):
        small(force=True, seed=1)
    after = tree(here)
    assert {k: v for k, v in after.items() if not k.startswith(".out.stages")} == before
    monkeypatch.undo()


def test_a_full_disk_is_one_sentence_too(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "out/report.html")

    monkeypatch.setattr(output, "write_html", full)
    args = ["compress", "model.onnx", "--data", "images", "--task", "task.yaml", "--target", "ort", "--threads", 1]
    ran = roadworthy(capfd, *args, "--effort", "quick", "--out", "out")
    assert ran.code == 2 and ran.err.splitlines()[-1].startswith("roadworthy: out/report.html: No space left on device")
    assert "Traceback" not in ran.err and not Path("out").exists()


# Interruption


class Interrupting(Ui):
    """Raises KeyboardInterrupt at the k-th stage, as it begins or after its first part; counts stages otherwise."""

    def __init__(self, at: int | None = None, inside: bool = False) -> None:
        self.at, self.inside, self.names = at, inside, list[str]()

    @contextmanager
    def stage(self, text: str, total: int | None = None) -> Iterator[Advance]:
        self.names.append(text)
        hit = len(self.names) == self.at
        if hit and not self.inside:
            raise KeyboardInterrupt

        def advance(done: int) -> None:
            if hit:
                raise KeyboardInterrupt

        yield advance
        if hit:
            raise KeyboardInterrupt


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passes over test images that came to their end."""
    done: list[str] = []
    plain = accuracy.predict

    def counted(runner: Any, task: Any, samples: Any, *args: Any, **more: Any) -> Any:
        result = plain(runner, task, samples, *args, **more)
        done.append("mirrored" if more.get("mirrored") else "plain")
        return result

    for module in (accuracy, original, search, threshold):
        monkeypatch.setattr(module, "predict", counted)
    return done


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("data", ["images", "unlabelled"])
def test_an_interrupted_job_goes_on_where_it_was(here: Path, passes: list[str], data: str, inside: bool):
    # int8 breaks the budget, layers are measured: the longest way through the search.
    options: dict[str, Any] = (
        {"data": data, "task": "raw.yaml", "min_sqnr": 38.0} if data == "images" else {"data": data}
    )
    Path("raw.yaml").write_text(RAW)
    ui = Interrupting()
    whole = small("whole", ui=ui, **options)
    needed = list(passes)
    assert len(ui.names) > 6 and len(needed) >= 2
    for at in range(1, len(ui.names) + 1):
        passes.clear()
        with pytest.raises(KeyboardInterrupt):
            small("out", ui=Interrupting(at, inside), **options)
        assert not Path("out").exists() and Path(".out.stages").is_dir()
        assert sorted(p.name for p in here.iterdir() if p.name.startswith(".")) == [".out.stages"]
        assert not list(Path(".out.stages").glob("*.part"))
        resumed = small("out", resume=True, **options)
        assert model_bytes(resumed) == model_bytes(whole), ui.names[at - 1]
        assert resumed.report["accuracy"] == whole.report["accuracy"]
        assert sorted(passes) == sorted(needed), f"interrupted at {ui.names[at - 1]}"
        assert not Path(".out.stages").exists()
        for file in Path("out").iterdir():
            file.unlink()
        Path("out").rmdir()


def test_what_the_original_said_of_mirrored_scenes_is_not_asked_again(tmp_path: Path, passes: list[str]):
    calibration, test = (
        Samples(Sample(s.name, load=s.load, key=s.key) for s in scenes(count, seed, part))
        for count, seed, part in ((4, 1000, "calibration"), (6, 1001, "test"))
    )
    data = Dataset(calibration, test, "images", (), "scenes without labels")
    settings = Settings(**{**QUICK, "max_drop": 50.0})
    whole = compress(detector(), data, tmp_path / "whole", settings, ui=(ui := Interrupting()))
    needed = list(passes)
    assert needed.count("mirrored") == 2  # the test images, and those that the threshold is refitted on
    passes.clear()
    after = Interrupting(ui.names.index("reference") + 2)
    with pytest.raises(KeyboardInterrupt):
        compress(detector(), data, tmp_path / "out", settings, ui=after)
    assert passes.count("mirrored") == 1
    resumed = compress(detector(), data, tmp_path / "out", settings, resume=True)
    assert sorted(passes) == sorted(needed)
    assert model_bytes(resumed) == model_bytes(whole) and resumed.report["accuracy"] == whole.report["accuracy"]


def test_references_come_back_from_the_disk_as_they_were(tmp_path: Path):
    rng = np.random.default_rng(0)
    truths = tuple(Truth.of(rng.uniform(0, 50, (n, 4)), rng.integers(0, 5, n)) for n in (3, 0, 2, 1))
    for reference in (Reference("drawn", truths, 2), Reference("said", probabilities=rng.random((4, 3), np.float32))):
        with Stages(tmp_path / "stages", "key", False) as stages:
            stages.put("reference", pack_reference(reference))
            back = unpack_reference(stages.get("reference") or {})
        assert (back.kind, back.draws, len(back.truths)) == (reference.kind, reference.draws, len(reference.truths))
        for a, b in zip(reference.truths, back.truths):
            for name in ("boxes_xyxy", "classes", "areas", "ignore"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        if reference.probabilities is not None:
            np.testing.assert_array_equal(back.probabilities, reference.probabilities)


def test_stages_of_another_job_are_refused_and_kept(here: Path):
    with pytest.raises(KeyboardInterrupt):
        small(ui=Interrupting(4))
    before = tree(here)
    for other in ({"seed": 1}, {"effort": "normal"}, {"data": "unlabelled"}):
        with pytest.raises(InputError, match=r"another model, data or settings.*without --resume"):
            small(resume=True, **other)
        assert tree(here) == before
    Path(".out.stages/job.json").write_text("{")
    with pytest.raises(InputError, match=r"job\.json cannot be read"):
        small(resume=True)


def test_a_budget_may_be_changed_when_resuming(here: Path, passes: list[str]):
    with pytest.raises(KeyboardInterrupt):
        small(ui=Interrupting(4), max_drop=0.1)
    done = len(passes)
    assert small(resume=True, max_drop=100.0).exit_code == 0
    assert len(passes) == done + 2  # the int8 candidate, and stored weights beside it


def test_resume_without_an_earlier_run_starts_anew(here: Path):
    assert small(resume=True, max_drop=100.0).exit_code == 0


def test_ctrl_c_in_the_command(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.setattr("roadworthy.console.Console.stage", Interrupting(3).stage)
    args = ["compress", "model.onnx", "--data", "images", "--task", "task.yaml", "--target", "ort", "--threads", 1]
    ran = roadworthy(capfd, *args, "--effort", "quick", "--out", "out")
    assert ran.code == 130 and "out was not written" in ran.err and "--resume" in ran.err
    assert "Traceback" not in ran.err and not Path("out").exists()


def test_ctrl_c_before_anything_is_done_promises_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = tree(here)
    monkeypatch.setattr(pipeline, "read", interrupt)
    ran = roadworthy(capfd, "compress", "model.onnx", "--data", "images", "--target", "ort", "--out", "out")
    assert ran.code == 130 and "out was not written" in ran.err and "--resume" not in ran.err
    monkeypatch.setattr("roadworthy.jobs.assess.load", interrupt)
    assert roadworthy(capfd, "inspect", "model.onnx").code == 130
    assert tree(here) == before


def test_an_original_that_is_always_wrong_is_refused(here: Path):
    """Labels in another order: nothing is left to lose, and a budget would hold whatever is done to the model."""
    rows = Path("images/labels.csv").read_text().splitlines()
    shifted = [rows[0]] + [f"{r.rsplit(',', 1)[0]},{(int(r.rsplit(',', 1)[1]) + 1) % 3}" for r in rows[1:]]
    Path("images/labels.csv").write_text("\n".join(shifted))
    with pytest.raises(InputError, match=r"the original itself reaches only top-1 0\.00"):
        small(max_drop=100.0)
    assert not Path("out").exists()


def test_statistics_do_not_depend_on_the_target_that_asks_first(here: Path):
    """What else is read decides what the runtime fuses, so all is read at once: replaying for one target after a
    search on two must give the same bytes."""
    ort, both = (small(f"out-{t}", target=t, max_drop=100.0) for t in ("ort", "auto"))
    replayed = small("again", target="auto", recipe="out-ort/recipe.yaml")
    assert model_bytes(replayed) == model_bytes(ort)
    assert replayed.report["result"]["target"] == "ort" and both.exit_code == 0
