"""The certificate against direct evaluations, brute force and what it may not touch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from lightning_bsqh import (
    L0,
    L1,
    L2,
    Backtracking,
    Box,
    BSQHOptimizer,
    Cardinality,
    Discrete,
    ElasticNet,
    GroupL0,
    LHalf,
    LTwoThirds,
    Regularizer,
    pmp_residual,
)
from lightning_bsqh.regularizers import MetricWeight
from tests.problems import cross_entropy, data, smooth_network


class Affine(nn.Module):
    """Every kind of affine layer that fits into one small network, float64."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 6)
        self.conv = nn.Conv1d(6, 4, 3, stride=2)
        self.batch_norm = nn.BatchNorm1d(4)
        self.up = nn.ConvTranspose1d(4, 3, 2, groups=1)
        self.group_norm = nn.GroupNorm(3, 3)
        self.layer_norm = nn.LayerNorm(5)
        self.linear = nn.Linear(15, 3, bias=False)
        self.double()
        for p in self.parameters():
            nn.init.normal_(p, std=0.5)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.batch_norm(self.conv(self.embedding(x).transpose(1, 2))))
        return self.linear(torch.tanh(self.layer_norm(self.group_norm(self.up(x)))).flatten(1))


def affine_problem() -> tuple[Affine, Tensor, Tensor]:
    torch.manual_seed(0)
    return Affine(), torch.randint(5, (7, 9)), torch.randint(3, (7,))


def direct_hamiltonians(network: nn.Module, loss: Callable[[], Tensor]) -> dict[str, float]:
    """Σ_s⟨p_{l+1}, λ_l(x_l, u_l)⟩ by storing every layer's output and differentiating the loss by it."""
    outputs: dict[str, Tensor] = {}
    handles = []
    for name, module in network.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            handles.append(module.register_forward_hook(lambda _m, _x, out, name=name: outputs.update({name: out})))
    value = loss()
    adjoints = torch.autograd.grad(-value, list(outputs.values()))
    for handle in handles:
        handle.remove()
    return {n: float((p * outputs[n].detach()).sum()) for n, p in zip(outputs, adjoints, strict=True)}


@pytest.mark.parametrize("rho", [0.0, 1e-3])
def test_hamiltonian_equals_the_direct_evaluation(rho: float) -> None:
    network, x, y = affine_problem()
    result = pmp_residual(network, lambda: cross_entropy(network, x, y), regularizer=L0(rho))
    direct = direct_hamiltonians(network, lambda: cross_entropy(network, x, y))
    weights = {"embedding": 30, "conv": 72, "up": 24, "linear": 45}
    assert direct.keys() == result.layers.keys()
    for name, layer in result.layers.items():
        assert not layer.linearized
        assert layer.hamiltonian == pytest.approx(direct[name] - rho * weights.get(name, 0), rel=1e-10, abs=1e-13)
    assert result.hamiltonian == pytest.approx(sum(direct.values()) - rho * sum(weights.values()), rel=1e-10)


class Tiny(nn.Module):
    """One row of three weights and a bias, so that a grid over them is affordable."""

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.fc = nn.Linear(len(weights), 1).double()
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([weights]))
            self.fc.bias.zero_()

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def squared_error(network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[0.3], [0.02], [-0.4]], dtype=torch.float64)
    return (network(x) - y).square().mean()


@pytest.mark.parametrize("epsilon", [0.7, 5.0])
@pytest.mark.parametrize("regularizer", [L0(0.02), L1(0.05), L2(0.3)], ids=["l0", "l1", "l2"])
def test_residual_equals_brute_force(regularizer: Regularizer, epsilon: float) -> None:
    network = Tiny([0.25, 0.0, 0.1])
    d = torch.tensor([[0.5, 2.0, 1.0]], dtype=torch.float64)
    result = pmp_residual(
        network,
        lambda: squared_error(network),
        regularizer=regularizer,
        epsilon=epsilon,
        metric={"fc.weight": d, "fc.bias": 1.0},
    )
    loss = squared_error(network)
    weight, bias = (-g for g in torch.autograd.grad(loss, [network.fc.weight, network.fc.bias]))
    # K splits into coordinates, zero among the points of each grid, the step of which is 2.5e-6.
    grid = torch.linspace(-1.5, 1.5, 1_200_001, dtype=torch.float64)
    best = []
    for i in range(3):
        u = network.fc.weight[0, i].item()

        def gain(v: Tensor, i: int = i, u: float = u) -> Tensor:
            price = {L0: lambda v: (v != 0).double(), L1: torch.abs, L2: torch.square}[type(regularizer)]
            change = price(v) - price(torch.tensor(u, dtype=torch.float64))
            return weight[0, i] * (v - u) - regularizer.rho * change - epsilon * d[0, i] * (v - u) ** 2

        best.append(max(float(gain(grid).max()), float(gain(torch.zeros(1, dtype=torch.float64)).max()), 0.0))
    best.append(float(bias) ** 2 / (4 * epsilon))
    assert result.layers["fc"].gains.tolist() == pytest.approx(best, abs=1e-10)
    assert result.total == pytest.approx(sum(best), abs=1e-10)
    assert result.layers["fc"].residual == pytest.approx(result.total, rel=1e-12)
    for tolerance in (1e-12, 1e-3, 1e-2, 1.0):
        assert result.satisfied(tolerance) == sum(b <= tolerance for b in best) / 4


def test_cardinality_equals_brute_force_over_all_supports() -> None:
    network = smooth_network()
    x, y = data()
    with torch.no_grad():
        # Two thirds of the 6·12 + 12·8 + 8·3 = 192 weights zero, by the order of their positions.
        for p in network.parameters():
            if p.dim() == 2:
                p.view(-1)[torch.arange(p.numel()) % 3 != 0] = 0.0
    result = pmp_residual(network, lambda: cross_entropy(network, x, y), regularizer=Cardinality(2 / 3), epsilon=2.0)
    parameters = list(network.parameters())
    gradients = torch.autograd.grad(cross_entropy(network, x, y), parameters)
    # Keeping weight i is worth ε z_i²: the best support takes the k largest, whatever the layer.
    points = [p.detach() - g / 4.0 for p, g in zip(parameters, gradients, strict=True)]
    worth = torch.cat([2.0 * z.square().flatten() for z in points if z.dim() == 2])
    kept = worth.sort(descending=True).values[:64].sum()
    biases = sum(2.0 * z.square().sum() for z in points if z.dim() == 1)
    # K(u; w) = ε‖z − w‖² − ε‖u − z‖² for u and constants alike, and −ε‖u − z‖² = −ε‖z‖² + what is kept.
    lost = sum(2.0 * (2.0 * z * p - p.square()).sum() for z, p in zip(points, parameters, strict=True))
    assert result.total == pytest.approx((kept + biases - lost).item(), rel=1e-10)
    assert result.coupled
    assert sum(layer.residual for layer in result.layers.values()) == pytest.approx(result.total, rel=1e-12)
    assert "part of the global maximizer" in str(result)


def test_cardinality_of_a_tiny_layer_over_all_supports() -> None:
    network = Tiny([0.25, 0.0, 0.1])
    epsilon = 0.7
    result = pmp_residual(network, lambda: squared_error(network), regularizer=Cardinality(1 / 3), epsilon=epsilon)
    weight, bias = (-g for g in torch.autograd.grad(squared_error(network), list(network.parameters())))
    u = network.fc.weight.detach()
    best = -math.inf
    for support in itertools.combinations(range(3), 2):
        v = torch.zeros_like(u)
        for i in support:
            v[0, i] = u[0, i] + weight[0, i] / (2 * epsilon)
        best = max(best, float((weight * (v - u)).sum() - epsilon * (v - u).square().sum()))
    assert result.total == pytest.approx(best + float(bias) ** 2 / (4 * epsilon), rel=1e-12)


@pytest.mark.parametrize("regularizer", [L0(1e-2), L1(5e-2), L2(0.1), Cardinality(1 / 3, ramp=(0.0, 0.0))])
def test_zero_at_a_maximiser(regularizer: Regularizer) -> None:
    """On a quadratic the iteration reaches a fixed point, and there the certificate is zero."""
    network = Tiny([0.25, -0.3, 0.0])
    optimizer = BSQHOptimizer(
        network, regularizer=regularizer, augmentation=Backtracking(2.0, zeta=1.0, schedule=False), metric="euclidean"
    )

    def certificate():
        return pmp_residual(network, lambda: squared_error(network), regularizer=regularizer, epsilon=2.0)

    start = certificate()
    for _ in range(400):
        optimizer.step(lambda: squared_error(network))
    end = certificate()
    assert start.total > 1e-3
    assert abs(end.total) < 1e-16
    assert end.satisfied(1e-16) == 1.0
    assert start.satisfied(1e-6) < 1.0


def test_one_step_at_this_epsilon_gains_the_residual() -> None:
    network = smooth_network()
    x, y = data()
    optimizer = BSQHOptimizer(
        network,
        regularizer=L0(1e-3),
        augmentation=Backtracking(3.0, schedule=False),
        metric="rms",
        averaging=0.0,
        max_trials=1,
    )
    for _ in range(5):
        epsilon = optimizer.augmentation.epsilon
        before = pmp_residual(network, lambda: cross_entropy(network, x, y), regularizer=L0(1e-3), epsilon=epsilon)
        rms = pmp_residual(
            network, lambda: cross_entropy(network, x, y), regularizer=L0(1e-3), epsilon=epsilon, metric="rms"
        )
        weights = [p.detach().clone() for p in network.parameters()]
        optimizer.step(lambda: cross_entropy(network, x, y))
        after = [p.detach().clone() for p in network.parameters()]
        with torch.no_grad():
            for p, w in zip(network.parameters(), weights, strict=True):
                p.copy_(w)
        same = pmp_residual(
            network,
            lambda: cross_entropy(network, x, y),
            regularizer=L0(1e-3),
            epsilon=epsilon,
            metric=optimizer.metric_weights(),
        )
        assert same.total == pytest.approx(optimizer.last_step.hamiltonian_gain, rel=1e-9)
        if optimizer.iterations == 1:
            assert rms.total == pytest.approx(same.total, rel=1e-9)
        assert before.total != same.total
        with torch.no_grad():
            for p, w in zip(network.parameters(), after, strict=True):
                p.copy_(w)


class Noisy(nn.Module):
    """BatchNorm, dropout, a counter and a list: all that a forward may change."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Linear(8, 3)
        self.calls = 0
        self.seen: list[int] = []

    @override
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(len(x))
        return self.last(self.dropout(self.norm(self.first(x))))


def test_leaves_everything_as_it_was() -> None:
    network = Noisy()
    x, y = (t.float() if t.is_floating_point() else t for t in data())
    functional.cross_entropy(network(x), y).backward()
    gradients = [(p.grad, p.grad.clone()) for p in network.parameters()]
    state = {k: v.clone() for k, v in network.state_dict().items()}
    generator = torch.get_rng_state()
    forwards: list[int] = []
    backwards: list[int] = []

    def closure() -> Tensor:
        forwards.append(1)
        loss = functional.cross_entropy(network(x), y)
        loss.register_hook(lambda g: backwards.append(1))
        return loss

    # Lightning's validation runs without gradients, the certificate takes its own.
    with torch.no_grad():
        result = pmp_residual(network, closure, regularizer=L0(1e-3))
    assert (len(forwards), len(backwards)) == (1, 1)
    assert (network.calls, network.seen) == (1, [96])
    assert torch.equal(generator, torch.get_rng_state())
    for p, (gradient, value) in zip(network.parameters(), gradients, strict=True):
        assert p.grad is gradient
        assert torch.equal(gradient, value)
        assert p.requires_grad
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key])
    assert result.linearized == ()
    assert network.training


def test_says_which_layers_are_linearized() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(6, 4)
            self.norm = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.old = nn.utils.spectral_norm(nn.Linear(4, 4))
            self.scaled = Scaled(4, 4)
            self.renormed = nn.Embedding(3, 4, max_norm=1.0)
            self.plain = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.old(self.norm(self.rnn(x)[0])) + self.renormed(torch.tensor(1))
            return self.plain(self.scaled(x))

    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.weight.square(), self.bias)

    network = Mixed()
    x, y = data()
    result = pmp_residual(network, lambda: cross_entropy(network, x.float(), y), regularizer=L2(1e-3))
    assert {"rnn", "old", "scaled", "renormed"} <= set(result.linearized)
    assert any(name.startswith("norm.parametrizations") for name in result.linearized)
    assert not result.layers["plain"].linearized
    assert "linearized" in str(result)


class NearestInteger(Regularizer):
    """Weights are integers; no sum over elements is told."""

    def penalty(self, weights: Sequence[Tensor]) -> float:
        return 0.0

    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        for z in points:
            z.round_()


class Wrong(NearestInteger):
    """A prox that is none."""

    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        for z in points:
            z.add_(10.0)


def test_own_regularizer_counts_by_tensors() -> None:
    network = Tiny([1.0, 0.0, 2.0])
    result = pmp_residual(network, lambda: squared_error(network), regularizer=NearestInteger(), epsilon=0.5)
    layer = result.layers["fc"]
    assert layer.gains[:3].unique().numel() == 1
    assert result.total == pytest.approx(float(layer.gains[0] + layer.gains[3]), rel=1e-12)
    assert layer.residual == pytest.approx(result.total, rel=1e-12)
    with pytest.raises(RuntimeError, match="does not maximize"):
        pmp_residual(network, lambda: squared_error(network), regularizer=Wrong())


# ---------------------------------------------------------------------- max H − H(u) without an ε

LOW, HIGH = -0.5, 0.75
# Strengths of the order of the derivatives, so that the maximum lies at an end here, at zero or in between there.
IN_BOX: dict[str, tuple[Regularizer, Callable[[Tensor], Tensor]]] = {
    "alone": (Box(LOW, HIGH), torch.zeros_like),
    "without 0": (Box(0.05, HIGH), torch.zeros_like),
    "l0": (Box(LOW, HIGH, L0(0.1)), lambda v: 0.1 * (v != 0).double()),
    "l1": (Box(LOW, HIGH, L1(0.2)), lambda v: 0.2 * v.abs()),
    "l2": (Box(LOW, HIGH, L2(0.4)), lambda v: 0.4 * v.square()),
    "no price": (Box(LOW, HIGH, L2(0.0)), torch.zeros_like),
    "elastic": (Box(LOW, HIGH, ElasticNet(0.1, 0.4)), lambda v: 0.1 * v.abs() + 0.4 * v.square()),
    "half": (Box(LOW, HIGH, LHalf(0.1)), lambda v: 0.1 * v.abs().sqrt()),
    "two thirds": (Box(LOW, HIGH, LTwoThirds(0.1)), lambda v: 0.1 * v.abs().pow(2 / 3)),
    "by name": ({"fc": Box(LOW, HIGH, L0(0.1))}, lambda v: 0.1 * (v != 0).double()),
}


def ascent_of(network: Tiny) -> Tensor:
    (gradient,) = torch.autograd.grad(squared_error(network), [network.fc.weight])
    return -gradient[0]


@pytest.mark.parametrize(
    "weights",
    [[0.25, 0.1, 0.7], [0.75, 0.05, 0.05], [0.6, 0.5, 0.3]],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
@pytest.mark.parametrize("name", IN_BOX)
def test_hamiltonian_gap_in_a_box_equals_brute_force(name: str, weights: list[float]) -> None:
    network = Tiny(weights)
    regularizer, price = IN_BOX[name]
    result = pmp_residual(network, lambda: squared_error(network), regularizer=regularizer)
    ascent, u = ascent_of(network), network.fc.weight.detach()[0]
    grid = torch.linspace(0.05 if name == "without 0" else LOW, HIGH, 1_250_001, dtype=torch.float64)
    grid[grid.abs() < 1e-9] = 0.0
    best = sum(float((ascent[i] * grid - price(grid)).max()) for i in range(3))
    expected = best - float((ascent * u - price(u)).sum())
    # The bias is not in the box: it stays as it is.
    assert result.hamiltonian_gap == pytest.approx(expected, abs=1e-10)
    assert result.layers["fc"].hamiltonian_gap == result.hamiltonian_gap
    assert "max H - H" in str(result)


def test_hamiltonian_gap_of_a_cardinality_over_all_supports() -> None:
    network = Tiny([0.25, 0.0, 0.1])
    regularizer = Box(LOW, HIGH, Cardinality(1 / 3))
    result = pmp_residual(network, lambda: squared_error(network), regularizer=regularizer)
    ascent, u = ascent_of(network), network.fc.weight.detach()[0]
    ends = torch.maximum(ascent * LOW, ascent * HIGH)
    best = max(float(ends[list(support)].sum()) for support in itertools.combinations(range(3), 2))
    assert result.hamiltonian_gap == pytest.approx(best - float(ascent @ u), rel=1e-12)


def test_hamiltonian_gap_of_groups_and_of_levels() -> None:
    network = smooth_network()
    x, y = data()
    with torch.no_grad():
        for p in network.parameters():
            p.clamp_(-0.5, 0.5)
        network[4].weight.copy_(torch.where(network[4].weight > 0, 0.5, -0.25))
    regularizer = {"0": Box(-0.5, 0.5, GroupL0(0.02)), "4": Discrete((-0.25, 0.0, 0.5)), "2": L0(1e-3)}
    result = pmp_residual(network, lambda: cross_entropy(network, x, y), regularizer=regularizer)
    gradients = torch.autograd.grad(cross_entropy(network, x, y), [network[0].weight, network[4].weight])
    rows = (0.5 * gradients[0].abs()).sum(1) - 0.02
    groups = float(rows.clamp_min(0.0).sum() + (gradients[0] * network[0].weight).sum()) + 12 * 0.02
    assert 0 < int((rows > 0).sum()) < 12
    levels = float((torch.maximum(0.25 * gradients[1], -0.5 * gradients[1]) + gradients[1] * network[4].weight).sum())
    assert result.layers["0"].hamiltonian_gap == pytest.approx(groups, rel=1e-12)
    assert result.layers["4"].hamiltonian_gap == pytest.approx(levels, rel=1e-12)
    # Without a box there is no maximum.
    assert result.layers["2"].hamiltonian_gap is None
    assert result.hamiltonian_gap == pytest.approx(groups + levels, rel=1e-12)


@pytest.mark.parametrize(
    "regularizer",
    [L0(0.1), L2(0.1), Box(None, 0.75), Box(-0.5, None, L0(0.1)), Discrete([0.1], (0, 1)).at(0, 10)],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_no_hamiltonian_gap_where_the_weights_are_not_bounded(regularizer: Regularizer) -> None:
    network = Tiny([0.25, 0.1, 0.7])
    result = pmp_residual(network, lambda: squared_error(network), regularizer=regularizer)
    assert result.hamiltonian_gap is result.layers["fc"].hamiltonian_gap is None
    assert "max H - H" not in str(result)


def test_hamiltonian_gap_vanishes_at_a_corner() -> None:
    """A linear loss in a box: the method reaches the bang-bang control, where the condition holds without any ε."""
    network = Tiny([0.25, 0.1, 0.7])
    slope = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)

    def loss() -> Tensor:
        return (network.fc.weight * slope).sum()

    assert pmp_residual(network, loss, regularizer=Box(LOW, HIGH)).hamiltonian_gap == pytest.approx(2.65)
    optimizer = BSQHOptimizer(network, regularizer=Box(LOW, HIGH), augmentation=Backtracking(1.0), metric="euclidean")
    for _ in range(20):
        optimizer.step(loss)
    assert network.fc.weight.tolist() == [[LOW, HIGH, LOW]]
    assert pmp_residual(network, loss, regularizer=Box(LOW, HIGH)).hamiltonian_gap == 0.0


@pytest.mark.parametrize(
    "regularizer",
    [Box(-0.1, 0.1), Box(-0.1, 0.1, L0(1e-3)), Discrete((-0.1, 0.1), ramp=(0.0, 0.0))],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_an_end_that_single_precision_cannot_hold(regularizer: Regularizer) -> None:
    network = Tiny([0.5, -0.5, 0.7]).float()
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def loss() -> Tensor:
        return network(x).square().mean() + network.fc.weight.sum()

    optimizer = BSQHOptimizer(network, regularizer=regularizer)
    for _ in range(5):
        optimizer.step(loss)
    assert network.fc.weight.min() == torch.tensor(-0.1)
    assert pmp_residual(network, loss, regularizer=regularizer).total >= 0.0


def test_bad_input() -> None:
    network = Tiny([0.25, 0.0, 0.1])

    def loss() -> Tensor:
        return squared_error(network)

    def backward() -> Tensor:
        value = squared_error(network)
        value.backward()
        return value

    cases: list[tuple[type[Exception], str, tuple, dict]] = [
        (TypeError, "model must be a torch.nn.Module, got str", ("net", loss), {}),
        (TypeError, "loss_closure must be a function", (network, loss()), {}),
        (TypeError, "loss_closure must return the loss", (network, lambda: 1.0), {}),
        (ValueError, "without an autograd graph", (network, lambda: loss().detach()), {}),
        (ValueError, "real scalar loss", (network, lambda: loss() * torch.ones(2)), {}),
        (ValueError, "returned nan", (network, lambda: loss() * math.nan), {}),
        (ValueError, "gradient of fc.weight is not finite", (network, lambda: (loss() * 0.0).sqrt()), {}),
        (ValueError, "called backward", (network, backward), {}),
        (ValueError, "no trainable parameter of model", (network, lambda: squared_error(Tiny([1.0, 1.0, 1.0]))), {}),
        (TypeError, "regularizer must be a Regularizer", (network, loss), {"regularizer": 1e-3}),
        (ValueError, "violate its constraint", (network, loss), {"regularizer": Cardinality(0.9)}),
        (ValueError, "epsilon must lie in", (network, loss), {"epsilon": 0.0}),
        (ValueError, "metric must be one of", (network, loss), {"metric": "manhattan"}),
        (TypeError, "metric must be a name", (network, loss), {"metric": 1.0}),
        (ValueError, "metric lacks 'fc.bias'", (network, loss), {"metric": {"fc.weight": 1.0}}),
        (ValueError, "names 'x'", (network, loss), {"metric": {"fc.weight": 1.0, "fc.bias": 1.0, "x": 1.0}}),
        (ValueError, "positive", (network, loss), {"metric": {"fc.weight": torch.zeros(1, 3), "fc.bias": 1.0}}),
        (ValueError, "shape", (network, loss), {"metric": {"fc.weight": torch.ones(3), "fc.bias": 1.0}}),
        (ValueError, "matches no layer", (network, loss), {"regularize": ["conv*"]}),
    ]
    for error, message, arguments, options in cases:
        with pytest.raises(error, match=message):
            pmp_residual(*arguments, **{"regularizer": L0(1e-3), **options})
    with pytest.raises(ValueError, match="tolerance must lie in"):
        pmp_residual(network, loss, regularizer=L0(1e-3)).satisfied(-1.0)
    assert all(p.grad is None for p in network.parameters())


class Sine(nn.Module):
    """⟨p, sin(3ux)⟩ has many maxima in the one weight u."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[weight]], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(3.0 * x @ self.weight)


@pytest.mark.parametrize("regularizer", [L0(0.0), L0(0.02), L1(0.05)])
@pytest.mark.parametrize("weight", [-1.3, 0.1, 0.4])
def test_sampling_bounds_the_true_residual_from_below(regularizer: Any, weight: float) -> None:
    network = nn.Sequential(Sine(weight), nn.Linear(1, 1)).double()
    x = torch.linspace(0.5, 1.5, 7, dtype=torch.float64)[:, None]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = pmp_residual(network, lambda: -network(x).mean(), regularizer=regularizer, epsilon=0.2)
    layer = result.layers["0"]
    assert layer.linearized
    assert result.layers["1"].sampled is None
    adjoint = float(network[1].weight) / len(x)
    grid = torch.linspace(-6.0, 6.0, 4001, dtype=torch.float64)

    def k(u: Tensor) -> Tensor:
        penalty = torch.stack([torch.as_tensor(regularizer.penalty([v.view(1, 1)])) for v in u.flatten()])
        return adjoint * torch.sin(3.0 * x * u).sum(0) - penalty - 0.2 * (u - weight) ** 2

    at_u = k(torch.tensor([weight], dtype=torch.float64))
    true = max(float((k(grid) - at_u).max()), float((k(torch.zeros(1, dtype=torch.float64)) - at_u).max()), 0.0)
    assert layer.sampled is not None
    assert 0.3 * true <= layer.sampled <= true + 1e-4
    assert f"true K: at least {layer.sampled:.3e}" in str(result)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_block_as_one_layer_is_sampled() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 4)), nn.Linear(4, 1)
    )
    x = torch.randn(8, 4)
    regularizer = Cardinality(0.5, ramp=(0.0, 0.0))
    weights = [p.data for p in network.parameters() if p.dim() == 2]
    regularizer.project_(weights, [1.0] * 3)
    state = torch.get_rng_state()
    result = pmp_residual(network, lambda: network(x).square().mean(), regularizer=regularizer, layers=["0"], samples=8)
    assert list(result.layers) == ["0", "1"]
    assert result.layers["0"].sampled is not None
    assert result.layers["0"].sampled >= 0.0
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_samples() -> None:
    with pytest.raises(ValueError, match=r"samples"):
        pmp_residual(nn.Linear(2, 1), lambda: torch.zeros(()), regularizer=L0(), samples=-1)
