"""A camera over a flat street and a canvas that remembers which object owns each pixel.

    u = cx + f * (X / Z + bend * Z / 2)      X right, Z ahead, metres; `bend` is the curvature of the road, 1/m
    v = horizon + f * (camera_height - Y) / Z    Y up from the ground, metres

Objects are painted from far to near. Each primitive paints the colour image, the owner map and, by night, the layer
of light sources; so occlusion, visible fractions and tight boxes all follow from one order of painting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Color = tuple[float, float, float]  # B,G,R 0..255
Points = NDArray[np.float64]  # N,2 pixels

HEIGHT, WIDTH = 256, 416  # pixels of every scene
SHIFT = 3  # fractional bits of drawing coordinates
FRACTION = 1 << SHIFT
FAR_OUT = 3000.0  # pixels; clip before the rasterizer's fixed point overflows


@dataclass(frozen=True)
class Camera:
    """A pinhole camera at (0, height, 0) that looks along the road."""

    cx: float
    horizon: float
    focal: float
    height: float
    bend: float = 0.0

    def project(self, points: Iterable[tuple[float, float, float]] | NDArray) -> Points:
        """(N, 3) metres (X, Y, Z with Z > 0) -> (N, 2) pixels."""
        xyz = np.asarray(points if isinstance(points, np.ndarray) else list(points), np.float64).reshape(-1, 3)
        depth = np.maximum(xyz[:, 2], 0.3)
        out = np.empty((len(xyz), 2))
        out[:, 0] = self.cx + self.focal * (xyz[:, 0] / depth + self.bend * depth / 2)
        out[:, 1] = self.horizon + self.focal * (self.height - xyz[:, 1]) / depth
        return out

    def scale(self, depth: float) -> float:
        """Pixels per metre at this depth."""
        return self.focal / depth


@dataclass(eq=False)
class Canvas:
    """The image under construction.

    image: (H, W, 3) uint8 BGR.   owner: (H, W) uint8, 0 for scenery, otherwise the number of the object.
    light: (H, W, 3) uint8, what shines by itself; None by day, when lamps drown in the sun.
    haze: share of the haze colour mixed into every colour painted, set per object from its distance.
    """

    image: NDArray[np.uint8]
    owner: NDArray[np.uint8]
    light: NDArray[np.uint8] | None
    haze_color: Color
    haze: float = 0.0
    number: int = 0

    @staticmethod
    def blank(height: int, width: int, lamps: bool, haze_color: Color) -> Canvas:
        light = np.zeros((height, width, 3), np.uint8) if lamps else None
        return Canvas(np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8), light, haze_color)

    def tint(self, color: Sequence[float]) -> Color:
        """The colour as seen through the haze."""
        a, (hb, hg, hr) = self.haze, self.haze_color
        keep = 1.0 - a
        return color[0] * keep + hb * a, color[1] * keep + hg * a, color[2] * keep + hr * a

    def polygon(self, points: Points, color: Sequence[float], glow: Sequence[float] | None = None) -> None:
        """Fill a polygon given in pixels; `glow` is the light it gives off."""
        inside = np.minimum(np.maximum(points, -FAR_OUT), FAR_OUT)
        fixed = [np.rint(inside * FRACTION).astype(np.int32)]
        cv2.fillPoly(self.image, fixed, self.tint(color), cv2.LINE_AA, SHIFT)
        cv2.fillPoly(self.owner, fixed, (self.number,), cv2.LINE_8, SHIFT)
        if self.light is not None:
            cv2.fillPoly(self.light, fixed, tuple(glow or (0, 0, 0)), cv2.LINE_8, SHIFT)

    def ellipse(
        self,
        center: tuple[float, float],
        axes: tuple[float, float],
        color: Sequence[float],
        glow: Sequence[float] | None = None,
        thickness: int = -1,
        angle: float = 0.0,
    ) -> None:
        """Paint an ellipse: centre and half axes in pixels, filled unless a thickness is given."""
        if abs(center[0]) > FAR_OUT or abs(center[1]) > FAR_OUT:
            return
        at = (round(center[0] * FRACTION), round(center[1] * FRACTION))
        half = (max(round(axes[0] * FRACTION), 1), max(round(axes[1] * FRACTION), 1))
        cv2.ellipse(self.image, at, half, angle, 0, 360, self.tint(color), thickness, cv2.LINE_AA, SHIFT)
        cv2.ellipse(self.owner, at, half, angle, 0, 360, (self.number,), thickness, cv2.LINE_8, SHIFT)
        if self.light is not None:
            cv2.ellipse(self.light, at, half, angle, 0, 360, tuple(glow or (0, 0, 0)), thickness, cv2.LINE_8, SHIFT)

    def line(self, start: Sequence[float], end: Sequence[float], width: float, color: Sequence[float]) -> None:
        """A bar from start to end (pixels), `width` pixels wide; also when that is less than one pixel."""
        a, b = np.asarray(start, np.float64), np.asarray(end, np.float64)
        along = b - a
        length = float(np.hypot(*along))
        if length < 1e-6:
            return
        across = np.array([-along[1], along[0]]) / length * max(width, 0.7) / 2
        self.polygon(np.stack([a + across, b + across, b - across, a - across]), color)


@dataclass(frozen=True)
class Board:
    """An upright plane at one depth, drawn on in metres: x right and y up from the foot point."""

    canvas: Canvas
    foot: tuple[float, float]
    scale: float
    mirror: float = 1.0

    @staticmethod
    def at(canvas: Canvas, camera: Camera, x: float, depth: float, y: float = 0.0, mirror: float = 1.0) -> Board:
        u, v = camera.project([(x, y, depth)])[0]
        return Board(canvas, (float(u), float(v)), camera.scale(depth), mirror)

    def pixels(self, points: Sequence[tuple[float, float]]) -> Points:
        xy = np.array(points, np.float64) * (self.mirror * self.scale, -self.scale)
        return xy + self.foot

    def polygon(
        self, points: Sequence[tuple[float, float]], color: Sequence[float], glow: Sequence[float] | None = None
    ) -> None:
        self.canvas.polygon(self.pixels(points), color, glow)

    def rectangle(
        self, x1: float, y1: float, x2: float, y2: float, color: Sequence[float], glow: Sequence[float] | None = None
    ) -> None:
        self.polygon([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], color, glow)

    def disc(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        color: Sequence[float],
        glow: Sequence[float] | None = None,
        ring: float = 0.0,
        angle: float = 0.0,
    ) -> None:
        """An ellipse in metres; a ring of that width when `ring` is positive."""
        u, v = self.pixels([(x, y)])[0]
        thickness = max(round(ring * self.scale), 1) if ring else -1
        self.canvas.ellipse((u, v), (rx * self.scale, ry * self.scale), color, glow, thickness, angle * self.mirror)

    def bar(self, x1: float, y1: float, x2: float, y2: float, width: float, color: Sequence[float]) -> None:
        a, b = self.pixels([(x1, y1), (x2, y2)])
        self.canvas.line(a, b, width * self.scale, color)
