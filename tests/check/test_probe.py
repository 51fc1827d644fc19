"""Probing on a classifier whose right contract is known, and on one that a wrong scale makes sure of a constant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from roadworthy.check.probe import probe, z_score
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.samples import Sample, Samples
from roadworthy.detect.spec import DecodeSpec
from roadworthy.model.task import Task

RIGHT = Task(
    Preprocess((8, 8), resize="stretch", color="bgr", scale=1 / 255),
    DecodeSpec("classify", num_classes=3, input_hw=(8, 8), scores_are_logits=True),
)
SWAPPED = replace(RIGHT, preprocess=replace(RIGHT.preprocess, color="rgb"))
HUGE = replace(RIGHT, preprocess=replace(RIGHT.preprocess, scale=1.0))


class BlueOrRed:
    """Class 0 for blue images, 1 for red ones; behind a bias of class 2 that grows with the brightness squared."""

    input_names = ("image",)
    output_names = ("logits",)

    def run(self, feeds: Mapping[str, NDArray], taps: Sequence[str] = ()) -> dict[str, NDArray]:
        blue, _, red = feeds["image"][0].mean((1, 2))
        bright = float(feeds["image"].mean())
        # What the network has never seen (red first) it answers unsteadily: by the left edge of the image.
        left = float(feeds["image"][0, :, :, 0].mean())
        sure = 8 * (blue - red) if blue > red * 0.9 or red > 1.1 * blue else 0.0
        return {"logits": np.array([[sure + left, -sure, 1.0 * bright**2]], np.float32)}


def images(kind: str) -> Samples:
    rng = np.random.default_rng(2)

    def made(k: int) -> NDArray[np.uint8]:
        image = rng.integers(0, 60, (8, 8, 3)).astype(np.uint8)
        image[..., 0 if k % 2 == 0 else 2] += 120
        return image

    pictures = [made(k) for k in range(40)]
    return Samples(
        [
            Sample(str(k), load=lambda p=p: p, key=str(k), label=k % 2 if kind == "classes" else None)  # type: ignore[misc]
            for k, p in enumerate(pictures)
        ],
        kind,
    )


def test_labels_tell_the_colour_order() -> None:
    finding = probe(BlueOrRed(), [SWAPPED, RIGHT, HUGE], images("classes"))
    assert (finding.best, finding.decisive, finding.by_labels) == (1, True, True)


def test_a_scale_that_makes_sure_of_one_class_does_not_win() -> None:
    runner, unlabelled = BlueOrRed(), images("images")
    tensor = HUGE.preprocess(unlabelled[0].image())[0]
    logits = runner.run({"image": tensor})["logits"][0]
    assert logits.argmax() == 2 and logits[2] > logits[:2].max() + 20  # saturated: as sure as can be
    finding = probe(runner, [HUGE, RIGHT], unlabelled)
    assert (finding.best, finding.decisive, finding.by_labels) == (1, True, False)


def test_equal_candidates_are_not_decided() -> None:
    assert not probe(BlueOrRed(), [RIGHT, RIGHT], images("images")).decisive


def test_z_score_against_its_formula() -> None:
    a, b = np.array([1.0, 2.0, 3.0, 5.0]), np.array([0.0, 2.0, 1.0, 2.0])
    d = a - b
    assert z_score(a, b) == pytest.approx(d.mean() / (d.std(ddof=1) / 2))
