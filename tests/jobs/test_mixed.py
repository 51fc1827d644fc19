"""Mixed bits: sizes to the byte, better than the same bits everywhere where layers differ, whole jobs under limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from small import SIDE, place, steady

from command import roadworthy
from onnx_graphs import N, build, rand
from roadworthy.check.contract import settle_task
from roadworthy.data.readers import read
from roadworthy.errors import InputError
from roadworthy.jobs import mixed as mixing
from roadworthy.jobs.compress import Settings, compress
from roadworthy.jobs.layers import Times
from roadworthy.jobs.limits import BeyondLimits, Limits, limits_of
from roadworthy.jobs.mixed import FLOAT, WIDTHS, Mixer, Point, mixed, undominated
from roadworthy.model.model import load
from roadworthy.quantize.allocate import Allocation
from roadworthy.recipe import CorrectBias, Fold, Quantize, Recipe, StoreWeights, read_recipe
from roadworthy.run.targets import TARGETS

pytestmark = pytest.mark.usefixtures("speeds")
native = pytest.mark.skipif(not TARGETS["native"].available(), reason="needs the compiled engine (make native)")
RAW = f"preprocess: {{size_hw: [{SIDE}, {SIDE}], resize: stretch, color: rgb, scale: {1 / 255}}}\ndecode: {{kind: raw}}"


def planted() -> onnx.ModelProto:
    """Two branches: a small one that makes the result, and a large one of which hardly anything arrives."""
    weights = {
        "w": rand(8, 3, 3, 3),
        "wide": rand(24, 3, 3, 3, seed=1) / 5,
        "deep": rand(24, 24, 3, 3, seed=2) / 15,
        "tail": rand(8, 24, 1, 1, seed=3) / 100,
    }
    nodes = [
        N("Conv", ["x", "w"], ["a"], name="stem", pads=[1] * 4),
        N("Conv", ["x", "wide"], ["b"], name="wide", pads=[1] * 4),
        N("Relu", ["b"], ["c"], name="relu"),
        N("Conv", ["c", "deep"], ["d"], name="deep", pads=[1] * 4),
        N("Conv", ["d", "tail"], ["e"], name="tail"),
        N("Add", ["a", "e"], ["y"], name="sum"),
    ]
    return build(nodes, weights, (1, 3, SIDE, SIDE))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place(tmp_path, 20))
    onnx.save(planted(), tmp_path / "planted.onnx")
    (tmp_path / "raw.yaml").write_text(RAW)
    return tmp_path


def mixer_of(step: Any, target: str = "native", floats: bool = False) -> Mixer:
    model, dataset = load("planted.onnx"), read("unlabelled")
    task, _ = settle_task(model, dataset, "raw.yaml", lambda: TARGETS["ort"].runner(model.float_bytes(), 1))
    base = Recipe((Fold(), step, CorrectBias()), 6)
    return Mixer(model.with_task(task), task, dataset.calibration, target, base, 1, floats=floats)


def same(mixer: Mixer, bits: int) -> Allocation:
    chosen = {n: next(c for c in choices if c.setting == bits) for n, choices in mixer.choices(False).items()}
    size = sum(c.bytes for c in chosen.values()) + mixer.fixed_bytes
    return Allocation(chosen, sum(c.damage for c in chosen.values()), size, 0.0, 0)


@native
@pytest.mark.parametrize("grid", ["linear", "kmeans"])
def test_sizes_are_known_to_the_byte(here: Path, grid: str):
    mixer = mixer_of(Quantize("native", grid=grid))
    sizes = []
    for bits in WIDTHS:
        allocation = same(mixer, bits)
        assert mixer.point(allocation).bytes == allocation.bytes
        sizes.append(allocation.bytes)
    assert sizes == sorted(set(sizes))


@native
def test_mixed_bits_beat_the_same_bits_everywhere_at_no_more_bytes(here: Path):
    mixer = mixer_of(Quantize("native"))
    uniform = mixer.point(same(mixer, 5))
    best = mixer.within(Limits(uniform.bytes))
    assert best.bytes <= uniform.bytes
    assert best.settings["stem"] == 8 and int(best.settings["deep"]) <= 5
    assert best.measured < uniform.measured / 4
    # Predictions are of the right size: one draw of the rounding noise of some hundred weights.
    for point in (best, uniform):
        assert 0.4 < point.predicted / point.measured < 2.5
    again = mixer_of(Quantize("native")).within(Limits(uniform.bytes))
    assert again.trial.deployed == best.trial.deployed


@native
def test_where_there_is_room_nothing_changes(here: Path):
    mixer = mixer_of(Quantize("native"))
    plain = TARGETS["native"].deploy(mixer._build("", mixer.base).data)
    point = mixer.within(Limits(len(plain)))
    assert set(point.settings.values()) == {8} and point.trial.deployed == plain
    assert point.trial.recipe == mixer.base


@native
def test_too_small_a_limit_names_the_least_that_can_be_reached(here: Path):
    mixer = mixer_of(Quantize("native"))
    least = same(mixer, 3).bytes
    with pytest.raises(InputError, match=f"{least:,} bytes"):
        mixer.within(Limits(least - 1))
    assert mixer.within(Limits(least)).bytes == least


def test_fewer_bits_save_nothing_in_an_onnx_file_so_float_is_the_only_choice_there(here: Path):
    mixer = mixer_of(StoreWeights(), "ort", floats=True)
    assert {c.setting for choices in mixer.choices(False).values() for c in choices} == {8, FLOAT}
    all_codes = len(mixer.whole.deployed)
    # What is left over goes to the layer that gains by it; the large one stays in codes.
    point = mixer.within(Limits(all_codes + 3000))
    assert point.settings["stem"] == FLOAT and point.settings["deep"] == 8
    assert all_codes < point.bytes <= all_codes + 3000
    step = next(s for s in point.trial.recipe.steps if isinstance(s, StoreWeights))
    assert "stem" in step.float_weights
    with pytest.raises(InputError, match="the least that can be reached"):
        mixer.within(Limits(all_codes - 100))


@native
def test_time_decides_which_layers_stay_in_float(here: Path):
    """Float gains most in the stem. It is affordable with 40 us, and with less the least harmful layer is in float."""
    mixer = mixer_of(Quantize("native"), floats=True)
    names = ("stem", "wide", "deep", "tail")
    mixer.__dict__["_times"] = Times(dict.fromkeys(names, 10.0), {**dict.fromkeys(names, 1000.0), "stem": 30.0}, 5.0)
    assert mixer.allocation(Limits(max_latency_ms=0.065)).settings == {"stem": FLOAT, "wide": 8, "deep": 8, "tail": 8}
    assert set(mixer.allocation(Limits(max_latency_ms=0.064)).settings.values()) == {8}
    with pytest.raises(InputError, match=r"budget of 0\.044 ms .* reached is 0\.045 ms"):
        mixer.allocation(Limits(max_latency_ms=0.044))
    made = mixer.point(mixer.allocation(Limits(max_latency_ms=0.065)))
    assert str(made.trial.model.ir) and "w" not in made.trial.model.encodings and "deep" in made.trial.model.encodings


@native
def test_the_front_holds_what_no_other_beats(here: Path):
    mixer = mixer_of(Quantize("native"))
    limit = same(mixer, 4).bytes
    task = mixer.task
    points = mixed(mixer.model, task, mixer.calibration, "native", mixer.base, Limits(limit), threads=1, points=4)
    sizes, away = [p.bytes for p in points], [p.measured for p in points]
    assert len(points) >= 2 and sizes == sorted(set(sizes)) and away == sorted(set(away), reverse=True)
    assert any(p.bytes <= limit for p in points)


@native
@pytest.mark.assets
def test_a_real_network_is_nearer_to_the_original_at_the_size_of_five_bits(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """ResNet-56, the quickest of the real ones, on pictures made small. benchmarks/mixed_bits.py is the measurement."""
    monkeypatch.setattr(mixing, "PROBES", 4)
    monkeypatch.setattr(mixing, "HELD", 16)
    decode = "decode: {kind: classify, num_classes: 10, scores_are_logits: true}"
    (tmp_path / "task.yaml").write_text(f"{RAW.splitlines()[0]}\n{decode}")
    model, dataset = load(assets / "models/cifar10_resnet56.onnx"), read(assets / "coco/images/val")
    runner = TARGETS["ort"].runner(model.float_bytes())
    task, _ = settle_task(model, dataset, str(tmp_path / "task.yaml"), lambda: runner)
    base = Recipe((Fold(), Quantize("native", "minmax"), CorrectBias()), 12)
    mixer = Mixer(model.with_task(task), task, dataset.calibration, "native", base)
    uniform = mixer.point(same(mixer, 5))
    best = mixer.within(Limits(uniform.bytes))
    assert uniform.bytes - 4096 < best.bytes <= uniform.bytes == same(mixer, 5).bytes
    assert best.measured < 0.85 * uniform.measured


def test_dominated_points_are_left_out():
    def point(size: int, measured: float) -> Point:
        trial = mixing.Trial("", "", "ort", Recipe(()), bytes(size), None)  # type: ignore[arg-type]
        return Point(trial, {}, 0.0, measured)

    small, worse, best, equal = point(5, 0.5), point(7, 0.6), point(9, 0.1), point(9, 0.1)
    assert undominated([best, worse, small, equal]) == [small, best]
    assert undominated([best, worse, small], keep=worse) == [small, worse, best]


# Whole jobs


@native
def test_a_job_under_a_limit_of_size(here: Path, speeds: Callable[[Any], None]):
    settings = Settings("raw.yaml", "native", min_sqnr=5.0, max_size="9000", threads=1)
    outcome = compress("planted.onnx", "unlabelled", "out", settings)
    report = json.loads(Path("out/report.json").read_text())
    plan = Path("out/model.rwp").read_bytes()
    assert len(plan) <= 9000 and outcome.exit_code == 0
    size = next(b for b in report["budgets"] if b["name"] == "size")
    assert (size["limit"], size["measured"], size["verdict"]) == (9000, len(plan), "holds")
    rows = report["pareto"]
    assert sum(r["chosen"] for r in rows) == 1 and [r["bytes"] for r in rows] == sorted(r["bytes"] for r in rows)
    page = Path("out/report.html").read_text()
    assert "Size against accuracy" in page and rows[0]["recipe"] in page
    # Every row's recipe makes the very size that the table says; the chosen one's makes the very plan.
    assert sorted(p.name for p in Path("out/recipes").iterdir()) == sorted(r["recipe"].split("/")[1] for r in rows)
    for row in rows:
        _, made_with = read_recipe(Path("out") / row["recipe"])
        assert made_with["target"] == "native"
        if row["chosen"] or row is rows[-1]:
            again = compress("planted.onnx", "unlabelled", "again", Settings("raw.yaml", "native", min_sqnr=5.0,
                             recipe=f"out/{row['recipe']}", threads=1), force=True)  # fmt: skip
            assert again.report["result"]["bytes"] == row["bytes"]
            assert (Path("again/model.rwp").read_bytes() == plan) == row["chosen"]
    # The folder of recipes is the job's own: it may be replaced.
    assert compress("planted.onnx", "unlabelled", "out", settings, force=True).exit_code == 0


def test_a_limit_that_int8_meets_anyway_changes_nothing(here: Path):
    plain = compress("model.onnx", "images", "a", Settings("task.yaml", "ort", 100.0, effort="quick", threads=1))
    limit = str(plain.report["result"]["bytes"])
    settings = Settings("task.yaml", "ort", 100.0, effort="quick", threads=1, max_size=limit)
    other = compress("model.onnx", "images", "b", settings)
    assert Path("a/model.onnx").read_bytes() == Path("b/model.onnx").read_bytes()
    assert other.report["pareto"] is None and not Path("b/recipes").exists()


def test_a_limit_that_nothing_meets_leaves_nothing_behind(here: Path, capfd: pytest.CaptureFixture[str]):
    run = roadworthy(capfd, "compress", "model.onnx", "--data", "images", "--task", "task.yaml", "--target", "ort",
                     "--effort", "quick", "--max-size", "0.01x", "--out", "out", "--threads", "1")  # fmt: skip
    assert run.code == 2 and "Traceback" not in run.err
    assert "the least that can be reached is" in run.err.splitlines()[-1]
    assert not Path("out").exists()


def test_a_limit_of_time_is_a_budget_of_the_report(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mixing, "bench", steady(lambda entry: 2.0))
    settings = {"task": "task.yaml", "target": "ort", "max_drop": 100.0, "effort": "quick", "threads": 1}
    held = compress("model.onnx", "images", "a", Settings(**settings, max_latency=2.5))
    row = next(b for b in held.report["budgets"] if b["name"] == "latency on ort")
    assert (row["measured"], row["limit"], row["verdict"], held.exit_code) == (2.0, 2.5, "holds", 0)


# What the user says


@pytest.mark.parametrize("said, size", [
    ("600000", 600000), ("600k", 600000), ("600 kB", 600000), ("1.5M", 1500000), ("0.2x", 200), ("1X", 1000),
])  # fmt: skip
def test_sizes_as_people_write_them(said: str, size: int):
    assert limits_of(said, None, 1000) == Limits(size)


@pytest.mark.parametrize("said", ["", "0", "0x", "-5", "many", "5 apples", "1e6k", "nan", "0.0001x", "x"])
def test_sizes_that_are_none_are_refused_in_a_sentence(said: str):
    with pytest.raises(InputError, match="--max-size"):
        limits_of(said, None, 1000)


@pytest.mark.parametrize("said", [0.0, -1.0, float("nan"), float("inf")])
def test_latencies_that_are_none_are_refused_in_a_sentence(said: float):
    with pytest.raises(InputError, match="--max-latency"):
        limits_of(None, said)


def test_a_refusal_on_one_target_is_told_as_input():
    assert issubclass(BeyondLimits, InputError) and not Limits() and Limits(5).fits(5) and not Limits(5).fits(6)
    assert yaml.safe_load(Recipe((Quantize("native", bits=(("a", 5),)),)).to_yaml())["steps"][0]["quantize"]["bits"]
    assert np.isfinite(mixing.FRONT)
