"""What the HTML report shows: from a checked report to tables, tiles and plots. Text and figures only, no markup."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from . import plots
from .pictures import Picture, compare, panels, top_labels
from .report_plots import drop_budget, figures
from .report_schema import Budget, Report, TrainingPart, ends, headline
from .report_tables import CANDIDATES, LAYERS, PARETO, SPEED, STEPS, accuracy_table, class_table, operating_table, table
from .report_words import fixed, size_text, span_text

PICTURE_BYTES = 2_000_000  # JPEG bytes of all pictures together; base64 adds a third
PANEL_BYTES = 110_000  # most for one panel
SAME_SPEED = 0.05  # a ratio this close to 1 cannot be told from 1 on a restless machine


def _budget_rows(budgets: Sequence[Budget]) -> list[dict[str, Any]]:
    rows = []
    for b in budgets:
        sign, unit = (
            ("≥" if b.at_least else "≤"),
            f"{'' if b.unit in ('×', 'x', '%') else ' '}{b.unit}" if b.unit else "",
        )
        limit = f"{sign} {plots.number(b.limit)}{unit}"
        measured, span = None if b.measured is None else f"{plots.number(b.measured)}{unit}", span_text(b.interval)
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
        span = span_text(acc.interval)
        tile["name"] = f"{acc.metric} drop"
        drop = before - after if acc.drop is None and before is not None and after is not None else acc.drop
        tile["value"], tile["word"] = ("" if drop is None else fixed(drop)), "points"
        budget = drop_budget(report)
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


def _training_facts(training: TrainingPart) -> list[tuple[str, str | None]]:
    """What a training took, and what it gave."""

    def change(pair: Sequence[float | None] | None, places: int) -> str | None:
        found = ends(pair)
        return f"{fixed(found[0], places)} → {fixed(found[1], places)}" if found else None

    kind = "running average of the weights" if training.averaged else "weights"
    delivered = f"the {kind} after step {training.best_step}" if training.best_step else "what it began with"
    minutes = None if training.seconds is None else f"{fixed(training.seconds / 60, 1)} minutes"
    return [
        ("drop without and with training, points", change(training.drop, 2)),
        ("distance on held-out images", change(training.held_out_distance, 4)),
        ("distance on watched images", change(training.distances, 4)),
        ("teacher", training.teacher),
        ("steps made", str(training.steps)),
        ("delivered", delivered),
        ("ended because", training.stopped),
        ("took", minutes),
        ("largest memory", None if training.peak_mb is None else f"{fixed(training.peak_mb, 0)} MB"),
        ("images trained on", None if training.images is None else str(training.images)),
        ("images watched", None if training.watched is None else str(training.watched)),
        ("images held out", None if training.held_out is None else str(training.held_out)),
    ]


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
        "accuracy": accuracy_table(acc) if acc else None,
        "classes": class_table(acc) if acc else None,
        "operating": operating_table(report.operating) if report.operating else None,
        "accuracy_span": span_text(acc.interval) if acc else None,
        "includes_zero": bool(acc and (e := ends(acc.interval)) and e[0] <= 0 <= e[1]),
        "speed": table(SPEED, report.speed or []),
        "candidates": table(CANDIDATES, report.candidates or []),
        "training": _training_facts(report.training) if report.training else None,
        "pareto": table(PARETO, report.pareto or []),
        "layers": table(LAYERS, report.layers or [], sort="SQNR dB"),
        "recipe_sha256": hashlib.sha256(report.recipe.encode()).hexdigest() if report.recipe else None,
        "steps": table(STEPS, report.steps or []),
        "plots": figures(report),
        "pictures": _shown_pictures(pictures),
    }
