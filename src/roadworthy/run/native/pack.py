"""Packed weights: few distinct codes are written as a palette and indices of as many bits as it needs.

    u8 b (1..7), u8 0, u16 n, palette s8[n] or s16[n], zeros to a multiple of 4; then b bits for each weight, least
    significant first, zeros to a whole byte

Whatever made the codes few (2 to 6 bits, a logarithmic grid, a codebook) need not be known. The engine expands packed
weights on loading, so that results and speed are those of plain ones. docs/engine.md, "Packed weights".
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.run.native.plan import ALIGN, Op

MOST_BITS = 7
WEIGHT_KIND = 17
"""Which attribute of CONV and DEPTHWISE says how the weights are held."""
PACKED = 16
_WEIGHTS, _SCALE = 0, 2


def pack(codes: NDArray[Any]) -> bytes | None:
    """Codes (int8 or int16, any shape, in memory order) as a packed blob; None where more than 128 differ."""
    palette, indices = np.unique(codes.reshape(-1), return_inverse=True)
    bits = max((len(palette) - 1).bit_length(), 1)
    if not len(palette) or bits > MOST_BITS:
        return None
    head = struct.pack("<BBH", bits, 0, len(palette)) + palette.astype(codes.dtype.newbyteorder("<")).tobytes()
    each = (indices.astype(np.uint8)[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return head + bytes(-len(head) % 4) + np.packbits(each, bitorder="little").tobytes()


def unpack(blob: bytes, count: int, dtype: type[np.generic]) -> NDArray[Any]:
    """(count,) codes of a packed blob. Raises ValueError where it is damaged."""
    if len(blob) < 4:
        raise ValueError("packed weights without their head")
    bits, zero, entries = struct.unpack_from("<BBH", blob)
    if zero or not 1 <= bits <= MOST_BITS or not 1 <= entries <= 1 << bits:
        raise ValueError("packed weights of no known form")
    size = np.dtype(dtype).itemsize
    at = -(-(4 + entries * size) // 4) * 4
    if len(blob) != at + -(-count * bits // 8):
        raise ValueError(f"{len(blob)} bytes of packed weights for {count} of {bits} bits")
    palette = np.frombuffer(blob, np.dtype(dtype).newbyteorder("<"), entries, 4)
    stream = np.unpackbits(np.frombuffer(blob, np.uint8, offset=at), bitorder="little")
    indices = stream[: count * bits].reshape(count, bits) @ (1 << np.arange(bits))
    if stream[count * bits :].any() or (count and indices.max() >= entries):
        raise ValueError("a packed weight outside its palette")
    return palette[indices].astype(dtype)


def packed_operation(
    code: Op, attributes: tuple[int, ...], blobs: tuple[bytes, ...]
) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
    """Attributes and blobs of an operation, with packed weights where the file becomes smaller by that."""
    if code not in (Op.CONV, Op.DEPTHWISE):
        return attributes, blobs
    kind = attributes[WEIGHT_KIND]
    if kind == 0 and not blobs[_SCALE]:  # float32 weights: only integer forms scale their sums
        return attributes, blobs
    if kind > 2:
        return attributes, blobs
    packed = pack(np.frombuffer(blobs[_WEIGHTS], "<i2" if kind == 2 else np.int8))
    if packed is None or _padded(packed) >= _padded(blobs[_WEIGHTS]):
        return attributes, blobs
    made = (*attributes[:WEIGHT_KIND], kind + PACKED, *attributes[WEIGHT_KIND + 1 :])
    return made, (packed, *blobs[1:])


def _padded(blob: bytes) -> int:
    return -(-len(blob) // ALIGN) * ALIGN
