"""The sweeps that an optimizer makes for itself where nobody brings others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from lightning_bsqh.sweeps.base import Sweeps
from lightning_bsqh.sweeps.closure import ClosureSweeps
from lightning_bsqh.sweeps.closure_full_batch import ClosureFullBatch
from lightning_bsqh.sweeps.full_batch_options import FullBatch


class OwnSweeps:
    """Sweeps through the closure that ``step`` is given.

    Args:
        parameters: Gives the parameters that are trained.
        module: The network, None if unknown.
        full_batch: The options of full-batch mode, None in mini-batch mode.
    """

    def __init__(
        self, parameters: Callable[[], list[Tensor]], module: nn.Module | None, full_batch: FullBatch | None
    ) -> None:
        self._mini = ClosureSweeps(parameters, module) if full_batch is None else None
        self._full = ClosureFullBatch(parameters, module, full_batch) if full_batch is not None else None

    def on(self, batches: Iterable[Any] | None) -> Sweeps:
        """The sweeps of the next iteration.

        Args:
            batches: Full-batch mode: the micro-batches; None if the closure goes over the whole data by itself.

        Raises:
            ValueError: If there are batches in mini-batch mode.
        """
        if self._full is not None:
            self._full.hand_over(batches)
            return self._full
        if batches is not None:
            raise ValueError("batches is for batch_mode='full': choose that mode, or call step for every batch.")
        assert self._mini is not None
        return self._mini
