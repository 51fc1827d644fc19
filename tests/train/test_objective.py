"""The objective of a student: which terms, which taps, which teachers; and what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnx_graphs import N, build, rand
from roadworthy.data.preprocess import Preprocess
from roadworthy.detect.detections import Truth
from roadworthy.detect.spec import DecodeSpec
from roadworthy.errors import InputError
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model, load
from roadworthy.model.task import Task
from roadworthy.run.torch import module_of

torch = pytest.importorskip("torch")

from roadworthy.train.distill import Agreement, Features, Logits, Scores  # noqa: E402
from roadworthy.train.features import candidates, pairs_of  # noqa: E402
from roadworthy.train.labelled import Labels, SoftLabels  # noqa: E402
from roadworthy.train.objective import Objective, ObjectiveSettings, objective  # noqa: E402
from roadworthy.train.reading import Reader  # noqa: E402
from roadworthy.train.teachers import Teacher, converted  # noqa: E402

SEEN = Preprocess((16, 16), resize="stretch", scale=1 / 255)


def classifier(channels: int = 8, classes: int = 5, size: int = 16, seed: int = 0, softmax: bool = False) -> Model:
    conv = {"strides": [2, 2], "pads": [1] * 4}
    nodes = [
        N("Conv", ["x", "w1"], ["c1"], name="stem", **conv), N("Relu", ["c1"], ["r1"], name="a1"),
        N("Conv", ["r1", "w2"], ["c2"], name="deep", **conv), N("Relu", ["c2"], ["r2"], name="a2"),
        N("GlobalAveragePool", ["r2"], ["p"], name="pool"), N("Flatten", ["p"], ["f"], name="flat"),
        N("Gemm", ["f", "w3"], ["z"], name="last"), *([N("Softmax", ["z"], ["y"], name="soft")] if softmax else []),
    ]  # fmt: skip
    weights = {
        "w1": rand(channels, 3, 3, 3, seed=seed),
        "w2": rand(channels, channels, 3, 3, seed=seed),
        "w3": rand(channels, classes, seed=seed),
    }
    made = load(build(nodes, weights, (1, 3, size, size), outputs=["y" if softmax else "z"]))
    spec = DecodeSpec("classify", classes, (size, size), scores_are_logits=not softmax)
    return replace(made, source=f"classifier{channels}").with_task(Task(replace(SEEN, size_hw=(size, size)), spec))


def detector(channels: int = 8, size: int = 16, stride: int = 4, sigmoid: bool = True, seed: int = 0) -> Model:
    """One level of YOLOX with two classes: boxes, objectness and classes by convolutions of their own."""
    cells = (size // stride) ** 2
    first = [
        N("Conv", ["x", "w0"], ["c0"], strides=[stride, stride], name="stem"),
        N("Relu", ["c0"], ["r0"], name="a0"),
    ]
    heads = [N("Conv", ["r0", f"w{k}"], [f"h{k}"], name=f"head{k}") for k in (1, 2, 3)]
    squash = [N("Sigmoid", [f"h{k}"], [f"s{k}"], name=f"squash{k}") for k in (2, 3)] if sigmoid else []
    names = ["h1", "s2", "s3"] if sigmoid else ["h1", "h2", "h3"]
    tail = [
        N("Concat", names, ["all"], axis=1, name="join"), N("Reshape", ["all", "shape"], ["flat"], name="rows"),
        N("Transpose", ["flat"], ["y"], perm=[0, 2, 1], name="turn"),
    ]  # fmt: skip
    weights = {
        "w0": rand(channels, 3, stride, stride, seed=seed),
        "w1": 0.1 * rand(4, channels, 1, 1, seed=seed),
        "w2": rand(1, channels, 1, 1, seed=seed),
        "w3": rand(2, channels, 1, 1, seed=seed),
        "shape": np.array([1, 7, cells]),
    }
    made = load(build([*first, *heads, *squash, *tail], weights, (1, 3, size, size)))
    spec = DecodeSpec("yolox", 2, (size, size), (stride,), scores_are_logits=not sigmoid)
    return replace(made, source=f"detector{size}").with_task(Task(replace(SEEN, size_hw=(size, size)), spec))


def task_of(model: Model) -> Task:
    assert model.task is not None
    return model.task


def picture(size: int = 16, seed: int = 0):  # type: ignore[no-untyped-def]
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


def aim_of(student: Model, *teachers: Model, **settings) -> Objective:  # type: ignore[no-untyped-def]
    return objective(student, teachers or [student], task_of(student), ObjectiveSettings(**settings))


MODELS = {
    "classifier": classifier,
    "classifier with softmax": lambda: classifier(softmax=True),
    "detector": detector,
    "detector of logits": lambda: detector(sigmoid=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_default_is_zero_for_the_teacher_itself_and_falls_in_training(name: str):
    model = MODELS[name]()
    aim, module = aim_of(model), module_of(model)
    x = picture()
    target = aim.target(x)
    found, parts = aim(module(x, aim.taps), target, 0.0)
    assert abs(float(found.detach())) < 1e-4 and len(parts) == len(aim.terms)  # float32 sums on two runtimes
    with torch.no_grad():
        for k, p in enumerate(module.parameters()):
            p += 0.1 * p.std() * torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
    losses = []
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for step in range(40):
        loss, parts = aim(module(x, aim.taps), target, step / 40)
        assert float(loss.detach()) == pytest.approx(sum(parts.values()), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_logits_are_read_in_front_of_the_sigmoids():
    """The same network with and without its sigmoids is the same loss, to rounding."""
    squashed, plain = detector(), detector(sigmoid=False)
    assert set(Reader(squashed, task_of(squashed)).taps) == {"h1", "h2", "h3"}
    assert Reader(plain, task_of(plain)).taps == () == Reader(squashed, task_of(squashed), values=["y"]).taps
    x, found = picture(), []
    for model in (squashed, plain):
        aim = objective(model, [detector(seed=3, sigmoid=model is squashed)], task_of(model))
        found.append(float(aim(module_of(model)(x, aim.taps), aim.target(x), 0.0)[0].detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0] > 0.1


def test_scores_without_their_logits_are_turned_back():
    model = detector()
    aim = objective(model, [detector(seed=3)], task_of(model), values=["y"])
    assert aim.taps == ()
    x = 0.05 * picture()  # logits of a few units: scores far from 0 and 1
    whole = objective(model, [detector(seed=3)], task_of(model))
    losses = [float(a(module_of(model)(x, a.taps), a.target(x), 0.0)[0].detach()) for a in (aim, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_sigmoid_over_boxes_is_no_tail():
    """In YOLOv5 the sigmoid in the graph is over boxes as well: their logits are not boxes, so it is left in place."""
    nodes = [N("Conv", ["x", "w"], ["c"], strides=[8, 8], name="c"), N("Sigmoid", ["c"], ["y"], name="s")]
    model = load(build(nodes, {"w": rand(7, 3, 8, 8)}, (1, 3, 16, 16)))
    spec = DecodeSpec("yolox", 2, (16, 16), (8,))
    assert Reader(model, Task(SEEN, spec)).taps == ()


def test_targets_have_no_gradient_and_threads_do_not_disturb_one_another():
    model = detector()
    aim = objective(model, [detector(seed=3)], task_of(model))
    pictures = [picture(seed=k) for k in range(8)]
    module = module_of(model)

    def losses(x):  # type: ignore[no-untyped-def]
        target = aim.target(x)
        assert not any(t.requires_grad for s in target.teachers for t in s.values.values())
        return float(aim(module(x, aim.taps), target, 0.5)[0].detach())

    alone = [losses(x) for x in pictures]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(losses, pictures)) == alone


def test_several_teachers_have_weights():
    student, one, other = classifier(), classifier(seed=1), classifier(seed=2)
    x = picture()

    def loss(*teachers: Model, **settings) -> float:  # type: ignore[no-untyped-def]
        aim = aim_of(student, *teachers, terms=(Features(),), **settings)
        return float(aim(module_of(student)(x, aim.taps), aim.target(x), 0.0)[0].detach())

    alone = loss(one), loss(other)
    assert loss(one, other, weights=(3.0, 1.0)) == pytest.approx(0.75 * alone[0] + 0.25 * alone[1], rel=1e-5)
    with pytest.raises(InputError, match="2 teachers need as many weights above 0"):
        loss(one, other, weights=(1.0,))


# Different networks


def test_different_outputs_without_labels_are_refused():
    small, large = detector(size=16), detector(size=32)
    said = (
        r"detector16 and the teacher detector32 have different outputs \(y 1x16x7 against y 1x64x7\), so that without"
        r" labels .* or images with labels"
    )
    with pytest.raises(InputError, match=said):
        aim_of(small, large)
    with pytest.raises(InputError, match=r"classifier8 and the teacher classifier16 .*z 1x5 against z 1x6"):
        aim_of(classifier(), classifier(channels=16, classes=6))
    other = small.with_task(replace(task_of(small), decode=replace(task_of(small).decode, decoded=True)))
    with pytest.raises(InputError, match="both y 1x16x7, but decoded False against True"):
        aim_of(small, other)


def test_big_to_small_between_different_networks():
    """Without a common grid the teacher's detections are labels, and features agree through adapters."""
    small, large = detector(size=16), detector(channels=12, size=32, seed=5)
    aim = aim_of(small, large, labels="yes")
    assert [type(t) for t in aim.terms] == [Labels, SoftLabels, Features] and aim.alike == ()
    assert "r0" in aim.taps and [tuple(p.shape) for p in aim.parameters()] == [(12, 8, 1, 1)]
    x = picture()
    target = aim.target(x, Truth.of(np.array([[2.0, 3, 11, 12]]), np.array([1])))
    (soft, weight), *_ = target.soft
    assert len(soft.boxes) and weight == 1.0 and float(soft.boxes.max()) <= 16  # of the student's input, not of 32
    module = module_of(small)
    trained = [*module.parameters(), *aim.parameters()]
    optimizer, losses = torch.optim.Adam(trained, lr=1e-2), []
    for _ in range(30):
        loss, parts = aim(module(x, aim.taps), target, 0.0)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in trained)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0] and set(parts) == {"labels", "soft_labels", "features"}
    again = aim_of(small, large, labels="yes")
    assert torch.equal(next(again.parameters()), next(aim_of(small, large, labels="yes").parameters()))


def test_classifiers_of_different_networks_learn_from_logits():
    """As many classes are enough; the teacher gets the picture at its own size."""
    small, large = classifier(), classifier(channels=12, size=32, seed=5)
    aim = aim_of(small, large)
    assert aim.alike == (0,)
    x = picture()
    given = converted(x, task_of(small).preprocess, task_of(large).preprocess)
    wanted = module_of(large)(given)["z"].detach()
    assert torch.allclose(aim.target(x).teachers[0].row, wanted[0], atol=1e-4)


def test_labels_only_need_no_teacher():
    model = classifier()
    aim = aim_of(model, labels="only")
    assert aim.teachers == () and [type(t) for t in aim.terms] == [Labels]
    x = picture()
    loss, parts = aim(module_of(model)(x, aim.taps), aim.target(x, 3), 0.0)
    assert float(loss.detach()) == pytest.approx(parts["labels"]) and parts["labels"] > 0
    both = aim_of(model, labels="yes")
    assert [type(t) for t in both.terms] == [*(type(t) for t in aim_of(model).terms), Labels]


# Refusals


def test_what_cannot_be_is_refused_in_one_sentence():
    model = classifier()
    encoding = Encoding(np.float32(0.1), np.int64(0), bits=8, signed=True)
    with pytest.raises(InputError, match="the teacher classifier8 is quantized; give the original"):
        aim_of(model, model.with_encodings({"w1": encoding}, "test"))
    with pytest.raises(InputError, match="the term 'scores' is not made for classifiers; leave it out"):
        aim_of(model, terms=(Scores(),))
    with pytest.raises(InputError, match="labels is 'maybe'; use one of no, yes, only"):
        ObjectiveSettings(labels="maybe")
    with pytest.raises(InputError, match="has no teacher; give the original"):
        objective(model, [], task_of(model))
    raw = model.with_task(replace(task_of(model), decode=DecodeSpec("raw")))
    with pytest.raises(InputError, match="not interpreted have no labels"):
        aim_of(raw, labels="yes")
    with pytest.raises(InputError, match=r"outputs are y, but the objective was made for those of classifier8, z"):
        aim_of(model).check(module_of(classifier(softmax=True)))
    aim_of(model).check(module_of(model))
    names = replace(task_of(detector()).decode, class_names=("a", "b"))
    others = detector().with_task(replace(task_of(detector()), decode=replace(names, class_names=("b", "a"))))
    with pytest.raises(InputError, match="has other classes than the student"):
        objective(detector(), [others], replace(task_of(detector()), decode=names))


# Features


def test_candidates_are_ends_of_stages_and_what_the_last_layers_read():
    assert candidates(classifier()) == {"r1": (1, 8, 8, 8), "f": (1, 8)}
    assert candidates(detector()) == {"r0": (1, 8, 4, 4)}


def test_pairs_by_name_by_shape_and_by_resolution():
    a, b = classifier(), classifier(channels=12)
    assert [(p.student, p.teacher, p.adapted) for p in pairs_of(a, a, 0)] == [("r1", "r1", False), ("f", "f", False)]
    assert {(p.student, p.teacher, p.adapted) for p in pairs_of(a, b, 0)} == {("r1", "r1", True), ("f", "f", True)}
    named = pairs_of(a, b, 0, named=[("r2", "r1")])
    assert [(p.student, p.teacher, p.shapes) for p in named] == [("r2", "r1", ((1, 8, 4, 4), (1, 12, 8, 8)))]
    assert [p.student for p in pairs_of(a, a, 0, values={"f"})] == ["f"]
    with pytest.raises(InputError, match="the feature 'q' is no value of classifier8"):
        pairs_of(a, b, 0, named=[("q", "r1")])
    with pytest.raises(InputError, match=r"the features 'f' .* and 'r1' .* cannot be compared"):
        pairs_of(a, b, 0, named=[("f", "r1")])


@pytest.mark.parametrize("kind", ["l2", "cosine", "channel"])
def test_features_through_adapters_learn(kind: str):
    aim = aim_of(classifier(), classifier(channels=12, seed=4), terms=(Features(kind=kind),))
    x, module = picture(), module_of(classifier())
    optimizer, losses = torch.optim.Adam([*module.parameters(), *aim.parameters()], lr=1e-2), []
    target = aim.target(x)
    for _ in range(40):
        loss, _ = aim(module(x, aim.taps), target, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


# Teachers with another preprocessing


@pytest.mark.parametrize("wanted", [
    Preprocess((16, 16), resize="stretch", color="rgb", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.1), scale=1 / 255),
    Preprocess((16, 16), resize="stretch", color="gray", scale=1 / 127, mean=(1.0,)),
    Preprocess((16, 16), resize="stretch", layout="nhwc"),
])  # fmt: skip
def test_a_teacher_sees_the_same_picture_its_own_way(wanted: Preprocess):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    given = Preprocess(
        (16, 16), resize="stretch", color="rgb", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), scale=1 / 255
    )
    x, expected = (torch.from_numpy(p(image)[0]) for p in (given, wanted))
    # grey is rounded to a level by OpenCV: half a level, in the tensor's units; else float32 rounding of up to 255
    bound = 0.51 / 127 if wanted.color == "gray" else 1e-4
    assert float((converted(x, given, wanted) - expected).abs().max()) < bound


def test_a_teacher_on_the_device_of_the_student_says_the_same():
    model = classifier()
    x = picture()
    there = Teacher(model, task_of(model), SEEN, device="cpu")
    module = Teacher.__new__(Teacher)
    module.__dict__.update(there.__dict__, _runner=None, _module=module_of(model))
    assert torch.allclose(there(x).row, module(x).row, atol=1e-5)


@pytest.mark.assets
@pytest.mark.parametrize("name, taps", [("mobilenet_v1_075", 0), ("fastestdet", 3), ("yolox_nano", 9)])
def test_asset_models(name: str, taps: int, assets: Path):
    from roadworthy.model.recognize import recognize

    model = load(assets / "models" / f"{name}.onnx")
    guess = recognize(model, None)
    assert guess is not None
    task = Task(guess.preprocess[0], guess.decode)
    aim = objective(model, [model], task, ObjectiveSettings(terms=(Agreement(), Features(), *(
        (Logits(),) if not task.is_detector else (Scores(),)))))  # fmt: skip
    assert len(Reader(model, task).taps) == taps and len(aim.taps) >= taps + 4
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    x = torch.from_numpy(task.preprocess(image)[0])
    module = module_of(model)
    loss, _ = aim(module(x, aim.taps), aim.target(x), 0.0)
    assert abs(float(loss.detach())) < 1e-3  # two runtimes in float32
    with torch.no_grad():
        for p in module.parameters():
            p *= 1.02
    assert float(aim(module(x, aim.taps), aim.target(x), 0.0)[0].detach()) > 1e-3


def test_what_could_not_teach_anything_is_refused():
    """A loss that is 0 for every image trains for nothing, and says so by no other sign."""
    with pytest.raises(InputError, match="'soft_labels' is for teachers with other outputs"):
        aim_of(detector(), terms=(SoftLabels(),), labels="yes")
    import onnx

    graph = build([N("Conv", ["x", "w"], ["a"], name="c"), N("ArgMax", ["a"], ["y"], axis=1)], {"w": rand(4, 3, 1, 1)},
                  (1, 3, 16, 16), outputs=["y"])  # fmt: skip
    graph.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [1, 1, 16, 16]))
    with pytest.raises(InputError, match="gives whole numbers only, which have no gradient"):
        aim_of(load(graph, task=Task(SEEN, DecodeSpec("raw"))))
