"""Every maximiser against brute force over a grid (method §3)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_bsqh import L0, L1, L2, Cardinality

# Values that make ties and exact zeros likely.
POINT = st.sampled_from([0.0, 0.5, -0.5, 1.0, -1.0]) | st.floats(-2, 2, width=32)
POSITIVE = st.sampled_from([0.25, 0.5, 1.0, 2.0]) | st.floats(0.125, 5, width=32)
PENALTIES = {"l0": L0, "l1": L1, "l2": L2}


def maximum(kind: str, z: float, d: float, epsilon: float, rho: float, u: torch.Tensor) -> torch.Tensor:
    """−ρR(u) − εD(u−z)² for every u of a grid."""
    value = {"l0": (u != 0).double(), "l1": u.abs(), "l2": u.square()}[kind]
    return -rho * value - epsilon * d * (u - z) ** 2


@settings(deadline=None, max_examples=200)
@given(kind=st.sampled_from(sorted(PENALTIES)), z=POINT, d=POSITIVE, epsilon=POSITIVE, rho=st.just(0.0) | POSITIVE)
def test_no_grid_point_is_better(kind: str, z: float, d: float, epsilon: float, rho: float) -> None:
    points = torch.tensor([[z]], dtype=torch.float64)
    PENALTIES[kind](rho=rho).prox_([points], [torch.tensor([[d]], dtype=torch.float64)], epsilon)
    grid = torch.cat([torch.linspace(-3, 3, 6001, dtype=torch.float64), torch.tensor([0.0, z], dtype=torch.float64)])
    best = maximum(kind, z, d, epsilon, rho, grid).max()
    assert maximum(kind, z, d, epsilon, rho, points.flatten())[0] >= best - 1e-12


@pytest.mark.parametrize("kind", sorted(PENALTIES))
def test_scalar_metric_is_the_constant_tensor(kind: str) -> None:
    torch.manual_seed(0)
    first = torch.randn(4, 5)
    second = first.clone()
    PENALTIES[kind](rho=0.3).prox_([first], [2.0], 0.7)
    PENALTIES[kind](rho=0.3).prox_([second], [torch.full((4, 5), 2.0)], 0.7)
    torch.testing.assert_close(first, second)


def test_ties_of_l0_go_to_zero() -> None:
    points = torch.tensor([1.0, -1.0, 1.0001])
    L0(rho=2.0).prox_([points], [1.0], 2.0)
    assert points.tolist() == [0.0, 0.0, pytest.approx(1.0001)]


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.tuples(POINT, POSITIVE), min_size=1, max_size=7),
    sparsity=st.floats(0, 0.99),
    epsilon=POSITIVE,
)
def test_cardinality_is_the_best_support(values: list[tuple[float, float]], sparsity: float, epsilon: float) -> None:
    z = torch.tensor([v for v, _ in values], dtype=torch.float64)
    d = torch.tensor([v for _, v in values], dtype=torch.float64)
    kept = len(values) - round(sparsity * len(values))
    best = -math.inf
    for support in itertools.combinations(range(len(values)), kept):
        dropped = [i for i in range(len(values)) if i not in support]
        best = max(best, -epsilon * float((d[dropped] * z[dropped] ** 2).sum()))
    # Over two tensors, so that the choice has to be made over both together.
    parts = [z[:3].clone(), z[3:].clone()]
    Cardinality(sparsity, ramp=(0.0, 0.0)).prox_(parts, [d[:3], d[3:]], epsilon)
    u = torch.cat(parts)
    assert int(torch.count_nonzero(u)) <= kept
    assert -epsilon * float((d * (u - z) ** 2).sum()) >= best - 1e-12
    assert all(a == 0 or a == b for a, b in zip(u.tolist(), z.tolist(), strict=True))


def test_penalties_count_what_is_thresholded() -> None:
    weights = [torch.tensor([[1.0, 0.0], [-2.0, 0.0]]), torch.tensor([[3.0]])]
    assert L0(rho=0.5).penalty(weights) == pytest.approx(1.5)
    assert L1(rho=0.5).penalty(weights) == pytest.approx(3.0)
    assert L2(rho=0.5).penalty(weights) == pytest.approx(7.0)
    assert Cardinality(0.5).penalty(weights) == 0.0
