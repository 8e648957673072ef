"""The trajectory of the SQH program that accompanies Borzì's book, row by row (tests/reference/sqh_rknn_approx.npz).

A residual Euler network of 19 layers with 5 nodes approximates a function; 454 trials of 199 iterations. The program
divides the whole problem by δ, hence the factors: ε, η and ρ of this package are δ times its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_bsqh import L2, Backtracking, BSQHOptimizer
from lightning_bsqh.method.augmentation import Trial
from lightning_bsqh.zoo import ResidualEuler

DELTA = 0.25
GAMMA = 1e-4


class Recorded(Backtracking):
    """The SQH rule, keeping what it is told."""

    def __init__(self) -> None:
        super().__init__(epsilon=DELTA, sigma=1.1, zeta=0.9, schedule=False)
        self.trials: list[Trial] = []

    def observe(self, trial: Trial) -> None:
        self.trials.append(trial)
        super().observe(trial)


def test_all_rows() -> None:
    stored = np.load(Path(__file__).parent / "reference" / "sqh_rknn_approx.npz")
    x, y, history = (torch.from_numpy(stored[key]) for key in ("x", "y", "history"))
    network = ResidualEuler(width=5, depth=19, delta=DELTA).double()
    with torch.no_grad():
        for index, step in enumerate(network.steps):
            step.weight.copy_(torch.from_numpy(stored["U0"][:, :5, index]))
            step.bias.copy_(torch.from_numpy(stored["U0"][:, 5, index]))
    objectives: list[float] = []

    def closure() -> Tensor:
        loss = (network(x) - y).square().mean()
        squares = sum(float(p.detach().square().sum()) for p in network.parameters())
        objectives.append(float(loss.detach()) + DELTA * GAMMA / 2 * squares)
        return loss

    optimizer = BSQHOptimizer(
        network,
        regularizer=L2(rho=DELTA * GAMMA / 2),
        regularize=["steps.*", "steps.*.bias"],
        augmentation=Recorded(),
        metric="euclidean",
        eta=1e-4,
        max_trials=100,
        layers=lambda name, module: name.startswith("steps."),
    )
    rule = optimizer.augmentation
    assert isinstance(rule, Recorded)
    rows = []
    for iteration in range(1, int(history[-1, 0]) + 1):
        rule.trials.clear()
        objectives.clear()
        optimizer.step(closure)
        for trial, after in zip(rule.trials, objectives[1:], strict=True):
            rows.append((iteration, trial.epsilon / DELTA, trial.tau * DELTA, objectives[0], after))
    actual = torch.tensor(rows, dtype=torch.float64)
    assert len(actual) == len(history) == 454
    torch.testing.assert_close(actual, history, rtol=1e-9, atol=0)
