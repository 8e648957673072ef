"""What works with a Trainer's own optimizers works when the strategy is the only change; what is ignored is said."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh import L0, BSQHStrategy
from tests.strategy.small_modules import SmallModule, assert_same, weights_of


class Scheduled(SmallModule):
    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), weight_decay=0.1, betas=(0.5, 0.9))
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1), "name": "mine"}]


def said(run: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(w.message) for w in caught if "BSQHStrategy" in str(w.message) or "loss has not" in str(w.message)]


def test_reading_what_other_optimizers_have(make_trainer: Any, make_loader: Any) -> None:
    class Reading(Scheduled):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            scheduler: Any = self.lr_schedulers()
            group = self.optimizers().param_groups[0]  # type: ignore[union-attr]
            assert scheduler.get_last_lr() == [group["lr"]] == [scheduler.optimizer.param_groups[0]["lr"]]
            assert self.trainer.lr_scheduler_configs[0].name == "mine"
            # Nothing decays and there is no momentum, whatever the ignored optimizer was told.
            assert (group["weight_decay"], group["betas"][0], group["amsgrad"]) == (0.0, 0.0, False)
            rates.append(scheduler.get_last_lr()[0])
            return self.loss(batch)

    rates: list[float] = []
    trainer = make_trainer(BSQHStrategy(), max_epochs=2)
    messages = said(lambda: trainer.fit(Reading(), make_loader()))
    assert len(rates) >= 6
    assert len(set(rates)) > 1
    assert len(messages) == 1


@pytest.mark.parametrize("scheduled", [True, False])
def test_one_curve_for_all_layers(make_trainer: Any, make_loader: Any, tmp_path: Path, scheduled: bool) -> None:
    logger = CSVLogger(tmp_path)
    monitor = LearningRateMonitor(log_weight_decay=True, log_momentum=True)
    trainer = make_trainer(BSQHStrategy(), logger=logger, log_every_n_steps=1, callbacks=[monitor])
    trainer.fit(Scheduled() if scheduled else SmallModule(), make_loader())
    assert len(monitor.lrs) == 1
    assert monitor.last_weight_decay_values == {f"{next(iter(monitor.lrs))}-weight_decay": 0.0}
    # Afterward the optimizer is as it was.
    assert not hasattr(trainer.optimizers[0], "optimizer")


def test_connect_without_a_trainer(make_trainer: Any, tmp_path: Path) -> None:
    trainer = make_trainer(BSQHStrategy())
    trainer.strategy.connect(SmallModule())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert (tmp_path / "a.ckpt").is_file()


@pytest.mark.parametrize(
    "value",
    [5, "adam", {"lr": 1.0}, [None], [nn.Linear(2, 2)], torch.optim.Adam, {"optimizer": 3}, ([], 7), object()],
)
def test_nonsense_from_configure_optimizers(make_trainer: Any, make_loader: Any, value: Any) -> None:
    class Odd(SmallModule):
        @override
        def configure_optimizers(self) -> Any:
            return value

    module = Odd()
    before = weights_of(module)
    with pytest.raises(
        MisconfigurationException, match=r"configure_optimizers of Odd returned .*: return an optimizer"
    ):
        make_trainer(BSQHStrategy()).fit(module, make_loader())
    assert_same(weights_of(module), before)


def test_callbacks_are_refused_before_anything_is_set_up(make_trainer: Any, make_loader: Any) -> None:
    class Data(L.LightningDataModule):
        def prepare_data(self) -> None:
            raise AssertionError("the data are prepared")

        def train_dataloader(self) -> Any:
            return make_loader()

    class Averaging(SmallModule):
        @override
        def configure_callbacks(self) -> Any:
            return [L.pytorch.callbacks.StochasticWeightAveraging(swa_lrs=0.1)]

    with pytest.raises(MisconfigurationException, match="StochasticWeightAveraging"):
        make_trainer(BSQHStrategy()).fit(Averaging(), datamodule=Data())


@pytest.mark.parametrize("value", [None, 3])
def test_a_training_step_that_is_none(make_trainer: Any, make_loader: Any, value: Any) -> None:
    class Without(SmallModule):
        training_step = value

    with pytest.raises((MisconfigurationException, TypeError), match="training_step"):
        make_trainer(BSQHStrategy()).fit(Without(), make_loader())


# ---------------------------------------------------------------------- noticed and said once


class ClipsInHook(SmallModule):
    """Clips in the hook of that name."""

    hook = "on_after_backward"

    def __init__(self) -> None:
        super().__init__()

        def clip(*args: Any, **kwargs: Any) -> None:
            nn.utils.clip_grad_norm_(self.parameters(), 1e-3)

        setattr(self, self.hook, clip)


@pytest.mark.parametrize("hook", ["on_after_backward", "on_before_optimizer_step", "configure_gradient_clipping"])
def test_clipping_in_a_hook(make_trainer: Any, make_loader: Any, hook: str) -> None:
    kind = type("Clips", (ClipsInHook,), {"hook": hook})
    (message,) = said(lambda: make_trainer(BSQHStrategy(), max_epochs=2).fit(kind(), make_loader()))
    assert "clip_grad_norm_" in message
    assert "ε already bounds the step" in message


@pytest.mark.parametrize("hook", ["on_after_backward", "on_before_optimizer_step"])
def test_hooks_that_only_look_are_no_news(make_trainer: Any, make_loader: Any, hook: str) -> None:
    norms: list[float] = []

    class Looks(SmallModule):
        pass

    def look(self: SmallModule, *args: Any) -> None:
        norms.append(max(float(p.grad.norm()) for p in self.parameters() if p.grad is not None))

    setattr(Looks, hook, look)
    assert said(lambda: make_trainer(BSQHStrategy()).fit(Looks(), make_loader())) == []
    assert len(norms) == 3


@pytest.mark.parametrize(
    "options", [{"gradient_clip_val": 1e-9}, {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}]
)
def test_gradient_clip_val_is_ignored(make_trainer: Any, make_loader: Any, options: dict[str, Any]) -> None:
    ends = []
    for chosen in ({}, options):
        torch.manual_seed(0)
        module = SmallModule()
        trainer = make_trainer(BSQHStrategy(), **chosen)
        torch.manual_seed(1)
        messages = said(lambda module=module, trainer=trainer: trainer.fit(module, make_loader()))
        assert len(messages) == bool(chosen)
        assert all("gradient_clip_val" in message and "ε bounds the step" in message for message in messages)
        assert trainer.gradient_clip_val == chosen.get("gradient_clip_val")
        ends.append(weights_of(module))
    assert_same(*ends)


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
@pytest.mark.parametrize("after", [True, False])
def test_a_warm_up(make_trainer: Any, make_loader: Any, key: str, after: bool) -> None:
    class Warm(SmallModule):
        @override
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            def set_it() -> None:
                for group in optimizer.param_groups:
                    group[key] = 1e-3 * (1 + self.trainer.global_step)

            if not after:
                set_it()
            optimizer.step(closure=optimizer_closure)
            if after:
                set_it()

    (message,) = said(lambda: make_trainer(BSQHStrategy(), max_epochs=2).fit(Warm(), make_loader()))
    assert f"set {key} in" in message
    assert "1/(2ε)" in message


def test_lr_find(make_trainer: Any, make_loader: Any) -> None:
    module = SmallModule()
    module.lr = 1e-3
    finder = LearningRateFinder(num_training_steps=5)
    trainer = make_trainer(BSQHStrategy(), callbacks=[finder], enable_checkpointing=True, max_epochs=5)
    messages = said(lambda: trainer.fit(module, make_loader()))
    assert any("no learning rate to find" in message for message in messages)
    assert trainer.global_step == 15


class Unused(SmallModule):
    def __init__(self) -> None:
        super().__init__()
        self.spare, self.frozen = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)

    @override
    def loss(self, batch: Any) -> Tensor:
        # The last batch of each epoch uses what the others do not.
        extra = self.spare.bias.square().sum() if self.trainer.is_last_batch else 0.0
        return super().loss(batch) + extra


@pytest.mark.parametrize("steps", [6, 2])
def test_parameters_that_the_loss_does_not_use(make_trainer: Any, make_loader: Any, steps: int) -> None:
    trainer = make_trainer(BSQHStrategy(L0(rho=0.0)), max_steps=steps)
    (message,) = said(lambda: trainer.fit(Unused(), make_loader()))
    assert "spare.weight" in message
    assert ("spare.bias" in message) == (steps < 3)
    assert "frozen" not in message
