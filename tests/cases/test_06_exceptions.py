"""An exception in a trial leaves weights and optimizer as they were before the step."""

import copy

import pytest
from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_bsqh import L0, Backtracking, BSQHOptimizer, BSQHStrategy
from tests.cases.helpers import Net, alike, copies, loader, points, trainer

MODES = {
    "mini": {},
    "full": {"batch_mode": "full", "reuse": False},
    "gauss-seidel": {"sweep": "gauss-seidel"},
    "backtracking": {
        "regularizer": L0(rho=1e-4),
        "augmentation": Backtracking(epsilon=1e-3),
        "metric": "euclidean",
    },
}


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("mini", KeyboardInterrupt),
        ("mini", MemoryError),
        ("full", RuntimeError),
        ("gauss-seidel", KeyboardInterrupt),
        ("backtracking", OSError),
    ],
)
def test_optimizer_alone(mode, error):
    """Raised in the second sweep of the fifth step: weights and state_dict are bit-identical to those before."""
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = BSQHOptimizer(net, total_steps=20, **MODES[mode])
    x, y = points(32)
    sweeps = []

    def closure():
        sweeps.append(len(steps))
        if len(steps) == 5 and sweeps.count(5) == 2:
            raise error("raised by the loss")
        return nn.functional.cross_entropy(net(x), y)

    steps = []
    for _ in range(4):
        steps.append(0)
        optimizer.step(closure)
    weights, state = copies(net.parameters()), copy.deepcopy(optimizer.state_dict())
    steps.append(0)
    with pytest.raises(error):
        optimizer.step(closure)
    assert alike(weights, copies(net.parameters()))
    assert alike(state, optimizer.state_dict())


@pytest.mark.parametrize(
    ("mode", "error"), [("mini", RuntimeError), ("mini", KeyboardInterrupt), ("full", KeyboardInterrupt)]
)
def test_lightning(mode, error):
    """The same under a Trainer."""

    class Before(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            sweeps.clear()
            self.weights = copies(module.parameters())
            self.state = copy.deepcopy(trainer.optimizers[0].state_dict())

    class Raising(Net):
        def training_step(self, batch, batch_idx):
            sweeps.append(batch_idx)
            if len(sweeps) == 2 and self.trainer.global_step >= 4:
                raise error("raised by training_step")
            return self.loss(batch)

    sweeps, before, module = [], Before(), Raising()
    made = trainer(BSQHStrategy(**MODES[mode]), max_epochs=12, callbacks=[before])
    with pytest.raises((error, SystemExit)):
        made.fit(module, loader(batch=96) if mode == "full" else loader())
    assert alike(before.weights, copies(module.parameters()))
    assert alike(before.state, made.optimizers[0].state_dict())
