"""BSQHOptimizer as a torch.optim.Optimizer, without Lightning (method §7)."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lightning_bsqh import L0, L1, Backtracking, BSQHOptimizer, Cardinality, Curvature, GroupL0
from lightning_bsqh.regularizers import Regularizer
from tests.problems import cross_entropy, data, smooth_network


def test_one_group_per_layer_with_name_and_lr() -> None:
    network = smooth_network()
    optimizer = BSQHOptimizer(network, epsilon=50.0)
    assert [group["name"] for group in optimizer.param_groups] == ["0", "2", "4"]
    assert all(group["lr"] == pytest.approx(0.5 / 50.0) for group in optimizer.param_groups)
    optimizer.step(lambda: cross_entropy(network, *data()))
    assert all(group["lr"] == pytest.approx(0.5 / optimizer.last_step.epsilon) for group in optimizer.param_groups)


@pytest.mark.parametrize("form", ["module", "tensors", "named", "groups"])
def test_all_forms_of_params_train_alike(form: str) -> None:
    network = smooth_network()
    params = {
        "module": lambda: network,
        "tensors": network.parameters,
        "named": network.named_parameters,
        "groups": lambda: [{"params": list(m.parameters()), "name": f"l{i}"} for i, m in enumerate(network[::2])],
    }[form]()
    reference = copy.deepcopy(network)
    expected = BSQHOptimizer(reference, regularizer=L0(1e-4))
    optimizer = BSQHOptimizer(params, regularizer=L0(1e-4))
    for _ in range(5):
        optimizer.step(lambda: cross_entropy(network, *data()))
        expected.step(lambda: cross_entropy(reference, *data()))
    for a, b in zip(network.parameters(), reference.parameters(), strict=True):
        assert torch.equal(a, b)


def test_last_step_describes_the_iteration() -> None:
    network = smooth_network()
    x, y = data()
    optimizer = BSQHOptimizer(network, regularizer=L0(1e-3), metric="euclidean", epsilon=3.0)
    weights = [p for p in network.parameters() if p.dim() >= 2]
    before = [p.detach().clone() for p in network.parameters()]
    loss = optimizer.step(lambda: cross_entropy(network, x, y))
    report = optimizer.last_step
    penalty = 1e-3 * sum(int(torch.count_nonzero(w)) for w in weights)
    assert not loss.requires_grad
    assert report.loss == loss.item()
    assert report.accepted
    assert report.trials == 1
    assert report.epsilon == 3.0
    assert report.objective_after == pytest.approx(cross_entropy(network, x, y).item() + penalty, rel=1e-12)
    assert report.loss_decrease == pytest.approx(report.objective_before - report.objective_after, rel=1e-9)
    tau = sum(float(((a - b) ** 2).sum()) for a, b in zip(network.parameters(), before, strict=True))
    assert report.tau == pytest.approx(tau, rel=1e-12)


def test_rejected_candidates_leave_the_weights_to_the_bit() -> None:
    network = smooth_network()
    before = [p.detach().clone() for p in network.parameters()]
    rule = Backtracking(epsilon=1e-6, sigma=1.1, schedule=False)
    optimizer = BSQHOptimizer(network, regularizer=L0(0.0), augmentation=rule, metric="euclidean", max_trials=3)
    optimizer.step(lambda: cross_entropy(network, *data()))
    assert not optimizer.last_step.accepted
    assert optimizer.last_step.trials == 3
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert optimizer.augmentation.epsilon == pytest.approx(1e-6 * 1.1**3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_trial_that_is_not_finite_is_a_rejection(bad: float) -> None:
    network = smooth_network()
    calls = []

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        loss = cross_entropy(network, *data())
        return loss if len(calls) != 2 else loss * bad

    optimizer = BSQHOptimizer(network, regularizer=L0(1e-4))
    optimizer.step(closure)
    assert optimizer.last_step.accepted
    assert optimizer.last_step.trials == 2
    assert calls == [True, False, False]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_batch_that_is_not_finite_is_skipped(where: str) -> None:
    network = smooth_network()
    optimizer = BSQHOptimizer(network, regularizer=L0(1e-4), total_steps=10)
    optimizer.step(lambda: cross_entropy(network, *data()))
    state = copy.deepcopy(optimizer.state_dict())
    before = [p.detach().clone() for p in network.parameters()]

    def closure() -> torch.Tensor:
        loss = cross_entropy(network, *data())
        # √ has a finite value and an infinite derivative at 0.
        return loss * math.nan if where == "loss" else loss + (network[0].weight * 0.0).abs().sum().sqrt()

    optimizer.step(closure)
    assert optimizer.skipped == 1
    assert optimizer.last_step.skipped
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    after = optimizer.state_dict()
    assert after["bsqh"]["augmentation"] == state["bsqh"]["augmentation"]
    torch.testing.assert_close(after["state"], state["state"], rtol=0.0, atol=0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_average_that_is_not_finite_is_refused(value: float) -> None:
    network = smooth_network()
    optimizer = BSQHOptimizer(network, regularizer=L0(1e-4))
    optimizer.step(lambda: cross_entropy(network, *data()))
    damaged, kept = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(optimizer.state_dict())
    damaged["state"][0]["mean"].fill_(value)
    with pytest.raises(ValueError, match="mean of a parameter in '0' is not finite"):
        optimizer.load_state_dict(damaged)
    torch.testing.assert_close(optimizer.state_dict()["state"], kept["state"], rtol=0.0, atol=0.0)


def test_a_state_without_averages_starts_them_anew() -> None:
    """As of a version that had none."""
    network, other = smooth_network(), smooth_network()
    first = BSQHOptimizer(network, regularizer=L0(1e-4), averaging=0.0)
    first.step(lambda: cross_entropy(network, *data(seed=0)))
    assert all("mean" not in entry for entry in first.state_dict()["state"].values())
    second = BSQHOptimizer(other, regularizer=L0(1e-4))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    other.load_state_dict(network.state_dict())
    for optimizer, trained in ((first, network), (second, other)):
        optimizer.step(lambda trained=trained: cross_entropy(trained, *data(seed=1)))
    # The first average is the gradient itself.
    assert all(map(torch.equal, network.parameters(), other.parameters()))
    assert all("mean" in entry for entry in second.state_dict()["state"].values())


def test_resumed_equals_uninterrupted() -> None:
    def make() -> tuple[nn.Module, BSQHOptimizer]:
        network = smooth_network()
        return network, BSQHOptimizer(network, regularizer=Cardinality(0.8), total_steps=40)

    network, optimizer = make()
    for step in range(40):
        optimizer.step(lambda step=step: cross_entropy(network, *data(seed=step)))
        if step == 17:
            saved = copy.deepcopy((network.state_dict(), optimizer.state_dict()))
    other, resumed = make()
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for step in range(18, 40):
        resumed.step(lambda step=step: cross_entropy(other, *data(seed=step)))
    assert resumed.last_step == optimizer.last_step
    assert resumed.augmentation.epsilon == optimizer.augmentation.epsilon
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_another_optimizer_is_refused() -> None:
    network = smooth_network()
    with pytest.raises(ValueError, match="not that of a BSQHOptimizer"):
        BSQHOptimizer(network).load_state_dict(torch.optim.Adam(network.parameters()).state_dict())


def test_the_users_rule_is_not_shared_between_optimizers() -> None:
    rule = Curvature(epsilon=40.0)
    network = smooth_network()
    optimizer = BSQHOptimizer(network, augmentation=rule)
    for _ in range(3):
        optimizer.step(lambda: cross_entropy(network, *data()))
    assert rule.epsilon == 40.0
    assert optimizer.augmentation.epsilon != 40.0


def test_unused_and_sparse_gradients() -> None:
    torch.manual_seed(0)
    table, head, idle_layer = nn.Embedding(20, 4, sparse=True), nn.Linear(4, 2), nn.Linear(3, 3)
    network = nn.ModuleDict({"table": table, "head": head, "idle": idle_layer})
    idle = network["idle"].weight.detach().clone()
    optimizer = BSQHOptimizer(network, regularizer=L0(0.0))
    words = torch.tensor([1, 5, 7])
    targets = torch.tensor([0, 1, 1])
    first = None
    for _ in range(20):
        loss = optimizer.step(lambda: nn.functional.cross_entropy(network["head"](network["table"](words)), targets))
        first = first if first is not None else loss
    assert loss < first
    assert torch.equal(idle, network["idle"].weight)


def test_differences_below_the_rounding_error_count_as_zero() -> None:
    """A step too small to be seen in float32 is neither a rise nor a reason to raise ε for ever."""
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = BSQHOptimizer(
        [parameter], regularizer=L0(0.0), augmentation=Backtracking(1e7, schedule=False), metric="euclidean"
    )
    for _ in range(20):
        optimizer.step(lambda: 1000.0 + 1e-3 * parameter.square().sum())
        assert optimizer.last_step.accepted
        assert optimizer.last_step.trials == 1


def test_group_added_later_is_trained() -> None:
    network = smooth_network()
    optimizer = BSQHOptimizer([{"params": list(network[0].parameters()), "name": "first"}], regularizer=L0(1e-4))
    optimizer.step(lambda: cross_entropy(network, *data()))
    optimizer.add_param_group({"params": list(network[2].parameters()), "name": "second"})
    before = network[2].weight.detach().clone()
    optimizer.step(lambda: cross_entropy(network, *data()))
    assert not torch.equal(before, network[2].weight)
    assert set(optimizer.regularized_weights()) == {"first", "second"}


def test_names_of_groups_are_unique() -> None:
    network = smooth_network()
    optimizer = BSQHOptimizer([{"params": list(network[0].parameters()), "name": "layer1"}])
    for module in (network[2], network[4]):
        optimizer.add_param_group({"params": list(module.parameters())})
    names = [group["name"] for group in optimizer.param_groups]
    assert len(set(names)) == 3


def test_the_closure_may_take_gradients_itself() -> None:
    network = smooth_network()
    x, y = data()

    def closure() -> torch.Tensor:
        inputs = x.clone().requires_grad_()
        loss = cross_entropy(network, inputs, y)
        (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
        return loss + 0.1 * gradient.square().sum()

    optimizer = BSQHOptimizer(network, regularizer=L0(1e-4))
    values = [float(optimizer.step(closure)) for _ in range(10)]
    assert optimizer.last_step.accepted
    assert values[-1] < values[0]


@pytest.mark.parametrize("regularizer", [L0(rho=1e-5), GroupL0(rho=1e-5), L1(rho=1e-5)])
def test_a_price_takes_nothing_that_no_gradient_has_reached(regularizer: Regularizer) -> None:
    """As in networks whose last layer, or the last of each branch, starts at zero."""
    network = smooth_network()
    last = list(network.parameters())[-2]
    torch.nn.init.zeros_(last)
    x, y = data()
    optimizer = BSQHOptimizer(network, regularizer=regularizer)
    losses = [float(optimizer.step(lambda: cross_entropy(network, x, y))) for _ in range(50)]
    assert losses[-1] < losses[0] - 0.1
    assert optimizer.sparsity() < 0.5


@pytest.mark.parametrize("minimum", [0, 1, 3])
def test_what_no_gradient_reaches_comes_last_where_weights_compete(minimum: int) -> None:
    class Unused(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = smooth_network(), torch.nn.Linear(6, 100).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x) + 0.0 * self.unused(x).sum()

    network = Unused()
    x, y = data()
    optimizer = BSQHOptimizer(network, regularizer=Cardinality(0.9, ramp=(0.0, 0.0), minimum=minimum))
    optimizer.step(lambda: cross_entropy(network, x, y))
    assert torch.count_nonzero(network.unused.weight) == minimum
    assert optimizer.sparsity() == pytest.approx(0.9, abs=2e-3)
