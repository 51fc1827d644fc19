"""Recognizing the task of a network from its graph: what its outputs are, and which preprocessings would fit.

Only what shapes and topology prove is claimed. The output of YOLOX and the output of NanoDet have the same rank and
the same number of rows; what tells them apart is what is joined to make them, so the tail of the graph is walked back
to its leaves. What the graph cannot say (colour order, scaling) is listed as candidates, for a measurement to decide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from roadworthy.data.preprocess import Preprocess
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.model import Model

STRIDE_SETS = ((8, 16, 32), (8, 16, 32, 64), (8, 16), (16, 32), (4, 8, 16), (4, 8, 16, 32), (16,), (8,), (32,))
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COCO_ANCHORS = {
    # Published with YOLOv3 and YOLOv5 (width, height in pixels of the input), strides 8, 16, 32.
    "yolov5": (((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119)), ((116, 90), (156, 198), (373, 326))),
    "yolov3": (((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 119)), ((116, 90), (156, 198), (373, 326))),
}  # fmt: skip


_MOVES = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast")


@dataclass(frozen=True)
class Guess:
    """What a graph admits: one way to decode, and the preprocessings known for that family, the usual one first."""

    decode: DecodeSpec
    preprocess: tuple[Preprocess, ...]
    why: str


@dataclass(frozen=True)
class Leaf:
    """A tensor joined into an output: its number of channels, and the operator that made it."""

    channels: int
    op: str


def recognize(model: Model, num_classes: int | None = None) -> Guess | None:
    """The task that the graph proves, or None where it is not certain.

    num_classes: as the labels tell; it settles shapes that fit two families.
    """
    shapes = _output_shapes(model)
    if shapes is None:
        return None
    hw = image_hw(model)
    found = None
    if len(shapes) == 1:
        shape = shapes[0]
        if (len(shape) == 2 and shape[1] > 1) or (len(shape) == 4 and shape[2:] == (1, 1) and shape[1] > 1):
            found = _classifier(model, shape[1])
        elif len(shape) == 3:
            found = _rows(model, shape, hw, num_classes)
        elif len(shape) == 4:
            found = _fastestdet(model, shape, hw)
    elif hw is not None:
        found = _distribution_levels(model, shapes, hw, num_classes)
    if found is None or hw is None:
        return None
    decode, why = found
    decode = replace(decode, input_hw=hw)
    if num_classes is not None and decode.kind != "raw" and decode.num_classes != num_classes:
        why += f"; the labels know {num_classes} classes"
    return Guess(decode, preprocessings(decode.kind, model), why)


def _output_shapes(model: Model) -> list[tuple[int, ...]] | None:
    shapes = [g.static_shape(v) for v in g.outputs(model.ir)]
    return None if any(s is None for s in shapes) else [s for s in shapes if s is not None]


def image_hw(model: Model) -> tuple[int, int] | None:
    """Height and width of the input image, or None when the input is no image."""
    shape = model.input_shape
    if len(shape) != 4:
        return None
    return (shape[1], shape[2]) if is_nhwc(model) else (shape[2], shape[3])


def is_nhwc(model: Model) -> bool:
    shape = model.input_shape
    return len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3)


def strides_for(cells: int, hw: tuple[int, int], per_cell: int = 1) -> tuple[int, ...] | None:
    """The set of strides whose grids together have this many cells, or None."""
    for strides in STRIDE_SETS:
        if any(hw[0] < s or hw[1] < s for s in strides):
            continue
        if per_cell * sum(-(-hw[0] // s) * -(-hw[1] // s) for s in strides) == cells:
            return strides
    return None


def leaves(value: g.Value, limit: int = 64) -> list[Leaf]:
    """The tensors that are joined to make a value, found by walking back over moves and Concats."""
    found: list[Leaf] = []
    stack = [value]
    while stack and len(found) < limit:
        v = stack.pop()
        maker = v.producer()
        if maker is None or g.constant(v) is not None:
            continue
        if maker.op_type == "Concat":
            stack.extend(reversed([i for i in maker.inputs if i is not None]))
        elif maker.op_type in _MOVES:
            if maker.inputs[0] is not None:
                stack.append(maker.inputs[0])
        else:
            source = maker.inputs[0] if maker.op_type in ("Sigmoid", "Softmax") else v
            channels = _channels(source)
            found.append(Leaf(channels, maker.op_type))
    return found


def _joined(value: g.Value) -> list[Leaf]:
    """The parts of the Concat that makes an output, with their length along its axis."""
    maker = value.producer()
    if maker is None or maker.op_type != "Concat":
        return []
    axis = g.attribute(maker, "axis", 1)
    found = []
    for part in maker.inputs:
        shape, made_by = g.static_shape(part), part.producer() if part is not None else None
        while made_by is not None and made_by.op_type in _MOVES and made_by.inputs[0] is not None:
            made_by = made_by.inputs[0].producer()
        if shape is None:
            return []
        found.append(Leaf(shape[axis], made_by.op_type if made_by is not None else ""))
    return found


def _behind_sigmoid(value: g.Value) -> bool:
    """Whether a Sigmoid was applied to an output, moves aside."""
    maker = value.producer()
    while maker is not None and maker.op_type in _MOVES:
        maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
    return maker is not None and maker.op_type in ("Sigmoid", "Sqrt", "Mul")


def _channels(value: g.Value | None) -> int:
    """Channels of a tensor, looking through moves to the convolution that made it."""
    while value is not None:
        maker = value.producer()
        if maker is None:
            return 0
        if maker.op_type == "Conv":
            weight = g.constant(maker.inputs[1])
            return 0 if weight is None else int(weight.shape[0])
        if maker.op_type not in ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Sigmoid",
                                 "Softmax", "Mul"):  # fmt: skip
            return 0
        value = maker.inputs[0]
    return 0


def _classifier(model: Model, classes: int) -> tuple[DecodeSpec, str] | None:
    maker = g.outputs(model.ir)[0].producer()
    while maker is not None and maker.op_type in _MOVES:
        maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
    logits = maker is None or maker.op_type not in ("Softmax", "Sigmoid")
    why = f"one score for each of {classes} classes, as {'logits' if logits else 'probabilities'}"
    return DecodeSpec("classify", num_classes=classes, scores_are_logits=logits), why


def _rows(
    model: Model, shape: tuple[int, ...], hw: tuple[int, int] | None, num_classes: int | None
) -> tuple[DecodeSpec, str] | None:
    if hw is None:
        return None
    _, a, b = shape
    # Channels first: YOLOv8 and its successors, no objectness.
    strides = strides_for(b, hw)
    if strides is not None and a > 4 and a < b:
        joined = _joined(g.outputs(model.ir)[0])
        proven = sorted(p.channels for p in joined) == sorted((4, a - 4)) and any(p.op == "Sigmoid" for p in joined)
        if num_classes not in (None, a - 4) or not (proven or num_classes == a - 4):
            return None
        return (
            DecodeSpec("yolov8", num_classes=a - 4, strides=strides, decoded=True),
            f"{a} rows of 4 box values and {a - 4} scores for the {b} cells of strides {_list(strides)}",
        )
    columns = b
    strides = strides_for(a, hw, 3)
    if strides is not None and columns > 5 and _is_decoded(model, a):
        return (
            DecodeSpec("yolov5", num_classes=columns - 5, strides=strides, decoded=True, iou_threshold=0.6),
            f"3 decoded boxes for each cell of strides {_list(strides)}",
        )
    strides = strides_for(a, hw)
    if strides is None:
        return None
    parts = leaves(g.outputs(model.ir)[0])
    widths = [p.channels for p in parts]
    distribution = _distribution(columns, num_classes, widths)
    if widths and all(w in (4, 1, columns - 5) for w in widths) and 1 in widths and columns > 5:
        logits = not any(p.op == "Sigmoid" for p in parts)
        return (
            DecodeSpec("yolox", num_classes=columns - 5, strides=strides, scores_are_logits=logits),
            f"box, objectness and {columns - 5} scores joined for each cell of strides {_list(strides)}, no grid",
        )
    if distribution is not None:
        classes, reg_max = distribution
        logits = not any(p.op == "Sigmoid" and p.channels == classes for p in parts)
        kind = "nanodet_plus" if len(strides) == 4 else "dfl"
        return (
            DecodeSpec(kind, num_classes=classes, strides=strides, reg_max=reg_max, scores_are_logits=logits),
            f"{classes} scores and 4 distributions of {reg_max + 1} bins for each cell of strides {_list(strides)}",
        )
    if _is_decoded(model, a) and columns > 5 and num_classes in (None, columns - 5):
        return (
            DecodeSpec("yolox", num_classes=columns - 5, strides=strides, decoded=True),
            f"decoded box, objectness and {columns - 5} scores for each cell of strides {_list(strides)}",
        )
    return None


def _distribution(columns: int, num_classes: int | None, widths: list[int]) -> tuple[int, int] | None:
    """(classes, reg_max) when the columns are class scores and four distributions, and something proves the split."""
    for bins in (8, 17, 16):
        classes = columns - 4 * bins
        if classes < 1:
            continue
        split = bool(widths) and all(w in (classes, 4 * bins) for w in widths) and 4 * bins in widths
        if split or num_classes == classes or (classes == 80 and widths and set(widths) == {columns}):
            return classes, bins - 1
    return None


def _is_decoded(model: Model, rows: int) -> bool:
    """Whether grid offsets are added in the graph: a constant with one entry per row, or per cell of a level."""
    for node in g.nodes(model.ir):
        if node.op_type in ("Add", "Mul", "Sub"):
            for value in node.inputs:
                array = g.constant(value)
                if array is None or array.ndim < 2 or array.size < 32 or array.shape[-1] not in (1, 2):
                    continue
                if rows in array.shape or array.size * 3 >= rows // 32:
                    return True
    return False


def _fastestdet(model: Model, shape: tuple[int, ...], hw: tuple[int, int] | None) -> tuple[DecodeSpec, str] | None:
    if hw is None or shape[1] <= 5 or hw[0] % shape[2] or hw[0] // shape[2] != hw[1] // shape[3]:
        return None
    parts = leaves(g.outputs(model.ir)[0])
    if [(p.channels, p.op) for p in parts] != [(1, "Sigmoid"), (4, parts[1].op if len(parts) > 1 else ""),
                                               (shape[1] - 5, "Softmax")]:  # fmt: skip
        return None
    stride = hw[0] // shape[2]
    return (
        DecodeSpec("fastestdet", num_classes=shape[1] - 5, strides=(stride,), iou_threshold=0.45),
        f"objectness, box and softmax scores joined on one grid of stride {stride}",
    )


def _distribution_levels(
    model: Model, shapes: list[tuple[int, ...]], hw: tuple[int, int], num_classes: int | None
) -> tuple[DecodeSpec, str] | None:
    """PicoDet and NanoDet with one output per level and kind: class maps and distribution maps, in any order."""
    flat: list[tuple[int, int]] = []  # cells, channels
    for shape in shapes:
        if len(shape) == 3:
            flat.append((shape[1], shape[2]))
        elif len(shape) == 4:
            flat.append((shape[2] * shape[3], shape[1]))
        else:
            return None
    cells = sorted({c for c, _ in flat}, reverse=True)
    strides = strides_for(sum(cells), hw)
    if strides is None or len(flat) != 2 * len(cells) or len(cells) != len(strides):
        return None
    channels = [sorted(ch for c, ch in flat if c == n) for n in cells]
    if any(pair != channels[0] or len(pair) != 2 for pair in channels):
        return None
    for bins in (8, 17, 16):
        others = [ch for ch in channels[0] if ch != 4 * bins]
        if 4 * bins in channels[0] and len(others) == 1 and num_classes in (None, others[0]):
            maps = [v for v, (_, ch) in zip(g.outputs(model.ir), flat) if ch == others[0]]
            logits = not all(_behind_sigmoid(v) for v in maps)
            return (
                DecodeSpec("dfl", num_classes=others[0], strides=strides, reg_max=bins - 1, scores_are_logits=logits),
                f"a class map and a map of 4 distributions of {bins} bins for each of the strides {_list(strides)}",
            )
    return None


def _list(strides: tuple[int, ...]) -> str:
    return ", ".join(str(s) for s in strides)


def preprocessings(kind: str, model: Model) -> tuple[Preprocess, ...]:
    """The preprocessings that published models of a family use, the most common first."""
    hw = image_hw(model)
    if hw is None:
        raise InputError(
            f"the input of {model.source} has shape {model.input_shape}, which is no image; use --task raw"
        )
    channels = model.input_shape[3] if is_nhwc(model) else model.input_shape[1]
    base = Preprocess(size_hw=hw, layout="nhwc" if is_nhwc(model) else "nchw")
    if channels == 1:
        grey = replace(base, color="gray", resize="stretch", mean=(0.0,), std=(1.0,))
        return replace(grey, scale=1 / 255), grey, replace(grey, scale=1 / 127.5, mean=(1.0,))
    imagenet = replace(base, color="rgb", scale=1 / 255, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    unit = replace(base, color="rgb", scale=1 / 255)
    symmetric = replace(base, color="rgb", scale=1 / 127.5, mean=(1.0, 1.0, 1.0))
    if kind == "yolox":
        return base, replace(base, color="rgb"), imagenet, unit
    if kind in ("yolov3", "yolov5", "yolov8"):
        return (
            replace(unit, anchor="center"),
            replace(unit, resize="stretch"),
            replace(unit, color="bgr", anchor="center"),
        )
    if kind == "fastestdet":
        stretched = replace(base, resize="stretch", scale=1 / 255)
        return stretched, replace(stretched, color="rgb")
    if kind in ("dfl", "nanodet_plus"):
        bgr_mean = tuple(v * 1.0 for v in (0.406, 0.456, 0.485))
        bgr = replace(imagenet, color="bgr", mean=bgr_mean, std=(0.225, 0.224, 0.229))
        return (replace(imagenet, resize="stretch"), replace(bgr, resize="stretch"),
                replace(imagenet, resize="letterbox"), replace(bgr, resize="letterbox"))  # fmt: skip
    if kind == "ssd":
        return tuple(replace(p, resize="stretch") for p in (symmetric, imagenet, unit, replace(base, color="rgb")))
    rgb = (imagenet, symmetric, unit, replace(base, color="rgb"))
    kinds = (*rgb, *(replace(p, color="bgr", mean=p.mean[::-1], std=p.std[::-1]) for p in rgb))
    if min(hw) < 96:
        cifar = replace(unit, mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))
        return tuple(replace(p, resize="stretch") for p in (*kinds, cifar))
    short = int(np.ceil(min(hw) / 0.875))
    return tuple(replace(p, resize="crop", short_side=max(short, max(hw))) for p in kinds)


def decode_for(kind: str, model: Model, num_classes: int | None) -> DecodeSpec:
    """The decoder that a user named, filled in as far as the graph allows.

    Raises InputError when the outputs do not fit the family that was named, or a number is needed and unknown.
    """
    guess = recognize(model, num_classes)
    if guess is not None and guess.decode.kind == kind:
        return guess.decode
    hw = image_hw(model)
    if kind == "raw":
        return DecodeSpec("raw", input_hw=hw or (0, 0))
    shapes = _output_shapes(model) or []
    if hw is None:
        raise InputError(
            f"the input of {model.source} has shape {model.input_shape}, which is no image; use --task raw"
        )
    for classes in _class_counts(kind, shapes, num_classes):
        strides = _strides_of(kind, shapes, hw, classes)
        if kind in ("ssd", "classify") or strides is not None:
            return DecodeSpec(
                kind,
                num_classes=classes,
                input_hw=hw,
                strides=strides or (),
                anchors=COCO_ANCHORS.get(kind, ()) if len(shapes) > 1 and len(strides or ()) == 3 else (),
                decoded=kind in ("yolov8",) or (kind in ("yolov3", "yolov5") and len(shapes) == 1),
                scores_are_logits=kind == "classify",
                normalized=kind == "ssd",
                background=_background(shapes, classes) if kind == "ssd" else None,
                reg_max=7 if kind in ("dfl", "nanodet_plus") else 0,
            )
    told = ", ".join(str(list(s)) for s in shapes)
    raise InputError(
        f"the outputs of {model.source} ({told}) do not fit --task {kind}; describe them in a YAML file: --task FILE"
    )


def _class_counts(kind: str, shapes: list[tuple[int, ...]], known: int | None) -> list[int]:
    if known is not None:
        return [known]
    last = [s[-1] for s in shapes]
    if kind in ("yolox", "yolov5", "yolov3") and len(shapes) == 1 and len(shapes[0]) == 3:
        return [last[0] - 5]
    if kind in ("yolov5", "yolov3"):
        return [s[-1] - 5 if len(s) == 5 else s[1] // 3 - 5 for s in shapes[:1]]
    if kind == "yolov8" and len(shapes) == 1 and len(shapes[0]) == 3:
        return [min(shapes[0][1:]) - 4]
    if kind == "ssd":
        scores = [s for s in shapes if len(s) == 3 and s[-1] != 4]
        return [scores[0][-1] - (1 if scores[0][-1] in (21, 81, 91) else 0)] if scores else [0]
    if kind == "classify" and len(shapes) == 1:
        return [int(np.prod(shapes[0][1:]))]
    if kind == "fastestdet" and len(shapes) == 1 and len(shapes[0]) == 4:
        return [shapes[0][1] - 5]
    return [80]


def _background(shapes: list[tuple[int, ...]], classes: int) -> int | None:
    return 0 if any(len(s) == 3 and s[-1] == classes + 1 for s in shapes) else None


def _strides_of(kind: str, shapes: list[tuple[int, ...]], hw: tuple[int, int], classes: int) -> tuple[int, ...] | None:
    if kind in ("yolov3", "yolov5") and len(shapes) > 1:
        sizes = sorted((s[2] * s[3] for s in shapes if len(s) in (4, 5)), reverse=True)
        return strides_for(sum(sizes), hw)
    if len(shapes) == 1 and len(shapes[0]) == 3:
        rows = shapes[0][2] if kind == "yolov8" and shapes[0][1] == classes + 4 else shapes[0][1]
        return strides_for(rows, hw, 3 if kind in ("yolov3", "yolov5") else 1)
    if kind == "fastestdet" and len(shapes[0]) == 4:
        return (hw[0] // shapes[0][2],)
    if kind in ("dfl", "nanodet_plus"):
        cells = {s[1] if len(s) == 3 else s[2] * s[3] for s in shapes if len(s) in (3, 4)}
        return strides_for(sum(cells), hw)
    return None
