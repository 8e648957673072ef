"""Kills and interrupts trainings at random moments, resumes them, and compares with one that nobody disturbed.

    python benchmarks/faults.py [--kills 20] [--interrupts 25] [--seed 0] [--steps 120] [--output FILE.json]

A network with BatchNorm and dropout is trained in a process of its own; every third step writes a checkpoint of some
megabytes, so that a good part of the time is spent writing. A kill is SIGKILL, an interrupt Ctrl-C (SIGINT), at which
Lightning's OnExceptionCheckpoint writes one more. Then a new process goes on from the checkpoint with the most steps to
the end. For each it is looked whether

- every file with the name of a checkpoint can be read,
- weights and optimizer in every such file are those of the undisturbed training after as many steps, bit by bit,
- the resumed training ends with the same bits as the undisturbed one.

Exits with 1 if anything of this fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Sampler, TensorDataset

from lightning_bsqh import BSQHStrategy

BATCHES, SIZE = 16, 16
#: What the strategy adds to the optimizer's state for a resumed run, generators that go on above all; and dead weight.
ADDED = {"format", "random", "trained", "within_batch", "ballast"}
FORKING = multiprocessing.get_context("fork")


class Network(pl.LightningModule):
    """Has whatever a trial could leave a trace in: running statistics, dropout, a buffer that makes files large."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(288, 10)
        )
        self.register_buffer("ballast", torch.zeros(2**22))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss


class InTurn(Sampler):
    """One batch an epoch, another one in every epoch.

    Lightning does not tell an ordinary data loader at which batch of an epoch to go on, and one that can be told stands
    a batch too far where a batch was broken off. So there is nothing to go on with within an epoch.
    """

    def __init__(self) -> None:
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return SIZE

    def __iter__(self) -> Iterator[int]:
        first = self._epoch % BATCHES * SIZE
        return iter(range(first, first + SIZE))


class Steps(pl.Callback):
    """Writes down the state after every step, and tells when the first batch begins.

    Args:
        begun: Is set then.
        states: Takes a digest of the state by the number of steps.
    """

    def __init__(self, begun: Any, states: dict[int, str] | None = None) -> None:
        self._begun = begun
        self._states = states

    def on_train_batch_start(self, *args: Any) -> None:
        self._begun.set()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if self._states is not None:
            self._states[trainer.global_step] = digest(pl_module.state_dict(), trainer.optimizers[0].state_dict())


def digest(weights: Any, optimizer: Any) -> str:
    """A number for all bits of both."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            found.update(value.detach().contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value.keys() - ADDED, key=str):
                found.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for each in value:
                add(each)
        else:
            found.update(repr(value).encode())

    add(weights)
    add(optimizer)
    return found.hexdigest()


def train(folder: Path, steps: int, begun: Any, start: Path | None, states: Any = None) -> None:
    """Trains in this process, from a checkpoint or from the start; the end is saved as ``end.pt``."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    images = torch.randn(BATCHES * SIZE, 1, 8, 8)
    labels = (images.mean((1, 2, 3)) * 40).round().long().clamp(-4, 5) + 4
    noted: dict[int, str] | None = None if states is None else {}
    trainer = pl.Trainer(
        max_steps=steps,
        strategy=BSQHStrategy(),
        devices=1,
        accelerator="cpu",
        callbacks=[
            Steps(begun, noted),
            ModelCheckpoint(folder, "{step}", "step", mode="max", save_top_k=2, every_n_train_steps=3),
            OnExceptionCheckpoint(folder),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Network()
    # With a generator of its own a loader that is started again draws nothing from the one that dropout uses.
    own = torch.Generator()
    loader = DataLoader(TensorDataset(images, labels), SIZE, sampler=InTurn(), generator=own)
    trainer.fit(module, loader, ckpt_path=start)
    if states is not None:
        states.update(noted)
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / "end.part"
    torch.save((module.state_dict(), trainer.optimizers[0].state_dict()), beside)
    beside.replace(folder / "end.pt")


def run(
    folder: Path,
    steps: int,
    start: Path | None = None,
    states: Any = None,
    disturb: Callable[[Any], None] | None = None,
) -> int:
    """One training in a process of its own; gives its exit code.

    Args:
        folder: Where its files are.
        steps: Its length.
        start: The checkpoint to go on from, None for a new training.
        states: Takes the digests.
        disturb: Called with the process when the first batch begins.
    """
    begun = FORKING.Event()
    process = FORKING.Process(target=_quietly, args=(folder, steps, begun, start, states))
    process.start()
    if disturb is not None:
        begun.wait()
        disturb(process)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _quietly(*args: Any) -> None:
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        train(*args)


def check_files(folder: Path, states: dict[int, str]) -> tuple[list[str], int, Path | None]:
    """What is wrong with the checkpoints in a folder, the number of steps in the last one, and which that is."""
    wrong: list[str] = []
    last, newest = 0, None
    for path in sorted(folder.glob("*.ckpt")):
        try:
            saved = torch.load(path, weights_only=True)
        except Exception as error:
            wrong.append(f"{path.name} cannot be read: {error}")
            continue
        step = saved["global_step"]
        if step > last:
            last, newest = step, path
        found = digest(saved["state_dict"], saved["optimizer_states"][0])
        # Between a step and the moment in which the Trainer counts it there is a little time.
        if step and found not in (states[step], states.get(step + 1)):
            wrong.append(f"{path.name}: not the state after {step} steps")
    return wrong, last, newest


def at_a_moment(sign: signal.Signals, seconds: float) -> Callable[[Any], None]:
    """Sends a signal after so many seconds, if the process still lives."""

    def disturb(process: Any) -> None:
        process.join(seconds)
        if process.is_alive():
            os.kill(process.pid, sign)

    return disturb


def one(sign: signal.Signals, seconds: float, steps: int, states: dict[int, str], end: str) -> dict[str, Any]:
    """Disturbs one training and resumes it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        code = run(folder, steps, disturb=at_a_moment(sign, seconds))
        partial = len(list(folder.glob(".*.part")))
        wrong, last, newest = check_files(folder, states)
        finished = (folder / "end.pt").exists()
        if not finished and run(folder, steps, newest) != 0:
            wrong.append("the resumed training failed")
        elif digest(*torch.load(folder / "end.pt", weights_only=True)) != end:
            wrong.append("the resumed training ended with other bits")
        return {
            "signal": sign.name,
            "seconds": seconds,
            "code": code,
            "while writing": partial,
            "resumed from": last,
            "came too late": finished,
            "wrong": wrong,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--interrupts", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = faults(arguments.kills, arguments.interrupts, arguments.seed, arguments.steps)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=1))
    show(results)
    sys.exit(1 if any(result["wrong"] for result in results) else 0)


def faults(kills: int, interrupts: int, seed: int, steps: int) -> list[dict[str, Any]]:
    """Disturbs so many trainings; one entry for each."""
    states = multiprocessing.Manager().dict()
    with tempfile.TemporaryDirectory() as name:
        assert run(Path(name), steps, states=states) == 0
        duration = min(seconds_of_a_run(Path(name) / str(i), steps) for i in range(2))
        end = digest(*torch.load(Path(name) / "end.pt", weights_only=True))
    draw = random.Random(seed)
    signals = [signal.SIGKILL] * kills + [signal.SIGINT] * interrupts
    return [one(sign, draw.uniform(0.0, 0.9 * duration), steps, dict(states), end) for sign in signals]


def seconds_of_a_run(folder: Path, steps: int) -> float:
    """How long a training takes from its first batch on."""
    began: list[float] = []
    assert run(folder, steps, disturb=lambda process: began.append(time.monotonic())) == 0
    return time.monotonic() - began[0]


def show(results: list[dict[str, Any]]) -> None:
    """Prints what became of them."""
    table = Table(title=f"torch {torch.__version__}, lightning {pl.__version__}")
    for column in ("signal", "trainings", "while writing", "came too late", "resumed from step", "wrong"):
        table.add_column(column, justify="left" if column == "signal" else "right")
    for sign in dict.fromkeys(result["signal"] for result in results):
        own = [result for result in results if result["signal"] == sign]
        steps = sorted(result["resumed from"] for result in own)
        counts = [sum(bool(result[key]) for result in own) for key in ("while writing", "came too late", "wrong")]
        table.add_row(sign, str(len(own)), str(counts[0]), str(counts[1]), f"{steps[0]} to {steps[-1]}", str(counts[2]))
    console = Console(width=100)
    console.print(table)
    for result in results:
        for sentence in result["wrong"]:
            console.print(f"{result['signal']} after {result['seconds']:.3f} s: {sentence}")


if __name__ == "__main__":
    main()
