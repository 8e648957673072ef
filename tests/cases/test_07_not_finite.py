"""A batch that is skipped leaves nothing of itself behind, and a training that never moves says so."""

import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsqh import L0, BSQHOptimizer, BSQHStrategy
from tests.cases.helpers import Net, fit, loader, noted, points, rejecting


def with_value(value, row=20):
    x, y = points()
    x[row, 2] = value
    return DataLoader(TensorDataset(x, y), 16)


class Normalised(Net):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Unflatten(1, (2, 2, 2)), nn.BatchNorm2d(2), nn.Conv2d(2, 4, 2), nn.Flatten(), nn.Linear(4, 3)
        )


def test_infinite_image():
    """Nor does a batch with an infinite value those of a BatchNorm2d under a Trainer."""
    module = Normalised()
    made = fit(module, BSQHStrategy(L0(rho=0.0)), with_value(float("inf")), max_epochs=1)
    assert made.optimizers[0].skipped == 1
    assert all(bool(torch.isfinite(b).all()) for b in module.buffers())


def test_batchnorm_buffers():
    """A batch with a NaN does not change BatchNorm's statistics."""
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))
    optimizer = BSQHOptimizer(net, regularizer=L0(rho=0.0))
    x, y = points(32)
    optimizer.step(lambda: nn.functional.cross_entropy(net(x), y))
    before = [b.clone() for b in net.buffers()]
    x[3, 3] = float("nan")
    optimizer.step(lambda: nn.functional.cross_entropy(net(x), y))
    assert optimizer.skipped == 1
    assert all(map(torch.equal, before, net.buffers()))


def test_metric():
    """A batch with a NaN does not reach a metric of the module."""

    class Measured(Net):
        def __init__(self):
            super().__init__()
            self.error = torchmetrics.MeanSquaredError()

        def training_step(self, batch, batch_idx):
            out = self(batch[0])
            self.error.update(out.detach()[:, 0], batch[1].float())
            return nn.functional.cross_entropy(out, batch[1])

        def on_train_epoch_end(self):
            self.value = float(self.error.compute())

    x, y = points()
    x[20, 2] = float("nan")
    module = Measured()
    made = fit(module, BSQHStrategy(L0(rho=0.0)), DataLoader(TensorDataset(x, y), 16), max_epochs=1)
    assert made.optimizers[0].skipped == 1
    assert module.value == module.value


def test_collection_of_metrics():
    """Nor the metrics of a collection."""

    class Measured(Net):
        def __init__(self):
            super().__init__()
            self.errors = torchmetrics.MetricCollection(
                [torchmetrics.MeanAbsoluteError(), torchmetrics.MeanSquaredError()]
            )

        def training_step(self, batch, batch_idx):
            out = self(batch[0])
            self.errors.update(out.detach()[:, 1], batch[1].float())
            return nn.functional.cross_entropy(out, batch[1])

        def on_train_epoch_end(self):
            self.values = {name: float(value) for name, value in self.errors.compute().items()}

    module = Measured()
    fit(module, BSQHStrategy(L0(rho=0.0)), with_value(float("nan"), 60), max_epochs=1)
    assert all(value == value for value in module.values.values()), module.values


def test_every_batch_skipped():
    """A training none of whose batches had a finite gradient warns."""

    class Hopeless(Net):
        def training_step(self, batch, batch_idx):
            # Its value is 0, its derivative is not a number.
            return self.loss(batch) + (0.0 * self.net[0].weight.sum()).abs().sqrt()

    with noted() as warnings:
        made = fit(Hopeless(), BSQHStrategy(L0(rho=0.0)), max_epochs=1)
    assert made.optimizers[0].skipped == 6
    assert any("skip" in text or "finite" in text for text in warnings), warnings


@pytest.mark.parametrize("mode", ["mini", "full"])
def test_every_batch_rejected(mode):
    """A training none of whose trials was accepted warns."""
    strategy = rejecting() if mode == "mini" else BSQHStrategy(L0(rho=0.0), eta=1e6, batch_mode="full")
    with noted() as warnings:
        made = fit(Net(), strategy, loader(), max_epochs=2)
    assert not made.optimizers[0].last_step.accepted
    assert any("reject" in text or "accept" in text for text in warnings), warnings
