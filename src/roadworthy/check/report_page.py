"""What the HTML report shows: from a checked report to tables, tiles and plots. Text and figures only, no markup.

A table is a literal tuple of `Column`s. A column that no row has a value for is left out, and so is a table without
rows, so that what was not measured leaves no empty box.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from . import plots
from .pictures import Picture, compare, panels, top_labels
from .report_schema import Accuracy, Allocation, Budget, Layer, Operating, Report, Size, ends, headline

PICTURE_BYTES = 2_000_000  # JPEG bytes of all pictures together; base64 adds a third
PANEL_BYTES = 110_000  # most for one panel
SHOWN_BARS = 30


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


SAME_SPEED = 0.05  # a ratio this close to 1 cannot be told from 1 on a restless machine


def fixed(value: float | None, places: int = 2) -> str:
    """A number with a fixed count of decimals and a true minus sign; a dash for None; no negative zero."""
    if value is None:
        return "–"
    text = f"{value:,.{places}f}".replace(",", "\u202f")
    return (text.lstrip("-") if not text.strip("-0.") else text).replace("-", "\u2212")


def signed(value: float, places: int = 2) -> str:
    """As `fixed`, with a plus sign for gains."""
    text = fixed(value, places)
    return f"+{text}" if text.strip("0.") and not text.startswith("\u2212") else text


def size_text(value: float | None) -> str:
    """Bytes for people: 3.66 MB, 1 MB being 10^6 bytes."""
    if value is None:
        return "–"
    scale, unit = next(((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if value >= s), (1, "B"))
    return f"{value / scale:.{2 if scale > 1 else 0}f}\u00a0{unit}"


def count_text(value: float | None) -> str:
    """A large count for people: 522.6 M."""
    if value is None:
        return "–"
    scale, unit = next(
        ((s, u) for s, u in ((1e9, "\u00a0G"), (1e6, "\u00a0M"), (1e3, "\u00a0k")) if value >= s), (1, "")
    )
    return f"{value / scale:.{1 if scale > 1 else 0}f}{unit}"


def pairs(value: Mapping[str, Any] | None, prefix: str = "") -> list[tuple[str, str]]:
    """A free dict as (name, text) lines, nested dicts flattened with a dot, None left out."""
    out: list[tuple[str, str]] = []
    for key, item in (value or {}).items():
        if isinstance(item, Mapping):
            out += pairs(item, f"{prefix}{key}.")
        elif item is not None and item != [] and item != "":
            shown = json.dumps(item, ensure_ascii=False) if isinstance(item, list) else item
            out.append(
                (f"{prefix}{key}".replace("_", " "), plots.number(item, 6) if isinstance(item, float) else str(shown))
            )
    return out


AGREEMENT = {
    "found_again": "detections of the original found again (same class, IoU at least 0.5)",
    "also_in_original": "detections of the compressed model that the original has",
    "mean_iou": "mean IoU of those found again",
    "detections": "detections of the original",
    "same_top1": "images with the same best class",
}


def agreement_rows(agreement: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How far the two models say the same, in words and with units."""
    units = {key: "\u00a0%" for key in ("found_again", "also_in_original", "same_top1")}
    rows = []
    for key, item in agreement.items():
        places = 0 if key == "detections" else 2 if key in units else 3
        if key in AGREEMENT and item is not None:
            rows.append((AGREEMENT[key], f"{fixed(item, places)}{units.get(key, '')}"))
        else:
            rows += pairs({key: item})
    return rows


def _span(interval: Sequence[float | None] | None, places: int = 2) -> str | None:
    pair = ends(interval)
    return f"{fixed(pair[0], places)} to {fixed(pair[1], places)}" if pair else None


def _table(columns: Iterable[Column], rows: Sequence[Any], sort: str = "", descending: bool = False) -> Table | None:
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
    Column("spread", lambda r: _span(r.ratio_spread), hint="of the ratio between paired rounds"),
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


def _accuracy_table(accuracy: Accuracy) -> Table | None:
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
    return _table(
        (Column("measure", lambda r: r[0], kind="text"), *_before_after(1, 2, 2)),
        [r for r in rows if r[1] is not None or r[2] is not None],
    )


OPERATING = (
    Column("operating point", lambda r: r[0], kind="text"),
    Column("score threshold", lambda r: r[1], _fix(4)),
    Column("recall", lambda r: r[2], _fix(2), hint="labels found at IoU 0.5, all classes together"),
    Column("precision", lambda r: r[3], _fix(2), hint="detections that are right"),
)


def _operating_table(operating: Operating) -> Table | None:
    names = ("original", "compressed, threshold of the original", "compressed, its own threshold")
    limits = (operating.original, operating.original, operating.compressed)
    none = [None, None, None]
    rows = list(zip(names, limits, operating.recall or none, operating.precision or none))
    return _table(OPERATING, rows if operating.compressed != operating.original else rows[:2])


def _class_table(accuracy: Accuracy) -> Table | None:
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
    return _table(columns, rows, sort="AP change" if ap and ap_after else "recall change")


def _size_parts(report: Report) -> tuple[Size | None, bool]:
    """The size breakdown as given, else estimated from layers: float32 before, one byte per int8 weight after."""
    total, after = report.original.bytes, report.result.bytes
    if report.size or not total or not after:
        return report.size, False
    weights = sum(r.parameters or 0 for r in report.layers or [])
    kept = sum(r.parameters or 0 for r in report.layers or [] if r.placement == "float")
    rest, rest_after = total - 4 * weights, after - 4 * kept - (weights - kept)
    if not weights or rest < 0 or rest_after < 0:
        return Size(original={"file": total}, compressed={"file": after}), False
    small = {"int8 weights": weights - kept, "float32 weights": 4 * kept, "graph, scales, other": rest_after}
    return Size(original={"float32 weights": 4 * weights, "graph, scales, other": rest}, compressed=small), True


def _drop_budget(report: Report) -> Budget | None:
    """The budget on the drop of the headline metric, found by its name ("map_drop", "top-1 drop"), or None."""
    metric = report.accuracy.metric if report.accuracy else "accuracy"
    for b in report.budgets:
        words = f"{b.metric} {b.name}".lower().replace("-", "")
        if "drop" in words and metric.lower().replace("-", "") in words:
            return b
    return None


def _plots(report: Report) -> dict[str, str]:
    size, estimated = _size_parts(report)
    out = {
        "size": "",
        "size_estimated": "yes" if estimated else "",
        "sensitivity": "",
        "sensitivity_of": "",
        "sqnr": "",
        "candidates": "",
        "pareto": _pareto_plot(report.pareto or []),
    }
    if size:
        scale, unit = (
            (1e6, "MB") if max(sum(size.original.values()), sum(size.compressed.values())) >= 1e6 else (1e3, "kB")
        )
        both = {"original": size.original, "compressed": size.compressed}
        out["size"] = plots.stacked(both, title="File size by part", axis=f"file size, {unit}", scale=scale, unit=unit)
    costs = [s for s in report.sensitivity or [] if s.value is not None]
    ranked = sorted(costs, key=lambda s: (s.cost_rank is None, s.cost_rank or 0, -(s.value or 0.0)))
    if ranked:
        metric = ranked[0].metric or "cost"
        rows = [
            plots.Bar(
                s.layer,
                v,
                "float" if s.kept_float else "int8",
                plots.number(v) + (" · kept in float" if s.kept_float else ""),
                f"{s.layer}: {metric} {plots.number(v)}" + (", kept in float" if s.kept_float else ""),
            )
            for s in ranked[:SHOWN_BARS]
            if (v := s.value) is not None
        ]
        out["sensitivity"] = plots.bars(rows, title="Sensitivity per layer", axis=metric)
        out["sensitivity_of"] = (
            f"the {len(rows)} most costly of {len(ranked)} layers" if len(ranked) > len(rows) else ""
        )
    out["sqnr"] = _sqnr_plot(report.layers or [])
    tried = [c for c in report.candidates or [] if c.drop is not None]
    metric = report.accuracy.metric if report.accuracy else "accuracy"
    budget = _drop_budget(report)
    limit = budget.limit if budget else None
    rows = []
    for c in tried:
        facts = [
            fixed(c.drop),
            f"{fixed(c.ratio)}× speed" if c.ratio is not None else "",
            size_text(c.bytes) if c.bytes else "",
        ]
        text = " · ".join(f for f in facts if f)
        rows.append(
            plots.Bar(
                ("✓ " if c.chosen else "") + c.name,
                c.drop or 0.0,
                "chosen" if c.chosen else "rejected",
                text,
                f"{c.name}: {text}",
            )
        )
    if len(rows) > 1:
        out["candidates"] = plots.bars(
            rows, title="Accuracy drop per candidate", axis=f"{metric} drop, points", limit=limit, limit_text="budget"
        )
    return out


def _pareto_plot(rows: Sequence[Allocation]) -> str:
    """Size against distance, one pair of lines for each target's front (they are listed one after the other)."""
    found = sorted(rows, key=lambda r: r.bytes)

    def points(key: str) -> list[plots.Point]:
        return [
            plots.Point(r.bytes / 1e3, v, f"{r.name}: {key} {plots.number(v)}", "chosen" if r.chosen else "")
            for r in found
            if (v := getattr(r, key)) is not None
        ]

    return plots.lines(
        {"measured": points("measured"), "predicted": points("predicted")},
        title="Size and distance of the allocations",
        x_axis="file size, kB",
        y_axis="task distance to the original",
        tones={"measured": "compressed", "predicted": "original"},
    )


def _sqnr_plot(layers: Sequence[Layer]) -> str:
    def points(key: str) -> list[plots.Point]:
        out = []
        for i, r in enumerate(layers, 1):
            value, kept = getattr(r, key), r.placement == "float"
            text = "" if value is None else f"{i}. {r.name}: {fixed(value, 1)} dB" + (", kept in float" if kept else "")
            out.append(plots.Point(i, value, text, "float" if kept and key == "sqnr_db" else ""))
        return out

    series = {"accumulated from the input": points("sqnr_db"), "local, exact inputs": points("local_sqnr_db")}
    tones = {"accumulated from the input": "compressed", "local, exact inputs": "original"}
    return plots.lines(
        series, title="SQNR along the network", x_axis="layer in order of execution", y_axis="SQNR, dB", tones=tones
    )


def _budget_rows(budgets: Sequence[Budget]) -> list[dict[str, Any]]:
    rows = []
    for b in budgets:
        sign, unit = (
            ("≥" if b.at_least else "≤"),
            f"{'' if b.unit in ('×', 'x', '%') else ' '}{b.unit}" if b.unit else "",
        )
        limit = f"{sign} {plots.number(b.limit)}{unit}"
        measured, span = None if b.measured is None else f"{plots.number(b.measured)}{unit}", _span(b.interval)
        mark = ""
        if b.measured is not None:
            hover = f"{b.name}: {measured}" + (f", 95 % interval {span}" if span else "") + f", limit {limit}"
            mark = plots.budget_mark(b.measured, b.limit, ends(b.interval), b.at_least, b.verdict == "holds", hover)
        rows.append({"budget": b, "limit": limit, "measured": measured, "span": span, "mark": mark})
    return rows


def _tiles(report: Report) -> list[dict[str, str]]:
    """The three figures of the first glance: size, speed, accuracy; each says so where it was not measured."""
    size, speed, tiles = report.result.size_ratio, report.result.speed_ratio, []
    a, b = report.original.bytes, report.result.bytes
    if size is None and a and b:
        size = a / b
    word = "smaller" if (size or 1) >= 1 else "larger"
    note = f"{size_text(a)} → {size_text(b)}" if a and b else ""
    tiles.append(
        {
            "name": "File size",
            "value": "" if size is None else f"{fixed(max(size, 1 / max(size, 1e-9)), 2)}×",
            "word": word,
            "note": note,
            "tone": "bad" if word == "larger" else "",
        }
    )
    word, note = "faster" if (speed or 1) >= 1 else "slower", ""
    if speed is not None and abs(speed - 1) <= SAME_SPEED:
        word, value = "as fast, within what was measurable", f"{fixed(speed)}×"
    else:
        value = "" if speed is None else f"{fixed(max(speed, 1 / max(speed, 1e-9)), 2)}×"
    rows = report.speed or []
    target = report.result.target
    by_label = {r.label: r for r in rows}
    near = next((r for r in rows[1:] if r.ratio is not None and abs(r.ratio - (speed or 0)) < 1e-3), None)
    mine = by_label.get(f"{report.result.variant} on {target}", near)
    base = by_label.get(f"original on {target}", rows[0] if rows else None)
    if mine and base and mine.median_ms and base.median_ms:
        note = f"median {fixed(base.median_ms)} → {fixed(mine.median_ms)} ms"
    tiles.append(
        {
            "name": f"Speed on {target}" if target else "Speed",
            "value": value,
            "word": word,
            "note": note,
            "tone": "bad" if word == "slower" else "",
        }
    )
    acc = report.accuracy
    tile = {"name": "Accuracy drop", "value": "", "word": "", "note": "", "tone": ""}
    if acc:
        before, after = headline(acc)
        span = _span(acc.interval)
        tile["name"] = f"{acc.metric} drop"
        drop = before - after if acc.drop is None and before is not None and after is not None else acc.drop
        tile["value"], tile["word"] = ("" if drop is None else fixed(drop)), "points"
        budget = _drop_budget(report)
        tile["tone"] = "bad" if budget and budget.verdict == "broken" else ""
        facts = [
            f"95 % interval {span}" if span else "",
            f"{acc.metric} {fixed(before)} → {fixed(after)}" if before is not None else "",
        ]
        tile["note"] = "; ".join(f for f in facts if f)
    return [*tiles, tile]


def _shown_pictures(pictures: Sequence[Picture]) -> list[dict[str, Any]]:
    budget = min(PANEL_BYTES, PICTURE_BYTES // max(2 * len(pictures), 1))
    shown = []
    for p in pictures:
        sides = [f"data:image/jpeg;base64,{base64.b64encode(data).decode()}" for data in panels(p, budget)]
        tops = (
            None if p.is_detection else [top_labels(np.asarray(s), p.class_names) for s in (p.original, p.compressed)]
        )
        shown.append({"picture": p, "sides": sides, "comparison": compare(p) if p.is_detection else None, "tops": tops})
    return shown


def page(report: Report, pictures: Sequence[Picture]) -> dict[str, Any]:
    counts = {v: sum(b.verdict == v for b in report.budgets) for v in ("holds", "broken", "not measured")}
    acc = report.accuracy
    return {
        "r": report,
        "name": PurePath(report.original.path or report.result.path or "model").name,
        "counts": counts,
        "crossing": [b.name for b in report.budgets if b.verdict == "holds" and b.crosses],
        "tiles": _tiles(report),
        "budgets": _budget_rows(report.budgets),
        "accuracy": _accuracy_table(acc) if acc else None,
        "classes": _class_table(acc) if acc else None,
        "operating": _operating_table(report.operating) if report.operating else None,
        "accuracy_span": _span(acc.interval) if acc else None,
        "includes_zero": bool(acc and (e := ends(acc.interval)) and e[0] <= 0 <= e[1]),
        "speed": _table(SPEED, report.speed or []),
        "candidates": _table(CANDIDATES, report.candidates or []),
        "pareto": _table(PARETO, report.pareto or []),
        "layers": _table(LAYERS, report.layers or [], sort="SQNR dB"),
        "recipe_sha256": hashlib.sha256(report.recipe.encode()).hexdigest() if report.recipe else None,
        "steps": _table(STEPS, report.steps or []),
        "plots": _plots(report),
        "pictures": _shown_pictures(pictures),
    }
