"""What the terminal shows: progress while a job runs, and the tables of the other commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from roadworthy.jobs.trial import Advance, Ui


class Console(Ui):
    """Progress bars on stderr and one line per note; on a pipe only the notes."""

    def __init__(self) -> None:
        self._console = RichConsole(stderr=True, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, text: str, total: int | None = None) -> Iterator[Advance]:
        if not self._console.is_terminal:
            yield lambda done: None
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            bar = progress.add_task(text, total=total)
            yield lambda done: progress.update(bar, completed=done)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False)


PIPE_WIDTH = 240
"""Columns of output that no terminal shows: wide enough that no name is cut."""


def _print(title: str, names: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table under a line that says what it is: columns of names to the left, of numbers to the right."""
    print(f"\n{title}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    RichConsole(file=sys.stdout, highlight=False, markup=False, width=width).print(table)


def _number(value: Any, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _tail(name: str, width: int = 30) -> str:
    """The end of a long name: that is where exporters put what tells layers apart. On a pipe nothing is cut."""
    return name if len(name) <= width or not sys.stdout.isatty() else "…" + name[-width + 1 :]


ROWS = {
    "map": "mAP", "ap50": "AP50", "ap75": "AP75", "small": "mAP small", "medium": "mAP medium", "large": "mAP large",
    "recall": "recall", "precision": "precision", "top1": "top-1", "top5": "top-5",
}  # fmt: skip
MOST_CLASSES = 20


def accuracy_table(result: dict[str, Any]) -> None:
    """The result of `eval`."""
    accuracy = result["accuracy"]
    columns = tuple(c for c in ("original", "model") if c in accuracy)
    title = f"{result['metric']} in points, on {result['images']} images, against {result['reference']}"
    rows = [
        (ROWS[row], *(_number(accuracy[c].get(row)) for c in columns))
        for row in result["rows"]
        if any(accuracy[c].get(row) is not None for c in columns)
    ]
    _print(title, ("",), columns, rows)
    per_class = accuracy["model"].get("per_class")
    if per_class:
        known = sorted((v, k) for k, v in per_class.items() if v is not None)
        what = "AP" if result["metric"] == "mAP" else "top-1"
        shown = f"the worst {MOST_CLASSES} of {len(known)}" if len(known) > MOST_CLASSES else "worst first"
        rows = [(k, *(_number(accuracy[c]["per_class"].get(k)) for c in columns)) for _, k in known[:MOST_CLASSES]]
        _print(f"{what} per class, {shown}", ("class",), columns, rows)
    if result.get("drops"):
        _drops_table(result["drops"])
    print()
    for line in result["findings"]:
        print(f"finding: {line}")
    if result.get("drop"):
        d = result["drop"]
        print(f"drop {d['drop']:+.2f} points, 95 % interval {d['low']:+.2f} to {d['high']:+.2f}")


FEW_LABELS = 20
"""With fewer, one object moves the figure of a class by points."""


def _drops_table(found: Sequence[dict[str, Any]]) -> None:
    """What was lost of recall and each size, then of each class, with intervals."""
    for classes in (False, True):
        part = [row for row in found if (row["kind"] == "class") == classes]
        rows = []
        for row in part[:MOST_CLASSES]:
            few = row["labels"] is not None and row["labels"] < FEW_LABELS
            rows.append((
                row["of"] + (" (few labels)" if few else ""), f"{row['drop']:+.2f}",
                f"{row['low']:+.2f} to {row['high']:+.2f}", "" if row["labels"] is None else f"{row['labels']:.0f}",
            ))  # fmt: skip
        shown = f"the worst {MOST_CLASSES} of {len(part)}" if len(part) > MOST_CLASSES else "worst first"
        if rows:
            title = f"drop of each class in points, {shown}" if classes else "drop in points"
            _print(title, ("class" if classes else "",), ("drop", "95 % interval", "labels"), rows)


EQUAL_DB = 150.0
"""From here up two tensors are equal (`check.align`)."""


def alignment_table(result: Any, top: int) -> None:
    """The result of `align`."""

    def decibels(value: float | None) -> str:
        return "equal" if value is not None and value >= EQUAL_DB else _number(value, 1)

    found = sorted(result.rows(), key=lambda r: r["sqnr_db"] if r["sqnr_db"] is not None else 1e9)
    rows = [
        (
            _tail(row["output"]), row["op"], decibels(row["sqnr_db"]), decibels(row["local_sqnr_db"]),
            _number(row["cosine"], 5), _number(row["max_error"], 4),
        )
        for row in found[:top]
    ]  # fmt: skip
    shown = f"the worst {top} of {len(found)}" if len(found) > top else "worst first"
    title = f"tensors, {shown}; local: the layer's own error, with the inputs of the original"
    _print(title, ("tensor", "op"), ("SQNR\ndB", "local\ndB", "cosine", "max\nerror"), rows)
    print(f"\n{result.first}")
    for finding in result.findings:
        print(f"finding: {finding.text}")


def speed_table(result: Any) -> None:
    """The result of `bench`."""
    found = result.rows()
    columns = ["ratio", "median\nms", "p90\nms", "QPS", "load\nms", "peak\nMB", "file\nkB", "samples\ndropped"]
    rows = [
        [
            row["label"], _number(row["ratio"]), _number(row["median_ms"]), _number(row["p90_ms"]),
            _number(row["qps"], 0), _number(row["load_ms"], 0), _number(row["peak_mb"], 0),
            f"{row['file_bytes'] / 1000:.0f}", f"{row['dropped']} of {row['samples']}",
        ]
        for row in found
    ]  # fmt: skip
    if any(row["end_to_end_ms"] is not None for row in found):
        columns.insert(3, "end to\nend ms")
        for cells, row in zip(rows, found):
            cells.insert(4, _number(row["end_to_end_ms"]))
    threads = f"{result.threads} thread{'s'[: result.threads != 1]}"
    _print(f"latency on {threads}; ratio: how many times as fast as the first", ("",), columns, rows)
    print()
    for line in result.notes:
        print(f"note: {line}")
    if result.environment.get("cpu"):
        print(f"measured on {result.environment['cpu']}, {threads}")


def layer_table(source: str, found: Sequence[Any], threads: int) -> None:
    """Time per layer on the native engine."""
    rows = []
    for row in found:
        work = ["", "", ""]
        if row.macs:
            work = [f"{row.macs / 1e6:.2f}", _number(row.gops, 0), _number(row.fraction)]
        rows.append((_tail(row.name), row.op, _number(row.us, 1), f"{100 * row.share:.1f}", *work))
    whole = sum(row.us for row in found)
    title = f"{source} on native, {threads} thread{'s'[: threads != 1]}: {whole:.0f} us in {len(found)} operations"
    columns = ("us", "% of\nframe", "M MAC", "GOP/s", "of\npeak")
    _print(title, ("layer", "operation"), columns, rows)


def cost_table(result: dict[str, Any], top: int) -> None:
    """The result of `inspect`."""
    t = result["totals"]
    print(f"{result['path']}: input {result['input']}, outputs {', '.join(result['outputs'])}, opset {result['opset']}")
    print(f"task: {result['task_text']}")
    moved = t["bytes_read"] + t["bytes_weights"] + t["bytes_written"]
    print(
        f"{t['nodes']} nodes, {t['convolutions']} convolutions, {t['parameters']:,} parameters,"
        f" {t['macs'] / 1e6:.1f} M MACs, {t['flops'] / 1e6:.1f} M FLOPs, {moved / 1e6:.1f} MB moved"
    )
    rows = []
    for row in sorted(result["layers"], key=lambda r: -r["macs"])[:top]:
        moved = (row["bytes_read"] + row["bytes_weights"] + row["bytes_written"]) / 1000
        shape = "x".join(str(d) for d in row["shape"] or ())
        rows.append((_tail(row["name"]), row["op"], shape, f"{row['macs']:,}", f"{row['parameters']:,}",
                     f"{moved:.0f}", f"{row['intensity']:.1f}"))  # fmt: skip
    shown = (
        f"the {top} costliest of {len(result['layers'])} nodes" if len(result["layers"]) > top else "costliest first"
    )
    _print(shown, ("node", "op", "shape"), ("MACs", "params", "kB\nmoved", "FLOP\n/byte"), rows)
    for line in t["not_counted"]:
        print(f"not counted: {line}")
