"""A small training in float64, alike in one process and in several."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from typing_extensions import override

from lightning_bsqh import BSQHStrategy
from lightning_bsqh.optimizer import BSQHOptimizer
from tests.problems import cross_entropy, data, smooth_network

#: Samples of one step, over all processes.
BATCH = 12
STEPS = 50


class Classes(L.LightningModule):
    """Three classes of noisy data by a smooth network."""

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        self.net = smooth_network() if network is None else network

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return cross_entropy(self.net, *batch)


class Recorder(L.Callback):
    """Parameters, buffers, ε and report after every step."""

    def __init__(self) -> None:
        self.points: list[Tensor] = []
        self.buffers: list[Tensor] = []
        self.reports: list[tuple[Any, ...]] = []

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        optimizer = trainer.strategy.optimizers[0]
        assert isinstance(optimizer, BSQHOptimizer)
        report = optimizer.last_step
        if report is None:
            return
        self.points.append(torch.cat([whole(p.detach()).flatten() for p in pl_module.parameters()]))
        self.buffers.append(torch.cat([torch.zeros(1), *(b.detach().flatten() for b in pl_module.buffers())]))
        epsilon = optimizer.augmentation.epsilon
        self.reports.append((*(v if v == v else -1.0 for v in vars(report).values()), epsilon))

    def result(self) -> dict[str, Any]:
        return {"points": torch.stack(self.points), "buffers": torch.stack(self.buffers), "reports": self.reports}


def whole(tensor: Tensor) -> Tensor:
    """The tensor, of whose rows this process may hold only some."""
    found: Any = tensor
    return found.full_tensor() if hasattr(tensor, "full_tensor") else found


def loader(devices: int, batch: int = BATCH, samples: int = 8 * BATCH) -> DataLoader[Any]:
    """Batches in their order; of each of ``batch`` samples every process gets an equal share."""
    found = TensorDataset(*data(samples))
    if devices == 1:
        return DataLoader(found, batch_size=batch)
    sampler = DistributedSampler(found, devices, int(os.environ["RANK"]), shuffle=False)
    return DataLoader(found, batch_size=batch // devices, sampler=sampler)


def unequal_loader(devices: int) -> DataLoader[Any]:
    """Of every batch of 12 the first process has 9 samples, the second 3."""
    shares = [range(BATCH)] if devices == 1 else [range(9), range(9, BATCH)]
    own = shares[int(os.environ.get("RANK", "0"))]
    places = [[start + i for i in own] for start in range(0, 8 * BATCH, BATCH)]
    return DataLoader(TensorDataset(*data(8 * BATCH)), batch_sampler=places)


def batches(places: Sequence[int | None]) -> DataLoader[Any]:
    """This process's halves of some batches, by their places; None for a batch that is not there, -1 for an error."""
    x, y = data(8 * BATCH)
    half = BATCH // 2

    def collate(items: list[Any]) -> Any:
        place = items[0]
        if place == -1:
            raise OSError("no more disk in one process")
        if place is None:
            return None
        start = place * BATCH + int(os.environ.get("RANK", "0")) * half
        return x[start : start + half], y[start : start + half]

    return DataLoader(list(places), batch_size=1, collate_fn=collate)


def fit_error(
    folder: Path, module: L.LightningModule, given: DataLoader[Any], strategy: BSQHStrategy, **options: Any
) -> tuple[str, str, bool]:
    """Kind and text of the error that a training ends with, and whether the weights are those before the step."""
    recorder = Recorder()
    callbacks = [recorder, *options.pop("callbacks", [])]
    options = {"max_epochs": 2, "use_distributed_sampler": False, **options}
    trainer = make_trainer(strategy, folder, 2, callbacks=callbacks, **options)
    try:
        trainer.fit(module, given)
    except Exception as error:
        weights = torch.cat([whole(p.detach()).flatten() for p in module.parameters()])
        before = recorder.points[-1] if recorder.points else weights
        return type(error).__name__, str(error), torch.equal(weights, before)
    return "", "", True


def make_trainer(strategy: BSQHStrategy, folder: Path, devices: int, **options: Any) -> L.Trainer:
    warnings.filterwarnings("ignore")
    given: dict[str, Any] = {
        "max_epochs": -1,
        "max_steps": STEPS,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **options,
    }
    return L.Trainer(strategy=strategy, accelerator="cpu", devices=devices, default_root_dir=folder, **given)


def fit(folder: Path, devices: int, module: L.LightningModule | None = None, **options: Any) -> dict[str, Any]:
    """What a training of 50 steps leaves; every process takes its share of each batch."""
    of_trainer = ("max_epochs", "max_steps", "accumulate_grad_batches", "plugins")
    fit_options = {k: options.pop(k) for k in of_trainer if k in options}
    if "plugins" in fit_options:
        # They have a state, so every training has its own.
        fit_options["plugins"] = fit_options["plugins"]()
    samples = options.pop("samples", 8 * BATCH)
    recorder = Recorder()
    callbacks = [recorder, *options.pop("callbacks", list)()]
    trainer = make_trainer(BSQHStrategy(**options), folder, devices, callbacks=callbacks, **fit_options)
    trainer.fit(module or Classes(), loader(devices, samples=samples))
    return recorder.result()
