"""Small smooth problems in float64 for tests of the optimizer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def smooth_network(seed: int = 0) -> nn.Sequential:
    """A tanh network 6-12-8-3 with all weights of order one, float64."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def data(samples: int = 96, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs [samples, 6] and classes [samples] that a small network can learn, with noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 6, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(samples, 3, generator=generator, dtype=torch.float64)
    return x, (x[:, :3] * x[:, 3:] + noise).argmax(1)


def cross_entropy(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy, the L_B of the tests."""
    return functional.cross_entropy(network(x), y)
