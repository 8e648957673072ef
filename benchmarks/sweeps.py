"""The two sweeps, jacobi and gauss-seidel, with the same budget of epochs: test accuracy and seconds.

    python benchmarks/sweeps.py [--mnist FOLDER] [--cifar10 FOLDER] [--seeds 0] [--sparsities 0 0.95]

Always scikit-learn's digits with the small LeNet (20 epochs, batch 64); LeNet-5 on MNIST (5 epochs, batch 128) and
ResNet-8 on 20,000 images of CIFAR-10 (10 epochs, batch 128) where their folders are given. All else is the strategy's
default. Memory and the cost of a step in benchmarks/step_cost.py.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings

import lightning.pytorch as pl
from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_bsqh import BSQHStrategy, Cardinality
from lightning_bsqh.zoo import ImageClassifier, LeNet5, ResNet8, SmallLeNet
from lightning_bsqh.zoo.data import CIFAR10DataModule, DigitsDataModule, MNISTDataModule


def run(network: nn.Module, data: pl.LightningDataModule, epochs: int, sparsity: float, sweep: str) -> dict[str, float]:
    """Test accuracy, rejected share of the trials and seconds per step of one training."""
    model = ImageClassifier(network)
    trainer = pl.Trainer(
        max_epochs=epochs,
        strategy=BSQHStrategy(Cardinality(sparsity), sweep=sweep),
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.fit(model, datamodule=data)
    seconds = (time.perf_counter() - start) / trainer.global_step
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    return {"accuracy": metrics["test_accuracy"], "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.0, 0.95])
    parser.add_argument("--mnist", help="folder with the IDX files")
    parser.add_argument("--cifar10", help="folder with the images")
    parser.add_argument("--sweeps", nargs="+", default=["jacobi", "gauss-seidel"], choices=["jacobi", "gauss-seidel"])
    parser.add_argument("--no-digits", action="store_true", help="leave the digits out")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    tasks: list[tuple[str, type[nn.Module], pl.LightningDataModule, int]] = []
    if not arguments.no_digits:
        tasks.append(("digits, SmallLeNet", SmallLeNet, DigitsDataModule(val_images=0), 20))
    if arguments.mnist:
        tasks.append(("MNIST, LeNet-5", LeNet5, MNISTDataModule(arguments.mnist, val_images=0), 5))
    if arguments.cifar10:
        data = CIFAR10DataModule(arguments.cifar10, train_images=20_000, val_images=0, augment=True)
        tasks.append(("CIFAR-10, ResNet-8", ResNet8, data, 10))
    table = Table(title=f"The two sweeps, seeds {arguments.seeds}")
    for column in ("task", "zeros", "sweep", "test accuracy", "s/step"):
        table.add_column(column, justify="left" if column in ("task", "sweep") else "right")
    for name, network, data, epochs in tasks:
        for sparsity in arguments.sparsities:
            for sweep in arguments.sweeps:
                results = []
                for seed in arguments.seeds:
                    pl.seed_everything(seed, verbose=False)
                    results.append(run(network(), data, epochs, sparsity, sweep))
                accuracy = statistics.mean(r["accuracy"] for r in results)
                seconds = statistics.mean(r["seconds"] for r in results)
                row = (name, f"{100 * sparsity:g} %", sweep, f"{100 * accuracy:.2f} %", f"{seconds:.4f}")
                print(*row, flush=True)
                table.add_row(*row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
