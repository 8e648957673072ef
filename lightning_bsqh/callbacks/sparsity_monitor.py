"""Logs how many weights are exactly zero, in all and by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh._validation import integer
from lightning_bsqh.callbacks._logging import is_due, show, write
from lightning_bsqh.optimizer import BSQHOptimizer


class SparsityMonitor(L.Callback):
    """Logs ``sparsity/total``, ``sparsity/<layer>``, ``nonzero/total``, and what changed.

    A sparsity is the share of exact zeros among the regularised weights, in [0, 1]; ``nonzero/total``
    is the number of the others. ``support/entered`` and ``support/left`` count the weights that have become non-zero
    and zero since the last reading. ``multiply_adds/share`` is the share of the multiplications and additions of
    linear and convolutional layers that are left if zeros are skipped. With another optimizer than bSQH's, all
    parameters with two or more dimensions count. The last step of each epoch is measured, too, for other callbacks;
    loggers also get the outcome.

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
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._positions = OutputPositions(pl_module)
        self._support = _supports(layer_weights(trainer, pl_module))

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        at_end = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        due = is_due(self.every_n_steps, trainer, trainer.global_step)
        if due or at_end:
            values = self._measure(trainer, pl_module, new_support=due)
            show(pl_module, values, in_bar="sparsity/total" if self.prog_bar else None)
            if due:
                write(trainer, values)
                self._written = trainer.global_step

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._written != trainer.global_step:
            write(trainer, self._measure(trainer, pl_module, new_support=True))
        if self._positions is not None:
            self._positions.stop()

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule, new_support: bool) -> dict[str, float]:
        layers = layer_weights(trainer, pl_module)
        values = sparsity_values(layers)
        support = _supports(layers)
        entered = left = 0
        for name, masks in support.items():
            for now, before in zip(masks, self._support.get(name, masks), strict=False):
                entered += int(torch.count_nonzero(now & ~before))
                left += int(torch.count_nonzero(before & ~now))
        values |= {"support/entered": float(entered), "support/left": float(left)}
        if new_support:
            self._support = support
        if self._positions is not None:
            share = self._positions.share(w for weights in layers.values() for w in weights)
            values |= {} if share is None else {"multiply_adds/share": share}
        return values


class OutputPositions:
    """Looks at one forward, to see at how many positions per sample each weight is used.

    Args:
        module: The network.
    """

    def __init__(self, module: nn.Module) -> None:
        self._positions: dict[int, float] = {}
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        self._handles = [m.register_forward_hook(self._note) for m in module.modules() if isinstance(m, kinds)]

    def stop(self) -> None:
        """Looks no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def share(self, weights: Iterable[Tensor]) -> float | None:
        """The share of multiply-adds with weights that are not zero; None if no layer has been seen."""
        if self._positions:
            self.stop()
        done = total = 0.0
        for weight in weights:
            positions = self._positions.get(id(weight), 0.0)
            done += positions * int(torch.count_nonzero(weight)) if positions else 0.0
            total += positions * weight.numel()
        return done / total if total else None

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        weight = module.weight
        if isinstance(output, Tensor) and isinstance(weight, Tensor) and output.dim() and output.shape[0]:
            # Per sample, and per output feature or channel.
            self._positions.setdefault(id(weight), output.numel() / (output.shape[0] * weight.shape[0]))


def _supports(layers: Mapping[str, Sequence[Tensor]]) -> dict[str, list[Tensor]]:
    return {name: [w.detach() != 0 for w in weights] for name, weights in layers.items()}


def layer_weights(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, list[Tensor]]:
    """The weights that count for the sparsity, by layer.

    Those that bSQH regularises, or, with any other optimizer or none, all parameters with two or
    more dimensions, under the name of the module that owns them.
    """
    if trainer.optimizers and isinstance(trainer.optimizers[0], BSQHOptimizer):
        return trainer.optimizers[0].regularized_weights()
    return all_weights(pl_module)


def all_weights(module: nn.Module) -> dict[str, list[Tensor]]:
    """All parameters with two or more dimensions, by the name of the module that owns them."""
    layers: dict[str, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
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
