"""Alignment figures against sums done with NumPy on what ONNX Runtime computes, and what alignment refuses."""

from __future__ import annotations

import io
import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from roadworthy.check.align import align, table
from roadworthy.check.moments import EXACT_DB, Centred, Moments
from roadworthy.errors import InputError
from roadworthy.model.encoding import Encoding
from roadworthy.model.model import Model, load
from roadworthy.model.qdq import to_qdq

RNG = np.random.default_rng(5)
W1 = RNG.normal(size=(6, 3, 3, 3)).astype(np.float32)
B1 = RNG.normal(size=6).astype(np.float32)
W2 = RNG.normal(size=(4, 6, 1, 1)).astype(np.float32)
IMAGES = [RNG.normal(size=(1, 3, 8, 8)).astype(np.float32) for _ in range(3)]


def chain(w1=W1, w2=W2, b1=B1, size=8, prefix="", pad=False, norm=None) -> Model:
    """Conv (or Pad, Conv, BatchNormalization), Relu, Conv; values are called first, relu and second."""
    constants = {"w1": w1, "w2": w2, "b1": b1}
    nodes = []
    source, pads = "x", [1] * 4
    if pad:
        constants["amounts"] = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
        nodes.append(helper.make_node("Pad", ["x", "amounts"], ["padded"]))
        source, pads = "padded", [0] * 4
    made = "conv" if norm else prefix + "first"
    nodes.append(helper.make_node("Conv", [source, "w1", "b1"], [made], name="one", pads=pads))
    if norm:
        constants.update({k: v for k, v in zip(("gamma", "beta", "mean", "var"), norm)})
        nodes.append(helper.make_node("BatchNormalization", ["conv", "gamma", "beta", "mean", "var"], ["first"]))
    nodes.append(helper.make_node("Relu", [prefix + "first"], [prefix + "relu"], name="bend"))
    nodes.append(helper.make_node("Conv", [prefix + "relu", "w2"], [prefix + "second"], name="two"))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, size, size))],
        [helper.make_tensor_value_info(prefix + "second", TensorProto.FLOAT, (1, 4, size, size))],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def values(model: Model, name: str) -> np.ndarray:
    """All values of one tensor over all images, (images, C, H, W), by ONNX Runtime."""
    proto = onnx.load_model_from_string(model.float_bytes())
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": x})[0] for x in IMAGES]).astype(np.float64)


def tensor(outcome, name):
    return next(t for t in outcome.tensors if t.name == name)


def test_accumulated_figures() -> None:
    a, b = chain(), chain(w1=W1 + RNG.normal(0, 0.01, W1.shape).astype(np.float32), b1=B1 + np.float32(0.02))
    found = tensor(align(a, b, iter(IMAGES), threads=1), "second").accumulated
    x, y = values(a, "second"), values(b, "second")
    d = y - x
    assert found.sqnr_db == pytest.approx(10 * np.log10((x**2).sum() / (d**2).sum()), abs=1e-3)
    assert found.cosine == pytest.approx((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()), abs=1e-7)
    assert found.max_error == pytest.approx(np.abs(d).max(), rel=1e-4)
    assert found.relative_l2 == pytest.approx(np.sqrt((d**2).sum() / (x**2).sum()), rel=1e-4)
    assert found.gain == pytest.approx((x * y).sum() / (x * x).sum(), abs=1e-6)
    assert found.mean_shift == pytest.approx(d.mean() / np.sqrt((x**2).mean()), rel=1e-3)
    gains = (x * y).sum((0, 2, 3)) / (x * x).sum((0, 2, 3))
    worst = np.abs(gains - 1).argmax()
    assert (found.worst_channel, found.worst_gain) == (worst, pytest.approx(gains[worst], abs=1e-6))


def test_local_error_belongs_to_the_layer_that_makes_it() -> None:
    a, b = chain(), chain(w1=W1 + RNG.normal(0, 0.05, W1.shape).astype(np.float32))
    outcome = align(a, b, IMAGES, threads=1)
    first, second = tensor(outcome, "first"), tensor(outcome, "second")
    assert first.local == first.accumulated  # nothing lies in front of it
    assert first.local.sqnr_db < 40
    assert second.accumulated.sqnr_db < 40
    assert second.local.sqnr_db == EXACT_DB  # the same layer on the same tensors
    assert tensor(outcome, "relu").local.sqnr_db == EXACT_DB


def test_encoding_figures() -> None:
    a = chain()
    spread = values(a, "relu")
    scale = np.float32(0.6 * spread.max() / 255)
    small = a.with_encodings(
        {
            "x": Encoding(np.float32(8 / 255), np.int64(128)),
            "w2": Encoding(np.abs(W2).max((1, 2, 3)) / 127, np.zeros(4, np.int64), 8, True, 0),
            "relu": Encoding(scale, np.int64(0)),
        },
        "by hand",
    )
    outcome = align(a, load(to_qdq(small)), IMAGES, threads=1)
    coded = tensor(outcome, "relu").encoding
    y = np.clip(np.rint(spread / scale), 0, 255) * scale
    assert coded.error.sqnr_db == pytest.approx(10 * np.log10((spread**2).sum() / ((y - spread) ** 2).sum()), abs=1e-2)
    assert coded.clipped_share == pytest.approx((spread > 255.5 * scale).mean(), abs=1e-9)
    assert coded.clipped_share > 0
    assert coded.used == pytest.approx(1 / 0.6, rel=1e-5)
    assert (coded.lo, coded.hi) == (0.0, pytest.approx(255 * scale))
    # The layer behind: its local error holds the rounding of its input, its compute error only that of its weights.
    second = tensor(outcome, "second")
    rounded = small.encodings["w2"].fake(W2).astype(np.float64)[:, :, 0, 0]
    full = W2.astype(np.float64)[:, :, 0, 0]
    a_local, a_shadow = (np.einsum("oc,nchw->nohw", full, v) for v in (spread, y))
    b_local = np.einsum("oc,nchw->nohw", rounded, y)
    for found, reference in ((second.local, a_local), (second.compute, a_shadow)):
        noise = ((b_local - reference) ** 2).sum()
        assert found.sqnr_db == pytest.approx(10 * np.log10((reference**2).sum() / noise), abs=0.05)
    assert second.compute.sqnr_db > second.local.sqnr_db + 3


def test_passes_of_little_memory_agree_with_one_pass() -> None:
    a = chain()
    b = load(to_qdq(a.with_encodings({"w1": Encoding(np.float32(0.02), np.int64(0), 8, True)}, "by hand")))
    whole, parts = (align(a, b, IMAGES, threads=1, memory_bytes=m) for m in (1 << 30, 1))
    assert whole.to_json() == parts.to_json()


def test_batch_norm_and_pad_that_one_side_has_folded() -> None:
    norm = [np.abs(RNG.normal(1, 0.2, 6)).astype(np.float32) for _ in range(4)]
    k = norm[0] / np.sqrt(norm[3] + 1e-5)
    folded = chain(w1=W1 * k[:, None, None, None], b1=(B1 - norm[2]) * k + norm[1])
    original = chain(pad=True, norm=norm)
    sound = align(original, folded, IMAGES, threads=1)
    assert sound.findings == ()
    assert set(sound.unmatched) == {"padded", "conv"}
    assert tensor(sound, "first").where == "one"
    scaled = chain(w1=1.02 * W1 * k[:, None, None, None], b1=(B1 - norm[2]) * k + norm[1])
    assert [(f.kind, f.where) for f in align(original, scaled, IMAGES, threads=1).findings] == [("scale", "one")]


def test_a_model_against_itself() -> None:
    outcome = align(chain(), chain(), IMAGES, threads=1)
    assert outcome.findings == ()
    assert (outcome.first_where, outcome.first) == (None, "no divergence: the two are equal")
    assert {t.accumulated.sqnr_db for t in outcome.tensors} == {EXACT_DB}


def test_a_layer_that_stands_out_without_a_fault() -> None:
    """Random weight noise has no name, but it is the first divergence."""
    a, b = chain(), chain(w2=W2 + RNG.normal(0, 0.5, W2.shape).astype(np.float32))
    outcome = align(a, b, IMAGES, threads=1)
    assert outcome.first_where == "two"


def test_rows_json_and_table() -> None:
    done: list[int] = []
    outcome = align(chain(), chain(w1=1.02 * W1), IMAGES, threads=1, progress=done.append)
    assert done == [1, 2, 3]
    rows = outcome.rows()
    assert [(r["name"], r["op"], r["output"], r["shape"]) for r in rows] == [
        ("one", "Conv+Relu", "relu", [1, 6, 8, 8]),
        ("two", "Conv", "second", [1, 4, 8, 8]),
    ]
    assert set(rows[0]) == {"name", "op", "output", "shape", "sqnr_db", "local_sqnr_db", "cosine", "max_error"}
    assert rows[0]["local_sqnr_db"] == pytest.approx(tensor(outcome, "first").local.sqnr_db)
    assert [r["output"] for r in outcome.rows(inner=True)] == ["first", "relu", "second"]
    document = json.loads(outcome.to_json())
    assert document["findings"][0]["where"] == "one"
    assert document["first_divergence"]["where"] == "one"
    assert [t["name"] for t in document["tensors"]] == ["first", "relu", "second"]
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    console.print(table(outcome, top=1))
    worst, better = sorted(rows, key=lambda r: r["sqnr_db"])
    assert worst["output"] in console.file.getvalue() and better["output"] not in console.file.getvalue()


def test_quantized_by_another_tool(tmp_path) -> None:
    """ONNX Runtime's own quantizer names values in its own way."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter([{"x": x} for x in IMAGES])

        def get_next(self):
            return next(self.rest, None)

    path = tmp_path / "small.onnx"
    proto = onnx.load_model_from_string(chain().float_bytes())
    quantize_static(proto, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8)
    small = load(path)
    outcome = align(chain(), small, IMAGES, threads=1)
    assert outcome.findings == ()
    assert "second" in [t.name for t in outcome.tensors]
    assert 20 < tensor(outcome, "second").accumulated.sqnr_db < 60
    proto = onnx.load(path)
    dq = next(n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0].startswith("w1"))
    scale = next(t for t in proto.graph.initializer if t.name == dq.input[1])
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1.02), scale.name))
    findings = align(chain(), load(proto), IMAGES, threads=1).findings
    assert [(f.kind, f.where) for f in findings] == [("scale", "one")]


REFUSED = {
    "no image": (lambda: align(chain(), chain(), []), "no images to align"),
    "wrong tensor": (
        lambda: align(chain(), chain(), [IMAGES[0][:, :2]]),
        r"image 1 .* of shape \(1, 2, 8, 8\)",
    ),
    "other names": (lambda: align(chain(), chain(prefix="p/"), IMAGES), "no value name in common"),
    "other input": (lambda: align(chain(), chain(size=10), IMAGES), "1x3x10x10"),
    "pruned": (
        lambda: align(chain(), chain(w1=W1[:5], b1=B1[:5], w2=W2[:, :5]), IMAGES),
        "'first' is 1x6x8x8 in .* and 1x5x8x8",
    ),
    "NaN": (lambda: align(chain(), chain(), [IMAGES[0], np.full_like(IMAGES[0], np.nan)]), "on image 2 the tensor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    call, said = REFUSED[case]
    with pytest.raises(InputError, match=said):
        call()


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_streamed_moments_equal_moments_of_everything(offset: float) -> None:
    x = RNG.normal(offset, 1.0, (7, 4, 5, 5)).astype(np.float32)
    y = (x * 1.01 + 0.02 + RNG.normal(0, 0.005, x.shape)).astype(np.float32)
    streamed = Moments()
    for k in range(len(x)):
        streamed.add(Centred(x[k : k + 1], 1), y[k : k + 1])
    fit = streamed.fit()
    assert fit.count == 7 * 25
    for c in range(4):
        u, v = x[:, c].reshape(-1).astype(np.float64), y[:, c].reshape(-1).astype(np.float64)
        slope = np.polyfit(u - u.mean(), v, 1)[0]
        assert fit.slope[c] == pytest.approx(slope, abs=2e-4)
        assert fit.mean[c] + fit.shift[c] == pytest.approx(v.mean(), abs=1e-4 * max(offset, 1))
        assert fit.residual[c] == pytest.approx(np.std(v - slope * (u - u.mean())), rel=0.05)
        assert fit.correlation[c] == pytest.approx(np.corrcoef(u, v)[0, 1], abs=1e-4)
    pooled = streamed.pooled().fit()
    assert pooled.slope[0] == pytest.approx(np.polyfit(x.reshape(-1), y.reshape(-1).astype(np.float64), 1)[0], abs=2e-4)
