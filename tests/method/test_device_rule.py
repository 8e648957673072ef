"""Rules whose memory lies on the device, against the same rules on the host."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_bsqh import Augmentation, Backtracking, Curvature
from lightning_bsqh.method.augmentation import RuleDefaults
from lightning_bsqh.method.device_rule import DeviceRule, DeviceTrial
from lightning_bsqh.method.trial import Trial

RULES = {
    "default": Curvature,
    "start too small": lambda: Curvature(epsilon=0.1),
    "without lengths": lambda: Curvature(epsilon=5.0, longest=math.inf, shortest=0.0),
    "no longest": lambda: Curvature(epsilon=5.0, longest=math.inf, shortest=0.2),
    "no shortest": lambda: Curvature(epsilon=5.0, longest=0.2, shortest=0.0),
    "floor": lambda: Curvature(epsilon=300.0, floor=2.0),
    "no outliers": lambda: Curvature(epsilon=5.0, outlier=None),
    "soon an outlier": lambda: Curvature(epsilon=5.0, outlier=1.5),
    "within bounds": lambda: Curvature(epsilon=5.0, epsilon_min=1.0, epsilon_max=10.0),
    "backtracking": Backtracking,
}
SIZES = st.floats(1e-3, 1e3)
ODD = st.sampled_from([0.0, math.inf, math.nan])


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    """Anything that may be met, odd numbers now and then."""
    tau = draw(SIZES | st.just(0.0))
    change = draw(st.floats(-10.0, 10.0))
    accepted = draw(st.booleans())
    return Trial(
        epsilon=1.0,
        loss_change=change if accepted or draw(st.booleans()) else math.inf,
        slope=draw(SIZES | st.just(-change)),
        tau=tau,
        accepted=accepted,
        tightened=draw(st.integers(0, 3)) == 0,
        resolution=draw(st.sampled_from([0.0, 1e-9, 0.5])),
        length=draw(SIZES | ODD),
        relative=draw(SIZES | ODD),
        progress=draw(st.none() | st.floats(0.0, 1.0)),
    )


def told(trial: Trial) -> DeviceTrial:
    names = ("loss_change", "slope", "tau", "resolution", "length", "relative")
    numbers = [torch.tensor(getattr(trial, name), dtype=torch.float64) for name in names]
    return DeviceTrial(torch.tensor(trial.accepted), *numbers, progress=trial.progress)


def on_device(rule: Augmentation) -> DeviceRule:
    found = rule.on_device(torch.device("cpu"), torch.float64)
    assert found is not None
    return found


def assert_same(host: Augmentation, device: DeviceRule) -> None:
    expected = host.state_dict()
    found = device.state_dict(device.memory.tolist())
    assert {name: type(value) for name, value in found.items()} == {n: type(v) for n, v in expected.items()}
    assert device.numbers(found) == pytest.approx(device.numbers(expected), rel=1e-9, abs=1e-12, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(RULES)), shown=st.lists(trials(), max_size=25), renewed=st.integers(0, 25))
def test_the_same_as_on_the_host(name: str, shown: list[Trial], renewed: int) -> None:
    host = RULES[name]()
    host.prepare(RuleDefaults(epsilon=100.0, longest=0.3, shortest=0.1))
    device = on_device(host)
    for i, trial in enumerate(shown):
        if i == renewed:
            host.load_state_dict(device.state_dict(device.memory.tolist()))
            device = on_device(host)
        if not host.looks_at_weights:
            trial = replace(trial, relative=math.nan)
        number = told(trial)
        if math.isinf(trial.relative):
            # As the device says that all weights are zero.
            trial = replace(trial, relative=math.nan)
        own = host.epsilon_at(trial.progress)
        raised = device.epsilon_for(device.epsilon_at(trial.progress), number.length, number.relative)
        assert float(raised) == pytest.approx(host.epsilon_for(own, trial.length, trial.relative), rel=1e-9)
        if trial.tightened:
            # The host decides such steps, and the rule goes back to the device after them.
            host.observe(trial)
            device = on_device(host)
            continue
        before = device.memory.clone()
        after = device.observe(number)
        assert torch.equal(device.memory.nan_to_num(), before.nan_to_num())
        device.memory = after
        host.observe(trial)
        assert_same(host, device)
