"""What an image file says about itself without being decoded: its size, and whether it is all there.

JPEG (ITU-T T.81) is a chain of segments `FF marker length payload` up to the entropy-coded scan, where FF D9 can
only be the end marker, because every FF among the coded bytes is followed by 00 or a restart marker. PNG (ISO 15948)
is a chain of chunks `length type payload crc` that ends with IEND.

Sizes are those of the image as OpenCV reads it: EXIF orientations 5 to 8 swap height and width.
"""

from __future__ import annotations

import struct
from pathlib import Path

from roadworthy.errors import InputError

_PNG = b"\x89PNG\r\n\x1a\n"
_NO_SIZE_SOF = (0xC4, 0xC8, 0xCC)  # DHT, JPG, DAC lie among the SOF markers


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels, from the first bytes of a JPEG or PNG; other formats are decoded.

    Raises InputError when the file is missing or is no image.
    """
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except OSError as error:
        raise InputError(f"the image {path} cannot be read ({error.strerror}); restore it or drop its label") from error
    size = _jpeg(head)[0] if head[:2] == b"\xff\xd8" else _png_size(head)
    if size is None:  # another format, or a header longer than what was read
        from roadworthy.data.samples import read_image

        height, width = read_image(path).shape[:2]
        return height, width
    return size


def truncated(data: bytes) -> bool:
    """True when a JPEG or PNG file ends before its end marker; decoders fill the rest with grey and say nothing."""
    if data[:2] == b"\xff\xd8":
        _, scan = _jpeg(data)
        return scan is None or data.rfind(b"\xff\xd9", scan) < 0
    if data[:8] == _PNG:
        return b"IEND" not in data[-4096:]
    return False


def _jpeg(data: bytes) -> tuple[tuple[int, int] | None, int | None]:
    """(height, width) turned as EXIF says, and the place of the scan; None for what `data` does not hold."""
    size, turned, at = None, False, 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xD9:
            break
        if 0xD0 <= marker <= 0xD8 or marker == 0x01:  # markers without a payload
            at += 2
            continue
        length = struct.unpack_from(">H", data, at + 2)[0]
        if marker == 0xDA:
            return _turn(size, turned), at + 2 + length
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            turned = _exif_orientation(data[at + 10 : at + 2 + length]) >= 5
        if 0xC0 <= marker <= 0xCF and marker not in _NO_SIZE_SOF and at + 9 <= len(data):
            height, width = struct.unpack_from(">HH", data, at + 5)
            size = (height, width) if height and width else None  # a height of 0 stands in a later DNL segment
        at += 2 + length
    return _turn(size, turned), None


def _turn(size: tuple[int, int] | None, turned: bool) -> tuple[int, int] | None:
    return (size[1], size[0]) if size is not None and turned else size


def _exif_orientation(tiff: bytes) -> int:
    """The orientation tag (0x0112) of the first TIFF directory; 1 when it is absent or broken."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    directory = struct.unpack_from(order + "I", tiff, 4)[0]
    if directory + 2 > len(tiff):
        return 1
    entries = struct.unpack_from(order + "H", tiff, directory)[0]
    for at in range(directory + 2, min(directory + 2 + 12 * entries, len(tiff) - 11), 12):
        if struct.unpack_from(order + "H", tiff, at)[0] == 0x0112:
            value = struct.unpack_from(order + "H", tiff, at + 8)[0]
            return value if 1 <= value <= 8 else 1
    return 1


def _png_size(data: bytes) -> tuple[int, int] | None:
    if data[:8] != _PNG or data[12:16] != b"IHDR" or b"eXIf" in data or len(data) < 24:
        return None  # a PNG with EXIF is rare: decoding settles its orientation
    width, height = struct.unpack_from(">II", data, 16)
    return height, width
