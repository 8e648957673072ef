"""The one device that a Trainer hands over."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_bsqh.namespace import MisconfigurationException, SingleDeviceStrategy


class OneDeviceStrategy(SingleDeviceStrategy):
    """A SingleDeviceStrategy that takes its device from the Trainer, and refuses several."""

    @property
    def parallel_devices(self) -> list[torch.device]:
        """Empty, so that every Trainer hands over its own device; Lightning sets it."""
        return []

    @parallel_devices.setter
    def parallel_devices(self, devices: Sequence[torch.device] | None) -> None:
        devices = list(devices or [])
        if len(devices) > 1:
            raise MisconfigurationException(
                f"BSQHStrategy runs on one device in this version, the Trainer was given {len(devices)}:"
                " pass Trainer(devices=1)."
            )
        if devices:
            self._root_device = torch.device(devices[0])

    @property
    def num_nodes(self) -> int:
        """Number of machines, always 1 in this version."""
        return 1

    @num_nodes.setter
    def num_nodes(self, num_nodes: int) -> None:
        if num_nodes != 1:
            raise MisconfigurationException(
                f"BSQHStrategy runs on one machine in this version, got num_nodes={num_nodes}:"
                " pass Trainer(num_nodes=1)."
            )
