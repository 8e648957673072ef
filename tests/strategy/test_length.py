"""The ramp follows the length that the training really has, and never loosens."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from typing_extensions import override

from lightning_bsqh import BSQHStrategy, Cardinality
from tests.strategy.small_modules import SmallModule


class Zeros(Callback):
    """Share of zeros after each step."""

    def __init__(self) -> None:
        self.after: dict[int, float] = {}

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.after[trainer.global_step] = trainer.optimizers[0].sparsity()  # type: ignore[attr-defined]


def strategy() -> BSQHStrategy:
    return BSQHStrategy(Cardinality(0.75, ramp=(0.0, 0.5), interval=1))


def check(zeros: Zeros, steps: int) -> None:
    assert zeros.after[max(steps // 20, 1)] < 0.4
    assert zeros.after[steps] == 0.75


@pytest.mark.parametrize("batch_mode", ["mini", "full"])
def test_learning_rate_finder(make_trainer: Any, make_loader: Any, batch_mode: str) -> None:
    module, zeros = SmallModule(), Zeros()
    module.lr = 1e-3
    callbacks = [LearningRateFinder(num_training_steps=6), zeros]
    rule = Cardinality(0.75, ramp=(0.0, 0.5), interval=1)
    trainer = make_trainer(
        BSQHStrategy(rule, batch_mode=batch_mode), callbacks=callbacks, enable_checkpointing=True, max_epochs=20
    )
    trainer.fit(module, make_loader())
    assert trainer.global_step == 60
    assert trainer.optimizers[0].total_steps == (60 if batch_mode == "mini" else 20)
    check(zeros, 60)


def test_batch_size_finder(make_trainer: Any, make_loader: Any) -> None:
    class Own(SmallModule):
        batch_size = 4

        @override
        def train_dataloader(self) -> Any:
            return make_loader(batch_size=self.batch_size)

    zeros = Zeros()
    finder = BatchSizeFinder(mode="power", steps_per_trial=2, max_trials=2, init_val=4)
    trainer = make_trainer(strategy(), callbacks=[finder, zeros], enable_checkpointing=True, max_epochs=20)
    trainer.fit(Own())
    assert trainer.optimizers[0].total_steps == trainer.global_step
    check(zeros, trainer.global_step)


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_batch_start", "on_train_epoch_end"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_max_epochs_changed_by_a_hook(make_trainer: Any, make_loader: Any, hook: str, epoch: int) -> None:
    def lengthen(module: SmallModule, *args: Any) -> None:
        if module.current_epoch == epoch:
            module.trainer.fit_loop.max_epochs = 20

    kind, zeros = type("Longer", (SmallModule,), {hook: lengthen}), Zeros()
    trainer = make_trainer(strategy(), callbacks=[zeros], max_epochs=3)
    trainer.fit(kind(), make_loader())
    assert trainer.global_step == 60
    demands = [zeros.after[i] for i in range(1, 61)]
    assert all(later >= earlier for earlier, later in itertools.pairwise(demands))
    assert demands[-1] == 0.75


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("epochs", [3, 10])
def test_resumed_for_longer(make_trainer: Any, make_loader: Any, tmp_path: Path, told: bool, epochs: int) -> None:
    """The demand goes on from what it has reached, where plain shares of the new length would loosen it."""

    def make(steps: int) -> BSQHStrategy:
        options = {"total_steps": steps} if told else {}
        return BSQHStrategy(Cardinality(0.75, ramp=(0.0, 0.5), interval=1), **options)

    class Save(Callback):
        @override
        def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.current_epoch == epochs - 1:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    zeros = Zeros()
    make_trainer(make(30), callbacks=[zeros, Save()], max_epochs=10).fit(SmallModule(), make_loader())
    reached = zeros.after[3 * epochs]
    resumed = Zeros()
    trainer = make_trainer(make(120), callbacks=[resumed], max_epochs=40)
    trainer.fit(SmallModule(), make_loader(), ckpt_path=tmp_path / "a.ckpt")
    assert trainer.global_step == 120
    assert min(resumed.after.values()) >= reached > 0.3
    assert resumed.after[120] == 0.75
    # From a third of the way to a half it takes longer than it would have.
    assert epochs == 10 or resumed.after[13] < zeros.after[13]


def test_a_length_of_ones_own_stays(make_trainer: Any, make_loader: Any) -> None:
    trainer = make_trainer(BSQHStrategy(total_steps=7), max_epochs=3)
    trainer.fit(SmallModule(), make_loader())
    assert trainer.optimizers[0].total_steps == 7
