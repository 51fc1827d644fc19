"""What is made of the parameters once for all images of a step: the same gradients as made for each image.

`collect` sends the sum of the images' gradients back where the other way sends each and adds: the same real numbers,
rounded in another order. A gradient of a weight is a product of fewer than 20 factors and a sum of two images, so 1e-5
of the largest covers it; one of a scale is a sum over thousands of terms that cancel, held against their sizes.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnx_graphs import N, build, rand  # noqa: E402
from roadworthy.model.encoding import Encoding  # noqa: E402
from roadworthy.model.model import Model, load  # noqa: E402
from roadworthy.run.torch.module import GraphModule  # noqa: E402
from roadworthy.run.torch.quantized import QatSettings, QuantizedModule  # noqa: E402


def network() -> Model:
    """Two layers of each kind of epilogue, a sum of codes, and a layer in float whose weights are read as they are."""
    nodes = [
        N("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]), N("Sigmoid", ["c"], ["s"]), N("Mul", ["c", "s"], ["m"]),
        N("Conv", ["m", "v"], ["r"]), N("Relu", ["r"], ["k"]), N("Add", ["k", "m"], ["a"]),
        N("Conv", ["a", "u", "e"], ["y"]),
    ]  # fmt: skip
    arrays = {
        "w": rand(6, 3, 3, 3),
        "b": rand(6),
        "v": rand(6, 6, 1, 1, seed=1),
        "u": rand(4, 6, 1, 1, seed=2),
        "e": rand(4),
    }
    model = load(build(nodes, arrays, (1, 3, 9, 7), outputs=["y"]))

    def weight(name: str) -> Encoding:
        scale = np.abs(arrays[name]).max((1, 2, 3)) / 120
        return Encoding(scale.astype(np.float32), np.zeros(len(scale), np.int64), 8, True, 0)

    held = {n: Encoding(np.float32(s), np.int64(z)) for n, s, z in (("x", 0.02, 128), ("m", 0.015, 20), ("k", 0.02, 0))}
    return model.with_encodings(
        {**held, "a": Encoding(np.float32(0.03), np.int64(9)), "w": weight("w"), "v": weight("v")}, "q"
    )


def gradients(module: GraphModule, leaves: list, seeds: range) -> list:
    total: list = [None] * len(leaves)
    for seed in seeds:
        x = torch.from_numpy(rand(1, 3, 9, 7, seed=seed))
        aim = torch.from_numpy(rand(1, 4, 9, 7, seed=seed + 99))
        found = torch.autograd.grad((module(x)["y"] * aim).sum(), leaves, allow_unused=True)
        total = [b if a is None else a if b is None else a + b for a, b in zip(total, found)]
    return total


@pytest.mark.parametrize(
    "settings", [{"gradient": "ste"}, {"gradient": "lsq"}, {"gradient": "dsq"}, {"gradient": "lsq", "noise": 0.5}]
)
def test_gradients_are_those_of_each_image_alone(settings: dict) -> None:
    module = QuantizedModule(network(), QatSettings(**settings))
    module.prepare(3, 1)
    names = [n for n, _ in module.named_parameters()]
    parameters = [p for _, p in module.named_parameters()]
    wanted = gradients(module, parameters, range(2))
    outputs = module(torch.from_numpy(rand(1, 3, 9, 7)))["y"]

    module.prepare(3, 1)
    leaves = module.leaves()
    assert torch.equal(module(torch.from_numpy(rand(1, 3, 9, 7)))["y"], outputs)
    found = module.collect(gradients(module, leaves, range(2)))
    assert len(found) == len(names)
    assert any(n.startswith("scale:") for n in names) == (settings["gradient"] != "ste")
    for name, one, other in zip(names, wanted, found):
        assert one is not None and other is not None and one.shape == other.shape, name
        scale = name.startswith("scale:")
        assert float((one - other).abs().max()) <= (1e-4 if scale else 1e-5) * float(one.abs().max()), name


def test_prepare_ends_what_leaves_began() -> None:
    """Parameters that moved are seen at once; gradients go to the parameters again."""
    module = QuantizedModule(network(), QatSettings("lsq"))
    x = torch.from_numpy(rand(1, 3, 9, 7))
    module.prepare(0, 0)
    module.leaves()
    before = module(x)["y"]
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1.1).add_(0.01)
    module.prepare(1, 0)
    after = module(x)["y"]
    assert all(g is not None for g in torch.autograd.grad(after.sum(), list(module.parameters()), retain_graph=True))
    assert not torch.equal(after, before)
    made = module.model("moved")
    assert torch.equal(QuantizedModule(made, QatSettings("lsq"))(x)["y"], after)
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    assert torch.equal(QuantizedModule(made, QatSettings("lsq"))(x)["y"], after)  # a model is a value


def test_what_no_loss_depends_on_has_no_gradient() -> None:
    module = QuantizedModule(network(), QatSettings("lsq"))
    module.prepare(0, 0)
    leaves = module.leaves()
    found = dict(zip((n for n, _ in module.named_parameters()), module.collect([None] * len(leaves))))
    assert set(found.values()) == {None}
    module.prepare(0, 0)
    leaves = module.leaves()
    tap = module(torch.from_numpy(rand(1, 3, 9, 7)), ("m",))["m"]
    slopes = torch.autograd.grad(tap.sum(), leaves, allow_unused=True)
    found = dict(zip((n for n, _ in module.named_parameters()), module.collect(slopes)))
    assert found["w"] is not None and found["v"] is None and found["u"] is None


def test_a_float_network_is_its_own_leaves() -> None:
    module = GraphModule(network())
    assert [id(p) for p in module.leaves()] == [id(p) for p in module.parameters()]
    assert module.collect([None, torch.ones(1)])[0] is None
