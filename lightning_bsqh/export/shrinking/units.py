"""Channels of tensors, and which of them can only be kept or removed together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Channels:
    """The channels of one tensor in the network: its slices along one dimension.

    Attributes:
        axis: The dimension.
        ids: The unit that each channel belongs to, int64, shape ``[C]``.
        known: Which channels have one value whatever the network's input, boolean, shape ``[C]``.
        value: That value, float64, shape ``[C]``; 0 where it is not known.
    """

    axis: int
    ids: Tensor
    known: Tensor
    value: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @staticmethod
    def unknown(axis: int, ids: Tensor) -> Channels:
        """Channels of which nothing is known."""
        return Channels(axis, ids, torch.zeros(len(ids), dtype=torch.bool), torch.zeros(len(ids), dtype=torch.float64))

    def moved(self, axis: int) -> Channels:
        """The same along another dimension."""
        return Channels(axis, self.ids, self.known, self.value)

    def with_values(self, known: Tensor, value: Tensor) -> Channels:
        """The same units with other values."""
        known = known & value.isfinite()
        return Channels(self.axis, self.ids, known, torch.where(known, value, 0.0))

    def taken(self, positions: Tensor) -> Channels:
        """The channels at these positions, int64."""
        return Channels(self.axis, self.ids[positions], self.known[positions], self.value[positions])


class Units:
    """Sets of channels that are kept or removed as one."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self.kept: dict[int, str] = {}
        self.tied: dict[int, str] = {}

    def new(self, count: int) -> Tensor:
        """Units of their own, int64, shape ``[count]``."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def join(self, first: Tensor, second: Tensor, where: str) -> None:
        """Ties units pairwise, because they meet in ``where``."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            a, b = self._find(a), self._find(b)
            if a != b:
                self._parent[b] = a
                self._inherit(self.kept, a, b)
                self._inherit(self.tied, a, b)
                self.tied.setdefault(a, where)

    def keep(self, ids: Tensor, reason: str) -> None:
        """Says that units cannot be removed; the first reason counts."""
        for unit in ids.tolist():
            self.kept.setdefault(self._find(unit), reason)

    def roots(self) -> Tensor:
        """For every unit the one that stands for its set, int64."""
        return torch.tensor([self._find(unit) for unit in range(len(self._parent))], dtype=torch.int64)

    def _find(self, unit: int) -> int:
        while self._parent[unit] != unit:
            self._parent[unit] = self._parent[self._parent[unit]]
            unit = self._parent[unit]
        return unit

    @staticmethod
    def _inherit(words: dict[int, str], to: int, of: int) -> None:
        if of in words:
            words.setdefault(to, words.pop(of))
