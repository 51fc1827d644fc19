"""Bad input of every kind, given to the real command: one sentence names the culprit, exit code 2, no trace left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small import SIDE, TASK, classifier, picture, place

from command import ENVIRONMENT, roadworthy, tree
from onnx_graphs import N, build, const, rand

Args = list[object]
Case = tuple[Callable[[], Args], str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a good model, a good task and good images; the command is run inside."""
    monkeypatch.chdir(place(tmp_path))
    return tmp_path


def compress(*more: object, model: str = "model.onnx", data: str = "images", task: str | None = "task.yaml") -> Args:
    told = ["--task", task] if task else []
    return ["compress", model, "--data", data, *told, "--threads", 1, "--effort", "quick", "--target", "ort", *more]


def write(name: str, content: str | bytes | onnx.ModelProto) -> str:
    if isinstance(content, onnx.ModelProto):
        content = content.SerializeToString()
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


# Models


def model(content: str | bytes | onnx.ModelProto, **options: str | None) -> Args:
    return compress(model=write("bad.onnx", content), **options)


def changed(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    proto = classifier()
    change(proto)
    return proto


def poisoned(proto: onnx.ModelProto) -> None:
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[0, 0, 0, 0] = np.nan
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "mix"))


def open_size() -> onnx.ModelProto:
    def change(proto: onnx.ModelProto) -> None:
        for axis, name in ((2, "height"), (3, "width")):
            proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name

    return changed(change)


def quantized() -> onnx.ModelProto:
    nodes = [
        N("QuantizeLinear", ["x", "s", "z"], ["q"]),
        N("DequantizeLinear", ["q", "s", "z"], ["d"]),
        N("Conv", ["d", "w"], ["c"]),
        N("GlobalAveragePool", ["c"], ["p"]),
        N("Flatten", ["p"], ["y"]),
    ]
    weights = {"s": np.float32(0.02), "z": np.uint8(128), "w": rand(3, 3, 1, 1)}
    return build(nodes, weights, (1, 3, SIDE, SIDE))


def integer_convolution() -> onnx.ModelProto:
    """The other file form of int8: operators on integers, as dynamic quantization writes them."""
    nodes = [
        N("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        N("ConvInteger", ["q", "w", "z"], ["c"], name="whole"),
        N("Cast", ["c"], ["f"], to=TensorProto.FLOAT),
        N("Mul", ["f", "s"], ["m"]),
        N("GlobalAveragePool", ["m"], ["p"]),
        N("Flatten", ["p"], ["y"]),
    ]
    return build(nodes, {"w": np.ones((3, 3, 1, 1), np.int8)}, (1, 3, SIDE, SIDE))


def headless() -> onnx.ModelProto:
    """(1, 7, 13): no family of detectors has it."""
    return build([N("MatMul", ["x", "w"], ["a"]), const("to", [1, 7, 13]), N("Reshape", ["a", "to"], ["y"])],
                 {"w": rand(SIDE, 91)}, (1, 1, 1, SIDE))  # fmt: skip


def tabular() -> onnx.ModelProto:
    return build([N("MatMul", ["x", "w"], ["y"], name="only")], {"w": rand(4, 3)}, (1, 4))


def second_input(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


MODELS: dict[str, Case] = {
    "missing": (lambda: compress(model="nowhere.onnx"), "nowhere.onnx does not exist"),
    "a folder": (lambda: compress(model="images"), "images is a directory"),
    "text": (lambda: model("hello\n" * 40), "bad.onnx is not an ONNX model"),
    "empty": (lambda: model(b""), "bad.onnx is an empty file"),
    "cut short": (lambda: model(classifier().SerializeToString()[:-900]), "bad.onnx"),
    "PyTorch file": (lambda: model(b"PK\x03\x04" + bytes(200)), "bad.onnx is not an ONNX model"),
    "unknown operator": (
        lambda: model(changed(lambda p: setattr(p.graph.node[1], "op_type", "Frobnicate"))), "'Frobnicate'"),
    "custom domain": (lambda: model(changed(lambda p: setattr(p.graph.node[1], "domain", "acme.ai"))), "'acme.ai'"),
    "NaN": (lambda: model(changed(poisoned)), "weight 'mix' holds 1 value that is NaN"),
    "Q/DQ": (lambda: model(quantized()), "bad.onnx is quantized already"),
    "integer operators": (lambda: model(integer_convolution()), "bad.onnx is quantized already"),
    "two inputs": (lambda: model(changed(second_input)), "has 2 inputs (x, mask)"),
    "open size": (lambda: model(open_size()), "'x' is dynamic; give it with --size"),
    "no image": (lambda: model(tabular(), task="classify"), "no image"),
    "no image, no task": (lambda: model(tabular(), task=None), "bad.onnx"),
    "nothing to compress": (
        lambda: model(build([N("GlobalAveragePool", ["x"], ["p"]), N("Flatten", ["p"], ["y"])], {}, (1, 3, 32, 32))),
        "no layer"),
}  # fmt: skip

# Tasks


def task(text: str) -> Args:
    return compress(task=write("bad.yaml", text))


TASKS: dict[str, Case] = {
    "not certain": (lambda: model(headless(), task=None), "not certain from its outputs (y [1, 7, 13])"),
    "another kind": (lambda: compress(task="yolox"), "--task yolox"),
    "no kind at all": (lambda: compress(task="yolo99"), "--task 'yolo99'"),
    "raw without preprocessing": (lambda: compress(task="raw"), "--task raw"),
    "a folder": (lambda: compress(task="images"), "--task 'images'"),
    "unknown key": (lambda: task(TASK.replace("num_classes", "classes")), "`decode.classes` in the task file bad.yaml"),
    "unknown part": (lambda: task(TASK + "\npostprocess: {}"), "`postprocess`"),
    "wrong type": (lambda: task(TASK.replace("num_classes: 3", "num_classes: many")), "`decode.num_classes`"),
    "wrong type in preprocess": (lambda: task(TASK.replace("color: rgb", "color: 3")), "preprocess color is 3"),
    "negative size": (lambda: task(TASK.replace("[32, 32]", "[-32, 32]")), "size_hw"),
    "unknown decoder": (lambda: task(TASK.replace("classify", "yolo99")), "'yolo99'"),
    "another size than the input": (lambda: task(TASK.replace("[32, 32]", "[48, 32]")), "[1, 3, 48, 32]"),
    "another number of channels": (lambda: task(TASK.replace("rgb", "gray")), "[1, 1, 32, 32]"),
    "another number of classes": (lambda: task(TASK.replace("num_classes: 3", "num_classes: 5")), "5"),
    "not YAML": (lambda: task("decode: {kind: [\n"), "bad.yaml is not YAML"),
    "raw without preprocessing in the file": (lambda: task("decode: {kind: raw}"), "bad.yaml has no `preprocess`"),
    "a list": (lambda: task("- classify"), "bad.yaml must hold a mapping"),
    "a version of the future": (lambda: task(TASK + "\nversion: 9"), "version 9"),
    "bytes": (lambda: compress(task=write("bad.yaml", bytes(range(256)))), "bad.yaml"),
}

# Data


def data(name: str, content: str | bytes) -> Args:
    return compress(data=write(name, content))


def empty() -> Args:
    Path("nothing").mkdir()
    return compress(data="nothing")


def spoiled(index: int, how: str) -> Args:
    """One image of the set is no image any more. Images 0 to 11 go by lot to calibration or to test."""
    file = Path("images", f"{index:02d}.png")
    if how == "corrupt":
        file.write_bytes(bytes(500))
    elif how == "cut":
        cv2.imwrite("whole.jpg", picture(index))
        file.write_bytes(Path("whole.jpg").read_bytes()[:-300])
        Path("whole.jpg").unlink()
    elif how == "gone":
        file.unlink()
    return compress()


def labels(line: str) -> Args:
    file = Path("images/labels.csv")
    file.write_text(file.read_text().replace("04.png,1", line))
    return compress()


def yolo(names: str, label: str = "0 0.5 0.5 0.2 0.2") -> Args:
    for index in range(4):
        Path("set/images").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(f"set/images/{index}.png", picture(index))
        write(f"set/labels/{index}.txt", label)
    return compress(data=write("set/data.yaml", f"train: images\nval: images\nnames: {names}"))


DATA: dict[str, Case] = {
    "missing": (lambda: compress(data="nowhere"), "no data set at nowhere"),
    "no images": (empty, "nothing holds no images"),
    "an image": (lambda: compress(data="images/00.png"), "images/00.png is no data set"),
    "text": (lambda: data("notes.txt", "hello"), "notes.txt is no data set"),
    "broken json": (lambda: data("a.json", '{"images": ['), "a.json is not valid JSON"),
    "csv without header": (lambda: data("images/other.csv", "00.png,1\n"), "images/other.csv has no column"),
    "csv without images": (lambda: data("images/other.csv", "file,class_index\n"), "images/other.csv lists no images"),
    "label out of range": (lambda: labels("04.png,3"), "04.png"),
    "label no number": (lambda: labels("04.png,cat"), "'cat'"),
    "image not there": (lambda: spoiled(4, "gone"), "04.png"),
    "class count": (lambda: yolo("[a, b, c, d, e]"), "names 5"),
    "box label out of range": (lambda: yolo("[a, b, c]", "7 0.5 0.5 0.2 0.2"), "0.txt line 1 has class 7"),
}
DATA |= {f"image {k} corrupt": (lambda k=k: spoiled(k, "corrupt"), f"{k:02d}.png is corrupt") for k in range(4)}
DATA |= {f"image {k} cut short": (lambda k=k: spoiled(k, "cut"), f"{k:02d}.png is cut short") for k in range(4)}

# Options


OPTIONS: dict[str, Case] = {
    "target": (lambda: compress("--target", "tensorrt"), "'tensorrt' is not one of 'ort', 'openvino'"),
    "effort": (lambda: compress("--effort", "some"), "'some' is not one of 'quick'"),
    "negative drop": (lambda: compress("--max-drop", "-1"), "--max-drop is -1"),
    "drop above all": (lambda: compress("--max-drop", "101"), "--max-drop is 101"),
    "drop no number": (lambda: compress("--max-drop", "much"), "'--max-drop': 'much'"),
    "drop NaN": (lambda: compress("--max-drop", "nan"), "--max-drop is nan"),
    "sqnr NaN": (lambda: compress("--min-sqnr", "nan"), "--min-sqnr is nan"),
    "size": (lambda: compress("--size", "640"), "'--size': '640' is not WIDTHxHEIGHT"),
    "size of nothing": (lambda: compress("--size", "0x32"), "'0x32'"),
    "threads": (lambda: compress("--threads", "-1"), "'--threads': -1"),
    "unknown": (lambda: compress("--frobnicate"), "no such option '--frobnicate'"),
    "misspelt": (lambda: compress("--effrt", "quick"), "--effort"),
    "no data": (lambda: ["compress", "model.onnx"], "missing option '--data'"),
    "no model": (lambda: ["compress", "--data", "images"], "missing argument 'MODEL'"),
    "one model too many": (lambda: compress("other.onnx"), "other.onnx"),
    "no such command": (lambda: ["shrink", "model.onnx"], "'shrink'"),
}

# Recipes

GOOD = "version: 1\nimages: 8\nseed: 0\nsteps:\n- fold: {}\n"


def recipe(text: str, *more: object) -> Args:
    return compress("--recipe", write("r.yaml", text), *more)


RECIPES: dict[str, Case] = {
    "missing": (lambda: compress("--recipe", "nowhere.yaml"), "nowhere.yaml"),
    "not YAML": (lambda: recipe("steps: [\n"), "r.yaml is not YAML"),
    "no steps": (lambda: recipe("version: 1"), "r.yaml needs a list `steps`"),
    "version": (lambda: recipe(GOOD.replace("1", "7", 1)), "version 7"),
    "unknown key": (lambda: recipe(GOOD + "budget: 3\n"), "`budget`"),
    "unknown step": (lambda: recipe(GOOD + "- prune: {ratio: 0.5}\n"), "unknown step `prune`"),
    "unknown setting": (lambda: recipe(GOOD + "- quantize: {bits: 8}\n"), "`quantize.bits`"),
    "wrong setting": (lambda: recipe(GOOD + "- quantize: {observer: luck}\n"), "'luck'"),
    "unknown layer in float": (lambda: recipe(GOOD + "- quantize: {target: ort, keep_float: [conv9]}\n"), "'conv9'"),
    "unknown layer stored": (lambda: recipe(GOOD + "- store_weights: {wide: [conv9]}\n"), "'conv9'"),
    "negative images": (lambda: recipe(GOOD.replace("8", "-8")), "`images`"),
    "no images": (lambda: recipe(GOOD.replace("8", "0")), "`images`"),
    "another target": (lambda: recipe(GOOD + "- quantize: {target: openvino}\n"), "--target is ort"),
    "settings no mapping": (lambda: recipe(GOOD + "- quantize: [ort]\n"), "quantize"),
    "a step without a name": (lambda: recipe(GOOD + "- [fold]\n"), "r.yaml"),
}  # fmt: skip

# Other commands


def unlabelled(command: str, *more: object) -> Args:
    return [command, "model.onnx", "--data", "unlabelled", "--task", "task.yaml", "--threads", 1, *more]


OTHERS: dict[str, Case] = {
    "eval: json in no folder": (lambda: unlabelled("eval", "--json", "no/a.json"), "--json no/a.json"),
    "eval: json is a folder": (lambda: unlabelled("eval", "--json", "images"), "--json images"),
    "eval: nothing to hold it against": (lambda: unlabelled("eval"), "unlabelled has no labels"),
    "eval: boxes for a classifier": (
        lambda: ["eval", "model.onnx", "--task", "task.yaml", *yolo("[a, b, c]")[2:4]],
        "labels of set/data.yaml are boxes",
    ),
    "eval: raw": (
        lambda: [
            "eval",
            "model.onnx",
            "--data",
            "images",
            "--task",
            write("raw.yaml", TASK.split("decode")[0] + "decode: {kind: raw}"),
        ],
        "a raw task",
    ),
    "eval: reference missing": (lambda: unlabelled("eval", "--reference", "nowhere.onnx"), "nowhere.onnx"),
    "eval: no data": (lambda: ["eval", "model.onnx"], "'--data'"),
    "inspect: missing": (lambda: ["inspect", "nowhere.onnx"], "nowhere.onnx"),
    "inspect: text": (lambda: ["inspect", write("bad.onnx", "hi " * 99)], "bad.onnx is not an ONNX model"),
    "inspect: json in no folder": (lambda: ["inspect", "model.onnx", "--json", "no/a.json"], "--json no/a.json"),
    "bench: no models": (lambda: ["bench"], "'MODELS...'"),
    "bench: missing": (lambda: ["bench", "model.onnx", "nowhere.onnx"], "nowhere.onnx"),
    "bench: target": (lambda: ["bench", "model.onnx", "--target", "cuda"], "'cuda'"),
    "bench: no time": (lambda: ["bench", "model.onnx", "--seconds", "0"], "'--seconds'"),
    "bench: json in no folder": (lambda: ["bench", "model.onnx", "--json", "no/a.json"], "--json no/a.json"),
    "align: missing": (lambda: ["align", "model.onnx", "nowhere.onnx", "--data", "images"], "nowhere.onnx"),
    "align: no images": (lambda: ["align", "model.onnx", "model.onnx", "--data", "nowhere"], "nowhere"),
}

GROUPS = {
    "model": MODELS, "task": TASKS, "data": DATA, "option": OPTIONS, "recipe": RECIPES, "other": OTHERS,
}  # fmt: skip


@pytest.mark.parametrize(("group", "name"), [(g, n) for g, cases in GROUPS.items() for n in cases])
def test_one_sentence_names_the_culprit_and_nothing_is_left(
    group: str, name: str, here: Path, capfd: pytest.CaptureFixture[str]
):
    make, culprit = GROUPS[group][name]
    args = make()
    before = tree(here)
    ran = roadworthy(capfd, *args)
    assert culprit in ran.refusal
    assert tree(here) == before


# The output folder


def test_an_existing_output_stays_byte_for_byte(here: Path, capfd: pytest.CaptureFixture[str]):
    for name in ("model.onnx", "report.html", "report.json", "recipe.yaml"):
        write(f"out/{name}", f"the old {name}")
    before = tree(here)
    assert "out exists; add --force" in roadworthy(capfd, *compress("--out", "out")).refusal
    assert tree(here) == before
    args = compress("--out", "out", "--force", model=write("bad.onnx", "hi " * 99))
    before = tree(here)
    assert "bad.onnx" in roadworthy(capfd, *args).refusal
    assert tree(here) == before


def test_the_default_output_is_named_after_the_model_and_guarded_too(here: Path, capfd: pytest.CaptureFixture[str]):
    write("model-compressed/report.json", "{}")
    assert "model-compressed exists" in roadworthy(capfd, *compress()).refusal


@pytest.mark.parametrize("more", [[], ["--force"]])
def test_foreign_files_are_never_replaced(here: Path, capfd: pytest.CaptureFixture[str], more: list[str]):
    write("out/model.onnx", "old")
    write("out/thesis.tex", "years of work")
    before = tree(here)
    assert "thesis.tex" in roadworthy(capfd, *compress("--out", "out", *more)).refusal
    assert tree(here) == before


@pytest.mark.parametrize("out", ["task.yaml/out", "task.yaml/deeper/out", "task.yaml", "/proc/roadworthy-out"])
def test_an_output_that_cannot_be_made(here: Path, capfd: pytest.CaptureFixture[str], out: str):
    if out.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("there is no /proc here")
    before = tree(here)
    assert f"the output {'folder ' * (out != 'task.yaml')}{out}" in roadworthy(capfd, *compress("--out", out)).refusal
    assert tree(here) == before


def test_folders_on_the_way_to_a_refused_output_are_not_left(here: Path, capfd: pytest.CaptureFixture[str]):
    args = spoiled(0, "corrupt")
    before = tree(here)
    assert "00.png" in roadworthy(capfd, *args, "--out", "a/b/out").refusal
    assert tree(here) == before


def test_the_working_folder_is_no_output_while_it_holds_other_files(here: Path, capfd: pytest.CaptureFixture[str]):
    assert "--out" in roadworthy(capfd, *compress("--out", ".", "--force")).refusal


# As a process of its own


@pytest.mark.parametrize("args", [["compress", "bad.onnx", "--data", "images"], ["compress", "--wrong"]])
def test_as_a_process(here: Path, args: list[str]):
    write("bad.onnx", "hello " * 50)
    ran = subprocess.run(
        [sys.executable, "-m", "roadworthy.cli", *args], capture_output=True, text=True, timeout=60, env=ENVIRONMENT
    )
    assert ran.returncode == 2 and ran.stdout == ""
    assert ran.stderr.startswith("roadworthy: ") and ran.stderr.count("\n") == 1
