"""`Detector`: a plan with its task, from an image to `Detections` or class probabilities in one native call.

    detector = Detector("yolox.rwp", threads=2)
    detections = detector.detect(cv2.imread("street.jpg"))

Preparing the image, the network, decoding and NMS all run in C++ (native/detect). Only where the task resizes by
another interpolation than linear is the tensor prepared here, by the same `Preprocess` as everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roadworthy.data.preprocess import Geometry, Preprocess
from roadworthy.detect.detections import Detections
from roadworthy.errors import InputError
from roadworthy.model.task import Task
from roadworthy.run.native.runner import engine
from roadworthy.run.native.task_text import task_of


class Detector:
    """Runs a plan on images. Calls from several threads take turns; use one detector per thread for more.

    plan: a path to a .rwp file, or its bytes.   threads: 0 uses every core.   score_threshold, iou_threshold,
    max_detections: instead of the task's.   isa, pin: see `_native.Session`.
    Raises InputError for a plan that is damaged or has no task, and for thresholds that make no sense;
    MissingExtraError where the native engine is not built.
    """

    def __init__(
        self,
        plan: str | Path | bytes,
        threads: int = 0,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        isa: str = "",
        pin: bool = False,
    ) -> None:
        native = engine()
        if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
            raise InputError(f"threads is {threads!r}; give a whole number, 0 for every core")
        data, where = (plan, "the plan") if isinstance(plan, bytes) else (_read(Path(plan)), f"the plan {plan}")
        try:
            self._session: Any = native.ImageSession(data, threads, isa, pin)
        except ValueError as error:
            raise InputError(f"{where} cannot be used on images: {error}") from error
        self.task: Task = task_of(self._session.text.decode("utf-8", "replace"), where)
        spec = self.task.decode
        score = _fraction("score_threshold", spec.score_threshold if score_threshold is None else score_threshold)
        iou = _fraction("iou_threshold", spec.iou_threshold if iou_threshold is None else iou_threshold)
        most = spec.max_detections if max_detections is None else max_detections
        if isinstance(most, bool) or not isinstance(most, int) or most < 0:
            raise InputError(f"max_detections is {most!r}; give a whole number of 0 or more")
        self._limits = native.Limits(score, iou, min(most, 1 << 30))

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, or numbers where the task has none."""
        return self.task.names

    @property
    def isa(self) -> str:
        return str(self._session.isa)

    @property
    def threads(self) -> int:
        return int(self._session.threads)

    def detect(self, image_bgr: NDArray[np.uint8]) -> Detections:
        """Detections in one image, best first, in pixels of the image and clipped to it.

        image_bgr: (H, W, 3) uint8, blue first, as cv2.imread gives it; rows may have gaps, as in a crop.
        Raises InputError for anything else, and for a network whose outputs are broken (NaN, scores above 1).
        """
        image = _checked(image_bgr)
        try:
            if self._session.supports(*image.shape[:2]):
                return Detections(*self._session.detect(image, self._limits))
            tensor, at = self._prepare(image)
            found = self._session.detect_tensor(tensor, at.ratio_xy, at.offset_xy, at.image_hw, self._limits)
            return Detections(*found)
        except ValueError as error:
            raise InputError(str(error)) from error

    def classify(self, image_bgr: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class probabilities (C,) float32 of one image, for a plan whose task is `classify`; see `top`."""
        image = _checked(image_bgr)
        try:
            if self._session.supports(*image.shape[:2]):
                return np.asarray(self._session.classify(image))
            return np.asarray(self._session.classify_tensor(self._prepare(image)[0]))
        except ValueError as error:
            raise InputError(str(error)) from error

    def top(self, image_bgr: NDArray[np.uint8], count: int = 5) -> list[tuple[str, float]]:
        """The most probable classes of one image as (name, probability), best first."""
        if count < 1:
            raise InputError(f"the number of classes is {count}; give 1 or more")
        probabilities = self.classify(image_bgr)
        names = self.names or tuple(map(str, range(len(probabilities))))
        best = np.argsort(-probabilities, kind="stable")[:count]
        return [(names[k], float(probabilities[k])) for k in best]

    def _prepare(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Geometry]:
        preprocess: Preprocess = self.task.preprocess
        tensor, geometry = preprocess(image)
        return np.ascontiguousarray(tensor), geometry


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"the plan {path} cannot be read: {error.strerror or error}") from error


def _fraction(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:  # NaN is not within
        raise InputError(f"{name} is {value!r}; give a fraction from 0 to 1")
    return float(value)


def _checked(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image as the engine reads it: whole pixels side by side."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        what = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"an image is {what}; give uint8 of shape (height, width, 3) in BGR")
    if not image.size:
        raise InputError(f"an image has the shape {image.shape} and no pixels; give one that was read completely")
    if image.strides[1:] != (3, 1) or image.strides[0] < 3 * image.shape[1]:
        return np.ascontiguousarray(image)
    return image
