"""How the report writes numbers: decimals, bytes, counts, spans, free dicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from . import plots
from .report_schema import ends


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


def span_text(interval: Sequence[float | None] | None, places: int = 2) -> str | None:
    pair = ends(interval)
    return f"{fixed(pair[0], places)} to {fixed(pair[1], places)}" if pair else None
