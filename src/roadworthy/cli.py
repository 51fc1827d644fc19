"""The command line: thin commands over the library. Every refusal is one sentence on stderr and exit code 2."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from roadworthy import __version__
from roadworthy.errors import InputError, RoadworthyError

TARGET_NAMES = ("ort", "openvino", "native", "fixed")
MEASURED = TARGET_NAMES[:-1]
"""Targets whose speed here means something."""
EXIT_BUDGET, EXIT_INPUT, EXIT_INTERRUPT = 3, 2, 130


class _Example(click.Command):
    """A command whose help ends with an example."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write_paragraph()
            for line in self.epilog.splitlines():
                formatter.write(f"{line}\n")  # never wrapped: it is there to be copied


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, prog_name="roadworthy")
@click.pass_context
def cli(context: click.Context) -> None:
    """Compress a trained vision model, prove that it still agrees with the original, and ship it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _size(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    parts = value.lower().split("x")
    if len(parts) != 2 or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise click.BadParameter(f"{value!r} is not WIDTHxHEIGHT, as in 640x640")
    return int(parts[1]), int(parts[0])


def _images(_: click.Context, __: click.Parameter, value: str | None) -> int | str | None:
    if value is None or value == "auto":
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a number from 1 up nor auto")
    return int(value)


def _json_place(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """Refuse a file that cannot be written before any work is done."""
    if value is None:
        return None
    if Path(value).is_dir():
        raise InputError(f"--json {value} is a folder; name a file")
    try:
        with tempfile.TemporaryFile(dir=Path(value).absolute().parent):
            pass
    except OSError as error:
        raise InputError(f"--json {value} cannot be written: {error.strerror}; give another place") from error
    return value


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def wrap(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return wrap


_data = click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="COCO json, YOLO data.yaml, VOC folder, labels.csv, or a folder of images.",
)
_task = click.option(
    "--task", metavar="T", help="Kind of the outputs, or a YAML file. Default: from the model, where certain."
)
_json = click.option("--json", "json_file", metavar="FILE", callback=_json_place, help="Write the result as JSON, too.")
_threads = click.option(
    "--threads", type=click.IntRange(0), default=0, show_default="every core", help="Threads of the runtime."
)
_seed = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of every random choice."
)
_size_option = click.option(
    "--size", callback=_size, metavar="WxH", help="Input size, for a model that leaves it open."
)
_force = click.option("--force", is_flag=True, help="Replace an existing output.")
_resume = click.option("--resume", is_flag=True, help="Go on after the last finished stage of an interrupted run.")


@cli.command(
    short_help="Compress a model under an accuracy budget.",
    cls=_Example,
    epilog="Example:\n  roadworthy compress yolox_nano.onnx --data coco/data.yaml --max-drop 0.5 --out small",
)
@click.argument("model")
@_options(_data, _task)
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
    callback=_images,
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
@click.option("--out", metavar="DIR", default=None, help="Output folder. Default: MODEL's name with -compressed.")
@_options(_seed, _threads, _size_option, _force, _resume)
def compress(model: str, data: str, task: str | None, target: str, max_drop: float, max_drop_class: tuple[str, ...],
             max_drop_size: tuple[str, ...], max_drop_recall: float | None, keep_threshold: bool, min_sqnr: float,
             max_size: str | None, max_latency: float | None, images: int | str | None, choose: str, no_cache: bool,
             recipe: str | None, effort: str, out: str | None,
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
    )  # fmt: skip
    with _resumable(folder):
        outcome = job(model, data, folder, settings, force=force, resume=resume, ui=_console(), command=_command_line())
    _show_outcome(outcome)
    sys.exit(outcome.exit_code and EXIT_BUDGET)


@contextlib.contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        from roadworthy.jobs.compress import stage_folder

        kept = ". Finished stages are kept: run again with --resume" if stage_folder(folder).is_dir() else ""
        click.echo(f"\ninterrupted; {folder} was not written{kept}", err=True)
        sys.exit(EXIT_INTERRUPT)


def _command_line() -> str:
    import shlex

    return shlex.join(["roadworthy", *sys.argv[1:]])


def _console() -> Any:
    from roadworthy.console import Console

    return Console()


def _show_outcome(outcome: Any) -> None:
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


@cli.command(
    "eval",
    cls=_Example,
    short_help="Measure the accuracy of a model.",
    epilog="Example:\n  roadworthy eval small/model.onnx --data coco/data.yaml --reference yolox_nano.onnx",
)
@click.argument("model")
@_options(_data, _task)
@click.option(
    "--reference", metavar="ORIGINAL", help="The original: its drop is told, and it stands in for missing labels."
)
@click.option(
    "--target", type=click.Choice(TARGET_NAMES), default="ort", show_default=True, help="Where the model runs."
)
@_options(_seed, _threads, _size_option, _json)
def evaluate(model: str, data: str, task: str | None, reference: str | None, target: str, seed: int, threads: int,
             size: tuple[int, int] | None, json_file: str | None) -> None:  # fmt: skip
    """Measure MODEL: mAP, per class and size, recall at the operating threshold; or top-1 and top-5."""
    from roadworthy.console import accuracy_table
    from roadworthy.jobs.assess import evaluate as job

    result = job(model, data, task, reference, target, seed, threads, size, _console())
    accuracy_table(result)
    _write_json(json_file, result)


@cli.command(
    short_help="Find out where two forms of a model part.",
    cls=_Example,
    epilog="Example:\n  roadworthy align yolox_nano.onnx small/model.onnx --data coco/images/val --images 8",
)
@click.argument("original")
@click.argument("other")
@_options(_data, _task)
@click.option("--images", type=click.IntRange(1), default=8, show_default=True, help="How many images are run.")
@click.option(
    "--top", type=click.IntRange(1), default=15, show_default=True, help="How many tensors are listed, worst first."
)
@_options(_seed, _threads, _size_option, _json)
def align(original: str, other: str, data: str, task: str | None, images: int, top: int, seed: int, threads: int,
          size: tuple[int, int] | None, json_file: str | None) -> None:  # fmt: skip
    """Compare two models tensor by tensor: error, first divergence, whose fault it is.

    Exit code 3: there is a finding.
    """
    from roadworthy.console import alignment_table
    from roadworthy.jobs.assess import align_files

    result = align_files(original, other, data, task, images, seed, threads, size, _console())
    alignment_table(result, top)
    _write_json(json_file, json.loads(result.to_json()))
    sys.exit(EXIT_BUDGET if result.findings else 0)


@cli.command(
    short_help="Measure latency, throughput and memory.",
    cls=_Example,
    epilog="Example:\n  roadworthy bench yolox_nano.onnx small/model.onnx --target ort --target openvino",
)
@click.argument("models", nargs=-1, required=True)
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=click.Choice(MEASURED),
    default=("ort",),
    show_default=True,
    help="May be given more than once.",
)
@click.option("--data", metavar="DATA", help="Images for end-to-end latency.")
@_options(_task)
@click.option(
    "--seconds", type=click.FloatRange(0.5), default=8.0, show_default=True, help="Time to measure in, for all."
)
@click.option("--layers", is_flag=True, help="Also the time of every layer on the native engine (1 thread by default).")
@_options(_threads, _size_option, _json)
def bench(models: tuple[str, ...], targets: tuple[str, ...], data: str | None, task: str | None, seconds: float,
          layers: bool, threads: int, size: tuple[int, int] | None, json_file: str | None) -> None:  # fmt: skip
    """Measure latency, throughput, memory and load time of MODELS, interleaved; the first one is the baseline.

    A model is an ONNX file, or a plan (.rwp), which runs on the target native whatever --target says.
    """
    from roadworthy.console import layer_table, speed_table
    from roadworthy.jobs.assess import bench_files, native_layers

    result = bench_files(models, targets, data, task, seconds, threads, size, _console())
    speed_table(result)
    document = result.to_json()
    if layers:
        times = {source: native_layers(source, threads, size) for source in models}
        for source, rows in times.items():
            layer_table(source, rows, threads or 1)
        document["native_layers"] = {source: [asdict(row) for row in rows] for source, rows in times.items()}
    _write_json(json_file, document)


@cli.command(
    short_help="Show what a model is and costs.",
    cls=_Example,
    epilog="Example:\n  roadworthy inspect yolox_nano.onnx --json layers.json",
)
@click.argument("model")
@click.option(
    "--top", type=click.IntRange(1), default=20, show_default=True, help="How many nodes are listed, costliest first."
)
@_options(_size_option, _json)
def inspect(model: str, top: int, size: tuple[int, int] | None, json_file: str | None) -> None:
    """What MODEL is and costs: task, parameters, FLOPs, MACs and memory traffic per layer."""
    from roadworthy.console import cost_table
    from roadworthy.jobs.assess import inspect_file

    result = inspect_file(model, size)
    cost_table(result, top)
    _write_json(json_file, result)


@cli.command(
    short_help="Run the whole job on the embedded sample.",
    cls=_Example,
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
@_options(_seed, _threads, _force, _resume)
def demo(out: str, target: str, seed: int, threads: int, force: bool, resume: bool) -> None:
    """The whole job on the embedded sample: generated street scenes and a small detector trained on them."""
    from roadworthy.jobs.compress import Settings
    from roadworthy.jobs.compress import compress as job
    from roadworthy.jobs.sample import dataset, detector

    with _resumable(Path(out)):
        outcome = job(detector(), dataset(seed), out, Settings(target=target, seed=seed, threads=threads), force=force,
                      resume=resume, ui=_console(), command=_command_line())  # fmt: skip
    _show_outcome(outcome)
    click.echo(f"open {outcome.folder}/report.html in a browser to see the proof")
    sys.exit(outcome.exit_code and EXIT_BUDGET)


def _write_json(path: str | None, document: Any) -> None:
    """Write JSON to a temporary file and rename it."""
    if path is None:
        return
    from roadworthy.check.report_schema import clean

    target = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=target.absolute().parent, suffix=".part")
        with os.fdopen(handle, "w") as file:
            json.dump(clean(document), file, indent=1)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except OSError as error:
        raise InputError(f"--json {path} cannot be written: {error.strerror}; give another place") from error


def main() -> None:
    """Entry point of the `roadworthy` command."""
    try:
        code = cli.main(prog_name="roadworthy", standalone_mode=False)
    except click.UsageError as error:
        said = " ".join(error.format_message().split()).rstrip(".").replace(". (Did", " (did").replace(" Did", "; did")
        command = error.ctx.command_path if error.ctx else "roadworthy"
        code = _refuse(f"{said[:1].lower()}{said[1:]}; see `{command} --help`")
    except (RoadworthyError, click.ClickException) as error:
        code = _refuse(str(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = EXIT_INTERRUPT
    except OSError as error:  # a full disk, too many open files
        where = f"{error.filename}: " if error.filename else ""
        code = _refuse(f"{where}{error.strerror or error}; make room or mend it, and run again")
    sys.exit(code or 0)


def _refuse(sentence: str) -> int:
    click.echo(f"roadworthy: {sentence}", err=True)
    return EXIT_INPUT


if __name__ == "__main__":
    main()
