"""Logs how many weights are exactly zero, in all and by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import integer
from lightning_bsqh.callbacks._logging import loggers_are_due, show, write
from lightning_bsqh.optimizer import BSQHOptimizer


class SparsityMonitor(L.Callback):
    """Logs ``sparsity/total``, ``sparsity/<layer>`` and ``nonzero/total``.

    A sparsity is the share of exact zeros among the regularised weights, in [0, 1]; ``nonzero/total``
    is the number of the others. With another optimizer than bSQH's, all parameters with two or more
    dimensions count. The last step of each epoch is measured, too, for other callbacks. Loggers get
    what falls on a multiple of the Trainer's ``log_every_n_steps``, and always the outcome.

    Args:
        every_n_steps: Measure every so many iterations, at least 1.
        prog_bar: Whether the progress bar shows the total.

    Raises:
        ValueError: If ``every_n_steps`` is less than 1.
    """

    def __init__(self, every_n_steps: int = 50, prog_bar: bool = True) -> None:
        self.every_n_steps = integer("every_n_steps", every_n_steps, low=1)
        self.prog_bar = prog_bar
        self._written: int | None = None

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        at_end = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        due = trainer.global_step % self.every_n_steps == 0
        if not due and not at_end:
            return
        values = sparsity_values(layer_weights(trainer, pl_module))
        show(pl_module, values, in_bar="sparsity/total" if self.prog_bar else None)
        if due and loggers_are_due(trainer):
            write(trainer, values)
            self._written = trainer.global_step

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._written != trainer.global_step:
            write(trainer, sparsity_values(layer_weights(trainer, pl_module)))


def layer_weights(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, list[Tensor]]:
    """The weights that count for the sparsity, by layer.

    Those that bSQH regularises, or, with any other optimizer or none, all parameters with two or
    more dimensions, under the name of the module that owns them.
    """
    if trainer.optimizers and isinstance(trainer.optimizers[0], BSQHOptimizer):
        return trainer.optimizers[0].regularized_weights()
    layers: dict[str, list[Tensor]] = {}
    for name, parameter in pl_module.named_parameters():
        if parameter.dim() >= 2:
            layers.setdefault(name.rpartition(".")[0] or name, []).append(parameter)
    return layers


def count_zeros(layers: Mapping[str, Sequence[Tensor]]) -> dict[str, tuple[int, int]]:
    """Numbers of exact zeros and of all weights, by layer."""
    if not layers:
        return {}
    # One transfer from the device for all layers.
    nonzero = torch.stack([sum((torch.count_nonzero(w) for w in ws), torch.tensor(0)) for ws in layers.values()])
    sizes = [sum(w.numel() for w in ws) for ws in layers.values()]
    return {name: (size - kept, size) for name, size, kept in zip(layers, sizes, nonzero.tolist(), strict=True)}


def sparsity_values(layers: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """The values that :class:`SparsityMonitor` logs, by their keys."""
    counts = count_zeros(layers)
    zeros, total = (sum(column) for column in zip(*counts.values(), strict=True)) if counts else (0, 0)
    values = {f"sparsity/{name}": layer_zeros / size for name, (layer_zeros, size) in counts.items()}
    return {"sparsity/total": zeros / total if total else 0.0, "nonzero/total": float(total - zeros), **values}


def count_zero_groups(layers: Mapping[str, Sequence[Tensor]]) -> dict[str, tuple[int, int]]:
    """Numbers of filters and of rows none of whose weights is left, and of all of them.

    A filter is a slice along dim 0 of a tensor of three or more dimensions, a row that of a matrix, such as the weights
    of one neuron. Only the weights given are looked at; a kind of which there is none is left out.
    """
    counts: dict[str, tuple[int, int]] = {}
    for w in (w for weights in layers.values() for w in weights if w.dim() >= 2):
        kind = "filters" if w.dim() > 2 else "rows"
        zeros, size = counts.get(kind, (0, 0))
        counts[kind] = (zeros + len(w) - int(torch.count_nonzero((w != 0).flatten(1).any(1))), size + len(w))
    return counts
