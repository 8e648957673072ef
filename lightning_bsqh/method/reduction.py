"""The one place where an iteration looks at numbers on the device, and where processes agree (method §5, §13)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Reduction:
    """Brings the scalars that decisions are taken on to the host, all at once.

    With one process they are taken as they are. Whoever joins several overrides :meth:`read`.
    """

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
            found |= dict(zip(tensors, _stacked(list(tensors.values())).tolist(), strict=True))
        return found


def _stacked(scalars: list[Tensor]) -> Tensor:
    device = scalars[0].device
    plain = [s if s.dim() == 0 else s.reshape(()) for s in scalars]
    # One in double precision makes all of them so.
    plain[0] = plain[0].to(torch.float32 if device.type == "mps" else torch.float64)
    return torch.stack([s if s.device == device else s.to(device) for s in plain])
