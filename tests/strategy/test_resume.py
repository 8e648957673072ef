"""A run that is stopped and resumed from its checkpoint ends bit-identical to the uninterrupted one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from typing_extensions import override

from lightning_bsqh import L0, Backtracking, BSQHStrategy, Cardinality, Curvature, GroupL0
from tests.strategy.small_modules import AlwaysTooLarge, SmallModule, assert_same, weights_of

EPOCHS = 4
BATCHES = 3


class Measured(SmallModule):
    """Dropout and BatchNorm, and a metric that is saved with the module."""

    def __init__(self) -> None:
        super().__init__()
        self.error = torchmetrics.MeanSquaredError()
        self.error.persistent(True)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        prediction = self.net(x + 0.01 * random.random())
        self.error.update(prediction, y)
        return nn.functional.mse_loss(prediction, y)

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))


class Stop(L.Callback):
    """Saves and stops after so many epochs or batches; a smaller max_epochs would be another schedule."""

    def __init__(self, path: Path, epoch: int = -1, step: int = -1, raising: bool = False) -> None:
        self.path, self.epoch, self.step, self.raising = path, epoch, step, raising

    def _stop(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        if self.raising:
            raise InterruptedError
        trainer.should_stop = True

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            self._stop(trainer)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch + 1 == self.epoch:
            self._stop(trainer)


STRATEGIES = {
    "default": BSQHStrategy,
    "euclidean": lambda: BSQHStrategy(L0(rho=1e-3), metric="euclidean"),
    "rejections": lambda: BSQHStrategy(
        Cardinality(sparsity=0.5), augmentation=Backtracking(epsilon=0.01, sigma=10.0, zeta=0.01), max_trials=3
    ),
    "curvature": lambda: BSQHStrategy(L0(rho=1e-4), augmentation=Curvature(epsilon=0.1)),
    "by name": lambda: BSQHStrategy({"net.0": Cardinality(sparsity=0.5), "net.4": GroupL0(rho=1e-4)}),
}


def everything(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """All that must agree at the end of two runs."""
    optimizer = trainer.optimizers[0]
    return {
        "weights": weights_of(module),
        "optimizer": optimizer.state_dict(),
        "epsilon": optimizer.augmentation.epsilon,  # type: ignore[attr-defined]
        "skipped": optimizer.skipped,  # type: ignore[attr-defined]
        "last_step": vars(optimizer.last_step),  # type: ignore[attr-defined]
        "iterations": optimizer.iterations,  # type: ignore[attr-defined]
        "total_steps": optimizer.total_steps,  # type: ignore[attr-defined]
        "global_step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "metric": {name: value for name, value in module.state_dict().items() if name.startswith("error")},
        "random": torch.get_rng_state(),
        "python": random.getstate(),
    }


def seed(number: int = 5) -> None:
    torch.manual_seed(number)
    random.seed(number)


@pytest.mark.parametrize("raising", [False, True], ids=["stopped", "crashed"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_after_an_epoch(make_trainer: Any, make_loader: Any, tmp_path: Path, name: str, raising: bool) -> None:
    make = STRATEGIES[name]
    options = {"max_epochs": EPOCHS, "num_sanity_val_steps": 0}
    seed()
    module = Measured()
    trainer = make_trainer(make(), **options)
    trainer.fit(module, make_loader(shuffle=True), make_loader())
    whole = everything(trainer, module)
    assert whole["global_step"] == EPOCHS * BATCHES

    seed()
    stopped = make_trainer(make(), callbacks=[Stop(tmp_path / "a.ckpt", epoch=2, raising=raising)], **options)
    if raising:
        with pytest.raises(InterruptedError):
            stopped.fit(Measured(), make_loader(shuffle=True), make_loader())
    else:
        stopped.fit(Measured(), make_loader(shuffle=True), make_loader())
    assert stopped.global_step == 2 * BATCHES

    seed(99)
    module = Measured()
    trainer = make_trainer(make(), **options)
    trainer.fit(module, make_loader(shuffle=True), make_loader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert_same(everything(trainer, module), whole)


class Rows(Dataset):  # type: ignore[type-arg]
    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(40, 4, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    @override
    def __getitem__(self, index: int) -> Any:
        return self.x[index], self.x[index].sum(dim=0, keepdim=True)


class StatefulLoader:
    """Batches in a fixed or each epoch in a new order, with its place in its state_dict.

    An ordinary DataLoader begins an interrupted epoch at its first batch again, with any strategy.
    """

    def __init__(self, shuffle: bool = True, batch_size: int = 8) -> None:
        self.data, self.batch_size, self.shuffle = Rows(), batch_size, shuffle
        self.generator = torch.Generator().manual_seed(2)
        self.order: list[int] = []
        self.position = 0

    def __len__(self) -> int:
        return len(self.data) // self.batch_size

    def __iter__(self) -> Any:
        # As an ordinary DataLoader does, so that starting again in the middle of an epoch draws once more.
        torch.rand(())
        if self.position == 0:
            indices = torch.randperm(len(self.data), generator=self.generator)
            self.order = (indices if self.shuffle else indices.sort().values).tolist()
        while self.position < len(self):
            start = self.position * self.batch_size
            self.position += 1
            rows = [self.data[i] for i in self.order[start : start + self.batch_size]]
            if self.position == len(self):
                # The epoch's last batch: whoever asks for the state now is at the start of the next one.
                self.position = 0
                yield torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])
                return
            yield torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "order": list(self.order), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position, self.order = state["position"], list(state["order"])
        self.generator.set_state(state["generator"])


@pytest.mark.parametrize("step", [2, 6, 7])
@pytest.mark.parametrize("shuffle", [False, True], ids=["fixed order", "shuffled"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_within_an_epoch(make_trainer: Any, tmp_path: Path, name: str, shuffle: bool, step: int) -> None:
    make = STRATEGIES[name]
    options = {"max_epochs": 3}
    seed()
    module = Measured()
    trainer = make_trainer(make(), **options)
    trainer.fit(module, StatefulLoader(shuffle))
    whole = everything(trainer, module)
    assert whole["global_step"] == 15

    seed()
    stopped = make_trainer(make(), callbacks=[Stop(tmp_path / "a.ckpt", step=step, raising=True)], **options)
    with pytest.raises(InterruptedError):
        stopped.fit(Measured(), StatefulLoader(shuffle))

    seed(99)
    module = Measured()
    trainer = make_trainer(make(), **options)
    trainer.fit(module, StatefulLoader(shuffle), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert_same(everything(trainer, module), whole)


def test_max_steps_with_the_length_told(make_trainer: Any, tmp_path: Path) -> None:
    """Stopped by max_steps itself: total_steps keeps the schedule that of the whole run."""

    def make() -> BSQHStrategy:
        return BSQHStrategy(Cardinality(sparsity=0.8), total_steps=9)

    seed()
    module = Measured()
    trainer = make_trainer(make(), max_steps=9)
    trainer.fit(module, StatefulLoader())
    whole = everything(trainer, module)

    seed()
    first = make_trainer(make(), max_steps=4)
    first.fit(Measured(), StatefulLoader())
    first.save_checkpoint(tmp_path / "a.ckpt")

    module = Measured()
    trainer = make_trainer(make(), max_steps=9)
    trainer.fit(module, StatefulLoader(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    resumed = everything(trainer, module)
    # Lightning counts the epoch that max_steps cut short as one.
    del resumed["epoch"], whole["epoch"]
    assert_same(resumed, whole)


@pytest.mark.parametrize("every", [2, 5], ids=["within an epoch", "at its end"])
@pytest.mark.parametrize("validate", [False, True])
def test_from_a_model_checkpoint(
    make_trainer: Any, make_loader: Any, tmp_path: Path, every: int, validate: bool
) -> None:
    """The checkpoints that users have: saved on the way, resumed after the run was lost."""
    callback = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=every, save_top_k=-1)
    options = {"max_epochs": EPOCHS, "num_sanity_val_steps": 0}

    def data() -> tuple[Any, ...]:
        train = StatefulLoader() if every == 2 else make_loader(samples=40, shuffle=True)
        return (train, make_loader()) if validate else (train,)

    seed()
    module = Measured()
    trainer = make_trainer(BSQHStrategy(), callbacks=[callback], enable_checkpointing=True, **options)
    trainer.fit(module, *data())
    whole = everything(trainer, module)

    for step in range(every, EPOCHS * 5, every):
        seed(99)
        module = Measured()
        trainer = make_trainer(BSQHStrategy(), **options)
        trainer.fit(module, *data(), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
        assert_same(everything(trainer, module), whole)


def test_a_checkpoint_after_validation(make_trainer: Any, make_loader: Any, tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path, filename="{epoch}", monitor="val_loss", save_top_k=-1)
    options = {"max_epochs": EPOCHS, "num_sanity_val_steps": 0}
    seed()
    module = Measured()
    trainer = make_trainer(BSQHStrategy(), callbacks=[callback], enable_checkpointing=True, **options)
    trainer.fit(module, make_loader(shuffle=True), make_loader())
    whole = everything(trainer, module)

    seed(99)
    module = Measured()
    trainer = make_trainer(BSQHStrategy(), **options)
    trainer.fit(module, make_loader(shuffle=True), make_loader(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert_same(everything(trainer, module), whole)


def test_skipped_batches_are_remembered(make_trainer: Any, make_loader: Any, tmp_path: Path) -> None:
    class Spoilt(SmallModule):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.loss(batch) * (float("nan") if batch_idx == 1 else 1.0)

    stopped = make_trainer(BSQHStrategy(), max_epochs=3, callbacks=[Stop(tmp_path / "a.ckpt", epoch=2)])
    stopped.fit(Spoilt(), make_loader())
    trainer = make_trainer(BSQHStrategy(), max_epochs=3)
    trainer.fit(Spoilt(), make_loader(), ckpt_path=tmp_path / "a.ckpt")
    assert trainer.optimizers[0].skipped == 3


def test_a_resumed_run_does_not_call_a_bad_first_batch_the_first(
    make_trainer: Any, make_loader: Any, tmp_path: Path
) -> None:
    class Spoilt(SmallModule):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.loss(batch) * (float("nan") if self.current_epoch == 1 and batch_idx == 0 else 1.0)

    stopped = make_trainer(BSQHStrategy(), max_epochs=2, callbacks=[Stop(tmp_path / "a.ckpt", epoch=1)])
    stopped.fit(Spoilt(), make_loader())
    trainer = make_trainer(BSQHStrategy(), max_epochs=2)
    trainer.fit(Spoilt(), make_loader(), ckpt_path=tmp_path / "a.ckpt")
    assert trainer.optimizers[0].skipped == 1


def test_the_checkpoint_holds_plain_types_only(make_trainer: Any, make_loader: Any, tmp_path: Path) -> None:
    trainer = make_trainer(BSQHStrategy())
    trainer.fit(Measured(), make_loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    (state,) = checkpoint["optimizer_states"]
    assert state["bsqh"]["step"] == BATCHES
    assert state["random"]["cpu"].dtype == torch.uint8
    assert "mean_square" in state["state"][0]


def test_a_checkpoint_of_adam_is_refused(make_trainer: Any, make_loader: Any, tmp_path: Path) -> None:
    class Adam(SmallModule):
        @override
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    trainer = make_trainer()
    trainer.fit(Adam(), make_loader())
    trainer.save_checkpoint(tmp_path / "adam.ckpt")
    with pytest.raises(ValueError, match=r"not that of a BSQHOptimizer.*weights only"):
        make_trainer(BSQHStrategy(), max_epochs=2).fit(SmallModule(), make_loader(), ckpt_path=tmp_path / "adam.ckpt")


def test_weights_only_checkpoint_validates_and_tests(make_trainer: Any, make_loader: Any, tmp_path: Path) -> None:
    trainer = make_trainer(BSQHStrategy())
    trainer.fit(Measured(), make_loader())
    trainer.save_checkpoint(tmp_path / "w.ckpt", weights_only=True)
    fresh = Measured()
    make_trainer(BSQHStrategy()).validate(fresh, make_loader(), ckpt_path=tmp_path / "w.ckpt", verbose=False)
    assert_same(weights_of(fresh), weights_of(trainer.lightning_module))


def test_resuming_after_rejections_only(make_trainer: Any, make_loader: Any, tmp_path: Path) -> None:
    """A rule of the user's own, without state beyond epsilon, resumes too."""

    def make() -> BSQHStrategy:
        return BSQHStrategy(L0(rho=0.0), augmentation=AlwaysTooLarge(), max_trials=2)

    seed()
    module = Measured()
    trainer = make_trainer(make(), max_epochs=2, callbacks=[Stop(tmp_path / "a.ckpt", step=2)])
    trainer.fit(module, make_loader())
    resumed = Measured()
    trainer = make_trainer(make(), max_epochs=2)
    trainer.fit(resumed, make_loader(), ckpt_path=tmp_path / "a.ckpt")
    parameters = dict(module.named_parameters())
    for name, parameter in resumed.named_parameters():
        assert_same(parameter.detach(), parameters[name].detach())
    assert trainer.global_step == 2 * BATCHES


class BrokenOff(Measured):
    """Ctrl-C in the middle of a batch, after its forward and, if asked, in a trial."""

    at_step: int | None = None
    in_trial = False

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.trainer.global_step == self.at_step and torch.is_grad_enabled() != self.in_trial:
            raise KeyboardInterrupt
        return loss


@pytest.mark.parametrize("in_trial", [False, True], ids=["forward sweep", "trial"])
@pytest.mark.parametrize("batch_mode", ["mini", "full"])
def test_a_batch_that_was_broken_off_is_done_again(
    make_trainer: Any, tmp_path: Path, batch_mode: str, in_trial: bool
) -> None:
    """With an epoch of one batch there is no data loader whose place would be lost."""
    x, y = torch.randn(16, 4), torch.randn(16, 1)

    def loader() -> Any:
        return DataLoader(TensorDataset(x, y), 16)

    def make(**options: Any) -> Any:
        return make_trainer(BSQHStrategy(Cardinality(0.5), batch_mode=batch_mode), max_epochs=8, **options)

    seed()
    module = Measured()
    trainer = make()
    trainer.fit(module, loader())
    whole = everything(trainer, module)

    seed()
    module = BrokenOff()
    module.at_step, module.in_trial = 4, in_trial
    trainer = make(callbacks=[OnExceptionCheckpoint(tmp_path)], enable_checkpointing=True)
    with pytest.raises(SystemExit):
        trainer.fit(module, loader())
    assert trainer.global_step == 4

    seed(99)
    module = Measured()
    trainer = make()
    trainer.fit(module, loader(), ckpt_path=tmp_path / "on_exception.ckpt", weights_only=True)
    assert_same(everything(trainer, module), whole)
