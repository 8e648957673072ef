"""The rules for ε on their own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_bsqh import Backtracking, Curvature
from lightning_bsqh.method.augmentation import CosineRaise, RuleDefaults
from lightning_bsqh.method.trial import Trial


def trial(
    curvature: float = 4.0,
    accepted: bool = True,
    tightened: bool = False,
    tau: float = 0.1,
    resolution: float = 0.0,
    relative: float = math.nan,
) -> Trial:
    """A trial on a quadratic model with the given curvature along the step."""
    slope = 0.3
    return Trial(
        epsilon=1.0,
        loss_change=0.5 * curvature * tau - slope,
        slope=slope,
        tau=tau,
        accepted=accepted,
        tightened=tightened,
        resolution=resolution,
        length=tau,
        relative=relative,
    )


def test_backtracking_is_the_sqh_rule() -> None:
    rule = Backtracking(epsilon=2.0, sigma=1.5, zeta=0.5)
    rule.observe(trial(accepted=False))
    assert rule.epsilon == pytest.approx(3.0)
    rule.observe(trial())
    assert rule.epsilon == pytest.approx(1.5)


@pytest.mark.parametrize("start", [1e-3, 1.2, 1e4])
def test_curvature_finds_the_target_from_anywhere(start: float) -> None:
    rule = Curvature(epsilon=start, safety=0.6)
    for _ in range(2000):
        rule.observe(trial(curvature=4.0))
    assert rule.epsilon == pytest.approx(0.6 * 4.0 / 2, rel=1e-6)


def settled(epsilon: float = 1.0, **options: float) -> Curvature:
    """A rule whose ε is at its target; the next trial alone decides where it goes."""
    rule = Curvature(epsilon=epsilon, memory=0.0, **options)
    rule.observe(trial(curvature=2.0 * epsilon / rule.safety))
    assert rule.epsilon == pytest.approx(epsilon)
    return rule


def test_curvature_moves_within_its_limits() -> None:
    rule = settled(fall=0.05, rise=0.1)
    rule.observe(trial(curvature=1e-9))
    assert rule.epsilon == pytest.approx(math.exp(-0.05))
    rule = settled(fall=0.05, rise=0.1)
    rule.observe(trial(curvature=1e9))
    assert rule.epsilon == pytest.approx(math.exp(0.1))


@pytest.mark.parametrize("factor", [10.0, 1e3, 1e6])
def test_a_start_far_too_large_is_halved_until_it_is_near_the_target(factor: float) -> None:
    rule = Curvature(epsilon=factor, safety=0.5 + 1e-9)
    steps = 0
    while rule.epsilon > math.e:
        before = rule.epsilon
        rule.observe(trial(curvature=4.0))
        assert rule.epsilon >= before / 2
        steps += 1
    assert steps <= math.log2(factor)
    near = rule.epsilon
    rule.observe(trial(curvature=4.0))
    # Near its target ε falls slowly, and goes on to do so however small the target becomes.
    for _ in range(50):
        before = rule.epsilon
        rule.observe(trial(curvature=1e-9))
        assert rule.epsilon >= before * math.exp(-0.05) * (1 - 1e-12)
    assert rule.epsilon < near


def test_a_start_near_the_target_falls_slowly_from_the_first_trial() -> None:
    rule = Curvature(epsilon=2.5)
    rule.observe(trial(curvature=2.0 / rule.safety))
    assert rule.epsilon == pytest.approx(2.5 * math.exp(0.05 * math.log(1.0 / 2.5)))


def test_a_start_too_large_for_the_loss_to_show_a_curvature_is_halved_too() -> None:
    # The second order, 2e-9, is below the rounding error of the loss, 1e-6.
    unseen = trial(curvature=4e-5, tau=1e-4, resolution=1e-6)
    assert unseen.curvature is None
    rule = Curvature(epsilon=1e6)
    rule.observe(unseen)
    assert rule.epsilon == pytest.approx(5e5)
    # The bound s·resolution/τ tells nothing about an ε below it.
    near = Curvature(epsilon=1e-3)
    near.observe(unseen)
    assert near.epsilon == 1e-3
    later = settled(1e6)
    later.observe(unseen)
    assert later.epsilon == pytest.approx(1e6)


def test_a_start_below_the_floor_is_raised_to_it() -> None:
    for start, floor, expected in ((None, 5.0, 9.0), (None, 10.0, 10.0), (0.01, 3.0, 3.0), (0.01, 0.0, 0.01)):
        rule = Curvature(epsilon=start, floor=floor)
        rule.prepare(RuleDefaults(epsilon=9.0))
        assert rule.epsilon == expected


def test_a_step_far_longer_than_usual_is_shortened() -> None:
    rule = Curvature(epsilon=1.0, outlier=10.0)
    # Nothing is usual before the first step.
    assert rule.epsilon_for(1.0, 1e6) == 1.0
    for _ in range(20):
        rule.observe(trial(tau=0.1))
    assert rule.epsilon_for(1.0, 0.9) == 1.0
    # τ falls with ε²: the step is then ten times as long as usual and not more.
    raised = rule.epsilon_for(1.0, 40.0)
    assert 40.0 / raised**2 == pytest.approx(10 * 0.1)
    # The gradient's length does not depend on ε, which a schedule may have raised.
    assert rule.epsilon_for(100.0, 0.9) == 100.0
    assert rule.epsilon_for(100.0, 40.0) == pytest.approx(100.0 * raised)
    assert Curvature(epsilon=1.0, epsilon_max=2.0).epsilon_for(2.0, 1e9) == 2.0
    assert rule.epsilon_for(1.0, math.inf) == 1.0
    assert Curvature(epsilon=1.0, outlier=None).epsilon_for(1.0, 40.0) == 1.0


def test_what_is_usual_follows_the_steps() -> None:
    rule = Curvature(epsilon=1.0)
    for tau in [0.1] * 20 + [10.0] * 20:
        rule.observe(trial(tau=tau))
    assert rule.epsilon_for(1.0, 50.0) == 1.0
    # The gradients of batches whose trials are rejected are not what is usual.
    for _ in range(20):
        rule.observe(trial(tau=1e-6, accepted=False))
    assert rule.epsilon_for(1.0, 50.0) == 1.0


def test_negative_curvature_on_one_batch_does_no_harm() -> None:
    rule = Curvature(epsilon=1.2)
    for _ in range(200):
        rule.observe(trial())
    before = rule.epsilon
    rule.observe(trial(curvature=-1.0))
    assert rule.epsilon > 0.95 * before


def test_the_target_stays_above_the_floor() -> None:
    rule = Curvature(floor=3.0)
    rule.prepare(RuleDefaults(epsilon=9.0))
    for _ in range(1000):
        rule.observe(trial(curvature=1e-3))
    assert rule.epsilon == pytest.approx(3.0)


@settings(deadline=None, max_examples=100)
@given(
    curvature=st.floats(1e-6, 1e6),
    relative=st.floats(1e-3, 1e3),
    longest=st.floats(0.01, 10.0),
    share=st.floats(0.0, 1.0),
    start=st.floats(1e-2, 1e5),
)
def test_steps_come_to_lie_between_the_shares_of_the_weights(
    curvature: float, relative: float, longest: float, share: float, start: float
) -> None:
    rule = Curvature(epsilon=start, longest=longest, shortest=share * longest)
    for _ in range(1500):
        rule.observe(trial(curvature, relative=relative))
    step, free = relative / (2 * rule.epsilon), relative / (rule.safety * curvature)
    assert step == pytest.approx(min(max(free, share * longest), longest), rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(rejected=st.integers(0, 60), accepted=st.integers(0, 200))
def test_what_a_rejection_takes_from_the_shortest_step_is_given_back(rejected: int, accepted: int) -> None:
    rule = Curvature(epsilon=1.0, longest=0.5, shortest=0.2)
    for _ in range(300):
        rule.observe(trial(curvature=1e6, relative=1.0))
    for _ in range(rejected):
        rule.observe(trial(accepted=False))
    for _ in range(accepted):
        rule.observe(trial(curvature=1e6, relative=1.0))
    long = rule.state_dict()["eased"]
    assert long == pytest.approx(min(1.0, 0.8**rejected * 1.002**accepted))
    for _ in range(300 + 120 * rejected):
        rule.observe(trial(curvature=1e6, relative=1.0))
    assert 1.0 / (2.0 * rule.epsilon) == pytest.approx(0.2, rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(progress=st.floats(0.0, 1.0))
def test_the_shortest_step_grows_with_the_training(progress: float) -> None:
    rule = Curvature(epsilon=1.0, longest=0.5, shortest=0.2)
    for _ in range(400):
        rule.observe(replace(trial(curvature=1e6, relative=1.0), progress=progress))
    share = min(0.25 + 0.75 * progress / 0.2, 1.0)
    assert 1.0 / (2.0 * rule.epsilon) == pytest.approx(0.2 * share, rel=1e-6)


def test_shares_are_left_to_the_metric() -> None:
    rule, own, none = Curvature(), Curvature(longest=0.05), Curvature(longest=math.inf, shortest=0.0)
    for each in (rule, own, none):
        each.prepare(RuleDefaults(epsilon=9.0, longest=0.3, shortest=0.1))
    assert (rule.longest, rule.shortest, own.longest, own.shortest) == (0.3, 0.1, 0.05, 0.05)
    assert rule.looks_at_weights
    assert not none.looks_at_weights
    with pytest.raises(ValueError, match=r"shortest must lie in \[0, 0.05\], got 0.1"):
        Curvature(longest=0.05, shortest=0.1)


def test_a_start_too_small_is_raised_for_the_first_step_only() -> None:
    rule = Curvature(epsilon=0.1, longest=0.5, shortest=0.0)
    # ‖G/D‖/(2ε) is to be no more than the share.
    raised = rule.epsilon_for(0.1, 1.0, relative=4.0)
    assert 4.0 / (2.0 * raised) == pytest.approx(0.5)
    assert rule.epsilon_for(4.1, 1.0, relative=4.0) == 4.1
    assert rule.epsilon_for(0.1, 1.0, relative=math.nan) == 0.1
    rule.observe(trial(relative=4.0))
    assert rule.epsilon >= raised
    assert rule.epsilon_for(0.1, 0.1, relative=4.0) == 0.1


def test_tightened_trials_are_left_out_unless_rejected() -> None:
    rule = Curvature(epsilon=1.0, longest=0.5)
    rule.observe(trial(curvature=1e-6, tightened=True, relative=1e-3))
    assert rule.epsilon == 1.0
    rule.observe(trial(curvature=1e-6, tightened=True, accepted=False))
    assert rule.epsilon == pytest.approx(1.1)


@settings(deadline=None, max_examples=100)
@given(
    curvature=st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(math.inf),
    tau=st.floats(0, 1e3),
    start=st.floats(1e-6, 1e6),
)
def test_a_rejection_always_raises_epsilon(curvature: float, tau: float, start: float) -> None:
    for rule in (Backtracking(epsilon=start), Curvature(epsilon=start)):
        rule.observe(trial(curvature, accepted=False, tau=tau))
        assert 1.1 * start * (1 - 1e-12) <= rule.epsilon <= 2.0 * start * (1 + 1e-12)


def test_bounds_hold() -> None:
    rule = Backtracking(epsilon=1.0, epsilon_min=0.5, epsilon_max=2.0, sigma=10.0, zeta=0.01)
    rule.observe(trial())
    assert rule.epsilon == 0.5
    rule.observe(trial(accepted=False))
    assert rule.epsilon == 2.0
    assert rule.epsilon_at(1.0) == 2.0


def test_schedule_is_a_cosine_and_ends_finite() -> None:
    factor = CosineRaise(limit=100.0)
    assert factor(0.0) == 1.0
    assert factor(0.5) == pytest.approx(2.0)
    assert factor(1.0) == 100.0
    rule = Backtracking(epsilon=3.0)
    assert rule.epsilon_at(None) == 3.0
    assert rule.epsilon_at(0.5) == pytest.approx(6.0)
    assert Backtracking(epsilon=3.0, schedule=False).epsilon_at(0.5) == 3.0


def test_state_goes_on_where_it_was() -> None:
    first = Curvature(epsilon=1.0, longest=0.3)
    for curvature in (3.0, 8.0, -2.0):
        first.observe(trial(curvature, relative=curvature + 3.0))
    second = Curvature(epsilon=5.0, longest=0.3)
    second.load_state_dict(first.state_dict())
    assert first.epsilon_for(1.0, 1e3) == second.epsilon_for(1.0, 1e3) > 1.0
    for rule in (first, second):
        rule.observe(trial(2.5))
    assert first.epsilon == second.epsilon
