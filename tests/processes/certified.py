"""Certificates of a network whose data are shared out among the processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from lightning_bsqh import L0, L1, Box, BSQHStrategy, Cardinality, PMPResidual, pmp_residual
from tests.problems import cross_entropy, data, smooth_network
from tests.processes.networks import bent_network, fail, rank
from tests.processes.pair import Case
from tests.processes.sharded import ShardedClasses
from tests.processes.training import BATCH, Classes, Recorder, loader, make_trainer

#: Samples of all processes; the first has three quarters of them.
SAMPLES = 40
CERTIFIED: dict[str, dict[str, Any]] = {
    "L1": {"regularizer": L1(rho=1e-3)},
    "L0, rms": {"regularizer": L0(rho=1e-4), "metric": "rms"},
    "box": {"regularizer": Box(-5.0, 5.0, L0(rho=1e-4))},
    "cardinality": {"regularizer": Cardinality(0.0), "epsilon": 0.5},
    "true K": {"regularizer": L1(rho=1e-3), "network": bent_network, "samples": 8},
}


def share(devices: int) -> tuple[Tensor, Tensor]:
    """This process's samples."""
    x, y = data(SAMPLES)
    most = SAMPLES * 3 // 4
    own = slice(None) if devices == 1 else (slice(most), slice(most, None))[rank()]
    return x[own], y[own]


def numbers(found: PMPResidual) -> dict[str, Any]:
    """All that a certificate says, as what can be compared."""
    layers = {f"{name}: {key}": value for name, layer in found.layers.items() for key, value in vars(layer).items()}
    own = {key: value for key, value in vars(found).items() if key != "layers"}
    return {**own, **layers, "satisfied": found.satisfied(1e-6)}


def certificate(folder: Path, name: str, devices: int = 2) -> dict[str, Any]:
    """One of :data:`CERTIFIED`, in all processes."""
    options = dict(CERTIFIED[name])
    network = options.pop("network", smooth_network)()
    x, y = share(devices)
    return numbers(pmp_residual(network, lambda: cross_entropy(network, x, y), shard_samples=len(y), **options))


class Certifies(L.Callback):
    """Certifies the network after every epoch, on this process's part of its data, and logs it once."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        batches = list(loader(trainer.world_size, batch=8 * BATCH))
        x, y = batches[0]
        optimizer: Any = trainer.strategy.optimizers[0]
        regularizer = optimizer.regularizer.at(optimizer.iterations - 1, optimizer.total_steps)
        metric, loss = optimizer.metric_weights(), partial(cross_entropy, pl_module.net, x, y)
        found = pmp_residual(pl_module, loss, regularizer=regularizer, metric=metric, shard_samples=len(y))
        self.found.append(numbers(found))
        pl_module.log("certificate", found.total, rank_zero_only=True)


def in_training(folder: Path, devices: int = 2) -> dict[str, Any]:
    """Certificates within a training, which they do not change."""
    certifies, recorder = Certifies(), Recorder()
    options: dict[str, Any] = {"max_epochs": 2, "max_steps": -1, "use_distributed_sampler": False}
    trainer = make_trainer(BSQHStrategy(), folder, devices, callbacks=[certifies, recorder], **options)
    trainer.fit(Classes(), loader(devices))
    return {**recorder.result(), "found": certifies.found, "logged": dict(trainer.logged_metrics)}


class CertifiesSharded(Certifies):
    """Keeps what it is told instead."""

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.found.append({"error": said(pl_module, lambda: pl_module.net(data()[0]).sum())})


def of_sharded(folder: Path) -> str:
    """What a certificate of sharded parameters says."""
    certifies = CertifiesSharded()
    trainer = make_trainer(BSQHStrategy(shard="fsdp"), folder, 2, callbacks=[certifies], max_epochs=1, max_steps=2)
    trainer.fit(ShardedClasses(), loader(2))
    return str(certifies.found[0]["error"])


def said(network: nn.Module, loss: Callable[[], Any], samples: int = 10) -> str:
    """The error with which a certificate ends."""
    try:
        pmp_residual(network, loss, regularizer=L0(rho=1e-4), shard_samples=samples)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def error(folder: Path, what: str) -> str:
    """Something is wrong in the second process."""
    network, (x, y) = smooth_network(rank() if what == "weights" else 0), share(2)
    wrong = rank() == 1
    if what == "wrapped":
        wrapped = DistributedDataParallel(network)
        return said(wrapped, lambda: cross_entropy(wrapped, x, y))
    if what == "closure" and wrong:
        return said(network, lambda: fail(network))
    factor = float("inf") if what == "loss" and wrong else 1.0
    return said(network, lambda: factor * cross_entropy(network, x, y), 0 if what == "samples" and wrong else len(y))


ERRORS = ("closure", "loss", "samples", "weights", "wrapped")


def cases() -> list[tuple[str, Case]]:
    """All, by name; others come before them, in which a process group has been made."""
    found: list[tuple[str, Case]] = [(f"certificate, {name}", partial(certificate, name=name)) for name in CERTIFIED]
    found += [("certificate, in training", in_training), ("certificate, sharded", of_sharded)]
    return found + [(f"certificate, {what}", partial(error, what=what)) for what in ERRORS]
