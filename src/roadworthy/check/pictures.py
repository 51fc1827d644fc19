"""What a model saw before and after compression, drawn on the image, side by side.

Two sets of detections are compared as a reader would compare them: a detection of the original is *kept* when the
compressed model finds the same class at IoU >= 0.5, else it is *lost*; what is left over on the right is *new*.

    IoU(a, b) = area(a ∩ b) / (area(a) + area(b) - area(a ∩ b))

Left panel: the original, one colour per class. Right panel: kept boxes in the same colours, lost ones as a red dashed
ghost, new ones in solid orange. Red and orange are kept free of the class colours, and both carry a word, so that
the difference does not hang on colour vision. For a classifier the panels carry the three best labels instead.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from roadworthy.detect.boxes import iou_matrix
from roadworthy.detect.detections import Detections

Image = NDArray[np.uint8]  # H,W,3 blue, green, red
Color = tuple[int, int, int]

LOST: Color = (36, 28, 210)
NEW: Color = (0, 140, 255)
MAX_SIDE = 640  # pixels of one panel across
MAX_HEIGHT = 480
MIN_SIDE = 640  # smaller images are enlarged, else labels do not fit
QUALITIES = (80, 70, 60, 50, 40)
MATCH_IOU = 0.5
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45


@dataclass(frozen=True, eq=False)
class Picture:
    """One image with the results of both models.

    title: shown above the image.   note: shown below it.
    image_bgr: (H, W, 3) uint8; (H, W), (H, W, 1) and (H, W, 4) are converted.
    original, compressed: both `Detections` in pixels of this image, or both (C,) float32 class scores.
        Detections below `score_threshold` (of the compressed model: `compressed_threshold`, where it has one of its
        own) are not drawn; they tell whether a lost one is gone or only scored lower.
    class_names: may be empty; then classes are called by number.
    Raises ValueError when the image is not uint8 or the two results are of different kinds.
    """

    title: str
    image_bgr: Image
    original: Detections | NDArray[np.float32]
    compressed: Detections | NDArray[np.float32]
    class_names: Sequence[str] = ()
    note: str = ""
    score_threshold: float = 0.3
    compressed_threshold: float | None = None
    is_detection: bool = field(init=False, default=True)

    @property
    def thresholds(self) -> tuple[float, float]:
        """Of the original and of the compressed model."""
        own = self.compressed_threshold
        return self.score_threshold, self.score_threshold if own is None else own

    def __post_init__(self) -> None:
        image: NDArray = np.asarray(self.image_bgr)
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
            raise ValueError(f"picture {self.title!r}: expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
        if image.ndim == 2 or image.shape[2] == 1:
            image = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_GRAY2BGR)
        elif image.shape[2] not in (3, 4):
            raise ValueError(f"picture {self.title!r}: expected 1, 3 or 4 channels, got {image.shape[2]}")
        kinds = {isinstance(self.original, Detections), isinstance(self.compressed, Detections)}
        if len(kinds) != 1:
            raise ValueError(f"picture {self.title!r}: one result is Detections, the other is class scores")
        object.__setattr__(self, "image_bgr", np.ascontiguousarray(image[:, :, :3]))
        object.__setattr__(self, "is_detection", kinds.pop())
        if not self.is_detection:
            for side in ("original", "compressed"):
                scores = np.asarray(getattr(self, side), np.float32).reshape(-1)
                object.__setattr__(self, side, np.nan_to_num(scores, nan=0.0, posinf=0.0, neginf=0.0))


@dataclass(frozen=True)
class Matching:
    """Indices of two detection sets: kept pairs (original, compressed), lost (original) and new (compressed)."""

    kept: tuple[tuple[int, int], ...]
    lost: tuple[int, ...]
    new: tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """One lost or new detection in words. `other_score`: what the other model gave it, below the threshold, or None."""

    kind: str  # "lost" or "new"
    name: str
    score: float
    other_score: float | None


@dataclass(frozen=True)
class Comparison:
    """The two results of a picture compared: how many detections were kept, and every one that changed."""

    kept: int
    changes: tuple[Change, ...]
    score_shift: float | None  # largest |score difference| among the kept
    lowest_iou: float | None  # among the kept


def name_of(class_index: int, names: Sequence[str]) -> str:
    """The name of a class, or `class 7` where names are missing."""
    return str(names[class_index]) if 0 <= class_index < len(names) else f"class {class_index}"


def color_of(class_index: int) -> Color:
    """A colour (blue, green, red) per class, the same in every picture; hues from yellow to violet only."""
    hue = (55 + (class_index * 0.6180339887 % 1.0) * 245) / 360  # golden ratio: neighbours differ most
    red, green, blue = colorsys.hsv_to_rgb(hue, (0.9, 0.62)[class_index % 2], (0.95, 0.78)[class_index // 2 % 2])
    return round(blue * 255), round(green * 255), round(red * 255)


def match(original: Detections, compressed: Detections, iou_threshold: float = MATCH_IOU) -> Matching:
    """Pair detections of one class, best score of the original first, each with the free one it overlaps most."""
    overlap = iou_matrix(original.boxes_xyxy, compressed.boxes_xyxy)
    overlap[original.classes[:, None] != compressed.classes[None]] = -1.0
    kept: list[tuple[int, int]] = []
    for i in np.argsort(-original.scores, kind="stable"):
        j = int(overlap[i].argmax()) if len(compressed) else -1
        if j >= 0 and overlap[i, j] >= iou_threshold:
            kept.append((int(i), j))
            overlap[:, j] = -1.0
    taken, found = {i for i, _ in kept}, {j for _, j in kept}
    return Matching(
        tuple(kept),
        tuple(i for i in range(len(original)) if i not in taken),
        tuple(j for j in range(len(compressed)) if j not in found),
    )


def compare(picture: Picture) -> Comparison:
    """What changed between the two models on this picture, at their thresholds. Detection pictures only."""
    left, right, matching = _shown(picture)
    hidden_left, hidden_right = (
        side.keep(side.scores < limit)
        for side, limit in zip((_boxes(picture.original), _boxes(picture.compressed)), picture.thresholds)
    )
    changes = [_change("lost", left, i, hidden_right, picture.class_names) for i in _by_score(left, matching.lost)] + [
        _change("new", right, j, hidden_left, picture.class_names) for j in _by_score(right, matching.new)
    ]
    overlap = iou_matrix(left.boxes_xyxy, right.boxes_xyxy)
    shifts = [abs(float(left.scores[i]) - float(right.scores[j])) for i, j in matching.kept]
    return Comparison(
        len(matching.kept),
        tuple(changes),
        max(shifts, default=None),
        min((float(overlap[pair]) for pair in matching.kept), default=None),
    )


def top_labels(scores: NDArray[np.float32], names: Sequence[str], count: int = 3) -> list[tuple[str, float]]:
    """The best `count` classes of a (C,) score vector as (name, score), best first."""
    return [(name_of(int(i), names), float(scores[i])) for i in np.argsort(-scores, kind="stable")[:count]]


def draw(
    image_bgr: Image,
    detections: Detections,
    names: Sequence[str] = (),
    *,
    scale: float = 1.0,
    color: Color | None = None,
    dashed: bool = False,
    prefix: str = "",
    taken: list[tuple[int, int, int, int]] | None = None,
) -> Image:
    """A copy of the image (H, W, 3) with boxes and labels; boxes are multiplied by `scale` first.

    color: one colour for all instead of one per class.   dashed: dashed outline.   prefix: put before each label.
    taken: label rectangles already on the image, which new labels avoid; it is added to.
    """
    image = np.array(image_bgr, copy=True)
    taken = [] if taken is None else taken
    height, width = image.shape[:2]
    corners = np.rint(detections.boxes_xyxy * scale).clip([0, 0, 0, 0], [width - 1, height - 1] * 2).astype(int)
    order = np.argsort(detections.scores, kind="stable")  # weakest first, so that the strongest lie on top
    for i in order:
        _outline(image, corners[i], color or color_of(int(detections.classes[i])), 2 if color is None else 3, dashed)
    for i in order[::-1]:  # the strongest chooses its place first
        c = int(detections.classes[i])
        text = f"{prefix}{name_of(c, names)} {detections.scores[i]:.2f}"
        _label(image, corners[i], text if text.isascii() else f"{prefix}class {c}", color or color_of(c), taken)
    return image


def panels(picture: Picture, max_bytes: int = 120_000, max_side: int = MAX_SIDE) -> tuple[bytes, bytes]:
    """The picture as two JPEG files, original and compressed, each within `max_bytes` and `max_side` pixels."""
    left, right = _encode(list(_render(picture, max_side)), max_bytes)
    return left, right


def side_by_side(picture: Picture, max_bytes: int = 240_000, max_side: int = MAX_SIDE) -> bytes:
    """The picture as one JPEG file: original left, compressed right, a title bar above each."""
    halves = []
    for name, panel in zip(("original", "compressed"), _render(picture, max_side)):
        bar = np.full((24, panel.shape[1], 3), 245, np.uint8)
        cv2.putText(bar, name, (8, 16), _FONT, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
        halves.append(np.vstack([bar, panel]))
    gap = np.full((halves[0].shape[0], 8, 3), 255, np.uint8)
    return _encode([np.hstack([halves[0], gap, halves[1]])], max_bytes)[0]


def _boxes(result: Detections | NDArray[np.float32]) -> Detections:
    if not isinstance(result, Detections):
        raise ValueError("class scores have no boxes to compare")
    return result


def _shown(picture: Picture) -> tuple[Detections, Detections, Matching]:
    left, right = (
        side.keep(side.scores >= limit)
        for side, limit in zip((_boxes(picture.original), _boxes(picture.compressed)), picture.thresholds)
    )
    return left, right, match(left, right)


def _by_score(detections: Detections, index: Sequence[int]) -> list[int]:
    return sorted(index, key=lambda i: -float(detections.scores[i]))


def _change(kind: str, of: Detections, i: int, hidden: Detections, names: Sequence[str]) -> Change:
    same = (hidden.classes == of.classes[i]) & (iou_matrix(of.boxes_xyxy[i : i + 1], hidden.boxes_xyxy)[0] >= MATCH_IOU)
    other = float(hidden.scores[same].max()) if same.any() else None
    return Change(kind, name_of(int(of.classes[i]), names), float(of.scores[i]), other)


def _render(picture: Picture, max_side: int) -> tuple[Image, Image]:
    tall, wide = picture.image_bgr.shape[:2]
    most = min(max_side / wide, MAX_HEIGHT / tall)
    scale = min(most, max(1.0, MIN_SIDE / max(tall, wide)))
    height, width = max(1, round(tall * scale)), max(1, round(wide * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(picture.image_bgr, (width, height), interpolation=interpolation).astype(np.uint8)
    if not picture.is_detection:
        best = [top_labels(np.asarray(side), picture.class_names) for side in (picture.original, picture.compressed)]
        return _listed(image, best[0], best[0]), _listed(image, best[1], best[0])
    left, right, matching = _shown(picture)
    names = picture.class_names
    taken: list[tuple[int, int, int, int]] = []
    after = draw(image, right.keep(np.array([j for _, j in matching.kept], int)), names, scale=scale, taken=taken)
    after = draw(
        after,
        left.keep(np.array(matching.lost, int)),
        names,
        scale=scale,
        color=LOST,
        dashed=True,
        prefix="lost: ",
        taken=taken,
    )
    after = draw(
        after, right.keep(np.array(matching.new, int)), names, scale=scale, color=NEW, prefix="new: ", taken=taken
    )
    return draw(image, left, names, scale=scale), after


def _listed(image: Image, labels: list[tuple[str, float]], reference: list[tuple[str, float]]) -> Image:
    """The image with its best labels in a strip below; an orange bar marks a place that differs from the reference."""
    strip = np.full((8 + 20 * len(labels), image.shape[1], 3), 245, np.uint8)
    for row, (name, score) in enumerate(labels):
        y = 20 + 20 * row
        if row < len(reference) and name != reference[row][0]:
            cv2.rectangle(strip, (0, y - 14), (5, y + 4), NEW, -1)
        text = name if name.isascii() else "(see the text below)"
        cv2.putText(strip, f"{score:6.3f}  {text}"[:60], (12, y), _FONT, 0.45, (30, 30, 30), 1, cv2.LINE_AA)
    return np.vstack([image, strip])


def _outline(image: Image, corners: NDArray, color: Color, thickness: int, dashed: bool) -> None:
    x1, y1, x2, y2 = (int(v) for v in corners)
    if not dashed:
        cv2.rectangle(image, (x1, y1), (x2, y2), color, thickness, cv2.LINE_AA)
        return
    for (ax, ay), (bx, by) in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
        length = max(abs(bx - ax), abs(by - ay))
        for start in range(0, max(length, 1), 15):  # 8 on, 7 off; the pen widens each end by half its width
            f, g = start / max(length, 1), min(start + 8, length) / max(length, 1)
            a, b = (
                (round(ax + (bx - ax) * f), round(ay + (by - ay) * f)),
                (round(ax + (bx - ax) * g), round(ay + (by - ay) * g)),
            )
            cv2.line(image, a, b, color, thickness)


def _label(image: Image, corners: NDArray, text: str, color: Color, taken: list[tuple[int, int, int, int]]) -> None:
    """Write the label above the box, or inside, or below: the first place inside the image that is still free."""
    (w, h), below = cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)
    w, h = w + 6, h + below + 4
    x = int(min(max(corners[0] - 1, 0), max(image.shape[1] - w, 0)))
    places = [int(y) for y in (corners[1] - h, corners[1], corners[3], corners[3] - h) if 0 <= y <= image.shape[0] - h]
    free = [y for y in places if not any(x < r[2] and r[0] < x + w and y < r[3] and r[1] < y + h for r in taken)]
    y = (free or places or [0])[0]
    taken.append((x, y, x + w, y + h))
    cv2.rectangle(image, (x, y), (x + w, y + h), color, -1)
    bright = 0.114 * color[0] + 0.587 * color[1] + 0.299 * color[2] > 130  # luma of ITU-R BT.601
    ink = (0, 0, 0) if bright else (255, 255, 255)
    cv2.putText(image, text, (x + 3, y + h - below - 1), _FONT, _FONT_SCALE, ink, 1, cv2.LINE_AA)


def _encode(images: list[Image], max_bytes: int) -> tuple[bytes, ...]:
    """JPEG files, all at one quality and one size, so that a comparison of two panels is fair."""
    while True:
        for quality in QUALITIES:
            files = []
            for image in images:
                ok, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
                if not ok:
                    raise ValueError(f"OpenCV could not encode a picture of shape {image.shape}")
                files.append(data.tobytes())
            if max(map(len, files)) <= max_bytes or min(images[0].shape[:2]) < 32:
                return tuple(files)
        images = [cv2.resize(i, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA).astype(np.uint8) for i in images]
