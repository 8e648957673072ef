"""What is frozen stays as it is, and what is unfrozen later is trained, gently."""

import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn

from lightning_bsqh import L1, L2, Box, BSQHStrategy, Cardinality, ElasticNet
from tests.cases.helpers import Net, fit, loader, trainer

MODES = {"mini": {}, "full": {"batch_mode": "full"}, "gauss-seidel": {"sweep": "gauss-seidel"}}
EPOCHS = {"mini": 6, "full": 24, "gauss-seidel": 6}


class FrozenAfterAWhile(Net):
    """Its first layer is frozen after a sixth of the training."""

    def on_train_epoch_start(self):
        if self.current_epoch == self.trainer.max_epochs // 6:
            self.net[0].requires_grad_(False)
            self.kept = self.net[0].weight.detach().clone()


@pytest.mark.parametrize(
    ("mode", "regularizer"),
    [
        ("mini", Cardinality()),
        ("mini", L2(rho=0.1)),
        ("full", L2(rho=0.1)),
        ("full", Cardinality(0.8)),
        ("full", L1(rho=0.01)),
        ("mini", ElasticNet(0.01, 0.01)),
        ("gauss-seidel", L1(rho=0.01)),
        ("gauss-seidel", Cardinality()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_frozen_does_not_move(mode, regularizer):
    """A layer frozen in the middle of the training keeps its weights to the bit."""
    module = FrozenAfterAWhile()
    fit(module, BSQHStrategy(regularizer, **MODES[mode]), max_epochs=EPOCHS[mode])
    assert torch.equal(module.net[0].weight, module.kept)


def test_loaded_and_frozen_does_not_move():
    """Weights that are loaded and frozen in a hook stay, though they lie outside the Box of all others."""

    class Loaded(FrozenAfterAWhile):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                nn.init.uniform_(self.net[0].weight, -1.0, 1.0)
            super().on_train_epoch_start()

    module = Loaded()
    fit(module, BSQHStrategy(Box(-0.05, 0.05)), max_epochs=6)
    assert torch.equal(module.net[0].weight, module.kept)


def test_frozen_and_unfrozen_again():
    """A layer that is frozen in every second epoch moves in the others only."""

    class Turns(Net):
        def on_train_epoch_start(self):
            self.net[0].requires_grad_(self.current_epoch % 2 == 0)
            self.before = self.net[0].weight.detach().clone()

        def on_train_epoch_end(self):
            moved.append(not torch.equal(self.before, self.net[0].weight))

    moved = []
    fit(Turns(), BSQHStrategy(L2(rho=0.01)), max_epochs=4)
    assert moved == [True, False, True, False]


@pytest.mark.parametrize("mode", ["mini", "full"])
def test_unfrozen_later_is_trained(mode):
    """A layer that is frozen at first and unfrozen by requires_grad moves from then on."""

    class Unfrozen(Net):
        def on_train_epoch_start(self):
            self.net[0].requires_grad_(self.current_epoch >= 1)

    module = Unfrozen()
    module.net[0].requires_grad_(False)
    before = module.net[0].weight.detach().clone()
    fit(module, BSQHStrategy(**MODES[mode]), max_epochs=6)
    assert not torch.equal(module.net[0].weight, before)


class Finetuned(Net):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16))
        self.net = nn.Linear(16, 3)

    def forward(self, x):
        return self.net(torch.relu(self.backbone(x)))

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], 1e-2)


def finetuning(epoch):
    return BackboneFinetuning(epoch, lambda _: 1.0, backbone_initial_lr=1e-3, train_bn=False, verbose=False)


def test_unfrozen_after_the_ramp_is_not_emptied():
    """Of a backbone unfrozen after the ramp's end less than half is zero after the first step."""

    class Looking(Finetuned):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.current_epoch == 6 and batch_idx == 0:
                self.zeros = max(float((layer.weight == 0).float().mean()) for layer in self.backbone[::2])

    module = Looking()
    fit(module, max_epochs=10, callbacks=[finetuning(6)])
    assert module.zeros < 0.5


def test_resumed_finetuning_regularises_the_same():
    """A resumed BackboneFinetuning regularizes the weights that the uninterrupted one does."""

    def names(module, made):
        known = {id(p): name for name, p in module.named_parameters()}
        return {known[id(w)] for layer in made.optimizers[0].regularized_weights().values() for w in layer}

    first = Finetuned()
    made = fit(first, max_epochs=4, callbacks=[finetuning(2)])
    made.save_checkpoint("a.ckpt")
    second = Finetuned()
    again = trainer(max_epochs=6, callbacks=[finetuning(2)])
    again.fit(second, loader(), ckpt_path="a.ckpt")
    assert names(second, again) == names(first, made)
