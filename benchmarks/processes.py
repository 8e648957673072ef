"""What several processes say to each other in a step, and what it costs: bSQH and SGD under Lightning's DDP.

    python benchmarks/processes.py [--network lenet5 resnet18] [--batch 64] [--steps 30] [--counts-only] [--image 8]

Two processes on this machine (gloo) train the same network, each on its own batch. Messages and bytes are what goes
into a collective operation of torch.distributed, as its dispatcher sees it; they are exact on any machine, and depend
neither on the number of processes nor on the size of batch and image: --counts-only leaves out what measures time, so
that small images do. A message is small if it has at most 512 bytes. Times are medians over the steps after the first
ten; on a machine with fewer cores than processes, or with others at work, they say little. The estimate is no
measurement: it puts the counts into a model of trees and rings.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import socket
import statistics
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from rich.console import Console
from rich.table import Table
from torch import Tensor, multiprocessing, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsqh import BSQHStrategy
from lightning_bsqh.zoo import LeNet5, ResNet18

NETWORKS = {"lenet5": (LeNet5, (1, 28, 28)), "resnet18": (ResNet18, (3, 32, 32))}
METHODS = ("sgd", "bsqh", "gauss-seidel")
_FIRST = 10
_SMALL = 512


class Module(pl.LightningModule):
    """Ten classes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = network

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)


class Messages(TorchDispatchMode):
    """Counts collective operations and their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            given = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
            size = sum(t.numel() * t.element_size() for t in given if isinstance(t, Tensor))
            kind = "small" if size <= _SMALL else "large"
            self.found[f"{kind} messages"] += 1
            self.found[f"{kind} bytes"] += size
        return func(*args, **(kwargs or {}))


class Steps(pl.Callback):
    """The duration of every step, and the messages of all after the first ten."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.trials = 0
        self.messages = Messages()
        self._counted = 0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._start = time.perf_counter()
        if trainer.global_step == _FIRST:
            self.messages.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.times.append(time.perf_counter() - self._start)
        if trainer.global_step > _FIRST:
            self._counted += 1
            report = getattr(trainer.optimizers[0], "last_step", None)
            self.trials += 0 if report is None else report.trials

    def on_train_end(self, *args: Any) -> None:
        self.messages.__exit__(None, None, None)

    def result(self) -> dict[str, float]:
        """Per step."""
        counted = {name: value / self._counted for name, value in self.messages.found.items()}
        return {**counted, "trials": self.trials / self._counted}


class Timed(Steps):
    """Durations alone, without the counter, which costs time itself."""

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._start = time.perf_counter()

    def on_train_end(self, *args: Any) -> None:
        return


def train(method: str, network: str, arguments: argparse.Namespace, devices: int, callback: Steps) -> Steps:
    (make, shape), batch, steps = NETWORKS[network], arguments.batch, arguments.steps
    torch.manual_seed(0)
    if arguments.image is not None:
        shape = (shape[0], arguments.image, arguments.image)
    images = torch.randn(batch * devices * steps, *shape)
    data = TensorDataset(images, torch.randint(0, 10, (len(images),)))
    options = {"sweep": "gauss-seidel"} if method == "gauss-seidel" else {}
    strategy: Any = BSQHStrategy(**options)
    if method == "sgd":
        strategy = DDPStrategy() if devices > 1 else SingleDeviceStrategy()
    trainer = pl.Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=devices,
        max_epochs=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tempfile.gettempdir(),
    )
    trainer.fit(Module(make()), DataLoader(data, batch_size=batch))
    return callback


def work(rank: int, port: int, arguments: argparse.Namespace, folder: Path) -> None:
    """What each of the two processes does."""
    quiet()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="benchmark")
    found: dict[str, Any] = {}
    for network in arguments.network:
        for method in arguments.method:
            counts = train(method, network, arguments, 2, Steps()).result()
            found[f"{network} {method}"] = {**counts, "time": _time(method, network, arguments, 2)}
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def _time(method: str, network: str, arguments: argparse.Namespace, devices: int) -> float:
    """Seconds per step, NaN if nobody asked."""
    if arguments.counts_only:
        return math.nan
    return statistics.median(train(method, network, arguments, devices, Timed()).times[_FIRST:])


def quiet() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def estimate(result: dict[str, float], processes: int, latency: float, bandwidth: float) -> float:
    """Seconds for the messages of a step: every message takes the way up and down a tree, its bytes go round a ring."""
    messages = result.get("large messages", 0.0) + result.get("small messages", 0.0)
    size = result.get("large bytes", 0.0) + result.get("small bytes", 0.0)
    hops = 2 * math.ceil(math.log2(processes))
    return messages * hops * latency + 2 * (processes - 1) / processes * size / bandwidth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=64, help="samples of each process")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--image", type=int, help="height and width of an image, if not the network's usual ones")
    parser.add_argument("--counts-only", action="store_true", help="messages and bytes, without times")
    parser.add_argument("--latency", type=float, default=10e-6, help="of the estimate: seconds per hop")
    parser.add_argument("--bandwidth", type=float, default=25e9, help="of the estimate: bytes per second")
    arguments = parser.parse_args()
    quiet()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (port, arguments, Path(folder)), nprocs=2)
        found = torch.load(Path(folder) / "0.pt", weights_only=False)
    show(found, arguments)


def show(found: dict[str, Any], arguments: argparse.Namespace) -> None:
    table = Table(title="Two processes, per step")
    columns = ("", "messages", "bytes", "small messages", "bytes", "trials", "ms", "ms, one process")
    for column in (*columns, "8 ranks, estimate", "1,024 ranks, estimate"):
        table.add_column(column, justify="left" if not column else "right")
    for name, result in found.items():
        network, method = name.split(" ")
        alone = _time(method, network, arguments, 1)
        row = [f"{result.get(key, 0.0):,.0f}" for key in ("large messages", "large bytes")]
        row += [f"{result.get('small messages', 0.0):.2f}", f"{result.get('small bytes', 0.0):,.0f}"]
        row += [f"{result['trials']:.2f}", f"{1e3 * result['time']:.1f}"]
        row += [f"{1e3 * alone:.1f}"]
        for processes in (8, 1024):
            row.append(f"{1e3 * estimate(result, processes, arguments.latency, arguments.bandwidth):.2f} ms")
        table.add_row(name, *row)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
