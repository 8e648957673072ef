"""The constraint of finitely many levels: the maximizer is the best of them all (method §3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_bsqh import BSQHOptimizer, Discrete
from tests.problems import cross_entropy, data, smooth_network

LEVEL = st.sampled_from([0.0, 0.5, -0.5, 1.0, -1.0]) | st.floats(-2, 2, width=32)
POSITIVE = st.floats(0.125, 5, width=32)


@settings(deadline=None, max_examples=200)
@given(
    levels=st.lists(LEVEL, min_size=1, max_size=6),
    z=st.lists(LEVEL | st.floats(-4, 4, width=32), min_size=1, max_size=8),
    d=POSITIVE,
    epsilon=POSITIVE,
)
def test_the_best_of_all_levels(levels: list[float], z: list[float], d: float, epsilon: float) -> None:
    regularizer = Discrete(levels)
    points = torch.tensor(z, dtype=torch.float64)
    regularizer.prox_([points], [d], epsilon)
    assert regularizer.admits([points])
    for u, point in zip(points.tolist(), z, strict=True):
        assert u in levels
        best = max(-epsilon * d * (level - point) ** 2 for level in levels)
        assert -epsilon * d * (u - point) ** 2 >= best - 1e-12


def test_ties_go_to_the_level_nearer_to_zero() -> None:
    points = torch.tensor([-0.6, -0.35, 0.35, 0.6, -0.0], dtype=torch.float64)
    Discrete.ternary(0.7).prox_([points], [1.0], 1.0)
    assert points.tolist() == [-0.7, 0.0, 0.0, 0.7, 0.0]
    points = torch.tensor([0.0, -0.0, -1e-9, 1e-9], dtype=torch.float64)
    Discrete.binary(0.7).prox_([points], [1.0], 1.0)
    assert points.tolist() == [0.7, 0.7, -0.7, 0.7]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_levels_that_the_dtype_cannot_hold(dtype: torch.dtype) -> None:
    regularizer = Discrete([0.1, -0.3, 0.7, 0.1])
    assert regularizer.levels == (-0.3, 0.1, 0.7)
    points = torch.linspace(-1, 1, 24).to(dtype).view(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    assert not regularizer.admits([points])
    regularizer.project_([points], [1.0])
    assert regularizer.admits([points])
    assert points.unique().numel() == 3


def test_on_levels_from_the_start() -> None:
    network, (x, y) = smooth_network(), data()
    optimizer = BSQHOptimizer(
        network, regularizer=Discrete.ternary(0.4, ramp=(0.0, 0.0)), epsilon=20.0, total_steps=100
    )
    losses = []
    for _ in range(100):
        optimizer.step(lambda: cross_entropy(network, x, y))
        weights = [p for p in network.parameters() if p.dim() >= 2]
        assert optimizer.regularizer.admits(weights)
        losses.append(optimizer.last_step.objective_after)
    assert all(after <= before + 1e-12 for before, after in pairwise(losses))
    assert losses[-1] < losses[0]


def test_more_and_more_weights_on_levels() -> None:
    network, (x, y) = smooth_network(), data()
    regularizer = Discrete.ternary(0.4)
    optimizer = BSQHOptimizer(network, regularizer=regularizer, total_steps=200)
    weights = [p for p in network.parameters() if p.dim() >= 2]
    levels = torch.tensor(regularizer.levels, dtype=torch.float64)
    start = cross_entropy(network, x, y)
    shares = []
    for step in range(200):
        optimizer.step(lambda: cross_entropy(network, x, y))
        assert regularizer.at(step, 200).admits(weights)
        on_levels = sum(int(torch.isin(w, levels).sum()) for w in weights)
        shares.append(on_levels / sum(w.numel() for w in weights))
    assert shares[0] == 0.0
    assert 0.2 < shares[60] < 1.0
    assert shares[-1] == 1.0
    assert regularizer.admits(weights)
    assert cross_entropy(network, x, y) < start - 0.2


@settings(deadline=None, max_examples=100)
@given(
    values=st.lists(st.tuples(LEVEL, POSITIVE), min_size=4, max_size=6),
    step=st.integers(0, 9),
    low=st.sampled_from([-math.inf, -0.6, -0.5]),
)
def test_the_best_choice_of_those_on_levels(values: list[tuple[float, float]], step: int, low: float) -> None:
    z, d = torch.tensor(values, dtype=torch.float64).unbind(1)
    n, levels = len(values), (-0.5, 0.0, 0.75)
    regularizer = Discrete(levels, ramp=(0.0, 1.0), interval=1).at(step, 10)
    needed = round((1.0 - (1.0 - step / 9) ** 3) * n)
    parts = [z[:3].clone(), z[3:].clone()]
    regularizer.prox_in_box_(parts, [d[:3], d[3:]], 0.7, low, 1.0)
    assert regularizer.admits(parts)
    u = torch.cat(parts)
    assert bool(((u >= low) & (u <= 1.0)).all())
    table = torch.tensor(levels, dtype=torch.float64)
    snapped = d * (table[:, None] - z).square().amin(0)
    free = d * (z.clamp(low, 1.0) - z).square()
    best = min(
        float(sum(snapped[i] if i in chosen else free[i] for i in range(n)))
        for chosen in combinations(range(n), needed)
    )
    assert float((d * (u - z).square()).sum()) <= best + 1e-12


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Discrete([]), ValueError, ["levels", "at least one", "[]"]),
        (lambda: Discrete([0.0, math.nan]), ValueError, ["levels[1]", "nan", "(-inf, inf)"]),
        (lambda: Discrete([math.inf]), ValueError, ["levels[0]", "inf", "(-inf, inf)"]),
        (lambda: Discrete(["a"]), TypeError, ["levels[0]", "'a'"]),
        (lambda: Discrete("ab"), TypeError, ["levels", "sequence", "'ab'"]),
        (lambda: Discrete(1.0), TypeError, ["levels", "sequence", "1.0"]),
        (lambda: Discrete.ternary(0.1, ramp=(0.5, 0.1)), ValueError, ["ramp[1]", "0.1", "[0.5, 1]"]),
        (lambda: Discrete([0.1], interval=0), ValueError, ["interval", "0", "at least 1"]),
        (lambda: Discrete.ternary(0.0), ValueError, ["scale", "(0, inf)", "0.0"]),
        (lambda: Discrete.binary(-1.0), ValueError, ["scale", "(0, inf)", "-1.0"]),
    ],
)
def test_refusals(make: Callable[[], Discrete], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        make()
    assert all(word in str(raised.value) for word in words), str(raised.value)
