"""What the two processes of the tests do, in this order."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from typing_extensions import override

from lightning_bsqh import BSQHStrategy
from lightning_bsqh.callbacks import BSQHMonitor
from tests.processes import certified, sharded, unshardable
from tests.processes.networks import (
    AtBatch,
    Manual,
    ManualAtBatch,
    ManualFailsInClosure,
    fail,
    normalized_network,
    not_a_number,
    nothing,
    rank,
)
from tests.processes.pair import Case
from tests.processes.training import (
    Classes,
    Recorder,
    batches,
    fit,
    fit_error,
    loader,
    make_trainer,
    unequal_loader,
)
from tests.processes.trajectories import OPTIONS, TESTED
from tests.strategy.small_modules import rejecting


def trajectory(folder: Path, name: str, devices: int = 2) -> dict[str, Any]:
    """One of :data:`OPTIONS`."""
    options = dict(OPTIONS[name])
    module = options.pop("module", Classes)()
    return fit(folder, devices, module, **options)


def unequal(folder: Path, devices: int = 2, full: bool = False) -> dict[str, Any]:
    """Of every batch of 12 the first process has 9 samples, the second 3."""
    recorder = Recorder()
    options: dict[str, Any] = {"batch_mode": "full", "kappa": 0.0, "max_iterations": 8} if full else {}
    trainer = make_trainer(
        BSQHStrategy(**options), folder, devices, callbacks=[recorder], use_distributed_sampler=False
    )
    trainer.fit(Classes(), unequal_loader(devices))
    return recorder.result()


class Starts(Classes):
    """Notes the buffers with which every forward sweep begins."""

    def __init__(self) -> None:
        super().__init__(normalized_network())
        self.starts: list[Tensor] = []

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if torch.is_grad_enabled():
            self.starts.append(torch.cat([b.double().flatten() for b in self.buffers()]).clone())
        return super().training_step(batch, batch_idx)

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def buffers(folder: Path, ours: bool) -> list[Tensor]:
    """The running statistics of a training that moves nothing, ours or Lightning's DDP."""
    module = Starts()
    strategy: Any = rejecting(max_trials=2) if ours else DDPStrategy()
    make_trainer(strategy, folder, 2, max_steps=10).fit(module, loader(2))
    return module.starts


def checkpoint(folder: Path, name: str, part: str, devices: int = 2, network: Any = None) -> dict[str, Any]:
    """A training of 16 steps: the whole, or its first or second half with a checkpoint between them."""
    recorder = Recorder()
    path = folder / f"{name}.ckpt"
    epochs = {"max_epochs": 1 if part == "first" else 2, "max_steps": -1}
    trainer = make_trainer(BSQHStrategy(total_steps=16), folder, devices, callbacks=[recorder], **epochs)
    module = Classes(None if network is None else network())
    resumed = path if part == "second" else None
    trainer.fit(module, loader(devices), ckpt_path=resumed, weights_only=True)
    if part == "first":
        trainer.save_checkpoint(path)
    return recorder.result()


def odd_batch(folder: Path, what: Any, **options: Any) -> dict[str, Any]:
    """Something is wrong with the second process's fourth batch; nobody fails."""
    recorder = Recorder()
    trainer = make_trainer(BSQHStrategy(**options), folder, 2, callbacks=[recorder], max_steps=8)
    trainer.fit(AtBatch(what, 3, 1), loader(2))
    optimizer: Any = trainer.strategy.optimizers[0]
    return {**recorder.result(), "global_step": trainer.global_step, "skipped": optimizer.skipped}


def scaled_batch(folder: Path) -> dict[str, Any]:
    """Under a scaler the second process's fourth loss is not finite."""
    recorder, plugins = Recorder(), OPTIONS["scaled"]["plugins"]()
    trainer = make_trainer(BSQHStrategy(), folder, 2, callbacks=[recorder], max_epochs=1, max_steps=-1, plugins=plugins)
    trainer.fit(AtBatch(not_a_number, 3, 1), loader(2))
    optimizer: Any = trainer.strategy.optimizers[0]
    return {**recorder.result(), "scale": plugins[0].scaler.get_scale(), "skipped": optimizer.skipped}


def none_from_loader(folder: Path, module: Any = Classes) -> dict[str, Any]:
    """The second process's data loader gives None instead of its fourth batch."""
    recorder = Recorder()
    trainer = make_trainer(BSQHStrategy(), folder, 2, callbacks=[recorder], max_steps=8, use_distributed_sampler=False)
    trainer.fit(module(), batches([None if i == 3 and rank() == 1 else i for i in range(8)]))
    return {**recorder.result(), "global_step": trainer.global_step}


def ends(folder: Path, module: Any = None, places: Any = None, **options: Any) -> tuple[str, str, bool]:
    """Kind and text of the error that a training ends with, and whether the weights are those before the step."""
    given = batches(list(range(8) if places is None else places()))
    of_trainer = {key: options.pop(key) for key in ("accumulate_grad_batches",) if key in options}
    of_trainer["max_steps"] = -1 if options.get("batch_mode") == "full" else 8
    return fit_error(folder, Classes() if module is None else module(), given, BSQHStrategy(**options), **of_trainer)


def options_of_ddp(folder: Path) -> dict[str, Any]:
    """What DistributedDataParallel and its group have been told, in the middle of a training."""
    found: dict[str, Any] = {}

    class Looks(L.Callback):
        @override
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            wrapped: Any = trainer.strategy.model
            found.update(unused=wrapped.find_unused_parameters, static=wrapped.static_graph)
            found["backend"] = dist.get_backend(wrapped.process_group)

    strategy = BSQHStrategy(find_unused_parameters=True, static_graph=True, process_group_backend="gloo")
    make_trainer(strategy, folder, 2, callbacks=[Looks()], max_steps=2).fit(Classes(), loader(2))
    return found


def monitors(folder: Path, devices: int = 2) -> tuple[list[str], list[str]]:
    """The columns of a log with all monitors, and the step of every row, as the file has them."""
    logger = CSVLogger(folder, name="monitored", version=devices)
    callbacks: list[L.Callback] = [BSQHMonitor(every_n_steps=1), LearningRateMonitor()]
    trainer = make_trainer(
        BSQHStrategy(), folder, devices, callbacks=callbacks, logger=logger, max_steps=6, log_every_n_steps=1
    )
    trainer.fit(Classes(), loader(devices))
    trainer.strategy.barrier()
    with (folder / "monitored" / f"version_{devices}" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return sorted(rows[0]), [row["step"] for row in rows]


def _raises(**options: Any) -> Any:
    return partial(AtBatch, fail, 3, 1, **options)


def cases() -> list[tuple[str, Case]]:
    """All, by name."""
    found: list[tuple[str, Case]] = [(name, partial(trajectory, name=name)) for name in TESTED]
    found += [("unequal", unequal), ("unequal, full batch", partial(unequal, full=True))]
    found += [("buffers", partial(buffers, ours=True)), ("buffers of DDP", partial(buffers, ours=False))]
    for name, network in (("plain", None), ("drawing", normalized_network)):
        for part in ("whole", "first", "second"):
            found.append((f"{name}, {part}", partial(checkpoint, name=name, part=part, network=network)))
    found += [("resumed from one", partial(checkpoint, name="of one", part="second"))]
    found += [
        ("None", partial(odd_batch, what=nothing)),
        ("NaN", partial(odd_batch, what=not_a_number)),
        ("NaN, scaled", scaled_batch),
        ("None from the loader", none_from_loader),
        ("None from the loader, manual", partial(none_from_loader, module=Manual)),
        ("monitors", monitors),
        ("options of DDP", options_of_ddp),
    ]
    found += [(f"ends: {name}", partial(ends, **options)) for name, options in ENDS.items()]
    return found + certified.cases() + sharded.cases() + unshardable.cases()


def _broken_loader() -> list[int]:
    return [-1 if i == 3 and rank() == 1 else i for i in range(8)]


def _shorter_loader() -> list[int]:
    return list(range(8 - rank()))


def _first_fails_too() -> Any:
    return AtBatch(fail, 3, rank())


#: Trainings that one process or both end.
ENDS: dict[str, dict[str, Any]] = {
    "forward": {"module": _raises()},
    "trial": {"module": _raises(in_trial=True)},
    "trial, gauss-seidel": {"module": _raises(in_trial=True), "sweep": "gauss-seidel"},
    "full batch": {"module": _raises(), "batch_mode": "full"},
    "full batch, trial": {"module": _raises(in_trial=True), "batch_mode": "full"},
    "accumulated": {"module": _raises(), "accumulate_grad_batches": 3},
    "loader": {"places": _broken_loader},
    "shorter loader": {"places": _shorter_loader},
    "both": {"module": _first_fails_too},
    "manual": {"module": partial(ManualAtBatch, fail)},
    "manual, closure": {"module": ManualFailsInClosure},
    "manual, more steps": {"module": partial(ManualAtBatch, steps=2)},
    "manual, fewer steps": {"module": partial(ManualAtBatch, steps=0)},
}
