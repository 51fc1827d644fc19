"""Preparing images in C++ equals `Preprocess`, which is OpenCV and its own formulas, to the last bit."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from roadworthy.data.preprocess import ANCHORS, COLORS, LAYOUTS, Preprocess
from roadworthy.detect.spec import DecodeSpec
from roadworthy.model.task import Task
from roadworthy.run.native.task_text import task_text

_native = pytest.importorskip("roadworthy._native")
ISAS = _native.isas()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, height, width]).integers(0, 256, (height, width, 3), np.uint8)


def prepared(preprocess: Preprocess, isa: str):
    return _native.Preparation(task_text(Task(preprocess, DecodeSpec("raw"))), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("resize", ["letterbox", "stretch", "crop"])
def test_equals_opencv_on_many_sizes(resize: str, isa: str) -> None:
    rng = np.random.default_rng(ord(resize[0]))
    for number in range(60):
        height, width = rng.integers(1, (70, 300)[number % 2], 2)
        in_h, in_w = rng.integers(1, (40, 130)[number // 2 % 2], 2)
        if number % 6 == 0:  # every window of the byte permutation: scales up to 9
            width = int(in_w * rng.uniform(1, 9)) + 1
        preprocess = Preprocess(
            (int(in_h), int(in_w)),
            resize,
            anchor=ANCHORS[number % 2],
            color=COLORS[number % 3],
            layout=LAYOUTS[number // 3 % 2],
            scale=(1.0, 1 / 255)[number % 2],
            mean=3.5,  # type: ignore[arg-type]
            std=0.25,  # type: ignore[arg-type]
        )
        image = noise(int(height), int(width), number)
        expected, geometry = preprocess(image)
        found, where = prepared(preprocess, isa).floats(image)
        assert found.shape == expected.shape and np.array_equal(found, expected), (preprocess, image.shape)
        assert where == (geometry.ratio_xy, geometry.offset_xy, geometry.image_hw)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "hw", [(480, 640), (208, 208), (416, 416), (832, 832), (1080, 1920), (2160, 3840), (417, 5), (1, 1)]
)
def test_equals_opencv_on_usual_sizes(hw: tuple[int, int], isa: str) -> None:
    image = noise(*hw)
    for color in ("bgr", "rgb"):
        preprocess = Preprocess((416, 416), color=color)
        assert np.array_equal(prepared(preprocess, isa).floats(image)[0], preprocess(image)[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pixel", [3, 4, 16])
def test_codes_are_the_quantized_tensor(pixel: int, isa: str) -> None:
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    preprocess = Preprocess((50, 64), anchor="center", color="rgb", mean=mean, std=std)
    image = noise(77, 61)
    tensor = preprocess(image)[0][0].transpose(1, 2, 0)
    for scale, zero in (([0.0187], [114]), ([0.02, 0.015, 0.03], [3, 250, 128])):
        found = prepared(preprocess, isa).codes(image, scale, zero, pixel)[0]
        expected = np.clip(np.rint(tensor / np.float32(scale)) + np.float32(zero), 0, 255).astype(np.uint8)
        assert np.array_equal(found[..., :3], expected)
        assert not found[..., 3:].any()  # bytes between pixels are another's


def test_gray_codes() -> None:
    preprocess = Preprocess((20, 20), color="gray")
    image = noise(31, 20)
    found = prepared(preprocess, "").codes(image, [1.0], [0], 1)[0]
    assert np.array_equal(found[..., 0], preprocess(image)[0][0, 0].astype(np.uint8))


def test_rows_with_gaps_and_the_edge_of_memory() -> None:
    big = noise(90, 120)
    crop = big[10:70, 20:95]
    preprocess = Preprocess((40, 40))
    assert np.array_equal(prepared(preprocess, "").floats(crop)[0], preprocess(np.ascontiguousarray(crop))[0])


@pytest.mark.parametrize("interpolation", ["nearest", "area", "cubic"])
def test_other_interpolations_are_refused_where_they_matter(interpolation: str) -> None:
    preprocess = Preprocess((20, 20), "stretch", interpolation=interpolation)
    same = noise(20, 20)
    assert np.array_equal(prepared(preprocess, "").floats(same)[0], preprocess(same)[0])
    with pytest.raises(ValueError, match="interpolation"):
        prepared(preprocess, "").floats(noise(21, 20))


def test_bad_images_are_named() -> None:
    preprocess = Preprocess((20, 20), "none")
    with pytest.raises(ValueError, match="an image is 21x20 but the model takes 20x20"):
        prepared(preprocess, "").floats(noise(21, 20))
    with pytest.raises(ValueError, match="shape"):
        prepared(preprocess, "").floats(np.zeros((20, 20, 4), np.uint8))
    with pytest.raises(ValueError, match="32768"):
        prepared(Preprocess((4, 4)), "").floats(np.zeros((1, 32769, 3), np.uint8))


def test_the_test_can_fail() -> None:
    image = noise(77, 61)
    other = cv2.resize(image, (30, 40), interpolation=cv2.INTER_AREA)
    found = prepared(Preprocess((40, 30), "stretch"), "").floats(image)[0]
    assert not np.array_equal(found[0].transpose(1, 2, 0).astype(np.uint8), other)
