"""The decisions of several processes, taken on the samples of all of them (method §5, §13)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.method.reduction import PER_PROCESS, Reduction
from lightning_bsqh.processes import tensors
from lightning_bsqh.processes.agreement import ROOM, Agreement, Place

#: Where a gradient reaches a parameter for the first time: as many as there are parameters, and equal in all processes.
_PER_PARAMETER = "reached/"


class ProcessReduction(Reduction):
    """Weighs every process's mean loss by its number of samples; takes everything else from the first process.

    Args:
        agreement: Sums over the processes.
    """

    def __init__(self, agreement: Agreement) -> None:
        self.agreement = agreement
        #: L_B(w) over the samples of all processes.
        self.loss = float("nan")
        #: Whether a process had no loss in the last forward sweep, so that all leave that batch out.
        self.is_left_out = False
        #: Number of samples of all processes in the last forward sweep.
        self.samples = 0
        #: By what a process multiplies its loss, so that the mean over the processes is that over their samples.
        self.factor = 1.0
        self._share = 1.0 / agreement.size

    def begin(self, loss: Tensor | None, samples: int) -> None:
        """Takes note of a forward sweep, one sum; if a process has no loss, they all leave this batch out.

        Args:
            loss: The mean loss of this process's own samples, a scalar; None if it has none to step by.
            samples: Their number, at least 1.
        """
        weighted = 0.0 if loss is None else loss.detach().double() * samples
        missing, total, weighted_sum = self.agreement.sums(Place.FORWARD, [float(loss is None), samples, weighted])
        self.samples = round(total)
        self._share = samples / total
        self.factor = samples * self.agreement.size / total
        self.loss = weighted_sum / total
        self.is_left_out = bool(missing)

    @override
    def read(self, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        names = [name for name in values if not name.startswith(_PER_PARAMETER)]
        found = self.agreement.sums(Place.READ, [self._part(name, values[name]) for name in names])
        others = {name: value for name, value in values.items() if name.startswith(_PER_PARAMETER)}
        return dict(zip(names, found, strict=True)) | super().read(others)

    def _part(self, name: str, value: Tensor | float) -> Tensor | float:
        if name in PER_PROCESS:
            return (value.detach().double() if isinstance(value, Tensor) else value) * self._share
        # All have the same, to the bit on equal devices; on others the first one's decides.
        return value if self.agreement.rank == 0 else 0.0

    @override
    def miss(self) -> None:
        # The others find a loss that is not finite, too.
        self.agreement.sums(Place.READ, [math.nan] * ROOM)

    @override
    def mean(self, value: float) -> float:
        return self.agreement.sums(Place.NUMBERS, [value])[0] / self.agreement.size

    @override
    def mean_(self, values: Sequence[Tensor]) -> None:
        self.agreement.sums(Place.TENSORS, [])
        tensors.mean_(values)

    @override
    def most(self, numbers: Sequence[float]) -> list[float]:
        self.agreement.sums(Place.TENSORS, [])
        vector = torch.tensor(list(numbers), dtype=torch.float64, device=self.agreement.device)
        dist.all_reduce(vector, dist.ReduceOp.MAX)
        found: list[float] = vector.tolist()
        return found
