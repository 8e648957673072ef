"""What the page says beside its charts, as plain data for its template."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_bsqh.export.before_after import read_kept
from lightning_bsqh.report.charts import layer_keys
from lightning_bsqh.report.checkpoints import Weights
from lightning_bsqh.report.masks import Mask, draw_mask
from lightning_bsqh.report.metrics import Series, finite, rejections, settled
from lightning_bsqh.report.names import display_names
from lightning_bsqh.report.reading import Run
from lightning_bsqh.report.settings import show_setting

# What tells one training from another; the other settings are folded away.
_MAIN_SETTINGS = ("seed_everything", "model.", "data.", "trainer.strategy", "trainer.max_")
#: What stands where a run has nothing.
NOTHING = "–"


def method(runs: Sequence[Run]) -> str:
    """Which of the runs bSQH has trained, as far as their metrics tell."""
    trained = [run.name for run in runs if "bsqh/epsilon" in run.metrics]
    if not trained:
        return "Written by lightning-bsqh."
    who = "Trained" if len(trained) == len(runs) else f"{', '.join(trained)} trained"
    return f"{who} by the batch sequential quadratic Hamiltonian method (lightning-bsqh)."


def summary(runs: Sequence[Run]) -> dict[str, list[str]]:
    """What came out, in words and numbers: for each line the values of all runs."""
    told = [_outcome(run) | _sparsity(run) | _steps(run) for run in runs]
    names = dict.fromkeys(name for one in told for name in one)
    return {name: [one.get(name, NOTHING) for one in told] for name in names}


def _outcome(run: Run) -> dict[str, str]:
    # Tests first: they tell what came out.
    own = [key for key in run.metrics if "/" not in key]
    keys = sorted(own, key=lambda key: (not key.startswith("test"), not key.startswith("val"), key))
    return {key: _last_and_best(key, run.metrics[key]) for key in keys}


def _last_and_best(key: str, series: Series) -> str:
    steps, values = finite(series)
    if not values:
        return "not finite"
    share = "acc" in key and all(0.0 <= value <= 1.0 for value in values)
    shown = [f"{100.0 * value:.2f} %" if share else f"{value:.4g}" for value in values]
    if len(values) == 1 or not share:
        return shown[-1]
    best = max(range(len(values)), key=values.__getitem__)
    return f"{shown[-1]} (best {shown[best]}, step {steps[best]:,})"


def _sparsity(run: Run) -> dict[str, str]:
    said = {}
    _, zeros = finite(run.metrics.get("sparsity/total", ([], [])))
    if zeros:
        said["weights exactly zero, at the end"] = f"{100.0 * zeros[-1]:.2f} %"
        step = settled(run.metrics["sparsity/total"])
        if step is not None:
            said["that share reached at step"] = f"{step:,}"
        if run.target is not None and zeros[-1] < run.target - 1e-3:
            said["target"] = f"{100.0 * run.target:g} %, not reached"
    _, left = finite(run.metrics.get("nonzero/total", ([], [])))
    if left:
        said["weights left, at the end"] = f"{left[-1]:,.0f}"
    counted = [weights for weights in run.weights if weights.counted]
    if run.weights:
        size, empty = sum(w.nonzero.numel() for w in counted), sum(w.zeros for w in counted)
        said["weights exactly zero, in the checkpoint"] = f"{100.0 * empty / max(size, 1):.2f} %"
    return said


def _steps(run: Run) -> dict[str, str]:
    said = {}
    _, trials = finite(run.metrics.get("bsqh/trials", ([], [])))
    _, accepted = finite(run.metrics.get("bsqh/accepted", ([], [])))
    if trials and accepted:
        said["iterations logged"] = f"{len(trials):,}"
        said["accepted trials among them"] = f"{sum(accepted):,.0f}"
        said["rejected trials among them"] = f"{sum(rejections(run.metrics).values()):,}"
    for key, name, form in (("bsqh/skipped", "skipped batches", ",.0f"), ("bsqh/epsilon", "final ε", ".4g")):
        _, values = run.metrics.get(key, ([], []))
        if values:
            said[name] = f"{values[-1]:{form}}" if math.isfinite(values[-1]) else "not finite"
    if run.checkpoint is not None:
        step = "" if run.checkpoint_step is None else f", step {run.checkpoint_step:,}"
        said["checkpoint"] = f"{run.checkpoint.relative_to(run.folder)}{step}"
    return said


def exports(runs: Sequence[Run]) -> dict[str, list[list[str]]]:
    """The tables that the command export has left, by run; runs without one are left out."""
    kept = {run.name: read_kept(run.folder) for run in runs}
    return {name: rows for name, rows in kept.items() if rows}


@dataclass(frozen=True)
class LayerRow:
    """A row of the table of layers.

    Attributes:
        name: Full name of the tensor or layer.
        shown: The name as the table shows it.
        shape: The tensor's shape, as text; empty without a checkpoint.
        size: Its number of elements.
        regularized: Whether it counts for the sparsity in any run.
        of_runs: The tensor in each run, None where a run has none of this name and shape.
        shares: The share of zeros in each run, None where there is none.
    """

    name: str
    shown: str
    shape: str
    size: int
    regularized: bool
    of_runs: list[Weights | None]
    shares: list[float | None]


def layers(runs: Sequence[Run]) -> list[LayerRow]:
    """Every weight tensor of the checkpoints; without any, the layers and the shares of zeros logged last."""
    tensors = tensors_of(runs)
    if not tensors:
        return _logged(runs)
    shown = display_names(list(tensors), width=32)
    rows = []
    for name, of_runs in tensors.items():
        # One row for each shape: networks may differ from run to run.
        for shape in dict.fromkeys(shape_of(weights) for weights in of_runs if weights is not None):
            alike = [w if w is not None and shape_of(w) == shape else None for w in of_runs]
            present = [w for w in alike if w is not None]
            shares = [None if w is None else w.zeros / w.nonzero.numel() for w in alike]
            size, counted = present[0].nonzero.numel(), any(w.counted for w in present)
            rows.append(LayerRow(name, shown[name], shape, size, counted, alike, shares))
    return rows


def _logged(runs: Sequence[Run]) -> list[LayerRow]:
    found = list(dict.fromkeys(layer for run in runs for layer in layer_keys(run.metrics, "sparsity")))
    shown = display_names([layer for layer in found if layer != "total"], width=32) | {"total": "all layers"}
    rows = []
    for layer in found:
        series = [run.metrics.get(f"sparsity/{layer}") for run in runs]
        last = [None if one is None or not math.isfinite(one[1][-1]) else one[1][-1] for one in series]
        rows.append(LayerRow(layer, shown[layer], "", 0, True, [], last))
    return rows


def tensors_of(runs: Sequence[Run]) -> dict[str, list[Weights | None]]:
    """The tensors of all runs by name, None where a run has none of the name."""
    found = [{weights.name: weights for weights in run.weights} for run in runs]
    names = dict.fromkeys(name for tensors in found for name in tensors)
    return {name: [tensors.get(name) for tensors in found] for name in names}


def shape_of(weights: Weights) -> str:
    """The shape as text."""
    return " × ".join(str(size) for size in weights.nonzero.shape)


@dataclass(frozen=True)
class Figure:
    """The mask of one tensor in one run.

    Attributes:
        run: The run's name.
        mask: The picture.
        scale: How many screen pixels a pixel has in either direction.
        shape: The tensor's shape.
        said: The picture in words.
    """

    run: str
    mask: Mask
    scale: int
    shape: str
    said: str


def masks(runs: Sequence[Run]) -> list[tuple[str, str, list[Figure]]]:
    """Name, shown name and figures of every tensor; none without pillow, which draws them."""
    if importlib.util.find_spec("PIL") is None:
        return []
    tensors = tensors_of(runs)
    shown = display_names(list(tensors), width=32)
    cards = []
    for name, of_runs in tensors.items():
        found = [(run, weights) for run, weights in zip(runs, of_runs, strict=True) if weights is not None]
        cards.append((name, shown[name], [_figure(run.name, weights) for run, weights in found]))
    return cards


def _figure(run: str, weights: Weights) -> Figure:
    mask, shape = draw_mask(weights.nonzero), shape_of(weights)
    # Whole screen pixels for each weight, so that a pattern is not blurred.
    scale = max(1, min(320 // mask.width, 240 // mask.height, 12))
    said = f"{weights.name}, {shape}: {weights.zeros:,} of {weights.nonzero.numel():,} weights are zero"
    return Figure(run, mask, scale, shape, said)


@dataclass(frozen=True)
class Settings:
    """The settings of all runs.

    Attributes:
        sources: Which files they are from.
        different: Rows, a key and the values of all runs, in which the runs differ.
        main: Rows that tell one training from another.
        rest: All other rows.
    """

    sources: str
    different: list[tuple[str, list[str]]]
    main: list[tuple[str, list[str]]]
    rest: list[tuple[str, list[str]]]


def settings(runs: Sequence[Run]) -> Settings | None:
    """The settings, those first in which the runs differ; None if no run has any."""
    if not any(run.settings for run in runs):
        return None
    texts = [_texts(run.settings) for run in runs]
    files = [NOTHING if run.settings_file is None else run.settings_file.name for run in runs]
    # hparams.yaml holds less than config.yaml, and no file nothing: what is missing there is no difference.
    told = [text for text, file in zip(texts, files, strict=True) if file == "config.yaml"] or texts
    rows = {key: [text.get(key, NOTHING) for text in texts] for key in dict.fromkeys(k for text in texts for k in text)}
    differing = {key for key in rows if len({text.get(key) for text in told}) > 1}
    main = {key for key in rows if key.startswith(_MAIN_SETTINGS)} - differing
    each = [f"{run.name}: {file}" for run, file in zip(runs, files, strict=True)]
    return Settings(
        sources=", ".join(files if len(runs) == 1 else each),
        different=[row for row in rows.items() if row[0] in differing],
        main=[row for row in rows.items() if row[0] in main],
        rest=[row for row in rows.items() if row[0] not in differing | main],
    )


def _texts(found: Mapping[str, object]) -> dict[str, str]:
    # A key that starts with an underscore is Lightning's own note.
    return {key: show_setting(value) for key, value in found.items() if value is not None and not key.startswith("_")}
