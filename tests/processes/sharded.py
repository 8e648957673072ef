"""Trainings with parameters of which each of two processes holds some rows."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import lightning.pytorch.callbacks
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from typing_extensions import override

from lightning_bsqh import (
    L0,
    L1,
    L2,
    NM,
    Box,
    BSQHStrategy,
    Budget,
    Cardinality,
    Discrete,
    ElasticNet,
    GroupL0,
    LHalf,
    Regularizer,
)
from lightning_bsqh.callbacks import BSQHMonitor
from tests.problems import smooth_network
from tests.processes.networks import InFull, Manual, normalized_network, rank
from tests.processes.pair import Case
from tests.processes.training import Classes, Recorder, batches, loader, make_trainer, unequal_loader
from tests.processes.trajectories import BACKTRACKING, CURVATURE, scaler

try:
    from torch.distributed.fsdp import fully_shard

    #: Whether fully_shard works without CUDA.
    ON_CPUS = True
except ImportError:  # Before torch 2.6.
    from torch.distributed._composable.fsdp import fully_shard

    ON_CPUS = False

needs_shards_on_cpus = pytest.mark.skipif(not ON_CPUS, reason=f"fully_shard of torch {torch.__version__} needs CUDA")

#: Steps of a trajectory.
STEPS = 30


class ShardedClasses(Classes):
    """Shards its network where the strategy is for that."""

    @override
    def configure_model(self) -> None:
        if self.device_mesh is not None and not any(hasattr(p, "to_local") for p in self.parameters()):
            self.shard(self.device_mesh)

    def shard(self, mesh: Any) -> None:
        """As a user would."""
        *parts, _ = (part for part in self.net.children() if any(True for _ in part.parameters()))
        for part in parts:
            fully_shard(part, mesh=mesh["data_parallel"])
        # The rest, and what keeps its parameters gathered after a forward.
        fully_shard(self.net, mesh=mesh["data_parallel"])


def odd_network() -> nn.Sequential:
    """With numbers of rows that two processes cannot share equally, one row alone, and a scale."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 1), nn.Tanh(), nn.Linear(1, 3)]
    return nn.Sequential(*layers).double()


class StartsAtZero(ShardedClasses):
    """Nothing reaches its first layers at first, and of the last one the rows of one process alone."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 4)).double()
        )
        nn.init.zeros_(self.net[4].weight)
        nn.init.zeros_(self.net[2].weight)
        with torch.no_grad():
            self.net[2].bias.copy_(torch.tensor([0.0, 0.0, 0.5, 0.5]))


class Validated(ShardedClasses):
    """Is validated before the training and after every epoch, which leaves parameters gathered; one layer is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.net[2].requires_grad_(False)

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert self.training_step(batch, batch_idx) > 0.0

    @override
    def val_dataloader(self) -> Any:
        return loader(1)


class ShardedManual(ShardedClasses, Manual):
    """Steps by itself."""


class ShardedInFull(ShardedClasses, InFull):
    """Leaves autocast."""


#: Two micro-batches to a pass.
_FULL = {"batch_mode": "full", "max_steps": -1, "max_epochs": STEPS, "kappa": 0.0}
_EARLY: dict[str, Any] = {"ramp": (0.1, 0.6)}
TRAJECTORIES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "odd rows": {"module": lambda: ShardedClasses(odd_network())},
    "starts at zero": {"module": StartsAtZero, "augmentation": CURVATURE()},
    "starts at zero, L0": {"module": StartsAtZero, "regularizer": L0(rho=1e-4), "augmentation": CURVATURE()},
    "validated": {"module": Validated, "augmentation": CURVATURE()},
    "untested steps": {"trial_every": "auto", "regularizer": L0(rho=1e-4), "max_steps": 80},
    "euclidean": {"metric": "euclidean"},
    "backtracking": {"augmentation": BACKTRACKING(epsilon=1.0), "regularizer": L0(rho=1e-3)},
    "L0": {"regularizer": L0(rho=1e-3), "augmentation": CURVATURE()},
    "L0, euclidean": {"regularizer": L0(rho=1e-3), "metric": "euclidean"},
    "L1": {"regularizer": L1(rho=1e-2), "augmentation": CURVATURE()},
    "L1, euclidean": {"regularizer": L1(rho=1e-2), "metric": "euclidean"},
    "L2": {"regularizer": L2(rho=1e-3), "augmentation": CURVATURE()},
    "L2, euclidean": {"regularizer": L2(rho=1e-3), "metric": "euclidean"},
    "L2 in metric": {"regularizer": L2(rho=1e-3, in_metric=True)},
    "elastic net": {"regularizer": ElasticNet(1e-2, 1e-3)},
    "half": {"regularizer": LHalf(rho=1e-3)},
    "cardinality": {"regularizer": Cardinality(0.7, **_EARLY), "augmentation": CURVATURE()},
    "cardinality, euclidean": {"regularizer": Cardinality(0.8, **_EARLY), "metric": "euclidean"},
    "cardinality by layer": {"regularizer": Cardinality(0.6, scope="layer", **_EARLY), "augmentation": CURVATURE()},
    "cardinality by layer, euclidean": {"regularizer": Cardinality(0.6, scope="layer"), "metric": "euclidean"},
    "cardinality by rows": {"regularizer": Cardinality(0.5, scope="row", **_EARLY)},
    "cardinality at once": {
        "regularizer": Cardinality(0.9, ramp=(0.0, 0.0)),
        "module": lambda: ShardedClasses(odd_network()),
    },
    "outputs": {"regularizer": GroupL0(rho=0.1)},
    "box and sum": {"regularizer": Box(-0.6, 0.6, Cardinality(0.7, **_EARLY)) + L2(rho=1e-3)},
    "discrete": {"regularizer": Discrete([-0.5, 0.0, 0.5], **_EARLY), "augmentation": CURVATURE()},
    "pattern": {"regularizer": NM(1, 2, **_EARLY), "augmentation": CURVATURE()},
    "budget": {"regularizer": Budget(0.4, **_EARLY), "augmentation": CURVATURE()},
    "budget, euclidean": {"regularizer": Budget(0.4, **_EARLY).with_costs([1, 3, 2]), "metric": "euclidean"},
    "full batch": {**_FULL, "regularizer": L0(rho=1e-4), "augmentation": BACKTRACKING()},
    "full batch, unequal": {**_FULL, "loader": unequal_loader, "augmentation": CURVATURE()},
    "accumulated": {"accumulate_grad_batches": 3, "loader": unequal_loader, "augmentation": BACKTRACKING()},
    "accumulated by a schedule": {
        "callbacks": lambda: [GradientAccumulationScheduler({0: 1, 2: 3})],
        "augmentation": CURVATURE(),
    },
    "manual": {"module": ShardedManual, "augmentation": BACKTRACKING()},
    "scaled": {"module": ShardedInFull, "plugins": scaler, "augmentation": CURVATURE()},
    "by names": {"regularizer": {"net.0": L1(rho=1e-3), "net.2": Cardinality(0.6, **_EARLY)}},
}
# The rest with `make test-all`.
_ALWAYS = ("as it comes", "odd rows", "starts at zero", "backtracking", "L0, euclidean", "L1", "L2", "outputs")
_ALWAYS += ("discrete", "pattern", "budget", "full batch", "accumulated")
_ALWAYS += ("validated", "untested steps", "cardinality", "cardinality by layer, euclidean")
#: Those that are tested now.
TESTED = list(TRAJECTORIES) if os.environ.get("ALL_PROCESS_TESTS") else list(_ALWAYS)


def trajectory(folder: Path, name: str, devices: int = 2) -> dict[str, Any]:
    """One of :data:`TRAJECTORIES`, sharded if there are several processes."""
    options = dict(TRAJECTORIES[name])
    module = options.pop("module", lambda: ShardedClasses(smooth_network()))()
    recorder, given = Recorder(), options.pop("loader", loader)(devices)
    of_trainer = {k: options.pop(k) for k in ("max_steps", "max_epochs", "accumulate_grad_batches") if k in options}
    if "plugins" in options:
        of_trainer["plugins"] = options.pop("plugins")()
    callbacks = [recorder, *options.pop("callbacks", list)()]
    strategy = BSQHStrategy(**options, shard=None if devices == 1 else "fsdp")
    of_trainer = {"max_steps": STEPS, "callbacks": callbacks, "use_distributed_sampler": False, **of_trainer}
    trainer = make_trainer(strategy, folder, devices, **of_trainer)
    trainer.fit(module, given)
    optimizer: Any = trainer.strategy.optimizers[0]
    return {**recorder.result(), "end": (optimizer.sparsity(), optimizer.meets_constraint())}


def checkpoint(
    folder: Path,
    name: str,
    part: str,
    devices: int = 2,
    shard: str | None = "fsdp",
    folders: bool = True,
    network: Callable[[], nn.Sequential] = normalized_network,
    before: int = 1,
    **options: Any,
) -> dict[str, Any]:
    """A training of so many epochs of 8 steps and one more: the whole, or that before or after a checkpoint."""
    recorder = Recorder()
    path = folder / f"sharded {name}.ckpt"
    epochs = before if part == "first" else before + 1
    given: dict[str, Any] = {} if shard is None else {"shard": shard, "save_distributed_checkpoint": folders}
    strategy = BSQHStrategy(total_steps=8 * (before + 1), **options, **given)
    steps = {"max_epochs": epochs, "max_steps": -1, "use_distributed_sampler": False}
    trainer = make_trainer(strategy, folder, devices, callbacks=[recorder], **steps)
    module = ShardedClasses(network())
    trainer.fit(module, loader(devices), ckpt_path=path if part == "second" else None, weights_only=True)
    if part == "first":
        trainer.save_checkpoint(path)
    states = trainer.strategy.optimizers[0].state.values()
    return {**recorder.result(), "remembered": sorted({name for state in states for name in state})}


class AtFourth(ShardedClasses):
    """Something becomes of the loss of the second process's fourth batch."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return self.change(loss) if batch_idx == 3 and rank() == 1 else loss


def none(loss: Tensor) -> None:
    """Leaves the batch out."""


def not_a_number(loss: Tensor) -> Tensor:
    return loss * float("nan")


def odd_batch(folder: Path, change: Callable[[Tensor], Any] | None, accumulate: int = 1) -> dict[str, Any]:
    """The second process has no use for its fourth batch, or, without ``change``, does not get one."""
    recorder = Recorder()
    module = ShardedClasses() if change is None else AtFourth(change)
    data = batches([None if i == 3 and rank() == 1 and change is None else i for i in range(8)])
    strategy = BSQHStrategy(shard="fsdp")
    steps = {"max_steps": 8 // accumulate, "accumulate_grad_batches": accumulate}
    trainer = make_trainer(strategy, folder, 2, callbacks=[recorder], use_distributed_sampler=False, **steps)
    trainer.fit(module, data)
    return {**recorder.result(), "global_step": trainer.global_step}


def monitored(folder: Path, devices: int = 2) -> list[dict[str, str]]:
    """The rows of a log with all monitors."""
    logger = CSVLogger(folder, name="sharded and monitored", version=devices)
    strategy = BSQHStrategy(shard=None if devices == 1 else "fsdp")
    options: dict[str, Any] = {"callbacks": [BSQHMonitor(every_n_steps=1)], "log_every_n_steps": 1, "max_steps": 6}
    trainer = make_trainer(strategy, folder, devices, logger=logger, enable_progress_bar=True, **options)
    trainer.fit(ShardedClasses(), loader(devices))
    trainer.strategy.barrier()
    with (folder / "sharded and monitored" / f"version_{devices}" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


class Messages(L.Callback):
    """Counts the messages of the sixth step."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._profile = profile(activities=[ProfilerActivity.CPU])

    @override
    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == 5:
            self._profile.__enter__()

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == 6:
            self._profile.__exit__(None, None, None)
            self.counts = {e.key[6:]: e.count for e in self._profile.key_averages() if e.key.startswith("c10d::")}


def messages(folder: Path, regularizer: Regularizer, precision: str = "32-true") -> dict[str, Any]:
    """Of which kinds a step sends how many, in single precision; and what it found."""
    recorder, counting = Recorder(), Messages()
    # From where it learns within so few steps.
    strategy = BSQHStrategy(regularizer=regularizer, shard="fsdp", epsilon=20.0)
    options: dict[str, Any] = {"callbacks": [recorder, counting], "precision": precision, "max_steps": 20}
    trainer = make_trainer(strategy, folder, 2, **options)
    trainer.fit(Single(smooth_network().float()), loader(2))
    return {**recorder.result(), "messages": counting.counts}


class Single(ShardedClasses):
    """In single precision."""

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step((batch[0].float(), batch[1]), batch_idx)


def cases() -> list[tuple[str, Case]]:
    """All, by name."""
    found: list[tuple[str, Case]] = [(f"sharded, {name}", partial(trajectory, name=name)) for name in TESTED]
    for name, folders in (("folder", True), ("file", False)):
        for part in ("whole", "first", "second"):
            case = partial(checkpoint, name=name, part=part, folders=folders, **_UNTESTED)
            found.append((f"sharded {name}, {part}", case))
    found += [
        # What is saved as one file is what any training saves.
        ("sharded file, second, DDP", partial(checkpoint, name="file", part="second", shard=None, **_UNTESTED)),
        ("sharded file for one", partial(checkpoint, name="for one", part="first", folders=False, **_SMOOTH)),
        ("sharded folder for one", partial(checkpoint, name="folder for one", part="first", **_SMOOTH)),
        ("sharded, for one, second", partial(checkpoint, name="for one", part="second", **_SMOOTH)),
        ("sharded, from one", partial(checkpoint, name="of one", part="second", **_SMOOTH)),
        ("sharded, None", partial(odd_batch, change=none)),
        ("sharded, None, accumulated", partial(odd_batch, change=none, accumulate=2)),
        ("sharded, NaN", partial(odd_batch, change=not_a_number)),
        ("sharded, None from the loader", partial(odd_batch, change=None)),
        ("sharded, monitors", monitored),
        ("messages, L0", partial(messages, regularizer=L0(rho=1e-4))),
        ("messages, cardinality", partial(messages, regularizer=Cardinality(0.7, ramp=(0.0, 0.0)))),
        ("bf16-mixed", partial(messages, regularizer=Cardinality(0.7, **_EARLY), precision="bf16-mixed")),
    ]
    return found


#: The last step before the checkpoint is untested.
_UNTESTED: dict[str, Any] = {"trial_every": 4, "regularizer": L0(rho=1e-4), "before": 9}
_SMOOTH: dict[str, Any] = {"network": smooth_network}
