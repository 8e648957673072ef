"""R + ρ‖u‖²: the maximizer against brute force, alone and in a box, and what a sum passes on (method §3, Sums)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_bsqh import (
    L0,
    L1,
    L2,
    Box,
    BSQHOptimizer,
    Cardinality,
    Discrete,
    ElasticNet,
    GroupL0,
    LHalf,
    LTwoThirds,
    Regularizer,
    check_regularizer,
    pmp_residual,
)
from lightning_bsqh.regularizers import WithL2
from tests.problems import cross_entropy, data, smooth_network

POINT = st.sampled_from([0.0, 0.5, -0.5, 1.0, -1.0]) | st.floats(-2, 2, width=32)
POSITIVE = st.sampled_from([0.25, 0.5, 1.0, 2.0]) | st.floats(0.125, 5, width=32)
SUMS: list[tuple[Regularizer, tuple[float, ...]]] = [
    (L0(rho=0.5) + L2(rho=0.3), ()),
    (L1(rho=0.5) + L2(rho=0.3), ()),
    (LHalf(rho=0.5) + L2(rho=0.3), ()),
    (LTwoThirds(rho=0.5) + L2(rho=0.3), ()),
    (GroupL0(rho=0.5) + L2(rho=0.3), ()),
    (L2(rho=2.0) + Cardinality(0.5, minimum=0), ()),
    (Cardinality(0.5, scope="layer") + L2(rho=0.1), ()),
    (Cardinality(0.5, groups="output") + L2(rho=0.7), ()),
    (Discrete.ternary(0.7) + L2(rho=0.4), (-0.7, 0.7)),
    (L2(rho=0.3, in_metric=True), ()),
    (L0(rho=0.5) + L2(rho=0.3, in_metric=True), ()),
    (L2(rho=0.2) + L2(rho=0.3, in_metric=True), ()),
    (Cardinality(0.5, minimum=0) + L2(rho=0.7, in_metric=True), ()),
    (Box(-0.4, 1.1, Cardinality(0.5) + L2(rho=0.7, in_metric=True)), (-0.4, 1.1)),
    (Box(-0.4, 1.1, Cardinality(0.5) + L2(rho=0.7)), (-0.4, 1.1)),
    (Box(-0.4, 1.1, L0(rho=0.5)) + L2(rho=0.7), (-0.4, 1.1)),
    (Box(-0.4, 1.1, GroupL0(rho=0.5) + L2(rho=0.3)), (-0.4, 1.1)),
]


@pytest.mark.parametrize(("regularizer", "values"), SUMS, ids=lambda value: str(value)[:60])
def test_brute_force(regularizer: Regularizer, values: tuple[float, ...]) -> None:
    check_regularizer(regularizer, problems=6, values=values)


@settings(deadline=None, max_examples=100)
@given(
    values=st.lists(st.tuples(POINT, POSITIVE), min_size=2, max_size=7),
    sparsity=st.floats(0, 0.99),
    epsilon=POSITIVE,
    rho=st.just(0.0) | POSITIVE,
)
def test_no_support_with_its_shrunken_values_is_better(
    values: list[tuple[float, float]], sparsity: float, epsilon: float, rho: float
) -> None:
    z, d = torch.tensor(values, dtype=torch.float64).T
    parts = [z[:2].clone(), z[2:].clone()]
    (Cardinality(sparsity, ramp=(0.0, 0.0), minimum=0) + L2(rho)).prox_(parts, [d[:2], d[2:]], epsilon)
    count = len(values) - round(sparsity * len(values))

    def value(u: torch.Tensor) -> float:
        return -rho * float(u.square().sum()) - epsilon * float((d * (u - z).square()).sum())

    best = -math.inf
    for support in itertools.combinations(range(len(values)), count):
        u = torch.zeros_like(z)
        for i in support:
            u[i] = epsilon * d[i] * z[i] / (epsilon * d[i] + rho)
        best = max(best, value(u))
    assert value(torch.cat(parts)) >= best - 1e-12 * (1 + abs(best))
    assert int(torch.count_nonzero(torch.cat(parts))) <= count


def test_which_weights_stay_depends_on_the_decay() -> None:
    """By (εDz)²/(εD + ρ): what has a small D loses more."""
    points = [torch.tensor([2.0, 1.0])]
    metric = [torch.tensor([0.3, 1.0])]
    alone, both = ([p.clone() for p in points] for _ in range(2))
    Cardinality(0.5, ramp=(0.0, 0.0)).prox_(alone, metric, 1.0)
    (Cardinality(0.5, ramp=(0.0, 0.0)) + L2(rho=1.0)).prox_(both, metric, 1.0)
    assert alone[0].tolist() == [2.0, 0.0]
    assert both[0].tolist() == [0.0, 0.5]


def test_what_adds_up_to_what() -> None:
    assert repr(L1(0.5) + L2(0.25)) == repr(ElasticNet(0.5, 0.25)) == repr(L2(0.25) + L1(0.5))
    assert repr(L2(0.5) + L2(0.25)) == repr(L2(0.75))
    assert repr(ElasticNet(0.5, 0.5) + L2(0.25)) == repr(ElasticNet(0.5, 0.75))
    twice = L0(0.1) + L2(0.5) + L2(0.25)
    assert isinstance(twice, WithL2)
    assert repr(twice) == "L0(rho=0.1) + L2(rho=0.75)"
    with pytest.raises(TypeError, match=r"L0.* \+ L1.* has no maximizer in closed form: only L2 can be added"):
        L0() + L1()
    with pytest.raises(TypeError, match=r"Only a regularizer can be added to L0.*got 1"):
        L0() + 1
    with pytest.raises(TypeError, match="decay must be an L2"):
        WithL2(L0(), L1())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not contain 0"):
        Box(0.5, 1.0, L0() + L2())
    assert (Cardinality() + L2()).needs_total_steps
    assert not (L0() + L2()).needs_total_steps


def test_decay_in_the_metric_is_the_same_factor_for_all() -> None:
    points = [torch.tensor([2.0, -1.0]), torch.tensor([4.0])]
    L2(rho=1.0, in_metric=True).prox_(points, [torch.tensor([0.1, 7.0]), 3.0], 3.0)
    assert [p.tolist() for p in points] == [[1.5, -0.75], [3.0]]
    held = L2(rho=0.5, in_metric=True).held_in([torch.tensor([2.0, 1.0]), 3.0])
    assert float(held.penalty([torch.tensor([1.0, 2.0]), torch.tensor([1.0])])) == 0.5 * (2.0 + 4.0 + 3.0)
    assert float(held.restricted_to([1]).penalty([torch.tensor([1.0])])) == 1.5
    with pytest.raises(ValueError, match="for a known metric only"):
        L2(in_metric=True).penalty([torch.ones(2)])
    assert repr(L2(0.5, in_metric=True) + L2(0.25, in_metric=True)) == "L2(rho=0.75, in_metric=True)"
    assert repr(L1(0.5) + L2(0.25, in_metric=True)) == "L1(rho=0.5) + L2(rho=0.25, in_metric=True)"


@pytest.mark.parametrize("in_metric", [False, True])
@pytest.mark.parametrize("sweep", ["jacobi", "gauss-seidel"])
def test_a_training_meets_its_target_and_has_smaller_weights(sweep: str, in_metric: bool) -> None:
    rho = 5.0 if in_metric else 0.01
    assert trained_length(L2(rho, in_metric), sweep) < trained_length(L2(0.0, in_metric), sweep)


def trained_length(decay: L2, sweep: str) -> float:
    network = smooth_network()
    x, y = data()
    optimizer = BSQHOptimizer(network, regularizer=Cardinality(0.7) + decay, total_steps=40, sweep=sweep)
    for _ in range(40):
        optimizer.step(lambda: cross_entropy(network, x, y))
        assert optimizer.last_step is not None
        assert optimizer.last_step.objective_after <= optimizer.last_step.objective_before
    assert optimizer.meets_constraint()
    assert optimizer.sparsity() == pytest.approx(0.7, abs=0.005)
    return sum(float(p.detach().square().sum()) for p in network.parameters() if p.dim() > 1)


@pytest.mark.parametrize("in_metric", [False, True])
def test_the_certificate_of_a_sum(in_metric: bool) -> None:
    """⟨G, u⟩ − R(u) − ρ‖u‖² is bounded without a box: no support with its best values is better."""
    torch.manual_seed(0)
    network = nn.Linear(4, 2, bias=False).double()
    x, y = data()
    regularizer = Cardinality(0.5, ramp=(0.0, 0.0)) + L2(rho=0.2, in_metric=in_metric)
    d = torch.rand(2, 4, dtype=torch.float64) + 0.5 if in_metric else torch.ones(2, 4, dtype=torch.float64)
    with torch.no_grad():
        regularizer.project_([network.weight], [1.0])
    certificate = pmp_residual(
        network,
        lambda: (network(x[:, :4]) - y[:, None]).square().mean(),
        regularizer=regularizer,
        epsilon=1.0,
        metric={"weight": d},
    )
    gradient = torch.autograd.grad((network(x[:, :4]) - y[:, None]).square().mean(), network.weight)[0]
    best = -math.inf
    for support in itertools.combinations(range(8), 4):
        u = torch.zeros(8, dtype=torch.float64)
        u[list(support)] = (-gradient / (0.4 * d)).flatten()[list(support)]
        best = max(best, float((-gradient.flatten() * u).sum() - 0.2 * (d.flatten() * u.square()).sum()))
    assert certificate.hamiltonian_gap == pytest.approx(best - certificate.hamiltonian, rel=1e-9)
    assert certificate.total >= 0.0
