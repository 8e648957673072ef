"""The methods that benchmarks/frontier.py compares; each ends with as many zeros as asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelPruning
from torch import Tensor, nn

from lightning_bsqh import BSQHStrategy, Cardinality
from lightning_bsqh.callbacks import MagnitudePruning
from lightning_bsqh.regularizers.ramp import Ramp
from lightning_bsqh.regularizers.selection import keep_largest

RAMP = (0.05, 0.5)


def sgd(lr: float) -> Callable[[pl.LightningModule], Any]:
    """SGD as a careful user has it: Nesterov momentum, weight decay, cosine."""
    return lambda module: _with_cosine(
        module, torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    )


def adamw(lr: float) -> Callable[[pl.LightningModule], Any]:
    """AdamW with cosine."""
    return lambda module: _with_cosine(module, torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=1e-2))


def _with_cosine(module: pl.LightningModule, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    steps = int(module.trainer.estimated_stepping_batches)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def weights(module: nn.Module) -> list[Tensor]:
    """What is made sparse: tensors with two or more dimensions, as bSQH has it by default."""
    return [p for p in module.parameters() if p.dim() > 1]


def largest(tensors: list[Tensor], kept: int) -> list[Tensor]:
    """Masks of the ``kept`` largest magnitudes over all tensors."""
    keep = keep_largest(torch.cat([t.detach().abs().flatten() for t in tensors]), kept)
    return [m.view(t.shape) for m, t in zip(keep.split([t.numel() for t in tensors]), tensors, strict=True)]


class Sparse(pl.Callback):
    """What the sparse peers share: a share of zeros that follows the same ramp as bSQH's.

    Args:
        sparsity: At the end.
    """

    def __init__(self, sparsity: float) -> None:
        self.sparsity, self.ramp = sparsity, Ramp(RAMP)

    def kept(self, trainer: pl.Trainer, module: pl.LightningModule) -> int:
        """How many weights stay, after the steps done so far."""
        total = sum(w.numel() for w in weights(module))
        share = self.ramp.share_at(max(trainer.global_step - 1, 0), int(trainer.estimated_stepping_batches))
        return total - round(self.sparsity * share * total)


class Proximal(Sparse):
    """Proximal SGD with L1: after every step the soft threshold that leaves as many weights as the ramp wants."""

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        tensors = weights(pl_module)
        kept, sizes = self.kept(trainer, pl_module), torch.cat([w.abs().flatten() for w in tensors])
        if kept == len(sizes):
            return
        threshold = sizes.topk(kept + 1).values[-1]
        for w, mask in zip(tensors, largest(tensors, kept), strict=True):
            w.copy_(torch.where(mask, w.sign() * (w.abs() - threshold), 0.0))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        return


class StraightThrough(Sparse):
    """A dense shadow that is trained through its soft-thresholded, rescaled copy, as ST-3 does."""

    def __init__(self, sparsity: float) -> None:
        super().__init__(sparsity)
        self.shadow: list[Tensor] = []

    @torch.no_grad()
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.shadow = [w.clone() for w in weights(pl_module)]
        self._thin(trainer, pl_module)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        for w, dense in zip(weights(pl_module), self.shadow, strict=True):
            w.copy_(dense)

    @torch.no_grad()
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._thin(trainer, pl_module)

    def _thin(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        tensors = weights(module)
        kept, sizes = self.kept(trainer, module), torch.cat([w.abs().flatten() for w in tensors])
        if kept == len(sizes):
            return
        threshold = sizes.topk(kept + 1).values[-1]
        for w, mask in zip(tensors, largest(tensors, kept), strict=True):
            soft = torch.where(mask, w.sign() * (w.abs() - threshold), 0.0)
            # What the threshold takes from a tensor's size is given back.
            before, after = w[mask].abs().sum(), soft.abs().sum()
            w.copy_(soft * torch.where(after > 0, before / after.clamp(min=1e-12), 1.0))


class Regrowth(Sparse):
    """RigL's rule: a random support from the start; now and then the smallest weights leave it for large gradients."""

    def __init__(self, sparsity: float, interval: int = 100, share: float = 0.3) -> None:
        super().__init__(sparsity)
        self.interval, self.share = interval, share
        self.masks: list[Tensor] = []

    @torch.no_grad()
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        tensors = weights(pl_module)
        # Erdős-Rényi shares: a layer's density goes with (fan-in + fan-out) / (fan-in · fan-out).
        density = [(w.shape[0] + w[0].numel()) / w.numel() for w in tensors]
        total = sum(w.numel() for w in tensors)
        kept = total - round(self.sparsity * total)
        scores = [torch.rand_like(w) ** (1.0 / d) for w, d in zip(tensors, density, strict=True)]
        self.masks = largest(scores, kept)
        self._apply(tensors)
        for w, mask in zip(tensors, self.masks, strict=True):
            # What is left of a layer's inputs shall carry as much as all of them.
            w.div_(mask.float().mean().sqrt())

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        progress = trainer.global_step / trainer.estimated_stepping_batches
        if trainer.global_step % self.interval or not 0 < progress < 0.75:
            return
        share = 0.5 * self.share * (1.0 + torch.cos(torch.tensor(torch.pi * progress / 0.75)))
        for i, w in enumerate(weights(pl_module)):
            assert w.grad is not None
            mask, moved = self.masks[i], int(share * self.masks[i].sum())
            kept = keep_largest(torch.where(mask, w.abs(), -1.0).flatten(), int(mask.sum()) - moved).view(w.shape)
            grown = keep_largest(torch.where(kept, -1.0, w.grad.abs()).flatten(), moved).view(w.shape)
            w.masked_fill_(grown & ~mask, 0.0)
            self.masks[i] = kept | grown

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._apply(weights(pl_module))

    def _apply(self, tensors: list[Tensor]) -> None:
        for w, mask in zip(tensors, self.masks, strict=True):
            w.mul_(mask)


def lightning_pruning(sparsity: float, module: nn.Module, epochs: int) -> ModelPruning:
    """Lightning's ModelPruning, L1 unstructured and global, a little more in every epoch of the same ramp."""
    ramp = Ramp(RAMP, interval=1)

    def amount(epoch: int) -> float:
        done = sparsity * (ramp.share_at(epoch - 1, epochs) if epoch else 0.0)
        # ModelPruning prunes a share of what is left.
        return (sparsity * ramp.share_at(epoch, epochs) - done) / (1.0 - done)

    modules = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Embedding))]
    return ModelPruning(
        "l1_unstructured",
        parameters_to_prune=[(m, "weight") for m in modules],
        amount=amount,
        use_lottery_ticket_hypothesis=False,
    )


METHODS = ("bsqh", "sgd", "adamw", "model pruning", "proximal", "straight-through", "regrowth")


def rates(method: str, of_sgd: tuple[float, ...]) -> tuple[float, ...]:
    """Learning rates that are tried; bSQH has none to choose, and gets 0."""
    return {"bsqh": (0.0,), "adamw": (1e-3, 3e-3, 1e-2, 3e-2)}.get(method, of_sgd)


def prepare(method: str, rate: float, sparsity: float, module: Any, epochs: int) -> tuple[Any, list[pl.Callback]]:
    """Strategy and callbacks of a method; the module gets its optimizer."""
    if method == "bsqh":
        return BSQHStrategy(regularizer=Cardinality(sparsity)), []
    module.optimizers_of = adamw(rate) if method == "adamw" else sgd(rate)
    if sparsity == 0.0:
        return "auto", []
    makers: dict[str, Callable[[], Any]] = {
        "model pruning": lambda: lightning_pruning(sparsity, module.network, epochs),
        "proximal": lambda: Proximal(sparsity),
        "straight-through": lambda: StraightThrough(sparsity),
        "regrowth": lambda: Regrowth(sparsity),
    }
    return "auto", [makers.get(method, lambda: MagnitudePruning(sparsity, ramp=RAMP))()]
