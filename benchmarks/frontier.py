"""bSQH as it comes against tuned peers: the same network, data order and budget, at the same share of zeros.

    python benchmarks/frontier.py [--mnist FOLDER] [--cifar10 FOLDER] [--tasks digits lstm text mnist cifar10]
        [--sparsities 0 0.9 0.95] [--methods …] [--seeds 0 1 2] [--output runs/frontier]

"bsqh" is ``BSQHStrategy(regularizer=Cardinality(sparsity))`` and has nothing to tune. Every peer is trained with four
learning rates on the first seed; the best one, by the validation split, is shown on all seeds. The test data choose
nothing. SGD has Nesterov momentum, weight decay 5e-4 and a cosine, AdamW weight decay 1e-2 and a cosine; both prune by
magnitude along the ramp that bSQH has. "model pruning" is Lightning's ModelPruning, "proximal" SGD with soft
thresholds, "straight-through" ST-3's rule, "regrowth" RigL's; these train with SGD as above.

Every finished training is a line of runs.jsonl in the output folder and is not repeated, so that hours can be had in
pieces. A line counts as long as the package and the benchmark are what they were when it was made (--all: count all).
Table, CSV and figure are made of the lines that count: frontier.md, frontier.csv, frontier.png.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from frontier_methods import METHODS, prepare, rates, weights
from frontier_tasks import Classifier, Task, figure, make_task
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

import lightning_bsqh

#: Method, learning rate, sparsity, module and epochs.
Prepare = Callable[[str, float, float, Any, int], tuple[Any, list[pl.Callback]]]

COLORS = ("#0072B2", "#D55E00", "#E69F00", "#009E73", "#56B4E9", "#CC79A7", "#000000")


@dataclass(frozen=True)
class Setting:
    """Names one training."""

    task: str
    sparsity: float
    method: str
    rate: float
    seed: int
    code: str


@dataclass(frozen=True)
class Run:
    """One finished training: shares of right answers, or bits per character."""

    setting: Setting
    validation: float
    test: float
    zeros: float
    seconds: float


@cache
def code_of(method: str) -> str:
    """Eight digits of all code that a training of the method depends on."""
    folders = [Path(__file__).parent.glob("frontier_*.py")]
    if method.startswith("bsqh"):
        package = Path(lightning_bsqh.__file__).parent
        folders += [
            (package / name).rglob("*.py") for name in ("method", "sweeps", "network", "regularizers", "strategy")
        ]
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


class Runs:
    """The file of finished trainings.

    Args:
        path: It; need not exist.
        takes_all: Whether lines count that were made by other code.
        prepare: Gives strategy and callbacks of a method.
    """

    def __init__(self, path: Path, takes_all: bool, prepare: Prepare = prepare) -> None:
        self.path, self.takes_all, self.prepare = path, takes_all, prepare

    def read(self) -> list[Run]:
        if not self.path.is_file():
            return []
        entries = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        runs = [Run(**{**entry, "setting": Setting(**entry["setting"])}) for entry in entries]
        return [run for run in runs if self.takes_all or run.setting.code == code_of(run.setting.method)]

    def _key(self, setting: Setting) -> Setting:
        return replace(setting, code="") if self.takes_all else setting

    def get(self, task: Task, setting: Setting) -> Run:
        """A finished training, which is made if it is not there."""
        known = {self._key(run.setting): run for run in self.read()}
        if self._key(setting) in known:
            return known[self._key(setting)]
        run = train(task, setting, self.prepare)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(run)) + "\n")
        print(
            f"{setting.task}, {setting.sparsity:.0%} zeros, {setting.method}, rate {setting.rate:g},"
            f" seed {setting.seed}: validation {run.validation:.4f}, test {run.test:.4f} ({run.seconds:.0f} s)",
            flush=True,
        )
        return run


def train(task: Task, setting: Setting, prepare: Prepare = prepare) -> Run:
    """One training, from its seed to its figures."""
    pl.seed_everything(setting.seed, verbose=False)
    module = Classifier(task.network())
    strategy, callbacks = prepare(setting.method, setting.rate, setting.sparsity, module, task.epochs)
    trainer = pl.Trainer(
        max_epochs=task.epochs,
        accelerator="cpu",
        devices=1,
        strategy=strategy,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.fit(module, task.data.train())
    seconds = time.perf_counter() - start
    sparse = weights(module)
    return Run(
        setting,
        figure(module.network, task.data.held_out["val"], task.is_text),
        figure(module.network, task.data.held_out["test"], task.is_text),
        sum(int((w == 0).sum()) for w in sparse) / sum(w.numel() for w in sparse),
        seconds,
    )


def best_rate(runs: Runs, task: Task, name: str, sparsity: float, method: str, seed: int) -> float:
    """The learning rate that is best by the validation split."""
    choices = rates(method, task.rates)
    if len(choices) == 1:
        return choices[0]
    tried = [runs.get(task, Setting(name, sparsity, method, rate, seed, code_of(method))) for rate in choices]
    # A training that was lost may leave a figure that is no number.
    known = [run for run in tried if run.validation == run.validation]
    choose = min if task.is_text else max
    return choose(known, key=lambda run: run.validation).setting.rate


@dataclass(frozen=True)
class Row:
    """One method at one sparsity, over its seeds."""

    task: str
    title: str
    sparsity: float
    method: str
    rate: float
    tests: tuple[float, ...]
    zeros: float
    seconds: float
    tuning: int

    @property
    def mean(self) -> float:
        return statistics.mean(self.tests)

    def cells(self, is_text: bool) -> list[str]:
        shown = [f"{t:.4f}" if is_text else f"{100 * t:.2f}" for t in (self.mean, *self.tests)]
        rate = "-" if not self.rate else f"{self.rate:g} of {self.tuning}"
        return [self.title, f"{self.sparsity:.1%}", self.method, rate, f"**{shown[0]}**", ", ".join(shown[1:]),
                f"{100 * self.zeros:.2f} %", f"{self.seconds:.0f}"]  # fmt: skip


HEADER = ("task", "zeros", "method", "learning rate", "test", "seeds", "zeros found", "seconds")


def measure(runs: Runs, name: str, task: Task, options: argparse.Namespace) -> list[Row]:
    """Makes what is missing of one task, and sums it up."""
    rows = []
    for sparsity in options.sparsities:
        for method in options.methods:
            if sparsity == 0.0 and method not in ("bsqh", "sgd", "adamw"):
                continue
            rate = best_rate(runs, task, name, sparsity, method, options.seeds[0])
            each = [
                runs.get(task, Setting(name, sparsity, method, rate, seed, code_of(method))) for seed in options.seeds
            ]
            zeros, seconds = (statistics.mean(getattr(r, key) for r in each) for key in ("zeros", "seconds"))
            tests = tuple(run.test for run in each)
            rows.append(
                Row(name, task.title, sparsity, method, rate, tests, zeros, seconds, len(rates(method, task.rates)))
            )
    return rows


def write(rows: Sequence[Row], texts: set[str], folder: Path) -> None:
    """Table, CSV and figure."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(row.cells(row.task in texts)) + " |" for row in rows]
    (folder / "frontier.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (folder / "frontier.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("task", "sparsity", "method", "rate", "mean", "tests", "zeros", "seconds"))
        for r in rows:
            table.writerow(
                (r.task, r.sparsity, r.method, r.rate, r.mean, " ".join(map(str, r.tests)), r.zeros, r.seconds)
            )
    draw(rows, texts, folder / "frontier.png")


def draw(rows: Sequence[Row], texts: set[str], path: Path) -> None:
    tasks = list(dict.fromkeys(row.task for row in rows))
    picture = Figure(figsize=(4.2 * len(tasks), 3.6), layout="constrained")
    FigureCanvasAgg(picture)
    for axes, task in zip(picture.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for color, method in zip(COLORS, METHODS, strict=True):
            own = [row for row in rows if (row.task, row.method) == (task, method)]
            # Evenly, as the last per cents of zeros are what matters.
            axes.plot([f"{100 * r.sparsity:g}" for r in own], [r.mean for r in own], "o-", color=color, label=method)
        axes.set_title(next(row.title for row in rows if row.task == task), fontsize=9)
        axes.set_xlabel("weights that are zero, %")
        axes.set_ylabel("bits per character" if task in texts else "test accuracy")
    picture.axes[0].legend(fontsize=7)
    picture.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--tasks", nargs="+", default=["digits"], choices=["digits", "lstm", "text", "mnist", "cifar10"]
    )
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.0, 0.9, 0.95])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--mnist", help="folder with the IDX files")
    parser.add_argument("--cifar10", help="folder with the images")
    parser.add_argument("--output", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--all", action="store_true", help="also count trainings that other code has made")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    runs, rows, texts = Runs(options.output / "runs.jsonl", options.all), [], set()
    for name in options.tasks:
        task = make_task(name, options.mnist, options.cifar10)
        texts |= {name} if task.is_text else set()
        rows += measure(runs, name, task, options)
        write(rows, texts, options.output)
    Console(width=140).print((options.output / "frontier.md").read_text(encoding="utf-8"), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
