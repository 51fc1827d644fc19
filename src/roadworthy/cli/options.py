"""What the commands share: options, checks of their values, and where a result goes."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from roadworthy.errors import InputError

TARGET_NAMES = ("ort", "openvino", "native", "fixed")
MEASURED = TARGET_NAMES[:-1]
"""Targets whose speed here means something."""
EXIT_BUDGET, EXIT_INPUT, EXIT_INTERRUPT = 3, 2, 130


class Example(click.Command):
    """A command whose help ends with an example."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write_paragraph()
            for line in self.epilog.splitlines():
                formatter.write(f"{line}\n")  # never wrapped: it is there to be copied


def size_of(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    parts = value.lower().split("x")
    if len(parts) != 2 or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise click.BadParameter(f"{value!r} is not WIDTHxHEIGHT, as in 640x640")
    return int(parts[1]), int(parts[0])


def images_of(_: click.Context, __: click.Parameter, value: str | None) -> int | str | None:
    if value is None or value == "auto":
        return value
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"{value!r} is neither a number from 1 up nor auto")
    return int(value)


def json_place(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
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


def options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def wrap(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return wrap


data_option = click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="COCO json, YOLO data.yaml, VOC folder, labels.csv, or a folder of images.",
)
task_option = click.option(
    "--task", metavar="T", help="Kind of the outputs, or a YAML file. Default: from the model, where certain."
)
json_option = click.option(
    "--json", "json_file", metavar="FILE", callback=json_place, help="Write the result as JSON, too."
)
threads_option = click.option(
    "--threads", type=click.IntRange(0), default=0, show_default="every core", help="Threads of the runtime."
)
seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of every random choice."
)
size_option = click.option(
    "--size", callback=size_of, metavar="WxH", help="Input size, for a model that leaves it open."
)
force_option = click.option("--force", is_flag=True, help="Replace an existing output.")
resume_option = click.option(
    "--resume", is_flag=True, help="Go on after the last finished stage of an interrupted run."
)


def command_line() -> str:
    import shlex

    return shlex.join(["roadworthy", *sys.argv[1:]])


def console() -> Any:
    from roadworthy.console import Console

    return Console()


def write_json(path: str | None, document: Any) -> None:
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
