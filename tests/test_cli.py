"""The command line and the package as a user meets them first: help, exit codes, JSON, a quick and light import."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import click
import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import roadworthy as rw
from command import ENVIRONMENT, roadworthy
from roadworthy.cli import cli
from roadworthy.data.street import scene
from roadworthy.jobs.sample import detector

COMMANDS = ("align", "bench", "compress", "demo", "eval", "finetune", "inspect")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few street scenes, unlabelled."""
    folder = tmp_path_factory.mktemp("scenes")
    for index in range(6):
        cv2.imwrite(str(folder / f"{index}.png"), scene(index, 3000)[0])
    return folder


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded detector with one layer's weights at half their size."""
    proto = onnx.load(detector())
    node = next(n for n in proto.graph.node if n.op_type == "Conv" and n.name.startswith("fine"))
    weight = next(t for t in proto.graph.initializer if t.name == node.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(0.5), weight.name))
    file = tmp_path_factory.mktemp("damaged") / "damaged.onnx"
    onnx.save(proto, file)
    return file


# Help


def test_the_commands_are_these_and_each_has_a_line(capfd: pytest.CaptureFixture[str]):
    assert tuple(sorted(cli.commands)) == COMMANDS
    for args in (["--help"], ["-h"], []):
        ran = roadworthy(capfd, *args)
        assert ran.code == 0 and ran.err == ""
        assert all(f"\n  {name} " in ran.out for name in COMMANDS)
        assert "..." not in ran.out.split("Commands:")[1]  # no line is cut short


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example_that_parses(name: str, capfd: pytest.CaptureFixture[str]):
    ran = roadworthy(capfd, name, "--help")
    assert ran.code == 0 and ran.err == ""
    *_, heading, example = ran.out.rstrip().splitlines()
    assert heading == "Example:" and example.startswith(f"  roadworthy {name}")
    command = cli.commands[name]
    command.make_context(name, shlex.split(example)[2:])  # raises for an option that is not there
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{name} {option.name} has no help"


def test_version(capfd: pytest.CaptureFixture[str]):
    ran = roadworthy(capfd, "--version")
    assert ran.code == 0 and ran.out == f"roadworthy, version {rw.__version__}\n"


# Results, as text and as JSON


def loaded(file: Path) -> dict:
    """Strict JSON: NaN and infinity are none."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    assert [p.name for p in file.parent.iterdir()] == [file.name]  # and no temporary file
    return json.loads(file.read_text(), parse_constant=refuse)


def test_inspect(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    ran = roadworthy(capfd, "inspect", detector(), "--top", 3, "--json", tmp_path / "i.json")
    assert ran.code == 0 and ran.err == "" and "task: yolox, from the metadata" in ran.out
    document = loaded(tmp_path / "i.json")
    proto = onnx.load(detector())
    assert document["bytes"] == detector().stat().st_size
    assert document["totals"]["convolutions"] == sum(n.op_type == "Conv" for n in proto.graph.node)
    used = {name for n in proto.graph.node if n.op_type == "Conv" for name in n.input[1:]}
    counted = sum(int(np.prod(t.dims)) for t in proto.graph.initializer if t.name in used)
    assert document["totals"]["parameters"] == counted


def test_nothing_is_cut_on_a_pipe(capfd: pytest.CaptureFixture[str]):
    ran = roadworthy(capfd, "inspect", detector(), "--top", 100)
    assert "…" not in ran.out
    for node in onnx.load(detector()).graph.node:
        if node.op_type == "Conv":
            assert node.name in ran.out


def test_eval_with_a_reference(images: Path, damaged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    args = ["--data", images, "--reference", detector(), "--threads", 1]
    ran = roadworthy(capfd, "eval", damaged, *args, "--json", tmp_path / "e.json")
    assert ran.code == 0, ran.err
    document = loaded(tmp_path / "e.json")
    lost = document["accuracy"]["original"]["map"] - document["accuracy"]["model"]["map"]
    assert document["drop"]["drop"] == pytest.approx(lost) and lost > 5
    assert f"drop {lost:+.2f} points" in ran.out


def test_align_finds_the_damaged_layer_and_exits_with_3(
    images: Path, damaged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    args = ["--data", images, "--images", 2, "--threads", 1, "--json", tmp_path / "a.json"]
    ran = roadworthy(capfd, "align", detector(), damaged, *args)
    assert ran.code == 3 and "finding: " in ran.out
    document = loaded(tmp_path / "a.json")
    assert any("fine" in finding["text"] for finding in document["findings"])
    same = roadworthy(capfd, "align", detector(), detector(), *args)
    assert same.code == 0 and "no divergence" in same.out and "finding: " not in same.out
    assert loaded(tmp_path / "a.json")["findings"] == []


def test_bench(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    args = ["--threads", 1, "--seconds", 0.5, "--json", tmp_path / "b.json"]
    ran = roadworthy(capfd, "bench", detector(), *args)
    assert ran.code == 0 and "street_detector.onnx on ort" in ran.out and "on 1 thread;" in ran.out
    (entry,) = loaded(tmp_path / "b.json")["entries"]
    assert entry["ratio"] == 1.0 and entry["median_ms"] > 0


# The package

ASK = """
import json, sys, time
start = time.perf_counter()
import roadworthy
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules)}))
"""


def test_importing_is_quick_and_light():
    seconds = []
    for _ in range(3):
        ran = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
        assert ran.returncode == 0, ran.stderr
        told = json.loads(ran.stdout)
        heavy = {"torch", "onnxruntime", "cv2", "openvino", "pycocotools", "rich", "jinja2", "pydantic"}
        assert not heavy & set(told["modules"])
        seconds.append(told["seconds"])
    assert min(seconds) < 0.5


def test_help_needs_nothing_heavy_either():
    code = "import sys\nfrom roadworthy import cli\nsys.argv = ['roadworthy', '--help']\n"
    code += "try:\n    cli.main()\nexcept SystemExit: pass\nprint([m for m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    for name in ("torch", "onnxruntime", "cv2", "openvino", "onnx"):
        assert f"'{name}'" not in ran.stdout, name


NAMES = """
import importlib, pkgutil, types
import roadworthy as rw
first = {name: getattr(rw, name) for name in rw.__all__}
for module in pkgutil.walk_packages(rw.__path__, "roadworthy."):
    if module.name.count(".") == 1:
        importlib.import_module(module.name)
for name in rw.__all__:
    again = getattr(rw, name)
    assert again is first[name], f"{name} changes once its module is imported"
    assert not isinstance(again, types.ModuleType), f"{name} is a module"
assert set(rw.__all__) <= set(dir(rw))
print(len(first))
"""


def test_every_public_name_resolves_and_stays_what_it_is():
    ran = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) == len(set(rw.__all__)) > 20


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'frobnicate'"):
        _ = rw.frobnicate


def test_public_names_say_what_they_are():
    for name in rw.__all__:
        value = getattr(rw, name)
        if callable(value):
            assert (value.__doc__ or "").strip(), name
