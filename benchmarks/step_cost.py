"""Seconds per step and peak memory of bSQH in both sweeps, SGD with momentum and Adam, in the same Trainer.

    python benchmarks/step_cost.py [--steps 480] [--rounds 3] [--networks lenet5 resnet18 …] [--methods …] [--cpu-time]

LeNet-5 with batches of 128, a ResNet-18 for 32x32 images with batches of 64, two small language models from
transformers' configurations, an LSTM and a narrow network of 152 tensors, on made-up data that can be learnt; a round
is a whole training in small, ramp of the sparsity included. The methods take turns, round by round, in one process, so
that whatever else the machine does falls on all of them; a figure is the median over the rounds. "one trial" is
(2 forwards + backward) / (forward + backward), measured in the same process. Memory is the allocator's peak over a few
steps, data set included, each method in a process of its own.

--cpu-time counts the time that this process has had on the CPU, with one thread: for machines that are busy otherwise.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsqh import BSQHStrategy
from lightning_bsqh.zoo import LeNet5, ResNet18


class Tokens(nn.Module):
    """A language model of 256 tokens as a classifier of made-up sequences."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=(x * 16).long() % 256).logits[:, -1, :10]


def gpt2_tiny() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return Tokens(
        GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=64, n_embd=128, n_layer=2, n_head=4, **dropout))
    )


def llama_tiny() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    return Tokens(LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=64, **sizes)))


class RowsLSTM(nn.Module):
    """An LSTM over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(28, 128, batch_first=True), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x[:, 0])[0][:, -1])


def many_tensors() -> nn.Module:
    """50 narrow layers with BatchNorm, 152 tensors."""
    blocks = [
        nn.Sequential(nn.Conv2d(8 if i else 3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        for i in range(50)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


METHODS = ("sgd", "adam", "bsqh", "gauss-seidel")
#: Constructor, size of a batch, shape of an input, and the share of the steps that is enough.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...], int]] = {
    "lenet5": (LeNet5, 128, (1, 28, 28), 1),
    "resnet18": (ResNet18, 64, (3, 32, 32), 40),
    "gpt2-tiny": (gpt2_tiny, 32, (64,), 4),
    "llama-tiny": (llama_tiny, 32, (64,), 4),
    "lstm": (RowsLSTM, 128, (1, 28, 28), 4),
    "152 tensors": (many_tensors, 16, (3, 16, 16), 4),
}
STRATEGIES = {"bsqh": BSQHStrategy, "gauss-seidel": lambda: BSQHStrategy(sweep="gauss-seidel")}
WARM_UP = 5


class Module(pl.LightningModule):
    def __init__(self, network: nn.Module, method: str) -> None:
        super().__init__()
        self.network = network
        self.method = method

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        if self.method == "sgd":
            return torch.optim.SGD(self.parameters(), lr=1e-2, momentum=0.9)
        return torch.optim.Adam(self.parameters()) if self.method == "adam" else None


class Clock(pl.Callback):
    """Seconds from the end of one batch to the end of the next, data loading included."""

    #: Gives the time.
    now = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.trials: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(self.now())
        report = getattr(trainer.optimizers[0], "last_step", None)
        if report is not None:
            self.trials.append(report.trials)

    def seconds_per_step(self) -> float:
        marks = self.marks[WARM_UP:]
        return (marks[-1] - marks[0]) / (len(marks) - 1)


def loader(shape: tuple[int, ...], batch_size: int, steps: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    templates = torch.randn(10, *shape, generator=generator)
    classes = torch.randint(10, (batch_size * min(steps, 40),), generator=generator)
    images = templates[classes] + torch.randn(len(classes), *shape, generator=generator)
    return DataLoader(TensorDataset(images, classes), batch_size=batch_size, shuffle=True, drop_last=True)


def train(network_name: str, method: str, steps: int) -> Clock:
    pl.seed_everything(0, verbose=False)
    make, batch_size, shape, _ = NETWORKS[network_name]
    clock = Clock()
    trainer = pl.Trainer(
        max_steps=steps + WARM_UP,
        max_epochs=-1,
        strategy=STRATEGIES[method]() if method in STRATEGIES else "auto",
        devices=1,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(make(), method), loader(shape, batch_size, steps))
    return clock


def limit(network_name: str, repeats: int = 20) -> float:
    """(2 forwards + backward) / (forward + backward): what one trial per step costs where all else is free."""
    make, batch_size, shape, _ = NETWORKS[network_name]
    network = make()
    images, classes = next(iter(loader(shape, batch_size, 1)))
    forwards, both = [], []
    for _ in range(repeats):
        start = Clock.now()
        with torch.no_grad():
            functional.cross_entropy(network(images), classes)
        middle = Clock.now()
        functional.cross_entropy(network(images), classes).backward()
        forwards.append(middle - start)
        both.append(Clock.now() - middle)
    return 1.0 + statistics.median(forwards) / statistics.median(both)


def peak_memory(network_name: str, method: str) -> float:
    """MiB allocated at the peak of a few steps, in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", network_name, method]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(out.splitlines()[-1]))


def print_memory(network_name: str, method: str) -> None:
    if torch.cuda.is_available():
        train(network_name, method, 4)
        print(json.dumps(torch.cuda.max_memory_allocated() / 2**20))
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train(network_name, method, 4)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    allocated = [event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"]
    print(json.dumps(max(allocated) / 2**20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=480, help="steps per round on LeNet-5; a 4th on others, a 40th on the ResNet"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--cpu-time", action="store_true", help="count the process's own time instead of the clock's")
    parser.add_argument("--memory-of", nargs=2, metavar=("NETWORK", "METHOD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    if arguments.memory_of:
        print_memory(*arguments.memory_of)
        return
    if arguments.cpu_time:
        torch.set_num_threads(1)
        Clock.now = staticmethod(time.process_time)
    methods = [m for m in METHODS if m in {"sgd", "adam", *arguments.methods}]
    table = Table(title=f"Cost of a step, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for column in ("network", "method", "s/step", "x SGD", "one trial", "trials/step", "peak MiB", "x Adam's"):
        table.add_column(column, justify="left" if column in ("network", "method") else "right")
    for name in arguments.networks:
        steps = max(arguments.steps // NETWORKS[name][3], 3)
        clocks: dict[str, list[Clock]] = {method: [] for method in methods}
        for _ in range(arguments.rounds):
            for method in methods:
                clocks[method].append(train(name, method, steps))
        seconds = {m: statistics.median(c.seconds_per_step() for c in clocks[m]) for m in methods}
        ratios = {
            m: statistics.median(
                a.seconds_per_step() / b.seconds_per_step() for a, b in zip(clocks[m], clocks["sgd"], strict=True)
            )
            for m in methods
        }
        bound = limit(name)
        memory = {m: peak_memory(name, m) for m in methods}
        for method in methods:
            trials = [t for clock in clocks[method] for t in clock.trials[WARM_UP:]]
            table.add_row(
                name,
                method,
                f"{seconds[method]:.4f}",
                f"{ratios[method]:.2f}",
                f"{bound:.2f}" if method == "bsqh" else "-",
                f"{statistics.mean(trials):.2f}" if trials else "-",
                f"{memory[method]:.0f}",
                f"{memory[method] / memory['adam']:.2f}",
            )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
