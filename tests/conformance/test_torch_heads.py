"""Every differentiable decoder against the NumPy one, on the same outputs, and its gradient against differences."""

from __future__ import annotations

import numpy as np
import pytest
from test_decoders import CASES

from roadworthy.detect.decode import DECODERS, decode
from roadworthy.errors import InputError, UnsupportedError

torch = pytest.importorskip("torch")


def outputs_of(name: str):  # type: ignore[no-untyped-def]
    outputs, spec, *_ = CASES[name](np.random.default_rng(7))
    return {k: torch.from_numpy(v).double().requires_grad_() for k, v in outputs.items()}, outputs, spec


def test_every_kind_has_a_row():
    from roadworthy.run.torch.heads import HEADS

    assert set(HEADS) == set(DECODERS) <= {CASES[c](np.random.default_rng(0))[1].kind for c in CASES}


@pytest.mark.parametrize("name", CASES)
def test_same_boxes_and_scores(name: str):
    from roadworthy.run.torch.heads import decode as differentiable

    tensors, outputs, spec = outputs_of(name)
    if len(outputs) > 2 and spec.kind == "ssd":
        with pytest.raises(UnsupportedError, match="in front of NMS"):
            differentiable(tensors, spec)
        return
    boxes, scores = differentiable(tensors, spec)
    wanted = decode(outputs, spec)
    # float64 here, float32 there: 2^-20 of pixels up to a few hundred, of scores up to 1
    assert np.abs(boxes.detach().numpy() - wanted[0]).max() <= 2**-20 * max(np.abs(wanted[0]).max(), 100)
    assert np.abs(scores.detach().numpy() - wanted[1]).max() <= 2**-20

    keys = list(tensors)

    def run(*given):  # type: ignore[no-untyped-def]
        return differentiable(dict(zip(keys, given)), spec)

    assert torch.autograd.gradcheck(run, [*tensors.values()], atol=1e-6, rtol=1e-5, fast_mode=True)


def test_outputs_of_another_shape_are_refused_as_by_the_other():
    from roadworthy.run.torch.heads import decode as differentiable

    _, _, spec = outputs_of("yolox")
    with pytest.raises(InputError, match="yolox: output 'y' has shape"):
        differentiable({"y": torch.zeros(1, 5, 5)}, spec)
