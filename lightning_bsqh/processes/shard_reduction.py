"""The decisions of several processes of which each holds some rows of the parameters (method §5, §13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.method.reduction import PER_PROCESS, stacked
from lightning_bsqh.processes.reduction import ProcessReduction

#: What has to hold in every process.
_EVERYWHERE = frozenset({"admitted", "enough"})
#: What all processes have.
_COMMON = frozenset({"loss"})


class ShardReduction(ProcessReduction):
    """Adds up what every process has found in its own rows.

    The largest element of the gradient is replaced by the sum of the largest of every process, which is at least as
    large, and not finite if one of them is not.
    """

    has_all_rows = False

    @override
    def read(self, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        found = super().read(values)
        return found | {name: float(found[name] == 0.0) for name in _EVERYWHERE & found.keys()}

    @override
    def _part(self, name: str, value: Tensor | float) -> Tensor | float:
        if name in PER_PROCESS or name in _COMMON:
            return super()._part(name, value)
        if name in _EVERYWHERE:
            # In how many it does not hold.
            return (~value).double() if isinstance(value, Tensor) else float(not value)
        return value

    @override
    def reached(self, gradients: Sequence[Tensor | None]) -> list[bool] | None:
        own = [torch.zeros(()) if g is None else g.any() for g in gradients]
        return [bool(found) for found in self.most(stacked(own).tolist())] if own else []

    @override
    def totals(self, values: Sequence[float]) -> list[float]:
        vector = torch.tensor(list(values), dtype=torch.float64, device=self.agreement.device)
        self.agreement.add_(vector)
        found: list[float] = vector.tolist()
        return found
