"""Layers that are affine in their parameters are not run alone: a forward and one trial, and no more."""

import pytest
import torch
from torch import nn

from lightning_bsqh import L0, BSQHOptimizer, Cardinality
from tests.cases.helpers import points

CALLS = []


class Conv1D(nn.Module):
    """A linear layer with its weight the other way round."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.1)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        CALLS.append(1)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


class RootMeanSquareNorm(nn.Module):
    """Divides by the root of the mean square, and has a factor per feature."""

    def __init__(self, features):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x):
        CALLS.append(1)
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


class OwnLayerNorm(nn.LayerNorm):
    """A LayerNorm that computes its own way."""

    def forward(self, x):
        CALLS.append(1)
        return nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of an image."""

    def forward(self, x):
        CALLS.append(1)
        x = x.permute(0, 2, 3, 1)
        x = nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


NETS = {
    "conv1d": lambda: nn.Sequential(Conv1D(8, 16), nn.ReLU(), nn.Linear(16, 3)),
    "rms-norm": lambda: nn.Sequential(nn.Linear(8, 8), RootMeanSquareNorm(8), nn.Linear(8, 3)),
    "own-layer-norm": lambda: nn.Sequential(nn.Linear(8, 8), OwnLayerNorm(8), nn.Linear(8, 3)),
    "layer-norm-2d": lambda: nn.Sequential(nn.Unflatten(1, (2, 2, 2)), LayerNorm2d(2), nn.Flatten(), nn.Linear(8, 3)),
}


@pytest.mark.parametrize("regularizer", [L0(rho=0.0), Cardinality(0.5)], ids=["L0", "Cardinality"])
@pytest.mark.parametrize("what", NETS)
def test_calls(what, regularizer):
    """In a later step such a layer is called once for the forward sweep and once for every trial."""
    net, (x, y) = NETS[what](), points(32)
    optimizer = BSQHOptimizer(net, regularizer=regularizer, total_steps=200)
    for _ in range(8):
        CALLS.clear()
        optimizer.step(lambda: nn.functional.cross_entropy(net(x), y))
    assert len(CALLS) == 1 + optimizer.last_step.trials
