"""View algebra against NumPy: random chains of moves give the same elements, and None only where strides cannot."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from roadworthy.run.native.views import (
    View,
    c_strides,
    contiguous,
    expand,
    inverse,
    merged,
    reshape,
    take,
    transpose,
)


def seen(view: View, memory: np.ndarray) -> np.ndarray:
    return as_strided(memory[view.offset :], view.dims, [8 * s for s in view.strides])


def factors(draw: st.DrawFn, size: int) -> list[int]:
    dims = []
    while size > 1 and draw(st.booleans()):
        f = draw(st.sampled_from([f for f in range(1, size + 1) if size % f == 0]))
        dims.append(f)
        size //= f
    return [*dims, size]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_chains_of_moves_see_what_numpy_sees(data: st.DataObject):
    dims = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    memory = np.arange(int(np.prod(dims)) + 7)
    view = View(tuple(dims), c_strides(dims), 7)
    array = memory[7:].reshape(dims)
    for _ in range(data.draw(st.integers(1, 6))):
        kind = data.draw(st.sampled_from(["reshape", "transpose", "take"]))
        if kind == "transpose":
            order = data.draw(st.permutations(range(len(view.dims))))
            view, array = transpose(view, order), array.transpose(order)
            assert transpose(transpose(view, inverse(order)), order) == view
        elif kind == "take":
            axis = data.draw(st.integers(0, len(view.dims) - 1))
            start = data.draw(st.integers(0, view.dims[axis] - 1))
            step = data.draw(st.integers(1, 3))
            count = len(range(start, view.dims[axis], step))
            view = take(view, axis, start, step, count)
            array = array[(slice(None),) * axis + (slice(start, None, step),)]
        else:
            wanted = data.draw(st.composite(factors)(view.size))
            made = reshape(view, wanted)
            moved = array.reshape(wanted)
            if made is None:
                # NumPy agrees that there are no strides: it had to copy.
                assert not np.shares_memory(moved, memory)
                continue
            view, array = made, moved
        assert view.dims == array.shape
        assert np.array_equal(seen(view, memory), array)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_merging_dimensions_keeps_elements_and_order(data: st.DataObject):
    dims = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    memory = np.arange(int(np.prod(dims)))
    views = [contiguous(dims), transpose(contiguous([dims[k] for k in range(len(dims))][::-1]), range(len(dims))[::-1])]
    made = merged(views, 5)
    assert made is not None and made[0].dims == made[1].dims
    for before, after in zip(views, made):
        assert np.array_equal(seen(before, memory).reshape(-1), seen(after, memory).reshape(-1))
    assert len(merged(views[:1], 1)[0].dims) == 1  # type: ignore[index]


def test_broadcasting_repeats_with_stride_zero():
    view = expand(View((3, 1), (1, 1), 2), (2, 3, 4))
    assert view == View((2, 3, 4), (0, 1, 0), 2)


def test_more_dimensions_than_the_limit_cannot_be_merged():
    odd = transpose(contiguous((2, 3, 4)), (2, 1, 0))
    assert merged([odd], 2) is None and merged([odd], 3) is not None
