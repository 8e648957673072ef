"""Full-batch mode runs with what the graph needs of the module, and is the same with and without reuse."""

import pytest
import torch
from torch import nn

from lightning_bsqh import L0, BSQHOptimizer
from tests.cases.helpers import points


class Scaled(nn.Module):
    """Multiplies by a buffer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)
        self.register_buffer("scale", torch.full((16,), 0.5))

    def forward(self, x):
        return self.b(torch.relu(self.a(x) * self.scale))


class Positions(nn.Module):
    """A table of positions that is multiplied in, and a mask."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 3)
        self.register_buffer("table", torch.linspace(0.1, 1.0, 16), persistent=False)
        self.register_buffer("mask", torch.ones(16, 16).tril())

    def forward(self, x):
        return self.b(torch.tanh((self.a(x) * self.table) @ self.mask))


def with_frozen_batchnorm():
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    net[1].eval()
    return net


def trained(make, parts, reuse):
    torch.manual_seed(1)
    net = make()
    optimizer = BSQHOptimizer(net, regularizer=L0(rho=1e-5), batch_mode="full", reuse=reuse)
    x, y = points(32)
    batches = list(zip(x.chunk(parts), y.chunk(parts), strict=True))
    for _ in range(6):
        optimizer.step(lambda b: nn.functional.cross_entropy(net(b[0]), b[1]), batches=batches)
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    "make", [Scaled, Positions, with_frozen_batchnorm], ids=["buffer", "table-and-mask", "batchnorm-in-eval"]
)
def test_reuse(make, parts):
    """Six iterations run, and give the weights that reuse=False gives."""
    try:
        weights = trained(make, parts, reuse=True)
    except RuntimeError as error:
        pytest.fail(f"does not run: {error}")
    torch.testing.assert_close(weights, trained(make, parts, reuse=False), rtol=0, atol=1e-6)
