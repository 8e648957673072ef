"""``decide="device"``: the same iterations as ``decide="host"`` with one trial, without a look at the device."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_bsqh import (
    L0,
    L1,
    L2,
    Augmentation,
    Backtracking,
    Box,
    BSQHOptimizer,
    Cardinality,
    Curvature,
    Discrete,
    ElasticNet,
    GroupL0,
    LHalf,
    LTwoThirds,
)
from lightning_bsqh.method import device_training
from lightning_bsqh.method.reduction import Reduction
from lightning_bsqh.regularizers import NM
from tests.problems import cross_entropy, data, smooth_network

STEPS = 50
X, Y = data()
REGULARIZERS: dict[str, Any] = {
    "none": L0(rho=0.0),
    "l0": L0(rho=1e-3),
    "l1": L1(rho=1e-3),
    "l2": L2(rho=1e-3),
    "l2 in the metric": L2(rho=1e-3, in_metric=True),
    "elastic net": ElasticNet(1e-3, 1e-3),
    "l half": LHalf(rho=5e-4),
    "l two thirds": LTwoThirds(rho=5e-4),
    "groups": GroupL0(rho=5e-3),
    "cardinality": Cardinality(0.8),
    "cardinality that nearly empties": Cardinality(0.97, ramp=(0.0, 0.3)),
    "three weights at least": Cardinality(0.95, ramp=(0.0, 0.3), minimum=3),
    "per layer": Cardinality(0.8, scope="layer"),
    "by groups": Cardinality(0.6, groups="output"),
    "with decay": Cardinality(0.8) + L2(rho=1e-3),
    "n of m": NM(),
    "ternary": Discrete.ternary(0.3),
    "box": Box(-0.3, 0.2, Cardinality(0.5)),
    "by name": {"2": GroupL0(rho=5e-3), "[04]": Cardinality(0.8)},
}
RULES: dict[str, Callable[[], Augmentation]] = {
    "curvature": lambda: Curvature(epsilon=5.0, floor=0.2),
    "from afar": lambda: Curvature(epsilon=300.0, floor=0.2),
    "without limit": lambda: Curvature(epsilon=1.0, floor=0.0, outlier=None, schedule=False),
    "soon an outlier": lambda: Curvature(epsilon=5.0, floor=0.2, outlier=1.5),
    "backtracking": lambda: Backtracking(epsilon=0.5, sigma=1.5, zeta=0.9),
}


def normalized() -> nn.Sequential:
    """With running statistics, and a last layer at zero, so that no gradient reaches the others at first."""
    torch.manual_seed(0)
    # The gradient of a bias before the normalization would be nothing but rounding errors.
    first = nn.Linear(6, 12, bias=False)
    net = nn.Sequential(first, nn.BatchNorm1d(12), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        net[-1].weight.zero_()
    return net.double()


NETWORKS = {"smooth": smooth_network, "normalized": normalized}


class Training:
    """Steps of a small network on batches of which some are odd.

    Args:
        decide: Who decides.
        odd: What the loss of single batches is multiplied by, by the number of the step.
        network: Its name.
        options: Of the optimizer.
    """

    def __init__(
        self, decide: str, odd: dict[int, float] | None = None, network: str = "smooth", **options: Any
    ) -> None:
        self.network = NETWORKS[network]()
        options = {"total_steps": STEPS, "max_trials": 1, "on_stall": "warn", **options}
        self.optimizer = BSQHOptimizer(self.network, decide=decide, **copy.deepcopy(options))
        self.odd = odd or {}
        self.flags: list[tuple[bool, bool]] = []

    def loss(self) -> torch.Tensor:
        step = self.optimizer.iterations
        part = slice(12 * (step % 8), 12 * (step % 8) + 12)
        loss = cross_entropy(self.network, X[part], Y[part])
        factor = self.odd.get(step, 1.0)
        if factor == math.inf:
            # A finite loss whose gradient is not.
            return loss + 0.0 * sum(p.square().sum() for p in self.network.parameters()).sub(1e300).mul(1e300).sum()
        return loss * factor

    def run(self, steps: int, watched: bool = False) -> Training:
        for _ in range(steps):
            self.optimizer.step(self.loss)
            if watched:
                report = self.optimizer.last_step
                self.flags.append((report.accepted, report.skipped))
        return self

    def state(self) -> list[torch.Tensor]:
        return [t.detach().clone() for t in self.network.state_dict().values()]

    def flat(self) -> torch.Tensor:
        return torch.cat([t.double().flatten() for t in self.state()])


def assert_twins(host: Training, device: Training) -> None:
    torch.testing.assert_close(device.flat(), host.flat(), rtol=1e-12, atol=1e-12)
    assert device.optimizer.augmentation.epsilon == pytest.approx(host.optimizer.augmentation.epsilon, rel=1e-12)
    assert (device.optimizer.accepted, device.optimizer.skipped) == (host.optimizer.accepted, host.optimizer.skipped)


@dataclass
class Reads:
    """Counts the looks at the device."""

    count: int = 0
    patches: list[Any] = field(default_factory=list)

    def __enter__(self) -> Reads:
        for owner, name in ((Reduction, "read"), (device_training, "read")):
            patch = mock.patch.object(owner, name, self._counting(getattr(owner, name)))
            patch.start()
            self.patches.append(patch)
        return self

    def __exit__(self, *args: Any) -> None:
        for patch in self.patches:
            patch.stop()

    def _counting(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.count += 1
            return read(*args)

        return counted


@settings(max_examples=20, deadline=None)
@given(
    regularizer=st.sampled_from(sorted(REGULARIZERS)),
    rule=st.sampled_from(sorted(RULES)),
    metric=st.sampled_from(["rms", "euclidean"]),
    network=st.sampled_from(sorted(NETWORKS)),
    odd=st.dictionaries(st.integers(1, STEPS - 1), st.sampled_from([math.nan, math.inf, 30.0, 1e-3]), max_size=6),
    watched=st.booleans(),
)
@example("cardinality", "curvature", "rms", "normalized", {3: math.nan, 4: math.nan, 9: 30.0}, True)
@example("cardinality that nearly empties", "backtracking", "rms", "smooth", {1: math.nan}, False)
def test_twins(regularizer: str, rule: str, metric: str, network: str, odd: dict[int, float], watched: bool) -> None:
    options = {"regularizer": REGULARIZERS[regularizer], "augmentation": RULES[rule](), "metric": metric}
    host = Training("host", odd, network, **options).run(STEPS, watched)
    device = Training("device", odd, network, **options).run(STEPS, watched)
    assert host.flags == device.flags
    assert_twins(host, device)


@pytest.mark.parametrize(
    ("name", "rule"), [*((name, "curvature") for name in REGULARIZERS), *(("cardinality", rule) for rule in RULES)]
)
def test_each_regularizer_and_rule(name: str, rule: str) -> None:
    options = {"regularizer": REGULARIZERS[name], "augmentation": RULES[rule]()}
    odd = {7: math.nan, 8: math.inf, 20: 30.0}
    host = Training("host", odd, **options).run(STEPS)
    device = Training("device", odd, **options).run(STEPS)
    assert_twins(host, device)
    assert host.optimizer.skipped == 2


def test_single_precision() -> None:
    """Where the loss has a rounding error, the same steps are accepted."""
    trainings = [Training(decide, regularizer=L0(rho=1e-3)) for decide in ("host", "device")]
    for training in trainings:
        training.network.float()
        inputs = X.float()
        training.loss = lambda t=training, x=inputs: cross_entropy(t.network, x, Y)  # type: ignore[method-assign]
        training.run(20, watched=True)
    host, device = trainings
    assert host.flags == device.flags
    torch.testing.assert_close(device.flat(), host.flat(), rtol=1e-4, atol=1e-5)
