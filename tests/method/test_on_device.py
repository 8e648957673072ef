"""``decide="device"``: the same iterations as ``decide="host"`` with one trial, without a look at the device."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.amp import GradScaler

from lightning_bsqh import (
    L0,
    L1,
    L2,
    Augmentation,
    Backtracking,
    Box,
    BSQHOptimizer,
    BSQHStrategy,
    Cardinality,
    Curvature,
    Discrete,
    ElasticNet,
    GroupL0,
    LHalf,
    LTwoThirds,
)
from lightning_bsqh.callbacks import BSQHMonitor
from lightning_bsqh.method import device_training
from lightning_bsqh.method.reduction import Reduction
from lightning_bsqh.method.trial import Trial
from lightning_bsqh.regularizers import NM, Regularizer
from tests.problems import cross_entropy, data, smooth_network
from tests.strategy.small_modules import SmallModule

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
#: With steps so short that the last digit of one step does not become the first one of the fiftieth.
RULES: dict[str, Callable[[], Augmentation]] = {
    "default": Curvature,
    "lengths": lambda: Curvature(epsilon=1.0, longest=0.05, shortest=0.02),
    "curvature": lambda: Curvature(epsilon=20.0, floor=20.0, longest=math.inf, shortest=0.0),
    "from afar": lambda: Curvature(epsilon=300.0, floor=20.0),
    "soon an outlier": lambda: Curvature(epsilon=20.0, floor=20.0, outlier=1.5),
    "backtracking": lambda: Backtracking(epsilon=20.0, sigma=1.5, zeta=0.99),
}
#: As long as that holds for them, too.
SHORT: dict[str, tuple[Callable[[], Augmentation], int]] = {
    "without limit": (lambda: Curvature(20.0, longest=math.inf, shortest=0.0, outlier=None, schedule=False), 20),
    "rejected": (lambda: Backtracking(epsilon=0.5, sigma=1.5, zeta=0.9), 15),
    "rejected by curvature": (lambda: Curvature(0.5, floor=0.1, longest=math.inf, shortest=0.0), 15),
    "rejected in spite of its length": (lambda: Curvature(0.5, longest=2.0, shortest=1.0), 15),
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


def recurrent() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.GRUCell(6, 8), nn.Linear(8, 3)).double()


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
        self.network = {**NETWORKS, "recurrent": recurrent}[network]()
        options = {"total_steps": STEPS, "max_trials": 1, "on_stall": "warn", **options}
        self.optimizer = BSQHOptimizer(self.network, decide=decide, **copy.deepcopy(options))
        self.inputs = X
        self.odd = odd or {}
        self.flags: list[tuple[bool, bool]] = []

    def loss(self) -> torch.Tensor:
        step = self.optimizer.iterations
        part = slice(12 * (step % 8), 12 * (step % 8) + 12)
        loss = cross_entropy(self.network, self.inputs[part], Y[part])
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


@settings(max_examples=12, deadline=None)
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


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("metric", ["rms", "euclidean"])
def test_long_steps(name: str, metric: str) -> None:
    make, steps = SHORT[name]
    options = {"regularizer": Cardinality(0.8), "augmentation": make(), "metric": metric}
    odd = {5: 30.0, 7: math.nan}
    host = Training("host", odd, **options).run(steps, watched=True)
    device = Training("device", odd, **options).run(steps, watched=True)
    assert host.flags == device.flags
    assert_twins(host, device)
    if name.startswith("rejected") and metric == "rms":
        assert host.optimizer.accepted < steps - 1


def test_a_trial_that_is_rejected_leaves_the_weights_to_the_bit() -> None:
    training = Training("device", regularizer=L0(rho=0.0), augmentation=Backtracking(epsilon=1e-3)).run(1)
    before, epsilon = training.state(), training.optimizer.augmentation.epsilon
    training.run(1)
    assert not training.optimizer.last_step.accepted
    assert all(map(torch.equal, before, training.state()))
    assert training.optimizer.augmentation.epsilon == pytest.approx(1.1 * epsilon)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_batch_that_is_not_finite_changes_nothing(factor: float) -> None:
    training = Training("device", {3: factor}, "normalized", regularizer=L0(rho=1e-3)).run(3)
    before, saved = training.state(), copy.deepcopy(training.optimizer.state_dict())
    training.run(1)
    assert all(map(torch.equal, before, training.state()))
    after = training.optimizer.state_dict()
    assert after["bsqh"]["augmentation"] == saved["bsqh"]["augmentation"]
    assert after["bsqh"]["skipped"] == 1
    reached = {key: entry for key, entry in saved["state"].items() if entry}
    assert reached
    for key, entry in reached.items():
        torch.testing.assert_close(after["state"][key], entry, rtol=0.0, atol=0.0)


def test_the_first_loss_has_to_be_finite() -> None:
    with pytest.raises(ValueError, match="The loss is nan at the first batch"):
        Training("device", {0: math.nan}).run(1)


def test_no_look_at_the_device_after_the_ramp() -> None:
    training = Training("device", {30: math.nan, 31: 30.0}, regularizer=Cardinality(0.8, ramp=(0.0, 0.3)))
    training.run(20)
    with Reads() as reads:
        training.run(STEPS - 20)
        assert reads.count == 0
        assert training.optimizer.skipped == 1
        assert reads.count == 1
        assert training.optimizer.last_step.step == STEPS - 1
        assert reads.count == 1


def test_reports_come_every_fifty_steps() -> None:
    training = Training("device", regularizer=L0(rho=1e-3), total_steps=None).run(49)
    assert training.optimizer.arrived_step.step == 0
    training.run(2)
    assert training.optimizer.arrived_step.step == 50
    assert training.optimizer.iterations == 51
    assert sum(training.optimizer.arrived_trials) == 51
    assert training.optimizer.param_groups[0]["lr"] == 0.5 / training.optimizer.arrived_step.epsilon


def test_a_stall_is_told_with_the_reports() -> None:
    training = Training("device", dict.fromkeys(range(5, 60), math.nan), regularizer=L0(rho=1e-3), total_steps=None)
    training.run(50)
    with pytest.warns(UserWarning, match="20 batches in a row changed nothing"):
        training.run(2)


def test_weights_that_somebody_else_has_changed() -> None:
    """They may violate the constraint, which only the host can deal with."""
    trainings = [Training(decide, regularizer=Cardinality(0.8, ramp=(0.0, 0.2))) for decide in ("host", "device")]
    for training in trainings:
        training.run(20)
        with torch.no_grad():
            training.network[0].weight.add_(0.01)
        training.run(10)
        assert training.optimizer.meets_constraint()
    assert_twins(*trainings)


@settings(max_examples=8, deadline=None)
@given(
    saved_at=st.integers(0, 40),
    odd=st.dictionaries(st.integers(1, 45), st.sampled_from([math.nan, 30.0]), max_size=3),
    network=st.sampled_from(sorted(NETWORKS)),
    asked_at=st.integers(0, 40),
)
def test_resumed_equals_uninterrupted(saved_at: int, odd: dict[int, float], network: str, asked_at: int) -> None:
    options: dict[str, Any] = {"regularizer": Cardinality(0.8), "augmentation": RULES["curvature"]()}
    training = Training("device", odd, network, **options).run(asked_at)
    # That somebody asks changes nothing.
    assert training.optimizer.augmentation.epsilon > 0.0
    training = training.run(STEPS - asked_at)
    first = Training("device", odd, network, **options).run(saved_at)
    resumed = Training("device", odd, network, **options)
    resumed.network.load_state_dict(first.network.state_dict())
    resumed.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    resumed.run(STEPS - saved_at)
    assert all(map(torch.equal, training.state(), resumed.state()))
    assert training.optimizer.state_dict()["bsqh"] == resumed.optimizer.state_dict()["bsqh"]


@pytest.mark.parametrize(("before", "after"), [("host", "device"), ("device", "host")])
def test_a_checkpoint_of_one_mode_goes_on_in_the_other(before: str, after: str) -> None:
    options = {"regularizer": Cardinality(0.8), "augmentation": RULES["curvature"]()}
    whole = Training("host", {7: math.nan}, **options).run(40)
    first = Training(before, {7: math.nan}, **options).run(23)
    second = Training(after, {7: math.nan}, **options)
    second.network.load_state_dict(first.network.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    assert_twins(whole, second.run(17))


def test_a_copy_goes_on_by_itself() -> None:
    training = Training("device", regularizer=Cardinality(0.8)).run(23)
    twin = copy.deepcopy(training)
    assert_twins(training.run(10), twin.run(10))
    assert all(map(torch.equal, training.state(), twin.state()))


def test_layers_are_reported() -> None:
    host, device = (Training(decide, regularizer=L0(rho=1e-3)) for decide in ("host", "device"))
    for training in (host, device):
        training.run(3)
        training.optimizer.record_layers = True
        training.run(1)
    for name, expected in host.optimizer.last_layers.items():
        assert vars(device.optimizer.last_layers[name]) == pytest.approx(vars(expected), rel=1e-9, abs=1e-12)


class Own(Curvature):
    """Decides differently, and says nothing of the device."""

    def observe(self, trial: Trial) -> None:
        self.epsilon *= 1.0


class Lenient(Curvature):
    """Decides differently by a method that the rule calls."""

    def _within(self, target: float) -> float:
        return target


class Strange(Regularizer):
    """Says nothing of the device."""

    def penalty(self, weights: Any) -> float:
        return 0.0

    def prox_(self, points: Any, metric: Any, epsilon: float) -> None:
        return


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sweep": "gauss-seidel"}, "sweep='gauss-seidel': use sweep='jacobi', or decide='host'"),
        ({"batch_mode": "full"}, "batch_mode='full': use batch_mode='mini', or"),
        ({"trial_every": "auto"}, "trial_every='auto': use trial_every=1, or"),
        ({"augmentation": Own()}, "augmentation=Own(...), which has no on_device: use Curvature()"),
        ({"augmentation": Lenient()}, "augmentation=Lenient(...)"),
        ({"regularizer": Strange()}, "acts_on_device"),
        ({"regularizer": {"0": Strange()}}, "acts_on_device"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    for make in (BSQHStrategy, partial(BSQHOptimizer, smooth_network())):
        with pytest.raises(ValueError, match=re.escape(words)):
            make(decide="device", **options)


def test_layers_whose_true_k_is_looked_at_are_refused() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 4))
    with pytest.raises(ValueError, match=r"decide='device' cannot be used with the layers 1, .* decide='host'"):
        BSQHOptimizer(network, decide="device", layers=["1"])


def test_recurrent_modules() -> None:
    """They are run alone only where they are named, so the device can decide on them."""
    host, device = (
        Training(decide, network="recurrent", regularizer=Cardinality(0.5)) for decide in ("host", "device")
    )
    host.run(20)
    device.run(20)
    torch.testing.assert_close(device.network.state_dict(), host.network.state_dict(), rtol=1e-9, atol=1e-10)


def test_several_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="several processes: use devices=1"):
        BSQHOptimizer(smooth_network(), decide="device").share(Reduction())


@pytest.mark.parametrize("metric", ["rms", "euclidean"])
def test_in_a_trainer(make_trainer: Any, make_loader: Any, tmp_path: Any, metric: str) -> None:
    def fit(decide: str, epochs: int = 12, **options: Any) -> tuple[Any, nn.Module]:
        torch.manual_seed(0)
        module = SmallModule().double()
        # In front of a normalization, where its gradient is rounding alone.
        module.net[0].bias.requires_grad_(False)
        strategy = BSQHStrategy(decide=decide, max_trials=1, metric=metric, total_steps=36)
        trainer = make_trainer(strategy, max_epochs=epochs, precision="64-true", callbacks=[BSQHMonitor(5)])
        trainer.fit(module, make_loader(), weights_only=True, **options)
        return trainer, module

    _, host = fit("host")
    trainer, whole = fit("device")
    torch.testing.assert_close(whole.state_dict(), host.state_dict(), rtol=1e-9, atol=1e-9)
    monitor = trainer.callbacks[0].augmentation
    assert monitor.accepted_trials == trainer.optimizers[0].accepted > 0
    assert monitor.accepted_trials + monitor.rejected_trials >= trainer.global_step == 36
    half, _ = fit("device", 5)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = fit("device", ckpt_path=tmp_path / "half.ckpt")
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"callbacks": "scheduler"}])
def test_accumulation_is_refused(make_trainer: Any, make_loader: Any, options: dict[str, Any]) -> None:
    if "callbacks" in options:
        options = {"callbacks": [GradientAccumulationScheduler({0: 1, 1: 2})]}
    with pytest.raises(MisconfigurationException, match="decide='device' cannot be used with accumulate_grad_batches"):
        make_trainer(BSQHStrategy(decide="device"), max_epochs=2, **options).fit(SmallModule(), make_loader())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"devices": 2}, "several processes: use devices=1 and num_nodes=1, or decide='host'"),
        ({"num_nodes": 2}, "several processes: use devices=1 and num_nodes=1, or decide='host'"),
        ({"shard": "fsdp"}, "shard='fsdp': leave shard out, or decide='host'"),
    ],
)
def test_several_devices_are_refused_by_the_trainer(make_trainer: Any, options: dict[str, Any], words: str) -> None:
    own = {"shard": options.pop("shard")} if "shard" in options else {}
    with pytest.raises(MisconfigurationException, match=f"decide='device' cannot be used with {words}"):
        make_trainer(BSQHStrategy(decide="device", **own), **options)


def test_a_scaler_is_refused_before_the_training(make_trainer: Any, make_loader: Any) -> None:
    module = SmallModule()
    before = [p.detach().clone() for p in module.parameters()]
    trainer = make_trainer(
        BSQHStrategy(decide="device"), plugins=[MixedPrecision("16-mixed", "cpu", GradScaler("cpu"))]
    )
    with pytest.raises(MisconfigurationException, match="decide='device' cannot be used with precision='16-mixed'"):
        trainer.fit(module, make_loader())
    assert trainer.global_step == 0
    assert all(map(torch.equal, before, module.parameters()))


def test_single_precision() -> None:
    """Where the loss has a rounding error, the same steps are accepted."""
    trainings = [Training(decide, regularizer=L0(rho=1e-3)) for decide in ("host", "device")]
    for training in trainings:
        training.network.float()
        training.inputs = X.float()
        training.run(20, watched=True)
    host, device = trainings
    assert host.flags == device.flags
    torch.testing.assert_close(device.flat(), host.flat(), rtol=1e-4, atol=1e-5)
