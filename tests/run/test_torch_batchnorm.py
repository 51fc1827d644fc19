"""Batch normalization: statistics measured anew, what they bring back, and that they are written back."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from onnx_graphs import N, build, ort, rand
from roadworthy.errors import InputError
from roadworthy.model import graph as g
from roadworthy.model.model import Model, load
from roadworthy.run import torch as bridge

torch = pytest.importorskip("torch")
from roadworthy.run.torch.batchnorm import follow, moments, reestimate  # noqa: E402

NODES = [
    N("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
    N("BatchNormalization", ["c", *(f"first.{k}" for k in "gbmv")], ["n"], name="first"),
    N("Relu", ["n"], ["r"]),
    N("Conv", ["r", "u"], ["d"], pads=[1, 1, 1, 1]),
    N("BatchNormalization", ["d", *(f"second.{k}" for k in "gbmv")], ["e"], name="second"),
    N("Add", ["n", "e"], ["y"]),
]
IMAGES = [torch.from_numpy(3 * rand(1, 3, 8, 8, seed=k) + k % 2) for k in range(6)]


def small() -> Model:
    weights = {"w": rand(4, 3, 3, 3), "u": rand(4, 4, 3, 3)}
    for k, name in enumerate(("first", "second")):
        for j, letter in enumerate("gbm"):
            weights[f"{name}.{letter}"] = rand(4, seed=5 * k + j)
        weights[f"{name}.v"] = 1 + np.abs(rand(4, seed=9 + k))
    return load(build(NODES, weights))


def plain() -> torch.nn.Module:
    """The same network of PyTorch's own layers, whose statistics are those of the batch."""

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.u = (torch.nn.Conv2d(c, 4, 3, padding=1, bias=False) for c in (3, 4))
            self.first, self.second = torch.nn.BatchNorm2d(4, momentum=1.0), torch.nn.BatchNorm2d(4, momentum=1.0)

        def forward(self, x):
            n = self.first(self.w(x))
            return n + self.second(self.u(torch.relu(n)))

    made, module = Plain(), bridge.module_of(small())
    with torch.no_grad():
        for name in ("w", "u"):
            getattr(made, name).weight.copy_(module.constant(name))
        for name in ("first", "second"):
            getattr(made, name).weight.copy_(module.constant(f"{name}.g"))
            getattr(made, name).bias.copy_(module.constant(f"{name}.b"))
    return made


def test_statistics_are_those_of_the_whole_set():
    """PyTorch's own batch normalization in training mode, all images in one batch, is the witness; its variance is
    that of a sample, n / (n - 1) of ours. Both sum 384 numbers in float32 or better: 2^-20 of the sizes."""
    module, witness = bridge.module_of(small()), plain().train()
    wanted = witness(torch.cat(IMAGES))
    assert reestimate(module, iter(IMAGES)) == 6
    count = 6 * 64
    for name in ("first", "second"):
        layer = getattr(witness, name)
        for ours, theirs in ((f"{name}.m", layer.running_mean), (f"{name}.v", layer.running_var * (count - 1) / count)):
            torch.testing.assert_close(module.constant(ours), theirs, rtol=2**-18, atol=2**-18)
    found = torch.cat([module(x)["y"] for x in IMAGES])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_few_at_a_time():
    """The first layer reads the same whatever is measured behind it; the second is normalized by fewer images."""
    whole, parts = bridge.module_of(small()), bridge.module_of(small())
    reestimate(whole, IMAGES)
    done: list[int] = []
    assert reestimate(parts, IMAGES, batch=4, progress=done.append) == 6 and done == [4, 6]
    for name in ("first.m", "first.v"):
        torch.testing.assert_close(parts.constant(name), whole.constant(name), rtol=2**-20, atol=2**-20)
    off = (parts.constant("second.m") - whole.constant("second.m")).abs() / whole.constant("second.v").sqrt()
    assert 1e-4 < off.max() < 0.5


def test_following_by_momentum():
    module, before = bridge.module_of(small()), bridge.module_of(small())
    seen = [moments(module, x) for x in IMAGES[:3]]
    follow(module, seen, 0.25)
    read = torch.cat([before(x, ("c",))["c"] for x in IMAGES[:3]]).detach().double()
    for name, new in (("first.m", read.mean((0, 2, 3))), ("first.v", read.var((0, 2, 3), unbiased=False))):
        wanted = 0.75 * before.constant(name) + 0.25 * new
        torch.testing.assert_close(module.constant(name), wanted.float(), rtol=2**-20, atol=2**-20)
    follow(before, seen, 0.0)
    assert torch.equal(before.constant("first.m"), bridge.module_of(small()).constant("first.m"))


def test_written_back_and_into_the_weights_of_others():
    model = small()
    module = bridge.module_of(model)
    assert module.groups()["biases"] == ["first.g", "first.b", "second.g", "second.b"]
    assert bridge.write_back(model, module).float_bytes() == model.float_bytes()
    reestimate(module, IMAGES)
    x = IMAGES[0].numpy()
    written = ort(module.model("statistics").float_bytes(), x)["y"]
    np.testing.assert_allclose(written, module(IMAGES[0])["y"].detach().numpy(), rtol=1e-4, atol=1e-4)
    assert np.abs(written - ort(model.float_bytes(), x)["y"]).max() > 0.1


def test_refusals():
    module = bridge.module_of(small())
    with pytest.raises(InputError, match="no images"):
        reestimate(module, [])
    with pytest.raises(InputError, match="'first' reads is NaN"):
        reestimate(module, [torch.full((1, 3, 8, 8), torch.nan)])
    assert torch.isfinite(module.constant("first.m")).all()
    assert reestimate(bridge.module_of(load(build([N("Relu", ["x"], ["y"])]))), []) == 0


def unfolded(model: Model) -> Model:
    """The network with a batch normalization behind each convolution that changes nothing."""
    ir = g.clone(model.ir)
    for node in g.nodes(ir):
        if node.op_type == "Conv":
            out, channels = node.outputs[0], len(g.constant(node.inputs[1]))  # type: ignore[arg-type]
            facts = {"g": 1, "b": 0, "m": 0, "v": 1 - 1e-5}
            named = [g.add_constant(ir, f"{out.name}.{k}", np.full(channels, v, np.float32)) for k, v in facts.items()]
            norm = g.make_node("BatchNormalization", [out, *named], [f"{out.name}.normalized"])
            g.replace_uses(out, norm.outputs[0])
            norm.replace_input_with(0, out)
            g.insert_after(ir, node, [norm])
    return load(g.to_proto(ir))


@pytest.mark.assets
def test_a_spoiled_network_gets_its_accuracy_back(assets: Path):
    """ResNet-56, with statistics as a training would have left them, each of which is then off by up to a half."""
    model = unfolded(load(assets / "models" / "cifar10_resnet56.onnx"))
    module = bridge.module_of(model)
    files = sorted((assets / "imagenet").glob("*.JPEG"))[:24]
    pictures = [cv2.resize(cv2.imread(str(f)), model.input_shape[:1:-1]) for f in files]
    images = [torch.from_numpy(p.transpose(2, 0, 1)[None]).float() / 255 for p in pictures]

    def answers(of) -> list[int]:  # type: ignore[no-untyped-def]
        with torch.no_grad():
            return [int(of(x)["logits"].argmax()) for x in images]

    before = answers(module)
    assert len(set(before)) > 3
    for name, (mean, variance) in together_as_is(module, images).items():
        norm = next(n for n in module.norms if n.mean == name)
        parameters = {name: mean, norm.variance: variance, name[:-1] + "b": mean,
                      name[:-1] + "g": torch.sqrt(variance + 1e-5)}  # fmt: skip
        with torch.no_grad():
            for key, value in parameters.items():
                module.constant(key).copy_(value)
    assert answers(module) == before
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for held in (module.constant(n) for norm in module.norms for n in (norm.mean, norm.variance)):
            held.mul_(torch.from_numpy(rng.uniform(0.5, 1.5, held.shape)).to(held))
    assert np.mean(np.equal(before, answers(module))) < 0.7
    reestimate(module, images, batch=12)
    assert np.mean(np.equal(before, answers(module))) > 0.9


def together_as_is(module, images):  # type: ignore[no-untyped-def]
    """Statistics of all images, the normalizations being what they are."""
    each = [moments(module, x) for x in images]
    return {
        name: (
            (mean := torch.stack([m[name][0] for m in each]).mean(0)),
            torch.stack([m[name][1] + m[name][0] ** 2 for m in each]).mean(0) - mean**2,
        )
        for name in each[0]
    }
