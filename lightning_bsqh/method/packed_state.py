"""What the optimizer's states hold of every parameter, side by side in one vector per pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_bsqh.network.packing import Pack, are_views

States = Sequence[dict[str, Any]]


class PackedState:
    """One vector per pack, of whose parts the states hold views, so that what is done to it is done to them.

    Args:
        key: Under which the states hold their parts, each of its parameter's shape.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._vectors: dict[Pack, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A copy makes its own vectors from the states of its own parameters.
        return {**vars(self), "_vectors": {}}

    def find(self, pack: Pack, states: States) -> Tensor | None:
        """The vector, shape ``[n]``; None if these states hold other tensors, as after a state has been loaded."""
        vector = self._vectors.get(pack)
        return vector if vector is not None and are_views(states, self.key, vector) else None

    def gather(self, pack: Pack, states: States, others: Tensor) -> Tensor:
        """A new vector of what the states hold.

        Args:
            pack: Whose parameters.
            states: One for each of them.
            others: What there is of those whose states hold nothing, shape ``[n]``; gives dtype and device, too.
        """
        pieces = zip(states, pack.pieces(others), strict=True)
        return torch.cat([state.get(self.key, piece).to(others).reshape(-1) for state, piece in pieces])

    def hold(self, pack: Pack, vector: Tensor, states: States, only_known: bool = False) -> None:
        """Lets the states hold views of a vector, shape ``[n]``, which is not copied.

        Args:
            pack: Whose parameters.
            vector: The vector.
            states: One for each of them; changed.
            only_known: Whether to leave out those that hold nothing so far.
        """
        if self._vectors.get(pack) is vector and are_views(states, self.key, vector):
            return
        self._vectors[pack] = vector
        for piece, state in zip(pack.pieces(vector), states, strict=True):
            if self.key in state or not only_known:
                state[self.key] = piece

    def drop(self, states: States) -> None:
        """Takes what these states hold out of them."""
        for state in states:
            state.pop(self.key, None)

    def repack(self) -> None:
        """The packs are about to be made anew: the vectors of the present ones can go."""
        self._vectors = {}
