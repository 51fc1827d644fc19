"""`--target fixed`: a plan in fixed point and its golden vectors, and not a word about speed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small import SIDE, classifier, place

from command import roadworthy
from onnx_graphs import N, build
from roadworthy.check.report_schema import validate
from roadworthy.errors import InputError, UnsupportedError
from roadworthy.jobs import search, speed
from roadworthy.jobs.compress import FILES, GOLDEN_FILES, Outcome, Settings, compress
from roadworthy.run.native.plan import Plan
from roadworthy.run.native.task_text import is_fixed
from roadworthy.run.targets import TARGETS

pytestmark = pytest.mark.skipif(not TARGETS["fixed"].available(), reason="the native engine is not built")
CHECK = Path(__file__).parents[2] / "examples" / "fixed" / "check_golden.py"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place(tmp_path))
    return tmp_path


@pytest.fixture
def no_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the speed of a simulated target was measured")

    for module in (speed, search):
        monkeypatch.setattr(module, "bench", refuse)


def small(out: str = "out", force: bool = False, **options: Any) -> Outcome:
    told = {"effort": "quick", "threads": 1, "task": "task.yaml", "max_drop": 100.0, "target": "fixed", **options}
    return compress("model.onnx", "images", out, Settings(**told), force=force)


@pytest.mark.usefixtures("no_stopwatch")
def test_what_is_shipped_is_what_was_judged(here: Path):
    outcome = small()
    report, folder = outcome.report, Path("out")
    validate(report)
    assert outcome.exit_code == 0 and report["result"]["target"] == "fixed" and report["result"]["path"] == "model.rwp"
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES, *GOLDEN_FILES, "model.rwp"])
    plan = (folder / "model.rwp").read_bytes()
    assert report["result"]["sha256"] == hashlib.sha256(plan).hexdigest() and is_fixed(Plan.from_bytes(plan).text)
    x = {"x": np.random.default_rng(0).random((1, 3, SIDE, SIDE)).astype(np.float32)}
    a, b = (TARGETS["fixed"].runner(d, 1).run(x)["y"] for d in (plan, (folder / "model.onnx").read_bytes()))
    assert np.array_equal(a, b)
    # Not a word about speed, but one about why.
    assert [b["name"] for b in report["budgets"]] == ["accuracy drop"]
    assert report["speed"] == [] and report["result"]["speed_ratio"] is None
    assert any("its speed here says nothing" in line for line in report["summary"])
    assert not any("the speed of" in line for line in report["summary"])
    page = (folder / "report.html").read_text()
    assert "its speed here says nothing" in page and 'id="speed"' not in page


@pytest.mark.usefixtures("no_stopwatch")
def test_the_golden_vectors_are_right_and_replay_to_the_byte(here: Path):
    small()
    checked = subprocess.run([sys.executable, CHECK, "out/golden.npz", "out/golden.json"], capture_output=True,
                             text=True, check=False)  # fmt: skip
    assert checked.returncode == 0 and ", 0 of them wrong" in checked.stdout, checked.stdout + checked.stderr
    small("again", target="auto", recipe="out/recipe.yaml")
    for name in ("model.rwp", *GOLDEN_FILES):
        assert Path("again", name).read_bytes() == Path("out", name).read_bytes()


def test_the_checker_tells_in_one_sentence_what_it_cannot_use(tmp_path: Path):
    def ran(*args: object) -> tuple[int, str, str]:
        done = subprocess.run([sys.executable, CHECK, *map(str, args)], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    good, bad, text, other = (tmp_path / n for n in ("good.npz", "bad.npz", "bad.json", "other.json"))
    np.savez(good, a=np.zeros(1))
    bad.write_bytes(b"nothing")
    text.write_text("{")
    other.write_text('{"operations": [{"kind": "max", "name": "m", "output": "y", "inputs": ["x"]}], "values": {}}')
    assert ran("--help")[0] == 0 and "golden.npz golden.json" in ran("--help")[1]
    for args, told in (
        ((good,), "usage: "),
        ((good, tmp_path / "none.json"), "none.json cannot be read: No such file"),
        ((good, text), "bad.json is not JSON"),
        ((tmp_path / "none.npz", other), "none.npz cannot be read: No such file"),
        ((bad, other), "bad.npz is not a file of NumPy arrays"),
        ((good, other), "do not belong together"),
    ):
        code, out, err = ran(*args)
        assert code == 2 and not out and told in err and len(err.splitlines()) == 1, err


@pytest.mark.usefixtures("no_stopwatch")
def test_a_broken_budget_is_told_and_exits_with_3(here: Path):
    rng = np.random.default_rng(0)
    proto = classifier()
    tell = next(t for t in proto.graph.initializer if t.name == "tell")
    noise = onnx.numpy_helper.to_array(tell).copy()
    noise[:, 3:] = 40 * rng.normal(size=noise[:, 3:].shape)  # much that means nothing, so that int8 loses the colours
    tell.CopyFrom(onnx.numpy_helper.from_array(noise, "tell"))
    onnx.save(proto, "model.onnx")
    outcome = small(max_drop=0.0)
    drop = outcome.report["accuracy"]["drop"]
    assert outcome.exit_code == (3 if drop > 0 else 0)
    chosen = next(c for c in outcome.report["candidates"] if c["chosen"])
    assert chosen["why"].startswith("chosen: ") and ("does not hold" in chosen["why"]) == (drop > 0)


@pytest.mark.usefixtures("no_stopwatch")
def test_a_limit_on_its_latency_is_refused_at_once(here: Path):
    with pytest.raises(InputError, match=r"simulated here.*leave --max-latency out"):
        Settings(target="fixed", max_latency=1.0).check()
    Settings(target="ort", max_latency=1.0).check()
    Path("fixed.yaml").write_text("version: 1\nsteps: [{quantize: {target: fixed}}]\n")
    with pytest.raises(InputError, match=r"simulated here.*leave --max-latency out"):
        small(target="auto", recipe="fixed.yaml", max_latency=1.0)


def test_auto_never_takes_it_and_another_target_leaves_no_vectors(here: Path, speeds):
    small()
    assert "fixed" not in Settings(target="auto").targets
    speeds(lambda entry: 2.0 if entry.label.startswith("int8 ") else 4.0)
    outcome = small(target="auto", force=True)
    assert outcome.report["result"]["target"] != "fixed"
    assert not any("fixed" in c["name"] for c in outcome.report["candidates"])
    assert not any("not tried on fixed" in w for w in outcome.report["warnings"])
    assert not any(Path("out", name).exists() for name in GOLDEN_FILES)


@pytest.mark.usefixtures("no_stopwatch")
def test_a_float_inside_is_one_sentence_that_names_it(here: Path, capfd: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(0)
    weights = {"a": rng.normal(size=(4, 3, 3, 3)), "b": rng.normal(size=(3, 4, 1, 1))}
    nodes = [
        N("Conv", ["x", "a"], ["c"], name="first", pads=[1, 1, 1, 1]),
        N("Softmax", ["c"], ["d"], name="attention", axis=1),
        N("Conv", ["d", "b"], ["e"], name="second"),
        N("Relu", ["e"], ["f"]),
        N("Conv", ["f", "g"], ["h"], name="third"),
        N("GlobalAveragePool", ["h"], ["i"], name="pool"),
        N("Flatten", ["i"], ["y"], name="flat"),
    ]
    weights["g"] = rng.normal(size=(3, 3, 1, 1))
    onnx.save(build(nodes, {k: v.astype(np.float32) for k, v in weights.items()}, (1, 3, SIDE, SIDE)), "model.onnx")
    args = ["compress", "model.onnx", "--data", "images", "--task", "task.yaml", "--target", "fixed", "--threads", 1]
    ran = roadworthy(capfd, *args, "--effort", "quick", "--max-drop", 100, "--out", "out")
    said = ran.err.splitlines()[-1]  # behind what was told of the original
    assert ran.code == 2 and "Softmax 'attention' computes in float" in said and "use the target native" in said
    assert not Path("out").exists()
    with pytest.raises(UnsupportedError):
        small()


def test_the_command_names_the_vectors(here: Path, capfd: pytest.CaptureFixture[str]):
    args = ["compress", "model.onnx", "--data", "images", "--task", "task.yaml", "--target", "fixed", "--threads", 1]
    ran = roadworthy(capfd, *args, "--effort", "quick", "--max-drop", 100, "--out", "out")
    assert ran.code == 0 and "model.rwp, model.onnx, golden.npz, golden.json" in ran.out
    assert roadworthy(capfd, "bench", "model.onnx", "--target", "fixed").code == 2
    said = roadworthy(capfd, "bench", "out/model.rwp").refusal
    assert "out/model.rwp computes in fixed point" in said and "its speed here says nothing" in said
