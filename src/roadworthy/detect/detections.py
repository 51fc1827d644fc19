"""`Detections`: what a detector says about one image. `Truth`: what the labels say about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections in one image, best first or in any order; validated on construction.

    boxes_xyxy: (N, 4) float32, corners in pixels of the original image (x right, y down, x1 <= x2).
    scores: (N,) float32 in 0..1.   classes: (N,) int64, 0-based.   track_ids: (N,) int64 or None.
    Raises ValueError when shapes disagree or a value is not finite.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    track_ids: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes_xyxy, np.float32).reshape(-1, 4)
        scores = np.asarray(self.scores, np.float32).reshape(-1)
        classes = np.asarray(self.classes, np.int64).reshape(-1)
        if not len(boxes) == len(scores) == len(classes):
            raise ValueError(f"{len(boxes)} boxes, {len(scores)} scores and {len(classes)} classes do not match")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError("a box or a score is not finite")
        object.__setattr__(self, "boxes_xyxy", boxes)
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "classes", classes)
        if self.track_ids is not None:
            ids = np.asarray(self.track_ids, np.int64).reshape(-1)
            if len(ids) != len(boxes):
                raise ValueError(f"{len(boxes)} boxes and {len(ids)} track ids do not match")
            object.__setattr__(self, "track_ids", ids)

    def __len__(self) -> int:
        return len(self.scores)

    def keep(self, index: NDArray) -> Detections:
        """The detections chosen by a boolean mask or an index array."""
        ids = None if self.track_ids is None else self.track_ids[index]
        return Detections(self.boxes_xyxy[index], self.scores[index], self.classes[index], ids)

    @staticmethod
    def empty() -> Detections:
        return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


@dataclass(frozen=True, eq=False)
class Truth:
    """Labelled boxes of one image.

    boxes_xyxy: (N, 4) float32 pixels.   classes: (N,) int64, 0-based.
    areas: (N,) float32 square pixels (COCO's own `area` where the labels carry it, else the box's).
    ignore: (N,) bool, true for crowd or difficult boxes, which count neither as hit nor as miss.
    """

    boxes_xyxy: NDArray[np.float32]
    classes: NDArray[np.int64]
    areas: NDArray[np.float32]
    ignore: NDArray[np.bool_]

    @staticmethod
    def of(boxes_xyxy: NDArray, classes: NDArray, areas: NDArray | None = None, ignore: NDArray | None = None) -> Truth:
        """Build from boxes and classes; areas default to the boxes' own, ignore to none."""
        boxes = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
        if areas is None:
            areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        if ignore is None:
            ignore = np.zeros(len(boxes), bool)
        return Truth(boxes, np.asarray(classes, np.int64).reshape(-1), np.asarray(areas, np.float32), ignore)

    def __len__(self) -> int:
        return len(self.classes)
