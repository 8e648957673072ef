"""The callbacks: each training for itself, each reading once, whatever the network is made of."""

import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn

from lightning_bsqh import L0, BSQHStrategy
from lightning_bsqh.callbacks import (
    AugmentationMonitor,
    BSQHMonitor,
    MagnitudePruning,
    SparseCheckpoint,
    SparsityMonitor,
)
from tests.cases.helpers import Net, Notes, fit, loader, rejecting


def last(notes, key):
    return [metrics[key] for _, metrics in notes.rows if key in metrics][-1]


def test_second_fit_has_its_own_share():
    """What BSQHMonitor logs of a second training is of that one."""
    monitor = BSQHMonitor(every_n_steps=1)
    fit(Net(), rejecting(4), max_epochs=2, callbacks=[monitor])
    notes, alone = Notes(), Notes()
    for callback, logger in ((monitor, notes), (BSQHMonitor(every_n_steps=1), alone)):
        torch.manual_seed(2)
        fit(Net(), BSQHStrategy(L0(rho=0.0)), max_epochs=1, callbacks=[callback], logger=logger)
    assert last(notes, "bsqh/rejected_share") == last(alone, "bsqh/rejected_share")


def test_second_fit_counts_anew():
    """An AugmentationMonitor used in a second training counts the trials of that one."""
    monitor = AugmentationMonitor()
    fit(Net(), rejecting(3), loader(), max_epochs=1, callbacks=[monitor])
    assert (monitor.accepted_trials, monitor.rejected_trials) == (0, 18)
    other = AugmentationMonitor()
    for each in (monitor, other):
        torch.manual_seed(1)
        fit(Net(), BSQHStrategy(L0(rho=0.0)), loader(), max_epochs=1, callbacks=[each])
    assert (monitor.accepted_trials, monitor.rejected_trials) == (other.accepted_trials, other.rejected_trials)


@pytest.mark.parametrize(("batches", "every", "right"), [(3, 2, [1, 3, 5, 7]), (2, 4, [3, 7, 11])], ids=["3", "2"])
def test_accumulation_is_one_reading(batches, every, right):
    """Beside an optimizer that accumulates batches, every due step is read once."""
    notes = Notes()
    fit(
        Net(),
        "auto",
        max_epochs=4,
        logger=notes,
        accumulate_grad_batches=batches,
        callbacks=[SparsityMonitor(every_n_steps=every)],
    )
    steps = [step for step, metrics in notes.rows if "sparsity/total" in metrics]
    assert steps == right


@pytest.mark.parametrize("key", ["hamiltonian/total", "sparsity/total"])
def test_layer_named_total(key):
    """What is logged of the whole network does not depend on what its layers are called."""

    class Named(Net):
        def __init__(self, name):
            super().__init__()
            self.add_module(name, nn.Linear(3, 3))
            self.name = name

        def forward(self, x):
            return getattr(self, self.name)(self.net(x))

    values = []
    for name in ("total", "other"):
        torch.manual_seed(2)
        notes = Notes()
        fit(Named(name), max_epochs=2, logger=notes, callbacks=[BSQHMonitor(every_n_steps=1)])
        values.append([metrics[key] for _, metrics in notes.rows if key in metrics])
    assert values[0] == pytest.approx(values[1])


@pytest.mark.parametrize("strategy", ["auto", BSQHStrategy()], ids=["adam", "bsqh"])
def test_layer_without_weights(strategy):
    """Linear(0, 3) among the layers does not end the training."""

    class Empty(Net):
        def __init__(self):
            super().__init__()
            self.extra = nn.Linear(0, 3)

        def forward(self, x):
            return self.net(x) + self.extra(x[:, :0])

    notes = Notes()
    try:
        fit(Empty(), strategy, max_epochs=1, logger=notes, callbacks=[SparsityMonitor(every_n_steps=1)])
    except ZeroDivisionError as error:
        pytest.fail(f"the monitor: {error}")
    assert any("sparsity/total" in metrics for _, metrics in notes.rows)


def test_save_last_is_sparse_enough(tmp_path):
    """SparseCheckpoint(save_last=True) saves no network that is not sparse enough."""
    callback = SparseCheckpoint(sparsity=0.99, dirpath=tmp_path / "kept", save_last=True)
    fit(Net(), BSQHStrategy(L0(rho=0.0)), max_epochs=2, enable_checkpointing=True, callbacks=[callback])
    assert not list(tmp_path.glob("kept/*.ckpt"))


def test_pruning_reaches_unfrozen_layers():
    """A layer that is unfrozen during the training is pruned with the others."""

    class Later(BaseFinetuning):
        def freeze_before_training(self, module):
            self.freeze(module.net[0])

        def finetune_function(self, module, epoch, optimizer):
            if epoch == 2:
                self.unfreeze_and_add_param_group(module.net[0], optimizer)

    class Part(Net):
        def configure_optimizers(self):
            return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], 1e-2)

    module = Part()
    fit(module, "auto", max_epochs=8, callbacks=[MagnitudePruning(0.9), Later()])
    weights = torch.cat([module.net[i].weight.flatten() for i in (0, 2)])
    assert float((weights == 0).float().mean()) == pytest.approx(0.9, abs=0.01)


def test_pruning_beside_two_optimizers():
    """With two optimizers, which count every batch twice, the pruning's ramp ends with the training."""
    zeros = []

    class Two(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(self.loss(batch))
                optimizer.step()

        def on_train_batch_end(self, *args):
            both = torch.cat([self.net[i].weight.flatten() for i in (0, 2)])
            zeros.append(float((both == 0).float().mean()))

        def configure_optimizers(self):
            return [torch.optim.SGD(self.net[i].parameters(), 0.1) for i in (0, 2)]

    fit(Two(), "auto", max_epochs=4, callbacks=[MagnitudePruning(0.9, ramp=(0.0, 1.0), interval=1)])
    assert zeros[13] < 0.87
    assert abs(zeros[-1] - 0.9) < 0.01
