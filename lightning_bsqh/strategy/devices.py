"""The devices that a Trainer hands over: one, or several with a process for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_bsqh.namespace import ClusterEnvironment, LayerSync, SingleDeviceStrategy


class DevicesStrategy(SingleDeviceStrategy):
    """A SingleDeviceStrategy that takes its device from the Trainer, and becomes a DDPStrategy if there are several.

    Only the Trainer knows how many there are, and it says so after the strategy has been made. With one there is no
    process group, and nothing of Lightning's that is for several (a sampler that shuffles by its own seed, say).
    """

    #: Set by the Trainer before it tells the devices.
    cluster_environment: ClusterEnvironment | None = None
    _layer_sync: LayerSync | None = None
    _devices: Sequence[torch.device] = ()
    #: Whether one device, too, needs what several processes need.
    _always_several = False

    @property
    def parallel_devices(self) -> list[torch.device]:
        """Empty, so that every Trainer hands over its own devices; Lightning sets it."""
        return []

    @parallel_devices.setter
    def parallel_devices(self, devices: Sequence[torch.device] | None) -> None:
        self._devices = list(devices or [])
        if self._devices:
            self._root_device = torch.device(self._devices[0])

    @property
    def num_nodes(self) -> int:
        """Number of machines, 1 as long as there is one process; Lightning sets it once it has set the devices."""
        return 1

    @num_nodes.setter
    def num_nodes(self, num_nodes: int) -> None:
        if num_nodes * max(len(self._devices), 1) > 1 or self._always_several:
            # Only here, as most trainings have one process and need nothing of it.
            from lightning_bsqh.strategy.becoming import become_several

            become_several(self, list(self._devices), num_nodes)
