"""Box with layers that are not affine: accepted iterates lie in the box, and the layer trains."""

import pytest
import torch
from torch import nn

from lightning_bsqh import L0, Box, BSQHOptimizer, Cardinality


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(3, 4), nn.GRUCell(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.last(self.cell(torch.tanh(self.first(x))))


@pytest.mark.parametrize("sweep", ["jacobi", "gauss-seidel"])
def test_gru(sweep):
    """No accepted step leaves a regularized weight of a GRU outside [-0.3, 0.3], and the loss falls."""
    torch.manual_seed(2)
    net = Recurrent().double()
    x, y = torch.randn(32, 3, dtype=torch.double), torch.randn(32, 1, dtype=torch.double)
    optimizer = BSQHOptimizer(net, regularizer=Box(-0.3, 0.3), sweep=sweep, layers=["cell"])
    outside, losses = [], []
    for i in range(40):
        losses.append(float(optimizer.step(lambda: (net(x) - y).square().mean())))
        largest = max(float(w.abs().max()) for layer in optimizer.regularized_weights().values() for w in layer)
        if optimizer.last_step.accepted and largest > 0.3 + 1e-9:
            outside.append((i, largest))
    assert not outside
    assert optimizer.meets_constraint()
    assert losses[-1] < losses[2]


@pytest.mark.parametrize(
    ("inner", "options"),
    [(L0(rho=1e-5), {}), (Cardinality(0.5, ramp=(0.0, 0.0)), {"metric": "euclidean", "epsilon": 5.0})],
    ids=["L0", "Cardinality"],
)
def test_around_another(inner, options):
    """The same for an LSTM and a Box around another regularizer."""
    torch.manual_seed(4)
    net, whole = nn.LSTMCell(3, 4).double(), lambda path, module: True
    x, y = torch.randn(32, 3, dtype=torch.double), torch.randn(32, 4, dtype=torch.double)
    optimizer = BSQHOptimizer(net, regularizer=Box(-0.2, 0.2, inner), total_steps=60, layers=whole, **options)
    outside, losses = [], []
    for i in range(60):
        losses.append(float(optimizer.step(lambda: (net(x)[0] - y).square().mean())))
        largest = max(float(w.abs().max()) for w in (net.weight_ih, net.weight_hh))
        if optimizer.last_step.accepted and largest > 0.2 + 1e-9:
            outside.append((i, largest))
    assert not outside
    assert optimizer.meets_constraint()
    assert losses[-1] < losses[3]


def test_gru_trains():
    """The weights of a GRU that starts outside the box move, and end in it."""
    net = nn.GRUCell(4, 4)
    optimizer = BSQHOptimizer(net, regularizer=Box(-0.3, 0.3))
    before = net.weight_hh.detach().clone()
    x, y = torch.randn(32, 4), torch.randn(32)
    for _ in range(50):
        optimizer.step(lambda: (net(x).sum(1) - y).square().mean())
    assert not torch.equal(net.weight_hh, before)
    assert optimizer.meets_constraint()
