"""How many weights satisfy the maximum condition after a full-batch training on the digits.

    python benchmarks/certificate.py [--iterations 300] [--rho 1e-5]

A small LeNet learns scikit-learn's digits in full-batch mode through the Trainer, in double precision, with L0. Then
pmp_residual evaluates every layer's augmented Hamiltonian on the whole training data, with the metric D and the rule's
last ε, and prints residuals and the shares of weights that satisfy the maximum condition to 1e-3 and to 1e-6.
"""

from __future__ import annotations

import argparse
import logging
import warnings

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsqh import L0, BSQHOptimizer, BSQHStrategy, PMPResidual, pmp_residual
from lightning_bsqh.zoo import ImageClassifier, SmallLeNet
from lightning_bsqh.zoo.data import DigitsDataModule


def run(iterations: int, rho: float) -> tuple[PMPResidual, float, float]:
    """The certificate after a training, the share of exact zeros and the test accuracy."""
    pl.seed_everything(0, verbose=False)
    data = DigitsDataModule(val_images=0)
    data.prepare_data()
    data.setup("fit")
    batches = list(data.train_dataloader())
    images = torch.cat([x for x, _ in batches]).double()
    classes = torch.cat([y for _, y in batches])
    model = ImageClassifier(SmallLeNet())
    strategy = BSQHStrategy(L0(rho), batch_mode="full", max_iterations=iterations, kappa=0.0)
    trainer = pl.Trainer(
        max_epochs=iterations,
        strategy=strategy,
        precision="64-true",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(images, classes), batch_size=len(images)))
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, BSQHOptimizer)
    model.double()

    def loss() -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model.network(images), classes)

    result = pmp_residual(
        model,
        loss,
        regularizer=optimizer.regularizer,
        # Without the schedule, whose ε at the end is so large that every weight satisfies the condition.
        epsilon=optimizer.augmentation.epsilon,
        metric=optimizer.metric_weights(),
    )
    zeros = optimizer.sparsity()
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    return result, zeros, metrics["test_accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--rho", type=float, default=1e-5)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    result, zeros, accuracy = run(arguments.iterations, arguments.rho)
    print(result)
    print(f"epsilon {result.epsilon:.4g}, training loss {result.loss:.4g}, zeros {zeros:.2%}, test {accuracy:.2%}")
    print(f"Weights that satisfy the maximum condition: {result.satisfied(1e-3):.2%} to 1e-3,", end=" ")
    print(f"{result.satisfied(1e-6):.2%} to 1e-6.")


if __name__ == "__main__":
    main()
