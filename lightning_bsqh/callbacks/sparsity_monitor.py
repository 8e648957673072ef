"""Logs how many weights are exactly zero, in all and by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import integer
from lightning_bsqh.callbacks._logging import is_due, show, write
from lightning_bsqh.callbacks._weights import OutputPositions, layer_weights, sparsity_values
from lightning_bsqh.namespace import pl
from lightning_bsqh.network.sharding import local_part, over_processes


class SparsityMonitor(pl.Callback):
    """Logs ``sparsity/total``, ``sparsity/<layer>``, ``nonzero/total``, and what changed.

    A sparsity is the share of exact zeros among the regularized weights, in [0, 1]; ``nonzero/total``
    is the number of the others. ``support/entered`` and ``support/left`` count the weights that have become non-zero
    and zero since the last reading. ``multiply_adds/share`` is the share of the multiplications and additions of
    linear and convolutional layers that are left if zeros are skipped. With another optimizer than bSQH's, the
    weights count that bSQH would regularize by default. The last step of each epoch is measured, too, for other
    callbacks; loggers also get the outcome.

    Args:
        every_n_steps: Measure every so many batches, at least 1. None follows the Trainer's ``log_every_n_steps``.
        prog_bar: Whether the progress bar shows the total.

    Raises:
        ValueError: If ``every_n_steps`` is less than 1.
    """

    def __init__(self, every_n_steps: int | None = 50, prog_bar: bool = True) -> None:
        self.every_n_steps = None if every_n_steps is None else integer("every_n_steps", every_n_steps, low=1)
        self.prog_bar = prog_bar
        self._written: int | None = None
        self._positions: OutputPositions | None = None
        self._support: dict[str, list[Tensor]] = {}

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._written = None
        self._positions = OutputPositions(pl_module)
        self._support = _supports(layer_weights(trainer, pl_module))

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        at_end = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        # An optimizer that accumulates leaves a step as it is for several batches.
        due = is_due(self.every_n_steps, trainer, trainer.global_step) and self._written != trainer.global_step
        if due or at_end:
            values = self._measure(trainer, pl_module, new_support=due)
            show(pl_module, values, in_bar="sparsity/total" if self.prog_bar else None)
            if due:
                write(trainer, values)
                self._written = trainer.global_step

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._written != trainer.global_step:
            write(trainer, self._measure(trainer, pl_module, new_support=True))
        if self._positions is not None:
            self._positions.stop()

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, new_support: bool) -> dict[str, float]:
        layers = layer_weights(trainer, pl_module)
        values = sparsity_values(layers)
        support = _supports(layers)
        entered = left = 0
        for name, masks in support.items():
            for now, before in zip(masks, self._support.get(name, masks), strict=False):
                entered += int(torch.count_nonzero(now & ~before))
                left += int(torch.count_nonzero(before & ~now))
        # If one weight is sharded, all are.
        like = [w for weights in layers.values() for w in weights][:1]
        entered, left = over_processes([entered, left], 2 * like) if like else (0, 0)
        values |= {"support/entered": float(entered), "support/left": float(left)}
        if new_support:
            self._support = support
        if self._positions is not None:
            share = self._positions.share(w for weights in layers.values() for w in weights)
            values |= {} if share is None else {"multiply_adds/share": share}
        return values


def _supports(layers: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
    return {name: [local_part(w.detach()) != 0 for w in weights] for name, weights in layers.items()}
