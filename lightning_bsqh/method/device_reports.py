"""Reports of iterations that the host has not looked at, copied from time to time without waiting (method §2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: So many iterations are copied at once.
EVERY = 50


@dataclass(frozen=True)
class Row:
    """The numbers of one iteration.

    Attributes:
        names: Their names.
        values: They themselves, shape ``[len(names)]``, in double precision where the device has it.
    """

    names: Sequence[str]
    values: Tensor


class _Copy:
    """A copy on its way to the host.

    Args:
        rows: What is copied.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        values = torch.cat([row.values for row in rows])
        self._event: torch.cuda.Event | None = None
        if values.device.type != "cuda":
            self._values = values.cpu()
            return
        self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._values.copy_(values, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(values.device))

    @property
    def is_there(self) -> bool:
        """Whether it has arrived."""
        return self._event is None or self._event.query()

    def read(self) -> list[dict[str, float]]:
        """The numbers of every row; waits until they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return apart(self.rows, self._values.tolist())


class Reports:
    """Keeps rows on the device until enough have come together, and gives them when they have arrived."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._copies: list[_Copy] = []

    def __len__(self) -> int:
        """How many have not been given yet."""
        return len(self._rows) + sum(len(copy.rows) for copy in self._copies)

    def add(self, row: Row) -> None:
        """Takes in one iteration."""
        self._rows.append(row)

    def arrived(self) -> list[dict[str, float]]:
        """Those that have arrived since the last time, in their order; sends the next ones off. Does not wait."""
        if len(self._rows) >= EVERY:
            self._copies.append(_Copy(self._rows))
            self._rows = []
        found: list[dict[str, float]] = []
        while self._copies and self._copies[0].is_there:
            found += self._copies.pop(0).read()
        return found

    def take(self) -> tuple[list[dict[str, float]], list[Row]]:
        """All: those on their way, for which this waits, and those that nobody has sent off."""
        found = [numbers for copy in self._copies for numbers in copy.read()]
        rows, self._rows, self._copies = self._rows, [], []
        return found, rows

    def clear(self) -> None:
        """Forgets all."""
        self._rows, self._copies = [], []


def apart(rows: Sequence[Row], numbers: Sequence[float]) -> list[dict[str, float]]:
    """The numbers of every row, from those of all rows one after the other."""
    found, at = [], 0
    for row in rows:
        found.append(dict(zip(row.names, numbers[at : at + len(row.names)], strict=True)))
        at += len(row.names)
    return found


def read(vectors: Sequence[Tensor]) -> list[float]:
    """One transfer from the device, for which the host waits: all numbers, one after the other."""
    numbers: list[float] = torch.cat([v.reshape(-1) for v in vectors]).tolist() if vectors else []
    return numbers
