"""The embedded sample: generated street scenes, and the small detector that was trained on them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from roadworthy.data.dataset import Dataset
from roadworthy.data.samples import Sample, Samples
from roadworthy.data.street import CLASS_NAMES, scene

CALIBRATION, TEST = 160, 240
SCENES_VERSION = 1
UNSEEN = 1000
"""Seeds from here up never took part in training."""


def detector() -> Path:
    """The ONNX file of the embedded detector."""
    return Path(__file__).parents[1] / "data" / "street_detector.onnx"


def scenes(count: int, seed: int, name: str) -> Samples:
    """Labelled street scenes, drawn when they are opened; the same seed gives the same pixels."""
    return Samples(
        (
            Sample(
                f"{name}/{index:05d}",
                load=partial(_image, index, seed),
                key=f"street v{SCENES_VERSION} seed {seed} index {index}",
                truth=partial(_truth, index, seed),
            )
            for index in range(count)
        ),
        "boxes",
        CLASS_NAMES,
    )


def _image(index: int, seed: int):  # type: ignore[no-untyped-def]
    return scene(index, seed)[0]


def _truth(index: int, seed: int):  # type: ignore[no-untyped-def]
    return scene(index, seed)[1]


def dataset(seed: int = 0) -> Dataset:
    """Scenes to calibrate on and others to test on; none was seen in training."""
    calibration = scenes(CALIBRATION, UNSEEN + 2 * seed, "calibration")
    test = scenes(TEST, UNSEEN + 2 * seed + 1, "test")
    return Dataset(calibration, test, "boxes", CLASS_NAMES, "the embedded street scenes")
