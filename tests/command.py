"""The `roadworthy` command, run in this process the way the shell would run it, and what it leaves on the disk."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from roadworthy import cli

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
"""For a process of its own: this copy of the package, from any folder."""


@dataclass(frozen=True)
class Ran:
    """The exit code and both streams, those that C libraries write to included."""

    code: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The one sentence on stderr; fails when there is anything else, or no refusal at all."""
        assert self.code == 2, f"exit code {self.code}\n{self.out}\n{self.err}"
        lines = self.err.splitlines()
        assert len(lines) == 1, f"{len(lines)} lines on stderr:\n{self.err}"
        assert lines[0].startswith("roadworthy: ") and len(lines[0]) < 500, self.err
        assert self.out == "", self.out
        return lines[0].removeprefix("roadworthy: ")


def roadworthy(capfd: pytest.CaptureFixture[str], *args: object) -> Ran:
    """Run the command with these arguments."""
    capfd.readouterr()
    before = sys.argv
    sys.argv = ["roadworthy", *map(str, args)]
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    captured = capfd.readouterr()
    assert isinstance(code, int), code
    return Ran(code, captured.out, captured.err)


def tree(folder: Path) -> dict[str, str]:
    """Every file and folder below, hidden ones included, with a hash of what is in it."""
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
    }
