"""Image headers against OpenCV, which decodes: sizes under every EXIF orientation, and files cut short."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from roadworthy.data.header import image_size, truncated
from roadworthy.data.samples import Sample
from roadworthy.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 33, 3), np.uint8)


def encode(suffix: str, *parameters: int) -> bytes:
    done, data = cv2.imencode(suffix, PIXELS, parameters)
    assert done
    return data.tobytes()


def with_exif(jpeg: bytes, orientation: int, order: str) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    other = struct.pack(order + "HHII", 0x0100, 4, 1, 7)
    tiff = mark + struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", 2) + other + entry + b"\0\0\0\0"
    payload = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_follows_exif_as_opencv_does(tmp_path: Path, orientation: int, order: str):
    file = tmp_path / "a.jpg"
    file.write_bytes(with_exif(encode(".jpg"), orientation, order))
    read = cv2.imread(str(file), cv2.IMREAD_COLOR)
    assert image_size(file) == read.shape[:2]
    assert (image_size(file) == (33, 20)) == (orientation >= 5)
    np.testing.assert_array_equal(Sample("a", file).image(), read)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff", ".ppm"])
def test_size_of_each_format(tmp_path: Path, suffix: str):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(encode(suffix))
    assert image_size(file) == (20, 33)


def test_size_of_a_progressive_jpeg_and_of_one_with_a_long_header(tmp_path: Path):
    data = encode(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    file = tmp_path / "a.jpg"
    file.write_bytes(data)
    assert image_size(file) == (20, 33) and not truncated(data)
    comment = b"\xff\xfe" + struct.pack(">H", 65002) + b"x" * 65000
    file.write_bytes(data[:2] + comment + comment + data[2:])
    assert image_size(file) == (20, 33)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tiff"])
def test_a_file_cut_short_is_refused_by_name_at_every_length(tmp_path: Path, suffix: str):
    """Decoders fill what is missing with grey; a measurement on such an image would be silently wrong."""
    data = encode(suffix)
    file = tmp_path / f"cut{suffix}"
    for length in (0, 1, 3, 10, 100, len(data) // 2, len(data) - 30):
        file.write_bytes(data[:length])
        with pytest.raises(InputError, match=f"cut{suffix}"):
            Sample("cut", file).image()


def test_a_thumbnail_does_not_hide_that_a_jpeg_is_cut_short():
    thumbnail, data = encode(".jpg"), encode(".jpg")
    payload = b"Exif\0\0" + thumbnail
    whole = data[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + data[2:]
    assert not truncated(whole)
    assert b"\xff\xd9" in whole[:-40] and truncated(whole[:-40])


def test_what_is_no_image(tmp_path: Path):
    file = tmp_path / "a.jpg"
    file.write_text("not an image")
    for ask in (image_size, lambda path: Sample("a", path).image()):
        with pytest.raises(InputError, match=r"a\.jpg is corrupt or not an image"):
            ask(file)
        with pytest.raises(InputError, match="No such file"):
            ask(tmp_path / "gone.jpg")


def test_random_headers_never_raise_anything_else(tmp_path: Path):
    rng = np.random.default_rng(0)
    good = with_exif(encode(".jpg"), 6, "<")
    file = tmp_path / "a.jpg"
    for _ in range(200):
        data = bytearray(good)
        for at in rng.integers(0, 120, 4):
            data[at] = rng.integers(0, 256)
        file.write_bytes(data)
        try:
            height, width = image_size(file)
        except InputError:
            continue
        assert height > 0 and width > 0
