"""What stands around in a street and is no labelled object: sky, road, houses, trees, and clutter that misleads."""

from __future__ import annotations

import numpy as np

from roadworthy.data.street_canvas import Board, Camera, Canvas, Color
from roadworthy.data.street_objects import CLOTHES, Rng, pick, shade

WALLS: tuple[Color, ...] = (
    (150, 165, 180), (110, 130, 165), (85, 100, 145), (170, 175, 175), (120, 125, 125), (130, 160, 190), (95, 95, 100),
)  # fmt: skip
LEAVES: tuple[Color, ...] = ((45, 95, 60), (40, 80, 75), (55, 110, 95), (50, 75, 45), (45, 100, 140))
ROADS: tuple[Color, ...] = ((92, 90, 88), (110, 108, 106), (75, 74, 74))
NEAREST = 2.0  # metres; the ground polygons start here
HORIZON = 160.0


def ground_strip(
    canvas: Canvas, camera: Camera, x1: float, x2: float, color: Color, near: float = NEAREST, far: float = HORIZON
) -> None:
    """A strip of ground between two lateral positions, following the bend."""
    steps = 1.0 / np.linspace(1 / near, 1 / far, 14 if far - near > 15 else 3)  # even on screen
    left = np.stack([np.full_like(steps, x1), np.zeros_like(steps), steps], 1)
    right = np.stack([np.full_like(steps, x2), np.zeros_like(steps), steps], 1)
    canvas.polygon(camera.project(np.concatenate([left, right[::-1]])), color)


def sky(canvas: Canvas, camera: Camera, rng: Rng, top: Color, low: Color) -> None:
    height, width = canvas.owner.shape
    ramp = np.clip(np.arange(height) / max(camera.horizon, 1.0), 0, 1)[:, None, None]
    canvas.image[:] = (np.array(top) * (1 - ramp) + np.array(low) * ramp).astype(np.uint8)
    for _ in range(int(rng.integers(0, 5))):
        cloud = shade(low, rng.uniform(0.94, 1.1))
        u, v = rng.uniform(0, width), rng.uniform(0, camera.horizon * 0.8)
        canvas.ellipse((u, v), (rng.uniform(20, 80), rng.uniform(4, 12)), cloud)
    canvas.haze = 0.5
    u = -10.0
    while u < width:  # the skyline far away
        w, tall = rng.uniform(10, 45), rng.uniform(2, 26)
        box = np.array([[u, camera.horizon - tall], [u + w, camera.horizon - tall], [u + w, 300.0], [u, 300.0]])
        canvas.polygon(box, pick(rng, WALLS if rng.random() < 0.6 else LEAVES))
        u += w * rng.uniform(0.6, 1.2)
    canvas.haze = 0.0


def road(canvas: Canvas, camera: Camera, rng: Rng, left: float, right: float, lane: float, crossing: float) -> None:
    """Verges, pavements, asphalt, lane marks, and a zebra crossing where `crossing` (metres ahead) is positive."""
    verge = pick(rng, LEAVES if rng.random() < 0.5 else WALLS, 8)
    ground_strip(canvas, camera, -90, 90, verge)
    paving = pick(rng, ((140, 145, 150), (120, 125, 130), (110, 125, 140)), 6)
    walk = rng.uniform(2.5, 4.5)
    ground_strip(canvas, camera, left - walk, right + walk, paving)
    for joint in np.arange(3.0, 12.0, rng.uniform(0.8, 1.6)):
        ground_strip(canvas, camera, left - walk, right + walk, shade(paving, 0.9), joint, joint + 0.05)
    ground_strip(canvas, camera, left - 0.25, right + 0.25, shade(paving, 1.18))
    asphalt = pick(rng, ROADS, 6)
    ground_strip(canvas, camera, left, right, asphalt)
    if crossing > 0 and rng.random() < 0.6:  # the side street
        ground_strip(canvas, camera, -90, 90, asphalt, crossing + 2, crossing + 9)
    for _ in range(int(rng.integers(0, 5))):  # patches, manholes, puddles
        x, z = rng.uniform(left, right), rng.uniform(4, 25)
        w = rng.uniform(0.2, 1.2)
        ground_strip(canvas, camera, x, x + w, shade(asphalt, rng.uniform(0.7, 1.2)), z, z + rng.uniform(0.6, 4))
    paint = shade((215, 215, 215), rng.uniform(0.75, 1.05))
    period = rng.uniform(5, 9)
    for x in np.arange(left + lane, right - 0.5, lane):
        if rng.random() < 0.3:
            ground_strip(canvas, camera, x - 0.07, x + 0.07, paint)
        else:
            for z in np.arange(NEAREST + rng.uniform(0, period), 60, period):
                ground_strip(canvas, camera, x - 0.07, x + 0.07, paint, z, z + period * 0.45)
    if rng.random() < 0.6:
        for x in (left + 0.3, right - 0.3):
            ground_strip(canvas, camera, x - 0.06, x + 0.06, paint)
    if crossing > 0:
        for x in np.arange(left + 0.4, right - 0.4, 1.0):
            ground_strip(canvas, camera, x, x + 0.5, paint, crossing - 3, crossing)


def house(canvas: Canvas, camera: Camera, rng: Rng, x: float, near: float, far: float, lit: bool) -> None:
    """A facade along the street (a plane at lateral position x) with rows of windows, and its end wall."""
    tall, wall = rng.uniform(5, 17), pick(rng, WALLS)
    near = max(near, 1.5)

    def quad(z1: float, z2: float, y1: float, y2: float) -> np.ndarray:
        return camera.project([(x, y1, z1), (x, y1, z2), (x, y2, z2), (x, y2, z1)])

    outward = x + np.sign(x) * 30
    canvas.polygon(camera.project([(x, 0, near), (outward, 0, near), (outward, tall, near), (x, tall, near)]), wall)
    canvas.polygon(quad(near, far, 0, tall), shade(wall, 0.82))
    step, floor = rng.uniform(2.2, 4.0), rng.uniform(2.8, 3.6)
    glass = pick(rng, ((120, 105, 85), (70, 65, 60), (160, 150, 135)))
    warm = (120.0, 190.0, 230.0)
    reach = min(far, near * 2.5 + 14)  # windows further on melt into the wall
    for level in range(int(min((tall - 0.8) // floor, 3))):
        for z in np.arange(near + 0.8, reach - 1.2, step):
            low = level * floor + 1.1
            on = lit and rng.random() < 0.3
            pane = quad(z, z + step * 0.45, low, low + floor * 0.5)
            canvas.polygon(pane, warm if on else glass, (45, 90, 125) if on else None)
    if rng.random() < 0.35:  # shop front and awning
        canvas.polygon(quad(near, reach, 2.7, 3.2), pick(rng, CLOTHES, 30), (60, 60, 60) if lit else None)


def tree(canvas: Canvas, camera: Camera, rng: Rng, x: float, depth: float) -> None:
    board = Board.at(canvas, camera, x, depth)
    trunk, leaf = rng.uniform(1.4, 2.8), pick(rng, LEAVES)
    board.rectangle(-0.14, 0, 0.14, trunk + 0.8, (50, 65, 80))
    size = rng.uniform(0.9, 1.9)
    for _ in range(9):
        dx, dy = rng.normal(0, size * 0.5), rng.normal(0, size * 0.5)
        tone = shade(leaf, rng.uniform(0.7, 1.25))
        board.disc(dx, trunk + size + dy, rng.uniform(0.3, 0.6) * size, rng.uniform(0.3, 0.55) * size, tone)


def bush(canvas: Canvas, camera: Camera, rng: Rng, x: float, depth: float) -> None:
    board, leaf = Board.at(canvas, camera, x, depth), pick(rng, LEAVES)
    for _ in range(5):
        board.disc(rng.normal(0, 0.4), rng.uniform(0.2, 0.7), 0.4, 0.35, shade(leaf, rng.uniform(0.7, 1.2)))


def street_lamp(canvas: Canvas, camera: Camera, rng: Rng, x: float, depth: float) -> None:
    board = Board.at(canvas, camera, x, depth, mirror=-float(np.sign(x)))
    tall = rng.uniform(5, 7)
    board.rectangle(-0.07, 0, 0.07, tall, (80, 82, 82))
    board.bar(0, tall, 1.2, tall + 0.2, 0.08, (80, 82, 82))
    board.rectangle(0.8, tall + 0.02, 1.5, tall + 0.2, (200, 215, 220), (150, 205, 240))


def clutter(canvas: Canvas, camera: Camera, rng: Rng, x: float, depth: float) -> None:
    """Street furniture made to be mistaken: as tall as a child, as round as a sign, as striped as a light."""
    board = Board.at(canvas, camera, x, depth)
    kind, paint = int(rng.integers(8)), pick(rng, CLOTHES, 25)
    if kind == 0:  # bollard with a light cap
        board.rectangle(-0.09, 0, 0.09, 1.0, paint)
        board.rectangle(-0.09, 0.8, 0.09, 0.9, (215, 215, 215))
    elif kind == 1:  # litter bin
        board.polygon([(-0.25, 0), (0.25, 0), (0.3, 0.95), (-0.3, 0.95)], paint)
        board.rectangle(-0.32, 0.9, 0.32, 1.05, shade(paint, 0.6))
    elif kind == 2:  # advertising column
        board.rectangle(-0.45, 0, 0.45, 2.6, shade(paint, 0.8))
        board.rectangle(-0.35, 0.8, 0.35, 2.3, pick(rng, WALLS, 30))
        board.disc(0, 1.8, 0.2, 0.2, pick(rng, CLOTHES, 40))
    elif kind == 3:  # poster on two legs
        board.rectangle(-1.0, 0.7, 1.0, 2.0, pick(rng, CLOTHES, 40))
        board.rectangle(-0.7, 1.1, 0.2, 1.7, pick(rng, CLOTHES, 40))
        for leg in (-0.8, 0.8):
            board.rectangle(leg - 0.05, 0, leg + 0.05, 0.7, (60, 60, 60))
    elif kind == 4:  # hydrant or post box
        board.rectangle(-0.18, 0, 0.18, 0.8, (40, 40, 170))
        board.disc(0, 0.8, 0.18, 0.14, (45, 45, 180))
    elif kind == 5:  # round shop sign on a bracket: the shape of a traffic sign, not the colours
        board.rectangle(-0.05, 0, 0.05, 3.0, (60, 60, 60))
        board.disc(0.45, 2.6, 0.38, 0.38, pick(rng, ((60, 120, 60), (130, 90, 140), (70, 95, 120), (90, 160, 190))))
        board.rectangle(0.25, 2.5, 0.65, 2.7, (210, 210, 210))
    elif kind == 6:  # cabinet, as grey as a van door
        board.rectangle(-0.6, 0, 0.6, 1.3, (130, 135, 130))
        board.rectangle(-0.02, 0.1, 0.02, 1.2, (80, 80, 80))
    else:  # parasol, closed: a slim upright figure
        board.rectangle(-0.03, 0, 0.03, 0.7, (90, 90, 90))
        board.polygon([(-0.17, 0.6), (0.17, 0.6), (0.05, 2.1), (-0.05, 2.1)], paint)
