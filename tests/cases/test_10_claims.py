"""What the optimizer claims about itself is so."""

from functools import partial

import pytest
import torch
from torch import nn

from lightning_bsqh import L0, BSQHOptimizer, Cardinality, Curvature, Discrete
from tests.cases.helpers import points


class Wave(nn.Module):
    """A layer that is not affine in its weights."""

    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, n) / n**0.5)

    def forward(self, x):
        return x + torch.sin(5.0 * nn.functional.linear(x, self.weight))


@pytest.mark.parametrize(("seed", "start"), [(1, 0.3), (6, 1.0), (9, 0.3)])
def test_converged_is_a_place_to_stay(seed, start):
    """Where converged is reported, more iterations with shorter steps do not lower the loss by a tenth."""
    x = torch.randn(32, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.sin(3 * x)
    torch.manual_seed(seed)
    net = nn.Sequential(Wave(3), Wave(3), Wave(3)).double()
    with torch.no_grad():
        for p in net.parameters():
            p[torch.rand_like(p) < 0.6] = 0

    def run(epsilon, limit):
        rule = Curvature(epsilon=epsilon, schedule=False, floor=0.0)
        optimizer = BSQHOptimizer(
            net,
            regularizer=Cardinality(0.5, ramp=(0.0, 0.0)),
            augmentation=rule,
            metric="euclidean",
            batch_mode="full",
            max_iterations=limit,
        )
        while not optimizer.finished:
            optimizer.step(lambda: (net(x) - y).square().mean())
        return optimizer

    first = run(start, 60)
    if first.converged:
        loss = first.last_step.objective_after
        assert run(30.0, 60).last_step.objective_after > 0.9 * loss


def test_epsilon_stays_below_its_bound():
    """ε of an iteration with a far outlying gradient is not above epsilon_max."""
    net = nn.Linear(8, 1)
    rule = Curvature(epsilon=60.0, epsilon_max=500.0, schedule=False)
    optimizer = BSQHOptimizer(net, regularizer=L0(rho=0.0), augmentation=rule)
    x, _ = points(16)
    y = x.sum(1, keepdim=True)
    calls = 0

    def closure(scale):
        nonlocal calls
        calls += 1
        # Every trial on the outlying batch is rejected.
        return nn.functional.mse_loss(net(x), y) * scale + (1e6 * calls if scale > 1.0 and calls > 1 else 0.0)

    for scale in [1.0] * 20 + [1e4]:
        calls = 0
        optimizer.step(partial(closure, scale))
        assert optimizer.last_step.epsilon <= 500.0


def test_untouched_tensors():
    """A tensor whose gradient has been zero so far has the same metric under Discrete's ramp and Cardinality's."""

    def metric(regularizer):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False))
        nn.init.zeros_(net[1].weight)
        optimizer = BSQHOptimizer(net, regularizer=regularizer, total_steps=100)
        optimizer.step(lambda: (net(torch.ones(2, 4)) - 1).square().mean())
        return torch.as_tensor(optimizer.metric_weights()["0.weight"])

    expected = metric(Cardinality(0.9))
    torch.testing.assert_close(metric(Discrete.ternary(0.1)).expand_as(expected), expected)
