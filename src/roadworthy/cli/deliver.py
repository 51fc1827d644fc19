"""The commands that write a model, a report and a recipe: compress, finetune and demo."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from roadworthy.cli.options import (
    EXIT_BUDGET,
    EXIT_INTERRUPT,
    TARGET_NAMES,
    Example,
    command_line,
    console,
    data_option,
    force_option,
    images_of,
    options,
    resume_option,
    seed_option,
    size_option,
    task_option,
    threads_option,
)


@click.command(
    short_help="Compress a model under an accuracy budget.",
    cls=Example,
    epilog="Example:\n  roadworthy compress yolox_nano.onnx --data coco/data.yaml --max-drop 0.5 --out small",
)
@click.argument("model")
@options(data_option, task_option)
@click.option(
    "--target",
    type=click.Choice((*TARGET_NAMES, "auto")),
    default="auto",
    show_default=True,
    help="Where the model is to run; auto measures all and takes the best of speed and size.",
)
@click.option(
    "--max-drop", type=float, default=0.5, show_default=True, help="Most points of mAP or top-1 that may be lost."
)
@click.option(
    "--max-drop-class",
    multiple=True,
    metavar="[CLASS=]P",
    help="Most points of AP or top-1 that a class (name or index) may lose; P alone: each with 20 labels. Repeatable.",
)
@click.option(
    "--max-drop-size",
    multiple=True,
    metavar="[SIZE=]P",
    help="Most points of mAP that small, medium or large objects may lose; P alone: each. Repeatable.",
)
@click.option(
    "--max-drop-recall",
    type=float,
    metavar="P",
    help="Most points of recall at the operating threshold that may be lost.",
)
@click.option(
    "--keep-threshold",
    is_flag=True,
    help="Leave a detector's score threshold; else it is refitted to keep its precision.",
)
@click.option(
    "--min-sqnr", type=float, default=25.0, show_default=True, help="Least dB of signal to noise of a raw task."
)
@click.option("--max-size", metavar="SIZE", help="Most bytes of the result: 600000, 600k, or 0.2x of the original's.")
@click.option("--max-latency", type=float, metavar="MS", help="Most milliseconds on the target (median).")
@click.option(
    "--images",
    metavar="N|auto",
    callback=images_of,
    help="Images to calibrate with; auto: the fewest that cover 99 % of the ranges. Default: by effort.",
)
@click.option(
    "--choose",
    type=click.Choice(("random", "coverage")),
    default="random",
    show_default=True,
    help="How they are chosen: by lot, or by what they cover of the ranges inside the network.",
)
@click.option("--no-cache", is_flag=True, help="Measure anew, and keep nothing for the next job.")
@click.option("--recipe", metavar="R.yaml", help="Replay a recipe instead of searching.")
@click.option(
    "--effort",
    type=click.Choice(("quick", "normal", "thorough")),
    default="normal",
    show_default=True,
    help="How much is tried.",
)
@click.option(
    "--train-minutes",
    type=float,
    metavar="M",
    help="Most minutes of training where int8 breaks the budget; 0: none. Default: 20 with --effort thorough, else 0.",
)
@click.option("--out", metavar="DIR", default=None, help="Output folder. Default: MODEL's name with -compressed.")
@options(seed_option, threads_option, size_option, force_option, resume_option)
def compress(model: str, data: str, task: str | None, target: str, max_drop: float, max_drop_class: tuple[str, ...],
             max_drop_size: tuple[str, ...], max_drop_recall: float | None, keep_threshold: bool, min_sqnr: float,
             max_size: str | None, max_latency: float | None, images: int | str | None, choose: str, no_cache: bool,
             recipe: str | None, effort: str, train_minutes: float | None, out: str | None,
             seed: int, threads: int, size: tuple[int, int] | None, force: bool,
             resume: bool) -> None:  # fmt: skip
    """Compress MODEL under an accuracy budget and write model, report and recipe.

    Exit code 0: all budgets hold. 3: one does not, or could not be measured; the files are written and say so. 2: the
    input cannot be used.
    """
    from roadworthy.check.budgets import wishes
    from roadworthy.jobs.compress import Settings
    from roadworthy.jobs.compress import compress as job

    folder = Path(out) if out else Path(f"{Path(model).stem}-compressed")
    settings = Settings(
        task, target, max_drop, min_sqnr, recipe, effort, seed, threads, size,
        max_drop_class=wishes("--max-drop-class", max_drop_class),
        max_drop_size=wishes("--max-drop-size", max_drop_size),
        max_drop_recall=max_drop_recall,
        refit_threshold=not keep_threshold,
        max_size=max_size,
        max_latency=max_latency,
        images=images,
        choose=choose,
        cache=not no_cache,
        train_minutes=train_minutes,
    )  # fmt: skip
    with resumable(folder):
        outcome = job(model, data, folder, settings, force=force, resume=resume, ui=console(), command=command_line())
    show_outcome(outcome)
    sys.exit(outcome.exit_code and EXIT_BUDGET)


@click.command(
    short_help="Train a model until it agrees with its original again.",
    cls=Example,
    epilog="Example:\n  roadworthy finetune small/model.onnx --teacher yolox_nano.onnx --data coco/data.yaml",
)
@click.argument("model")
@click.option("--teacher", required=True, metavar="ORIGINAL", help="The float model that MODEL was made from.")
@options(data_option, task_option)
@click.option(
    "--target",
    type=click.Choice((*TARGET_NAMES, "auto")),
    default="auto",
    show_default=True,
    help="Where the model is to run; auto: native, where the engine is built.",
)
@click.option("--minutes", type=float, metavar="M", help="About how long to train. Default: 20.")
@click.option("--steps", type=click.IntRange(1), metavar="N", help="How long to train, in optimizer steps, instead.")
@click.option("--batch", type=click.IntRange(1, 4096), metavar="N", help="Images of a step. Default: 8.")
@click.option(
    "--lr",
    type=click.FloatRange(0, 10),
    metavar="R",
    help="Highest learning rate of weights, a share of them. Default: by their bits.",
)
@click.option(
    "--gradient",
    type=click.Choice(("ste", "lsq", "dsq", "fourier")),
    default="lsq",
    show_default=True,
    help="What stands for the derivative of rounding.",
)
@click.option(
    "--noise",
    type=click.FloatRange(0.01, 1.0),
    default=1.0,
    show_default=True,
    help="Share of each weight that is quantized in a step.",
)
@click.option(
    "--augment",
    type=click.Choice(("none", "light", "strong")),
    default="light",
    show_default=True,
    help="How images are changed.",
)
@click.option(
    "--labels",
    type=click.Choice(("no", "yes", "only")),
    default="no",
    show_default=True,
    help="Learn from the original alone, from labels too, or from labels alone.",
)
@click.option("--patience", type=click.IntRange(0), default=0, show_default=True,
              help="Evaluations without a better one after which to stop; 0: never.")  # fmt: skip
@click.option(
    "--weight-bits", type=click.IntRange(2, 8), metavar="B", help="Quantize a float MODEL first, with B bits."
)
@click.option(
    "--max-drop", type=float, default=0.5, show_default=True, help="Most points of mAP or top-1 that may be lost."
)
@click.option(
    "--min-sqnr", type=float, default=25.0, show_default=True, help="Least dB of signal to noise of a raw task."
)
@click.option("--keep-threshold", is_flag=True, help="Leave a detector's score threshold as the original has it.")
@click.option("--recipe", metavar="R.yaml", help="Replay a training.")
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True, help="Where to train.")
@click.option("--out", metavar="DIR", default=None, help="Output folder. Default: MODEL's name with -trained.")
@options(seed_option, threads_option, size_option, force_option, resume_option)
def finetune(model: str, teacher: str, data: str, task: str | None, target: str, minutes: float | None,
             steps: int | None, batch: int | None, lr: float | None, gradient: str, noise: float, augment: str,
             labels: str, patience: int, weight_bits: int | None, max_drop: float, min_sqnr: float,
             keep_threshold: bool, recipe: str | None, device: str, out: str | None, seed: int, threads: int,
             size: tuple[int, int] | None, force: bool, resume: bool) -> None:  # fmt: skip
    """Train MODEL with ORIGINAL as its teacher; labels are not needed. Write model, report and recipe.

    MODEL is quantized (Q/DQ nodes, or the model.onnx that compress wrote) or float. Exit codes as of compress.
    Several processes train together when launched by torchrun: torchrun --nproc-per-node 2 -m roadworthy finetune ...
    """
    from roadworthy.jobs.finetune import FinetuneSettings
    from roadworthy.jobs.finetune import finetune as job
    from roadworthy.recipe import Finetune

    folder = Path(out) if out else Path(f"{Path(model).stem}-trained")
    step = Finetune(gradient=gradient, noise=noise, augment=augment, labels=labels, patience=patience, device=device)
    step = step if lr is None else replace(step, lr=lr)
    step = step if batch is None else replace(step, batch=batch)
    settings = FinetuneSettings(
        task, target, max_drop, min_sqnr, recipe, "normal", seed, threads, size,
        refit_threshold=not keep_threshold,
        train_minutes=minutes,
        step=step,
        steps=steps,
        weight_bits=weight_bits,
    )  # fmt: skip
    with resumable(folder):
        outcome = job(model, teacher, data, folder, settings, force=force, resume=resume, ui=console(),
                      command=command_line())  # fmt: skip
    if outcome is None:  # not the first of the processes that trained together
        sys.exit(0)
    show_outcome(outcome)
    sys.exit(outcome.exit_code and EXIT_BUDGET)


@contextlib.contextmanager
def resumable(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        from roadworthy.jobs.compress import stage_folder

        kept = ". Finished stages are kept: run again with --resume" if stage_folder(folder).is_dir() else ""
        click.echo(f"\ninterrupted; {folder} was not written{kept}", err=True)
        sys.exit(EXIT_INTERRUPT)


@click.command(
    short_help="Run the whole job on the embedded sample.",
    cls=Example,
    epilog="Example:\n  roadworthy demo --out demo-out",
)
@click.option("--out", metavar="DIR", default="demo-out", show_default=True, help="Output folder.")
@click.option(
    "--target",
    type=click.Choice((*TARGET_NAMES, "auto")),
    default="auto",
    show_default=True,
    help="Where the model is to run.",
)
@options(seed_option, threads_option, force_option, resume_option)
def demo(out: str, target: str, seed: int, threads: int, force: bool, resume: bool) -> None:
    """The whole job on the embedded sample: generated street scenes and a small detector trained on them."""
    from roadworthy.jobs.compress import Settings
    from roadworthy.jobs.compress import compress as job
    from roadworthy.jobs.sample import dataset, detector

    with resumable(Path(out)):
        outcome = job(detector(), dataset(seed), out, Settings(target=target, seed=seed, threads=threads), force=force,
                      resume=resume, ui=console(), command=command_line())  # fmt: skip
    show_outcome(outcome)
    click.echo(f"open {outcome.folder}/report.html in a browser to see the proof")
    sys.exit(outcome.exit_code and EXIT_BUDGET)


def show_outcome(outcome: Any) -> None:
    report = outcome.report
    for line in report["summary"]:
        click.echo(line)
    for line in report["warnings"]:
        click.echo(f"note: {line}")
    for budget in report["budgets"]:
        sign = "at most" if budget.get("direction", "at most") == "at most" else "at least"
        if budget["measured"] is None:
            click.echo(f"budget {budget['name']}: {sign} {budget['limit']:,.10g}: NOT MEASURED, {budget['note']}")
            continue
        told = f"{_figure(budget['measured'])} {budget['unit']}, {sign} {budget['limit']:,.10g}"
        low, high = budget.get("interval") or (budget["measured"], budget["measured"])
        past = high > budget["limit"] if sign == "at most" else low < budget["limit"]
        doubt = ", but the 95 % interval reaches past the limit" if past and budget["verdict"] == "holds" else ""
        click.echo(f"budget {budget['name']}: {told}: {budget['verdict']}{doubt}")
    result = report["result"]
    rest = "report.html, report.json, recipe.yaml" + (", recipes/" if report.get("pareto") else "")
    if (outcome.folder / "golden.npz").exists():
        rest = f"golden.npz, golden.json, {rest}"
    files = f"model.onnx, {rest}"
    if result["path"] != "model.onnx":
        files = f"{result['path']}, {files}"
    click.echo(f"wrote {outcome.folder}/{files} ({report['seconds']:.0f} s)")
    if result["path"] != "model.onnx":
        click.echo(
            f"{result['path']} is what was measured; model.onnx is the same network with Q/DQ nodes, for other tools"
        )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.2f}"
