"""Exact selection, ties included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_bsqh.regularizers import selection
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


@pytest.mark.parametrize("kind", ["normal", "sorted", "rounded", "mostly zero", "one large"])
@pytest.mark.parametrize("share", [0.0, 1e-5, 0.02, 0.5, 0.99, 1.0])
def test_many_scores_are_selected_as_few_are(kind: str, share: float) -> None:
    """The sample's shortcut against a plain sort, also where the sample misleads."""
    n = 3 * selection._LARGE // 2
    scores = torch.randn(n, generator=torch.Generator().manual_seed(0)).square()
    if kind == "sorted":
        scores = scores.sort().values
    elif kind == "rounded":
        scores = scores.round(decimals=1)
    elif kind == "mostly zero":
        scores[torch.arange(n) % 17 != 0] = 0.0
    elif kind == "one large":
        scores[:] = 1.0
        scores[5] = 2.0
    count = round(share * n)
    order = torch.sort(scores, descending=True, stable=True).indices[:count]
    expected = torch.zeros(n, dtype=torch.bool)
    expected[order] = True
    assert torch.equal(keep_largest(scores, count), expected)
