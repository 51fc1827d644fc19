"""What Q/DQ nodes cannot say of an encoding: fewer bits than the type of its codes has, and levels with gaps.

One metadata entry, `roadworthy.encodings`: JSON, weight name -> {"bits": 4} or {"levels": [-64, 0, 64]}. Only encodings
that need it stand there, and a file without any has no entry. The nodes are complete without it, so runtimes need not
know it; where the codes of a weight do not fit what is said of them (somebody edited the file), the nodes count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.errors import InputError
from roadworthy.model.encoding import Encoding, code_limits

ENCODINGS_KEY = "roadworthy.encodings"


def notes_of(encodings: Mapping[str, Encoding]) -> str | None:
    """The entry for these encodings, or None where Q/DQ nodes say everything."""
    found: dict[str, Any] = {}
    for name, encoding in sorted(encodings.items()):
        if encoding.levels is not None:
            found[name] = {"levels": list(encoding.levels)}
        elif encoding.bits not in (8, 16):
            found[name] = {"bits": encoding.bits}
    return json.dumps(found, separators=(",", ":")) if found else None


def read_notes(text: str | None, where: str) -> dict[str, dict[str, Any]]:
    """The entry, read and checked. Raises InputError where it is damaged."""
    if text is None:
        return {}
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or not all(_is_note(note) for note in document.values()):
        raise InputError(
            f"the metadata entry `{ENCODINGS_KEY}` of {where} is damaged; remove it, or compress the model again"
        )
    return document


def _is_note(note: Any) -> bool:
    def whole(v: Any) -> bool:
        return isinstance(v, int) and not isinstance(v, bool)

    if not isinstance(note, dict) or len(note) != 1:
        return False
    if "bits" in note:
        return whole(note["bits"]) and 2 <= note["bits"] <= 16
    levels = note.get("levels")
    return isinstance(levels, list) and 0 < len(levels) <= 65536 and all(whole(v) and abs(v) < 32768 for v in levels)


def annotated(encoding: Encoding, codes: NDArray[Any], note: Mapping[str, Any] | None) -> Encoding:
    """The encoding with what is noted of it, where the codes fit that; else as it was."""
    if note is None or not encoding.signed or encoding.zero_point.any():
        return encoding
    if "bits" in note:
        lowest, highest = code_limits(note["bits"], True)
        narrower = note["bits"] < encoding.bits and (note["bits"] <= 8) == (encoding.bits == 8)
        fits = codes.min() >= lowest and codes.max() <= highest
        return replace(encoding, bits=note["bits"]) if narrower and fits else encoding
    try:
        made = replace(encoding, levels=tuple(note["levels"]))
    except ValueError:
        return encoding
    return made if np.isin(codes, note["levels"]).all() else encoding
