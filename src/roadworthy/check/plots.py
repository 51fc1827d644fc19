"""Small plots as inline SVG text: horizontal bars, stacked bars, lines, and the mark of one budget.

Nothing is scripted and nothing is fetched. Colours are CSS variables with a fallback, so one drawing serves light and
dark pages; every mark has a `<title>`, which browsers show on hover and screen readers read. All text is escaped.
Coordinates are in SVG user units, one unit being one CSS pixel at natural size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 760
ROW = 22  # height of one bar with its gap
LABEL = 250  # widest label column
GLYPH = 6.7  # mean advance of a 12 px sans glyph

TONES = {  # meaning -> paint
    "int8": "var(--compressed, #2f6db5)",
    "float": "var(--kept, #b7791f)",
    "chosen": "var(--compressed, #2f6db5)",
    "rejected": "var(--original, #8a929c)",
    "original": "var(--original, #8a929c)",
    "compressed": "var(--compressed, #2f6db5)",
    "bad": "var(--bad, #b3261e)",
}
PARTS = tuple(
    f"var(--part{i}, {c})" for i, c in enumerate(("#2f6db5", "#b7791f", "#5b8c5a", "#8e6bb0", "#c2577a", "#6b7480"))
)
INK, MUTED, GRID = "var(--ink, #1b1f24)", "var(--muted, #5b6570)", "var(--grid, #dfe3e8)"


@dataclass(frozen=True)
class Bar:
    """One row of `bars`: the value in the axis unit, the text behind the bar, and the text shown on hover."""

    label: str
    value: float
    tone: str = "int8"
    text: str = ""
    hover: str = ""


@dataclass(frozen=True)
class Point:
    """One sample of a line; y None leaves a gap."""

    x: float
    y: float | None
    hover: str = ""
    tone: str = ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) from at most `low` to at least `high`."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        low, high = (low, low + 1.0) if math.isfinite(low) else (0.0, 1.0)
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= rough * (1 - 1e-9)), 10 * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [0.0 if i == 0 else float(f"{i * step:.10g}") for i in range(first, last + 1)]


def bars(rows: Sequence[Bar], *, title: str, axis: str, limit: float | None = None, limit_text: str = "limit") -> str:
    """Horizontal bars from zero, in the order given; `limit` draws a dashed line across. Empty string for no rows."""
    if not rows:
        return ""
    values = [0.0, *(r.value for r in rows), *([] if limit is None else [limit])]
    marks = ticks(min(values), max(values))
    left = _label_width([r.label for r in rows])
    behind = 10 + GLYPH * max((len(r.text) for r in rows), default=0)
    plot = WIDTH - left - max(behind, 40.0)
    top = 6 if limit is None else 26

    def x(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * plot

    bottom = top + ROW * len(rows)
    out = [_vertical_grid(marks, x, top, bottom), _text(left + plot / 2, bottom + 34, axis, "middle", MUTED)]
    for i, row in enumerate(rows):
        y = top + ROW * i
        a, b = sorted((x(0), x(row.value)))
        out.append(
            f"<g>{_hover(row.hover or f'{row.label}: {number(row.value)}')}"
            f"{_rect(0, y, WIDTH, ROW, 'transparent')}"
            f"{_text(left - 8, y + 15, shorten(row.label, left), 'end')}"
            f"{_rect(a, y + 4, b - a, ROW - 8, TONES[row.tone], 1.5)}"
            f"{_text(b + 6, y + 15, row.text, 'start', MUTED)}</g>"
        )
    out.append(_line(x(0), top, x(0), bottom, INK))
    if limit is not None:
        dashed = _line(x(limit), top - 4, x(limit), bottom, TONES["bad"], "5 4")
        out.append(f"<g>{_hover(f'{limit_text} {number(limit)}')}{dashed}</g>")
        near_end = x(limit) > WIDTH - 120
        out.append(
            _text(x(limit), top - 9, f"{limit_text} {number(limit)}", "end" if near_end else "middle", TONES["bad"])
        )
    return _svg(title, bottom + 40, out)


def stacked(
    rows: Mapping[str, Mapping[str, float]], *, title: str, axis: str, scale: float = 1.0, unit: str = ""
) -> str:
    """One stacked bar per row, parts in the same colour throughout, with a legend; values are divided by `scale`."""
    parts = list(dict.fromkeys(part for row in rows.values() for part in row))
    totals = {name: sum(row.values()) / scale for name, row in rows.items()}
    if not parts or max(totals.values()) <= 0:
        return ""
    paints = _paints(parts)
    left = _label_width(list(rows))
    marks = ticks(0, max(totals.values()))
    plot = WIDTH - left - 80
    thick, top = 40, 10
    bottom = top + thick * len(rows)

    def x(value: float) -> float:
        return left + value / marks[-1] * plot

    out = [_vertical_grid(marks, x, top, bottom), _text(left + plot / 2, bottom + 34, axis, "middle", MUTED)]
    for i, (name, row) in enumerate(rows.items()):
        y, start = top + thick * i, 0.0
        out.append(_text(left - 8, y + 25, shorten(name, left), "end"))
        for part in parts:
            value = row.get(part, 0.0) / scale
            if value <= 0:
                continue
            text, wide = f"{number(value)} {unit}".strip(), x(start + value) - x(start)
            share = f"{value / totals[name] * 100:.1f} %" if totals[name] else ""
            out.append(
                f"<g>{_hover(f'{name}, {part}: {text} ({share})')}"
                f"{_rect(x(start), y + 7, wide - 1, thick - 14, paints[part])}"
                + (
                    _text(x(start) + wide / 2, y + 25, text, "middle", "var(--on-fill, #fff)")
                    if wide > GLYPH * len(text) + 8
                    else ""
                )
                + "</g>"
            )
            start += value
        out.append(_text(x(start) + 6, y + 25, f"{number(totals[name])} {unit}".strip(), "start", INK, bold=True))
    legend, height = _legend(list(paints.items()), bottom + 58)
    return _svg(title, height, [*out, legend])


def lines(
    series: Mapping[str, Sequence[Point]], *, title: str, x_axis: str, y_axis: str, tones: Mapping[str, str]
) -> str:
    """One line per series with a dot per point; None leaves a gap. Empty string where no series has two values."""
    shown = {name: points for name, points in series.items() if sum(p.y is not None for p in points) >= 2}
    ys = [p.y for points in shown.values() for p in points if p.y is not None]
    if not ys:
        return ""
    xs = [p.x for points in shown.values() for p in points]
    marks = ticks(min(0.0, *ys), max(ys))
    left, right, top, bottom = 52.0, WIDTH - 16.0, 14.0, 244.0
    across = [t for t in ticks(min(xs), max(xs), 8) if min(xs) <= t <= max(xs) and t == int(t)]

    def x(value: float) -> float:
        return left + (value - min(xs)) / max(max(xs) - min(xs), 1e-9) * (right - left)

    def y(value: float) -> float:
        return bottom - (value - marks[0]) / (marks[-1] - marks[0]) * (bottom - top)

    out = []
    for mark in marks:
        out += [_line(left, y(mark), right, y(mark), GRID), _text(left - 7, y(mark) + 4, number(mark), "end", MUTED)]
    for mark in across:
        out += [
            _line(x(mark), bottom, x(mark), bottom + 4, MUTED),
            _text(x(mark), bottom + 18, number(mark), "middle", MUTED),
        ]
    out.append(_text((left + right) / 2, bottom + 38, x_axis, "middle", MUTED))
    middle = (top + bottom) / 2
    out.append(f'<g transform="rotate(-90 14 {middle:.1f})">{_text(14, middle, y_axis, "middle", MUTED)}</g>')
    for name, points in shown.items():
        paint, path, pen_up = TONES[tones[name]], [], True
        for p in points:
            if p.y is not None:
                path.append(f"{'M' if pen_up else 'L'}{x(p.x):.1f} {y(p.y):.1f}")
            pen_up = p.y is None
        later = list(shown).index(name) > 0
        style = 'stroke-width="1" stroke-dasharray="4 3" opacity="0.6"' if later else 'stroke-width="1.5"'
        out.append(f'<path d="{" ".join(path)}" fill="none" stroke="{paint}" {style}/>')
        for p in points:
            if p.y is not None:
                radius, fill = (4.0, TONES[p.tone]) if p.tone else (2.6, paint)
                out.append(_dot(x(p.x), y(p.y), radius, fill, p.hover))
    entries = [(name, TONES[tones[name]]) for name in shown]
    if any(p.tone == "float" for points in shown.values() for p in points):
        entries.append(("kept in float", TONES["float"]))
    legend, height = _legend(entries, bottom + 62)
    return _svg(title, height, [*out, legend])


def budget_mark(
    measured: float, limit: float, interval: Sequence[float] | None, at_least: bool, holds: bool, hover: str
) -> str:
    """The budget as a small picture: shaded where it holds, a tick at the limit, dot and bar for value and interval."""
    ends = [0.0, measured, limit, *(interval or ())]
    low, high = min(ends), max(ends)
    spare = (high - low or 1.0) * 0.12
    low, high = (low - spare if low < 0 else low), high + spare
    width, paint = 170, "var(--good, #1f7a4d)" if holds else TONES["bad"]

    def x(value: float) -> float:
        return 4 + (value - low) / (high - low) * (width - 8)

    a, b = (x(limit), x(high)) if at_least else (x(low), x(limit))
    out = [
        _hover(hover),
        _rect(4, 10, width - 8, 6, GRID),
        _rect(a, 10, b - a, 6, "var(--good-soft, #bfe3cf)"),
        _line(x(limit), 5, x(limit), 21, INK),
    ]
    if interval:
        out.append(_rect(x(interval[0]), 11.5, x(interval[1]) - x(interval[0]), 3, paint))
    out.append(_dot(x(measured), 13, 4.5, paint))
    return f'<svg class="mark" viewBox="0 0 {width} 26" width="{width}" height="26" role="img">{"".join(out)}</svg>'


def number(value: float, digits: int = 3) -> str:
    """A number at `digits` significant digits without an exponent where it can be avoided, with a true minus sign."""
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}".replace("-", "\u2212")
    places = max(digits - 1 - math.floor(math.log10(abs(value))), 0) if value else 0
    text = f"{value:,.{places}f}".replace(",", "\u202f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "\u2212")


def shorten(text: str, width: float) -> str:
    """The text cut in the middle, where layer names differ least, to fit `width` units."""
    room = max(int((width - 10) / GLYPH), 5)
    if len(text) <= room:
        return text
    head = (room - 1) // 3
    return f"{text[:head]}…{text[len(text) - (room - 1 - head) :]}"


def _label_width(labels: Sequence[str]) -> float:
    return min(LABEL, 14 + GLYPH * max(map(len, labels), default=0))


def _hover(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def _line(x1: float, y1: float, x2: float, y2: float, paint: str, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{paint}"{dashes}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", paint: str = INK, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{paint}"{weight}>{escape(text)}</text>'
        if text
        else ""
    )


def _dot(x: float, y: float, radius: float, fill: str, hover: str = "") -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}">{_hover(hover) if hover else ""}</circle>'


def _rect(x: float, y: float, width: float, height: float, fill: str, radius: float = 0) -> str:
    size = f'width="{max(width, 0.5):.1f}" height="{height:.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} rx="{radius}" fill="{fill}"/>'


def _vertical_grid(marks: Sequence[float], x: Callable[[float], float], top: float, bottom: float) -> str:
    return "".join(
        _line(x(m), top, x(m), bottom, GRID) + _text(x(m), bottom + 16, number(m), "middle", MUTED) for m in marks
    )


def _paints(parts: Sequence[str]) -> dict[str, str]:
    """A paint per part: int8 and float as everywhere on the page, the rest in turn."""
    rest = iter(PARTS[2:] * len(parts))
    words = {"int8": PARTS[0], "float": PARTS[1]}
    return {part: next((paint for word, paint in words.items() if word in part), "") or next(rest) for part in parts}


def _legend(entries: Sequence[tuple[str, str]], y: float) -> tuple[str, float]:
    out, x = [], 12.0
    for name, paint in entries:
        wide = 26 + GLYPH * len(name)
        if x + wide > WIDTH and x > 12:
            x, y = 12.0, y + 20
        out.append(_rect(x, y - 10, 11, 11, fill=paint, radius=1.5) + _text(x + 16, y, name))
        x += wide + 10
    return "".join(out), y + 12


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(title)}" font-family="inherit" font-size="12">{"".join(parts)}</svg>'
    )
