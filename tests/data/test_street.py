"""The street scenes: repeatable, labelled truly, as hard as promised; and the detector that is shipped with them."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from roadworthy.data import street, street_objects, street_scenery
from roadworthy.data.preprocess import Preprocess
from roadworthy.data.street import CLASS_NAMES, HEIGHT, WIDTH, scene
from roadworthy.data.street_canvas import Camera, Canvas
from roadworthy.data.street_light import weather_of
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError

DETECTOR = files("roadworthy.data") / "street_detector.onnx"
TOOLS = Path(__file__).resolve().parents[2] / "tools"
COUNT = 60


@pytest.fixture(scope="module")
def scenes() -> list:
    return [scene(i) for i in range(COUNT)]


# ---- the scenes


def test_a_scene_depends_on_index_and_seed_only(scenes: list) -> None:
    for i in (41, 3, 17):  # in another order than first drawn
        image, truth = scene(i)
        assert np.array_equal(image, scenes[i][0])
        assert np.array_equal(truth.boxes_xyxy, scenes[i][1].boxes_xyxy)
        assert np.array_equal(truth.ignore, scenes[i][1].ignore)


def test_a_scene_is_the_same_in_another_process(scenes: list) -> None:
    code = "import sys, zlib; from roadworthy.data.street import scene; print(zlib.crc32(scene(29)[0].tobytes()))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == zlib.crc32(scenes[29][0].tobytes())


def test_scenes_of_other_indices_and_seeds_differ(scenes: list) -> None:
    images = [scenes[0][0], scenes[1][0], scene(0, 1)[0], scene(1, 1)[0], scene(0, 2)[0]]
    for i, one in enumerate(images):
        for other in images[:i]:
            assert (one != other).mean() > 0.5


def test_labels_are_well_formed(scenes: list) -> None:
    for image, truth in scenes:
        assert image.shape == (HEIGHT, WIDTH, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
        low, high = truth.boxes_xyxy[:, :2], truth.boxes_xyxy[:, 2:]
        assert (low >= 0).all() and (high <= (WIDTH, HEIGHT)).all() and (high > low).all()
        assert ((truth.classes >= 0) & (truth.classes < len(CLASS_NAMES))).all()
        sides = (high - low)[~truth.ignore]
        assert (sides.min(1) >= street.MIN_SIDE).all() and (sides.prod(1) >= street.MIN_AREA).all()


def test_the_series_has_every_class_many_small_objects_and_every_light(scenes: list) -> None:
    classes = np.concatenate([t.classes[~t.ignore] for _, t in scenes])
    areas = np.concatenate([t.areas[~t.ignore] for _, t in scenes])
    assert (np.bincount(classes, minlength=5) >= COUNT / 4).all()
    assert 6 < len(classes) / COUNT < 25
    assert 0.5 < (areas < 32**2).mean() < 0.95
    assert ((areas >= 32**2) & (areas < 96**2)).mean() > 0.1
    brightness = np.array([image.mean() for image, _ in scenes])
    assert (brightness < 50).mean() > 0.08 and (brightness > 110).mean() > 0.2
    assert np.mean([t.ignore.any() for _, t in scenes]) > 0.5  # occlusion happens


@pytest.mark.parametrize("bad", [-1, 1.5, "7", None, True])
def test_a_bad_index_or_seed_is_refused_by_name(bad: object) -> None:
    with pytest.raises(InputError, match="scene index"):
        scene(bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="scene seed"):
        scene(0, bad)  # type: ignore[arg-type]


# ---- camera, canvas and labels


def test_the_camera_projects_like_opencv() -> None:
    camera = Camera(cx=200, horizon=110, focal=320, height=1.6)
    points = np.random.default_rng(1).uniform((-8, 0, 3), (8, 5, 60), (50, 3))
    flipped = points * (1, -1, 1) + (0, camera.height, 0)  # OpenCV: y down, origin at the camera
    matrix = np.array([[320.0, 0, 200], [0, 320, 110], [0, 0, 1]])
    expected = cv2.projectPoints(flipped, np.zeros(3), np.zeros(3), matrix, None)[0].reshape(-1, 2)
    np.testing.assert_allclose(camera.project(points), expected, atol=1e-9)


def test_a_bend_moves_points_sideways_with_the_square_of_distance() -> None:
    straight, bent = Camera(0, 0, 1, 1), Camera(0, 0, 1, 1, bend=0.01)
    for depth in (10.0, 20.0, 40.0):
        shift = (bent.project([(0, 0, depth)]) - straight.project([(0, 0, depth)]))[0, 0] * depth
        assert shift == pytest.approx(0.01 * depth**2 / 2)


PAINTERS: dict[str, Callable[[Canvas, Camera, np.random.Generator], None]] = {
    "pedestrian": lambda c, k, r: street_objects.pedestrian(c, k, r, 0.5, 9),
    "cyclist": lambda c, k, r: street_objects.cyclist(c, k, r, -0.5, 9),
    "car away": lambda c, k, r: street_objects.car(c, k, r, 1.5, 12),
    "car toward": lambda c, k, r: street_objects.car(c, k, r, -2.5, 12, "toward"),
    "car left": lambda c, k, r: street_objects.car(c, k, r, 0, 14, "left"),
    "traffic light": lambda c, k, r: street_objects.traffic_light(c, k, r, 2, 11, 2.2, 1),
    "sign": lambda c, k, r: street_objects.sign(c, k, r, -2, 11, 2.3),
    "tree": lambda c, k, r: street_scenery.tree(c, k, r, 1, 12),
}


@pytest.mark.parametrize("name", PAINTERS)
@pytest.mark.parametrize("lamps", [False, True])
def test_what_is_painted_is_what_is_owned(name: str, lamps: bool) -> None:
    """The box by owner map equals the box of the pixels that changed, up to one pixel of smoothing at the edge."""
    camera = Camera(WIDTH / 2, 105, 330, 1.5)
    for seed in range(6):
        canvas = Canvas.blank(HEIGHT, WIDTH, lamps, (0, 0, 0))
        canvas.image[:] = (255, 0, 255)
        canvas.number = 3
        PAINTERS[name](canvas, camera, np.random.default_rng(seed))
        changed = cv2.boundingRect((np.abs(canvas.image.astype(int) - (255, 0, 255)).max(2) > 40).astype(np.uint8))
        owned = cv2.boundingRect((canvas.owner == 3).astype(np.uint8))
        assert np.abs(np.array(changed[:2]) - owned[:2]).max() <= 1
        assert np.abs(np.array(changed[2:]) - owned[2:]).max() <= 2
        assert owned[2] * owned[3] > 150


def test_sizes_follow_metres_and_distance() -> None:
    """A standing person is as tall on screen as focal * height / depth says, at any distance."""
    camera = Camera(WIDTH / 2, 90, 330, 1.5)
    for depth in (5.0, 10.0, 20.0):
        tall = []
        for seed in range(30):
            canvas = Canvas.blank(HEIGHT, WIDTH, False, (0, 0, 0))
            canvas.number = 1
            street_objects.pedestrian(canvas, camera, np.random.default_rng(seed), 0, depth)
            tall.append(cv2.boundingRect(canvas.owner)[3] * depth / camera.focal)
        assert min(tall) > 1.0 and max(tall) < 2.1 and 1.6 < np.median(tall) < 1.9


def test_labels_follow_the_visible_pixels() -> None:
    owner = np.zeros((HEIGHT, WIDTH), np.uint8)
    full = []
    for number, (x1, y1, x2, y2) in enumerate(
        [(10, 10, 50, 40), (100, 20, 140, 60), (200, 50, 203, 90), (300, 10, 310, 20), (20, 200, 60, 240)], start=1
    ):
        owner[y1:y2, x1:x2] = number
        full.append((x2 - x1) * (y2 - y1))
    owner[10:25, 10:50] = 0  # hides half of the first: its box shrinks
    owner[20:51, 100:140] = 0  # hides 31/40 of the second: ignored
    owner[10:20, 300:310] = 0  # hides the fourth wholly: no label
    boxes, kinds, ignore = street._labels(owner, [0, 1, 2, 3, 4], full)
    assert boxes.tolist() == [[10, 25, 50, 40], [100, 51, 140, 60], [200, 50, 203, 90], [20, 200, 60, 240]]
    assert kinds.tolist() == [0, 1, 2, 4]
    assert ignore.tolist() == [False, True, True, False]  # the third is only three pixels wide


def test_the_nearer_object_hides_the_farther() -> None:
    rng = np.random.default_rng(0)
    camera = Camera(WIDTH / 2, 105, 330, 1.5)
    canvas = Canvas.blank(HEIGHT, WIDTH, False, (0, 0, 0))
    items = [
        street.Item(8, street.CAR, lambda: street_objects.car(canvas, camera, rng, 0, 8)),
        street.Item(40, street.PEDESTRIAN, lambda: street_objects.pedestrian(canvas, camera, rng, 0, 40)),
        street.Item(9, street.SIGN, lambda: street_objects.sign(canvas, camera, rng, 4, 9, 2.3)),
    ]
    classes, full = street._paint_items(canvas, camera, rng, weather_of(np.random.default_rng(1)), items)
    assert classes == [street.PEDESTRIAN, street.SIGN, street.CAR] and min(full) > 50
    _, kinds, _ = street._labels(canvas.owner, classes, full)
    assert sorted(kinds.tolist()) == [street.CAR, street.SIGN]


# ---- the detector


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load_from_string(DETECTOR.read_bytes())


def test_the_detector_is_small_and_plain(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert len(DETECTOR.read_bytes()) < 1_500_000
    allowed = {"Conv", "Relu", "Sigmoid", "Concat", "Reshape", "Transpose", "Resize"}
    assert {node.op_type for node in model.graph.node} <= allowed
    count = HEIGHT // 8 * (WIDTH // 8) + HEIGHT // 16 * (WIDTH // 16)
    values = model.graph.input[0], model.graph.output[0]
    shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in values]
    assert shapes == [[1, 3, HEIGHT, WIDTH], [1, count, 10]]
    weights = {w.name: w.dims for w in model.graph.initializer}
    inner = [n for n in model.graph.node if n.op_type == "Conv" and n.input[0] != "images"]
    assert all(weights[n.input[1]][1] % 16 == 0 for n in inner)


def test_the_detector_carries_its_task(model: onnx.ModelProto) -> None:
    task = json.loads({p.key: p.value for p in model.metadata_props}["roadworthy.task"])
    assert task["version"] == 1
    preprocess, decode = Preprocess(**task["preprocess"]), DecodeSpec(**task["decode"])
    assert tuple(preprocess.size_hw) == tuple(decode.input_hw) == (HEIGHT, WIDTH)
    assert (preprocess.color, preprocess.scale, preprocess.layout) == ("bgr", 1.0, "nchw")
    assert (decode.kind, tuple(decode.class_names), tuple(decode.strides)) == ("yolox", CLASS_NAMES, (8, 16))
    assert decode.num_classes == len(CLASS_NAMES) and not decode.decoded and not decode.scores_are_logits


def detect(session: onnxruntime.InferenceSession, image: NDArray[np.uint8]) -> list[tuple[list[float], float, int]]:
    """Decode cell by cell, as the YOLOX convention is written; NMS by OpenCV. (x, y, w, h), score, class."""
    rows = session.run(None, {"images": image.transpose(2, 0, 1)[None].astype(np.float32)})[0][0]
    found, start = [], 0
    for stride in (8, 16):
        wide = WIDTH // stride
        for i in range(HEIGHT // stride * wide):
            row = rows[start + i]
            scores = row[4] * row[5:]
            for kind in np.flatnonzero(scores > 0.02):
                cx, cy = (i % wide + row[0]) * stride, (i // wide + row[1]) * stride
                w, h = np.exp(row[2]) * stride, np.exp(row[3]) * stride
                x1, y1 = max(cx - w / 2, 0.0), max(cy - h / 2, 0.0)
                x2, y2 = min(cx + w / 2, WIDTH), min(cy + h / 2, HEIGHT)
                found.append(([float(x1), float(y1), float(x2 - x1), float(y2 - y1)], float(scores[kind]), int(kind)))
        start += HEIGHT // stride * wide
    if not found:
        return []
    boxes, best, kinds = zip(*found)
    kept = cv2.dnn.NMSBoxesBatched(list(boxes), list(best), list(kinds), 0.02, 0.65)
    return [found[i] for i in kept]


def coco_figures(scenes: list, change: Callable[[NDArray], NDArray]) -> tuple[float, float]:
    """AP50 and AP of small objects over the scenes, the images changed first."""
    session = onnxruntime.InferenceSession(DETECTOR.read_bytes(), providers=["CPUExecutionProvider"])
    labels: list[dict] = []
    rows: list[list[float]] = []
    for i, (image, truth) in enumerate(scenes):
        for (x1, y1, x2, y2), kind, ignore in zip(truth.boxes_xyxy.tolist(), truth.classes, truth.ignore):
            box, area = [x1, y1, x2 - x1, y2 - y1], (x2 - x1) * (y2 - y1)
            row = {"id": len(labels) + 1, "image_id": i, "category_id": int(kind), "bbox": box, "area": area}
            labels.append(row | {"iscrowd": int(ignore)})
        rows += [[i, *box, score, kind] for box, score, kind in detect(session, change(image))]
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(len(scenes))],
        "annotations": labels,
        "categories": [{"id": k} for k in range(len(CLASS_NAMES))],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(np.array(rows)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return float(run.stats[1]), float(run.stats[3])


def test_the_detector_detects_and_notices_a_wrong_input(scenes: list) -> None:
    ap50, ap_small = coco_figures(scenes, lambda image: image)
    assert ap50 > 0.6 and ap_small > 0.25
    swapped, _ = coco_figures(scenes, lambda image: np.ascontiguousarray(image[:, :, ::-1]))
    assert swapped < ap50 - 0.03  # BGR is part of the task


# ---- the training tool


@pytest.fixture(scope="module")
def tool():  # type: ignore[no-untyped-def]
    pytest.importorskip("torch", reason="the training tool needs PyTorch")
    if not TOOLS.exists():
        pytest.skip("tools/ is not part of this checkout")
    sys.path.insert(0, str(TOOLS))
    try:
        import street_net
    finally:
        sys.path.remove(str(TOOLS))
    return street_net


def test_the_export_says_what_the_network_says(tool, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import torch

    torch.manual_seed(0)
    net = tool.StreetNet().eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics that matter when folded
            bounds = {"running_mean": (-0.3, 0.3), "running_var": (0.3, 2), "weight": (0.5, 1.5), "bias": (-0.3, 0.3)}
            for name, (low, high) in bounds.items():
                torch.nn.init.uniform_(getattr(module, name), low, high)
    tool.export(net, tmp_path / "net.onnx")
    image = scene(2)[0].transpose(2, 0, 1)[None].astype(np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    got = session.run(None, {"images": image})[0]
    with torch.no_grad():
        expected = net(torch.from_numpy(image) / 255).numpy()
    expected[..., 4:] = 1 / (1 + np.exp(-expected[..., 4:]))
    np.testing.assert_allclose(got, expected, atol=2e-4)
    assert not (tmp_path / "net.part").exists()


def test_simota_gives_every_label_a_cell_and_the_loss_rewards_the_right_box(tool) -> None:  # type: ignore[no-untyped-def]
    import torch

    truth = torch.tensor([[[40.0, 40, 72, 88], [200, 100, 212, 124], [300, 60, 340, 100]]])
    classes, valid = torch.tensor([[1, 0, 4]]), torch.tensor([[True, True, True]])
    ignore = torch.tensor([[False, False, True]])
    cells, strides = tool.grid(HEIGHT, WIDTH)
    raw = torch.full((1, len(cells), 10), -12.0)
    raw[..., :4] = 0.0
    none = tool.loss(raw, truth, classes, valid, ignore)
    owner, _ = tool.assign(raw, tool.to_xyxy(raw, cells, strides), truth, classes, valid & ~ignore, cells, strides)
    assert set(owner.unique().tolist()) == {-1, 0, 1}
    center = (cells + 0.5) * strides
    for label in (0, 1):  # the cells are where the box is
        x1, y1, x2, y2 = truth[0, label].tolist()
        where = center[owner[0] == label]
        assert (where[:, 0] > x1 - 16).all() and (where[:, 0] < x2 + 16).all()
        assert (where[:, 1] > y1 - 16).all() and (where[:, 1] < y2 + 16).all()
    for label in (0, 1):  # now answer rightly in and near both boxes, surely in one cell of each
        box = truth[0, label]
        around = ((center > box[:2] - 24) & (center < box[2:] + 24)).all(1)
        raw[0, around, :2] = ((box[:2] + box[2:]) / 2 / strides - cells)[around]
        raw[0, around, 2:4] = torch.log((box[2:] - box[:2]) / strides)[around]
    for _ in range(2):  # with right boxes more cells are assigned; all that are shall be sure
        owner, _ = tool.assign(raw, tool.to_xyxy(raw, cells, strides), truth, classes, valid & ~ignore, cells, strides)
        for label in (0, 1):
            raw[0, owner[0] == label, 4] = raw[0, owner[0] == label, 5 + int(classes[0, label])] = 12.0
    right = tool.loss(raw, truth, classes, valid, ignore)
    inside = ((center > truth[0, 2, :2]) & (center < truth[0, 2, 2:])).all(1)
    raw[0, inside, 4] = 5.0  # claims inside an ignored box cost nothing
    assert tool.loss(raw, truth, classes, valid, ignore) == pytest.approx(float(right))
    raw[0, 3, 4] = 5.0  # a claim in the sky does
    assert tool.loss(raw, truth, classes, valid, ignore) > right + 0.1
    assert right < 0.1 * none
