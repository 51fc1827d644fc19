"""The tables of the report's page: literal tuples of `Column`s, and rows made of them.

A column that no row has a value for is left out, and so is a table without rows, so that what was not measured leaves
no empty box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from . import plots
from .report_schema import Accuracy, Operating
from .report_words import count_text, fixed, signed, size_text, span_text


@dataclass(frozen=True)
class Cell:
    text: str
    sort: float | str | None
    tone: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Column:
    """One column of a table on the page: how to get the value of a row, show it, and colour it."""

    title: str
    value: Callable[[Any], Any]
    show: Callable[[Any], str] = str
    tone: Callable[[Any], str] = lambda row: ""
    kind: str = "num"  # "num", "text", "code" or "prose"
    hint: str = ""


@dataclass(frozen=True)
class Table:
    columns: list[Column]
    rows: list[list[Cell]]
    sorted_by: str = ""


def table(columns: Iterable[Column], rows: Sequence[Any], sort: str = "", descending: bool = False) -> Table | None:
    """Rows to cells; columns without any value are left out, and no table is made of no rows. None sorts last."""
    used = [c for c in columns if any(c.value(r) not in (None, "", []) for r in rows)]
    by = next((c for c in used if sort and c.title == sort), None)
    if by:
        known = [r for r in rows if by.value(r) is not None]
        rows = sorted(known, key=by.value, reverse=descending) + [r for r in rows if by.value(r) is None]
    cells = [[_cell(c, row) for c in used] for row in rows]
    return Table(used, cells, by.title if by else "") if used and cells else None


def _cell(column: Column, row: Any) -> Cell:
    value = column.value(row)
    if value is None or value == "":
        return Cell("–" if column.kind == "num" else "", None)
    exact = f"{value:,}".replace(",", "\u202f") if isinstance(value, int) and abs(value) >= 1000 else ""
    sort = value if isinstance(value, (int, float)) else None if column.kind == "num" else str(value)
    return Cell(column.show(value), sort, column.tone(row), exact)


def _fix(places: int) -> Callable[[Any], str]:
    return lambda value: fixed(value, places)


def _loss(value: float | None, limit: float) -> str:
    return "" if value is None or abs(value) < limit else "worse" if value < 0 else "better"


SPEED = (
    Column("variant", lambda r: r.label, kind="text"),
    Column("target", lambda r: r.target, kind="text"),
    Column(
        "speed ratio",
        lambda r: r.ratio,
        lambda v: f"{fixed(v)}×",
        lambda r: _loss((r.ratio or 1) - 1, 0.02),
        hint="baseline median / this median; above 1 is faster",
    ),
    Column("spread", lambda r: span_text(r.ratio_spread), hint="of the ratio between paired rounds"),
    Column("median ms", lambda r: r.median_ms, _fix(2)),
    Column("p90 ms", lambda r: r.p90_ms, _fix(2)),
    Column("end to\u00a0end ms", lambda r: r.end_to_end_ms, _fix(2), hint="decoded image to detections"),
    Column("QPS", lambda r: r.qps, _fix(0), hint="inferences per second"),
    Column("load ms", lambda r: r.load_ms, _fix(0)),
    Column("peak memory MB", lambda r: r.peak_mb, _fix(0)),
    Column("file", lambda r: r.file_bytes, size_text),
    Column("samples", lambda r: r.samples),
    Column("dropped", lambda r: r.dropped, hint="samples left out because the machine was busy"),
)
CANDIDATES = (
    Column("candidate", lambda r: r.name, kind="text"),
    Column("variant", lambda r: r.variant, kind="text"),
    Column(
        "choice",
        lambda r: "chosen" if r.chosen else "rejected",
        kind="text",
        tone=lambda r: "tag-chosen" if r.chosen else "tag-off",
    ),
    Column(
        "distance",
        lambda r: r.distance,
        _fix(4),
        hint="from the original's outputs, on held-out images: 0 equal, about 1 unrelated",
    ),
    Column("drop", lambda r: r.drop, _fix(2), hint="points; positive is lost"),
    Column("speed ratio", lambda r: r.ratio, lambda v: f"{fixed(v)}×", hint="above 1 is faster"),
    Column("file", lambda r: r.bytes, size_text),
    Column("search s", lambda r: r.seconds, _fix(1), hint="time it took to make and judge"),
    Column("why", lambda r: r.why, kind="prose"),
)
PARETO = (
    Column("allocation", lambda r: r.name, kind="text"),
    Column("what", lambda r: r.variant, kind="text"),
    Column(
        "choice",
        lambda r: "chosen" if r.chosen else "",
        kind="text",
        tone=lambda r: "tag-chosen" if r.chosen else "",
    ),
    Column("file", lambda r: r.bytes, size_text),
    Column(
        "predicted distance",
        lambda r: r.predicted,
        plots.number,
        hint="task distance to the original, by the layers' own: 0 equal, about 1 unrelated",
    ),
    Column(
        "measured distance",
        lambda r: r.measured,
        plots.number,
        hint="task distance to the original on images not calibrated with: 0 equal, about 1 unrelated",
    ),
    Column("drop", lambda r: r.drop, _fix(2), hint="points on the test images; positive is lost"),
    Column("recipe", lambda r: r.recipe, kind="code"),
)
LAYERS = (
    Column("layer", lambda r: r.name, kind="code"),
    Column("op", lambda r: r.op, kind="text"),
    Column(
        "placement", lambda r: r.placement, kind="text", tone=lambda r: f"tag-{(r.placement or '').replace(' ', '-')}"
    ),
    Column(
        "SQNR dB",
        lambda r: r.sqnr_db,
        _fix(1),
        hint="signal to quantization noise, accumulated from the input; higher is better",
    ),
    Column("local SQNR dB", lambda r: r.local_sqnr_db, _fix(1), hint="noise of this layer alone, fed exact inputs"),
    Column("cosine", lambda r: r.cosine, _fix(5)),
    Column("max error", lambda r: r.max_error, plots.number),
    Column("output", lambda r: r.output if r.output != r.name else None, kind="code"),
    Column(
        "shape", lambda r: "×".join("?" if d is None else str(d) for d in r.shape) if r.shape else None, kind="text"
    ),
    Column("MACs", lambda r: r.macs, count_text),
    Column("parameters", lambda r: r.parameters, count_text),
    Column("why", lambda r: r.why, kind="prose"),
)
STEPS = (
    Column("step", lambda r: r.name, kind="text"),
    Column("seconds", lambda r: r.seconds, _fix(2)),
    Column("detail", lambda r: r.detail, kind="prose"),
)
MEASURES = (
    ("mAP (IoU 0.50 to 0.95)", "map"),
    ("AP at IoU 0.50", "ap50"),
    ("AP at IoU 0.75", "ap75"),
    ("AP, small objects (under 32² px)", "small"),
    ("AP, medium objects (32² to 96² px)", "medium"),
    ("AP, large objects (over 96² px)", "large"),
    ("recall", "recall"),
    ("precision", "precision"),
    ("top-1", "top1"),
    ("top-5", "top5"),
)


def _before_after(before: int, after: int, places: int, title: str = "") -> tuple[Column, ...]:
    """Columns for two values of a row tuple, and for what became of the first."""

    def change(row: Sequence[Any]) -> float | None:
        return None if row[before] is None or row[after] is None else row[after] - row[before]

    return (
        Column(f"{title}original", lambda r: r[before], _fix(places)),
        Column(f"{title}compressed", lambda r: r[after], _fix(places)),
        Column(f"{title}change", change, lambda v: signed(v, places), lambda r: _loss(change(r), 0.5 * 10**-places)),
    )


def accuracy_table(accuracy: Accuracy) -> Table | None:
    before, after = accuracy.original.threshold, accuracy.compressed.threshold
    threshold = before if before is not None else after
    at = f" at score ≥ {plots.number(threshold)}" if threshold is not None else ""
    if threshold is not None and after is not None and after != threshold:
        at += f", compressed ≥ {plots.number(after)}"
    rows = [
        (
            label + (at if key in ("recall", "precision") else ""),
            getattr(accuracy.original, key),
            getattr(accuracy.compressed, key),
        )
        for label, key in MEASURES
    ]
    return table(
        (Column("measure", lambda r: r[0], kind="text"), *_before_after(1, 2, 2)),
        [r for r in rows if r[1] is not None or r[2] is not None],
    )


OPERATING = (
    Column("operating point", lambda r: r[0], kind="text"),
    Column("score threshold", lambda r: r[1], _fix(4)),
    Column("recall", lambda r: r[2], _fix(2), hint="labels found at IoU 0.5, all classes together"),
    Column("precision", lambda r: r[3], _fix(2), hint="detections that are right"),
)


def operating_table(operating: Operating) -> Table | None:
    names = ("original", "compressed, threshold of the original", "compressed, its own threshold")
    limits = (operating.original, operating.original, operating.compressed)
    none = [None, None, None]
    rows = list(zip(names, limits, operating.recall or none, operating.precision or none))
    return table(OPERATING, rows if operating.compressed != operating.original else rows[:2])


def class_table(accuracy: Accuracy) -> Table | None:
    """Per class, the largest loss first: AP, and recall where it was measured."""
    ap, ap_after = accuracy.original.per_class or {}, accuracy.compressed.per_class or {}
    recall, recall_after = accuracy.original.recall_per_class or {}, accuracy.compressed.recall_per_class or {}
    counts = accuracy.boxes_per_class or {}
    names = [
        n
        for n in dict.fromkeys([*ap, *ap_after, *recall, *recall_after])
        if any(d.get(n) is not None for d in (ap, ap_after, recall, recall_after))
    ]
    rows = [(n, ap.get(n), ap_after.get(n), counts.get(n), recall.get(n), recall_after.get(n)) for n in names]
    columns = (
        Column("class", lambda r: r[0], kind="text"),
        Column("boxes", lambda r: r[3], hint="labelled boxes of this class in the test images"),
        *_before_after(1, 2, 1, "AP "),
        *_before_after(4, 5, 1, "recall "),
    )
    return table(columns, rows, sort="AP change" if ap and ap_after else "recall change")
