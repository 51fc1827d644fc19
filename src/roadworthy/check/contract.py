"""Settling the task of a model: from its metadata, from the user, from the graph, and by measurement where needed.

A contract that nothing proves is never guessed. What the graph leaves open is measured on the user's own images; when
the measurement does not stand clear, the user is asked, and told which two answers are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from roadworthy.check.accuracy import with_names
from roadworthy.check.probe import Finding, probe
from roadworthy.data.dataset import Dataset, check_classes
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.samples import Samples
from roadworthy.detect.decode import DECODERS
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError
from roadworthy.model.model import Model
from roadworthy.model.recognize import IMAGENET_MEAN, IMAGENET_STD, decode_for, preprocessings, recognize
from roadworthy.model.task import Task, task_from_yaml
from roadworthy.run.runner import Runner
from roadworthy.run.targets import TARGETS

KINDS = (*DECODERS, "classify", "raw")
FIRST_LOOK, SECOND_LOOK = 48, 128
MARGIN = 2.0
"""Points of confidence by which another setting must be better to be worth a word."""
MOST_SUSPECTS = 4


def settle(model: Model, dataset: Dataset | None, task: str | None = None, seed: int = 0) -> Model:
    """A model with its task, found as `compress` finds it: from the metadata, the graph, and the images.

    dataset: images to measure on what the graph leaves open; None where there are none.   task: a kind (one of KINDS),
    the path of a YAML file, or None to find out.   seed: of the draw of images.
    Raises InputError when the task is not certain, saying what to give.
    """
    found, _ = settle_task(model, dataset, task, lambda: TARGETS["ort"].runner(model.float_bytes()), seed)
    return model.with_task(found)


def settle_task(
    model: Model, dataset: Dataset | None, given: str | None, load: Callable[[], Runner], seed: int = 0
) -> tuple[Task, list[str]]:
    """The task contract, and one line per thing that was found out on the way.

    given: a kind (one of KINDS), the path of a YAML file, or None.   load: makes a runner of the model, called only
    when something has to be measured.   Raises InputError when the task is not certain, saying what to give.
    """
    notes: list[str] = []
    classes = len(dataset.class_names) if dataset is not None and dataset.class_names else None
    if given is not None and given not in KINDS:
        if not Path(given).is_file():
            raise InputError(f"--task {given!r} is neither one of {', '.join(KINDS)} nor an existing YAML file")
        task = task_from_yaml(given, base=_base(model, classes))
        if model.task is None and not task.is_detector and not _tells_preprocess(given):
            if task.decode.kind == "raw":
                raise InputError(f"the task file {given} has no `preprocess` section, which a raw task needs; add it")
            candidates = preprocessings(task.decode.kind, model)
            task, notes = _with_preprocess(model, dataset, task.decode, f"as in {given}", candidates, load, seed)
    elif given is None and model.task is not None:
        task = model.task
    else:
        task, notes = _found(model, dataset, given, classes, load, seed)
    if task.decode.kind not in KINDS:
        raise InputError(
            f"decode.kind of the task of {model.source} is {task.decode.kind!r}; known are {', '.join(KINDS)}"
        )
    if task.preprocess.size_hw != task.decode.input_hw and task.decode.kind != "raw":
        task = replace(task, decode=replace(task.decode, input_hw=task.preprocess.size_hw))
    _fits_input(model, task)
    _fits_outputs(model, task)
    if dataset is not None:
        if task.decode.kind != "raw":
            check_classes(dataset, task.decode.num_classes, task.decode.class_names)
        task = with_names(task, dataset.class_names)
    return task, notes


def _base(model: Model, classes: int | None) -> Task | None:
    """What a YAML file may leave out: whatever the model's metadata or its graph already says.

    A family of detectors has its usual preprocessing. Classifiers have none: a mean that the file does not tell is 0.
    """
    if model.task is not None:
        return model.task
    guess = recognize(model, classes)
    if guess is None:
        return None
    usual = guess.preprocess[0]
    if guess.decode.kind == "classify":
        color = "gray" if usual.color == "gray" else "bgr"
        usual = Preprocess(size_hw=usual.size_hw, layout=usual.layout, color=color)
    return Task(usual, guess.decode)


def _fits_outputs(model: Model, task: Task) -> None:
    """Refuse strides that cannot be those of the outputs, where the graph tells which can."""
    strides, hw = task.decode.strides, task.decode.input_hw
    if not task.is_detector or not strides:
        return
    guess = recognize(model, task.decode.num_classes or None)
    if guess is None or not guess.decode.strides or guess.decode.kind != task.decode.kind:
        return
    if min(strides) < 1 or _cells(strides, hw) != _cells(guess.decode.strides, hw):
        raise InputError(
            f"decode.strides in the task of {model.source} is {strides}, but its outputs have as many rows as"
            f" {guess.decode.strides} gives; correct it, with --task FILE or in the model's metadata"
        )


def _tells_preprocess(path: str) -> bool:
    import yaml

    return "preprocess" in yaml.safe_load(Path(path).read_text())


def _fits_input(model: Model, task: Task) -> None:
    height, width = task.preprocess.size_hw
    channels = task.preprocess.channels
    wanted = (1, height, width, channels) if task.preprocess.layout == "nhwc" else (1, channels, height, width)
    if model.input_shape != wanted:
        raise InputError(
            f"the task makes an input of shape {list(wanted)}, but {model.source} takes {list(model.input_shape)};"
            " correct preprocess.size_hw, color or layout"
        )


def _found(
    model: Model, dataset: Dataset | None, given: str | None, classes: int | None, load: Callable[[], Runner], seed: int
) -> tuple[Task, list[str]]:
    told = ", ".join(f"{n} {_shape(model, n)}" for n in model.output_names[:6])
    if given == "raw":
        raise InputError(
            "--task raw says nothing of how an image becomes the input; give --task FILE with `decode: {kind: raw}`"
            " and a `preprocess` section"
        )
    if given is None:
        guess = recognize(model, classes)
        if guess is None:
            raise InputError(
                f"the task of {model.source} is not certain from its outputs ({told});"
                f" give --task with one of {', '.join(KINDS)}, or a YAML file"
            )
        decode, why, candidates = guess.decode, guess.why, guess.preprocess
    else:
        decode, why = decode_for(given, model, classes), "as given"
        candidates = preprocessings(decode.kind, model)
    if dataset is not None:
        check_classes(dataset, decode.num_classes, decode.class_names)
    return _with_preprocess(model, dataset, decode, why, candidates, load, seed)


def _with_preprocess(
    model: Model,
    dataset: Dataset | None,
    decode: DecodeSpec,
    why: str,
    candidates: Sequence[Preprocess],
    load: Callable[[], Runner],
    seed: int,
) -> tuple[Task, list[str]]:
    """The task with the one of several preprocessings that the images speak for."""
    tasks = [Task(p, decode, how="graph") for p in candidates]
    notes = [f"task {decode.kind}: {why}"]
    if dataset is None or len(tasks) == 1:
        if decode.kind == "classify" and len(tasks) > 1:
            raise InputError(
                f"the preprocessing of {model.source} is not in the file and there are no images to measure it on;"
                " give --task FILE with a `preprocess` section"
            )
        return tasks[0], notes
    samples = dataset.calibration if dataset.calibration.kind == dataset.kind else dataset.test
    chosen, line = _measured(model, tasks, samples, load(), seed)
    return replace(chosen, how="graph and measurement"), [*notes, line]


def _shape(model: Model, name: str) -> str:
    from roadworthy.model import graph as g

    shape = g.static_shape(g.values(model.ir)[name])
    return str(list(shape)) if shape else "of unknown shape"


def _measured(model: Model, tasks: Sequence[Task], samples: Samples, runner: Runner, seed: int) -> tuple[Task, str]:
    """The preprocessing among several that fits best.

    Detectors have one convention per family, which stands unless the images contradict it clearly; classifiers have
    several, so one of them has to stand clear of all others.
    """
    finding = probe(runner, tasks, samples, FIRST_LOOK, seed)
    if not finding.decisive and len(samples) > FIRST_LOOK:
        # Only contenders get the longer look.
        near = [k for k, m in enumerate(finding.means) if m >= 0.6 * finding.means[finding.best] or k == 0]
        again = probe(runner, [tasks[k] for k in near], samples, SECOND_LOOK, seed)
        best = near[again.best]
        runner_up = near[again.runner_up] if again.runner_up is not None else None
        means = list(finding.means)
        for k, m in zip(near, again.means):
            means[k] = m
        finding = Finding(best, runner_up, again.decisive, tuple(means), again.images, again.by_labels)
    if not finding.decisive and tasks[0].is_detector:
        finding = replace(finding, best=0, runner_up=1)
    elif not finding.decisive:
        assert finding.runner_up is not None
        raise InputError(
            f"the preprocessing of {model.source} is not certain: on {finding.images} images"
            f" {_call(tasks[finding.best].preprocess)} and {_call(tasks[finding.runner_up].preprocess)} do"
            f" about equally well ({finding.means[finding.best]:.1f} and {finding.means[finding.runner_up]:.1f});"
            " give --task FILE with the right `preprocess` section"
        )
    best, next_best = finding.best, finding.runner_up
    what = _measure(tasks[0], finding)
    line = f"preprocessing {_call(tasks[best].preprocess)}: {what} {finding.means[best]:.1f}"
    if next_best is not None:
        line += f", next best {_call(tasks[next_best].preprocess)} {finding.means[next_best]:.1f}"
    return tasks[best], f"{line}, on {finding.images} images"


def _measure(task: Task, finding: Finding) -> str:
    """What the figures of a probe mean, in words."""
    if finding.by_labels:
        return "agreement with the labels"
    return "confidence" if task.is_detector else "agreement with itself on mirrored images"


def _call(p: Preprocess) -> str:
    """A preprocessing in a few words."""
    scale = {1.0: "0..255", 1 / 255: "/255", 1 / 127.5: "/127.5"}.get(p.scale, f"x{p.scale:.4g}")
    norm = "" if not any(p.mean) and all(s == 1 for s in p.std) else " mean/std"
    if p.scale == 1 / 127.5 and set(p.mean) == {1.0}:
        scale, norm = "-1..1", ""
    return f"{p.color} {scale}{norm} {p.resize}"


@dataclass(frozen=True)
class _Variant:
    """A contract that differs from another in one thing.   mine, other: that thing in words, before and after."""

    field: str
    mine: str
    other: str
    task: Task


def suspects(model: Model, task: Task, samples: Samples, runner: Runner, seed: int = 0) -> list[str]:
    """Settings of a contract that the images contradict, one sentence each; empty when nothing beats it clearly.

    The worst setting is corrected first and the others are asked again: beside a wrong stride any colour looks wrong.
    """
    found = []
    for _ in range(MOST_SUSPECTS):
        better = _clearly_better(runner, task, _variants(model, task), samples, seed)
        if better is None:
            break
        variant, finding = better
        what = _measure(task, finding)
        after, before = finding.means[finding.best], finding.means[0]
        found.append(
            f"{variant.field} is {variant.mine}, but {variant.other} fits the network better:"
            f" {what} {after:.1f} against {before:.1f}, on {finding.images} images"
        )
        task = variant.task
    return found


def _clearly_better(
    runner: Runner, task: Task, variants: list[_Variant], samples: Samples, seed: int
) -> tuple[_Variant, Finding] | None:
    """The variant that beats a contract most, where it does so beyond chance and by as much as matters."""
    finding = Finding(0, None, False, (), 0, False)
    for images in (FIRST_LOOK, SECOND_LOOK):
        finding = probe(runner, [task, *(v.task for v in variants)], samples, images, seed)
        ahead = [k for k, m in enumerate(finding.means) if k and m > finding.means[0]]
        if not ahead or len(samples) <= images:
            break
        if images == FIRST_LOOK:  # only contenders get the longer look
            variants = [variants[k - 1] for k in ahead]
    gain = finding.means[finding.best] - finding.means[0]
    if finding.best == 0 or not finding.clear_of_first or gain < MARGIN:
        return None
    return variants[finding.best - 1], finding


def _variants(model: Model, task: Task) -> list[_Variant]:
    """Contracts that differ from one in a single thing, for each thing that people get wrong."""
    p, d = task.preprocess, task.decode
    found: list[_Variant] = []

    def offer(field: str, mine: object, other: object, **changes: Any) -> None:
        if field.startswith("preprocess."):
            varied = replace(task, preprocess=replace(p, **changes))
        else:
            varied = replace(task, decode=replace(d, **changes))
        found.append(_Variant(field, str(mine), str(other), varied))

    if p.color in ("bgr", "rgb"):
        other = "rgb" if p.color == "bgr" else "bgr"
        offer("preprocess.color", p.color, other, color=other)
    for scale in (1.0, 1 / 255, 1 / 127.5):
        if abs(scale - p.scale) > 1e-9:
            offer("preprocess.scale", _scale(p.scale), _scale(scale), scale=scale)
    if any(p.mean) or any(v != 1 for v in p.std):
        offer("preprocess.mean and std", f"{p.mean} and {p.std}", "0 and 1", mean=(0.0,), std=(1.0,))
    elif p.channels == 3 and abs(p.scale - 1 / 255) < 1e-9:
        order = slice(None) if p.color == "rgb" else slice(None, None, -1)
        mean, std = IMAGENET_MEAN[order], IMAGENET_STD[order]
        offer("preprocess.mean and std", "0 and 1", f"{mean} and {std}", mean=mean, std=std)
    if p.resize in ("letterbox", "stretch"):
        resize = "stretch" if p.resize == "letterbox" else "letterbox"
        offer("preprocess.resize", p.resize, resize, resize=resize)
    if p.resize == "letterbox":
        anchor = "center" if p.anchor == "topleft" else "topleft"
        offer("preprocess.anchor", p.anchor, anchor, anchor=anchor)
    if d.strides and task.is_detector:
        guess = recognize(model, d.num_classes or None)
        orders = {tuple(sorted(d.strides)), guess.decode.strides if guess is not None else ()}
        for strides in sorted(orders - {(), d.strides}):
            if _cells(strides, d.input_hw) == _cells(d.strides, d.input_hw):
                offer("decode.strides", d.strides, strides, strides=strides)
    return found


def _scale(value: float) -> str:
    return {1.0: "1", 1 / 255: "1/255", 1 / 127.5: "1/127.5"}.get(value, f"{value:g}")


def _cells(strides: Sequence[int], hw: tuple[int, int]) -> int:
    """The number of grid cells of all levels together."""
    return sum(-(-hw[0] // s) * -(-hw[1] // s) for s in strides)
