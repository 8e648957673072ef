"""The one place where an iteration looks at numbers on the device, and where processes agree (method §5, §13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

#: Names of what :meth:`Reduction.read` is given that differs from process to process: means over its own samples.
PER_PROCESS = frozenset({"trial", "base"})


class ProcessError(RuntimeError):
    """Another process has ended the training."""


class Reduction:
    """Brings the scalars that decisions are taken on to the host, all at once.

    With one process they are taken as they are. Whoever joins several overrides all methods: then every process calls
    them in the same order, and gets the same.
    """

    #: Whether the parameters here are whole, and not some rows of them.
    has_all_rows = True

    def read(self, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        """One transfer from the device for all of them.

        Args:
            values: Scalars by name, tensors of shape ``[]`` of any dtype or numbers.

        Returns:
            The same as numbers, in double precision where the device has it.
        """
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        found = {name: float(value) for name, value in values.items() if name not in tensors}
        if tensors:
            found |= dict(zip(tensors, stacked(list(tensors.values())).tolist(), strict=True))
        return found

    def miss(self) -> None:
        """Instead of :meth:`read`, by who has nothing to read as loss or gradient are not finite."""
        return

    def reached(self, gradients: Sequence[Tensor | None]) -> list[bool] | None:
        """Whether each gradient has an element that is not zero in any process.

        Returns:
            None if all rows are here, so that the device can tell in its own time.
        """
        return None

    def totals(self, values: Sequence[float]) -> list[float]:
        """Numbers that belong to the rows here, summed over all."""
        return list(values)

    def mean(self, value: float) -> float:
        """The mean of a number over the processes."""
        return value

    def mean_(self, values: Sequence[Tensor]) -> None:
        """Replaces tensors by their means over the processes."""
        return

    def most(self, numbers: Sequence[float]) -> list[float]:
        """The largest of every number over the processes."""
        return list(numbers)


def stacked(scalars: Sequence[Tensor]) -> Tensor:
    """Scalars of any dtype side by side, shape ``[n]``, in double precision where the device has it."""
    device = scalars[0].device
    plain = [s if s.dim() == 0 else s.reshape(()) for s in scalars]
    # One in double precision makes all of them so.
    plain[0] = plain[0].to(torch.float32 if device.type == "mps" else torch.float64)
    return torch.stack([s if s.device == device else s.to(device) for s in plain])
