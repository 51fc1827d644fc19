"""The jobs behind `eval`, `align`, `bench` and `inspect`: files in, plain results out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from roadworthy.check.accuracy import (
    agreement,
    drops_of,
    labelled,
    labels_of,
    predict,
    reference_of,
    score,
    tensor_of,
)
from roadworthy.check.align import Alignment, align
from roadworthy.check.bench import BenchResult, Entry, bench
from roadworthy.check.contract import settle_task, suspects
from roadworthy.check.inspect import inspect, table_rows, totals
from roadworthy.data.readers import read
from roadworthy.detect.evaluate import SIZES, Interval
from roadworthy.detect.figures import Drops
from roadworthy.errors import InputError
from roadworthy.jobs.evidence import _detail
from roadworthy.jobs.trial import Ui
from roadworthy.model import graph as g
from roadworthy.model.model import Model, load
from roadworthy.model.recognize import recognize
from roadworthy.model.task import Task
from roadworthy.run.native.layers_table import LayerTime, layer_times
from roadworthy.run.native.plan import Plan
from roadworthy.run.native.runner import is_plan
from roadworthy.run.native.task_text import is_fixed, task_of
from roadworthy.run.targets import TARGETS

Size = tuple[int, int] | None


def plan_in(source: str) -> bytes | None:
    """The bytes of a file that is a native plan, else None. What cannot be read is left to `load` to refuse."""
    try:
        with Path(source).open("rb") as file:
            return file.read() if is_plan(file.read(4)) and not file.seek(0) else None
    except OSError:
        return None


def _task_in(plan: bytes, source: str) -> Task:
    return task_of(Plan.from_bytes(plan).text, source)


def _open(source: str, size: Size) -> tuple[Model, bytes]:
    """A model, and the bytes that a runtime should load: the file's own, or the fixed form of one with open sizes."""
    if plan_in(source) is not None:
        raise InputError(f"{source} is a native plan, which keeps no graph; hand in the ONNX file it was made from")
    model = load(source, input_hw=size)
    return model, model.float_bytes()


def evaluate(
    source: str,
    data: str,
    task: str | None,
    reference: str | None,
    target: str,
    seed: int,
    threads: int,
    size: Size,
    ui: Ui,
) -> dict[str, Any]:
    """Accuracy of a model, beside its original where one is given, with what looks wrong about its contract."""
    plan = plan_in(source)
    model: Model | None = None
    if plan is None:
        model, content = _open(source, size)
    else:
        if task is not None:
            raise InputError(
                f"{source} is a native plan and carries its task, so --task cannot change it; leave it out"
            )
        content, target = plan, "native"
    dataset = read(data, split_seed=seed)
    samples = dataset.test
    if reference is None and samples.kind == "images":
        raise InputError(f"{data} has no labels; give labelled images, or the original with --reference to agree with")
    findings: list[str] = []
    original: Model | None = None
    original_task: Task | None = None
    if reference is not None:
        original, original_content = _open(reference, size)
        original_task, _ = settle_task(
            original, dataset, task, lambda: TARGETS["ort"].runner(original_content, threads), seed
        )
    if model is None:
        mine, notes = _task_in(content, source), [f"{source} is a native plan and carries its task"]
    else:
        mine, notes = _task_of(model, original_task, dataset, task, content, threads, seed)
    if mine.decode.kind == "raw":
        raise InputError("a raw task has no accuracy of its own; use `roadworthy align` to compare outputs")
    if reference is None and not labelled(mine, samples):
        raise InputError(
            f"the labels of {data} are {samples.kind}, by which a {mine.decode.kind} task cannot be measured;"
            " give others, or the original with --reference to agree with"
        )
    for line in (*notes, dataset.note):
        if line:
            ui.note(line)
    if original_task is not None:
        findings += [f"the task contract differs from the original's: {d}" for d in mine.differences(original_task)]
        theirs, own_threshold = original_task.decode.score_threshold, mine.decode.score_threshold
        if mine.is_detector and theirs != own_threshold:
            ui.note(f"operating thresholds: {theirs:g} of the original, {own_threshold:g} of the model")
    runner = TARGETS[target].runner(content, threads)
    with ui.stage("model: test images", len(samples)) as advance:
        predictions = predict(runner, mine, samples, progress=advance)
    own = TARGETS["ort"].runner(original_content, threads) if original is not None else runner
    judged_by = original_task or mine
    truth = reference_of(lambda: own, judged_by, samples)
    detail = score(predictions, truth, mine)
    result: dict[str, Any] = {
        "model": source,
        "metric": detail.metric,
        "images": len(samples),
        "reference": truth.kind,
        "accuracy": {"model": _detail(detail, mine)},
        "rows": ["map", "ap50", "ap75", "small", "medium", "large", "recall", "precision"]
        if mine.is_detector
        else ["top1", "top5"],
    }
    if original is not None:
        with ui.stage("original: test images", len(samples)) as advance:
            base = predict(own, judged_by, samples, progress=advance)
        result["accuracy"]["original"] = _detail(score(base, truth, judged_by), judged_by)
        thresholds = (judged_by.decode.score_threshold, mine.decode.score_threshold)
        lost = drops_of(
            base, predictions, truth, mine, thresholds, tuple(SIZES), tuple(labels_of(truth, mine)), 1000, seed
        )
        result["drop"] = asdict(lost.whole)
        result["drops"] = _drops(lost, mine)
        result["agreement"] = agreement(base, predictions, judged_by, mine.decode.score_threshold)
    if model is not None:
        with ui.stage("contract", None):
            findings += suspects(model, mine, samples, runner, seed)
    result["findings"] = findings
    return result


def _drops(lost: Drops, task: Task) -> list[dict[str, Any]]:
    """A row for recall and each size, then one for each class, the largest drop first; labels: None where all count."""
    names = task.names
    rows: list[tuple[str, str, Interval, float | None]] = []
    if lost.recall is not None:
        rows.append(("whole", "recall at the operating threshold", lost.recall, None))
    rows += [("size", f"{size} objects", i, lost.labels[size]) for size, i in lost.sizes.items()]
    per_class = sorted(lost.per_class.items(), key=lambda item: -item[1].drop)
    rows += [("class", names[c] if c < len(names) else str(c), i, lost.labels[c]) for c, i in per_class]
    return [{"kind": kind, "of": name, **asdict(interval), "labels": n} for kind, name, interval, n in rows]


def _task_of(
    model: Model, fallback: Task | None, dataset: Any, given: str | None, content: bytes, threads: int, seed: int
) -> tuple[Task, list[str]]:
    """The model's own contract; the original's where it carries none."""
    if given is None and model.task is None and fallback is not None:
        return fallback, ["the model carries no task; the original's is used"]
    return settle_task(model, dataset, given, lambda: TARGETS["ort"].runner(content, threads), seed)


def align_files(
    original: str, other: str, data: str, task: str | None, images: int, seed: int, threads: int, size: Size, ui: Ui
) -> Alignment:
    """Compare two files on some images."""
    a, content = _open(original, size)
    b, _ = _open(other, size)
    dataset = read(data, split_seed=seed)
    given = task
    if given is None and a.task is None and b.task is not None and recognize(a) is None:
        settled: Task = b.task
    else:
        settled, _ = settle_task(a, dataset, given, lambda: TARGETS["ort"].runner(content, threads), seed)
    samples = dataset.test.take(min(images, len(dataset.test)), seed)
    a = a.with_task(settled)
    with ui.stage("align", len(samples)) as advance:
        return align(a, b, (tensor_of(s, settled)[0] for s in samples), threads, advance)


def bench_files(
    models: tuple[str, ...], targets: tuple[str, ...], data: str | None, task: str | None, seconds: float, threads: int,
    size: Size, ui: Ui,
) -> BenchResult:  # fmt: skip
    """Measure files on targets, all of them interleaved."""
    entries: list[Entry] = []
    dataset = read(data) if data is not None else None
    frames = [s.image() for s in dataset.test[:8]] if dataset is not None else []
    for source in models:
        content, settled = plan_in(source) or b"", None
        if content:
            if is_fixed(Plan.from_bytes(content).text):
                raise InputError(
                    f"{source} computes in fixed point, as devices without floating point do; its speed here says"
                    " nothing, so measure it on the device"
                )
            settled = _task_in(content, source) if dataset is not None else None
        else:
            model, content = _open(source, size)
            if dataset is not None:
                settled, _ = settle_task(model, dataset, task, lambda c=content: TARGETS["ort"].runner(c, threads))  # type: ignore[misc]
        for target in ("native",) if is_plan(content) else targets:
            label = f"{Path(source).name} on {target}"
            if any(e.label == label for e in entries):
                label = f"{source} on {target}"
            entries.append(
                Entry(label, content, target, frames if settled else (), settled.preprocess if settled else None,
                      settled.decode if settled and settled.is_detector else None)
            )  # fmt: skip
    with ui.stage("speed", 100) as advance:
        return bench(entries, threads=threads or None, seconds=seconds, progress=lambda s, _: advance(int(100 * s)))


def native_layers(source: str, threads: int, size: Size) -> list[LayerTime]:
    """Time of every operation of a model on the native engine, on one thread unless told otherwise."""
    plan = plan_in(source)
    return layer_times(_open(source, size)[1] if plan is None else plan, threads or 1)


def inspect_file(source: str, size: Size) -> dict[str, Any]:
    """What a model is and costs."""
    model, content = _open(source, size)
    layers = inspect(onnx.load_model_from_string(content))
    guess = recognize(model)
    if model.task is not None:
        text = f"{model.task.decode.kind}, from the metadata"
    elif guess is not None:
        text = f"{guess.decode.kind}: {guess.why}"
    else:
        text = "not certain from the outputs; give --task"
    return {
        "path": source,
        "sha256": model.sha256,
        "bytes": model.size,
        "opset": g.opset(model.ir),
        "input": f"{model.input_name} {list(model.input_shape)}",
        "outputs": [f"{n} {list(g.static_shape(g.values(model.ir)[n]) or [])}" for n in model.output_names],
        "task_text": text,
        "task": model.task.to_dict() if model.task else None,
        "totals": totals(layers).to_json(),
        "layers": table_rows(layers),
    }
