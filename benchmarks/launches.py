"""Operations that a step asks the device for, and how often it waits for it: SGD, Adam and bSQH in the same Trainer.

    python benchmarks/launches.py [--networks lenet5 resnet18 transformer] [--methods sgd adam bsqh l0 …]

Counts are exact on any machine: a GPU launches what a CPU calls; where the package takes another way on a CPU, because
a look at a number costs nothing there, it is made to take that of a GPU. A call is one of an ATen operator as the
dispatcher sees it, views included; a wait is an operator that hands a number from the device to the host, or one
reading of the numbers that a trial is judged by. Both are counted from the beginning of a batch to its end, in the
Trainer, without the data loader. "after" is a step in which the sparsity no longer rises, "tightening" one in which it
does. SGD and Adam run with foreach=True, as on a GPU.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsqh import L0, L1, L2, BSQHStrategy, Cardinality, Discrete, ElasticNet, GroupL0, LHalf
from lightning_bsqh.method import device_training
from lightning_bsqh.method.reduction import Reduction
from lightning_bsqh.network import tensor_copies
from lightning_bsqh.regularizers import selection
from lightning_bsqh.zoo import LeNet5, ResNet18

#: Operators that hand a number to the host, or whose result has a size that depends on the data.
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "item", "equal")
STEPS = 24


class Transformer(nn.Module):
    """Two encoder layers on sequences of 16 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


def images(shape: tuple[int, ...]) -> Callable[[], Tensor]:
    return lambda: torch.randn(4 * STEPS, *shape, generator=torch.Generator().manual_seed(0))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "lenet5": (LeNet5, images((1, 28, 28))),
    "resnet18": (ResNet18, images((3, 32, 32))),
    "transformer": (Transformer, lambda: torch.arange(4 * STEPS * 16).view(-1, 16) * 7 % 32),
}
BSQH: dict[str, Callable[[], BSQHStrategy]] = {
    "bsqh": lambda: BSQHStrategy(regularizer=Cardinality(0.9)),
    "device": lambda: BSQHStrategy(regularizer=Cardinality(0.9), decide="device"),
    "l0": lambda: BSQHStrategy(regularizer=L0(1e-5)),
    "l1": lambda: BSQHStrategy(regularizer=L1(1e-5)),
    "l2": lambda: BSQHStrategy(regularizer=L2(1e-5)),
    "elastic net": lambda: BSQHStrategy(regularizer=ElasticNet()),
    "l half": lambda: BSQHStrategy(regularizer=LHalf(1e-5)),
    "group l0": lambda: BSQHStrategy(regularizer=GroupL0(1e-5)),
    "ternary": lambda: BSQHStrategy(regularizer=Discrete.ternary(0.1)),
    "per layer": lambda: BSQHStrategy(regularizer=Cardinality(0.9, scope="layer")),
    "euclidean": lambda: BSQHStrategy(regularizer=Cardinality(0.9), metric="euclidean"),
    "gauss-seidel": lambda: BSQHStrategy(regularizer=Cardinality(0.9), sweep="gauss-seidel"),
    "full batch": lambda: BSQHStrategy(regularizer=L0(1e-5), batch_mode="full"),
}


class Module(pl.LightningModule):
    def __init__(self, network: nn.Module, method: str) -> None:
        super().__init__()
        self.network, self.method = network, method

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        if self.method == "sgd":
            return torch.optim.SGD(self.parameters(), lr=1e-2, momentum=0.9, foreach=True)
        return torch.optim.Adam(self.parameters(), foreach=True) if self.method == "adam" else None


class Calls(TorchDispatchMode):
    """Counts the operators while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.waits = 0
        self.by_name: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.calls += 1
        # States of generators are bytes on the host, whatever the device.
        self.waits += name in WAITS and not (name == "equal" and args[0].dtype == torch.uint8)
        self.by_name[name] = self.by_name.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


class Counter(pl.Callback):
    """Counts from the beginning of every batch to its end."""

    def __init__(self) -> None:
        self.steps: list[Calls] = []
        self.tightened: list[bool] = []
        self.trials: list[int] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.steps.append(Calls())
        self.steps[-1].__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.steps[-1].__exit__(None, None, None)
        optimizer = trainer.optimizers[0]
        options = getattr(optimizer, "options", None)
        if options is not None and options.decide == "device":
            # To ask would be to wait. A step that waits by itself is one whose constraint has been tightened.
            self.tightened.append(self.steps[-1].waits > 0)
            self.trials.append(1)
            return
        report = getattr(optimizer, "last_step", None)
        self.tightened.append(report is not None and report.tightened)
        self.trials.append(report.trials if report is not None else 0)

    def typical(self, tightened: bool) -> Calls | None:
        """The last step of its kind that took one trial at most."""
        kind = zip(self.steps[2:], self.tightened[2:], self.trials[2:], strict=True)
        found = [calls for calls, tight, trials in kind if tight == tightened and trials <= 1]
        return found[-1] if found else None

    def waits_per_trial(self) -> float:
        """Waits by trial sweeps: those at candidates, and at the projection that some are compared with."""
        return statistics.mean(c.waits / max(c.by_name["nll_loss_forward"] - 1, 1) for c in self.steps[2:])


@contextmanager
def reading(counter: Counter) -> Iterator[None]:
    """Within, all is as on a GPU, where a reading of many numbers is one transfer and counts as one wait."""

    def counted(read: Callable[..., Any]) -> Callable[..., Any]:
        def once(*arguments: Any) -> Any:
            if len(counter.steps) == len(counter.trials):
                # Between two batches.
                return read(*arguments)
            before = counter.steps[-1].waits
            found = read(*arguments)
            counter.steps[-1].waits = before + 1
            return found

        return once

    with ExitStack() as stack:
        for owner in (Reduction, device_training):
            stack.enter_context(mock.patch.object(owner, "read", counted(owner.read)))
        for module in (selection, tensor_copies):
            stack.enter_context(mock.patch.object(module, "_on_host", return_value=False))
        yield


def count(network: str, method: str) -> Counter:
    """Trains a few steps and counts."""
    pl.seed_everything(0, verbose=False)
    make, inputs = NETWORKS[network]
    x = inputs()
    loader = DataLoader(TensorDataset(x, torch.arange(len(x)) % 10), batch_size=4)
    counter = Counter()
    trainer = pl.Trainer(
        max_epochs=STEPS if method == "full batch" else 1,
        limit_train_batches=1 if method == "full batch" else 1.0,
        strategy=BSQH[method]() if method in BSQH else "auto",
        devices=1,
        accelerator="cpu",
        callbacks=[counter],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with reading(counter):
        trainer.fit(Module(make(), method), loader)
    return counter


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=["sgd", "adam", *BSQH], choices=["sgd", "adam", *BSQH])
    parser.add_argument("--names", action="store_true", help="also print which operators a step calls")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    table = Table(title=f"Operators per step, torch {torch.__version__}")
    for column in ("network", "method", "after", "x Adam", "tightening", "x Adam", "waits/trial"):
        table.add_column(column, justify="left" if column in ("network", "method") else "right")
    for network in arguments.networks:
        adam = count(network, "adam").typical(False)
        assert adam is not None
        for method in arguments.methods:
            counter = count(network, method)
            cells = []
            for tightened in (False, True):
                calls = counter.typical(tightened)
                cells += ["-", "-"] if calls is None else [str(calls.calls), f"{calls.calls / adam.calls:.2f}"]
                if calls is not None and arguments.names:
                    print(network, method, "tightening" if tightened else "after", sorted(calls.by_name.items()))
            table.add_row(network, method, *cells, f"{counter.waits_per_trial():.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
