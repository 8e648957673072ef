"""The box constraint, alone and with each regularizer, against brute force (method §3)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

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
)
from tests.problems import cross_entropy, data, smooth_network

POINT = st.sampled_from([0.0, 0.5, -0.5, 1.0, -1.0]) | st.floats(-2, 2, width=32)
POSITIVE = st.sampled_from([0.25, 0.5, 1.0, 2.0]) | st.floats(0.125, 5, width=32)
ENDS = st.tuples(POINT, POINT).filter(lambda ends: ends[0] != ends[1]).map(sorted)
VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "l0": lambda u: (u != 0).double(),
    "l1": torch.abs,
    "l2": torch.square,
    "elastic": lambda u: u.abs() + 2.0 * u.square(),
    "half": lambda u: u.abs().sqrt(),
    "two thirds": lambda u: u.abs().pow(2.0 / 3.0),
}
MAKE: dict[str, Callable[[float], Regularizer]] = {
    "l0": L0,
    "l1": L1,
    "l2": L2,
    "elastic": lambda rho: ElasticNet(rho, 2.0 * rho),
    "half": LHalf,
    "two thirds": LTwoThirds,
}
CONVEX = ("l1", "l2", "elastic")


@settings(deadline=None, max_examples=400)
@given(
    kind=st.sampled_from(sorted(MAKE)), z=POINT, d=POSITIVE, epsilon=POSITIVE, rho=st.just(0.0) | POSITIVE, ends=ENDS
)
def test_no_grid_point_in_the_box_is_better(
    kind: str, z: float, d: float, epsilon: float, rho: float, ends: tuple[float, float]
) -> None:
    low, high = ends
    if kind not in CONVEX and not low <= 0.0 <= high:
        with pytest.raises(ValueError, match="does not contain 0"):
            Box(low, high, MAKE[kind](rho))
        return
    box = Box(low, high, MAKE[kind](rho))
    points = torch.tensor([[z]], dtype=torch.float64)
    box.prox_([points], [torch.tensor([[d]], dtype=torch.float64)], epsilon)
    assert box.admits([points])
    grid = torch.cat([torch.linspace(low, high, 4001, dtype=torch.float64), torch.tensor([0.0, z]).double()])
    grid = grid[(grid >= low) & (grid <= high)]
    values = [-rho * VALUES[kind](u) - epsilon * d * (u - z) ** 2 for u in (points.flatten(), grid)]
    assert values[0][0] >= values[1].max() - 1e-12


@settings(deadline=None, max_examples=100)
@given(
    values=st.lists(st.tuples(POINT, POSITIVE), min_size=4, max_size=6),
    low=st.sampled_from([-1.5, -0.5, 0.0]),
    high=st.sampled_from([0.25, 1.0]),
    sparsity=st.floats(0, 0.99),
)
def test_cardinality_in_a_box_is_the_best_support(
    values: list[tuple[float, float]], low: float, high: float, sparsity: float
) -> None:
    z, d = torch.tensor(values, dtype=torch.float64).unbind(1)
    n = len(values)
    kept = n - round(sparsity * n)
    best = -math.inf
    for support in itertools.combinations(range(n), kept):
        u = torch.zeros(n, dtype=torch.float64)
        u[list(support)] = z[list(support)].clamp(low, high)
        best = max(best, -float((d * (u - z) ** 2).sum()))
    box = Box(low, high, Cardinality(sparsity, ramp=(0.0, 0.0), minimum=0))
    parts = [z[:3].clone(), z[3:].clone()]
    box.prox_(parts, [d[:3], d[3:]], 0.7)
    assert box.admits(parts)
    assert -float((d * (torch.cat(parts) - z) ** 2).sum()) >= best - 1e-12


@settings(deadline=None, max_examples=100)
@given(
    values=st.lists(st.tuples(POINT, POSITIVE), min_size=6, max_size=6),
    low=st.sampled_from([-1.5, -0.5, 0.0]),
    high=st.sampled_from([0.25, 1.0]),
    rho=POSITIVE,
    groups=st.sampled_from(["output", "input"]),
    weight=st.sampled_from(["count", "size"]),
)
def test_groups_in_a_box_are_the_best_choice(
    values: list[tuple[float, float]], low: float, high: float, rho: float, groups: str, weight: str
) -> None:
    z, d = torch.tensor(values, dtype=torch.float64).T.reshape(2, 3, 2)
    box = Box(low, high, GroupL0(rho, groups, weight))
    u = z.clone()
    box.prox_([u], [d], 0.7)
    assert box.admits([u])
    axis = 0 if groups == "output" else 1
    best = -math.inf
    for mask in itertools.product([0.0, 1.0], repeat=z.shape[axis]):
        kept = torch.tensor(mask).double()
        candidate = z.clamp(low, high) * (kept[:, None] if axis == 0 else kept)
        price = rho * (6 / z.shape[axis] if weight == "size" else 1.0) * sum(mask)
        best = max(best, -price - 0.7 * float((d * (candidate - z) ** 2).sum()))
    assert -box.penalty([u]) - 0.7 * float((d * (u - z) ** 2).sum()) >= best - 1e-12


def test_levels_outside_the_box_are_left_out() -> None:
    box = Box(-0.5, 0.5, Discrete([-1.0, -0.5, 0.0, 0.6]))
    points = torch.tensor([-3.0, -0.3, 0.2, 3.0])
    box.prox_([points], [1.0], 1.0)
    assert points.tolist() == [-0.5, -0.5, 0.0, 0.0]
    assert box.admits([points])
    assert not box.admits([torch.tensor([0.6])])
    with pytest.raises(ValueError, match="none of the levels"):
        Box(0.1, 0.5, Discrete([-1.0, 0.0, 0.6]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ends_that_the_dtype_cannot_hold(dtype: torch.dtype) -> None:
    for box in (Box(-0.1, 0.3), Box(-0.1, 0.3, L0(rho=1e-3)), Box(-0.1, 0.3, Discrete([-0.1, 0.3]))):
        points = torch.tensor([-2.0, 0.01, 2.0]).to(dtype)
        assert not box.admits([points])
        box.prox_([points], [1.0], 1.0)
        assert box.admits([points])
    assert not Box().admits([torch.tensor([math.nan])])


def test_one_end_only() -> None:
    points = torch.tensor([-2.0, 0.5, 2.0])
    Box(0.0, None).prox_([points], [1.0], 1.0)
    assert points.tolist() == [0.0, 0.5, 2.0]
    Box(None, 1.0).prox_([points], [1.0], 1.0)
    assert points.tolist() == [0.0, 0.5, 1.0]
    assert repr(Box(0.0, None, L1(rho=1.0))) == "Box(low=0.0, high=None, regularizer=L1(rho=1))"


def test_ramp_inside_a_box() -> None:
    network, (x, y) = smooth_network(), data()
    box = Box(-0.2, 0.3, Cardinality(0.8))
    assert box.needs_total_steps
    with pytest.raises(ValueError, match="total_steps must be given"):
        BSQHOptimizer(smooth_network(), regularizer=box).check_ready()
    optimizer = BSQHOptimizer(network, regularizer=box, total_steps=40)
    for _ in range(40):
        optimizer.step(lambda: cross_entropy(network, x, y))
        assert all(((w >= -0.2) & (w <= 0.3)).all() for w in network.parameters() if w.dim() >= 2)
    weights = [w for w in network.parameters() if w.dim() >= 2]
    assert sum(int((w == 0).sum()) for w in weights) >= round(0.8 * sum(w.numel() for w in weights))


class Own(Regularizer):
    def penalty(self, weights):
        return 0.0

    def prox_(self, points, metric, epsilon):
        return


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Box(1.0, 1.0), ValueError, ["high", "(1, inf)", "1.0"]),
        (lambda: Box(1.0, -1.0), ValueError, ["high", "(1, inf)", "-1.0"]),
        (lambda: Box(math.nan, 1.0), ValueError, ["low", "nan", "(-inf, inf)"]),
        (lambda: Box(-math.inf, 1.0), ValueError, ["low", "-inf", "(-inf, inf)"]),
        (lambda: Box("0", 1.0), TypeError, ["low", "'0'", "number"]),
        (lambda: Box(None, None), ValueError, ["low", "high", "None"]),
        (lambda: Box(-1.0, 1.0, 1e-5), TypeError, ["regularizer", "1e-05"]),
        (lambda: Box(0.1, 1.0, L0(rho=0.5)), ValueError, ["low=0.1", "high=1", "does not contain 0", "L0(rho=0.5)"]),
        (lambda: Box(-2.0, -1.0, Cardinality()), ValueError, ["does not contain 0", "Cardinality"]),
        (lambda: Box(0.1, 1.0, GroupL0()), ValueError, ["does not contain 0", "GroupL0"]),
        (lambda: Box(0.1, 1.0, LHalf()), ValueError, ["does not contain 0", "LHalf"]),
        (lambda: Box(regularizer=Box()), ValueError, ["cannot be combined", "Box"]),
        (lambda: Box(regularizer=Own()), ValueError, ["cannot be combined", "Own"]),
    ],
)
def test_refusals(make: Callable[[], Box], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        make()
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_a_network_in_a_box() -> None:
    network = nn.Linear(3, 2)
    optimizer = BSQHOptimizer(network, regularizer=Box(-0.1, 0.1))
    x = torch.randn(8, 3)
    for _ in range(5):
        optimizer.step(lambda: network(x).square().mean() + network.weight.sum())
    assert bool((network.weight.abs() <= 0.1).all())
    assert network.weight.min() == torch.tensor(-0.1)


def test_a_regularizer_that_accepts_a_box_without_a_maximiser_in_it() -> None:
    class Careless(L2):
        def check_box(self, low: float, high: float) -> None:
            return

        prox_in_box_ = Regularizer.prox_in_box_

    with pytest.raises(TypeError, match=r"accepts a box in check_box but has no prox_in_box_"):
        Box(-1.0, 1.0, Careless(1e-3))
