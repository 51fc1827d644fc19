"""What the tests of roadworthy.data share: the real assets, and small data sets written on the spot."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="session")
def assets() -> Path:
    beside = Path(__file__).parents[3] / "shared" / "assets"
    folder = Path(os.environ.get("ROADWORTHY_ASSETS", beside))
    if not folder.is_dir():
        pytest.skip("needs the real models and images in ../shared/assets (or ROADWORTHY_ASSETS)")
    return folder


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Write a small noisy image and return its path; the seed is its content."""

    def write(path: Path, height: int = 24, width: int = 32, seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        assert cv2.imwrite(str(path), pixels)
        return path

    return write
