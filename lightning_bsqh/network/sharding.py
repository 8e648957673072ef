"""Parameters of which every process holds some rows: DTensors, as ``fully_shard`` makes them (method §5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_bsqh.network.shards import Shards

#: What to say where sharded parameters cannot be trained.
WAY_OUT = (
    "The parameters are sharded (DTensor, by fully_shard), so that no process holds them whole: train with"
    " Trainer(strategy=BSQHStrategy(shard='fsdp')), or without fully_shard."
)


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; told by its method, so that nobody has to import what few need."""
    return hasattr(tensor, "to_local")


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the tensor's own memory: all of it if it is not sharded."""
    whole: Any = tensor.detach()
    return whole.to_local() if is_sharded(tensor) else tensor


def nonzero_counts(tensors: Sequence[Tensor], what: Callable[[Tensor], Tensor] = lambda rows: rows) -> list[int]:
    """How many elements of each tensor are not zero. One transfer from the device.

    If some are sharded, all processes have to ask, for the same ones.

    Args:
        tensors: Any shapes.
        what: Makes what is counted of some rows of a tensor.
    """
    if not tensors:
        return []
    counts = [torch.count_nonzero(what(local_part(t))) for t in tensors]
    found: list[int] = torch.stack([c.to(counts[0].device) for c in counts]).tolist()
    return over_processes(found, tensors)


def over_processes(numbers: Sequence[int], tensors: Sequence[Tensor]) -> list[int]:
    """Whole numbers, each found in what is here of one tensor, for the whole of it.

    Args:
        numbers: One for each tensor.
        tensors: Those that are sharded are so over the same processes.
    """
    sharded = [i for i, t in enumerate(tensors) if is_sharded(t)]
    if not sharded:
        return list(numbers)
    first: Any = tensors[sharded[0]]
    total = torch.tensor([numbers[i] for i in sharded], device=local_part(first).device)
    dist.all_reduce(total, group=first.device_mesh.get_group())
    found = dict(zip(sharded, total.tolist(), strict=True))
    return [found.get(i, number) for i, number in enumerate(numbers)]


def check_no_flat(parameters: Mapping[str, Tensor]) -> None:
    """Refuses the parameters of FullyShardedDataParallel, which are pieces of a flat one.

    They are plain tensors to look at; only the mark ``_fsdp_flattened``, by which torch knows them itself, tells.

    Args:
        parameters: All that are trained, by their full names.

    Raises:
        TypeError: If there is one.
    """
    flat = [name for name, p in parameters.items() if getattr(p, "_fsdp_flattened", False)]
    if flat:
        raise TypeError(
            f"params: {flat[0]} is part of a flat parameter of FullyShardedDataParallel (FSDP1, FSDPStrategy), which"
            " has lost the layers' shapes. Use fully_shard (FSDP2) in configure_model, with"
            " Trainer(strategy=BSQHStrategy(shard='fsdp'))."
        )


class Sharding:
    """The pieces of a training's parameters.

    Args:
        parameters: All of them by their full names, all sharded along dim 0 over the same processes.

    Raises:
        TypeError: If they are not; the message names one that is not.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        for name, parameter in parameters.items():
            _check(name, parameter)
        first: Any = next(iter(parameters.values()))
        self._mesh = first.device_mesh
        self._group = self._mesh.get_group()
        self._rank, self._size = self._mesh.get_local_rank(), self._mesh.size()
        #: Where this process's pieces are.
        self.device = local_part(first).device
        self._aliases: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            if local_part(parameter).shape[0] != self._rows(parameter).stop - self._rows(parameter).start:
                raise TypeError(f"params: the pieces of {name} are not those that torch.chunk makes along dim 0.")

    def pieces(self, parameters: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
        """This process's pieces, with those of the gradients; views of the parameters' own memory.

        Args:
            parameters: Some of the parameters by their full names.

        Returns:
            The pieces; and whether some lie elsewhere than when they were last asked for.
        """
        moved = False
        for name, parameter in parameters.items():
            piece, alias = local_part(parameter), self._aliases.get(name)
            if alias is None or alias.data_ptr() != piece.data_ptr() or alias.shape != piece.shape:
                moved = moved or alias is not None
                alias = self._aliases[name] = piece.detach()
            alias.grad = None if parameter.grad is None else local_part(parameter.grad)
        return {name: self._aliases[name] for name in parameters}, moved

    def release(self) -> None:
        """Lets go of the gradients."""
        for alias in self._aliases.values():
            alias.grad = None

    def shards(self, parameters: Sequence[Tensor]) -> Shards:
        """What a regularizer has to know of some of the parameters."""
        starts = tuple(self._rows(p).start for p in parameters)
        return Shards(tuple(p.shape for p in parameters), starts, self.device, self.add_)

    def add_(self, tensor: Tensor) -> None:
        """Replaces a tensor by its sum over the processes."""
        dist.all_reduce(tensor, group=self._group)

    def whole(self, piece: Tensor, parameter: Tensor) -> Tensor:
        """The tensor of a parameter's shape that is made of such pieces, none of which is sent."""
        like: Any = parameter
        whole: Tensor = type(like).from_local(
            piece, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return whole

    def piece(self, whole: Tensor, parameter: Tensor) -> Tensor:
        """A copy of this process's rows of a tensor of a parameter's shape."""
        rows = local_part(whole) if is_sharded(whole) else whole[self._rows(parameter)]
        return rows.detach().clone()

    def _rows(self, parameter: Tensor) -> slice:
        """As torch.chunk cuts."""
        count = parameter.shape[0]
        each = -(-count // self._size)
        return slice(min(self._rank * each, count), min((self._rank + 1) * each, count))


def _check(name: str, parameter: Any) -> None:
    """Raises TypeError unless it is sharded in the one way that is known here."""
    if not is_sharded(parameter):
        raise TypeError(
            f"params: {name} is not sharded, as shard='fsdp' has it: in configure_model apply fully_shard to the parts"
            " of the network and then to the whole, fully_shard(self.network, mesh=self.device_mesh['data_parallel'])."
        )
    if local_part(parameter).device.type != parameter.device_mesh.device_type:
        raise TypeError(
            f"params: {name} is kept on {local_part(parameter).device}, away from its mesh"
            f" ({parameter.device_mesh.device_type}): leave the offload_policy of fully_shard out."
        )
    if parameter.device_mesh.ndim != 1 or not parameter.placements[0].is_shard(0):
        raise TypeError(
            f"params: {name} is placed as {tuple(parameter.placements)} on a mesh of {parameter.device_mesh.ndim}"
            " dimension(s); only rows over one dimension can be trained: fully_shard with"
            " mesh=self.device_mesh['data_parallel'], without tensor parallelism and shard_placement_fn."
        )
