import csv

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger

from lightning_bsqh import Backtracking, BSQHStrategy
from lightning_bsqh.callbacks import AugmentationMonitor
from tests.callbacks.small import Recorder, SmallModule, loader

KEYS = {"epsilon", "objective", "loss_decrease", "promised_decrease", "tau", "trials", "accepted"}
KEYS |= {"rejected_share", "skipped"}


def _fit(tmp_path, monitor: AugmentationMonitor, strategy="auto", **options) -> L.Trainer:
    options = {"max_epochs": 2, "log_every_n_steps": 1, "logger": CSVLogger(tmp_path, name="", version=""), **options}
    trainer = L.Trainer(
        accelerator="cpu",
        strategy=strategy,
        callbacks=[monitor, *options.pop("callbacks", [])],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(SmallModule(own_optimizer=strategy == "auto"), loader())
    return trainer


def _rows(tmp_path) -> list[dict[str, str]]:
    with open(tmp_path / "metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["bsqh/epsilon"]]


def test_logs_what_the_steps_report(tmp_path) -> None:
    recorder = Recorder()
    _fit(tmp_path, AugmentationMonitor(), BSQHStrategy(), callbacks=[recorder])
    rows = _rows(tmp_path)
    assert [int(row["step"]) for row in rows] == list(range(8))
    assert len(recorder.reports) == 8
    for row, report in zip(rows, recorder.reports, strict=True):
        assert {key.removeprefix("bsqh/") for key in row if key.startswith("bsqh/")} == KEYS
        assert float(row["bsqh/epsilon"]) == pytest.approx(report.epsilon, rel=1e-6)
        assert float(row["bsqh/objective"]) == pytest.approx(report.objective_after, rel=1e-6)
        assert float(row["bsqh/loss_decrease"]) == pytest.approx(report.loss_decrease, rel=1e-5)
        assert float(row["bsqh/tau"]) == pytest.approx(report.tau, rel=1e-6)
        assert int(float(row["bsqh/trials"])) == report.trials
        assert float(row["bsqh/accepted"]) == report.accepted
        assert float(row["bsqh/skipped"]) == 0.0


def test_every_n_steps(tmp_path) -> None:
    _fit(tmp_path, AugmentationMonitor(every_n_steps=3), BSQHStrategy())
    assert [int(row["step"]) for row in _rows(tmp_path)] == [2, 5]


def test_counts_trials(tmp_path) -> None:
    recorder = Recorder()
    monitor = AugmentationMonitor(every_n_steps=5)
    # From so small an ε the first trials fail.
    strategy = BSQHStrategy(augmentation=Backtracking(epsilon=1e-4, sigma=10.0))
    _fit(tmp_path, monitor, strategy, callbacks=[recorder])
    assert monitor.accepted_trials == sum(report.accepted for report in recorder.reports)
    assert monitor.rejected_trials == sum(report.trials - report.accepted for report in recorder.reports)
    assert monitor.rejected_trials > 0
    again = AugmentationMonitor()
    again.load_state_dict(monitor.state_dict())
    assert (again.accepted_trials, again.rejected_trials) == (monitor.accepted_trials, monitor.rejected_trials)


@pytest.mark.parametrize("prog_bar", [True, False])
def test_progress_bar_shows_epsilon_only(tmp_path, prog_bar: bool) -> None:
    trainer = _fit(tmp_path, AugmentationMonitor(prog_bar=prog_bar), BSQHStrategy())
    shown = {key for key in trainer.progress_bar_metrics if key.startswith("bsqh/")}
    assert shown == ({"bsqh/epsilon"} if prog_bar else set())


def test_batches_without_a_loss(tmp_path) -> None:
    trainer = L.Trainer(
        accelerator="cpu", strategy=BSQHStrategy(), max_epochs=1, callbacks=[AugmentationMonitor()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(SmallModule(skip_batches=(0, 2)), loader())
    assert trainer.callback_metrics["bsqh/accepted"] in (0.0, 1.0)


def test_refuses_other_optimizers(tmp_path) -> None:
    with pytest.raises(TypeError, match=r"the Trainer uses \['SGD'\]: pass strategy=BSQHStrategy\(\)"):
        _fit(tmp_path, AugmentationMonitor())


@pytest.mark.parametrize("value", [0, -3])
def test_refuses_every_n_steps(value: int) -> None:
    with pytest.raises(ValueError, match="every_n_steps"):
        AugmentationMonitor(every_n_steps=value)
