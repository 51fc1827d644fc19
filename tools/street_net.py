"""The network behind `street_detector.onnx`: plain 3x3 and 1x1 convolutions with ReLU, two levels, an anchor-free head.

    3 -16-> /2 -32-> /4 -48,48,48-> /8 -80,80,80-> /16        backbone; numbers are channels
    /16 -48-> head;   upsampled and joined with /8 -48-> head   neck

The head is decoupled as in YOLOX (Ge et al. 2021, arXiv:2107.08430): one 3x3 tower for the class scores, one for the
box and the objectness. Per cell: (tx, ty, log w, log h, objectness, class scores), where

    cx = (grid_x + tx) * stride     w = exp(log w) * stride

Network, assignment, loss and export are separate functions.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from roadworthy.data.preprocess import Preprocess
from roadworthy.data.street import CLASS_NAMES, HEIGHT, WIDTH
from roadworthy.detect.spec import DecodeSpec

STRIDES = (8, 16)
CLASSES = len(CLASS_NAMES)


class ConvRelu(nn.Module):
    """Convolution, batch norm, ReLU; the norm is folded away on export."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class StreetNet(nn.Module):
    """(B, 3, H, W) in 0..1 -> (B, N, 5 + classes) raw values: no sigmoid, no grid; levels finest first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvRelu(3, 16, stride=2), ConvRelu(16, 32, stride=2))
        self.fine = nn.Sequential(ConvRelu(32, 48, stride=2), ConvRelu(48, 48), ConvRelu(48, 48))
        self.coarse = nn.Sequential(ConvRelu(48, 80, stride=2), ConvRelu(80, 80), ConvRelu(80, 80))
        self.lateral = ConvRelu(80, 48, 1)
        self.join = ConvRelu(96, 48, 1)
        self.box_tower = nn.ModuleList(ConvRelu(48, 48) for _ in STRIDES)
        self.class_tower = nn.ModuleList(ConvRelu(48, 48) for _ in STRIDES)
        self.box = nn.ModuleList(nn.Conv2d(48, 4, 1) for _ in STRIDES)
        self.objectness = nn.ModuleList(nn.Conv2d(48, 1, 1) for _ in STRIDES)
        self.classes = nn.ModuleList(nn.Conv2d(48, CLASSES, 1) for _ in STRIDES)
        for layer in [*self.objectness, *self.classes]:
            nn.init.constant_(layer.bias, -4.0)  # begin with few detections (focal-loss paper, arXiv:1708.02002)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(self.stem(x))
        deep = self.lateral(self.coarse(fine))
        fine = self.join(torch.cat([F.interpolate(deep, scale_factor=2.0, mode="nearest"), fine], 1))
        rows = []
        for level, feature in enumerate((fine, deep)):
            boxes = self.box_tower[level](feature)
            scores = self.classes[level](self.class_tower[level](feature))
            cell = torch.cat([self.box[level](boxes), self.objectness[level](boxes), scores], 1)
            rows.append(cell.flatten(2).transpose(1, 2).float())
        return torch.cat(rows, 1)


def grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Cell corners (N, 2) in cells and strides (N, 1) in pixels."""
    cells, strides = [], []
    for stride in STRIDES:
        y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        cells.append(torch.stack([x, y], -1).reshape(-1, 2).float())
        strides.append(torch.full((cells[-1].shape[0], 1), float(stride)))
    return torch.cat(cells), torch.cat(strides)


def to_xyxy(raw: Tensor, cells: Tensor, strides: Tensor) -> Tensor:
    """(..., N, 4) raw box values -> corners in pixels."""
    center = (raw[..., :2] + cells) * strides
    half = raw[..., 2:4].clamp(max=6.0).exp() * strides / 2
    return torch.cat([center - half, center + half], -1)


def pair_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (..., 4) that broadcast against each other."""
    inter = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    area_a = (a[..., 2:] - a[..., :2]).prod(-1)
    area_b = (b[..., 2:] - b[..., :2]).prod(-1)
    return inter / (area_a + area_b - inter + 1e-7)


@torch.no_grad()
def assign(
    raw: Tensor, boxes: Tensor, truth: Tensor, classes: Tensor, valid: Tensor, cells: Tensor, strides: Tensor
) -> tuple[Tensor, Tensor]:
    """SimOTA (arXiv:2107.08430, 2.1), batched: which cell learns which labelled box.

    raw (B, N, 5 + C), boxes (B, N, 4) predicted; truth (B, G, 4), classes (B, G), valid (B, G) labelled.
    Returns owner (B, N), index of the box or -1, and the IoU with it (B, N).
    """
    center = ((cells + 0.5) * strides)[None, None]  # 1,1,N,2
    low, high = truth[:, :, None, :2], truth[:, :, None, 2:]
    inside = ((center > low) & (center < high)).all(-1)
    near = ((center - (low + high) / 2).abs() < 1.5 * strides[None, None]).all(-1)
    candidate = (inside | near) & valid[:, :, None]  # B,G,N
    iou = pair_iou(boxes[:, None], truth[:, :, None]) * candidate
    score = (raw[..., 4:5].sigmoid() * raw[..., 5:].sigmoid()).sqrt().clamp(1e-4, 1 - 1e-4)  # B,N,C
    negative = -torch.log1p(-score)
    gain = torch.log(score) + negative  # bce(one hot c) = sum(negative) - negative_c - log(score_c)
    class_cost = negative.sum(-1)[:, None] - gain.transpose(1, 2).gather(
        1, classes[:, :, None].expand(-1, -1, raw.shape[1])
    )
    cost = class_cost - 3.0 * torch.log(iou + 1e-8) + 1e4 * ~(inside & near) + 1e8 * ~candidate
    count = iou.topk(10, -1).values.sum(-1).int().clamp(min=1)  # dynamic k
    best = cost.topk(10, -1, largest=False)
    chosen = (torch.arange(10) < count[..., None]) & (best.values < 1e7)
    picked = torch.zeros_like(cost, dtype=torch.bool).scatter_(-1, best.indices, chosen)
    owner = torch.where(picked, cost, torch.inf).min(1)
    index = torch.where(owner.values < torch.inf, owner.indices, -1)
    return index, iou.gather(1, index.clamp(min=0)[:, None]).squeeze(1)


def loss(raw: Tensor, truth: Tensor, classes: Tensor, valid: Tensor, ignore: Tensor) -> Tensor:
    """GIoU (arXiv:1902.09630) and L1 on assigned cells, BCE on objectness everywhere but inside ignored boxes, BCE on
    classes with the IoU as the target. truth (B, G, 4) pixels, classes, valid, ignore (B, G)."""
    cells, strides = grid(HEIGHT, WIDTH)
    boxes = to_xyxy(raw[..., :4], cells, strides)
    owner, iou = assign(raw.detach(), boxes.detach(), truth, classes, valid & ~ignore, cells, strides)
    hit = owner >= 0
    total = hit.sum().clamp(min=1)
    center = (cells + 0.5) * strides
    hidden = (center[None, None] > truth[:, :, None, :2]) & (center[None, None] < truth[:, :, None, 2:])
    free = (hidden.all(-1) & (ignore & valid)[:, :, None]).any(1) & ~hit
    obj = F.binary_cross_entropy_with_logits(raw[..., 4], hit.float(), reduction="none")[~free].sum()
    image = torch.arange(len(raw))[:, None].expand_as(owner)[hit]
    target, predicted = truth[image, owner[hit]], boxes[hit]
    one_hot = F.one_hot(classes[image, owner[hit]], CLASSES) * iou[hit][:, None]
    cls = F.binary_cross_entropy_with_logits(raw[..., 5:][hit], one_hot, reduction="sum")
    overlap = pair_iou(predicted, target)
    hull = torch.maximum(predicted[:, 2:], target[:, 2:]) - torch.minimum(predicted[:, :2], target[:, :2])
    sizes = (predicted[:, 2:] - predicted[:, :2]).prod(-1), (target[:, 2:] - target[:, :2]).prod(-1)
    union = (sizes[0] + sizes[1]) / (1 + overlap)
    giou = overlap - 1 + union / (hull.prod(-1) + 1e-7)
    step = strides.expand(len(cells), 1)[None].expand(len(raw), -1, -1)[hit]
    cell = cells[None].expand(len(raw), -1, -1)[hit]
    size = (target[:, 2:] - target[:, :2]).clamp(min=1.0)
    wish = torch.cat([(target[:, :2] + target[:, 2:]) / 2 / step - cell, torch.log(size / step)], 1)
    l1 = F.l1_loss(raw[..., :4][hit], wish, reduction="sum")
    return (5.0 * (1 - giou).sum() + 0.5 * l1 + obj + cls) / total


def folded(layer: ConvRelu) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias of the convolution with its batch norm absorbed."""
    norm = layer.norm
    assert norm.running_var is not None and norm.running_mean is not None
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = layer.conv.weight.double() * factor[:, None, None, None]
    bias = norm.bias.double() - norm.running_mean.double() * factor
    return weight.detach().numpy(), bias.detach().numpy()


def export(net: StreetNet, path: Path) -> None:
    """Write the network as ONNX: Conv, Relu, Resize, Concat, Sigmoid, Reshape, Transpose; input BGR 0..255.

    The division by 255 is folded into the first convolution; the task is written into the metadata.
    """
    net = copy.deepcopy(net).eval()
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def add(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(name: str, value: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def conv(x: str, name: str, layer: ConvRelu | nn.Conv2d) -> str:
        if isinstance(layer, ConvRelu):
            module, (weight, bias) = layer.conv, folded(layer)
        else:
            module, weight = layer, layer.weight.detach().double().numpy()
            assert layer.bias is not None
            bias = layer.bias.detach().double().numpy()
        if x == "images":
            weight = weight / 255.0
        kernel, stride = module.kernel_size[0], module.stride[0]
        inputs = [x, constant(f"{name}.weight", weight.astype(np.float32))]
        inputs.append(constant(f"{name}.bias", bias.astype(np.float32)))
        shape = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        y = add("Conv", inputs, f"{name}.conv", **shape)
        return add("Relu", [y], name) if isinstance(layer, ConvRelu) else y

    def chain(x: str, name: str, layers: nn.Sequential) -> str:
        for i, layer in enumerate(layers):
            assert isinstance(layer, ConvRelu)
            x = conv(x, f"{name}.{i}", layer)
        return x

    fine = chain(chain("images", "stem", net.stem), "fine", net.fine)
    deep = conv(chain(fine, "coarse", net.coarse), "lateral", net.lateral)
    scales = constant("twice", np.array([1, 1, 2, 2], np.float32))
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    wide = add("Resize", [deep, "", scales], "upsampled", **nearest)
    fine = conv(add("Concat", [wide, fine], "joined", axis=1), "join", net.join)
    levels = []
    for i, feature in enumerate((fine, deep)):
        name = f"head{STRIDES[i]}"
        tower = conv(feature, f"{name}.box_tower", net.box_tower[i])  # type: ignore[arg-type]
        other = conv(feature, f"{name}.class_tower", net.class_tower[i])  # type: ignore[arg-type]
        box = conv(tower, f"{name}.box", net.box[i])  # type: ignore[arg-type]
        obj = add("Sigmoid", [conv(tower, f"{name}.objectness", net.objectness[i])], f"{name}.objectness")  # type: ignore[arg-type]
        cls = add("Sigmoid", [conv(other, f"{name}.classes", net.classes[i])], f"{name}.classes")  # type: ignore[arg-type]
        cell = add("Concat", [box, obj, cls], f"{name}.cells", axis=1)
        shape = constant(f"{name}.shape", np.array([1, 5 + CLASSES, -1], np.int64))
        levels.append(add("Reshape", [cell, shape], f"{name}.flat"))
    add("Transpose", [add("Concat", levels, "levels", axis=2)], "output", perm=[0, 2, 1])

    count = sum((HEIGHT // s) * (WIDTH // s) for s in STRIDES)
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, count, 5 + CLASSES])
    graph = helper.make_graph(nodes, "street_detector", [image], [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.producer_name = "roadworthy"
    preprocess = Preprocess(size_hw=(HEIGHT, WIDTH))
    decode = DecodeSpec(
        "yolox", num_classes=CLASSES, input_hw=(HEIGHT, WIDTH), strides=STRIDES, class_names=CLASS_NAMES
    )
    task = {"version": 1, "preprocess": asdict(preprocess), "decode": asdict(decode)}
    helper.set_model_props(model, {"roadworthy.task": json.dumps(task)})
    onnx.checker.check_model(model, full_check=True)
    part = path.with_suffix(".part")
    onnx.save(model, str(part))
    part.replace(path)
