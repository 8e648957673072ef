"""Gradual magnitude pruning beside any optimizer: what sparse training is usually compared with."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import number
from lightning_bsqh.callbacks._weights import layer_weights
from lightning_bsqh.regularizers.ramp import Ramp
from lightning_bsqh.regularizers.selection import keep_largest


class MagnitudePruning(L.Callback):
    """Sets the smallest weights of the whole network to zero, more and more of them, and keeps them there.

    After every step the weights pruned before are zero again, whatever the optimizer made of them; at each
    tightening of the ramp those of the smallest magnitude join them, over all layers together (Zhu & Gupta 2017).
    Weights are what :class:`~lightning_bsqh.callbacks.SparsityMonitor` counts, as far as they are trained: those that
    bSQH regularises, or with any other optimizer all parameters with two or more dimensions. When the ramp has ended
    exactly round(sparsity · n) of n weights are pruned; a weight that is not finite counts as large.

    The number of weights to prune depends on ``global_step`` alone, so a resumed training goes on as it would have.
    Works with any strategy under which each process holds all parameters whole. Place it before a SparsityMonitor,
    which would otherwise see what the optimizer has just made of the pruned weights.

    Args:
        sparsity: Share of the weights that are zero at the end, in [0, 1).
        ramp: Start and end of the rise along a cubic, as shares of the training. The same ramp as that of
            :class:`~lightning_bsqh.Cardinality`, so that the two can be compared.
        interval: Number of steps from one tightening to the next; None takes a 200th of the training, at least 2 and
            at most 100.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of its range.
    """

    def __init__(
        self, sparsity: float = 0.9, ramp: tuple[float, float] = (0.05, 0.5), interval: int | None = None
    ) -> None:
        self.sparsity = number("sparsity", sparsity, low=0.0, high=1.0, open_high=True)
        self._ramp = Ramp(ramp, interval)
        self.ramp = self._ramp.ends
        self._total_steps: int | None = None
        self._weights: list[Tensor] = []
        # Which elements of each weight tensor are pruned; empty as long as none is.
        self._pruned: list[Tensor] = []
        self._count = 0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        known = 0 < steps < float("inf")
        if self._ramp.needs_total_steps and not known:
            raise MisconfigurationException(
                f"MagnitudePruning(ramp={self.ramp}) needs the length of the training: give the Trainer max_steps,"
                " or max_epochs with a data loader that has a length, or use ramp=(0.0, 0.0)."
            )
        self._total_steps = int(steps) if known else None
        layers = layer_weights(trainer, pl_module)
        self._weights = [w for weights in layers.values() for w in weights if w.requires_grad]
        if not self._weights:
            raise MisconfigurationException(
                f"MagnitudePruning finds nothing to prune: no trained parameter of {type(pl_module).__name__} has two"
                " or more dimensions. Remove the callback."
            )
        self._pruned, self._count = [], 0
        if trainer.global_step > 0:
            # Resumed: what was pruned is zero and so among the smallest.
            self._tighten(trainer.global_step - 1)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with torch.no_grad():
            for w, pruned in zip(self._weights, self._pruned, strict=False):
                w.masked_fill_(pruned, 0.0)
        if trainer.global_step > 0:
            self._tighten(trainer.global_step - 1)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        total = sum(w.numel() for w in self._weights)
        if self._count < round(self.sparsity * total):
            rank_zero_warn(
                f"The training ended within the ramp of MagnitudePruning(sparsity={self.sparsity:g}):"
                f" {100.0 * self._count / total:.2f} % of the weights are pruned."
            )
        # Nothing of the network is held on to.
        self._weights, self._pruned = [], []

    def _tighten(self, step: int) -> None:
        """Prunes as many weights as step ``step`` (from 0) demands; those pruned before are zero, thus among them."""
        total = sum(w.numel() for w in self._weights)
        count = round(self.sparsity * self._ramp.share_at(step, self._total_steps) * total)
        if count <= self._count:
            return
        self._count = count
        with torch.no_grad():
            sizes = torch.cat([w.detach().flatten().abs() for w in self._weights]).nan_to_num_(nan=float("inf"))
            pruned = ~keep_largest(sizes, total - count)
            parts = pruned.split([w.numel() for w in self._weights])
            self._pruned = [part.view(w.shape) for part, w in zip(parts, self._weights, strict=True)]
            for w, mask in zip(self._weights, self._pruned, strict=True):
                w.masked_fill_(mask, 0.0)
