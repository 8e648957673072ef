"""A residual network whose layers are Euler steps of an ordinary differential equation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh._validation import integer, number


class EulerStep(nn.Module):
    """x ↦ x + δ tanh(Wx + b), a layer that is not affine in its parameters.

    Args:
        width: Number of nodes.
        delta: Step size δ > 0.
    """

    def __init__(self, width: int, delta: float) -> None:
        super().__init__()
        self.delta = number("delta", delta, low=0.0, open_low=True)
        self.weight = nn.Parameter(torch.empty(width, width))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.weight, std=1.0 / math.sqrt(width))

    @override
    def forward(self, x: Tensor) -> Tensor:
        """States ``[N, width]`` one step later, the same shape."""
        return x + self.delta * torch.tanh(nn.functional.linear(x, self.weight, self.bias))


class ResidualEuler(nn.Module):
    """Residual network for the approximation of a function of one variable (Hofmann & Borzì 2022).

    Every node starts with the scalar input; the output is the sum over the nodes.

    Args:
        width: Number of nodes.
        depth: Number of Euler steps.
        delta: Step size δ > 0.
    """

    def __init__(self, width: int = 5, depth: int = 19, delta: float = 0.25) -> None:
        super().__init__()
        self.width = integer("width", width, low=1)
        self.steps = nn.ModuleList(EulerStep(width, delta) for _ in range(integer("depth", depth, low=1)))

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Values ``[N]`` at the points ``x`` of shape ``[N]``."""
        state = x[:, None].expand(-1, self.width)
        for step in self.steps:
            state = step(state)
        return state.sum(1)
