"""A cache of calibration across jobs: what was measured of a float graph on some images, kept for the next time.

An entry is a file named by a hash of everything that it depends on: the measurement's own name (steps/calibration.py:
graph, images in their order, preprocessing, values), the version of the statistics' format, and what computes: the
versions of Roadworthy, ONNX Runtime, OpenCV and NumPy, the processor and the number of its cores. So a result with the
cache is, to the last bit, the result without.

    file = SHA-256 of the rest (32 bytes), then arrays as .npz

Files appear whole or not at all. One that is damaged, cannot be read or cannot be written is as good as none: nothing
here is an error. Above MOST_BYTES the files go that were not used for the longest time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from roadworthy.check.machine import cpu_name, usable_cores, versions
from roadworthy.jobs.stages import Stages

FORMAT = 1
"""Raised whenever the same images would give other statistics, or statistics another form."""
MOST_BYTES = 500_000_000
ABANDONED_SECONDS = 3600.0
"""A file that another process began to write and that is older than this was given up."""
_DIGEST = 32
Arrays = Mapping[str, NDArray]


def cache_folder() -> Path:
    """$ROADWORTHY_CACHE, else $XDG_CACHE_HOME/roadworthy, else ~/.cache/roadworthy."""
    if own := os.environ.get("ROADWORTHY_CACHE"):
        return Path(own)
    if common := os.environ.get("XDG_CACHE_HOME"):
        return Path(common) / "roadworthy"
    return Path("~/.cache/roadworthy").expanduser()


class Cache:
    """Finished measurements in a folder; for `Calibration.kept_on`.

    folder: None for `cache_folder()`; made when there is something to keep.   found: how many entries were used.
    """

    def __init__(self, folder: Path | None = None, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._most = folder, most_bytes
        self.found = 0

    @property
    def folder(self) -> Path | None:
        """Where the entries lie; None where this user has no home."""
        try:
            return self._folder or cache_folder()
        except RuntimeError:
            return None

    def get(self, key: str) -> dict[str, NDArray] | None:
        """The arrays of an entry; a damaged one is taken away."""
        if (path := self._path(key)) is None:
            return None
        try:
            with path.open("rb") as file:
                digest, data = file.read(_DIGEST), file.read()
        except OSError:
            return None
        arrays = _unpacked(digest, data)
        with contextlib.suppress(OSError):
            if arrays is None:
                path.unlink()
            else:
                os.utime(path)  # used now
                self.found += 1
        return arrays

    def put(self, key: str, arrays: Arrays) -> None:
        """Keep an entry, and let the oldest go where there are too many."""
        if (path := self._path(key)) is None:
            return
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        if buffer.tell() + _DIGEST > self._most:
            return
        temporary = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(buffer.getbuffer()).digest())
                file.write(buffer.getbuffer())
            Path(temporary).replace(path)
            self._trim(path)
        except OSError:
            with contextlib.suppress(OSError):
                if temporary:
                    Path(temporary).unlink()

    def begun(self, key: str) -> None:
        """Only what is finished is kept here."""

    def put_begun(self, key: str, arrays: Arrays) -> None:
        """Only what is finished is kept here."""

    def _path(self, key: str) -> Path | None:
        folder = self.folder
        return (
            None if folder is None else folder / f"{hashlib.sha256(f'{key}/{_computed_by()}'.encode()).hexdigest()}.rwc"
        )

    def _trim(self, newest: Path) -> None:
        entries = []
        for path in newest.parent.iterdir():
            with contextlib.suppress(OSError):  # another process took it away
                found = path.stat()
                if path.suffix == ".rwc":
                    entries.append((path != newest, found.st_mtime_ns, found.st_size, path))
                elif path.suffix == ".part" and time.time() - found.st_mtime > ABANDONED_SECONDS:
                    path.unlink()
        room = self._most
        for _, _, size, path in sorted(entries, key=lambda e: (e[0], -e[1])):  # this one, then the last used first
            room -= size
            if room < 0:
                with contextlib.suppress(OSError):
                    path.unlink()


class JobShelf:
    """What one job keeps of its calibration: in its stages, unfinished passes as well, and in the cache where one is
    wanted. An entry of the stages is used before one of the cache."""

    def __init__(self, stages: Stages, cache: Cache | None) -> None:
        self._stages, self._cache = stages, cache

    def get(self, key: str) -> Arrays | None:
        kept = self._stage(f"measured-{key}")
        if kept is None and self._cache is not None:
            kept = self._cache.get(key)
        return kept

    def put(self, key: str, arrays: Arrays) -> None:
        self._stages.put(f"measured-{key}", dict(arrays))
        self._stages.remove(f"begun-{key}")
        if self._cache is not None:
            self._cache.put(key, arrays)

    def begun(self, key: str) -> Arrays | None:
        return self._stage(f"begun-{key}")

    def _stage(self, name: str) -> Arrays | None:
        try:
            return self._stages.get(name)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # damaged: as good as none
            return None

    def put_begun(self, key: str, arrays: Arrays) -> None:
        self._stages.put(f"begun-{key}", dict(arrays))


@functools.cache
def _computed_by() -> str:
    found = versions()
    parts = [
        FORMAT,
        *(found.get(name, "") for name in ("roadworthy", "onnxruntime", "opencv", "numpy")),
        cpu_name(),
        usable_cores(),
    ]
    return "/".join(map(str, parts))


def _unpacked(digest: bytes, data: bytes) -> dict[str, NDArray] | None:
    """The arrays of a file, or None where it is not what was written."""
    if hashlib.sha256(data).digest() != digest:
        return None
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
