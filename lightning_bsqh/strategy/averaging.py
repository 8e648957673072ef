"""Averaged weights that keep exact zeros: an average over the steps in which a weight was not zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_avg_fn

from lightning_bsqh.namespace import pl
from lightning_bsqh.optimizer import BSQHOptimizer
from lightning_bsqh.trainer_access import averaged_model_of, callbacks_of


def keep_zeros(trainer: pl.Trainer, module: nn.Module, optimizer: BSQHOptimizer) -> None:
    """Lets the WeightAveraging callbacks of a Trainer average on the support of the present weights.

    Args:
        trainer: The Trainer, whose callbacks are set up.
        module: The module that is trained.
        optimizer: What trains it.
    """
    for callback in callbacks_of(trainer):
        model = averaged_model_of(callback)
        if model is not None and not isinstance(model.multi_avg_fn, SupportAverage):
            model.multi_avg_fn = SupportAverage(model, module, optimizer)


class SupportAverage:
    """An averaging function for torch's AveragedModel that lets regularized weights be zero where they are now.

    A weight that is zero now is zero in the average, too; one that has come back begins anew, with its present value.
    So the average has exactly the zeros of the network of the last update. All other tensors are averaged as before.

    Args:
        model: The averaged model, whose own averaging function is used.
        module: The module that is trained.
        optimizer: Tells which weights are regularized.
    """

    def __init__(self, model: AveragedModel, module: nn.Module, optimizer: BSQHOptimizer) -> None:
        self._average: Callable[..., Any] = model.multi_avg_fn or _each(model.avg_fn or get_swa_avg_fn())
        self._pairs = list(zip(module.parameters(), model.module.parameters(), strict=True))
        self._optimizer = optimizer

    @torch.no_grad()
    def __call__(self, averaged: Sequence[Tensor], present: Sequence[Tensor], count: Tensor | int) -> None:
        """Updates averages in place.

        Args:
            averaged: The averages.
            present: The present values, of the same shapes, dtypes and devices.
            count: Number of values in the averages so far.
        """
        layers = self._optimizer.regularized_weights().values()
        regularized = {id(weight) for weights in layers for weight in weights}
        sparse = {average.data_ptr() for weight, average in self._pairs if id(weight) in regularized}
        chosen = [(a, p, a == 0) for a, p in zip(averaged, present, strict=True) if a.data_ptr() in sparse]
        self._average(averaged, present, count)
        for average, value, was_zero in chosen:
            average.copy_(torch.where(was_zero | (value == 0), value, average))


def _each(average: Callable[..., Any]) -> Callable[..., None]:
    """An averaging function of single tensors as one of lists."""

    def of_lists(averaged: Sequence[Tensor], present: Sequence[Tensor], count: Tensor | int) -> None:
        for a, p in zip(averaged, present, strict=True):
            a.copy_(average(a, p, count))

    return of_lists
