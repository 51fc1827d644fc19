"""Preprocess against formulas written out in full, cv2.dnn's own blob, and marks found again in the tensor."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest

from roadworthy.data.preprocess import Geometry, Preprocess
from roadworthy.errors import InputError


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_yolox_letterbox_pixel_for_pixel():
    image = noise(333, 500)
    tensor, geometry = Preprocess((416, 416))(image)
    ratio = min(416 / 333, 416 / 500)
    expected = np.full((416, 416, 3), 114.0, np.float32)
    small = cv2.resize(image, (int(500 * ratio), int(333 * ratio)), interpolation=cv2.INTER_LINEAR)
    expected[: int(333 * ratio), : int(500 * ratio)] = small
    assert tensor.dtype == np.float32 and tensor.shape == (1, 3, 416, 416) and tensor.flags.c_contiguous
    np.testing.assert_array_equal(tensor[0], expected.transpose(2, 0, 1))
    assert geometry.offset_xy == (0.0, 0.0) and geometry.image_hw == (333, 500)
    assert geometry.ratio_xy == (416 / 500, 277 / 333)  # what the resize did: 333 * 0.832 = 277.06 became 277


@pytest.mark.parametrize("hw", [(333, 500), (500, 333), (481, 640), (100, 100), (1, 700)])
def test_yolov5_letterbox_pixel_for_pixel(hw: tuple[int, int]):
    image = noise(*hw)
    tensor, _ = Preprocess((320, 256), anchor="center", color="rgb", scale=1 / 255)(image)
    ratio = min(320 / hw[0], 256 / hw[1])
    width, height = max(round(hw[1] * ratio), 1), max(round(hw[0] * ratio), 1)
    dw, dh = (256 - width) / 2, (320 - height) / 2
    top, bottom, left, right = round(dh - 0.1), round(dh + 0.1), round(dw - 0.1), round(dw + 0.1)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    padded = cv2.copyMakeBorder(small, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(114, 114, 114))
    expected = padded[:, :, ::-1].transpose(2, 0, 1) / 255.0
    np.testing.assert_allclose(tensor[0], expected, rtol=1e-6)


def test_values_equal_the_blob_of_cv2_dnn():
    image = noise(224, 224)
    tensor, _ = Preprocess((224, 224), "stretch", color="rgb", scale=1 / 127.5, mean=(1.0, 1.0, 1.0))(image)
    blob = cv2.dnn.blobFromImage(image, 1 / 127.5, (224, 224), (127.5, 127.5, 127.5), swapRB=True)
    np.testing.assert_allclose(tensor, blob, atol=3e-7)  # two roundings of numbers up to 1


def test_scale_comes_before_mean_and_std_and_both_follow_the_channel_order():
    image = np.zeros((2, 2, 3), np.uint8)
    image[...] = (10, 100, 200)  # B, G, R
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    tensor, _ = Preprocess((2, 2), color="rgb", scale=1 / 255, mean=mean, std=std)(image)
    expected = [(v / 255 - m) / s for v, m, s in zip((200, 100, 10), mean, std)]
    np.testing.assert_allclose(tensor[0, :, 1, 1], expected, rtol=1e-6)


@pytest.mark.parametrize("color", ["bgr", "rgb", "gray"])
@pytest.mark.parametrize("resize", ["letterbox", "stretch", "crop"])
def test_nhwc_is_nchw_transposed(color: str, resize: str):
    image = noise(50, 70)
    planar, a = Preprocess((40, 48), resize, color=color, scale=0.5, mean=3.0)(image)  # type: ignore[arg-type]
    packed, b = Preprocess((40, 48), resize, color=color, scale=0.5, mean=3.0, layout="nhwc")(image)  # type: ignore[arg-type]
    assert planar.shape == (1, 1 if color == "gray" else 3, 40, 48)
    np.testing.assert_array_equal(planar.transpose(0, 2, 3, 1), packed)
    assert a == b


def test_gray_is_the_usual_luma():
    image = noise(8, 8)
    tensor, _ = Preprocess((8, 8), color="gray")(image)
    luma = image @ np.array([0.114, 0.587, 0.299])  # ITU-R BT.601
    np.testing.assert_allclose(tensor[0, 0], luma, atol=0.51)


def test_crop_keeps_the_centre():
    image = noise(300, 400)
    tensor, geometry = Preprocess((224, 224), "crop", short_side=256)(image)
    resized = cv2.resize(image, (int(400 * 256 / 300), 256))
    left = round((resized.shape[1] - 224) / 2)
    np.testing.assert_array_equal(tensor[0].transpose(1, 2, 0), resized[16:240, left : left + 224].astype(np.float32))
    assert geometry.offset_xy == (-left, -16)


CASES = [
    Preprocess((416, 416)),
    Preprocess((416, 416), anchor="center"),
    Preprocess((256, 320), anchor="center"),
    Preprocess((352, 352), "stretch"),
    Preprocess((224, 224), "crop", short_side=256),
    Preprocess((200, 320), "crop"),
    Preprocess((480, 640), "none"),
]


@pytest.mark.parametrize("preprocess", CASES, ids=lambda p: f"{p.resize}-{p.anchor}-{p.size_hw[0]}x{p.size_hw[1]}")
def test_a_mark_in_the_image_is_found_where_geometry_says(preprocess: Preprocess):
    """An independent way round: draw a white box, find it in the tensor, map it back."""
    image = np.zeros((480, 640, 3), np.uint8)
    box = (250, 130, 410, 330)
    image[box[1] : box[3], box[0] : box[2]] = 255
    tensor, geometry = preprocess(image)
    rows, columns = np.nonzero(tensor[0, 0] > 180)
    found = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]])
    pixel = 1 / min(geometry.ratio_xy)  # one input pixel, in image pixels
    np.testing.assert_allclose(geometry.to_image(found), [box], atol=pixel)
    np.testing.assert_allclose(geometry.to_input(np.array([box])), found, atol=1.0)


def test_geometry_there_and_back_and_clipping():
    geometry = Geometry((0.65, 0.7), (10.0, -4.0), (480, 640))
    boxes = np.sort(np.random.default_rng(1).uniform(0, 480, (100, 2, 2)), 1).reshape(-1, 4)
    np.testing.assert_allclose(geometry.to_image(geometry.to_input(boxes)), boxes, atol=1e-3)
    assert geometry.to_image([[-50, -50, 900, 900]]).tolist() == [[0, 0, 640, 480]]  # type: ignore[arg-type]
    assert geometry.to_image(np.zeros((0, 4))).shape == (0, 4)


def test_values_from_yaml_become_tuples():
    loaded = Preprocess([416, 320], mean=[1, 2, 3], std=[2])  # type: ignore[arg-type]
    assert loaded == Preprocess((416, 320), mean=(1.0, 2.0, 3.0), std=(2.0, 2.0, 2.0)) and hash(loaded)


def test_the_image_is_not_changed_and_tensors_are_not_shared():
    image = noise(32, 32)
    before = image.copy()
    preprocess = Preprocess((32, 32), "none")
    first, _ = preprocess(image)
    first[:] = -1
    second, _ = preprocess(image)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(second[0].transpose(1, 2, 0), before)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("resize", "fit", "letterbox, stretch, crop, none"),
        ("anchor", "middle", "topleft, center"),
        ("color", "BGR", "bgr, rgb, gray"),
        ("layout", "chw", "nchw, nhwc"),
        ("interpolation", "lanczos", "nearest, linear, cubic, area"),
        ("size_hw", (416,), "height and width"),
        ("size_hw", 416, "height and width"),
        ("size_hw", (416, 0), "from 1 to"),
        ("size_hw", (416, 1.5), "from 1 to"),
        ("size_hw", (True, 416), "from 1 to"),
        ("pad_value", 256, "from 0 to 255"),
        ("short_side", -1, "from 0"),
        ("scale", 0, "must not be zero"),
        ("scale", float("nan"), "finite"),
        ("scale", "1/255", "number"),
        ("mean", (1.0, 2.0), "3 channels"),
        ("std", (1.0, 0.0, 1.0), "must not be zero"),
        ("std", (1.0, float("inf"), 1.0), "finite"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field_and_what_is_allowed(field: str, value: object, says: str):
    with pytest.raises(InputError, match=field) as caught:
        Preprocess(**{"size_hw": (416, 416), field: value})  # type: ignore[arg-type]
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_other_refusals():
    with pytest.raises(InputError, match="short_side is 200"):
        Preprocess((224, 224), "crop", short_side=200)
    with pytest.raises(InputError, match="480x640 but the model takes 416x416"):
        Preprocess((416, 416), "none")(noise(480, 640))
    for bad in (noise(4, 4).astype(np.float32), noise(4, 4)[..., 0], np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match="uint8"):
            Preprocess((416, 416))(bad)


def test_it_is_fast():
    """0.3 ms on two cores where this was written; the bound only catches a conversion that became a Python loop."""
    preprocess, image = Preprocess((416, 416)), noise(480, 640)
    preprocess(image)
    best = min(_seconds(preprocess, image) for _ in range(20))
    assert best < 0.010


def _seconds(preprocess: Preprocess, image: np.ndarray) -> float:
    start = time.perf_counter()
    preprocess(image)
    return time.perf_counter() - start
