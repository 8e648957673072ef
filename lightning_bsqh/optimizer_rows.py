"""Which rows of its parameters an optimizer has in this process: all, or some as ``fully_shard`` cuts them (§5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.method.regularization import Regularization
from lightning_bsqh.method.trained import Trained
from lightning_bsqh.network.sharding import WAY_OUT, Sharding, check_no_flat, is_sharded, local_part, nonzero_counts


class Rows:
    """All rows, as in any training without sharding.

    Args:
        parameters: All that are trained, by their full names.

    Raises:
        TypeError: If one of them is part of a flat parameter of FullyShardedDataParallel.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        check_no_flat(parameters)
        #: Whether no process holds the parameters whole.
        self.are_some = any(map(is_sharded, parameters.values()))

    def check(self) -> None:
        """Raises ValueError if there are less than all."""
        if self.are_some:
            raise ValueError(WAY_OUT)

    def trained(
        self, moving: Mapping[str, Tensor], states: Sequence[dict[str, Any]], regularized: set[str]
    ) -> tuple[Trained, bool]:
        """What an iteration moves.

        Args:
            moving: The parameters by their full names.
            states: What is remembered of each.
            regularized: Names of what R acts on.

        Returns:
            The same, of the rows here; and whether they lie elsewhere than before, which nobody else would notice.
        """
        return Trained(moving, states, regularized), False

    def is_met(self, regularization: Regularization, weights: Mapping[str, Tensor]) -> bool:
        """Whether these weights satisfy the constraint in full."""
        return regularization.is_met_by(weights)

    def saved(self, state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
        """A state as it is saved, with tensors of the parameters' shapes.

        Args:
            state: As ``torch.optim`` gives it.
            parameters: In the order of their numbers in the state.
        """
        return state

    def loaded(self, state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
        """The reverse; tensors in the state may be sharded or not."""
        return state

    def release(self) -> None:
        """Called when an iteration is through."""
        return


class SomeRows(Rows):
    """Some rows of every parameter, and the others elsewhere.

    Args:
        sharding: Knows which.
    """

    def __init__(self, sharding: Sharding) -> None:
        self.are_some = True
        self._sharding = sharding

    @override
    def check(self) -> None:
        return

    @override
    def trained(
        self, moving: Mapping[str, Tensor], states: Sequence[dict[str, Any]], regularized: set[str]
    ) -> tuple[Trained, bool]:
        pieces, moved = self._sharding.pieces(moving)
        shards = self._sharding.shards([p for name, p in moving.items() if name in regularized])
        return Trained(pieces, states, regularized, shards), moved

    @override
    def is_met(self, regularization: Regularization, weights: Mapping[str, Tensor]) -> bool:
        """Whether these weights satisfy the constraint in full; all processes have to ask."""
        shards = self._sharding.shards(list(weights.values()))
        part = regularization.in_full(list(weights)).on_shards(shards)
        admitted = bool(part.admits([local_part(w) for w in weights.values()]))
        failed = torch.full((), not admitted, dtype=torch.int64, device=shards.device)
        shards.add_(failed)
        return not int(failed)

    @override
    def saved(self, state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
        return with_tensors(state, lambda i, _, piece: self._sharding.whole(piece, parameters[i]))

    @override
    def loaded(self, state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
        return with_tensors(state, lambda i, _, whole: self._sharding.piece(whole, parameters[i]))

    @override
    def release(self) -> None:
        self._sharding.release()


def share_of_zeros(tensors: Sequence[Tensor]) -> float:
    """Share of exact zeros among all elements; 0 if there are none. Waits for the device.

    If the tensors are sharded, all processes have to ask.
    """
    total = sum(t.numel() for t in tensors)
    return 1.0 - sum(nonzero_counts(tensors)) / total if total else 0.0


def with_tensors(state: dict[str, Any], change: Callable[[int, str, Tensor], Any]) -> dict[str, Any]:
    """An optimizer's state with something else in the place of every tensor that is remembered of a parameter.

    Args:
        state: As ``torch.optim`` gives it.
        change: Gets the parameter's number, the tensor's name and the tensor, and gives what takes its place.
    """
    entries = {
        i: {name: change(i, name, value) if isinstance(value, Tensor) else value for name, value in entry.items()}
        for i, entry in state["state"].items()
    }
    return {**state, "state": entries}
