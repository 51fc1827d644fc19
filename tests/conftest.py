"""What all tests share: where the real models and images lie."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from pathlib import Path

import pytest

_CACHES = Path(tempfile.mkdtemp(prefix="roadworthy-tests-"))
os.environ["ROADWORTHY_CACHE"] = str(_CACHES / "shared")  # before anything copies the environment
_count = itertools.count()


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHES, ignore_errors=True)


@pytest.fixture(autouse=True)
def cache_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's cache, or finds what another has left; the folder is made when it is used."""
    folder = _CACHES / str(next(_count))
    monkeypatch.setenv("ROADWORTHY_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models and images: ROADWORTHY_ASSETS, or shared/assets beside the repository."""
    folder = Path(os.environ.get("ROADWORTHY_ASSETS") or Path(__file__).parents[2] / "shared" / "assets")
    if not (folder / "models").is_dir():
        pytest.skip("needs the real models and images in ../shared/assets (or ROADWORTHY_ASSETS)")
    return folder
