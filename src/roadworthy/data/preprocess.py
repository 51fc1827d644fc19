"""From an image to an input tensor, and from input coordinates back to the image.

tensor = (image * scale - mean) / std          per channel, after resizing and colour order
image_xy = (input_xy - offset) / ratio         per axis, the way back for boxes
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the input tensor; plain values only, so that it can be written as YAML or JSON.

    size_hw: (height, width) of the input tensor in pixels.
    resize: "letterbox" (keep aspect, pad), "stretch", "crop" (short side to `short_side`, then centre crop), or "none".
    anchor: where letterbox puts the image: "topleft" or "center".
    pad_value: grey level 0..255 of the letterbox border.
    short_side: pixels of the short side before the centre crop; 0 means the input size.
    color: "bgr" or "rgb", the channel order the network expects (images are read as BGR); "gray" for one channel.
    layout: "nchw" or "nhwc".
    scale: factor on 0..255 values, before mean and std.
    mean, std: per channel in the order of `color`, applied after `scale`.
    interpolation: "linear", "area", "cubic" or "nearest" (OpenCV's).
    """

    size_hw: tuple[int, int]
    resize: str = "letterbox"
    anchor: str = "topleft"
    pad_value: int = 114
    short_side: int = 0
    color: str = "bgr"
    layout: str = "nchw"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "linear"
