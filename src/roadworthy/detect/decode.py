"""From the outputs of a network to `Detections`, or to class probabilities.

    decode -> score threshold -> best CANDIDATES -> NMS -> boxes to the image

Each family keeps the convention of its own evaluation: YOLOX and FastestDet give every box its best class only; the
others let a box stand for every class whose score passes, which matters at the low thresholds used for mAP.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from roadworthy.detect import heads
from roadworthy.detect.detections import Detections
from roadworthy.detect.heads import Decoded, Outputs
from roadworthy.detect.nms import nms
from roadworthy.detect.spec import DecodeSpec
from roadworthy.detect.ssd import ssd
from roadworthy.errors import InputError

DECODERS: dict[str, Callable[[Outputs, DecodeSpec], Decoded]] = {
    "yolox": heads.yolox,
    "yolov5": heads.yolov5,
    "yolov3": heads.yolov3,
    "yolov8": heads.yolov8,
    "dfl": heads.dfl,
    "nanodet_plus": heads.nanodet_plus,
    "fastestdet": heads.fastestdet,
    "ssd": ssd,
}
BEST_CLASS_ONLY = {"yolox", "fastestdet"}
CANDIDATES = 3000  # pairs of box and class that enter NMS at most, best first
SCORE_SLACK = 0.05  # an int8 score may lie a rounding step above 1; more means that logits were not declared


def decode(outputs: Outputs, spec: DecodeSpec) -> Decoded:
    """All boxes (N, 4) float32 in input pixels and scores (N, C) float32, before threshold and NMS.

    Raises InputError when the kind has no decoder or an output does not have the shape that the kind expects.
    """
    if spec.kind not in DECODERS:
        hint = "; use classify()" if spec.kind == "classify" else f"; use one of {', '.join(DECODERS)}"
        raise InputError(f"kind {spec.kind!r} does not decode to boxes{hint}")
    if spec.num_classes < 1:
        raise InputError(f"{spec.kind}: num_classes is {spec.num_classes}; say how many classes the network scores")
    return DECODERS[spec.kind](outputs, spec)


def detect(
    outputs: Outputs,
    spec: DecodeSpec,
    to_image: Callable[[NDArray], NDArray] | None = None,
    score_threshold: float | None = None,
    max_detections: int | None = None,
) -> Detections:
    """Detections of one image, best first.

    outputs: name -> array as the network gave them, batch 1.   to_image: takes (N, 4) boxes in input pixels to pixels
    of the image; None leaves them; clipping is the caller's.   score_threshold, max_detections: instead of the
    spec's; for mAP give a threshold of 0.01 or lower.
    Raises InputError for outputs of a wrong shape, and for scores above 1, which are undeclared logits.
    """
    threshold = spec.score_threshold if score_threshold is None else score_threshold
    limit = spec.max_detections if max_detections is None else max_detections
    boxes, scores = decode(outputs, spec)
    if spec.kind in BEST_CLASS_ONLY:
        best = scores.max(axis=1)
        rows = np.flatnonzero(best >= threshold)
        values, classes = best[rows], scores[rows].argmax(axis=1)
    else:
        scores = np.ascontiguousarray(scores)
        pairs = np.flatnonzero(scores.reshape(-1) >= threshold)
        values = scores.reshape(-1)[pairs]
        rows, classes = np.divmod(pairs, scores.shape[1])
    if len(values) and values.max() > 1 + SCORE_SLACK:
        raise InputError(
            f"{spec.kind}: a score is {values.max():.3g}, above 1; set scores_are_logits if the graph has no sigmoid"
        )
    if len(values) > CANDIDATES:
        top = np.sort(np.argpartition(-values, CANDIDATES)[:CANDIDATES])
        values, rows, classes = values[top], rows[top], classes[top]
    chosen = boxes[rows]
    if not np.isfinite(chosen).all():
        raise InputError(f"{spec.kind}: a decoded box is not finite; the model's box outputs are broken")
    keep = nms(chosen, values, classes, spec.iou_threshold, limit)
    chosen = chosen[keep] if to_image is None else to_image(chosen[keep])
    return Detections(chosen, np.minimum(values[keep], np.float32(1)), classes[keep])


def classify(outputs: Outputs, spec: DecodeSpec) -> NDArray[np.float32]:
    """Class probabilities (C,) float32 of one image, from (1, C), (C,) or (1, C, 1, 1); softmax where logits.

    A background column (`spec.background`) is removed after the softmax.
    Raises InputError when no single output has the expected number of classes.
    """
    found = heads.arrays(outputs, spec)
    columns = spec.num_classes + (spec.background is not None)
    match = [array for _, array in found if array.ndim and (array.size == columns or not spec.num_classes)]
    match = [array for array in match if array.size == max(array.shape)]
    if len(match) != 1:
        raise heads.refuse(found, spec, f"one of (1, {columns if spec.num_classes else 'C'})")
    scores = np.asarray(match[0], np.float32).reshape(-1)
    if spec.scores_are_logits:
        scores = heads.softmax(scores)
    return scores if spec.background is None else np.delete(scores, spec.background)
