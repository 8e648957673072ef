"""The tensors that an iteration moves, and whose they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_bsqh.network.layers import Layer
from lightning_bsqh.network.packing import Pack
from lightning_bsqh.network.shards import Shards


@dataclass(frozen=True)
class Trained:
    """The tensors that an iteration moves.

    Attributes:
        parameters: By their full names.
        states: What is remembered of each.
        regularized: Names of those that R acts on.
        shards: What is known of the latter, if the parameters are some rows of tensors only.
    """

    parameters: Mapping[str, Tensor]
    states: Sequence[dict[str, Any]]
    regularized: Collection[str]
    shards: Shards | None = None

    @property
    def dtype(self) -> torch.dtype:
        """That of the first of them, which tells how large a gradient may be."""
        return next((p.dtype for p in self.parameters.values()), torch.get_default_dtype())

    def states_of(self, pack: Pack) -> list[dict[str, Any]]:
        """What is remembered of each parameter of a pack."""
        return [self.states[i] for i in pack.positions]

    @property
    def regularized_names(self) -> list[str]:
        """Names of the regularized ones, in their order."""
        return [name for name in self.parameters if name in self.regularized]

    @property
    def regularized_positions(self) -> list[int]:
        """Where the regularized ones are among all."""
        return [i for i, name in enumerate(self.parameters) if name in self.regularized]

    def located(self, layers: Sequence[Layer]) -> list[tuple[Layer, list[int]]]:
        """The layers with the positions of their tensors among all that move."""
        places = {name: i for i, name in enumerate(self.parameters)}
        found = [(layer, [places[name] for name in layer.parameters if name in places]) for layer in layers]
        return [(layer, positions) for layer, positions in found if positions]

    def places(self, layers: Sequence[Layer]) -> dict[str, list[int]]:
        """The positions by the layers' names; a parameter of no known layer has its own."""
        located = {layer.name: positions for layer, positions in self.located(layers)}
        known = {i for positions in located.values() for i in positions}
        return located | {name: [i] for i, name in enumerate(self.parameters) if i not in known}
