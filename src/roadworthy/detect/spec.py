"""`DecodeSpec`: how the outputs of a network become results. The decoding half of the task contract."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DecodeSpec:
    """How outputs become results; plain values only, so that it can be written as YAML or JSON.

    kind: a key of `DECODERS` ("yolox", "yolov5", "yolov3", "yolov8", "dfl", "nanodet_plus", "fastestdet", "ssd"), or
        "classify", or "raw" for outputs that are not interpreted.
    num_classes: number of classes the network scores, background excluded.
    input_hw: (height, width) of the input tensor in pixels.
    strides: pixels per grid cell of each level, finest first; empty where the decoder needs none.
    anchors: per level, the (width, height) pairs in input pixels; empty for anchor-free decoders.
    decoded: boxes are already in input pixels in the graph (grid, stride and exp done there).
    scores_are_logits: a sigmoid (or softmax, for classify and with a background) is still to be applied to the
        scores; true for raw yolov5 and yolov3 heads, whose sigmoid is outside the graph.
    reg_max: number of bins minus one of a distribution head (7 for NanoDet and PicoDet); 0: plain distances.
    box_format: "xyxy", "yxyx" or "cxcywh"; what the box columns of "ssd" mean.
    normalized: boxes are fractions of the input side instead of pixels (ssd, yolov8, decoded yolov5).
    background: index of the background column in the scores (ssd, classify), or None.
    outputs: names of the outputs in the order the decoder wants; empty means: found by shape.
    class_names: may be empty; then classes are called by number.
    score_threshold: lowest score kept when results are shown, and the operating point of recall.
    iou_threshold: overlap above which NMS drops the weaker of two boxes of one class.
    max_detections: at most so many results per image.
    """

    kind: str
    num_classes: int = 0
    input_hw: tuple[int, int] = (0, 0)
    strides: tuple[int, ...] = ()
    anchors: tuple[tuple[tuple[float, float], ...], ...] = ()
    decoded: bool = False
    scores_are_logits: bool = False
    reg_max: int = 0
    box_format: str = "xyxy"
    normalized: bool = False
    background: int | None = None
    outputs: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    score_threshold: float = 0.3
    iou_threshold: float = 0.65
    max_detections: int = 100
