"""Exact selection, ties included."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_bsqh.regularizers.selection import keep_largest


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]) | st.floats(0, 3, width=32), min_size=1, max_size=40), st.data())
def test_keeps_the_first_of_the_largest(scores: list[float], draw: st.DataObject) -> None:
    count = draw.draw(st.integers(0, len(scores)))
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]
    keep = keep_largest(torch.tensor(scores), count)
    assert torch.nonzero(keep).flatten().tolist() == sorted(expected)


def test_many_equal_scores() -> None:
    keep = keep_largest(torch.ones(10_000), 777)
    assert keep[:777].all()
    assert not keep[777:].any()
