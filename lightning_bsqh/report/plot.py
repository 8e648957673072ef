"""One picture of a training, from the metrics that a CSVLogger wrote."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Steps and values of one metric.
Series = tuple[list[int], list[float]]

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart; further layers get other dashes.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", ":", "-.")
_TOTAL_COLOUR = "black"


def plot_training(metrics_csv: str | os.PathLike[str], png: str | os.PathLike[str]) -> None:
    """Draws objective, ε and the sparsity of each layer over the iterations, one above the other.

    Args:
        metrics_csv: What a CSVLogger wrote in a training with
            :class:`~lightning_bsqh.callbacks.AugmentationMonitor` and
            :class:`~lightning_bsqh.callbacks.SparsityMonitor`.
        png: Where to write the picture.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        ValueError: If the file lacks the metrics.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plot_training draws with matplotlib: pip install matplotlib") from error
    metrics = read_metrics(metrics_csv)
    needed = ("bsqh/objective", "bsqh/epsilon", "bsqh/trials", "bsqh/accepted", "sparsity/total")
    missing = [key for key in needed if key not in metrics]
    if missing:
        raise ValueError(
            f"{metrics_csv} has no values of {missing[0]}: train with the callbacks AugmentationMonitor and"
            " SparsityMonitor, and with a log_every_n_steps no longer than the training."
        )
    # No pyplot: that would choose a backend for the whole process.
    figure = Figure(figsize=(9.0, 9.0), layout="constrained")
    FigureCanvasAgg(figure)
    objective, epsilon, sparsity = figure.subplots(3, 1, sharex=True)
    _draw_objective(objective, metrics["bsqh/objective"])
    _draw_epsilon(epsilon, metrics["bsqh/epsilon"], rejections(metrics))
    _draw_sparsity(sparsity, metrics)
    sparsity.set_xlabel("iteration (batches)")
    for axes in (objective, epsilon, sparsity):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(png, dpi=150)


def read_metrics(metrics_csv: str | os.PathLike[str]) -> dict[str, Series]:
    """The series in a CSVLogger's file, by key; cells left empty are left out."""
    metrics: dict[str, Series] = {}
    with Path(metrics_csv).open(newline="") as file:
        for row in csv.DictReader(file):
            for key, cell in row.items():
                if cell and key not in ("step", "epoch"):
                    steps, values = metrics.setdefault(key, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(cell))
    return metrics


def rejections(metrics: Mapping[str, Series]) -> dict[int, int]:
    """Number of rejected trials in each iteration that had any."""
    accepted = dict(zip(*metrics["bsqh/accepted"], strict=True))
    counts = {step: int(trials - accepted[step]) for step, trials in zip(*metrics["bsqh/trials"], strict=True)}
    return {step: count for step, count in counts.items() if count > 0}


def short_names(layers: Sequence[str]) -> dict[str, str]:
    """Layers' names without the module path that all have in common, by their full names."""
    paths = [name.split(".") for name in layers]
    shared = 0
    while all(len(path) > shared + 1 for path in paths) and len({path[shared] for path in paths}) == 1:
        shared += 1
    return {name: ".".join(path[shared:]) for name, path in zip(layers, paths, strict=True)}


def _draw_objective(axes: Axes, series: Series) -> None:
    steps, values = series
    axes.plot(steps, values, color=_COLOURS[0], alpha=0.3, linewidth=0.8, label="each batch")
    window = max(len(values) // 50, 1)
    if window > 1:
        means = [sum(values[max(i - window + 1, 0) : i + 1]) / min(i + 1, window) for i in range(len(values))]
        axes.plot(steps, means, color=_COLOURS[0], linewidth=1.8, label=f"mean of the last {window}")
        axes.legend(loc="upper right", frameon=False)
    if all(value > 0.0 for value in values):
        axes.set_yscale("log")
    axes.set_ylabel("objective after the step")


def _draw_epsilon(axes: Axes, series: Series, rejected: Mapping[int, int]) -> None:
    axes.plot(*series, color=_COLOURS[2], linewidth=1.4, label="ε of the last trial")
    at = dict(zip(*series, strict=True))
    marked = [step for step in rejected if step in at]
    if marked:
        label = f"a trial was rejected ({sum(rejected.values())} trials in {len(rejected)} iterations)"
        heights = [at[step] for step in marked]
        axes.scatter(marked, heights, marker="x", s=30, color=_COLOURS[1], zorder=3, label=label)
    axes.set_yscale("log")
    axes.set_ylabel("augmentation ε")
    axes.legend(loc="upper left", frameon=False)


def _draw_sparsity(axes: Axes, metrics: Mapping[str, Series]) -> None:
    layers = [key.removeprefix("sparsity/") for key in metrics if key.startswith("sparsity/")]
    layers = [name for name in layers if name != "total"]
    names = short_names(layers)
    for index, layer in enumerate(layers):
        steps, values = metrics[f"sparsity/{layer}"]
        colour = _COLOURS[index % len(_COLOURS)]
        dash = _DASHES[index // len(_COLOURS) % len(_DASHES)]
        axes.plot(steps, [100.0 * v for v in values], color=colour, linestyle=dash, linewidth=1.4, label=names[layer])
    steps, values = metrics["sparsity/total"]
    axes.plot(steps, [100.0 * v for v in values], color=_TOTAL_COLOUR, linewidth=2.2, label="all layers")
    axes.set_ylim(-2.0, 102.0)
    axes.set_ylabel("zero weights (%)")
    # Beside the curves: with many layers it would cover them.
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
