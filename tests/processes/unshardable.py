"""What cannot be trained sharded, each as a user would try it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import lightning.pytorch.callbacks
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from typing_extensions import override

from lightning_bsqh import BSQHStrategy, GroupL0
from lightning_bsqh.callbacks import PictureMonitor, SparseCheckpoint
from lightning_bsqh.optimizer import BSQHOptimizer
from tests.problems import smooth_network
from tests.processes.networks import Unfamiliar, rank
from tests.processes.pair import Case
from tests.processes.sharded import ShardedClasses, fully_shard
from tests.processes.training import Classes, batches, fit_error


def ends(
    folder: Path,
    module: Callable[[], L.LightningModule] = ShardedClasses,
    broken_loader: bool = False,
    sync_batchnorm: bool = False,
    writes: bool = False,
    callback: Callable[[], L.Callback] | None = None,
    **options: Any,
) -> tuple[str, str, bool]:
    """Kind and text of the error that a training ends with, and whether the weights are those before the step."""
    data = batches([-1 if i == 3 and rank() == 1 and broken_loader else i for i in range(8)])
    given = {"shard": "fsdp", **options}
    callbacks = [] if callback is None else [callback()]
    trainer: dict[str, Any] = {"max_steps": 8, "callbacks": callbacks}
    trainer |= {"sync_batchnorm": sync_batchnorm, "enable_checkpointing": writes}
    return fit_error(folder, module(), data, BSQHStrategy(**given), **trainer)


def flat(folder: Path) -> list[str]:
    """What BSQHOptimizer says of FullyShardedDataParallel, FSDP1."""
    found = []
    for original in (False, True):
        net = FullyShardedDataParallel(smooth_network(), use_orig_params=original, device_id=torch.device("cpu"))
        for given in (net, net.parameters()):
            try:
                BSQHOptimizer(given)
            except TypeError as error:
                found.append(str(error))
    return found


class PartlySharded(ShardedClasses):
    """Its last layer is whole everywhere."""

    @override
    def shard(self, mesh: Any) -> None:
        fully_shard(self.net[0], mesh=mesh["data_parallel"])


class OnTwoDimensions(ShardedClasses):
    """On the mesh of data and tensor parallelism at once."""

    @override
    def shard(self, mesh: Any) -> None:
        fully_shard(self.net, mesh=mesh)


class Unshardable(Classes):
    """Does not shard at all."""

    @override
    def configure_model(self) -> None:
        return


class Thaws(ShardedClasses):
    """Freezes a layer within the training."""

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self.net[0].weight.requires_grad_(False)


class ShardsByItself(ShardedClasses):
    """Shards without the strategy's mesh."""

    @override
    def configure_model(self) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        fully_shard(self.net, mesh=init_device_mesh("cpu", (2,)))


def unfamiliar() -> L.LightningModule:
    torch.manual_seed(0)
    return ShardedClasses(nn.Sequential(Unfamiliar(6), nn.Tanh(), nn.Linear(6, 3).double()))


sparse_files = partial(SparseCheckpoint, sparse_file=True)
#: What is refused before training, and what the message names.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gauss-seidel": ({"sweep": "gauss-seidel"}, "use sweep='jacobi'"),
    "SyncBatchNorm": ({"sync_batchnorm": True}, "convert_sync_batchnorm in configure_model"),
    "not affine": ({"module": unfamiliar}, r"\(net.0\): put torch.nn's own layers in their place"),
    "inputs": ({"regularizer": GroupL0(groups="input")}, "GroupL0.*cannot be used with shard='fsdp'"),
    "partly sharded": ({"module": PartlySharded}, "net.2.weight is not sharded"),
    "not sharded": ({"module": Unshardable}, "net.0.weight is not sharded"),
    "no configure_model": ({"module": Classes}, "configure_model"),
    "two dimensions": ({"module": OnTwoDimensions}, "only rows over one dimension"),
    "sparse files": ({"callback": sparse_files, "writes": True}, "files: add save_distributed_checkpoint=False"),
    "pictures": ({"callback": PictureMonitor}, "PictureMonitor needs whole weights"),
    "not announced": ({"module": ShardsByItself, "shard": None}, r"strategy=BSQHStrategy\(shard='fsdp'\)"),
    "frozen later": ({"module": Thaws}, "frozen or unfrozen within the training"),
}
if hasattr(L.pytorch.callbacks, "EMAWeightAveraging"):  # From Lightning 2.6 on.
    REFUSED["averaging"] = (
        {"callback": L.pytorch.callbacks.EMAWeightAveraging},
        "WeightAveraging, which copies the module",
    )


def cases() -> list[tuple[str, Case]]:
    """All, by name; others come before them."""
    found: list[tuple[str, Case]] = [("flat parameters", flat), ("sharded, loader", partial(ends, broken_loader=True))]
    return found + [(f"refused: {name}", partial(ends, **options)) for name, (options, _) in REFUSED.items()]
