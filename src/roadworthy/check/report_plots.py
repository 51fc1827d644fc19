"""The pictures of the report's figures: what stands in each plot, drawn by `plots`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from . import plots
from .report_schema import Allocation, Budget, Layer, Report, Size, TrainingPart
from .report_words import fixed, size_text

SHOWN_BARS = 30


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


def drop_budget(report: Report) -> Budget | None:
    """The budget on the drop of the headline metric, found by its name ("map_drop", "top-1 drop"), or None."""
    metric = report.accuracy.metric if report.accuracy else "accuracy"
    for b in report.budgets:
        words = f"{b.metric} {b.name}".lower().replace("-", "")
        if "drop" in words and metric.lower().replace("-", "") in words:
            return b
    return None


def figures(report: Report) -> dict[str, str]:
    size, estimated = _size_parts(report)
    out = {
        "size": "",
        "size_estimated": "yes" if estimated else "",
        "sensitivity": "",
        "sensitivity_of": "",
        "sqnr": "",
        "candidates": "",
        "pareto": _pareto_plot(report.pareto or []),
        "loss": "",
        "distance": "",
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
    if report.training:
        out |= _curves(report.training)
    out["sqnr"] = _sqnr_plot(report.layers or [])
    tried = [c for c in report.candidates or [] if c.drop is not None]
    metric = report.accuracy.metric if report.accuracy else "accuracy"
    budget = drop_budget(report)
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


def _curves(training: TrainingPart) -> dict[str, str]:
    """The loss, and the distance of the watched images, along the steps of a training."""

    def points(rows: list[list[float | None]] | None, what: str) -> list[plots.Point]:
        delivered = training.best_step
        return [
            plots.Point(step, v, f"step {step:.0f}: {what} {plots.number(v)}", "chosen" if step == delivered else "")
            for step, v in rows or []
            if step is not None and v is not None
        ]

    loss = plots.lines(
        {"loss": [replace(p, tone="") for p in points(training.loss, "loss")]},
        title="Loss of the training", x_axis="step", y_axis="loss", tones={"loss": "compressed"},
    )  # fmt: skip
    plain, mean = points(training.distance, "distance"), points(training.distance_of_average, "distance")
    other = mean if training.averaged else plain  # the delivered state lies on one of the two lines
    series = {
        "the weights": plain if other is plain else [replace(p, tone="") for p in plain],
        "their running average": mean if other is mean else [replace(p, tone="") for p in mean],
    }
    tones = {"the weights": "original", "their running average": "compressed"}
    away = plots.lines(
        series, title="Distance to the original", x_axis="step", y_axis="task distance, watched images", tones=tones
    )
    return {"loss": loss, "distance": away}


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
