"""What the bar and the summary show without being asked."""

from __future__ import annotations

import io
import logging
import math
import sys
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback, RichProgressBar, TQDMProgressBar
from torch import nn

from lightning_bsqh import L0, BSQHStrategy, Cardinality, GroupL0
from lightning_bsqh.callbacks import AugmentationMonitor, SparsityMonitor
from lightning_bsqh.optimizer import BSQHOptimizer
from lightning_bsqh.strategy.progress import layer_summary, short
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
    assert shown.metrics["loss"] == short(report.loss)
    assert shown.metrics["ε"] == short(report.epsilon)
    assert shown.metrics["trials"] == str(report.trials)
    assert shown.metrics["zeros"] == "50%"
    # Nothing of it has been logged, and the bar is as it was.
    assert shown.logged == {}
    assert "get_metrics" not in vars(bar)


def test_what_a_monitor_shows_is_not_shown_twice(make_trainer: Any, make_loader: Any) -> None:
    bar, shown = TQDMProgressBar(), Shown()
    callbacks = [AugmentationMonitor(), SparsityMonitor(1), bar, shown]
    trainer = make_trainer(strategy=BSQHStrategy(), callbacks=callbacks, enable_progress_bar=True, max_steps=2)
    trainer.fit(SmallModule(), make_loader())
    # Their long keys would not leave room for the others.
    assert list(shown.metrics) == ["loss", "zeros", "ε", "trials"]
    assert {"bsqh/epsilon", "sparsity/total"} <= shown.logged.keys()


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_numbers_are_short(value: float) -> None:
    assert len(short(value)) <= 10
    if math.isfinite(value) and abs(value) < 1e300:
        assert float(short(value)) == pytest.approx(value, rel=6e-3)


def test_the_bar_fits_into_eighty_columns(make_trainer: Any, make_loader: Any) -> None:
    shown = Shown()
    callbacks = [AugmentationMonitor(), SparsityMonitor(1), TQDMProgressBar(), shown]
    trainer = make_trainer(BSQHStrategy(), callbacks=callbacks, enable_progress_bar=True, max_steps=2)
    trainer.fit(SmallModule(), make_loader())
    # What tqdm writes before it: epoch, per cent, batches, times and speed.
    before = "Epoch 19: 100%|| 469/469 [00:10<00:00, 45.33it/s"
    text = "".join(f", {key}={value}" for key, value in shown.metrics.items() if key != "trials")
    assert len(before + text) <= 80


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "cp437", "utf-8", "utf-16"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_the_bar_can_be_written_in_any_encoding(
    make_trainer: Any, make_loader: Any, monkeypatch: pytest.MonkeyPatch, encoding: str, stream: str
) -> None:
    raw, shown = io.BytesIO(), Shown()
    monkeypatch.setattr(sys, stream, io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    callbacks = [TQDMProgressBar(), shown]
    trainer = make_trainer(BSQHStrategy(), callbacks=callbacks, enable_progress_bar=True, max_steps=2)
    trainer.fit(SmallModule(), make_loader())
    assert stream == "stderr" or raw.getvalue()
    # cp437 has the letter, Windows' and the oldest ones have not.
    assert ("ε" in shown.metrics) == (encoding in ("cp437", "utf-8", "utf-16"))
    assert ("eps" in shown.metrics) == (encoding in ("cp1252", "ascii", "latin-1"))


class Pickling(SmallModule):
    def on_train_batch_end(self, *args: Any) -> None:
        bar = self.trainer.progress_bar_callback
        assert bar is not None
        # Function of a bar may not be one that was made in a function: pickle knows those by name only.
        self.method = vars(bar)["get_metrics"].__qualname__


def test_what_is_put_into_the_bar_has_a_name(make_trainer: Any, make_loader: Any) -> None:
    module = Pickling()
    make_trainer(BSQHStrategy(), callbacks=[TQDMProgressBar()], enable_progress_bar=True).fit(module, make_loader())
    assert module.method == "ProgressMetrics.get_metrics"


def test_the_summary_tells_what_was_decided() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm([4, 4]))
    network.pos_embed = nn.Parameter(torch.ones(1, 4, 4))
    network.mixing = nn.Parameter(torch.ones(4, 4))
    text = layer_summary(BSQHOptimizer(network, regularizer=L0()))
    assert "though of two dimensions or more: pos_embed [1, 4, 4] (position embedding), 1.weight [4, 4]" in text
    assert "by their shape alone: mixing [4, 4]." in text
    # What a user has decided is no news.
    assert "mixing [4, 4]" not in layer_summary(BSQHOptimizer(network, regularizer=L0(), regularize=["0", "pos_embed"]))


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
        ["1", "GRUCell", "linearized", "72", "-"],
        ["2", "BatchNorm1d", "exact", "6", "-"],
        ["3", "Linear", "exact", "6", "6"],
    ]
    named = layer_summary(BSQHOptimizer(network, layers=["1"])).splitlines()[4]
    assert named.split()[:5] == ["1", "GRUCell", "true", "K", "72"]
    assert "GroupL0" in lines[0]
    assert "L0(rho=0.001)" in lines[3]
