"""Limits on what the compressed model may cost: read from the command line, held against, told in the report."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from roadworthy.errors import InputError

_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(x|kb|k|mb|m|gb|g|b)?", re.IGNORECASE)
_UNITS = {"": 1.0, "b": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


class BeyondLimits(InputError):
    """Limits that no allocation meets on one target; another target may do better."""


@dataclass(frozen=True)
class Limits:
    """What the compressed model may cost; None is no limit.

    max_bytes: of what is shipped.   max_latency_ms: the median on the target.
    """

    max_bytes: int | None = None
    max_latency_ms: float | None = None

    def __bool__(self) -> bool:
        return self.max_bytes is not None or self.max_latency_ms is not None

    def fits(self, size: int) -> bool:
        """Whether a file of this many bytes is within the limit."""
        return self.max_bytes is None or size <= self.max_bytes

    def budgets(self, size: int, target: str, latency_ms: float | None, quiet: bool = True) -> list[dict[str, Any]]:
        """Rows for the report, as `report_schema` describes them.

        latency_ms: None where it was not measured.   quiet: whether it is one to quote.
        """
        rows: list[dict[str, Any]] = []
        if self.max_bytes is not None:
            verdict = "holds" if self.fits(size) else "broken"
            rows.append({"name": "size", "metric": "file size", "limit": float(self.max_bytes),
                         "measured": float(size), "unit": "bytes", "verdict": verdict})  # fmt: skip
        if self.max_latency_ms is not None:
            verdict = "not measured"
            if latency_ms is not None:
                verdict = "holds" if latency_ms <= self.max_latency_ms else "broken"
            note = None if quiet else "measured while the machine was busy: not a figure to quote"
            rows.append({"name": f"latency on {target}", "metric": "median latency", "limit": self.max_latency_ms,
                         "measured": latency_ms, "unit": "ms", "verdict": verdict, "note": note})  # fmt: skip
        return rows


def limits_of(max_size: str | None, max_latency_ms: float | None, original_bytes: int | None = None) -> Limits:
    """Limits from what the user said.

    max_size: bytes ("600000"), with a unit ("600k", "1.5M", powers of ten), or a share of the original ("0.2x").
    original_bytes: size of the original; None (not known yet) takes a share of nothing, to check the rest.
    Raises InputError for anything else.
    """
    size = None
    if max_size is not None:
        found = _SIZE.fullmatch(max_size.strip())
        if found is None:
            raise InputError(
                f"--max-size is {max_size!r}; give bytes, as in 600k, or a share of the original, as in 0.2x"
            )
        number, unit = float(found[1]), (found[2] or "").lower()
        share = unit == "x"
        size = int(number * (original_bytes or 0) if share else number * _UNITS[unit[:1]])
        if number <= 0 or (size < 1 and not (share and original_bytes is None)):
            raise InputError(f"--max-size is {max_size!r}; give more than nothing")
    if max_latency_ms is not None and not (math.isfinite(max_latency_ms) and max_latency_ms > 0):
        raise InputError(f"--max-latency is {max_latency_ms:g}; give milliseconds above 0")
    return Limits(size, max_latency_ms)
