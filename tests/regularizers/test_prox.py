"""Every maximizer against brute force over a grid (method §3)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_bsqh import L0, L1, L2, Cardinality, ElasticNet, LHalf, LTwoThirds

# Values that make ties and exact zeros likely.
POINT = st.sampled_from([0.0, 0.5, -0.5, 1.0, -1.0]) | st.floats(-2, 2, width=32)
POSITIVE = st.sampled_from([0.25, 0.5, 1.0, 2.0]) | st.floats(0.125, 5, width=32)
PENALTIES = {
    "l0": L0,
    "l1": L1,
    "l2": L2,
    "elastic": lambda rho: ElasticNet(rho, 2.0 * rho),
    "half": LHalf,
    "two thirds": LTwoThirds,
}
VALUES = {
    "l0": lambda u: (u != 0).double(),
    "l1": torch.abs,
    "l2": torch.square,
    "elastic": lambda u: u.abs() + 2.0 * u.square(),
    "half": lambda u: u.abs().sqrt(),
    "two thirds": lambda u: u.abs().pow(2.0 / 3.0),
}


def maximum(kind: str, z: float, d: float, epsilon: float, rho: float, u: torch.Tensor) -> torch.Tensor:
    """−ρR(u) − εD(u−z)² for every u of a grid."""
    return -rho * VALUES[kind](u) - epsilon * d * (u - z) ** 2


@settings(deadline=None, max_examples=400)
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
    Cardinality(sparsity, ramp=(0.0, 0.0), minimum=0).prox_(parts, [d[:3], d[3:]], epsilon)
    u = torch.cat(parts)
    assert int(torch.count_nonzero(u)) <= kept
    assert -epsilon * float((d * (u - z) ** 2).sum()) >= best - 1e-12
    assert all(a == 0 or a == b for a, b in zip(u.tolist(), z.tolist(), strict=True))


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.tuples(POINT, POSITIVE), min_size=4, max_size=8), sparsity=st.floats(0, 0.99), epsilon=POSITIVE
)
def test_cardinality_per_layer_is_that_of_each_tensor(
    values: list[tuple[float, float]], sparsity: float, epsilon: float
) -> None:
    z, d = torch.tensor(values, dtype=torch.float64).unbind(1)
    together = [z[:3].clone(), z[3:].clone()]
    Cardinality(sparsity, ramp=(0.0, 0.0), scope="layer").prox_(together, [d[:3], d[3:]], epsilon)
    for part, points, metric in zip(together, (z[:3], z[3:]), (d[:3], d[3:]), strict=True):
        alone = points.clone()
        Cardinality(sparsity, ramp=(0.0, 0.0)).prox_([alone], [metric], epsilon)
        assert torch.equal(part, alone)
    assert Cardinality(sparsity, scope="layer").admits(together)


def test_per_layer_and_global_differ() -> None:
    weights = [torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0, 20.0])]
    everywhere, layers = Cardinality(0.5, ramp=(0.0, 0.0)), Cardinality(0.5, ramp=(0.0, 0.0), scope="layer")
    u = [w.clone() for w in weights]
    everywhere.prox_(u, [1.0, 1.0], 1.0)
    assert [w.tolist() for w in u] == [[0.0, 0.0, 0.0, 4.0], [10.0, 20.0]]
    assert everywhere.admits(u)
    assert not layers.admits(u)
    u = [w.clone() for w in weights]
    layers.at(0, 10).prox_(u, [1.0, 1.0], 1.0)
    assert [w.tolist() for w in u] == [[0.0, 0.0, 3.0, 4.0], [0.0, 20.0]]
    with pytest.raises(ValueError, match="scope must be 'global' or 'layer' or 'row' or 'erdos_renyi', got 'tensor'"):
        Cardinality(scope="tensor")


@pytest.mark.parametrize("make", [LHalf, LTwoThirds])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fractional_at_extreme_scales(make: type[LHalf | LTwoThirds], dtype: torch.dtype) -> None:
    """Finite however small or large z and λ are, odd in z, and without effect where λ is negligible."""
    for scale in (1e-30, 1e-12, 1.0, 1e12):
        for rho in (0.0, 1e-40, 1e-20, 1e-5, 1.0, 1e10):
            z = torch.tensor([0.0, -1.0, 1.0, 0.5], dtype=dtype) * scale
            u = z.clone()
            make(rho=rho).prox_([u], [1.0], 1.0)
            assert bool(torch.isfinite(u).all())
            assert bool((u.abs() <= z.abs() * (1 + 1e-6)).all())
            assert u[1] == -u[2]
    z = torch.tensor([1.0, 0.3], dtype=torch.float64)
    make(rho=1e-13).prox_([z], [1.0], 1.0)
    torch.testing.assert_close(z, torch.tensor([1.0, 0.3], dtype=torch.float64), rtol=1e-11, atol=0)


@pytest.mark.parametrize(
    ("make", "factor"), [(LHalf, 54 ** (1 / 3) / 4), (LTwoThirds, 2 / 3 * 3**0.25)], ids=["half", "two thirds"]
)
def test_threshold_of_the_fractional_ones(make: type[LHalf | LTwoThirds], factor: float) -> None:
    """Zero just below the papers' thresholds, a jump just above them."""
    rho = 0.7
    threshold = factor * rho ** (2 / 3 if make is LHalf else 3 / 4)
    z = torch.tensor([threshold * (1 - 1e-12), threshold * (1 + 1e-12)], dtype=torch.float64)
    make(rho=rho).prox_([z], [1.0], 1.0)
    assert z[0] == 0.0
    assert z[1] > threshold / 3


def test_penalties_count_what_is_thresholded() -> None:
    weights = [torch.tensor([[1.0, 0.0], [-2.0, 0.0]]), torch.tensor([[3.0]])]
    assert L0(rho=0.5).penalty(weights) == pytest.approx(1.5)
    assert L1(rho=0.5).penalty(weights) == pytest.approx(3.0)
    assert L2(rho=0.5).penalty(weights) == pytest.approx(7.0)
    assert Cardinality(0.5).penalty(weights) == 0.0
    roots = 0.5 * (1 + 2**0.5 + 3**0.5)
    assert LHalf(rho=0.5).penalty(weights) == pytest.approx(roots)
    assert LTwoThirds(rho=0.5).penalty(weights) == pytest.approx(0.5 * (1 + 2 ** (2 / 3) + 3 ** (2 / 3)))
    assert ElasticNet(rho_l1=0.5, rho_l2=0.1).penalty(weights) == pytest.approx(3.0 + 1.4)
