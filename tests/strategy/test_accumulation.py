"""accumulate_grad_batches: one iteration over a window is that over one large batch; Lightning counts as always."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_bsqh import L0, Backtracking, BSQHStrategy
from tests.strategy.small_modules import Record, SmallModule, accepting_late, assert_same, rejecting, weights_of
from tests.strategy.test_drop_in import said
from tests.strategy.test_resume import StatefulLoader


class Smooth(L.LightningModule):
    """Float64 without anything that differs between a batch and its parts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)


class Counted(Smooth):
    """Keeps in which order it was called; trials call something else."""

    def __init__(self) -> None:
        super().__init__()
        self.events = Record()

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.events.add(batch_idx)
        return super().training_step(batch, batch_idx)

    def trial_loss(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx)

    @override
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.events.add("optimizer")

    @override
    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.events.add("zero_grad")


def loader(size: int, samples: int = 48) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 4, generator=generator, dtype=torch.float64)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=size)


def strategy(**options: Any) -> BSQHStrategy:
    rule = Backtracking(epsilon=0.5, sigma=4.0, zeta=0.5, schedule=False)
    return BSQHStrategy(L0(rho=1e-4), augmentation=rule, metric="euclidean", **options)


class Reports(L.Callback):
    def __init__(self) -> None:
        self.found: list[Any] = []

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.found.append((trainer.global_step, trainer.optimizers[0].last_step))


@pytest.mark.parametrize(("size", "window"), [(4, 3), (8, 2), (5, 4), (48, 1)])
def test_same_as_one_large_batch(make_trainer: Any, size: int, window: int) -> None:
    def run(size: int, window: int) -> tuple[list[Tensor], list[Any]]:
        module, reports = Smooth(), Reports()
        trainer = make_trainer(strategy(), max_epochs=4, accumulate_grad_batches=window, callbacks=[reports])
        trainer.fit(module, loader(size))
        steps = {step: report for step, report in reports.found if report is not None}
        return [p.detach().clone() for p in module.parameters()], list(steps.values())

    expected, large = run(size * window, 1)
    found, small = run(size, window)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-10)
    assert len(small) == len(large)
    for a, b in zip(small, large, strict=True):
        assert (a.trials, a.accepted) == (b.trials, b.accepted)
        assert a.loss == pytest.approx(b.loss, abs=1e-12)
    assert any(report.trials > 1 for report in large)


@pytest.mark.parametrize("window", [2, 3, 4])
def test_lightning_counts_and_calls_as_always(make_trainer: Any, window: int) -> None:
    class Ordinary(Counted):
        @override
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    found = []
    for module, chosen in ((Ordinary(), "auto"), (Counted(), strategy(max_trials=1))):
        counts = Reports()
        counts.on_train_batch_end = lambda trainer, *args, c=counts: c.found.append(trainer.global_step)
        trainer = make_trainer(chosen, max_epochs=2, accumulate_grad_batches=window, callbacks=[counts])
        trainer.fit(module, loader(5))
        found.append((counts.found, trainer.global_step, module.events.items))
    assert found[0] == found[1]


def test_trials_see_every_batch_once_and_leave_no_trace(make_trainer: Any, make_loader: Any) -> None:
    class Seen(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.seen = Record()

        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen.add((batch_idx, float(batch[0].sum())))
            loss = self.loss(batch)
            self.log("loss", loss)
            return loss

    module = Seen()
    make_trainer(rejecting(max_trials=2), accumulate_grad_batches=2).fit(module, make_loader(samples=32))
    numbers = [index for index, _ in module.seen.items]
    assert numbers == [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]
    assert len({value for _, value in module.seen.items}) == 4
    assert int(module.net[1].num_batches_tracked) == 4


def test_skipped_batches_count_for_nothing(make_trainer: Any) -> None:
    class Skips(Smooth):
        def __init__(self, skipped: set[int]) -> None:
            super().__init__()
            self.skipped = skipped

        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx in self.skipped else super().training_step(batch, batch_idx)

    x, y = loader(48).dataset.tensors
    for skipped, kept in (({1}, [0, 2]), ({2}, [0, 1]), ({0}, [1, 2])):
        module, reference = Skips(skipped), Smooth()
        make_trainer(strategy(), max_steps=1, accumulate_grad_batches=3).fit(module, loader(16))
        rows = torch.cat([torch.arange(16 * k, 16 * k + 16) for k in kept])
        data = DataLoader(TensorDataset(x[rows], y[rows]), batch_size=32)
        make_trainer(strategy(), max_steps=1).fit(reference, data)
        torch.testing.assert_close(list(module.parameters()), list(reference.parameters()), rtol=0.0, atol=1e-12)
    module = Skips({0, 1, 2})
    before = weights_of(module)
    trainer = make_trainer(strategy(), accumulate_grad_batches=3)
    trainer.fit(module, loader(16))
    assert_same(weights_of(module), before)
    assert trainer.global_step == 1


def test_gradients_that_hooks_see_are_those_of_the_window(make_trainer: Any) -> None:
    class Looks(Smooth):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        @override
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.seen.append(self.net[0].weight.grad.clone())

    large, small = Looks(), Looks()
    assert said(lambda: make_trainer(strategy(), max_steps=2).fit(large, loader(24))) == []
    assert said(lambda: make_trainer(strategy(), max_steps=2, accumulate_grad_batches=4).fit(small, loader(6))) == []
    torch.testing.assert_close(small.seen, large.seen, rtol=0.0, atol=1e-12)


def test_a_hook_that_changes_the_gradients_of_a_window(make_trainer: Any) -> None:
    class Halves(Smooth):
        @override
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            for parameter in self.parameters():
                parameter.grad = 0.5 * parameter.grad

    options = {"max_steps": 3}
    large, small = Halves(), Halves()
    (first,) = said(lambda: make_trainer(strategy(), **options).fit(large, loader(24)))
    (second,) = said(lambda: make_trainer(strategy(), accumulate_grad_batches=4, **options).fit(small, loader(6)))
    assert first == second
    assert "A hook has changed the gradients" in first
    torch.testing.assert_close(list(small.parameters()), list(large.parameters()), rtol=0.0, atol=1e-12)


def test_scheduler(make_trainer: Any) -> None:
    reports = Reports()
    module, scheduler = Smooth(), GradientAccumulationScheduler({0: 1, 1: 4, 3: 2})
    trainer = make_trainer(strategy(), max_epochs=4, callbacks=[scheduler, reports])
    trainer.fit(module, loader(8))
    # 6 batches an epoch: 6, 2, 2 and 3 steps.
    assert trainer.global_step == trainer.optimizers[0].iterations == trainer.optimizers[0].total_steps == 13
    later = [6, 6, 6, 7, 7, 8, 8, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13]
    assert [step for step, _ in reports.found][6:] == later


def test_a_callback_that_sets_the_number_itself(make_trainer: Any) -> None:
    class Sets(L.Callback):
        @override
        def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
            trainer.accumulate_grad_batches = 3

    found, expected = Smooth(), Smooth()
    make_trainer(strategy(), max_epochs=2, callbacks=[Sets()]).fit(found, loader(8))
    make_trainer(strategy(), max_epochs=2, accumulate_grad_batches=3).fit(expected, loader(8))
    assert_same(weights_of(found), weights_of(expected))


class SaveAt(L.Callback):
    """Saves after so many batches, and stops there."""

    def __init__(self, path: Path, batch: int) -> None:
        self.path, self.batch, self.count = path, batch, 0

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.count += 1
        if self.count == self.batch:
            trainer.save_checkpoint(self.path)
            raise InterruptedError


@pytest.mark.parametrize("batch", [2, 5, 9, 10])
def test_resumed_between_windows_is_bit_identical(make_trainer: Any, tmp_path: Path, batch: int) -> None:
    def run(callbacks: list[Any], path: Path | None = None) -> Any:
        torch.manual_seed(0)
        module = SmallModule()
        trainer = make_trainer(
            accepting_late(metric="rms"), max_epochs=3, accumulate_grad_batches=2, callbacks=callbacks
        )
        trainer.fit(module, StatefulLoader(), ckpt_path=path)
        return weights_of(module), trainer.global_step, trainer.optimizers[0].state_dict()

    whole = run([])
    with pytest.raises(InterruptedError):
        run([SaveAt(tmp_path / "a.ckpt", batch)])
    found: list[Any] = []
    assert not said(lambda: found.append(run([], tmp_path / "a.ckpt")))
    assert_same(found, [whole])


def test_resumed_within_a_window_goes_on_with_what_is_left(make_trainer: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_epochs": 1, "accumulate_grad_batches": 3}
    with pytest.raises(InterruptedError):
        make_trainer(strategy(), callbacks=[SaveAt(tmp_path / "a.ckpt", 4)], **options).fit(Smooth(), loader(8))
    trainer = make_trainer(strategy(), **options)
    with pytest.warns(UserWarning, match="a window began with its batch 1 of 3"):
        trainer.fit(Smooth(), loader(8), ckpt_path=tmp_path / "a.ckpt")
    assert trainer.global_step == trainer.optimizers[0].iterations == 2


def test_checkpoints_come_by_steps(make_trainer: Any, tmp_path: Path) -> None:
    saved = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(strategy(), accumulate_grad_batches=3, callbacks=[saved], enable_checkpointing=True)
    trainer.fit(Smooth(), loader(8))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=1.ckpt", "step=2.ckpt"]


def test_layers_that_are_not_affine(make_trainer: Any) -> None:
    class Recurrent(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.cell, self.out = nn.LSTM(1, 5, batch_first=True).double(), nn.Linear(5, 1).double()

        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            return nn.functional.mse_loss(self.out(self.cell(x[..., None])[0][:, -1]), y)

    large, small = Recurrent(), Recurrent()
    make_trainer(strategy(layers=["cell"]), max_epochs=3).fit(large, loader(24))
    make_trainer(strategy(layers=["cell"]), max_epochs=3, accumulate_grad_batches=3).fit(small, loader(8))
    torch.testing.assert_close(list(small.parameters()), list(large.parameters()), rtol=0.0, atol=1e-10)


def test_an_optimizer_step_that_calls_the_closure_itself(make_trainer: Any) -> None:
    class Own(Smooth):
        @override
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer_closure()
            optimizer.step()

    with pytest.raises(Exception, match=r"call optimizer\.step"):
        make_trainer(strategy(), accumulate_grad_batches=2).fit(Own(), loader(8))


def test_with_a_clipping_value_and_a_schedule(make_trainer: Any) -> None:
    class Project(Smooth):
        @override
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)]

    found, expected = Project(), Smooth()
    trainer = make_trainer(strategy(), max_epochs=2, accumulate_grad_batches=4, gradient_clip_val=1.0)
    messages = said(lambda: trainer.fit(found, loader(8)))
    assert len(messages) == 2
    make_trainer(strategy(), max_epochs=2, accumulate_grad_batches=4).fit(expected, loader(8))
    assert_same(weights_of(found), weights_of(expected))
