"""What method §2 promises, in float64 on a smooth network."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_bsqh import L0, L1, L2, Backtracking, BSQHOptimizer, Curvature
from tests.problems import cross_entropy, data, smooth_network

RULES = {"backtracking": Backtracking(epsilon=0.01, schedule=False), "curvature": Curvature(schedule=False)}


def objective(network: torch.nn.Module, regularizer: object) -> float:
    """J of the whole data, computed apart from the optimizer."""
    x, y = data()
    weights = [p.detach() for p in network.parameters() if p.dim() >= 2]
    return cross_entropy(network, x, y).item() + regularizer.penalty(weights)  # type: ignore[attr-defined]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("metric", ["euclidean", "rms"])
@pytest.mark.parametrize("regularizer", [L0(1e-4), L1(1e-3), L2(1e-3)], ids=["l0", "l1", "l2"])
def test_objective_never_rises_and_steps_are_summable(metric: str, regularizer: object, rule: str) -> None:
    network = smooth_network()
    x, y = data()
    optimizer = BSQHOptimizer(
        network, regularizer=regularizer, augmentation=RULES[rule], metric=metric, eta=1e-3, max_trials=4
    )
    start = previous = objective(network, regularizer)
    taus, accepted = 0.0, 0
    for _ in range(200):
        before = [p.detach().clone() for p in network.parameters()]
        optimizer.step(lambda: cross_entropy(network, x, y))
        report = optimizer.last_step
        now = objective(network, regularizer)
        if report.accepted:
            accepted += 1
            assert now <= previous - 1e-3 * report.tau + 1e-14
            assert math.isclose(previous - now, report.loss_decrease, rel_tol=1e-6, abs_tol=1e-13)
        else:
            assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
            assert now == previous
        taus += report.tau
        previous = now
    assert accepted > 100
    # inf J ≥ 0 here: cross-entropy and penalties are not negative.
    assert taus <= start / 1e-3
    assert taus <= (start - previous) / 1e-3 + 1e-12


def test_every_epsilon_above_the_bound_is_accepted() -> None:
    """For ½uᵀAu the Lipschitz constant is known, and every ε > Λ/2 + η has to pass."""
    torch.manual_seed(0)
    eigenvalues = torch.linspace(0.1, 8.0, 12, dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))
    matrix = basis @ torch.diag(eigenvalues) @ basis.T
    eta = 1e-2
    for epsilon in (8.0 / 2 + eta + 1e-9, 6.0, 40.0):
        u = torch.nn.Parameter(torch.randn(12, 1, dtype=torch.float64))
        rule = Backtracking(epsilon=epsilon, sigma=2.0, zeta=1.0, schedule=False)
        optimizer = BSQHOptimizer([u], regularizer=L0(1e-3), augmentation=rule, metric="euclidean", eta=eta)
        for _ in range(50):
            optimizer.step(lambda u=u: 0.5 * (u.T @ matrix @ u).squeeze())
            assert optimizer.last_step.accepted
            assert optimizer.last_step.trials == 1


def test_epsilon_stays_below_sigma_times_the_bound() -> None:
    torch.manual_seed(0)
    curvatures = torch.linspace(0.1, 8.0, 12, dtype=torch.float64)
    eta, sigma = 1e-2, 1.7
    u = torch.nn.Parameter(torch.randn(12, 1, dtype=torch.float64))
    rule = Backtracking(epsilon=1e-3, sigma=sigma, zeta=0.9, schedule=False)
    optimizer = BSQHOptimizer([u], regularizer=L0(0.0), augmentation=rule, metric="euclidean", eta=eta, max_trials=50)
    for _ in range(300):
        optimizer.step(lambda: 0.5 * (curvatures * u.squeeze() ** 2).sum())
        assert optimizer.last_step.accepted
        assert optimizer.last_step.epsilon <= sigma * (8.0 / 2 + eta)


def test_augmented_residual_goes_to_zero() -> None:
    """r = max K_ε(·; u) − K_ε(u; u) for a fixed ε, from the last candidate's gain."""
    network = smooth_network()
    x, y = data()
    optimizer = BSQHOptimizer(
        network, regularizer=L2(1e-2), augmentation=Backtracking(1.0, schedule=False), metric="euclidean"
    )
    gains = []
    for _ in range(3000):
        optimizer.step(lambda: cross_entropy(network, x, y))
        gains.append(optimizer.last_step.hamiltonian_gain)
    assert min(gains) >= -1e-14
    assert max(gains[-50:]) < 1e-3 * max(gains[:50])
