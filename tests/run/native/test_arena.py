"""The arena: buffers that live at the same time never overlap, and memory is shared."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from roadworthy.run.native.arena import ALIGN, SLACK, Life, assign, padded

lives = st.builds(
    lambda size, first, span: Life(size, first, first + span),
    st.integers(1, 5000), st.integers(0, 30), st.integers(0, 12),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(lives, min_size=1, max_size=40))
def test_no_two_live_buffers_overlap(buffers: list[Life]):
    offsets, total = assign(buffers)
    for k, (a, at) in enumerate(zip(buffers, offsets)):
        assert at % ALIGN == 0 and at + a.size + SLACK <= total
        for b, other in list(zip(buffers, offsets))[:k]:
            together = a.first <= b.last and b.first <= a.last
            assert not together or at + a.size + SLACK <= other or other + b.size + SLACK <= at
    # No less than what lives at once, no more than everything apart.
    most = max(sum(padded(b.size) for b in buffers if b.first <= t <= b.last) for t in range(45))
    assert most <= total <= sum(padded(b.size) for b in buffers)


def test_a_chain_takes_two_buffers():
    chain = [Life(1000, k, k + 1) for k in range(20)]
    assert assign(chain)[1] == 2 * padded(1000)


def test_a_hole_is_filled_by_what_fits_best():
    buffers = [Life(10000, 0, 1), Life(1000, 0, 3), Life(5000, 0, 1), Life(1000, 0, 3), Life(5000, 2, 3)]
    assert assign(buffers)[1] <= sum(padded(n) for n in (10000, 1000, 5000, 1000))
