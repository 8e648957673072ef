"""How a wide network starts to learn from small batches: ResNet-18 on CIFAR-10, mean losses of some first steps.

    python benchmarks/first_steps.py --cifar10 FOLDER [--methods adam default "no shortest" sparse]
        [--batch-size 12] [--steps 250]

All methods start from the same weights and see the same batches (seed 0). "default" is bSQH without zeros,
"no shortest" the same with ``Curvature(shortest=0.0)``, "sparse" ``BSQHStrategy()``; Adam has its default rate.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from defaults import AdamClassifier
from rich.console import Console
from rich.table import Table
from torchvision.models import resnet18

from lightning_bsqh import BSQHStrategy, Cardinality, Curvature
from lightning_bsqh.zoo import ImageClassifier
from lightning_bsqh.zoo.data import CIFAR10DataModule

METHODS: dict[str, Callable[[], Any]] = {
    "adam": lambda: "auto",
    "default": lambda: BSQHStrategy(regularizer=Cardinality(0.0)),
    "no shortest": lambda: BSQHStrategy(regularizer=Cardinality(0.0), augmentation=Curvature(shortest=0.0)),
    "sparse": BSQHStrategy,
}


class Losses(pl.Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *of: Any) -> None:
        self.values.append(float(outputs["loss"]))


def losses(method: str, folder: str, batch_size: int, steps: int) -> list[float]:
    """The loss of every step of one training."""
    pl.seed_everything(0, verbose=False)
    found = Losses()
    model = (AdamClassifier if method == "adam" else ImageClassifier)(resnet18(num_classes=10))
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        strategy=METHODS[method](),
        callbacks=[found],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model, datamodule=CIFAR10DataModule(folder, batch_size=batch_size))
    return found.values


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cifar10", required=True, help="folder with the images")
    parser.add_argument("--methods", nargs="+", default=["adam", "default", "no shortest"], choices=list(METHODS))
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--steps", type=int, default=250)
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    parts = [(0, 5), (20, 40), (options.steps - 100, options.steps)]
    table = Table("method", *(f"steps {first} to {last}" for first, last in parts))
    for method in options.methods:
        found = losses(method, options.cifar10, options.batch_size, options.steps)
        table.add_row(method, *(f"{statistics.mean(found[first:last]):.2f}" for first, last in parts))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
