"""The options that matter only with several processes, checked once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from lightning_bsqh._validation import choice, flag, shown
from lightning_bsqh.network.tree import first_dimension


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """See :class:`~lightning_bsqh.BSQHStrategy` for the meaning of each.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of its range.
    """

    find_unused_parameters: bool = False
    static_graph: bool = False
    broadcast_buffers: bool = True
    process_group_backend: str | None = None
    timeout: timedelta | None = None
    start_method: str | None = None
    weigh_batch: Callable[[Any], int] | None = None
    shard: str | None = None
    save_distributed_checkpoint: bool = True

    @classmethod
    def among(cls, arguments: Mapping[str, Any]) -> ProcessOptions:
        """The options among the arguments of a constructor that takes all of them, its ``locals()``."""
        return cls(**{f.name: arguments[f.name] for f in fields(cls)})

    def __post_init__(self) -> None:
        for name in ("find_unused_parameters", "static_graph", "broadcast_buffers", "save_distributed_checkpoint"):
            flag(name, getattr(self, name))
        self._check_shard()
        backend = self.process_group_backend
        if backend is not None and not isinstance(backend, str):
            raise TypeError(f"process_group_backend must be a name such as 'nccl' or 'gloo', got {shown(backend)}.")
        if self.timeout is not None and not isinstance(self.timeout, timedelta):
            raise TypeError(f"timeout must be a datetime.timedelta, got {shown(self.timeout)}.")
        if self.start_method is not None:
            choice("start_method", self.start_method, ("popen", "spawn", "fork", "forkserver"))
        if self.weigh_batch is not None and not callable(self.weigh_batch):
            raise TypeError(f"weigh_batch must be a function of the batch, got {shown(self.weigh_batch)}.")

    def _check_shard(self) -> None:
        if self.shard is None:
            if not self.save_distributed_checkpoint:
                raise ValueError("save_distributed_checkpoint=False needs shard='fsdp': leave it out.")
            return
        choice("shard", self.shard, ("fsdp",))
        for name in ("find_unused_parameters", "static_graph", "start_method"):
            if getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)!r} is for DDP and not for shard='fsdp': leave it out.")

    def for_model_parallel_strategy(self, processes: int) -> dict[str, Any]:
        """The arguments of Lightning's ModelParallelStrategy for so many processes, all of them for data."""
        given = {} if self.timeout is None else {"timeout": self.timeout}
        return {
            **given,
            "data_parallel_size": processes,
            "tensor_parallel_size": 1,
            "save_distributed_checkpoint": self.save_distributed_checkpoint,
            "process_group_backend": self.process_group_backend,
        }

    def for_ddp_strategy(self) -> dict[str, Any]:
        """The arguments of Lightning's DDPStrategy."""
        given = {} if self.timeout is None else {"timeout": self.timeout}
        return {
            **given,
            "find_unused_parameters": self.find_unused_parameters,
            "static_graph": self.static_graph,
            # Ours come after the step instead of before the forward: then a process that has no batch, or fails before
            # its forward, is not waited for.
            "broadcast_buffers": False,
            "process_group_backend": self.process_group_backend,
            "start_method": self.start_method or _usual_start_method(),
        }

    def samples(self, batch: Any) -> int:
        """By how many samples a process's loss counts among those of all processes.

        Raises:
            ValueError: If ``weigh_batch`` gave no integer of at least 1.
        """
        if self.weigh_batch is None:
            # What has no tensor with a first dimension counts as one: then all processes count alike.
            return first_dimension(batch) or 1
        count = self.weigh_batch(batch)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"weigh_batch must return the number of samples in a batch, at least 1, got {count!r}.")
        return count


def _usual_start_method() -> str:
    """In a notebook there is no script that another process could run."""
    return "fork" if hasattr(sys, "ps1") or sys.flags.interactive else "popen"
