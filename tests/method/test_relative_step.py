"""The rule for ε whose steps are a share of the weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_bsqh import BSQHOptimizer, BSQHStrategy, Cardinality, Curvature, RelativeStep
from lightning_bsqh.method.augmentation import Trial
from tests.problems import cross_entropy, data


def trial(relative: float, epsilon: float, accepted: bool = True, length: float = 1.0) -> Trial:
    return Trial(epsilon, -0.1, 0.3, 0.1, accepted, tightened=False, resolution=0.0, length=length, relative=relative)


def prepared(**options: Any) -> RelativeStep:
    rule = RelativeStep(**options)
    rule.prepare(1.0, 0.0)
    return rule


def follow(rule: RelativeStep, relative: float, steps: int) -> list[float]:
    """ε of so many accepted trials."""
    epsilons = []
    for _ in range(steps):
        epsilon = rule.epsilon_for(rule.epsilon, 1.0, relative)
        epsilons.append(epsilon)
        rule.observe(trial(relative, epsilon))
    return epsilons


@settings(deadline=None, max_examples=100)
@given(relative=st.floats(1e-3, 1e6), step=st.floats(1e-3, 1.0))
def test_from_a_tenth_of_the_step_to_the_step(relative: float, step: float) -> None:
    rule = prepared(step=step)
    wanted = relative / (2.0 * step)
    epsilons = follow(rule, relative, 12)
    # Where the metric's own start is larger, that is it.
    assert epsilons[0] == pytest.approx(max(10.0 * wanted, 1.0))
    assert epsilons == sorted(epsilons, reverse=True)
    if wanted > 0.01:
        assert epsilons[-1] == pytest.approx(wanted)
        assert relative / (2.0 * epsilons[-1]) == pytest.approx(step)


@settings(deadline=None, max_examples=100)
@given(factor=st.floats(0.01, 100.0))
def test_any_start_ends_at_the_same(factor: float) -> None:
    rule = prepared(epsilon=40.0 * factor)
    epsilons = follow(rule, 10.0, 300)
    assert epsilons[-1] == pytest.approx(40.0, rel=1e-3)
    # A step of more than twice the share is never taken.
    assert min(epsilons) >= 20.0 * (1 - 1e-12)


def test_steps_grow_with_the_weights_but_not_without_end() -> None:
    rule = prepared(step=0.1, growth=4.0)
    follow(rule, 10.0, 50)
    assert follow(rule, 5.0, 500)[-1] == pytest.approx(25.0, rel=1e-3)
    assert follow(rule, 0.1, 500)[-1] == pytest.approx(12.5, rel=1e-3)
    # Weights that become smaller get shorter steps without delay.
    assert follow(rule, 40.0, 500)[-1] == pytest.approx(200.0, rel=1e-3)


@settings(deadline=None, max_examples=100)
@given(
    change=st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(math.inf),
    tau=st.floats(0, 1e3),
    start=st.floats(1e-6, 1e6),
    relative=st.floats(0, 1e6) | st.just(math.nan) | st.just(math.inf),
)
def test_a_rejection_always_raises_epsilon(change: float, tau: float, start: float, relative: float) -> None:
    rule = RelativeStep(epsilon=start)
    rule.observe(Trial(start, change, 0.3, tau, False, False, 0.0, 1.0, relative))
    assert 1.1 * start * (1 - 1e-12) <= rule.epsilon <= 2.0 * start * (1 + 1e-12)


@pytest.mark.parametrize("relative", [0.0, math.inf, math.nan])
def test_without_weights_or_gradient_epsilon_stays(relative: float) -> None:
    rule = RelativeStep(epsilon=7.0)
    assert rule.epsilon_for(7.0, 1.0, relative) == 7.0
    rule.observe(trial(relative, 7.0))
    assert rule.epsilon == 7.0


def test_a_gradient_far_longer_than_usual() -> None:
    rule = prepared()
    follow(rule, 10.0, 30)
    epsilon = rule.epsilon
    assert rule.epsilon_for(epsilon, 9.0, 10.0) == epsilon
    assert rule.epsilon_for(epsilon, 1000.0, 10.0) == pytest.approx(10.0 * epsilon)
    assert RelativeStep(epsilon=1.0, epsilon_max=3.0).epsilon_for(2.0, 1.0, 1e9) == 3.0


def test_state_goes_on_where_it_was() -> None:
    first = prepared()
    follow(first, 10.0, 7)
    second = RelativeStep(epsilon=5.0)
    second.load_state_dict(first.state_dict())
    for relative in (10.0, 3.0, 30.0):
        assert follow(first, relative, 20) == follow(second, relative, 20)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"step": 0.0}, "step must lie in"),
        ({"growth": 0.5}, "growth must lie in"),
        ({"memory": 1.0}, "memory must lie"),
    ],
)
def test_bad_options(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RelativeStep(**options)


@pytest.mark.parametrize("width", [8, 512])
@pytest.mark.parametrize("metric", ["rms", "euclidean"])
def test_no_step_of_a_training_is_longer(width: int, metric: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3)).double()
    optimizer = BSQHOptimizer(
        network, regularizer=Cardinality(0.0), augmentation=RelativeStep(), metric=metric, total_steps=200
    )
    x, y = data()
    for step in range(60):
        before = torch.cat([p.detach().flatten() for p in network.parameters()])
        optimizer.step(lambda: cross_entropy(network, x, y))
        moved = torch.cat([p.detach().flatten() for p in network.parameters()]) - before
        assert moved.norm() <= (0.0126 if step == 0 else 0.25) * before.norm()
    assert cross_entropy(network, x, y) < 0.8


def test_the_strategy_takes_it() -> None:
    assert BSQHStrategy(augmentation=RelativeStep(step=0.05)) is not None


def test_a_rule_that_does_not_look_at_the_weights_is_told_nothing_of_them() -> None:
    seen = []

    class Old(Curvature):
        def epsilon_for(self, epsilon: float, length: float) -> float:
            seen.append(length)
            return super().epsilon_for(epsilon, length)

        def observe(self, trial: Trial) -> None:
            assert math.isnan(trial.relative)
            super().observe(trial)

    network = nn.Linear(6, 3).double()
    optimizer = BSQHOptimizer(network, regularizer=Cardinality(0.5), augmentation=Old(), total_steps=80, trial_every=2)
    x, y = data()
    for _ in range(80):
        optimizer.step(lambda: cross_entropy(network, x, y))
    assert len(seen) >= 80
