"""Group L0: what is counted, what is dropped, against all choices of groups (method §3)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_bsqh import Backtracking, BSQHOptimizer, GroupL0

POINT = st.sampled_from([0.0, 0.5, -0.5, 1.0, -1.0]) | st.floats(-2, 2, width=32)
POSITIVE = st.sampled_from([0.25, 0.5, 1.0, 2.0]) | st.floats(0.125, 5, width=32)


@settings(deadline=None, max_examples=150)
@given(
    values=st.lists(st.tuples(POINT, POSITIVE), min_size=12, max_size=12),
    rho=st.just(0.0) | POSITIVE,
    epsilon=POSITIVE,
    groups=st.sampled_from(["output", "input"]),
    weight=st.sampled_from(["count", "size"]),
)
def test_no_choice_of_groups_is_better(
    values: list[tuple[float, float]], rho: float, epsilon: float, groups: str, weight: str
) -> None:
    z, d = torch.tensor(values, dtype=torch.float64).T.reshape(2, 2, 3, 2, 1)
    regularizer = GroupL0(rho, groups, weight)
    u = z.clone()
    regularizer.prox_([u], [d], epsilon)
    axis = 0 if groups == "output" else 1
    best = -math.inf
    for mask in itertools.product([False, True], repeat=z.shape[axis]):
        candidate = z.clone()
        candidate[(slice(None),) * axis + (torch.tensor([not kept for kept in mask]),)] = 0.0
        nonzero = sum(bool((candidate.select(axis, g) != 0).any()) for g in range(z.shape[axis]))
        price = rho * nonzero * (12 / z.shape[axis] if weight == "size" else 1)
        assert regularizer.penalty([candidate]) == pytest.approx(price)
        best = max(best, -price - epsilon * float((d * (candidate - z) ** 2).sum()))
    assert -regularizer.penalty([u]) - epsilon * float((d * (u - z) ** 2).sum()) >= best - 1e-12


def test_a_tie_goes_to_zero_and_a_kept_group_keeps_its_zeros() -> None:
    points = torch.tensor([[1.0, 1.0], [1.0, 1.01], [0.0, 2.0]])
    GroupL0(rho=4.0).prox_([points], [2.0], 1.0)
    assert points.tolist() == [[0.0, 0.0], [1.0, pytest.approx(1.01)], [0.0, 2.0]]


def test_filters_of_a_network_vanish_whole() -> None:
    network = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 4, 3)).double()
    x, y = torch.randn(20, 2, 4, 4, dtype=torch.float64), torch.randint(3, (20,))
    rule = Backtracking(epsilon=0.1)
    optimizer = BSQHOptimizer(
        network, regularizer=GroupL0(rho=0.05), regularize=["0.weight"], metric="euclidean", augmentation=rule
    )
    for _ in range(60):
        optimizer.step(lambda: nn.functional.cross_entropy(network(x), y))
    empty = [bool((row == 0).all()) for row in network[0].weight]
    assert 0 < sum(empty) < 6
    assert all(bool((row != 0).all()) for row, zero in zip(network[0].weight, empty, strict=True) if not zero)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="groups must be 'output' or 'input', got 'rows'"):
        GroupL0(groups="rows")
    with pytest.raises(ValueError, match="weight must be 'count' or 'size', got 1"):
        GroupL0(weight=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rho"):
        GroupL0(rho=-1.0)
    with pytest.raises(ValueError, match=r"more than 1 dimensions, but a regularized one has the shape \(3,\)"):
        GroupL0(groups="input").penalty([torch.zeros(3)])
    assert GroupL0(rho=2.0).penalty([torch.tensor([1.0, 0.0, 3.0])]) == 4.0
