"""Loss and gradient over the data of several processes, of which each has a share (method §9, §13)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from lightning_bsqh._validation import integer
from lightning_bsqh.network.layer_calls import Boundaries
from lightning_bsqh.network.sharding import is_sharded
from lightning_bsqh.processes.agreement import Agreement
from lightning_bsqh.processes.reduction import ProcessReduction


class Share:
    """All the data, in this process.

    Args:
        samples: Their number, where somebody has said so.
    """

    def __init__(self, samples: int | None = None) -> None:
        self._samples = samples

    def ending_all(self) -> AbstractContextManager[None]:
        """Within, an error of one process is one of all."""
        return nullcontext()

    def check(self) -> None:
        """Raises TypeError or ValueError unless the number of samples is an integer of at least 1."""
        if self._samples is not None:
            integer("shard_samples", self._samples, low=1)

    def joined(
        self,
        loss: float,
        gradients: Mapping[str, Tensor | None],
        parameters: Mapping[str, Tensor],
        boundaries: Boundaries | None,
    ) -> tuple[float, dict[str, Tensor | None]]:
        """The mean loss over all samples, and its gradients.

        Raises ValueError if the processes do not hold the same weights.

        Args:
            loss: That over this process's own samples.
            gradients: Those of that loss in double precision, by the parameters' names; may be overwritten.
            parameters: The parameters themselves.
            boundaries: States and adjoints of the layers for its own samples; they count by these afterwards.
        """
        return loss, dict(gradients)

    def mean(self, value: float) -> float:
        """The mean of a number over the processes."""
        return value

    def everywhere(self, found: bool) -> bool:
        """Whether all processes have found something."""
        return found


class ShareOfProcess(Share):
    """Some of the data, and the others in the other processes of the default group.

    Args:
        samples: Number of samples that are here.
        device: Where the network lives.
    """

    def __init__(self, samples: int, device: torch.device) -> None:
        super().__init__(samples)
        self._own = samples
        self._device = device
        self._reduction = ProcessReduction(Agreement(device, "the certificate"))

    @override
    @contextmanager
    def ending_all(self) -> Iterator[None]:
        agreement = self._reduction.agreement
        try:
            yield
        except Exception as error:
            if agreement.is_over:
                raise
            first = agreement.fail(error)
            if first is error:
                raise
            raise first from error

    def _check_weights(self, parameters: Mapping[str, Tensor]) -> None:
        """Raises ValueError if the processes do not hold the same."""
        sizes = [float(p.detach().double().norm()) for p in parameters.values()]
        largest = self._reduction.most([*sizes, *(-size for size in sizes)])
        for i, name in enumerate(parameters):
            # Devices of several kinds may sum in several orders.
            if largest[i] + largest[len(sizes) + i] > 1e-6 * largest[i]:
                raise ValueError(
                    f"The processes hold different weights in {name}, so there is no certificate of one network: load"
                    " the same ones in all, or leave shard_samples out."
                )

    @override
    def joined(
        self,
        loss: float,
        gradients: Mapping[str, Tensor | None],
        parameters: Mapping[str, Tensor],
        boundaries: Boundaries | None,
    ) -> tuple[float, dict[str, Tensor | None]]:
        self._check_weights(parameters)
        reduction = self._reduction
        reduction.begin(torch.tensor(loss, dtype=torch.float64), self._own)
        if boundaries is not None:
            boundaries.weigh([reduction.factor])
        reached = reduction.most([float(g is not None) for g in gradients.values()])
        weighted: dict[str, Tensor | None] = {}
        for (name, own), is_reached in zip(gradients.items(), reached, strict=True):
            # Whoever does not depend on it counts with a gradient of zero.
            zero = torch.zeros(parameters[name].shape, dtype=torch.float64, device=self._device)
            weighted[name] = (zero if own is None else own.mul_(reduction.factor)) if is_reached else None
        reduction.mean_([g for g in weighted.values() if g is not None])
        return reduction.loss, weighted

    @override
    def mean(self, value: float) -> float:
        return self._reduction.mean(value)

    @override
    def everywhere(self, found: bool) -> bool:
        return not self._reduction.most([float(not found)])[0]


def share_of(model: nn.Module, samples: int | None) -> Share:
    """This process's share of the data.

    Args:
        model: The network.
        samples: Number of samples of this process's share, checked by :meth:`Share.check`; None if it has all the data.
    """
    if samples is None or not dist.is_initialized() or dist.get_world_size() == 1:
        return Share(samples)
    first = next(model.parameters(), None)
    return ShareOfProcess(samples, torch.device("cpu") if first is None else first.device)


def refuse_wrapped(model: nn.Module) -> None:
    """Raises ValueError for a network that no process can evaluate by itself."""
    if any(map(is_sharded, model.parameters())):
        raise ValueError(
            "model is sharded (DTensor, by fully_shard), so that no process holds its weights whole: save one file, by"
            " BSQHStrategy(shard='fsdp', save_distributed_checkpoint=False), and load it into a network that is not."
        )
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError(
            "model is or holds a DistributedDataParallel, which would reduce gradients by itself: pass the network"
            " within, model.module, and let loss_closure run that."
        )
