"""What a skipped batch has changed beside the parameters is put back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_bsqh import L0, BSQHOptimizer, BSQHStrategy
from tests.strategy.small_modules import SmallModule

BAD = [float("nan"), float("inf")]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("parts", [None, 1, 3])
def test_closures(bad: float, parts: int | None) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    net.history = []
    mode: dict[str, Any] = {} if parts is None else {"batch_mode": "full"}
    optimizer = BSQHOptimizer(net, regularizer=L0(rho=0.0), **mode)

    def loss(batch: Tensor) -> Tensor:
        net.history.append(1)
        return net(batch).square().mean()

    def step(x: Tensor) -> None:
        if parts is None:
            optimizer.step(lambda: loss(x))
        else:
            optimizer.step(loss, batches=list(x.chunk(parts)))

    x = torch.randn(24, 4)
    step(x)
    before = [b.clone() for b in net.buffers()], list(net.history)
    worse = x.clone()
    worse[13, 2] = bad
    step(worse)
    assert optimizer.skipped == 1
    assert all(map(torch.equal, net.buffers(), before[0]))
    assert net.history == before[1]
    step(x)
    assert len(net.history) == 2 * len(before[1])


@pytest.mark.parametrize("bad", BAD)
def test_trainer(make_trainer: Any, bad: float) -> None:
    class Measured(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.errors = torchmetrics.MetricCollection([torchmetrics.MeanSquaredError()])

        @override
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.errors.update(self.net(batch[0]).detach(), batch[1])
            return self.loss(batch)

    x = torch.randn(24, 4)
    x[13, 2] = bad
    module = Measured()
    trainer = make_trainer(BSQHStrategy(L0(rho=0.0)), max_epochs=1)
    trainer.fit(module, DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 8))
    assert trainer.optimizers[0].skipped == 1
    assert all(bool(torch.isfinite(b).all()) for b in module.buffers())
    assert float(module.errors.compute()["MeanSquaredError"]) < float("inf")
