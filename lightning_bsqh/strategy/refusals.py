"""What cannot be trained by bSQH, refused with one sentence before anything is set up, or put aside with one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lightning_bsqh.method.device_refusals import refusal
from lightning_bsqh.namespace import (
    LearningRateFinder,
    MisconfigurationException,
    StochasticWeightAveraging,
    pl,
    rank_zero_warn,
)
from lightning_bsqh.network.sharding import WAY_OUT
from lightning_bsqh.strategy.manual import refuse_manual
from lightning_bsqh.trainer_access import callbacks_of


def refuse_module(model: pl.LightningModule, precision: str, batch_mode: str) -> None:
    """Raises MisconfigurationException for a module, or a Trainer around it, that cannot work.

    Args:
        model: The module, attached to its Trainer.
        precision: The Trainer's precision.
        batch_mode: That of the strategy.
    """
    name = type(model).__name__
    if not callable(model.training_step):
        raise MisconfigurationException(
            f"training_step of {name} is {model.training_step!r}: define it as a method that returns the loss."
        )
    if not model.automatic_optimization:
        refuse_manual(name, precision, batch_mode)
    if precision in ("16-true", "bf16-true"):
        raise MisconfigurationException(
            f"precision={precision!r} cannot be used with BSQHStrategy: in half precision the"
            " weights or the change of the loss over a step are rounded away."
            " Use 'bf16-mixed', '16-mixed', '32-true' or '64-true'."
        )
    if "dataloader_iter" in _arguments(model.training_step):
        raise MisconfigurationException(
            "A training_step that takes dataloader_iter cannot be used with BSQHStrategy: a trial must see the same"
            " batch again. Take (batch, batch_idx) instead."
        )


def refuse_sharded(is_sharded: bool, shard: str | None) -> None:
    """Raises MisconfigurationException for sharded parameters that nobody has announced."""
    if is_sharded and shard is None:
        raise MisconfigurationException(WAY_OUT)


def refuse_several(decide: str, shard: str | None) -> None:
    """Raises MisconfigurationException if several processes, or one with some rows, were to decide on the device."""
    if decide == "device":
        what = ("several processes", "use devices=1 and num_nodes=1")
        raise MisconfigurationException(refusal(*what if shard is None else (f"shard={shard!r}", "leave shard out")))


def _arguments(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except ValueError:  # Something built in, whose arguments cannot be told.
        return {}


def refuse_callbacks(trainer: pl.Trainer) -> None:
    """Raises MisconfigurationException for callbacks that cannot work, and warns of those that do nothing."""
    callbacks = callbacks_of(trainer)
    for callback in callbacks:
        if isinstance(callback, StochasticWeightAveraging):
            raise MisconfigurationException(
                f"The callback {type(callback).__name__} cannot be used with BSQHStrategy: averaged weights have no"
                " exact zeros (those of EMAWeightAveraging are made to have them). Remove it."
            )
    if any(isinstance(callback, LearningRateFinder) for callback in callbacks):
        rank_zero_warn(
            "lr_find (LearningRateFinder) has no learning rate to find under BSQHStrategy: ε takes its place and adapts"
            " itself. What it suggests is used for nothing; remove it."
        )


def put_clipping_aside(trainer: pl.Trainer) -> int | float | None:
    """Takes ``gradient_clip_val`` from a Trainer, with a warning, and gives it, to be put back after the training."""
    clipping = trainer.gradient_clip_val
    if not clipping:
        return None
    rank_zero_warn(
        f"gradient_clip_val={clipping} is ignored by BSQHStrategy: ε bounds the step, and a clipped gradient is not"
        " that of the loss. Remove it from the Trainer."
    )
    trainer.gradient_clip_val = None
    return clipping
