"""What the bar and the summary show without being asked."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback, RichProgressBar, TQDMProgressBar
from torch import nn

from lightning_bsqh import L0, BSQHStrategy, Cardinality, GroupL0
from lightning_bsqh.callbacks import AugmentationMonitor, SparsityMonitor
from lightning_bsqh.optimizer import BSQHOptimizer
from lightning_bsqh.strategy.progress import layer_summary
from tests.strategy.small_modules import SmallModule


class Shown(Callback):
    """Keeps what the bar would show after the last batch."""

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        assert trainer.progress_bar_callback is not None
        self.metrics = dict(trainer.progress_bar_callback.get_metrics(trainer, module))
        self.logged = dict(trainer.callback_metrics)


@pytest.mark.parametrize("make_bar", [TQDMProgressBar, RichProgressBar])
def test_the_bar_shows_the_iteration(make_trainer: Any, make_loader: Any, make_bar: Any) -> None:
    bar, shown = make_bar(), Shown()
    strategy = BSQHStrategy(Cardinality(0.5, ramp=(0.0, 0.0)))
    trainer = make_trainer(strategy=strategy, callbacks=[bar, shown], enable_progress_bar=True, max_steps=3)
    trainer.fit(SmallModule(), make_loader())
    report = trainer.optimizers[0].last_step
    assert shown.metrics["loss"] == f"{report.loss:.3g}"
    assert shown.metrics["ε"] == f"{report.epsilon:.3g}"
    assert shown.metrics["trials"] == str(report.trials)
    assert shown.metrics["zeros"] == "50.0%"
    # Nothing of it has been logged, and the bar is as it was.
    assert shown.logged == {}
    assert "get_metrics" not in vars(bar)


def test_what_a_monitor_shows_is_not_shown_twice(make_trainer: Any, make_loader: Any) -> None:
    bar, shown = TQDMProgressBar(), Shown()
    callbacks = [AugmentationMonitor(), SparsityMonitor(1), bar, shown]
    trainer = make_trainer(strategy=BSQHStrategy(), callbacks=callbacks, enable_progress_bar=True, max_steps=2)
    trainer.fit(SmallModule(), make_loader())
    assert {"bsqh/epsilon", "sparsity/total", "loss", "trials"} <= shown.metrics.keys()
    assert not {"ε", "zeros"} & shown.metrics.keys()


@pytest.mark.parametrize(("length", "used"), [({"max_steps": 1}, Cardinality), ({"max_epochs": -1}, L0)])
def test_summary(
    length: dict[str, int], used: type, make_trainer: Any, make_loader: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Mixed(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(4, 4)

        def on_train_batch_end(self, *args: Any) -> None:
            self.trainer.should_stop = True

    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    try:
        with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
            trainer = make_trainer(strategy=BSQHStrategy(), enable_model_summary=True, **length)
            trainer.fit(Mixed(), make_loader())
    finally:
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    assert "Layers of the maximum principle" in caplog.text
    # The default depends on whether the length is known, which is found out only after the summary.
    assert type(trainer.optimizers[0].regularizer) is used
    assert f"{used.__name__}(" in caplog.text
    assert ("L0(" in caplog.text) == (used is L0)


def test_summary_by_layer() -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.GRUCell(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2, bias=False))
    optimizer = BSQHOptimizer(network, regularizer={"0": GroupL0(rho=1e-2), "3": L0(rho=1e-3)})
    lines = layer_summary(optimizer).splitlines()[3:]
    assert [line.split()[:5] for line in lines] == [
        ["0", "Linear", "exact", "15", "12"],
        ["1", "GRUCell", "true", "K", "72"],
        ["2", "BatchNorm1d", "exact", "6", "-"],
        ["3", "Linear", "exact", "6", "6"],
    ]
    assert "GroupL0" in lines[0]
    assert "L0(rho=0.001)" in lines[3]
