"""The weights that count, and how many of them are zero: what several callbacks and the command line ask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_bsqh.callbacks._logging import layer_keys
from lightning_bsqh.namespace import pl
from lightning_bsqh.network.roles import tensors_of
from lightning_bsqh.network.sharding import nonzero_counts
from lightning_bsqh.optimizer import BSQHOptimizer


class OutputPositions:
    """Looks at one forward, to see at how many positions per sample each weight is used.

    Args:
        module: The network.
    """

    def __init__(self, module: nn.Module) -> None:
        self._positions: dict[int, float] = {}
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        modules = [m for m in module.modules() if isinstance(m, kinds)]
        # As they are outside of a forward: in one, a sharded module has others.
        self._weights = {id(m): m.weight for m in modules}
        self._handles = [m.register_forward_hook(self._note) for m in modules]

    def stop(self) -> None:
        """Looks no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def of(self, weight: Tensor) -> float:
        """At how many positions per sample a weight was used; 0 if that has not been seen."""
        return self._positions.get(id(weight), 0.0)

    def share(self, weights: Iterable[Tensor]) -> float | None:
        """The share of multiply-adds with weights that are not zero; None if no layer has been seen."""
        if self._positions:
            self.stop()
        tensors = list(weights)
        positions = [self._positions.get(id(weight), 0.0) for weight in tensors]
        total = sum(times * weight.numel() for times, weight in zip(positions, tensors, strict=True))
        if not total:
            return None
        return sum(times * left for times, left in zip(positions, nonzero_counts(tensors), strict=True)) / total

    def _note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        weight = self._weights[id(module)]
        if isinstance(output, Tensor) and isinstance(weight, Tensor) and output.dim() and output.shape[0]:
            # Per sample, and per output feature or channel.
            outputs = output.shape[0] * weight.shape[0]
            self._positions.setdefault(id(weight), output.numel() / max(outputs, 1))


def layer_weights(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, list[Tensor]]:
    """The weights that count for the sparsity, by layer.

    Those that bSQH regularizes, or, with any other optimizer or none, those that it would regularize by default, under
    the name of the module that owns them.
    """
    if trainer.optimizers and isinstance(trainer.optimizers[0], BSQHOptimizer):
        return trainer.optimizers[0].regularized_weights()
    return all_weights(pl_module)


def all_weights(module: nn.Module) -> dict[str, list[Tensor]]:
    """All that multiplies features with features, frozen or not, by the name of the module that owns it."""
    layers: dict[str, list[Tensor]] = {}
    seen: set[int] = set()
    for found in tensors_of(module):
        if found.role.is_weight and id(found.tensor) not in seen:
            seen.add(id(found.tensor))
            layers.setdefault(found.path or found.short, []).append(found.tensor)
    return layers


def count_zeros(layers: Mapping[str, Sequence[Tensor]]) -> dict[str, tuple[int, int]]:
    """Numbers of exact zeros and of all weights, by layer."""
    # One transfer from the device for all layers.
    nonzero = iter(nonzero_counts([w for ws in layers.values() for w in ws]))
    kept = {name: sum(next(nonzero) for _ in ws) for name, ws in layers.items()}
    sizes = {name: sum(w.numel() for w in ws) for name, ws in layers.items()}
    return {name: (size - kept[name], size) for name, size in sizes.items()}


def sparsity_values(layers: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """The values that :class:`SparsityMonitor` logs, by their keys."""
    counts = count_zeros(layers)
    zeros, total = (sum(column) for column in zip(*counts.values(), strict=True)) if counts else (0, 0)
    keys = layer_keys("sparsity", counts)
    values = {keys[name]: layer_zeros / max(size, 1) for name, (layer_zeros, size) in counts.items()}
    return {"sparsity/total": zeros / total if total else 0.0, "nonzero/total": float(total - zeros), **values}


def count_zero_groups(layers: Mapping[str, Sequence[Tensor]]) -> dict[str, tuple[int, int]]:
    """Numbers of filters and of rows none of whose weights is left, and of all of them.

    A filter is a slice along dim 0 of a tensor of three or more dimensions, a row that of a matrix, such as the weights
    of one neuron. Only the weights given are looked at; a kind of which there is none is left out.
    """
    counts: dict[str, tuple[int, int]] = {}
    tensors = [w for weights in layers.values() for w in weights if w.dim() >= 2]
    for w, left in zip(tensors, nonzero_counts(tensors, lambda rows: (rows != 0).flatten(1).any(1)), strict=True):
        kind = "filters" if w.dim() > 2 else "rows"
        zeros, size = counts.get(kind, (0, 0))
        counts[kind] = (zeros + len(w) - left, size + len(w))
    return counts
