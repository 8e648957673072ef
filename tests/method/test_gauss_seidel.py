"""The gauss-seidel sweep against updates written out by hand (method §5)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_bsqh import L0, L1, L2, Backtracking, BSQHOptimizer, BSQHStrategy, Cardinality, Discrete
from lightning_bsqh.regularizers import MetricWeight, Regularizer
from tests.problems import cross_entropy, data

EPSILON = 20.0


def four_layers() -> nn.Sequential:
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for inputs, outputs in ((6, 9), (9, 8), (8, 7), (7, 3)):
        parts += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*parts[:-1]).double()


def optimizer_of(network: nn.Module, regularizer: Regularizer, **options: Any) -> BSQHOptimizer:
    rule = Backtracking(epsilon=EPSILON, schedule=False)
    return BSQHOptimizer(
        network, regularizer=regularizer, augmentation=rule, metric="euclidean", sweep="gauss-seidel", **options
    )


@pytest.mark.parametrize("rho", [0.0, 2e-3])
def test_equals_a_sequential_update_by_hand(rho: float) -> None:
    network = four_layers()
    x, y = data()
    linears = [m for m in network if isinstance(m, nn.Linear)]
    # Forward and adjoint sweep at w, written out.
    states = [x]
    for index, layer in enumerate(linears):
        out = layer(states[-1]).detach().requires_grad_()
        states[-1] = (states[-1], out)
        states.append(torch.tanh(out).detach() if index < 3 else out)
    logits = states[-1].detach().requires_grad_()
    upstream = torch.autograd.grad(nn.functional.cross_entropy(logits, y), logits)[0]
    gradients: list[Tensor] = [upstream] * 4
    for index in (3, 2, 1):
        inner = upstream @ linears[index].weight
        upstream = inner * (1.0 - torch.tanh(states[index - 1][1]) ** 2)
        gradients[index - 1] = upstream.detach()
    # Layer by layer, each at the state that the updated layers below produce.
    expected, state = [], x
    for index, layer in enumerate(linears):
        weight = layer.weight - gradients[index].T @ state / (2 * EPSILON)
        bias = layer.bias - gradients[index].sum(0) / (2 * EPSILON)
        weight = weight.sign() * (weight.abs() - rho / (2 * EPSILON)).clamp_min(0.0)
        expected += [weight.detach(), bias.detach()]
        state = torch.tanh(state @ weight.T + bias).detach()
    optimizer = optimizer_of(network, L1(rho))
    optimizer.step(lambda: cross_entropy(network, x, y))
    assert optimizer.last_step is not None
    assert optimizer.last_step.accepted
    for parameter, value in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=0, atol=1e-12)


def test_first_layer_as_in_jacobi_and_later_ones_not() -> None:
    x, y = data()
    results = []
    for sweep in ("jacobi", "gauss-seidel"):
        network = four_layers()
        optimizer = BSQHOptimizer(network, regularizer=L0(0.0), epsilon=EPSILON, metric="euclidean", sweep=sweep)
        optimizer.step(lambda: cross_entropy(network, x, y))  # noqa: B023
        results.append([p.detach().clone() for p in network.parameters()])
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-15)
    assert not torch.allclose(results[0][2], results[1][2], rtol=0, atol=1e-9)


class Branched(nn.Module):
    """Skips, a branch, a layer called twice, BatchNorm, dropout, and one layer that is not affine."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.shared = nn.Linear(8, 8)
        self.side = nn.GRUCell(8, 8)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = self.drop(torch.tanh(self.shared(x))) + x
        return self.head(self.shared(y) + self.side(x, y))


@pytest.mark.parametrize(
    "regularizer",
    [
        L2(1e-3),
        Cardinality(0.5, ramp=(0.0, 0.5), interval=3),
        Discrete.ternary(0.3, ramp=(0.0, 0.5)),
        Cardinality(0.5, ramp=(0.0, 0.0), scope="layer"),
    ],
)
def test_any_architecture(regularizer: Regularizer) -> None:
    torch.manual_seed(0)
    network = Branched().double()
    x, y = data()
    optimizer = optimizer_of(network, regularizer, total_steps=40, layers=["side"])
    reports = []
    for _ in range(40):
        optimizer.step(lambda: cross_entropy(network, x, y))
        assert optimizer.last_step is not None
        reports.append(optimizer.last_step)
        if not reports[-1].tightened:
            assert reports[-1].loss_decrease >= 0.0
    assert sum(report.accepted for report in reports) > 20
    assert optimizer.meets_constraint()
    assert network.norm.num_batches_tracked == 40


def test_tied_parameters_are_updated_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 6, bias=False)
            self.b = nn.Linear(6, 6, bias=False)
            self.b.weight = self.a.weight
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))

    torch.manual_seed(0)
    network = Tied().double()
    x, y = data()
    start = network.a.weight.detach().clone()
    loss = cross_entropy(network, x, y)
    (gradient,) = torch.autograd.grad(loss, network.a.weight)
    optimizer = optimizer_of(network, L0(0.0))
    optimizer.step(lambda: cross_entropy(network, x, y))
    # The first layer's input has not changed, so G is that of w, both uses included.
    expected = start - gradient / (2 * EPSILON)
    torch.testing.assert_close(network.a.weight.detach(), expected, rtol=0, atol=1e-14)


class Shifted(nn.Module):
    """Holds a tensor of its own beside layers that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(2, 6))
        self.inner = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + self.shift[0] * self.shift[1])


def test_a_layer_that_holds_others_as_in_jacobi() -> None:
    torch.manual_seed(0)
    network = Shifted().double()
    alone = copy.deepcopy(network)
    x, y = data()
    optimizer_of(network, L0(1e-4)).step(lambda: cross_entropy(network, x, y))
    rule = Backtracking(epsilon=EPSILON, schedule=False)
    jacobi = BSQHOptimizer(alone, regularizer=L0(1e-4), augmentation=rule, metric="euclidean")
    jacobi.step(lambda: cross_entropy(alone, x, y))
    torch.testing.assert_close(network.shift, alone.shift, rtol=0.0, atol=0.0)
    # Its layers see the input that the new shift has moved.
    assert not torch.equal(network.inner[0].weight, alone.inner[0].weight)


def test_attention_and_a_positional_parameter() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.randn(1, 4, 8) / 10)
            layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x + self.position)

    torch.manual_seed(0)
    network = Encoder()
    x, y = torch.randn(2, 16, 4, 8)
    optimizer = BSQHOptimizer(network, regularizer=L0(1e-5), sweep="gauss-seidel")
    losses = [float(optimizer.step(lambda: nn.functional.mse_loss(network(x), y))) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_rejected_leaves_w() -> None:
    network = four_layers()
    x, y = data()
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = BSQHOptimizer(
        network,
        regularizer=L0(0.0),
        augmentation=Backtracking(epsilon=1e-6, sigma=1.01),
        metric="euclidean",
        sweep="gauss-seidel",
        max_trials=2,
    )
    optimizer.step(lambda: cross_entropy(network, x, y))
    assert optimizer.last_step is not None
    assert not optimizer.last_step.accepted
    for parameter, value in zip(network.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
    assert all(not m._forward_pre_hooks for m in network.modules())


def test_without_the_network() -> None:
    network = four_layers()
    with pytest.raises(ValueError, match=r"sweep='gauss-seidel' needs the network"):
        BSQHOptimizer(network.parameters(), regularizer=L0(), sweep="gauss-seidel")


def test_a_regularizer_that_cannot_be_shared_out() -> None:
    class Coupled(Regularizer):
        couples_tensors = True  # type: ignore[assignment]

        def penalty(self, weights: Any) -> float:
            return 0.0

        def prox_(self, points: Any, metric: MetricWeight, epsilon: float) -> None:
            return

    with pytest.raises(ValueError, match=r"couples the layers.*sweep='jacobi'"):
        BSQHOptimizer(four_layers(), regularizer=Coupled(), sweep="gauss-seidel")


@pytest.mark.parametrize("sweep", ["seidel", "", None])
def test_unknown_sweep(sweep: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"sweep"):
        BSQHOptimizer(four_layers(), regularizer=L0(), sweep=sweep)
    with pytest.raises((ValueError, TypeError), match=r"sweep"):
        BSQHStrategy(sweep=sweep)


def test_a_layer_frozen_meanwhile_stays() -> None:
    network = four_layers()
    x, y = data()
    optimizer = optimizer_of(network, L0(0.0))
    optimizer.step(lambda: cross_entropy(network, x, y))
    network[2].weight.requires_grad_(False)
    before = [p.detach().clone() for p in network.parameters()]
    optimizer.step(lambda: cross_entropy(network, x, y))
    assert torch.equal(before[2], network[2].weight)
    assert not torch.equal(before[3], network[2].bias)
    assert not torch.equal(before[0], network[0].weight)
