"""Training as a job: from files to a report, from the search, killed and resumed, in several processes, refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small import SIDE, TASK, classifier, place
from test_mixed import planted

from command import ENVIRONMENT, roadworthy, tree
from onnx_graphs import N, build
from roadworthy.check.report_schema import validate
from roadworthy.errors import InputError
from roadworthy.jobs import search as searching
from roadworthy.jobs import training
from roadworthy.jobs.compress import FILES, Settings, compress
from roadworthy.jobs.finetune import FinetuneSettings, finetune
from roadworthy.jobs.trial import Ui
from roadworthy.model.model import load
from roadworthy.model.qdq import to_qdq
from roadworthy.recipe import CorrectBias, Finetune, Fold, Quantize, Recipe, StoreWeights
from roadworthy.run import torch as bridge
from roadworthy.run.targets import TARGETS
from roadworthy.steps.context import Context
from roadworthy.steps.training import Training

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("speeds")
IMAGES = 60
STEP = Finetune(batch=2, lr=0.05, evaluations=4)
OPTIONS = ("--task", "task.yaml", "--target", "ort", "--threads", 1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The small classifier, its images, and quantized.onnx: what 3 bits leave of it."""
    monkeypatch.chdir(place(tmp_path, IMAGES))
    model = load("model.onnx")
    from roadworthy.check.contract import settle_task
    from roadworthy.data.readers import read

    dataset = read("images")
    task, _ = settle_task(model, dataset, "task.yaml", lambda: None)  # type: ignore[arg-type, return-value]
    recipe = Recipe((Fold(), Quantize("ort", weight_bits=3, granularity="tensor"), CorrectBias()), images=8)
    Path("quantized.onnx").write_bytes(to_qdq(recipe.apply(model.with_task(task), dataset.calibration)))
    Training.forget()
    yield tmp_path
    Training.forget()


def train(out: str = "out", model: str = "quantized.onnx", **options: Any) -> Any:
    told = {k: options.pop(k) for k in ("force", "resume", "ui") if k in options}
    settings = {"target": "ort", "threads": 1, "task": "task.yaml", "max_drop": 100.0, "steps": 12, "step": STEP}
    return finetune(model, "model.onnx", "images", out, FinetuneSettings(**{**settings, **options}), **told)


def model_bytes(folder: str = "out") -> bytes:
    return Path(folder, "model.onnx").read_bytes()


# From files to a report


def test_a_quantized_model_from_file_to_report_and_back_by_its_recipe(here: Path):
    outcome = train(steps=24)
    report = json.loads(Path("out/report.json").read_text())
    assert validate(report) == validate(outcome.report)
    assert sorted(p.name for p in Path("out").iterdir()) == sorted(FILES)
    assert not list(here.glob(".out*"))
    told = report["training"]
    assert told["shipped"] and told["steps"] == 24 and told["settings"]["steps"] == 24
    # 30 images to calibrate and train with: a fifth held out, a sixth of the rest watched, at least 4.
    assert (told["images"], told["watched"], told["held_out"]) == (20, 4, 6)
    assert [step for step, _ in told["loss"]] == list(range(1, 25))
    assert [step for step, _ in told["distance"]] == [0, 6, 12, 18, 24]
    before, after = told["held_out_distance"]
    assert after < before and told["distances"][1] < told["distances"][0]
    trained, given = report["candidates"]
    assert trained["chosen"] and trained["distance"] == after and given["distance"] == before
    assert given["drop"] is not None and told["drop"] == [given["drop"], trained["drop"]]
    page = Path("out/report.html").read_text()
    assert ">Training</h2>" in page and "Loss of the training" in page and "Distance to the original" in page
    Training.forget()
    train("again", steps=None, step=Finetune(), recipe="out/recipe.yaml")
    assert model_bytes("again") == model_bytes() != Path("quantized.onnx").read_bytes()
    with pytest.raises(InputError, match=r"trains a model that was given; replay it with roadworthy finetune"):
        squeezed("other", recipe="out/recipe.yaml")
    again = train("other", model="model.onnx", steps=None, step=Finetune(), recipe="out/recipe.yaml").report
    assert any("another student sha256" in w for w in again["warnings"])


def test_a_replayed_recipe_is_compared_on_the_images_that_it_holds_out(here: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever effort and seed it is replayed with: this search would hold out others, which the recipe trains on."""
    recipe = Recipe((replace(STEP, steps=2, held_out=5),), images=8, seed=7)
    Path("recipe.yaml").write_text(recipe.to_yaml())
    probed: list[set[str]] = []
    original = searching.Search._probes
    monkeypatch.setattr(
        searching.Search, "_probes",
        lambda search, samples: probed.append({s.name for s in samples}) or original(search, samples),
    )  # fmt: skip
    told = train(steps=None, step=Finetune(), recipe="recipe.yaml", effort="thorough").report["training"]
    from roadworthy.data.readers import read

    every = read("images").calibration
    division = recipe.training.division(Context(load("model.onnx"), every, recipe.choose(every), 7))
    assert probed == [{s.name for s in division.held_out}] and told["held_out"] == 5
    Path("recipe.yaml").write_text(replace(recipe, steps=(replace(recipe.steps[0], held_out=0),)).to_yaml())
    report = train("none", steps=None, step=Finetune(), recipe="recipe.yaml").report
    assert any("holds no image out" in w for w in report["warnings"])


def test_a_threshold_is_fitted_on_images_that_were_not_trained_on_first():
    from small import SIDE as side

    from roadworthy.data.samples import Sample, Samples
    from roadworthy.jobs.compress import fitted_to
    from roadworthy.jobs.threshold import fit_images
    from roadworthy.jobs.trial import Trial

    every = Samples(Sample(f"{k:02d}", load=lambda: np.zeros((side, side, 3), np.uint8), key=f"{k}") for k in range(60))
    model, plain = load(classifier()), Recipe((Fold(), Quantize("ort")), images=8)
    step = replace(STEP, held_out=12, watched=8)
    chosen = plain.choose(every)
    trials = [
        Trial("t", "t", "ort", replace(plain, steps=(*plain.steps, s)), b"", model) for s in (CorrectBias(), step)
    ]
    used = fitted_to(chosen, trials, model, every)
    division = step.division(Context(model, every, chosen, 0))
    assert {s.name for s in used} == {s.name for s in (*chosen, *division.trained)} and len(division.trained) == 40
    first = {s.name for s in fit_images(every, used, len(every) - len(used))}
    assert not first & {s.name for s in (*chosen, *division.trained)}
    assert fitted_to(chosen, trials[:1], model, every).content_id == chosen.content_id


def test_a_float_model_is_trained_in_float_or_quantized_first(here: Path):
    float_model = load("model.onnx")
    from roadworthy.model import graph as g

    ir = g.clone(float_model.ir)
    value = g.values(ir)["mix"]
    noise = np.random.default_rng(2).normal(0, 0.05, g.constant(value).shape)
    g.set_constant(value, (g.constant(value) + noise).astype(np.float32))
    Path("pruned.onnx").write_bytes(g.to_bytes(ir))
    report = train(model="pruned.onnx", steps=20).report
    assert report["result"]["variant"] == "float, trained"
    before, after = report["training"]["held_out_distance"]
    assert after < before
    report = train("int8", model="model.onnx", weight_bits=4).report
    assert report["result"]["variant"].startswith("int8, weights of 4 bits")
    assert "weight_bits: 4" in Path("int8/recipe.yaml").read_text()


def test_minutes_become_steps_that_are_written_down(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Finetune, "pace", lambda *_: 0.1)
    notes: list[str] = []

    class Told(Ui):
        def note(self, text: str) -> None:
            notes.append(text)

    report = train(steps=None, train_minutes=0.355, ui=Told()).report
    # 21.3 s, less 2 * (4 + 1) looks at 48 watched images for 0.4 * 0.1 s: but 48 of them, as asked for.
    steps = max(int((21.3 - 2 * 5 * 48 * 0.4 * 0.1) / 0.2), 1)
    assert report["training"]["steps"] == steps == 10 and "steps: 10\n" in Path("out/recipe.yaml").read_text()
    (said,) = [n for n in notes if n.startswith("training as given on ort: ")]
    assert said == "training as given on ort: 10 steps of 2 images, about 21 s"


def test_the_command(here: Path, capfd: pytest.CaptureFixture[str]):
    args = ("finetune", "quantized.onnx", "--teacher", "model.onnx", "--data", "images", *OPTIONS)
    ran = roadworthy(capfd, *args, "--steps", 4, "--batch", 2, "--lr", 0.01, "--max-drop", 100)
    assert ran.code == 0, ran.err
    assert "wrote quantized-trained/model.onnx" in ran.out
    assert json.loads(Path("quantized-trained/report.json").read_text())["command"].startswith("roadworthy finetune")


# In the search


def squeezed(out: str = "out", **options: Any) -> Any:
    settings = {"target": "ort", "threads": 1, "task": "task.yaml", "effort": "quick", "train_minutes": 0.05}
    return compress("model.onnx", "unlabelled", out, Settings(**{**settings, **options}))


def searched(monkeypatch: pytest.MonkeyPatch, drop: float = 0.0, **options: Any) -> Any:
    """A search on a judge that says of untrained candidates that they lose 2 points, of trained ones `drop`."""
    from roadworthy.check.judge import Judgement

    monkeypatch.setattr(training, "fitted", lambda search, base, step, context: replace(step, steps=24, **STEPS))
    judged: list[str] = []
    real = searching.Search.evaluate

    def evaluate(self: Any, trial: Any) -> Judgement:
        real(self, trial)
        judged.append(trial.name)
        lost = 2.0
        if trial.recipe.training is not None:
            lost = drop
        if any(isinstance(s, StoreWeights) for s in trial.recipe.steps):
            lost = 5.0
        trial.judgement = replace(trial.judgement, drop=lost, holds=lost <= self.judge.max_drop)
        return trial.judgement

    monkeypatch.setattr(searching.Search, "evaluate", evaluate)
    return squeezed(**options), judged


STEPS: dict[str, Any] = {"batch": 2, "lr": 0.05, "evaluations": 2}


def test_int8_that_breaks_the_budget_is_trained_before_layers_go_back_to_float(
    here: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(searching.Search, "plain_int8", _rough_int8)
    outcome, judged = searched(monkeypatch, drop=0.0)
    assert outcome.report["result"]["variant"] == "int8, trained"
    assert judged[:2] == ["int8", "int8, trained"] and not any("in float" in name for name in judged)
    rows = {c["name"]: c for c in outcome.report["candidates"]}
    trained = rows["int8, trained on ort"]
    assert trained["chosen"] and trained["why"].startswith("kept: held-out distance") and trained["seconds"] > 0
    assert trained["distance"] < rows["int8 on ort"]["distance"]
    assert outcome.report["training"]["shipped"]
    assert "finetune:" in Path("out/recipe.yaml").read_text()


def test_where_training_is_not_enough_layers_go_back_to_float(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(searching.Search, "plain_int8", _rough_int8)
    outcome, judged = searched(monkeypatch, drop=1.9)
    assert judged[:3] == ["int8", "int8, trained", "int8, 1 in float"]
    assert not outcome.report["training"]["shipped"] and "is what is shipped" not in outcome.report["summary"][0]


def _rough_int8(search: Any) -> Any:
    recipe = search.recipe(Quantize("ort", weight_bits=3, granularity="tensor"))
    trial = search.build("int8", "int8", recipe)
    trial.distance = search.distance(trial)
    return trial


@pytest.mark.parametrize("how", ["no torch", "no time", "few images"])
def test_a_search_that_cannot_train_says_so_and_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch, how: str):
    monkeypatch.setattr(searching.Search, "plain_int8", _rough_int8)
    options: dict[str, Any] = {}
    if how == "no torch":
        for module in (bridge, training):
            monkeypatch.setattr(module, "available", lambda: False)
    if how == "no time":
        options["train_minutes"] = 0.0
    if how == "few images":
        for k in range(24, IMAGES):
            Path(f"unlabelled/{k:02d}.png").unlink()
    outcome, judged = searched(monkeypatch, **options)
    told = [w for w in outcome.report["warnings"] if "not trained" in w]
    wanted = {"no torch": ["roadworthy[train]"], "no time": [], "few images": ["too few to hold any out"]}[how]
    assert len(told) == len(wanted) and all(w in t for w, t in zip(wanted, told))
    assert "int8, trained" not in judged and outcome.report["training"] is None


@pytest.mark.skipif(not TARGETS["native"].available(), reason="needs the compiled engine (make native)")
def test_under_a_limit_of_size_what_fits_is_trained_and_nothing_else(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "fitted", lambda search, base, step, context: replace(step, steps=2, **STEPS))
    onnx.save(planted(), "planted.onnx")
    Path("raw.yaml").write_text(TASK.split("decode")[0] + "decode: {kind: raw}")
    settings = Settings("raw.yaml", "native", min_sqnr=90.0, max_size="9000", effort="quick", threads=1)
    report = compress("planted.onnx", "unlabelled", "out", replace(settings, train_minutes=1.0)).report
    assert report["result"]["bytes"] <= 9000
    trained = [c["name"] for c in report["candidates"] if "trained" in c["name"]]
    assert trained == ["mixed, 9 kB, trained on native"] == [report["training"]["candidate"]]


# Killed, and in several processes

ARGS = ("finetune", "quantized.onnx", "--teacher", "model.onnx", "--data", "images", "--task", "task.yaml", "--target",
        "ort", "--threads", "1", "--batch", "2", "--lr", "0.01", "--max-drop", "100")  # fmt: skip
PROGRAM = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from small import int8_twice_as_fast, steady
from roadworthy.cli import main
from roadworthy.jobs import speed
import roadworthy.train.checkpoint as checkpoint
speed.bench = steady(int8_twice_as_fast)
checkpoint.Checkpoints.due = property(lambda self: True)
main()
"""
"""The command as a process of its own, which keeps every step and does not look at the clock for a speed."""


def program(*args: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    Path("program.py").write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, *launcher, "program.py", *ARGS, *args], env=ENVIRONMENT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_killed_while_it_trains_and_resumed_it_gives_the_same_bytes(here: Path, monkeypatch: pytest.MonkeyPatch):
    job = program("--steps", "300", "--out", "out")
    _wait(lambda: any(steps_in(p) > 1 for p in here.glob(".out.stages/training-*.rwt")), job)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert not Path("out").exists()
    (kept,) = here.glob(".out.stages/training-*.rwt")
    assert 1 < steps_in(kept) < 300  # it was killed in the middle
    options = {"steps": 300, "step": Finetune(batch=2, lr=0.01)}
    seen: list[int] = []
    real = training.telling._step
    monkeypatch.setattr(
        training.telling, "_step", lambda self, done, *more: (seen.append(done), real(self, done, *more))
    )
    train(resume=True, **options)
    assert seen[0] > 1 and seen[-1] == 300
    Training.forget()
    train("undisturbed", **options)
    assert model_bytes() == model_bytes("undisturbed") and not list(here.glob(".out*"))


def steps_in(checkpoint: Path) -> int:
    from roadworthy.train.checkpoint import read

    return int(read(checkpoint)["state"]["step"])


def _wait(done: Callable[[], bool], job: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not done():
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.01)


def test_two_processes_train_what_one_does_and_one_of_them_writes(here: Path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    job = program("--steps", "12", "--out", "two", launcher=launcher)
    out, _ = job.communicate(timeout=300)
    assert job.returncode == 0, out
    assert out.count("wrote two/") == 1
    train("one", step=Finetune(batch=2, lr=0.01))
    assert model_bytes("two") == model_bytes("one")


# Refused

Case = tuple[Callable[[], list[Any]], str]


def command(
    model: str = "quantized.onnx", teacher: str = "model.onnx", data: str = "images", *more: object
) -> list[Any]:
    return ["finetune", model, "--teacher", teacher, "--data", data, *OPTIONS, *more]


def other_outputs() -> list[Any]:
    proto = classifier()
    proto.graph.initializer.remove(next(t for t in proto.graph.initializer if t.name == "tell"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((5, 16, 1, 1), np.float32), "tell"))
    del proto.graph.value_info[:]
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, [1, 5]))
    onnx.save(proto, "five.onnx")
    return command("five.onnx")


def other_input() -> list[Any]:
    nodes = [N("Conv", ["x", "w"], ["a"], name="c"), N("GlobalAveragePool", ["a"], ["p"]), N("Flatten", ["p"], ["y"])]
    onnx.save(build(nodes, {"w": np.ones((3, 3, 1, 1), np.float32)}, (1, 3, 16, 16)), "smaller.onnx")
    return command("smaller.onnx")


def weightless() -> list[Any]:
    nodes = [N("GlobalAveragePool", ["x"], ["p"]), N("Flatten", ["p"], ["y"])]
    onnx.save(build(nodes, {}, (1, 3, SIDE, SIDE)), "bare.onnx")
    return command("bare.onnx")


def empty() -> list[Any]:
    Path("nothing").mkdir()
    return command("quantized.onnx", "model.onnx", "nothing")


def few() -> list[Any]:
    for k in range(12, IMAGES):
        Path(f"unlabelled/{k:02d}.png").unlink()
    return command("quantized.onnx", "model.onnx", "unlabelled")


def recipe() -> list[Any]:
    Path("r.yaml").write_text("version: 1\nsteps:\n- fold: {}\n")
    return command("quantized.onnx", "model.onnx", "images", "--recipe", "r.yaml")


REFUSED: dict[str, Case] = {
    "missing model": (lambda: command("nowhere.onnx"), "nowhere.onnx does not exist"),
    "missing teacher": (lambda: command(teacher="nowhere.onnx"), "nowhere.onnx does not exist"),
    "no teacher": (lambda: ["finetune", "quantized.onnx", "--data", "images"], "'--teacher'"),
    "quantized teacher": (lambda: command(teacher="quantized.onnx"), "the teacher quantized.onnx is quantized"),
    "other outputs": (other_outputs, "five.onnx and its teacher model.onnx have different outputs (y [1, 5] against y"),
    "other input": (other_input, "smaller.onnx and its teacher model.onnx have different inputs"),
    "no weights": (weightless, "bare.onnx has no layer with weights, so there is nothing to train"),
    "empty folder": (empty, "nothing holds no images"),
    "few images": (few, "6 calibration images are too few to hold any out"),
    "steps and minutes": (lambda: [*command(), "--steps", 3, "--minutes", 3], "give one of them"),
    "no minutes": (lambda: [*command(), "--minutes", 0], "--minutes is 0; give minutes above 0"),
    "bits of a quantized model": (lambda: [*command(), "--weight-bits", 4], "quantized.onnx is quantized already"),
    "batch": (lambda: [*command(), "--batch", 5000], "invalid value for '--batch': 5000 is not in the range"),
    "learning rate": (lambda: [*command(), "--lr", "inf"], "invalid value for '--lr': inf is not in the range"),
    "gradient": (lambda: [*command(), "--gradient", "luck"], "'luck' is not one of 'ste', 'lsq'"),
    "no labels": (
        lambda: [*command(data="unlabelled"), "--labels", "only"], "no labels that a classify task can learn from"),
    "a recipe that does not train": (recipe, "the recipe r.yaml does not train"),
    "a recipe and settings": (lambda: [*recipe(), "--batch", 3], "a recipe says how to train"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_one_sentence_names_the_culprit_and_nothing_is_left(name: str, here: Path, capfd: pytest.CaptureFixture[str]):
    make, culprit = REFUSED[name]
    args = make()
    before = tree(here)
    assert culprit in roadworthy(capfd, *args).refusal
    assert tree(here) == before


def test_a_plan_keeps_no_weights_to_train(here: Path, capfd: pytest.CaptureFixture[str]):
    if not TARGETS["native"].available():
        pytest.skip("the native engine is not built")
    Path("model.rwp").write_bytes(TARGETS["native"].deploy(Path("quantized.onnx").read_bytes()))
    assert "model.rwp is a native plan, which keeps no weights" in roadworthy(capfd, *command("model.rwp")).refusal


def test_without_torch_the_extra_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(bridge, "available", lambda: False)
    before = tree(here)
    assert "pip install 'roadworthy[train]'" in roadworthy(capfd, *command()).refusal
    assert tree(here) == before


def test_a_training_that_explodes_names_the_layer_and_keeps_the_last_good_checkpoint(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    from roadworthy.train.checkpoint import Checkpoints

    monkeypatch.setattr(Checkpoints, "due", property(lambda self: True))
    plain = Finetune.schedule
    monkeypatch.setattr(Finetune, "schedule", lambda self, seed: replace(plain(self, seed), lr=1e20, warmup=0))
    args = command("model.onnx", "model.onnx", "images", "--steps", 60, "--batch", 1, "--out", "out")
    ran = roadworthy(capfd, *args)
    said = ran.err.splitlines()[-1]
    assert ran.code == 2 and said.startswith("roadworthy: training stopped in step ")
    assert "NaN or infinite" in said and ("layer 'stem'" in said or "layer 'tell'" in said)
    kept = said.rpartition(" is kept in ")[2]
    assert Path(kept).is_file() and not Path("out").exists()


def test_another_job_is_not_resumed(here: Path, monkeypatch: pytest.MonkeyPatch):
    class Stop(Ui):
        def note(self, text: str) -> None:
            if text.startswith("training: step"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(ui=Stop())
    assert list(here.glob(".out.stages/training-*.rwt"))
    with pytest.raises(InputError, match="model, data or settings; run again with the same ones, or without --resume"):
        train(resume=True, steps=13)
