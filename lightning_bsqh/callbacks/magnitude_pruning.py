"""Gradual magnitude pruning beside any optimizer: what sparse training is usually compared with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import number
from lightning_bsqh.callbacks._weights import layer_weights
from lightning_bsqh.namespace import MisconfigurationException, pl, rank_zero_warn
from lightning_bsqh.regularizers.ramp import Ramp
from lightning_bsqh.regularizers.selection import keep_largest
from lightning_bsqh.trainer_access import batches_of_all_epochs


class MagnitudePruning(pl.Callback):
    """Sets the smallest weights of the whole network to zero, more and more of them, and keeps them there.

    After every step the weights pruned before are zero again, whatever the optimizer made of them; at each
    tightening of the ramp those of the smallest magnitude join them, over all layers together (Zhu & Gupta 2017).
    Weights are what :class:`~lightning_bsqh.callbacks.SparsityMonitor` counts, as far as they are trained: those that
    bSQH regularizes, or with any other optimizer those that it would regularize by default. A layer that is unfrozen
    during the training is pruned with the others from then on. When the ramp has ended exactly round(sparsity · n) of
    n weights are pruned; a weight that is not finite counts as large.

    The number of weights to prune depends on the Trainer's own counters alone, so a resumed training goes on as it
    would have. With manual optimization, where several optimizers may step on one batch, batches are counted. Works
    with any strategy under which each process holds all parameters whole. Place it before a SparsityMonitor, which
    would otherwise see what the optimizer has just made of the pruned weights.

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
        # Which elements of a weight tensor are pruned, by its identity; none as long as nothing is.
        self._pruned: dict[int, Tensor] = {}
        self._count = 0

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        known = 0 < steps < float("inf")
        if self._ramp.needs_total_steps and not known:
            raise MisconfigurationException(
                f"MagnitudePruning(ramp={self.ramp}) needs the length of the training: give the Trainer max_steps,"
                " or max_epochs with a data loader that has a length, or use ramp=(0.0, 0.0)."
            )
        self._total_steps = int(steps) if known else None
        self._weights, self._pruned, self._count = [], {}, 0
        self._take(trainer, pl_module)
        if not self._weights:
            raise MisconfigurationException(
                f"MagnitudePruning finds nothing to prune: no trained parameter of {type(pl_module).__name__}"
                " multiplies features with features, as the weight of a linear layer does. Remove the callback."
            )
        if trainer.global_step > 0:
            # Resumed: what was pruned is zero and so among the smallest.
            self._tighten(self._share(trainer, pl_module))

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._take(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with torch.no_grad():
            for w in self._weights:
                if id(w) in self._pruned:
                    w.masked_fill_(self._pruned[id(w)], 0.0)
        if trainer.global_step > 0:
            self._tighten(self._share(trainer, pl_module))

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.is_done:
            rank_zero_warn(
                f"The training ended within the ramp of MagnitudePruning(sparsity={self.sparsity:g}):"
                f" {100.0 * self._count / self._total():.2f} % of the weights are pruned."
            )
        # Nothing of the network is held on to.
        self._weights, self._pruned, self._count = [], {}, 0

    @property
    def is_done(self) -> bool:
        """Whether as many weights are pruned as there shall be in the end."""
        return self._count >= round(self.sparsity * self._total())

    def _total(self) -> int:
        return sum(w.numel() for w in self._weights)

    def _take(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Adds the weights that are trained by now; looked for once per epoch, when others unfreeze."""
        if self._weights and trainer.fit_loop.batch_idx > 0:
            return
        known = {id(w) for w in self._weights}
        layers = layer_weights(trainer, pl_module)
        self._weights += [w for ws in layers.values() for w in ws if w.requires_grad and id(w) not in known]

    def _share(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float:
        """How far the ramp has come with the step just done."""
        if pl_module.automatic_optimization:
            return self._ramp.share_at(trainer.global_step - 1, self._total_steps)
        shares = [0.0]
        batches = batches_of_all_epochs(trainer)
        if math.isfinite(batches):
            shares.append(self._ramp.share_at(trainer.fit_loop.total_batch_idx, int(batches)))
        if trainer.max_steps != -1 or not self._ramp.needs_total_steps:
            shares.append(self._ramp.share_at(trainer.global_step - 1, max(trainer.max_steps, 1)))
        return max(shares)

    def _tighten(self, share: float) -> None:
        """Prunes as many weights as the ramp demands; those pruned before are zero, thus among them."""
        total = self._total()
        count = round(self.sparsity * share * total)
        if count <= self._count:
            return
        self._count = count
        with torch.no_grad():
            sizes = torch.cat([w.detach().flatten().abs() for w in self._weights]).nan_to_num_(nan=float("inf"))
            pruned = ~keep_largest(sizes, total - count)
            for part, w in zip(pruned.split([w.numel() for w in self._weights]), self._weights, strict=True):
                mask = self._pruned[id(w)] = part.view(w.shape)
                w.masked_fill_(mask, 0.0)
