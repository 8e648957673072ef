"""How many operators a step asks a device for; the counts are exact, so they can be held."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def launches() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "launches.py"
    spec = importlib.util.spec_from_file_location("launches", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["launches"] = module
    spec.loader.exec_module(module)
    return module


def test_resnet18_stays_near_adam(launches: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 1.15 times Adam's calls after the ramp, 1.4 times while the constraint tightens; one wait per trial."""
    monkeypatch.setattr(launches, "STEPS", 12)
    adam = launches.count("resnet18", "adam").typical(False)
    counter = launches.count("resnet18", "bsqh")
    after, tightening = counter.typical(False), counter.typical(True)
    assert after.calls <= 1.15 * adam.calls
    assert tightening.calls <= 1.4 * adam.calls
    assert after.waits == 1
    assert tightening.waits <= 1
    assert counter.waits_per_trial() <= 1


def test_a_step_that_the_device_decides_waits_for_nothing(
    launches: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No wait after the ramp, and at most 87 calls more than where the host decides, nearly all on single numbers."""
    monkeypatch.setattr(launches, "STEPS", 12)
    host = launches.count("lenet5", "bsqh").typical(False)
    device = launches.count("lenet5", "device").typical(False)
    assert device.waits == 0
    assert host.waits == 1
    assert device.calls <= host.calls + 87
