"""The ε rules started far too small and far too large, against the best ε chosen by hand.

    python benchmarks/epsilon.py [--mnist FOLDER] [--cifar10 FOLDER] [--output runs/epsilon]

Every training uses the strategy's defaults but for the rule and the sparsity: the small LeNet on scikit-learn's digits
(20 epochs, batch 64); LeNet-5 on MNIST (5 epochs, batch 128) and ResNet-8 on 20,000 images of CIFAR-10 (10 epochs,
batch 128, as recipes/cifar10_resnet8.yaml) where their folders are given.

Rules: "fixed" is one ε⁰ for the whole training (raised by the cosine, and within an iteration after a rejection); the
best of a scan of it is the best hand-chosen ε⁰. It is chosen by the test accuracy itself, which favours it. "curvature"
and "backtracking" start at --starts times that best ε⁰, or times --around where the scan has not been made.

Every finished training is a line of runs.jsonl in the output folder and is not repeated, so the table can be made in
pieces. A line belongs to the code and the settings of the rule that made it: after a change of the rule the old lines
stay but no longer count. What trains around the rule is not looked at: after a change there, take an empty folder.
Table and picture are made of all lines that count: epsilon.md, epsilon.png.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import inspect
import json
import logging
import math
import statistics
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from rich.console import Console
from rich.table import Table
from torch import nn

from lightning_bsqh import Backtracking, BSQHStrategy, Cardinality, Curvature
from lightning_bsqh.method.augmentation import Augmentation, Trial
from lightning_bsqh.method.metric import make_metric
from lightning_bsqh.optimizer import BSQHOptimizer
from lightning_bsqh.zoo import ImageClassifier, LeNet5, ResNet8, SmallLeNet
from lightning_bsqh.zoo.data import CIFAR10DataModule, DigitsDataModule, MNISTDataModule
from lightning_bsqh.zoo.data.batches import InMemoryDataModule, TensorImages

METRIC = "rms"
MAX_TRIALS = 6
#: A run whose test accuracy is at most this share (twice that of guessing among ten classes) is lost.
LOST = 0.2
#: Points of the test accuracy by which a start may miss the best hand-chosen ε⁰.
TOLERANCE = 0.5
#: Points kept of the trace of ε.
TRACE = 200
# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7")


class Fixed(Augmentation):
    """ε⁰ for every iteration; within one, a rejected trial multiplies it by 1.5.

    Args:
        epsilon: ε⁰ > 0.
        max_trials: The optimizer's; after so many rejections in a row the iteration is over.
    """

    def __init__(self, epsilon: float, max_trials: int = MAX_TRIALS) -> None:
        super().__init__(epsilon)
        self.first = epsilon
        self.max_trials = max_trials
        self._rejections = 0

    def observe(self, trial: Trial) -> None:
        self._rejections = 0 if trial.accepted else self._rejections + 1
        if self._rejections == self.max_trials:
            self._rejections = 0
        self.epsilon = self.first * 1.5**self._rejections


RULES: dict[str, Callable[[float], Augmentation]] = {
    "fixed": Fixed,
    "curvature": lambda epsilon: Curvature(epsilon=epsilon),
    "backtracking": lambda epsilon: Backtracking(epsilon=epsilon, sigma=1.5, zeta=0.95),
}


@dataclass(frozen=True)
class Task:
    """What is trained; ``data`` keeps its images in memory from one training to the next."""

    name: str
    title: str
    network: Callable[[], nn.Module]
    data: InMemoryDataModule
    epochs: int


@dataclass(frozen=True)
class Setting:
    """Names one training; two with the same one give the same numbers on the same machine."""

    network: str
    epochs: int
    sparsity: float
    rule: str
    epsilon: float
    seed: int
    fingerprint: str


@dataclass
class Run:
    """One finished training.

    Attributes:
        setting: What was trained.
        accuracy: Test accuracy, a share.
        zeros: Share of exact zeros among the regularised weights.
        rejected: Share of rejected trials.
        idle: Share of iterations that accepted no trial.
        lost: Whether the network ends no better than twice guessing, or is not finite.
        epsilons: (iteration, ε of its last trial), thinned.
        accuracies: Test accuracy after each epoch.
        rejections: Share of rejected trials in each epoch.
        seconds: Wall clock.
    """

    setting: Setting
    accuracy: float
    zeros: float
    rejected: float
    idle: float
    lost: bool
    epsilons: list[tuple[int, float]] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    rejections: list[float] = field(default_factory=list)
    seconds: float = 0.0


@functools.cache
def fingerprint(name: str) -> str:
    """Eight hex digits of a rule's code (docstrings and comments aside) and its settings, the start aside."""
    # Once per process: the code is that which was loaded, whatever becomes of the file meanwhile.
    rule = RULES[name](1.0)
    metric = make_metric(METRIC)
    rule.prepare(metric.rule_defaults)
    digest = hashlib.sha256()
    for cls in type(rule).__mro__:
        if issubclass(cls, Augmentation):
            tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
            for node in ast.walk(tree):
                if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                    node.body = node.body[1:]
            digest.update(ast.dump(tree).encode())
    settings = {k: v for k, v in vars(rule).items() if not k.startswith("_") and k not in ("first", "schedule")}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:8]


class Watch(pl.Callback):
    """Keeps what each iteration did, and the test accuracy after each epoch, without drawing random numbers."""

    def __init__(self, data: InMemoryDataModule) -> None:
        self.data = data
        self.epsilons: list[float] = []
        self.trials: list[list[int]] = []
        self.idle = 0
        self.accuracies: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.trials.append([0, 0])

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        optimizer = trainer.optimizers[0]
        assert isinstance(optimizer, BSQHOptimizer)
        report = optimizer.last_step
        if report is not None:
            self.epsilons.append(report.epsilon)
            self.trials[-1][0] += report.trials
            self.trials[-1][1] += report.trials - report.accepted
            self.idle += not report.accepted

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.data.test_set is None:
            self.data.setup("test")
        assert self.data.test_set is not None
        self.accuracies.append(accuracy(pl_module, self.data.test_set))


@torch.no_grad()
def accuracy(model: nn.Module, images: TensorImages, chunk: int = 1000) -> float:
    """Share of the images that the model, in evaluation mode, puts into the right class."""
    training = model.training
    model.eval()
    correct = 0
    for start in range(0, len(images), chunk):
        rows = list(range(start, min(start + chunk, len(images))))
        batch, labels = images.__getitems__(rows)
        correct += int((model(batch).argmax(dim=1) == labels).sum())
    model.train(training)
    return correct / len(images)


def train(task: Task, setting: Setting) -> Run:
    """One training, from its seed to its figures."""
    start = time.perf_counter()
    pl.seed_everything(setting.seed, verbose=False)
    model = ImageClassifier(task.network())
    watch = Watch(task.data)
    trainer = pl.Trainer(
        max_epochs=task.epochs,
        accelerator="cpu",
        strategy=BSQHStrategy(
            regularizer=Cardinality(setting.sparsity),
            augmentation=RULES[setting.rule](setting.epsilon),
            metric=METRIC,
            max_trials=MAX_TRIALS,
        ),
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=task.data)
    optimizer = trainer.optimizers[0]
    assert isinstance(optimizer, BSQHOptimizer)
    finite = all(bool(torch.isfinite(p).all()) for p in model.parameters())
    trials = sum(total for total, _ in watch.trials)
    stride = max(math.ceil(len(watch.epsilons) / TRACE), 1)
    return Run(
        setting=setting,
        accuracy=watch.accuracies[-1],
        zeros=optimizer.sparsity(),
        rejected=sum(rejected for _, rejected in watch.trials) / max(trials, 1),
        idle=watch.idle / max(len(watch.epsilons), 1),
        lost=not finite or watch.accuracies[-1] <= LOST,
        epsilons=[(i, watch.epsilons[i]) for i in range(0, len(watch.epsilons), stride)],
        accuracies=watch.accuracies,
        rejections=[rejected / max(total, 1) for total, rejected in watch.trials],
        seconds=time.perf_counter() - start,
    )


# ---------------------------------------------------------------- the file of finished runs


def read(path: Path) -> list[Run]:
    """The runs in the file that belong to the present rules; none if there is no file."""
    if not path.is_file():
        return []
    present = {name: fingerprint(name) for name in RULES}
    runs = []
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        run = Run(**{**entry, "setting": Setting(**entry["setting"])})
        if present.get(run.setting.rule) == run.setting.fingerprint:
            runs.append(run)
    return runs


def append(path: Path, run: Run) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(run)) + "\n")


def mean_accuracy(runs: Iterable[Run]) -> float:
    """In per cent."""
    return 100.0 * statistics.mean(run.accuracy for run in runs)


def by_epsilon(runs: Iterable[Run], setting: tuple[str, int, float], rule: str) -> dict[float, list[Run]]:
    """Runs of one network, number of epochs, sparsity and rule, by their ε⁰ in rising order; seeds in order."""
    chosen: dict[float, list[Run]] = {}
    for run in runs:
        s = run.setting
        if (s.network, s.epochs, s.sparsity) == setting and s.rule == rule:
            chosen.setdefault(s.epsilon, []).append(run)
    return {e: sorted(chosen[e], key=lambda run: run.setting.seed) for e in sorted(chosen)}


def best_fixed(runs: Iterable[Run], setting: tuple[str, int, float]) -> float | None:
    """The ε⁰ of the scan with the best mean test accuracy, among those with the most seeds; None without a scan."""
    scan = by_epsilon(runs, setting, "fixed")
    if not scan:
        return None
    most = max(len(each) for each in scan.values())
    return max((e for e in scan if len(scan[e]) == most), key=lambda e: mean_accuracy(scan[e]))


def measure(tasks: Sequence[Task], options: argparse.Namespace, file: Path, console: Console) -> None:
    """Makes the trainings that the file lacks: for each network and sparsity the scan first, then the starts."""
    default = make_metric(METRIC).rule_defaults.epsilon
    for task in tasks:
        for sparsity in options.sparsities:
            for rule in sorted(options.rules, key=lambda name: name != "fixed"):
                if rule == "fixed":
                    epsilons = list(options.scan)
                else:
                    around = options.around or best_fixed(read(file), (task.name, task.epochs, sparsity))
                    epsilons = [factor * (around or default) for factor in options.starts]
                for epsilon in epsilons:
                    for seed in options.seeds:
                        make_one(task, sparsity, rule, epsilon, seed, file, console)


def make_one(task: Task, sparsity: float, rule: str, epsilon: float, seed: int, file: Path, console: Console) -> None:
    setting = Setting(task.name, task.epochs, sparsity, rule, epsilon, seed, fingerprint(rule))
    if any(run.setting == setting for run in read(file)):
        return
    run = train(task, setting)
    append(file, run)
    lost = ", lost" if run.lost else ""
    console.print(
        f"{task.name}, {sparsity:.0%} zeros, {rule}, ε⁰ = {epsilon:g}, seed {seed}: {100 * run.accuracy:.2f} %,"
        f" {run.rejected:.1%} rejected{lost} ({run.seconds:.0f} s)",
        soft_wrap=True,
        highlight=False,
    )


# ---------------------------------------------------------------- table and picture


@dataclass(frozen=True)
class Row:
    """One line of the table: a network at a sparsity, trained by one rule from one ε⁰, over its seeds.

    ``times_best`` is ε⁰ over the best hand-chosen one, ``difference`` the points of accuracy between the two over the
    seeds that both have; None where there is none.
    """

    title: str
    sparsity: float
    rule: str
    epsilon: float
    times_best: float | None
    runs: Sequence[Run]
    difference: float | None
    is_best: bool

    @property
    def verdict(self) -> str:
        if any(run.lost for run in self.runs):
            return f"{sum(run.lost for run in self.runs)} lost"
        if self.rule == "fixed":
            return "best hand-chosen" if self.is_best else ""
        if self.difference is None:
            return ""
        return "within" if self.difference >= -TOLERANCE else "misses"

    def cells(self) -> list[str]:
        factor = "" if self.times_best is None else f"{self.times_best:.3g}"
        zeros = [run.zeros for run in self.runs]
        return [
            f"{self.epsilon:g}",
            factor,
            f"{mean_accuracy(self.runs):.2f} %",
            f"{len(self.runs)}",
            "" if self.difference is None or self.is_best else f"{self.difference:+.2f}",
            f"{100 * statistics.mean(zeros):.2f} %",
            f"{100 * statistics.mean(run.rejected for run in self.runs):.1f} %",
            self.verdict,
        ]


HEADER = ("ε⁰", "× best", "test accuracy", "seeds", "difference", "zeros", "rejected", "verdict")


def rows(tasks: Sequence[Task], runs: Sequence[Run]) -> list[Row]:
    result = []
    for task in tasks:
        for sparsity in sorted({run.setting.sparsity for run in runs}):
            key = (task.name, task.epochs, sparsity)
            best = best_fixed(runs, key)
            reference = {} if best is None else {r.setting.seed: r for r in by_epsilon(runs, key, "fixed")[best]}
            for rule in RULES:
                for epsilon, each in by_epsilon(runs, key, rule).items():
                    shared = [run for run in each if run.setting.seed in reference]
                    difference = None
                    if shared:
                        own_best = [reference[run.setting.seed] for run in shared]
                        difference = mean_accuracy(shared) - mean_accuracy(own_best)
                    times = None if best is None else epsilon / best
                    is_best = rule == "fixed" and epsilon == best
                    result.append(Row(task.title, sparsity, rule, epsilon, times, each, difference, is_best))
    return result


def print_table(lines: Sequence[Row], console: Console) -> None:
    table = Table(title=f"within: at most {TOLERANCE:g} points below the best hand-chosen ε⁰ of the same network")
    for column in ("network", "zeros", "rule", *HEADER):
        table.add_column(column, justify="left" if column in ("network", "rule", "verdict") else "right")
    before: tuple[Any, ...] = ()
    for row in lines:
        names = (row.title, f"{row.sparsity:.0%}", row.rule)
        if before and names != before:
            table.add_section()
        style = "bold red" if "lost" in row.verdict or row.verdict == "misses" else ""
        table.add_row(*(names if names != before else ("", "", "")), *row.cells(), style=style)
        before = names
    console.print(table)


def write_markdown(lines: Sequence[Row], path: Path) -> None:
    text = ["| network | zeros asked | rule | " + " | ".join(HEADER) + " |", "|---" * (3 + len(HEADER)) + "|"]
    for row in lines:
        text.append("| " + " | ".join([row.title, f"{row.sparsity:.0%}", row.rule, *row.cells()]) + " |")
    path.write_text("\n".join(text) + "\n", encoding="utf-8")


def colour(times_best: float) -> str:
    """The same for the same power of ten in all panels."""
    return COLOURS[min(max(round(math.log10(times_best)) + 2, 0), len(COLOURS) - 1)]


def draw(tasks: Sequence[Task], runs: Sequence[Run], sparsity: float, png: Path) -> None:
    """For each network, at one sparsity and the first seed: ε, rejections and test error over the training."""
    figure = Figure(figsize=(12.0, 3.2 * len(tasks)), layout="constrained")
    FigureCanvasAgg(figure)
    for task, axes in zip(tasks, figure.subplots(len(tasks), 3, squeeze=False), strict=True):
        key = (task.name, task.epochs, sparsity)
        best = best_fixed(runs, key)
        chosen: list[tuple[str, Run]] = []
        styles: list[dict[str, Any]] = []
        for epsilon, each in by_epsilon(runs, key, "curvature").items():
            chosen.append((f"curvature, ε⁰ = {epsilon:g}", each[0]))
            styles.append({"color": colour(epsilon / (best or make_metric(METRIC).rule_defaults.epsilon))})
        if best is not None:
            chosen.append((f"fixed, ε⁰ = {best:g} (best)", by_epsilon(runs, key, "fixed")[best][0]))
            styles.append({"color": "black", "linestyle": "--"})
        for (label, run), style in zip(chosen, styles, strict=True):
            epochs = range(1, len(run.accuracies) + 1)
            axes[0].plot(*zip(*run.epsilons, strict=True), label=label, linewidth=1.2, **style)
            axes[1].plot(epochs, [100 * share for share in run.rejections], linewidth=1.2, **style)
            # A network without any error would fall off a logarithmic axis.
            errors = [100 * max(1.0 - share, 1e-4) for share in run.accuracies]
            axes[2].plot(epochs, errors, linewidth=1.2, label=label, **style)
        axes[0].set(yscale="log", xlabel="iteration", ylabel="ε (with the raise at the end)")
        axes[1].set(xlabel="epoch", ylabel="rejected trials (%)", ylim=(0, None))
        axes[2].set(yscale="log", xlabel="epoch", ylabel="test error (%)")
        axes[2].yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axes[2].yaxis.set_major_formatter("{x:g}")
        axes[2].yaxis.set_minor_locator(NullLocator())
        axes[0].set_title(f"{task.title}, {sparsity:.0%} zeros", loc="left")
        axes[2].legend(fontsize=8, frameon=False)
        for each_axes in axes:
            each_axes.grid(alpha=0.3)
            each_axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(png, dpi=80)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = ["digits", "mnist", "cifar10"]
    parser.add_argument("--networks", nargs="+", default=names, choices=names)
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.0, 0.9, 0.95])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--scan", nargs="+", type=float, default=[15.625, 31.25, 62.5, 125.0, 250.0])
    parser.add_argument("--starts", nargs="+", type=float, default=[0.01, 0.1, 1.0, 10.0, 100.0])
    parser.add_argument("--around", type=float, help="what --starts are multiples of; default: the best of the scan")
    parser.add_argument("--epochs", type=int, help="for all networks, instead of each one's own number")
    parser.add_argument("--drawn-sparsity", type=float, default=0.95, help="that of the picture")
    parser.add_argument("--table-only", action="store_true", help="train nothing, show what the output folder has")
    parser.add_argument("--mnist", help="folder with the IDX files")
    parser.add_argument("--cifar10", help="folder with the images")
    parser.add_argument("--output", type=Path, default=Path("runs/epsilon"), help="folder for runs, table and picture")
    options = parser.parse_args(arguments)
    if options.epochs is not None and options.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {options.epochs}")
    for name, values in (("--scan", options.scan), ("--starts", options.starts), ("--around", [options.around or 1.0])):
        if any(not 0.0 < value < math.inf for value in values):
            parser.error(f"{name} takes positive numbers, got {values}")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    console = Console(width=None if sys.stdout.isatty() else 140)
    tasks = [Task("digits", "digits, SmallLeNet", SmallLeNet, DigitsDataModule(val_images=0), options.epochs or 20)]
    if options.mnist:
        tasks.append(Task("mnist", "MNIST, LeNet-5", LeNet5, MNISTDataModule(options.mnist), options.epochs or 5))
    if options.cifar10:
        # Decoding takes a while: once for all pieces of the table.
        data = CIFAR10DataModule(options.cifar10, train_images=20000, cache_dir=str(options.output))
        tasks.append(Task("cifar10", "CIFAR-10, ResNet-8", ResNet8, data, options.epochs or 10))
    tasks = [task for task in tasks if task.name in options.networks]
    for name in options.networks:
        if name not in {task.name for task in tasks}:
            console.print(f"{name} is left out: --{name} FOLDER tells where its images are.")
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "runs.jsonl"
    if not options.table_only:
        measure(tasks, options, file, console)
    runs = read(file)
    done = {(run.setting.network, run.setting.epochs) for run in runs}
    tasks = [task for task in tasks if (task.name, task.epochs) in done]
    if not tasks:
        console.print("Nothing has been measured.")
        return 0
    lines = rows(tasks, runs)
    print_table(lines, console)
    write_markdown(lines, options.output / "epsilon.md")
    draw(tasks, runs, options.drawn_sparsity, options.output / "epsilon.png")
    console.print(f"Written: {file}, epsilon.md, epsilon.png", soft_wrap=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
