"""The report: one dict, checked once, written as `report.json` for machines and `report.html` for the engineer.

The dict's schema is the text of `report_schema`; the page's content is made in `report_page` and its neighbours, its
form stands in `report.html.j2`. The HTML file is whole: styles, script and pictures are inside, and it asks the network
for nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ..errors import InputError
from . import plots
from .pictures import Picture
from .report_page import page
from .report_schema import parse, validate
from .report_words import agreement_rows, count_text, fixed, pairs, size_text

__all__ = ["validate", "write_html", "write_json"]


def write_json(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the checked report as UTF-8 JSON; the file appears whole or not at all.

    Raises ValueError for a malformed report, InputError where the file cannot be written.
    """
    text = json.dumps(validate(report), indent=1, ensure_ascii=False, allow_nan=False)
    _write(Path(path), text + "\n")


def write_html(report: Mapping[str, Any], pictures: Sequence[Picture], path: str | os.PathLike[str]) -> None:
    """Write the report as one self-contained HTML file, at most about 3 MB however many pictures there are.

    Raises ValueError for a malformed report, InputError where the file cannot be written.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        fixed=fixed, size=size_text, count=count_text, pairs=pairs, number=plots.number, agreement_rows=agreement_rows
    )
    template = environment.from_string(files(__package__).joinpath("report.html.j2").read_text("utf-8"))
    _write(Path(path), template.render(page(parse(validate(report)), pictures)))


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"the report cannot be written to {path}: {error.strerror}; choose another folder") from None
