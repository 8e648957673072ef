"""The constraint of finitely many levels: the maximiser is the best of them all (method §3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

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


def test_a_ternary_network_learns() -> None:
    network, (x, y) = smooth_network(), data()
    optimizer = BSQHOptimizer(network, regularizer=Discrete.ternary(0.4), epsilon=20.0, total_steps=100)
    losses = []
    for _ in range(100):
        optimizer.step(lambda: cross_entropy(network, x, y))
        weights = [p for p in network.parameters() if p.dim() >= 2]
        assert optimizer.regularizer.admits(weights)
        losses.append(optimizer.last_step.objective_after)
    assert all(after <= before + 1e-12 for before, after in pairwise(losses))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Discrete([]), ValueError, ["levels", "at least one", "[]"]),
        (lambda: Discrete([0.0, math.nan]), ValueError, ["levels[1]", "nan", "(-inf, inf)"]),
        (lambda: Discrete([math.inf]), ValueError, ["levels[0]", "inf", "(-inf, inf)"]),
        (lambda: Discrete(["a"]), TypeError, ["levels[0]", "'a'"]),
        (lambda: Discrete("ab"), TypeError, ["levels", "sequence", "'ab'"]),
        (lambda: Discrete(1.0), TypeError, ["levels", "sequence", "1.0"]),
        (lambda: Discrete.ternary(0.0), ValueError, ["scale", "(0, inf)", "0.0"]),
        (lambda: Discrete.binary(-1.0), ValueError, ["scale", "(0, inf)", "-1.0"]),
    ],
)
def test_refusals(make: Callable[[], Discrete], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        make()
    assert all(word in str(raised.value) for word in words), str(raised.value)
