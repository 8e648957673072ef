"""What works with a Trainer's own optimizers works when the strategy is the only change."""

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

from lightning_bsqh import BSQHStrategy
from tests.cases.helpers import Net, fit, loader, trainer, works_or_names


class Scheduled(Net):
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), weight_decay=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def run(module, **options):
    try:
        return fit(module, max_epochs=2, **options)
    except (AttributeError, KeyError, IndexError) as error:
        pytest.fail(f"{type(error).__name__}: {error}")


def test_lr_schedulers():
    """self.lr_schedulers() in training_step gives a scheduler whose last rate can be read."""

    class Reading(Scheduled):
        def training_step(self, batch, batch_idx):
            rates.append(float(self.lr_schedulers().get_last_lr()[0]))
            return self.loss(batch)

    rates = []
    run(Reading())
    assert len(rates) >= 12


def test_configs_of_schedulers():
    """So can that of trainer.lr_scheduler_configs."""

    class Reading(Scheduled):
        def training_step(self, batch, batch_idx):
            rates.append(self.trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0])
            return self.loss(batch)

    rates = []
    run(Reading())
    assert len(rates) >= 12


def test_learning_rate_monitor():
    """LearningRateMonitor(log_weight_decay=True) logs a decay."""
    made = run(Scheduled(), logger=CSVLogger("logs"), callbacks=[LearningRateMonitor(log_weight_decay=True)])
    assert any("weight_decay" in key for key in made.callback_metrics)


def test_weight_decay():
    """param_groups[0]["weight_decay"] can be read."""

    class Reading(Scheduled):
        def training_step(self, batch, batch_idx):
            self.log("decay", float(self.optimizers().param_groups[0]["weight_decay"]))
            return self.loss(batch)

    assert "decay" in run(Reading()).callback_metrics


def test_connect_without_a_trainer(tmp_path):
    """strategy.connect(model) before a fit works as with any other strategy, and a checkpoint can be saved."""
    for strategy in ("auto", BSQHStrategy()):
        made = trainer(strategy)
        try:
            made.strategy.connect(Net())
        except (RuntimeError, AttributeError) as error:
            pytest.fail(f"{type(error).__name__}: {error}")
        made.save_checkpoint(tmp_path / "a.ckpt")
        assert (tmp_path / "a.ckpt").is_file()


def test_training_step_none():
    """training_step = None is named in the error."""

    class Without(Net):
        training_step = None

    assert not works_or_names(lambda: fit(Without(), data=loader()), "training_step")
