"""What is known of tensors of which every process holds some rows only (method §5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shards:
    """Some tensors, each cut along dim 0 into consecutive pieces, one for each process in their order.

    Attributes:
        shapes: Of the whole tensors.
        starts: For each the first row of this process's piece.
        device: Where the pieces are.
        add_: Replaces a tensor by its sum over the processes; all of them have to call it, with equal shapes.
    """

    shapes: tuple[torch.Size, ...]
    starts: tuple[int, ...]
    device: torch.device
    add_: Callable[[Tensor], object]

    def restricted_to(self, positions: Sequence[int]) -> Shards:
        """A few of the tensors, given by their positions."""
        shapes = tuple(self.shapes[i] for i in positions)
        return Shards(shapes, tuple(self.starts[i] for i in positions), self.device, self.add_)

    def totals(self, counts: Sequence[Tensor]) -> Tensor:
        """Integer scalars, one of each tensor or of whatever there is, summed over the processes: shape ``[n]``."""
        own = torch.stack([c.to(self.device, torch.int64) for c in counts]) if counts else self._none()
        self.add_(own)
        return own

    def places(self, index: int, per_row: int, count: int) -> Tensor:
        """Where this process's units are among those of their tensor, int64, shape ``[count]``.

        Args:
            index: The tensor's position.
            per_row: How many units a row has.
            count: How many are here.
        """
        first = self.starts[index] * per_row
        return torch.arange(first, first + count, device=self.device)

    def places_in_all(self, per_row: Sequence[int], counts: Sequence[int]) -> Tensor:
        """The same among those of all tensors, one after the other.

        Args:
            per_row: How many units a row has, for each tensor.
            counts: How many are here of each.
        """
        begins = accumulate([0, *(int(shape[0]) * units for shape, units in zip(self.shapes, per_row, strict=True))])
        found = [self.places(i, u, n) + b for (i, u), n, b in zip(enumerate(per_row), counts, begins, strict=False)]
        return torch.cat(found)

    def _none(self) -> Tensor:
        return torch.zeros(0, dtype=torch.int64, device=self.device)
