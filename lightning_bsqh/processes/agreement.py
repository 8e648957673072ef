"""What processes tell each other in an iteration: one small tensor at a time, failures included (method §5, §13)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_bsqh.method.reduction import ProcessError, stacked

#: Length of the tensor. Always the same, so that a process that fails can answer whatever the others are asking.
SLOTS = 24
_HEADER = 3
#: Values that one sum takes.
ROOM = SLOTS - _HEADER


class Place(IntEnum):
    """Where in an iteration the processes are."""

    FORWARD = 1
    READ = 2
    NUMBERS = 3
    TENSORS = 4
    PART = 5


class Agreement:
    """Sums scalars over all processes, and makes them end together when one of them fails.

    Everything else that they exchange in an iteration comes after such a sum. So a process in which something is raised
    has only to take part in the next sum (:meth:`fail`), and nobody waits for it in vain.

    Args:
        device: Where the tensors have to be for the process group's backend.
        what: What they do together, for messages.
    """

    def __init__(self, device: torch.device, what: str = "the training") -> None:
        self.device = device
        self._what = what
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        #: Whether the processes have agreed to end.
        self.is_over = False

    def sums(self, place: Place, values: Sequence[Tensor | float]) -> list[float]:
        """Σ over the processes of every value, the same to the bit in all of them; one transfer from the device.

        Args:
            place: Where this process is; the others have to be there, too.
            values: Scalars, at most :data:`ROOM`.

        Raises:
            ProcessError: If another process has failed, or is elsewhere.
        """
        found = self._summed([0.0, float(place), float(place) ** 2, *values])
        if found[0]:
            raise self._first_error(None)
        if self.size * found[2] != found[1] ** 2:
            self.is_over = True
            raise ProcessError(
                f"The processes are at different places of {self._what} (this one, {self.rank}, at {place.name}): does"
                " training_step call other layers, step more often, or raise and catch, in one of them only?"
            )
        return found[_HEADER : _HEADER + len(values)]

    def add_(self, tensor: Tensor) -> None:
        """Replaces a tensor by its sum over the processes, all of which have to be at the same place."""
        dist.all_reduce(tensor)

    def fail(self, error: BaseException) -> BaseException:
        """Lets the others know, at their next sum, that this process cannot go on.

        Returns:
            What to raise: the error itself, or that of a process before this one.
        """
        self._summed([1.0])
        return self._first_error(error)

    def _summed(self, values: Sequence[Tensor | float]) -> list[float]:
        if len(values) > SLOTS:
            raise ValueError(f"{len(values)} values do not fit into {SLOTS} slots")
        host = [0.0 if isinstance(v, Tensor) else v for v in values] + [0.0] * (SLOTS - len(values))
        vector = torch.tensor(host, dtype=torch.float64).to(self.device)
        places = [i for i, v in enumerate(values) if isinstance(v, Tensor)]
        if places:
            scalars = stacked([v for v in values if isinstance(v, Tensor)])
            vector[places] = scalars.to(self.device)
        dist.all_reduce(vector)
        found: list[float] = vector.tolist()
        return found

    def _first_error(self, own: BaseException | None) -> BaseException:
        """Called by all processes at once: the error of the first that has one."""
        self.is_over = True
        texts: list[Any] = [None] * self.size
        dist.all_gather_object(texts, None if own is None else f"{type(own).__name__}: {own}")
        rank = next(i for i, text in enumerate(texts) if text is not None)
        if own is not None and rank == self.rank:
            return own
        return ProcessError(f"Process {rank} of {self.size} has ended {self._what}: {texts[rank]}")
