"""What all tests share: where the real models and images lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models and images: ROADWORTHY_ASSETS, or shared/assets beside the repository."""
    folder = Path(os.environ.get("ROADWORTHY_ASSETS") or Path(__file__).parents[2] / "shared" / "assets")
    if not (folder / "models").is_dir():
        pytest.skip("needs the real models and images in ../shared/assets (or ROADWORTHY_ASSETS)")
    return folder
