"""How a strategy for one process becomes one for several, once the Trainer has said how many there are (method §7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_bsqh.namespace import DDPStrategy, ModelParallelStrategy, ParallelStrategy, Strategy
from lightning_bsqh.strategy.refusals import refuse_several
from lightning_bsqh.strategy.several import Several


def become_several(strategy: Strategy, devices: Sequence[torch.device], num_nodes: int) -> None:
    """Makes a strategy for one process one for several, with all that it has been given.

    It is an instance of its own class still, and of DDPStrategy or ModelParallelStrategy, by which Lightning knows what
    it has to distribute.

    Args:
        strategy: The strategy; it has not been set up yet.
        devices: Those of this machine, one process each.
        num_nodes: Number of machines.

    Raises:
        MisconfigurationException: If it decides on the device.
    """
    options: Any = vars(strategy)["_process_options"]
    refuse_several(vars(strategy)["_options"].decide, options.shard)
    plain: ParallelStrategy
    if options.shard is None:
        kind: type = Several
        plain = DDPStrategy(parallel_devices=list(devices), **options.for_ddp_strategy())
    else:
        # Only here, as most trainings need nothing of it.
        from lightning_bsqh.strategy.sharded import Sharded

        kind = Sharded
        plain = ModelParallelStrategy(**options.for_model_parallel_strategy(len(devices) * num_nodes))
        plain.parallel_devices = list(devices)
    own = {name: value for name, value in vars(strategy).items() if name not in _OF_ONE}
    vars(strategy).clear()
    vars(strategy).update({**vars(plain), **own})
    strategy.__class__ = _several_of(kind, type(strategy))
    several: Any = strategy
    several.num_nodes = num_nodes


#: What a SingleDeviceStrategy keeps and several processes ask of their environment, or have another of: DDPStrategy's
#: own redirection keeps DistributedDataParallel from waiting for a backward that manual optimization has done.
_OF_ONE = ("global_rank", "local_rank", "world_size", "_root_device", "_devices", "_forward_redirection")
_KINDS: dict[tuple[type, type], type] = {}


def _several_of(several: type, kind: type) -> type:
    """The class of the same name for several processes."""
    if (several, kind) not in _KINDS:
        body = {"__reduce__": _reduced, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        own = {"__doc__": kind.__doc__, "_kinds": (several, kind)}
        _KINDS[several, kind] = type(kind)(kind.__name__, (several, kind), {**body, **own})
    return _KINDS[several, kind]


def _reduced(strategy: Any) -> Any:
    # By its class for one process, as the one for several has no place of its own to be imported from.
    return _restored, (*strategy._kinds, dict(vars(strategy)))


def _restored(several: type, kind: type, state: dict[str, Any]) -> Any:
    made: Any = object.__new__(_several_of(several, kind))
    vars(made).update(state)
    return made
