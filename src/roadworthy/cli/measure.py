"""The commands that look at models: eval, align, bench, inspect."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from roadworthy.cli.options import (
    EXIT_BUDGET,
    MEASURED,
    TARGET_NAMES,
    Example,
    console,
    data_option,
    json_option,
    options,
    seed_option,
    size_option,
    task_option,
    threads_option,
    write_json,
)


@click.command(
    "eval",
    cls=Example,
    short_help="Measure the accuracy of a model.",
    epilog="Example:\n  roadworthy eval small/model.onnx --data coco/data.yaml --reference yolox_nano.onnx",
)
@click.argument("model")
@options(data_option, task_option)
@click.option(
    "--reference", metavar="ORIGINAL", help="The original: its drop is told, and it stands in for missing labels."
)
@click.option(
    "--target", type=click.Choice(TARGET_NAMES), default="ort", show_default=True, help="Where the model runs."
)
@options(seed_option, threads_option, size_option, json_option)
def evaluate(model: str, data: str, task: str | None, reference: str | None, target: str, seed: int, threads: int,
             size: tuple[int, int] | None, json_file: str | None) -> None:  # fmt: skip
    """Measure MODEL: mAP, per class and size, recall at the operating threshold; or top-1 and top-5."""
    from roadworthy.console import accuracy_table
    from roadworthy.jobs.assess import evaluate as job

    result = job(model, data, task, reference, target, seed, threads, size, console())
    accuracy_table(result)
    write_json(json_file, result)


@click.command(
    short_help="Find out where two forms of a model part.",
    cls=Example,
    epilog="Example:\n  roadworthy align yolox_nano.onnx small/model.onnx --data coco/images/val --images 8",
)
@click.argument("original")
@click.argument("other")
@options(data_option, task_option)
@click.option("--images", type=click.IntRange(1), default=8, show_default=True, help="How many images are run.")
@click.option(
    "--top", type=click.IntRange(1), default=15, show_default=True, help="How many tensors are listed, worst first."
)
@options(seed_option, threads_option, size_option, json_option)
def align(original: str, other: str, data: str, task: str | None, images: int, top: int, seed: int, threads: int,
          size: tuple[int, int] | None, json_file: str | None) -> None:  # fmt: skip
    """Compare two models tensor by tensor: error, first divergence, whose fault it is.

    Exit code 3: there is a finding.
    """
    from roadworthy.console import alignment_table
    from roadworthy.jobs.assess import align_files

    result = align_files(original, other, data, task, images, seed, threads, size, console())
    alignment_table(result, top)
    write_json(json_file, json.loads(result.to_json()))
    sys.exit(EXIT_BUDGET if result.findings else 0)


@click.command(
    short_help="Measure latency, throughput and memory.",
    cls=Example,
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
@options(task_option)
@click.option(
    "--seconds", type=click.FloatRange(0.5), default=8.0, show_default=True, help="Time to measure in, for all."
)
@click.option("--layers", is_flag=True, help="Also the time of every layer on the native engine (1 thread by default).")
@options(threads_option, size_option, json_option)
def bench(models: tuple[str, ...], targets: tuple[str, ...], data: str | None, task: str | None, seconds: float,
          layers: bool, threads: int, size: tuple[int, int] | None, json_file: str | None) -> None:  # fmt: skip
    """Measure latency, throughput, memory and load time of MODELS, interleaved; the first one is the baseline.

    A model is an ONNX file, or a plan (.rwp), which runs on the target native whatever --target says.
    """
    from roadworthy.console import layer_table, speed_table
    from roadworthy.jobs.assess import bench_files, native_layers

    result = bench_files(models, targets, data, task, seconds, threads, size, console())
    speed_table(result)
    document = result.to_json()
    if layers:
        times = {source: native_layers(source, threads, size) for source in models}
        for source, rows in times.items():
            layer_table(source, rows, threads or 1)
        document["native_layers"] = {source: [asdict(row) for row in rows] for source, rows in times.items()}
    write_json(json_file, document)


@click.command(
    short_help="Show what a model is and costs.",
    cls=Example,
    epilog="Example:\n  roadworthy inspect yolox_nano.onnx --json layers.json",
)
@click.argument("model")
@click.option(
    "--top", type=click.IntRange(1), default=20, show_default=True, help="How many nodes are listed, costliest first."
)
@options(size_option, json_option)
def inspect(model: str, top: int, size: tuple[int, int] | None, json_file: str | None) -> None:
    """What MODEL is and costs: task, parameters, FLOPs, MACs and memory traffic per layer."""
    from roadworthy.console import cost_table
    from roadworthy.jobs.assess import inspect_file

    result = inspect_file(model, size)
    cost_table(result, top)
    write_json(json_file, result)
