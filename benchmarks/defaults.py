"""Trainer(strategy=BSQHStrategy()) with no argument against Adam's default on the same budget.

    python benchmarks/defaults.py [--seeds 0 1 2] [--mnist FOLDER] [--cifar10 FOLDER]

Always scikit-learn's digits with the small LeNet (20 epochs, batch 64); LeNet-5 on MNIST (5 epochs, batch 128) and
ResNet-8 on 20,000 images of CIFAR-10 (10 epochs, batch 128) where their folders are given. Nothing is tuned on either
side: Adam runs at its own default learning rate of 1e-3, the strategy at its defaults.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import warnings

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_bsqh import BSQHStrategy
from lightning_bsqh.callbacks._weights import layer_weights, sparsity_values
from lightning_bsqh.zoo import ImageClassifier, LeNet5, ResNet8, SmallLeNet
from lightning_bsqh.zoo.data import CIFAR10DataModule, DigitsDataModule, MNISTDataModule


class AdamClassifier(ImageClassifier):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def run(network: nn.Module, data: pl.LightningDataModule, epochs: int, ours: bool) -> tuple[float, float]:
    """Test accuracy and share of exact zeros after one training."""
    model = (ImageClassifier if ours else AdamClassifier)(network)
    trainer = pl.Trainer(
        max_epochs=epochs,
        strategy=BSQHStrategy() if ours else "auto",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    zeros = sparsity_values(layer_weights(trainer, model))["sparsity/total"]
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    return metrics["test_accuracy"], zeros


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--mnist", help="folder with the IDX files")
    parser.add_argument("--cifar10", help="folder with the images")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    tasks = [("digits, SmallLeNet", SmallLeNet, DigitsDataModule(val_images=0), 20)]
    if arguments.mnist:
        tasks.append(("MNIST, LeNet-5", LeNet5, MNISTDataModule(arguments.mnist), 5))
    if arguments.cifar10:
        tasks.append(("CIFAR-10, ResNet-8", ResNet8, CIFAR10DataModule(arguments.cifar10, train_images=20000), 10))
    table = Table(title=f"Mean over seeds {', '.join(map(str, arguments.seeds))}")
    for column in ("task", "method", "test accuracy", "each seed", "exact zeros"):
        table.add_column(column)
    for task, network, data, epochs in tasks:
        for name, ours in (("Adam, lr 1e-3", False), ("BSQHStrategy()", True)):
            results = []
            for seed in arguments.seeds:
                pl.seed_everything(seed, verbose=False)
                results.append(run(network(), data, epochs, ours))
            accuracies = [100 * accuracy for accuracy, _ in results]
            table.add_row(
                task,
                name,
                f"{statistics.mean(accuracies):.2f} %",
                " ".join(f"{a:.2f}" for a in accuracies),
                f"{100 * statistics.mean(zeros for _, zeros in results):.1f} %",
            )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
