"""What the tests of the jobs share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from small import Milliseconds, int8_twice_as_fast, steady

from roadworthy.jobs import search, speed


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> Callable[[Milliseconds], None]:
    """Say how fast everything is from now on; without a word int8 is twice as fast as float."""

    def use(milliseconds: Milliseconds) -> None:
        for module in (speed, search):
            monkeypatch.setattr(module, "bench", steady(milliseconds))

    use(int8_twice_as_fast)
    return use
