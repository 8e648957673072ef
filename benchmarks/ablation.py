"""What every part of the method is worth: the same trainings with one part off, or another way, at a time.

    python benchmarks/ablation.py [--tasks digits lstm text mnist cifar10] [--sparsities 0 0.9] [--variants …]
        [--seeds 0 1 2] [--mnist FOLDER] [--cifar10 FOLDER] [--output runs/ablation]

Tasks, budgets and the file of finished trainings are those of benchmarks/frontier.py. The table (ablation.md, also
printed) gives the mean test figure over the seeds and how far it is from that of the method as it comes.
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from frontier import Runs, Setting, code_of
from frontier_tasks import Task, make_task
from rich.console import Console

from lightning_bsqh import L2, Backtracking, BSQHStrategy, Cardinality, Curvature

BASE = "bsqh"

#: By name, what is different; each is made anew for every training. ``of`` is the share of zeros.
VARIANTS: dict[str, Callable[[float], dict[str, Any]]] = {
    BASE: lambda of: {},
    "no large start (62.5)": lambda of: {"augmentation": Curvature(epsilon=62.5)},
    "no lengths of steps": lambda of: {"augmentation": Curvature(longest=math.inf, shortest=0.0)},
    "no shortest step": lambda of: {"augmentation": Curvature(shortest=0.0)},
    "no schedule": lambda of: {"augmentation": Curvature(schedule=False)},
    "no limit of outliers": lambda of: {"augmentation": Curvature(outlier=None)},
    "backtracking": lambda of: {"augmentation": Backtracking()},
    "no averaging": lambda of: {"averaging": 0.0},
    "metric euclidean": lambda of: {"metric": "euclidean"},
    "fewer tests (auto)": lambda of: {"trial_every": "auto"},
    "no ramp": lambda of: {"regularizer": Cardinality(of, ramp=(0.0, 0.0))},
    "selection by layer": lambda of: {"regularizer": Cardinality(of, scope="layer")},
    "weight decay 1e-3": lambda of: {"regularizer": Cardinality(of) + L2(rho=1e-3)},
}


def prepare(method: str, rate: float, sparsity: float, module: Any, epochs: int) -> tuple[Any, list[pl.Callback]]:
    """The strategy of a variant, as :class:`frontier.Runs` asks for it."""
    name = method.removeprefix(f"{BASE}, ")
    return BSQHStrategy(**{"regularizer": Cardinality(sparsity), **VARIANTS[name](sparsity)}), []


def means(runs: Runs, name: str, task: Task, sparsity: float, variant: str, seeds: list[int]) -> float:
    """The mean test figure, after the trainings that are missing."""
    method = variant if variant == BASE else f"{BASE}, {variant}"
    settings = [Setting(name, sparsity, method, 0.0, seed, code_of(method)) for seed in seeds]
    return statistics.mean(runs.get(task, setting).test for setting in settings)


def cell(found: float, base: float, is_text: bool) -> str:
    """A figure and how far it is from that of the method as it comes."""
    # The same answers, found in other seeds, have means that differ in their last digits.
    if math.isclose(found, base, abs_tol=1e-6):
        return f"{found:.3f}" if is_text else f"{100 * found:.2f}"
    return f"{found:.3f} ({found - base:+.3f})" if is_text else f"{100 * found:.2f} ({100 * (found - base):+.2f})"


def table(runs: Runs, options: argparse.Namespace) -> str:
    """All that is asked for, a row per variant and a column per task and share of zeros."""
    tasks = {name: make_task(name, options.mnist, options.cifar10) for name in options.tasks}
    columns = [(name, sparsity) for name in tasks for sparsity in options.sparsities]
    heads = [f"{tasks[name].title}, {sparsity:.0%} zeros" for name, sparsity in columns]
    lines = ["| " + " | ".join(["variant", *heads]) + " |", "|" + "---|" * (len(heads) + 1)]
    base = {(n, s): means(runs, n, tasks[n], s, BASE, options.seeds) for n, s in columns}
    for variant in [BASE, *(v for v in options.variants if v != BASE)]:
        found = {(n, s): means(runs, n, tasks[n], s, variant, options.seeds) for n, s in columns}
        cells = [cell(found[column], base[column], tasks[column[0]].is_text) for column in columns]
        lines.append("| " + " | ".join([variant, *cells]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["digits"])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.9])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--mnist", help="folder with the IDX files")
    parser.add_argument("--cifar10", help="folder with the images")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    found = table(Runs(options.output / "runs.jsonl", False, prepare), options)
    (options.output / "ablation.md").write_text(found, encoding="utf-8")
    Console(width=140).print(found, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
