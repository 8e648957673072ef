"""Public attributes that Lightning's Trainer sets without declaring them, in one place for the type checker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from torch.optim.swa_utils import AveragedModel

from lightning_bsqh.namespace import pl


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """All callbacks, those of the module included once it is attached."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def trainer_of(module: pl.LightningModule) -> pl.Trainer | None:
    """The Trainer that a module is attached to, None if there is none."""
    try:
        return module.trainer
    except RuntimeError:  # What the property raises then.
        return None


def log_every_n_steps_of(trainer: pl.Trainer) -> int:
    """The option of the same name."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every


@dataclass(frozen=True)
class Metrics:
    """The Trainer's metrics at one time."""

    callback: dict[str, Any]
    logged: dict[str, Any]
    progress_bar: dict[str, Any]


def metrics_of(trainer: pl.Trainer) -> Metrics:
    """What ``callback_metrics``, ``logged_metrics`` and ``progress_bar_metrics`` are now."""
    return Metrics(dict(trainer.callback_metrics), dict(trainer.logged_metrics), dict(trainer.progress_bar_metrics))


@contextmanager
def metrics_as_before(trainer: pl.Trainer, metrics: Metrics) -> Iterator[None]:
    """Within, the Trainer's metrics are those of another time.

    The three properties ask the Trainer's ``_logger_connector``; there is no public way to have them answer something
    else, and a trial must not see what the forward sweep of the same step has logged.
    """
    connector: Any = trainer._logger_connector
    trainer._logger_connector = cast(Any, _Answering(connector, metrics))
    try:
        yield
    finally:
        trainer._logger_connector = connector


class _Answering:
    """The Trainer's ``_logger_connector`` with other metrics."""

    def __init__(self, connector: Any, metrics: Metrics) -> None:
        self._connector = connector
        self.callback_metrics = dict(metrics.callback)
        self.logged_metrics = dict(metrics.logged)
        self.progress_bar_metrics = dict(metrics.progress_bar)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connector, name)


def is_within_batch(trainer: pl.Trainer) -> bool:
    """Whether a batch has been begun and not been gone through, as when training_step raises.

    The loops tell which batch it is, but not whether it is done; a run resumed from there does it again.
    """
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(progress.ready > progress.processed)


def averages_weights(callback: pl.Callback) -> bool:
    """Whether it is a WeightAveraging callback, which there are from Lightning 2.6 on."""
    kind = getattr(pl.callbacks, "WeightAveraging", None)
    return kind is not None and isinstance(callback, kind)


def averaged_model_of(callback: pl.Callback) -> AveragedModel | None:
    """The averaged model of a WeightAveraging callback that is set up; None for any other callback.

    The callback keeps it in ``_average_model`` and gives no other way to it, and only there its averaging function can
    be told that zeros are to stay.
    """
    if not averages_weights(callback):
        return None
    known: Any = callback
    model: AveragedModel | None = known._average_model
    return model


def batches_of_all_epochs(trainer: pl.Trainer) -> float:
    """Number of batches until ``max_epochs`` whatever ``max_steps`` is, infinite if that is not known."""
    if trainer.max_epochs in (None, -1):
        return float("inf")
    return trainer.num_training_batches * float(trainer.max_epochs or 0)


def is_between_batches(trainer: pl.Trainer) -> bool:
    """Whether a training has begun no batch that it has not completed.

    The counters are public, but of a kind that is declared without ``started``.
    """
    counts: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(counts.started == counts.completed)
