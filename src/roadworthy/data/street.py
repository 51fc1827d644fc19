"""The embedded sample `street`: a seeded generator of labelled street scenes, so that nothing need be downloaded.

A scene is drawn from far to near through one perspective camera (see `street_canvas`), then lit: by day with shadows,
at dusk, by night with headlights and lamps, or in fog; then blurred and given sensor noise. Many objects are small:
most boxes have an area below 32^2 pixels, COCO's "small". Labels follow COCO: the box of the *visible* pixels; an
object of which less than 30 % is visible, or that is too small to be told apart, is marked `ignore`.

    image, truth = scene(7)             # the 8th scene of seed 0
    image, truth = scene(7, seed=1)     # another, unrelated series

The same (index, seed) always gives the same scene.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from roadworthy.data import street_objects as objects
from roadworthy.data import street_scenery as scenery
from roadworthy.data.street_canvas import HEIGHT, WIDTH, Camera, Canvas
from roadworthy.data.street_light import Weather, expose, ground_texture, weather_of
from roadworthy.data.street_objects import Rng
from roadworthy.detect.detections import Truth
from roadworthy.errors import InputError

CLASS_NAMES = ("pedestrian", "car", "cyclist", "traffic light", "sign")
PEDESTRIAN, CAR, CYCLIST, TRAFFIC_LIGHT, SIGN = range(5)
MIN_VISIBLE = 0.3  # share of an object's pixels; below it the box is ignored
MIN_SIDE = 4  # pixels; smaller boxes are ignored
MIN_AREA = 60  # square pixels; smaller boxes are ignored
MIN_PIXELS = 10  # visible pixels; with fewer the object is not labelled at all


def scene(index: int, seed: int = 0) -> tuple[NDArray[np.uint8], Truth]:
    """Draw one street scene.

    index: 0 or more; scenes of one seed are independent of each other.   seed: 0 or more; which series.
    Returns the image, (256, 416, 3) uint8 BGR, and its `Truth` (boxes_xyxy in pixels, classes in the order of
    CLASS_NAMES, `ignore` for objects that are mostly hidden or tiny).
    Raises InputError when index or seed is negative or not an integer.
    """
    for name, value in (("index", index), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
            raise InputError(f"street scene {name} {value!r} is not a whole number of 0 or more; give one, like 7.")
    rng = np.random.default_rng([int(seed), int(index), 0x57EE7])
    weather = weather_of(rng)
    camera = Camera(
        cx=WIDTH * rng.uniform(0.38, 0.62),
        horizon=HEIGHT * rng.uniform(0.36, 0.5),
        focal=rng.uniform(290, 390),
        height=rng.uniform(1.25, 2.1),
        bend=float(rng.normal(0, 0.0012)),
    )
    canvas = Canvas.blank(HEIGHT, WIDTH, weather.lamps, weather.sky_low)
    items = _paint_background(canvas, camera, rng, weather)
    classes, full = _paint_items(canvas, camera, rng, weather, items)
    boxes, kinds, ignore = _labels(canvas.owner, classes, full)
    image = expose(canvas, camera, rng, weather)
    if rng.random() < 0.5:  # drive on the other side
        image = np.ascontiguousarray(image[:, ::-1])
        boxes[:, [0, 2]] = WIDTH - boxes[:, [2, 0]]
    return image, Truth.of(boxes, kinds, ignore=ignore)


Paint = Callable[[], None]


@dataclass(frozen=True)
class Item:
    """Something to paint: how far it is, what class it is (None: scenery), its lateral place and its shadow's width."""

    depth: float
    kind: int | None
    paint: Paint
    x: float = 0.0
    shadow: float = 0.0
    before: Paint | None = None  # the pole of a sign, painted first as scenery


def _paint_background(canvas: Canvas, camera: Camera, rng: Rng, weather: Weather) -> list[Item]:
    """Sky, ground and houses; returns everything that stands on the ground, in no order yet."""
    lane = rng.uniform(2.9, 3.6)
    lanes_right, lanes_left = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    own = rng.integers(lanes_right)  # which lane we drive in, counted from the middle
    left = -lane * (own + 0.5) - lane * lanes_left
    right = lane * (lanes_right - own - 0.5)
    middle = left + lane * lanes_left
    crossing = rng.uniform(10, 30) if rng.random() < 0.5 else 0.0
    scenery.sky(canvas, camera, rng, weather.sky_top, weather.sky_low)
    scenery.road(canvas, camera, rng, left, right, lane, crossing)
    ground_texture(canvas, camera, rng)
    for side, edge in ((-1.0, left), (1.0, right)):
        if rng.random() < 0.8:
            _houses(canvas, camera, rng, weather, edge + side * rng.uniform(4, 9), crossing)
    return [
        *_traffic(canvas, camera, rng, left, middle, right, lane, crossing),
        *_people(canvas, camera, rng, left, right, crossing),
        *_furniture(canvas, camera, rng, left, right, crossing),
    ]


def _houses(canvas: Canvas, camera: Camera, rng: Rng, weather: Weather, x: float, crossing: float) -> None:
    rows, z = [], rng.uniform(1.5, 12)
    while z < 90:
        depth = rng.uniform(7, 20)
        if not (crossing and z < crossing + 9 and z + depth > crossing + 2):
            rows.append((z, z + depth))
        z += depth + (rng.uniform(1, 12) if rng.random() < 0.4 else 0)
    for near, far in reversed(rows):
        canvas.haze = 1 - float(np.exp(-weather.haze_per_m * near))
        scenery.house(canvas, camera, rng, x + rng.uniform(-0.8, 0.8), near, far, weather.lamps)


def _traffic(
    canvas: Canvas, camera: Camera, rng: Rng, left: float, middle: float, right: float, lane: float, crossing: float
) -> list[Item]:
    """Cars in each lane, parked at the kerbs, and crossing the side street."""
    items: list[Item] = []

    def add(x: float, z: float, heading: str) -> None:
        paint = partial(objects.car, canvas, camera, rng, x, z, heading)
        items.append(Item(z, CAR, paint, x, 4.4 if heading in ("left", "right") else 2.1))

    for x in np.arange(left + lane / 2, right, lane):
        z = rng.uniform(6, 40) if abs(x) > lane / 2 else rng.uniform(9, 40)
        while z < 65 and rng.random() < 0.62:
            add(x + rng.normal(0, 0.25), z, "away" if x > middle else "toward")
            z += 5.5 + rng.exponential(14)
    for edge, heading in ((left - 0.2, "toward"), (right + 0.2, "away")):
        if rng.random() < 0.45:
            z = rng.uniform(5, 25)
            for _ in range(int(rng.integers(1, 6))):
                add(edge + np.sign(edge) * rng.uniform(0.2, 0.9), z, heading)
                z += 5.3 + rng.exponential(3)
    if crossing:
        for _ in range(int(rng.integers(0, 3))):
            add(rng.uniform(-14, 14), crossing + rng.uniform(3, 8), str(rng.choice(["left", "right"])))
    return items


def _people(canvas: Canvas, camera: Camera, rng: Rng, left: float, right: float, crossing: float) -> list[Item]:
    """Pedestrians on the pavements and crossings, cyclists along the kerbs and across."""
    items: list[Item] = []

    def walk(x: float, z: float) -> None:
        items.append(Item(z, PEDESTRIAN, partial(objects.pedestrian, canvas, camera, rng, x, z), x, 0.6))

    def ride(x: float, z: float) -> None:
        items.append(Item(z, CYCLIST, partial(objects.cyclist, canvas, camera, rng, x, z), x, 1.0))

    for _ in range(int(rng.integers(1, 8))):
        edge = left - 0.5 if rng.random() < 0.5 else right + 0.5
        x, z = edge + np.sign(edge) * rng.uniform(0, 3), 5 + rng.gamma(2.0, 9.0)
        for _ in range(int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1]))):
            walk(x, z)
            x, z = x + rng.choice([-1, 1]) * rng.uniform(0.45, 0.8), z + rng.normal(0, 0.3)
    if crossing or rng.random() < 0.25:
        at = crossing - 1.5 if crossing else rng.uniform(8, 35)
        for _ in range(int(rng.integers(0, 4))):
            walk(rng.uniform(left, right), at + rng.normal(0, 0.8))
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.2, 0.35, 0.3, 0.15]))):
        edge = left + 0.5 if rng.random() < 0.5 else right - 0.5
        ride(edge + rng.normal(0, 0.5), 5.5 + rng.gamma(2.0, 8.0))
    if crossing and rng.random() < 0.4:
        ride(rng.uniform(-8, 8), crossing + rng.uniform(-2, 3))
    return items


def _furniture(canvas: Canvas, camera: Camera, rng: Rng, left: float, right: float, crossing: float) -> list[Item]:
    """Traffic lights and signs on their poles; trees, lamps and clutter."""
    items: list[Item] = []

    def post(x: float, z: float, tall: float) -> Paint:
        return partial(objects.pole, canvas, camera, x, z, tall)

    if crossing or rng.random() < 0.25:
        at = crossing - 3.5 if crossing else rng.uniform(9, 32)
        state = int(rng.integers(3))
        for x in (left - 0.6, right + 0.6):
            for z in (at, at + rng.uniform(12, 16)):
                if rng.random() < 0.75:
                    lift = rng.uniform(2.0, 2.6)
                    paint = partial(objects.traffic_light, canvas, camera, rng, x, z, lift, state)
                    items.append(Item(z, TRAFFIC_LIGHT, paint, x, 0.3, post(x, z, lift)))
        if rng.random() < 0.5:  # on an arm over the road
            z, x, lift = at + rng.uniform(8, 14), rng.uniform(left, right) * 0.8, rng.uniform(4.2, 5.0)
            arm = partial(_arm, canvas, camera, x, right + 0.8, z, lift + 1.0)
            paint = partial(objects.traffic_light, canvas, camera, rng, x, z, lift, state)
            items.append(Item(z, TRAFFIC_LIGHT, paint, x, 0.0, arm))
    for _ in range(int(rng.integers(1, 6))):
        x = left - rng.uniform(0.4, 1.2) if rng.random() < 0.5 else right + rng.uniform(0.4, 1.2)
        z, lift = rng.uniform(6, 26), rng.uniform(2.0, 2.7)
        items.append(
            Item(z, SIGN, partial(objects.sign, canvas, camera, rng, x, z, lift), x, 0.3, post(x, z, lift + 0.2))
        )
        if rng.random() < 0.2:  # a second plate under the first
            items.append(Item(z - 0.01, SIGN, partial(objects.sign, canvas, camera, rng, x, z, lift - 0.95), x))
    for make, count, spread in ((scenery.clutter, 9, 3.0), (scenery.tree, 5, 5.0), (scenery.bush, 4, 6.0)):
        for _ in range(int(rng.integers(0, count))):
            side = rng.random() < 0.5
            x = left - 0.7 - rng.uniform(0, spread) if side else right + 0.7 + rng.uniform(0, spread)
            z = 5 + rng.gamma(2.0, 8.0)
            items.append(Item(z, None, partial(make, canvas, camera, rng, x, z), x, 0.9))
    gap = rng.uniform(14, 25)
    for z in np.arange(rng.uniform(5, 20), 60, gap) if rng.random() < 0.7 else ():
        x = left - 0.5 if rng.random() < 0.5 else right + 0.5
        items.append(Item(z, None, partial(scenery.street_lamp, canvas, camera, rng, x, z), x, 0.2))
    return items


def _arm(canvas: Canvas, camera: Camera, x: float, x_pole: float, depth: float, tall: float) -> None:
    objects.pole(canvas, camera, x_pole, depth, tall + 0.1, 0.16)
    ends = camera.project([(x, tall, depth), (x_pole, tall, depth)])
    canvas.line(ends[0], ends[1], 0.12 * camera.scale(depth), (95, 98, 98))


def _paint_items(
    canvas: Canvas, camera: Camera, rng: Rng, weather: Weather, items: list[Item]
) -> tuple[list[int], list[int]]:
    """Shadows first, then every item from far to near. Returns class and full pixel count of each numbered object."""
    _shadows(canvas, camera, rng, weather, items)
    classes: list[int] = []
    full: list[int] = []
    for item in sorted(items, key=lambda one: -one.depth):
        canvas.haze = 1 - float(np.exp(-weather.haze_per_m * item.depth))
        canvas.number = 0
        if item.before is not None:
            item.before()
        if item.kind is None or len(classes) == 250:
            item.paint()
            continue
        canvas.number = len(classes) + 1
        item.paint()
        classes.append(item.kind)
        full.append(cv2.countNonZero(cv2.inRange(canvas.owner, canvas.number, canvas.number)))
    return classes, full


def _shadows(canvas: Canvas, camera: Camera, rng: Rng, weather: Weather, items: list[Item]) -> None:
    """A soft dark blot under everything; by day also a cast shadow, away from the sun, and shade across the road."""
    mask = np.zeros(canvas.owner.shape, np.uint8)
    reach = rng.uniform(0.5, 2.5) * rng.choice([-1, 1]) if weather.shadow > 0.25 else 0.0
    cast = round(255 * weather.shadow)
    for item in sorted(items, key=lambda one: -one.depth):
        if not item.shadow or item.depth > 45:
            continue
        (u, v), s = camera.project([(item.x, 0, item.depth)])[0], camera.scale(item.depth)
        if reach:
            tip = camera.project([(item.x + reach, 0, item.depth + 0.3 * abs(reach))])[0]
            half = item.shadow * s * 0.45
            blade = np.array([[u - half, v], [u + half, v], [tip[0] + half, tip[1]], [tip[0] - half, tip[1]]])
            cv2.fillConvexPoly(mask, np.rint(np.clip(blade, -3000, 3000)).astype(np.int32), (cast,))
        if abs(u) < 2000:
            axes = (max(int(item.shadow * s * 0.55), 1), max(int(0.14 * s), 1))
            cv2.ellipse(mask, (int(u), int(v)), axes, 0, 0, 360, (max(cast, 110),), -1)
    if reach and rng.random() < 0.4:
        z = rng.uniform(4, 20)
        edge = camera.project([(-30, 0, z), (30, 0, z + rng.normal(0, 2)), (30, 0, z * 2), (-30, 0, z * 2.2)])
        cv2.fillPoly(mask, [np.rint(np.clip(edge, -3000, 3000)).astype(np.int32)], (cast,))
    soft = cv2.blur(mask, (5, 3))
    canvas.image[:] = cv2.multiply(canvas.image, cv2.merge([255 - soft] * 3), scale=1 / 255)


def _labels(owner: NDArray, classes: list[int], full: list[int]) -> tuple[NDArray, NDArray, NDArray]:
    """Boxes of the visible pixels of each numbered object. Returns boxes (N, 4), classes (N,), ignore (N,)."""
    boxes: list[tuple[float, float, float, float]] = []
    kinds: list[int] = []
    ignore: list[bool] = []
    for number, (kind, pixels) in enumerate(zip(classes, full), start=1):
        mask = cv2.inRange(owner, number, number)
        visible = cv2.countNonZero(mask)
        if visible < MIN_PIXELS:
            continue
        x, y, w, h = cv2.boundingRect(mask)
        boxes.append((x, y, x + w, y + h))
        kinds.append(kind)
        ignore.append(visible < MIN_VISIBLE * pixels or min(w, h) < MIN_SIDE or w * h < MIN_AREA)
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(kinds, np.int64), np.array(ignore, bool)
