"""The five kinds of road user and road furniture, and the clutter that is mistaken for them, drawn part by part.

Every painter takes (canvas, camera, rng, x, depth) in metres and paints onto whatever number the canvas carries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from roadworthy.data.street_canvas import Board, Camera, Canvas, Color

Rng = np.random.Generator

SKIN: tuple[Color, ...] = ((150, 180, 225), (110, 150, 205), (80, 115, 165), (55, 75, 110))
CLOTHES: tuple[Color, ...] = (
    (40, 40, 45), (90, 70, 50), (120, 60, 40), (60, 60, 170), (60, 120, 60), (200, 200, 205), (150, 150, 150),
    (40, 130, 190), (50, 190, 220), (130, 90, 140), (80, 45, 35), (70, 95, 120),
)  # fmt: skip
CAR_PAINT: tuple[Color, ...] = (
    (225, 225, 225), (190, 190, 190), (120, 120, 120), (60, 60, 60), (30, 30, 32), (140, 60, 30), (40, 40, 160),
    (90, 130, 150), (70, 100, 60), (40, 140, 200), (170, 140, 90),
)  # fmt: skip
GLASS: Color = (95, 85, 75)
TYRE: Color = (28, 28, 28)
WHITE_BEAM: Color = (200, 230, 245)
RED_BEAM: Color = (30, 30, 190)


def pick(rng: Rng, colors: Sequence[Color], jitter: float = 14.0) -> Color:
    b, g, r = np.clip(np.array(colors[int(rng.integers(len(colors)))]) + rng.normal(0, jitter, 3), 5, 250)
    return float(b), float(g), float(r)


def shade(color: Color, factor: float) -> Color:
    b, g, r = (min(c * factor, 255.0) for c in color)
    return b, g, r


def pedestrian(canvas: Canvas, camera: Camera, rng: Rng, x: float, depth: float) -> None:
    """A walking or standing person, 1.1 to 1.95 m tall."""
    tall = rng.uniform(1.1, 1.4) if rng.random() < 0.15 else rng.uniform(1.55, 1.95)
    board = Board.at(canvas, camera, x, depth, mirror=rng.choice([-1.0, 1.0]))
    unit = tall / 1.75
    board = Board(canvas, board.foot, board.scale * unit, board.mirror)
    top, legs, skin = pick(rng, CLOTHES), pick(rng, CLOTHES), pick(rng, SKIN)
    side = rng.random() < 0.5
    half = 0.15 if side else 0.23
    stride = rng.uniform(0.05, 0.38) if side else rng.uniform(0.06, 0.14)
    coat = rng.random() < 0.3
    shoes = shade(legs, 0.5)
    for sign in (-1.0, 1.0):
        foot_x = sign * stride
        lift = rng.uniform(0, 0.12)
        tone = shade(legs, 0.8 if sign < 0 else 1.0)
        board.polygon(
            [(sign * 0.06 - 0.09, 0.88), (sign * 0.06 + 0.09, 0.88), (foot_x + 0.07, lift), (foot_x - 0.07, lift)], tone
        )
        board.rectangle(foot_x - 0.07, lift, foot_x + (0.16 if side else 0.08), lift + 0.07, shoes)
    swing = stride * 0.9
    board.bar(-half * 0.7, 1.36, -half - swing * 0.8, 0.85, 0.11, shade(top, 0.75))
    hem = 0.55 if coat else 0.82
    board.polygon(
        [(-half, 1.45), (half, 1.45), (half * 0.9, 1.0), (half * 1.1, hem), (-half * 1.1, hem), (-half * 0.9, 1.0)], top
    )
    board.bar(half * 0.7, 1.36, half + swing * 0.7, 0.85, 0.11, shade(top, 0.88))
    if rng.random() < 0.3:  # bag or rucksack
        bag = pick(rng, CLOTHES)
        if rng.random() < 0.5:
            board.rectangle(half - 0.02, 0.55, half + 0.2, 0.85, bag)
        else:
            board.rectangle(-half - 0.14, 1.0, -half * 0.3, 1.42, bag)
    board.rectangle(-0.05, 1.42, 0.06, 1.54, shade(skin, 0.85))
    board.disc(0.02, 1.62, 0.10, 0.13, skin)
    hair = pick(rng, ((30, 35, 45), (40, 60, 90), (90, 150, 190), (150, 150, 150), (60, 60, 160)))
    board.polygon([(-0.11, 1.58), (-0.10, 1.72), (0.0, 1.77), (0.10, 1.73), (0.11, 1.66), (-0.03, 1.66)], hair)


def cyclist(canvas: Canvas, camera: Camera, rng: Rng, x: float, depth: float) -> None:
    """Rider and bicycle as one object, seen from the side, or from the front or rear."""
    board = Board.at(canvas, camera, x, depth, mirror=rng.choice([-1.0, 1.0]))
    top, legs, skin = pick(rng, CLOTHES, 25), pick(rng, CLOTHES), pick(rng, SKIN)
    frame = pick(rng, CAR_PAINT, 25)
    helmet = pick(rng, ((40, 40, 45), (220, 220, 220), (50, 50, 190), (40, 200, 220), (60, 90, 130)))
    if rng.random() < 0.5:
        turn = rng.uniform(0.65, 1.0)  # foreshortening of an oblique view
        for wheel in (-0.52, 0.52):
            board.disc(wheel * turn, 0.34, 0.33 * turn, 0.33, TYRE, ring=0.06)
        for x1, y1, x2, y2 in (
            (-0.52, 0.34, -0.15, 0.85), (-0.15, 0.85, 0.4, 0.85), (0.05, 0.32, 0.4, 0.85), (0.05, 0.32, -0.17, 0.9),
            (0.52, 0.34, 0.38, 1.0), (-0.52, 0.34, 0.05, 0.32),
        ):  # fmt: skip
            board.bar(x1 * turn, y1, x2 * turn, y2, 0.05, frame)
        pedal = rng.uniform(0.15, 0.45)
        for sign in (-1.0, 1.0):
            tone = shade(legs, 0.75 if sign < 0 else 1.0)
            knee = (0.22 * turn, 0.72 + 0.08 * sign)
            board.bar(-0.18 * turn, 0.98, *knee, 0.16, tone)
            board.bar(*knee, 0.07 * turn, pedal if sign > 0 else 0.6 - pedal, 0.11, tone)
        lean = rng.uniform(0.12, 0.4)
        board.polygon(
            [(-0.32 * turn, 0.95), (-0.05 * turn, 0.92), ((lean + 0.1) * turn, 1.42), ((lean - 0.15) * turn, 1.5)], top
        )
        board.bar((lean - 0.02) * turn, 1.4, 0.42 * turn, 1.02, 0.09, shade(top, 0.8))
        head = (lean + 0.08) * turn
    else:
        board.rectangle(-0.035, 0.0, 0.035, 0.68, TYRE)
        board.bar(-0.3, 1.03, 0.3, 1.03, 0.05, frame)
        for sign in (-1.0, 1.0):
            lift = rng.uniform(0.12, 0.4)
            board.polygon(
                [(sign * 0.05, 0.98), (sign * 0.22, 0.98), (sign * 0.2, lift), (sign * 0.08, lift)],
                shade(legs, 0.8 if sign < 0 else 1.0),
            )
            board.bar(sign * 0.2, 1.4, sign * 0.32, 1.05, 0.1, shade(top, 0.8))
        board.polygon([(-0.2, 0.92), (0.2, 0.92), (0.24, 1.45), (-0.24, 1.45)], top)
        if canvas.light is not None:
            board.disc(0, 0.8, 0.06, 0.06, (230, 240, 250), WHITE_BEAM)
        head = 0.0
    board.disc(head, 1.6, 0.1, 0.13, skin)
    cap = [(head - 0.13, 1.63), (head - 0.1, 1.74), (head, 1.79), (head + 0.1, 1.74), (head + 0.14, 1.64)]
    board.polygon(cap, helmet)


# Profiles in metres along the length (0 rear .. 1 front of the length) and up: body outline, then the window strip.
SHAPES = {
    "hatch": (4.0, 1.75, 1.5, ((0.02, 0.9), (0.1, 1.5), (0.55, 1.5), (0.75, 0.98), (0.99, 0.82))),
    "saloon": (4.6, 1.8, 1.45, ((0.0, 0.92), (0.18, 0.98), (0.32, 1.45), (0.58, 1.45), (0.74, 0.95), (0.99, 0.8))),
    "suv": (4.6, 1.9, 1.75, ((0.01, 1.05), (0.05, 1.75), (0.58, 1.75), (0.73, 1.12), (0.99, 1.0))),
    "van": (5.2, 2.0, 2.3, ((0.0, 1.0), (0.0, 2.3), (0.72, 2.3), (0.86, 1.3), (1.0, 1.05))),
}


def car(canvas: Canvas, camera: Camera, rng: Rng, x: float, depth: float, heading: str = "away") -> None:
    """A car: "away" shows its rear, "toward" its front, each with the visible flank; "left", "right" its side."""
    kind = str(rng.choice(["hatch", "saloon", "suv", "van"], p=[0.35, 0.3, 0.22, 0.13]))
    length, width, tall, profile = SHAPES[kind]
    paint = pick(rng, CAR_PAINT)
    if heading in ("left", "right"):
        _car_side(Board.at(canvas, camera, x, depth, mirror=1.0 if heading == "right" else -1.0), kind, paint, rng)
        return
    far = depth + length
    away = heading == "away"
    half = width / 2
    # The flank: the profile extruded along Z on the side that the camera sees.
    screen_x = x + camera.bend * depth * depth / 2
    flank = x - half if screen_x > 0 else x + half
    z_of = (lambda t: depth + t * length) if away else (lambda t: far - t * length)
    dark = shade(paint, 0.62)
    hull = [(flank, 0.22, z_of(0.0)), (flank, profile[0][1], z_of(0.0))]
    hull += [(flank, y, z_of(t)) for t, y in profile] + [(flank, 0.22, z_of(1.0))]
    canvas.polygon(camera.project(hull), dark)
    roof = [(t, y) for t, y in profile if y > 0.93 * tall]
    belt = 0.92 if tall < 2 else 1.25
    inner = [(flank, y - 0.08, z_of(t)) for t, y in roof] + [(flank, belt, z_of(roof[-1][0] + 0.12))]
    canvas.polygon(camera.project([(flank, belt, z_of(roof[0][0])), *inner]), shade(GLASS, 0.75))
    for t in (0.2, 0.8):
        z = z_of(t)
        u, v = camera.project([(flank, 0.32, z)])[0]
        s = camera.scale(z)
        squeeze = min(abs(screen_x) / depth + 0.08, 1.0)
        canvas.ellipse((float(u), float(v)), (0.33 * s * squeeze, 0.33 * s), TYRE)
    # Bonnet or boot, seen from above, then the face with its window.
    near = Board.at(canvas, camera, x, depth)
    back = camera.project([(x, 0, z_of(0.3 if away else 0.62))])[0]
    roof_scale = camera.scale(z_of(0.3 if away else 0.62))
    deck = (1.0 if away else 0.88) * (tall / 1.5)
    narrow = half * 0.8
    top_v, top_u = back[1] - tall * roof_scale, back[0]
    face_l, face_r = near.pixels([(-half * 0.97, deck), (half * 0.97, deck)])
    roof_l = np.array([top_u - narrow * roof_scale, top_v])
    roof_r = np.array([top_u + narrow * roof_scale, top_v])
    canvas.polygon(np.stack([face_l, face_r, roof_r, roof_l]), shade(paint, 1.08))
    if kind != "van" or not away:
        mix = [face_l * 0.82 + roof_l * 0.18, face_r * 0.82 + roof_r * 0.18]
        mix += [face_r * 0.12 + roof_r * 0.88, face_l * 0.12 + roof_l * 0.88]
        middle = np.mean(mix, 0)
        canvas.polygon(np.stack([m * 0.9 + middle * 0.1 for m in mix]), shade(GLASS, rng.uniform(0.6, 1.3)))
    for sign in (-1.0, 1.0):
        near.rectangle(sign * half * 0.62, 0.0, sign * half * 0.95, 0.35, TYRE)
    face = [(half, 0.25), (half, deck * 0.8), (half * 0.96, deck)]
    near.polygon([*face, *((-x, y) for x, y in reversed(face))], paint)
    near.rectangle(-half, 0.22, half, 0.42, shade(paint, 0.55))
    lit = canvas.light is not None and rng.random() < 0.85
    for sign in (-1.0, 1.0):
        lamp = [(sign * half * 0.62, deck * 0.68), (sign * half * 0.98, deck * 0.68)]
        lamp += [(sign * half * 0.98, deck * 0.9), (sign * half * 0.66, deck * 0.86)]
        if away:
            near.polygon(lamp, (30, 30, 190), RED_BEAM if lit else None)
        else:
            near.polygon(lamp, (225, 230, 235), WHITE_BEAM if lit else None)
    if not away:
        near.rectangle(-half * 0.45, deck * 0.55, half * 0.45, deck * 0.78, shade(paint, 0.35))
    near.rectangle(-0.26, 0.45, 0.26, 0.57, (215, 220, 220) if rng.random() < 0.7 else (60, 200, 225))


def _car_side(board: Board, kind: str, paint: Color, rng: Rng) -> None:
    """The side view, for crossing traffic; the front points to +x of the board."""
    length, _, tall, profile = SHAPES[kind]
    body = [(0.0, 0.25), *((t * length, y) for t, y in profile), (length, 0.6), (length, 0.25)]
    centred = [(px - length / 2, py) for px, py in body]
    board.polygon(centred, paint)
    roof = [(t, y) for t, y in profile if y > 0.93 * tall]
    belt = 0.95 if tall < 2 else 1.3
    start, stop = roof[0][0] + 0.02, roof[-1][0]
    if kind == "van":
        start = 0.6
    glass = [(start - 0.06 * (kind == "saloon"), belt), (start + 0.02, tall - 0.1), (stop, tall - 0.1)]
    glass.append((stop + 0.12, belt))
    board.polygon([(t * length - length / 2, y) for t, y in glass], shade(GLASS, rng.uniform(0.6, 1.2)))
    pillar = ((start + stop) / 2 + 0.04) * length - length / 2
    board.rectangle(pillar - 0.05, belt, pillar + 0.05, tall - 0.1, paint)
    board.rectangle(-length / 2, 0.25, length / 2, 0.38, shade(paint, 0.55))
    for t in (0.19, 0.8):
        px = t * length - length / 2
        board.disc(px, 0.33, 0.36, 0.33, TYRE)
        board.disc(px, 0.33, 0.19, 0.18, (140, 140, 140))
    lit = board.canvas.light is not None
    board.rectangle(length / 2 - 0.22, 0.62, length / 2 - 0.02, 0.76, (225, 230, 235), WHITE_BEAM if lit else None)
    board.rectangle(-length / 2, 0.7, -length / 2 + 0.14, 0.86, (30, 30, 190), RED_BEAM if lit else None)


LAMPS: tuple[tuple[Color, Color], ...] = (
    ((60, 60, 250), (40, 40, 230)), ((60, 190, 250), (30, 150, 235)), ((150, 240, 90), (130, 225, 60)),
)  # fmt: skip


def traffic_light(canvas: Canvas, camera: Camera, rng: Rng, x: float, depth: float, lift: float, state: int) -> None:
    """The housing with its three lamps (the labelled object; its pole is scenery). state: 0 red, 1 amber, 2 green."""
    board = Board.at(canvas, camera, x, depth, y=lift)
    case = pick(rng, ((25, 25, 25), (35, 45, 35), (30, 35, 40), (20, 130, 170)), 6)
    if rng.random() < 0.25:
        board.rectangle(-0.3, -0.1, 0.3, 1.2, (200, 200, 200))
    board.rectangle(-0.22, 0.0, 0.22, 1.1, case)
    for row in range(3):
        on = row == state
        color, glow = LAMPS[row]
        board.disc(0, 0.91 - 0.36 * row, 0.14, 0.14, color if on else shade(color, 0.22), glow if on else None)


def sign(canvas: Canvas, camera: Camera, rng: Rng, x: float, depth: float, lift: float) -> None:
    """A traffic sign's plate (its pole is scenery), 0.6 to 0.9 m."""
    board = Board.at(canvas, camera, x, depth, y=lift)
    r = rng.uniform(0.3, 0.46)
    red, blue, white = pick(rng, ((40, 35, 190),), 10), pick(rng, ((170, 90, 25),), 10), (230.0, 232.0, 232.0)
    ink = (30.0, 30.0, 30.0)
    kind = int(rng.integers(7))
    corners = np.deg2rad(22.5 + 45 * np.arange(8))
    if kind == 0:  # ban: white disc in a red ring
        board.disc(0, 0, r, r, red)
        board.disc(0, 0, r * 0.74, r * 0.74, white)
        if rng.random() < 0.7:
            board.rectangle(-r * 0.38, -r * 0.35, -r * 0.06, r * 0.35, ink)
            board.rectangle(r * 0.06, -r * 0.35, r * 0.38, r * 0.35, ink)
    elif kind == 1:  # no entry
        board.disc(0, 0, r, r, red)
        board.rectangle(-r * 0.7, -r * 0.18, r * 0.7, r * 0.18, white)
    elif kind in (2, 3):  # warning triangle, point up; give way, point down
        up = 1.0 if kind == 2 else -1.0
        for size, color in ((1.1, red), (0.66, white)):
            low, high = -0.62 * r * size * up, 1.05 * r * size * up
            board.polygon([(-r * size, low), (r * size, low), (0, high)], color)
        if kind == 2:
            board.rectangle(-r * 0.08, -r * 0.3, r * 0.08, r * 0.35, ink)
    elif kind == 4:  # stop
        board.polygon([(r * 1.05 * float(np.cos(a)), r * 1.05 * float(np.sin(a))) for a in corners], red)
        board.rectangle(-r * 0.7, -r * 0.18, r * 0.7, r * 0.2, shade(white, 0.95))
    elif kind == 5:  # blue disc with an arrow
        board.disc(0, 0, r, r, blue)
        board.bar(0, -r * 0.6, 0, r * 0.3, r * 0.22, white)
        board.polygon([(-r * 0.4, r * 0.15), (r * 0.4, r * 0.15), (0, r * 0.7)], white)
    else:  # blue square, or a priority diamond
        if rng.random() < 0.5:
            board.rectangle(-r, -r, r, r, blue)
            board.polygon([(-r * 0.6, -r * 0.6), (r * 0.6, -r * 0.6), (0, r * 0.6)], white)
        else:
            board.polygon([(-r * 1.1, 0), (0, r * 1.1), (r * 1.1, 0), (0, -r * 1.1)], white)
            board.polygon([(-r * 0.8, 0), (0, r * 0.8), (r * 0.8, 0), (0, -r * 0.8)], (30, 180, 235))


def pole(canvas: Canvas, camera: Camera, x: float, depth: float, tall: float, width: float = 0.09) -> None:
    Board.at(canvas, camera, x, depth).rectangle(-width / 2, 0, width / 2, tall, (95, 98, 98))
