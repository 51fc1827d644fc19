"""A PyTorch module as a model: the same results, its own names, and refusals with the path of the module at fault."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest

from onnx_graphs import N, build, ort, rand
from roadworthy.errors import InputError, MissingExtraError, UnsupportedError
from roadworthy.model import from_torch as exporter
from roadworthy.model.from_torch import from_torch
from roadworthy.model.model import load
from roadworthy.model.state import STATE_KEY, to_state_dict
from roadworthy.optimize import fold
from roadworthy.run import torch as bridge

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
nn = torch.nn


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        n, c, h, w = x.shape
        q, k, v = (t.reshape(n, -1, 2, 8).transpose(1, 2) for t in self.qkv(self.norm(x.flatten(2).mT)).chunk(3, -1))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(n, -1, c)).mT.reshape(n, c, h, w)


class Net(nn.Module):
    """Of everything a bit: batch norms behind convolutions and alone, attention, group norm, a scale, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.SiLU())
        self.place = nn.Parameter(torch.randn(1, 16, 8, 8))
        self.attention, self.group, self.slope = Attention(), nn.GroupNorm(4, 16), nn.PReLU(16)
        self.head, self.plain = nn.Conv2d(16, 5, 1), nn.BatchNorm2d(16, affine=False)
        self.scale, self.up = nn.Parameter(torch.ones(1)), nn.Upsample(scale_factor=2, mode="bilinear")
        self.fc, self.drop = nn.Linear(16, 7), nn.Dropout(0.5)

    def forward(self, x):
        x = self.attention(self.stem(x) + self.place)
        x = self.plain(self.slope(self.group(x)))
        return {"boxes": self.up(self.head(x)) * self.scale, "classes": self.drop(self.fc(x.mean((2, 3))))}


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = Net()
    with torch.no_grad():
        for name, tensor in (*made.named_parameters(), *made.named_buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if "var" in name else tensor.normal_(0, 0.3)
    return made


@pytest.fixture(scope="module")
def exported():  # type: ignore[no-untyped-def]
    module = net()
    return module, from_torch(module, (1, 3, 16, 16))


def results(module, x: np.ndarray) -> dict[str, np.ndarray]:  # type: ignore[no-untyped-def]
    with torch.no_grad():
        return {k: v.numpy() for k, v in module.eval()(torch.from_numpy(x)).items()}


def close(a: dict[str, np.ndarray], b: dict[str, np.ndarray], bound: float = 1e-5) -> None:
    """Some hundred float32 operations, each of 2^-24, on values of the size of the largest."""
    assert list(a) == list(b)
    for name, wanted in b.items():
        assert np.abs(a[name] - wanted).max() <= bound * np.abs(wanted).max(), name


def test_results_and_names(exported):
    module, model = exported
    assert module.training and model.source == "Net" and model.output_names == ("boxes", "classes")
    x = rand(1, 3, 16, 16)
    close(ort(model.float_bytes(), x), results(module, x))
    graph = bridge.module_of(model)
    assert set(dict(graph.named_parameters())) == set(dict(module.named_parameters()))
    assert {"attention.qkv/MatMul", "stem.0/Conv", "group/InstanceNormalization"} <= {n.name for n in model.ir.graph}
    assert "group.weight" in graph.groups()["biases"] and "attention.qkv.weight" in graph.groups()["weights"]


def test_weights_go_back(exported, tmp_path):
    module, model = exported
    graph = bridge.module_of(model)
    with torch.no_grad():
        for p in graph.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) / 50)
    (tmp_path / "trained.onnx").write_bytes(graph.model("train").float_bytes())
    trained = load(tmp_path / "trained.onnx")
    arrays = to_state_dict(trained)
    floats = {k: v for k, v in module.state_dict().items() if v.is_floating_point()}
    assert {k: v.shape for k, v in arrays.items()} == {k: tuple(v.shape) for k, v in floats.items()}
    untouched = to_state_dict(model)
    for name, tensor in floats.items():
        np.testing.assert_array_equal(untouched[name], tensor.numpy())
    other = net(1)
    other.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()}, strict=False)
    x = rand(1, 3, 16, 16)
    close(results(other, x), ort(trained.float_bytes(), x))
    assert np.abs(results(other, x)["boxes"] - results(module, x)["boxes"]).max() > 1e-2


def test_folded_batch_norms_go_back(exported):
    """As ones that only add: conv.weight has taken over the rest."""
    module, model = exported
    folded = fold(model)
    assert "stem.1.weight" not in dict(bridge.module_of(folded).named_parameters())
    arrays = to_state_dict(folded)
    np.testing.assert_allclose(arrays["stem.1.weight"], np.sqrt(1 + 1e-5), rtol=1e-6)
    other = net(1)
    other.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()}, strict=False)
    x = rand(1, 3, 16, 16)
    close(results(other, x), results(module, x))


def test_a_shared_weight_that_was_folded_is_named():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.conv(self.norm(self.conv(x)))

    model = fold(from_torch(Twice(), (1, 3, 4, 4)))
    assert bridge.module_of(model).groups()["weights"]
    with pytest.raises(InputError, match=r"'conv\.weight'.* became part of other constants"):
        to_state_dict(model)
    assert "conv.weight" not in to_state_dict(model, strict=False)


def test_one_tensor_as_several_outputs():
    class Several(nn.Module):
        def forward(self, x):
            y = torch.sin(x)
            return y, {"a": x, "b": [y, y, None]}

    model = from_torch(Several(), torch.ones(1, 2))
    assert model.output_names == ("output_0", "output_1.a", "output_1.b.0", "output_1.b.1")
    found = ort(model.float_bytes(), rand(1, 2))
    np.testing.assert_array_equal(found["output_1.a"], rand(1, 2))
    np.testing.assert_array_equal(found["output_0"], found["output_1.b.1"])
    assert from_torch(Several(), (1, 2), output_names=list("abcd")).output_names == tuple("abcd")
    with pytest.raises(InputError, match="Several has 4 outputs"):
        from_torch(Several(), (1, 2), output_names=["a"])


def test_half_precision_is_checked_in_float32():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).half()
    model = from_torch(module, (1, 3, 8, 8))
    assert module[0].weight.dtype == torch.float16 and to_state_dict(model)["0.weight"].dtype == np.float32


@torch.library.custom_op("roadworthy_test::wobble", mutates_args=())
def wobble(x: torch.Tensor) -> torch.Tensor:
    return x.sin() * x


@wobble.register_fake
def _(x):  # type: ignore[no-untyped-def]
    return torch.empty_like(x)


class Wobble(nn.Module):
    def forward(self, x):
        return wobble(x)


class Decomposed(nn.Module):
    def forward(self, x):
        return torch.linalg.eigh(x[0, 0] @ x[0, 0].mT)[0]


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Foreign(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.detach().numpy() * 2)


class Broken(nn.Module):
    def forward(self, x):
        return x.reshape(5, 7)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Wobble, r"stage\.1 \(Wobble\) uses the custom operator roadworthy_test\.wobble, which ONNX does not have"),
        (Decomposed, r"stage\.1 \(Decomposed\) uses the operator aten\._linalg_eigh, which"),
        (Branch, r"stage\.1 \(Branch\) cannot be traced.*branches on the values of a tensor"),
        (Foreign, r"stage\.1 \(Foreign\) cannot be traced by torch\.export: "),
        (Broken, r"stage\.1 \(Broken\) cannot be run on an input of shape \(1, 3, 8, 8\): "),
    ],
)
def test_the_module_at_fault_is_named(part, said: str, capfd):
    module = nn.Sequential()
    module.add_module("stage", nn.Sequential(nn.Conv2d(3, 3, 1), part()))
    with pytest.raises(UnsupportedError, match=said) as found:
        from_torch(module, (1, 3, 8, 8))
    assert "\n" not in str(found.value) and len(str(found.value)) < 400
    assert capfd.readouterr() == ("", "")
    hooks = [h for m in module.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert not hooks and module.training


def test_what_differs_is_refused(monkeypatch):
    real = exporter._exported

    def spoiled(*args):  # type: ignore[no-untyped-def]
        proto = real(*args)
        bias = next(t for t in proto.graph.initializer if t.name == "bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.01), "bias"))
        return proto

    monkeypatch.setattr(exporter, "_exported", spoiled)
    with pytest.raises(InputError, match=r"differs from Conv2d: 'output' is off by 0\.01, .* on input 1 of 4"):
        from_torch(nn.Conv2d(3, 4, 3), (1, 3, 8, 8), inputs=[rand(1, 3, 8, 8)])


def test_bad_input():
    class Random(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, True)

    class Number(nn.Module):
        def forward(self, x):
            return {"boxes": x, "count": 3}

    with pytest.raises(InputError, match="Random gives another 'output' each time"):
        from_torch(Random(), (1, 3))
    with pytest.raises(InputError, match="Number returns int"):
        from_torch(Number(), (1, 3))
    with pytest.raises(InputError, match=r"shape \(2, 3, 8, 8\); hand in one image"):
        from_torch(nn.ReLU(), (2, 3, 8, 8))
    with pytest.raises(InputError, match=r"takes an nn\.Module, not dict"):
        from_torch({}, (1, 3))
    with pytest.raises(InputError, match=r"shape \(1, 4\), but the example \(1, 3\)"):
        from_torch(nn.ReLU(), (1, 3), inputs=[rand(1, 4)])
    with pytest.raises(InputError, match=r"roadworthy\.from_torch"):
        to_state_dict(load(build([N("Relu", ["x"], ["y"])])))


@pytest.mark.parametrize("entry", ["[]", "{", '{"w": {"at": "w"}}', '{"w": {"at": "w", "shape": [3], "perm": [1]}}'])
def test_a_damaged_entry_is_refused(entry: str):
    proto = build([N("Conv", ["x", "w"], ["y"])], {"w": rand(4, 3, 3, 3)})
    onnx.helper.set_model_props(proto, {STATE_KEY: entry})
    with pytest.raises(InputError, match=f"`{STATE_KEY}` is damaged"):
        to_state_dict(load(proto))


def test_without_the_exporter_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(exporter, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(MissingExtraError, match=r"needs onnxscript: .*roadworthy\[train\]"):
        from_torch(nn.ReLU(), (1, 3))


def test_nothing_is_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_torch(nn.Conv2d(3, 4, 3), (1, 3, 8, 8))
