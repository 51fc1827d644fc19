"""What the terminal shows: progress while a job runs, and the tables of the other commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from roadworthy.jobs.search import Advance, Ui


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


def _print(table: Table) -> None:
    RichConsole(file=sys.stdout, highlight=False).print(table)


def _number(value: Any, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _tail(name: str, width: int = 30) -> str:
    """The end of a long name: that is where exporters put what tells layers apart."""
    return name if len(name) <= width else "…" + name[-width + 1 :]


def accuracy_table(result: dict[str, Any]) -> None:
    """The result of `eval`."""
    columns = [c for c in ("original", "model") if c in result["accuracy"]]
    table = Table("", *columns, title=f"{result['metric']} on {result['images']} images, against {result['reference']}")
    for row in result["rows"]:
        table.add_row(row, *(_number(result["accuracy"][c].get(row)) for c in columns))
    _print(table)
    per_class = result["accuracy"]["model"].get("per_class")
    if per_class:
        table = Table("class", *columns, title="AP per class, worst first")
        known = sorted((v, k) for k, v in per_class.items() if v is not None)
        for _, name in known[:20]:
            table.add_row(name, *(_number(result["accuracy"][c]["per_class"].get(name)) for c in columns))
        _print(table)
    for line in result["findings"]:
        print(f"finding: {line}")
    if result.get("drop"):
        d = result["drop"]
        print(f"drop {d['drop']:+.2f} points, 95 % interval {d['low']:+.2f} to {d['high']:+.2f}")


def alignment_table(result: Any, top: int) -> None:
    """The result of `align`."""
    table = Table("tensor", "layer", "op", "SQNR dB", "local dB", "cosine", "max error", title="worst first")
    rows = sorted(result.rows(), key=lambda r: r["sqnr_db"] if r["sqnr_db"] is not None else 1e9)
    for row in rows[:top]:
        table.add_row(
            _tail(row["output"]), _tail(row["name"]), row["op"], _number(row["sqnr_db"], 1),
            _number(row["local_sqnr_db"], 1), _number(row["cosine"], 5), _number(row["max_error"], 4),
        )  # fmt: skip
    _print(table)
    print(f"first divergence: {result.first}")
    for finding in result.findings:
        print(f"finding: {finding.text}")


def speed_table(result: Any) -> None:
    """The result of `bench`."""
    columns = ("ratio", "median ms", "p90 ms", "end to end ms", "QPS", "load ms", "peak MB", "file kB", "dropped")
    table = Table("", *columns, title=f"ratio to the first, {result.threads} threads")
    for row in result.rows():
        table.add_row(
            f"{row['label']}", _number(row["ratio"]), _number(row["median_ms"]), _number(row["p90_ms"]),
            _number(row["end_to_end_ms"]), _number(row["qps"], 0), _number(row["load_ms"], 0),
            _number(row["peak_mb"], 0),
            f"{row['file_bytes'] / 1000:.0f}", f"{row['dropped']}/{row['samples']}",
        )  # fmt: skip
    _print(table)
    for line in result.notes:
        print(f"note: {line}")
    env = result.environment
    print(f"{env.get('cpu', '')}, {result.threads} threads")


def cost_table(result: dict[str, Any], top: int) -> None:
    """The result of `inspect`."""
    t = result["totals"]
    print(f"{result['path']}: input {result['input']}, outputs {', '.join(result['outputs'])}, opset {result['opset']}")
    print(f"task: {result['task_text']}")
    moved = t["bytes_read"] + t["bytes_weights"] + t["bytes_written"]
    print(
        f"{t['nodes']} nodes, {t['convolutions']} convolutions, {t['parameters']:,} parameters,"
        f" {t['macs'] / 1e6:.1f} M MACs, {t['flops'] / 1e6:.1f} MFLOPs, {moved / 1e6:.1f} MB moved"
    )
    table = Table("node", "op", "shape", "MACs", "params", "kB moved", "FLOP/byte", title="costliest first")
    for row in sorted(result["layers"], key=lambda r: -r["macs"])[:top]:
        moved = (row["bytes_read"] + row["bytes_weights"] + row["bytes_written"]) / 1000
        table.add_row(row["name"], row["op"], "x".join(str(d) for d in row["shape"] or ()), f"{row['macs']:,}",
                      f"{row['parameters']:,}", f"{moved:.0f}", f"{row['intensity']:.1f}")  # fmt: skip
    _print(table)
    for line in t["not_counted"]:
        print(f"not counted: {line}")
