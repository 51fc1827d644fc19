"""What the tests of the jobs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from roadworthy.check.bench import BenchResult, Entry, Latency, Measured
from roadworthy.jobs import compress, search

Milliseconds = Callable[[Entry], float]


def int8_twice_as_fast(entry: Entry) -> float:
    return 2.0 if entry.label.startswith("int8") and "stored" not in entry.label else 4.0


def steady(milliseconds: Milliseconds) -> Callable[..., BenchResult]:
    """A benchmark that answers at once and always the same, so that the search goes one way on every machine."""

    def bench(entries: Sequence[Entry], **_: Any) -> BenchResult:
        base = milliseconds(entries[0])
        measured = []
        for entry in entries:
            ms = milliseconds(entry)
            latency = Latency(ms, ms, ms, 1000 / ms, 10)
            ratio, size = base / ms, len(entry.model)
            measured.append(
                Measured(entry.label, entry.target, latency, latency, None, ratio, (ratio, ratio), ratio, None,
                         load_ms=1.0, peak_mb=50.0, base_mb=20.0, file_bytes=size, samples=10, dropped=0)
            )  # fmt: skip
        return BenchResult(tuple(measured), 1, 10, 0.0, True, {}, {"cpu": "steady"})

    return bench


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Callable[[Milliseconds], None]:
    """Say how fast everything is from now on; without a word int8 is twice as fast as float."""

    def use(milliseconds: Milliseconds) -> None:
        for module in (compress, search):
            monkeypatch.setattr(module, "bench", steady(milliseconds))

    use(int8_twice_as_fast)
    return use
