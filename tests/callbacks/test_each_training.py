"""The callbacks: each training for itself, each reading once, whatever the network is made of."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn

from lightning_bsqh import L0, Backtracking, BSQHStrategy, Cardinality
from lightning_bsqh.callbacks import (
    AugmentationMonitor,
    BSQHMonitor,
    MagnitudePruning,
    PictureMonitor,
    SparseCheckpoint,
    SparsityMonitor,
)
from lightning_bsqh.callbacks._target import is_at_target
from tests.callbacks.small import SmallModule, loader


class Notes(Logger):
    """Keeps what it is given, as pairs of step and metrics."""

    name = "notes"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        pass

    def last(self, key: str) -> float:
        return [metrics[key] for _, metrics in self.rows if key in metrics][-1]


def rejecting(trials: int) -> BSQHStrategy:
    return BSQHStrategy(L0(rho=0.0), augmentation=Backtracking(), eta=1e6, max_trials=trials)


def test_a_second_fit_counts_anew(make_trainer: Any) -> None:
    monitor, other = BSQHMonitor(every_n_steps=1), BSQHMonitor(every_n_steps=1)
    make_trainer(rejecting(3), callbacks=[monitor]).fit(SmallModule(), loader())
    assert (monitor.augmentation.accepted_trials, monitor.augmentation.rejected_trials) == (0, 12)
    noted = []
    for each in (monitor, other):
        notes = Notes()
        make_trainer(BSQHStrategy(L0(rho=0.0)), callbacks=[each], logger=notes).fit(SmallModule(), loader())
        noted.append(notes.rows)
    assert monitor.augmentation.accepted_trials == other.augmentation.accepted_trials > 0
    # The sparsity of the last step is written, too, although the first training ended with the same number.
    assert noted[0] == noted[1]


def test_a_resumed_fit_counts_on(make_trainer: Any, tmp_path: Any) -> None:
    first = make_trainer(rejecting(3), callbacks=[AugmentationMonitor()])
    first.fit(SmallModule(), loader())
    first.save_checkpoint(tmp_path / "a.ckpt")
    monitor = AugmentationMonitor()
    resumed = make_trainer(rejecting(3), callbacks=[monitor], max_epochs=2)
    resumed.fit(SmallModule(), loader(), ckpt_path=tmp_path / "a.ckpt")
    assert monitor.rejected_trials == 24
    # Afterward a training from the start is one from the start.
    make_trainer(rejecting(3), callbacks=[monitor]).fit(SmallModule(), loader())
    assert monitor.rejected_trials == 12


def test_the_best_of_a_second_training_is_its_own(make_trainer: Any) -> None:
    pictures = PictureMonitor()
    pictures._best = {"val_acc": (2.0, 0.9)}
    with pytest.warns(UserWarning, match="loggers are: none"):
        make_trainer(BSQHStrategy(), callbacks=[pictures]).fit(SmallModule(), loader())
    assert pictures.state_dict() == {"best": {}}


@pytest.mark.parametrize(
    ("batches", "every", "right"), [(2, 2, [1, 3, 5, 7]), (4, 4, [3]), (3, 1, [0, 1, 2, 3, 4, 5, 6, 7])]
)
def test_accumulation_is_one_reading(make_trainer: Any, batches: int, every: int, right: list[int]) -> None:
    notes = Notes()
    trainer = make_trainer(
        logger=notes,
        max_epochs=4,
        accumulate_grad_batches=batches,
        callbacks=[SparsityMonitor(every_n_steps=every)],
    )
    trainer.fit(SmallModule(own_optimizer=True), loader())
    assert [step for step, metrics in notes.rows if "sparsity/total" in metrics] == right


class Named(SmallModule):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, self.second)
        self._modules = {name: self.second, "first": self.first} | self._modules


@pytest.mark.parametrize("key", ["hamiltonian/total", "sparsity/total", "pmp_residual/total"])
def test_a_layer_named_total(make_trainer: Any, key: str) -> None:
    found = []
    for name in ("total", "other"):
        torch.manual_seed(0)
        notes = Notes()
        trainer = make_trainer(BSQHStrategy(), max_epochs=2, logger=notes, callbacks=[BSQHMonitor(every_n_steps=1)])
        trainer.fit(Named(name), loader())
        found.append([metrics[key] for _, metrics in notes.rows if key in metrics])
        assert any(f"{key} (layer)" in metrics for _, metrics in notes.rows) == (name == "total")
    assert found[0] == pytest.approx(found[1])


class WithEmptyLayers(SmallModule):
    def __init__(self, own_optimizer: bool) -> None:
        super().__init__(own_optimizer)
        self.no_input, self.no_output = nn.Linear(0, 3), nn.Linear(4, 0)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        assert loss is not None
        return loss + self.no_input(batch[0][:, :0]).square().mean() + self.no_output(batch[0]).sum()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("own_optimizer", [True, False])
def test_layers_without_weights(make_trainer: Any, own_optimizer: bool) -> None:
    strategy = "auto" if own_optimizer else BSQHStrategy(Cardinality(0.5))
    notes = Notes()
    callbacks = [SparsityMonitor(every_n_steps=1)] if own_optimizer else [BSQHMonitor(every_n_steps=1)]
    trainer = make_trainer(strategy, logger=notes, callbacks=callbacks)
    trainer.fit(WithEmptyLayers(own_optimizer), loader())
    assert notes.last("sparsity/total") == (0.0 if own_optimizer else 0.5)


class Raising(SmallModule):
    def on_train_epoch_end(self) -> None:
        if self.current_epoch == 1:
            raise ValueError("as planned")


@pytest.mark.parametrize("options", [{"save_last": True}, {"save_last": "link"}, {"save_on_exception": True}, {}])
@pytest.mark.parametrize("raises", [True, False])
def test_nothing_too_dense_is_saved(make_trainer: Any, tmp_path: Any, options: dict[str, Any], raises: bool) -> None:
    callback = SparseCheckpoint(sparsity=0.99, dirpath=tmp_path / "kept", **options)
    trainer = make_trainer(
        BSQHStrategy(L0(rho=0.0)), max_epochs=2, enable_checkpointing=True, callbacks=[callback], max_steps=8
    )
    if raises:
        with pytest.raises(ValueError, match="as planned"):
            trainer.fit(Raising(), loader())
    else:
        with pytest.warns(UserWarning, match=r"SparseCheckpoint has saved nothing: .* denser than sparsity=0\.99"):
            trainer.fit(SmallModule(), loader())
    assert not list(tmp_path.glob("kept/*"))


def test_the_last_one_is_saved_if_it_is_sparse_enough(make_trainer: Any, tmp_path: Any) -> None:
    callback = SparseCheckpoint(dirpath=tmp_path / "kept", save_last=True)
    strategy = BSQHStrategy(Cardinality(0.5, ramp=(0.0, 0.5), interval=1))
    make_trainer(strategy, max_epochs=2, enable_checkpointing=True, callbacks=[callback]).fit(SmallModule(), loader())
    assert (tmp_path / "kept" / "last.ckpt").is_file()


class Later(BaseFinetuning):
    def freeze_before_training(self, pl_module: L.LightningModule) -> None:
        self.freeze(pl_module.first)

    def finetune_function(self, pl_module: L.LightningModule, epoch: int, optimizer: Any) -> None:
        if epoch == 2:
            self.unfreeze_and_add_param_group(pl_module.first, optimizer)


class Part(SmallModule):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], 1e-2)


@pytest.mark.parametrize("pruning_first", [True, False])
def test_pruning_reaches_unfrozen_layers(make_trainer: Any, pruning_first: bool) -> None:
    module = Part()
    callbacks = [MagnitudePruning(0.75), Later()]
    make_trainer(max_epochs=8, callbacks=callbacks if pruning_first else callbacks[::-1]).fit(module, loader())
    assert sum(int((layer.weight == 0).sum()) for layer in (module.first, module.second)) == 42


class Alternating(SmallModule):
    """Two optimizers that both step on every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.zeros: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def on_train_batch_end(self, *args: Any) -> None:
        weights = torch.cat([self.first.weight.flatten(), self.second.weight.flatten()])
        self.zeros.append(float((weights == 0).float().mean()))

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), 0.1) for layer in (self.first, self.second)]


@pytest.mark.parametrize("options", [{"max_epochs": 5}, {"max_epochs": -1, "max_steps": 40}])
def test_pruning_beside_two_optimizers(make_trainer: Any, options: dict[str, int]) -> None:
    module = Alternating()
    make_trainer(callbacks=[MagnitudePruning(0.75, ramp=(0.0, 1.0), interval=1)], **options).fit(module, loader())
    assert len(module.zeros) == 20
    assert 0.3 < module.zeros[7] < 0.7
    assert module.zeros[-2] == 0.75


class Asked(L.Callback):
    def __init__(self) -> None:
        self.answers: list[bool] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.answers.append(is_at_target(trainer))


@pytest.mark.parametrize("by_pruning", [True, False])
def test_the_target(make_trainer: Any, by_pruning: bool) -> None:
    """What "best" counts: the epochs from the ramp's end on, with either way to zeros."""
    asked = Asked()
    callbacks = [MagnitudePruning(0.5, ramp=(0.0, 0.7), interval=1), asked] if by_pruning else [asked]
    strategy = "auto" if by_pruning else BSQHStrategy(Cardinality(0.5, ramp=(0.0, 0.7), interval=1))
    make_trainer(strategy, callbacks=callbacks, max_epochs=4).fit(SmallModule(own_optimizer=by_pruning), loader())
    assert asked.answers == [False, False, True, True]
