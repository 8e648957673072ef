"""The charts of the report, as the plain dictionaries that plotly.js draws."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_bsqh.report import explanations as words
from lightning_bsqh.report.axes import epoch_axis, has_legend, layout, linear, logarithmic, targets
from lightning_bsqh.report.curves import (
    COLORS,
    DASHES,
    REJECTED,
    TEXT_COLOR,
    crosses,
    line,
    moving_mean,
    number,
    style,
)
from lightning_bsqh.report.explanations import Explained
from lightning_bsqh.report.metrics import Series, rejections
from lightning_bsqh.report.names import display_names
from lightning_bsqh.report.reading import Run

_SINGLES = {
    "bsqh/tau": words.STEP_LENGTH,
    "bsqh/trials": words.TRIALS,
    "nonzero/total": words.NONZERO,
    "multiply_adds/share": words.MULTIPLY_ADDS,
}
_LAYERED = {
    "pmp_residual": words.RESIDUAL,
    "hamiltonian": words.HAMILTONIAN,
    "augmented_hamiltonian/gain": words.GAIN,
}
_KNOWN = (
    "bsqh/",
    "nonzero/",
    "sparsity/",
    "hamiltonian/",
    "augmented_hamiltonian/",
    "pmp_residual/",
    "support/",
    "multiply_adds/",
)
# So few lines are drawn one thinner than the other, so that one that lies on another leaves its rim.
_FEW = 6


@dataclass
class Chart:
    """One chart.

    Attributes:
        about: Its words and what its axis may be.
        title: What it shows.
        note: Sentences below the title; may be empty.
        data: The traces, for ``Plotly.newPlot``.
        layout: The layout, for ``Plotly.newPlot``.
    """

    about: Explained
    title: str = ""
    note: str = ""
    data: list[dict[str, Any]] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.title = self.title or self.about.title
        self.note = self.note or self.about.note

    def say(self, sentence: str) -> None:
        """Adds a sentence to the note."""
        self.note = f"{self.note} {sentence}".strip()

    @property
    def as_json(self) -> dict[str, Any]:
        """What the page's script gets."""
        return {"title": self.title, "data": self.data, "layout": self.layout}


def charts(runs: Sequence[Run]) -> list[Chart]:
    """All charts that the runs have values for, the most telling first.

    With one run, layers are the lines of a chart. With several, runs are the lines, and what there is by layer has a
    chart of the totals and one of the layers for each run.
    """
    made = [
        _objective(runs),
        _own(runs, "loss", words.LOSS),
        _epsilon(runs),
        *_by_layer(runs, "sparsity", words.SPARSITY),
    ]
    made += [_own(runs, "acc", words.ACCURACY), _decrease(runs)]
    made += [_single(runs, key, about) for key, about in _SINGLES.items()]
    made += [_support(runs)]
    made += [chart for prefix, about in _LAYERED.items() for chart in _by_layer(runs, prefix, about)]
    others = [key for key in _user_keys(runs) if "loss" not in key and "acc" not in key]
    made += [_single(runs, key, Explained(key, key)) for key in others]
    if any(any(run.metrics.get("bsqh/skipped", ([], []))[1]) for run in runs):
        made += [_single(runs, "bsqh/skipped", words.SKIPPED)]
    made = [_finish(chart) for chart in made if chart.data]
    _share_steps(made, runs)
    return made


def _share_steps(made: Sequence[Chart], runs: Sequence[Run]) -> None:
    """One range of steps for all, so that charts can be compared one below the other, with epochs and targets."""
    steps = [step for chart in made for trace in chart.data for step in trace["x"]]
    first, last = min(steps, default=0), max(steps, default=1)
    above = epoch_axis(runs, last)
    shapes, annotations = targets(runs)
    for chart in made:
        chart.layout["xaxis"]["range"] = [first, max(last + 0.02 * (last - first), first + 1)]
        if above is not None:
            chart.layout["xaxis2"] = above
        chart.layout |= {"shapes": shapes, "annotations": annotations}
        if shapes and len(runs) > 1:
            chart.say("A dotted upright line: from here on the run has its final share of zeros.")


def _objective(runs: Sequence[Run]) -> Chart:
    chart = Chart(words.OBJECTIVE)
    for index, run in enumerate(runs):
        series = run.metrics.get("bsqh/objective", ([], []))
        if not series[0]:
            continue
        color, dash = style(index)
        window = max(len(series[0]) // 50, 1)
        if len(runs) == 1:
            faint = window > 1
            chart.data.append(line("each batch", series, color, width=1.0 if faint else 1.8))
            chart.data[-1]["opacity"] = 0.4 if faint else 1.0
        if window > 1 or len(runs) > 1:
            name = f"mean of the last {window:,}" if len(runs) == 1 else run.name
            chart.data.append(line(name, moving_mean(series, window), color, dash))
    if len(runs) > 1:
        chart.say("Mean of the last 2 % of the steps.")
    return chart


def _epsilon(runs: Sequence[Run]) -> Chart:
    chart = Chart(words.EPSILON)
    for index, run in enumerate(runs):
        series = run.metrics.get("bsqh/epsilon", ([], []))
        if not series[0]:
            continue
        color, dash = style(index)
        chart.data.append(line("ε of the last trial" if len(runs) == 1 else run.name, series, color, dash))
        at = dict(zip(*series, strict=True))
        rejected = {step: count for step, count in rejections(run.metrics).items() if step in at}
        if rejected:
            name, mark = ("rejected", REJECTED) if len(runs) == 1 else (f"{run.name}: rejected", color)
            points = [(step, number(at[step])) for step in rejected]
            chart.data.append(crosses(name, points, mark, 8, "%{customdata} rejected"))
            chart.data[-1] |= {"customdata": list(rejected.values()), "showlegend": len(runs) == 1}
    return chart


def _decrease(runs: Sequence[Run]) -> Chart:
    """What each step brought, against what the acceptance test promises; on a logarithmic axis, rises as crosses."""
    chart = Chart(words.DECREASE)
    for index, run in enumerate(runs):
        steps, values = run.metrics.get("bsqh/loss_decrease", ([], []))
        if not steps:
            continue
        fallen = [value if value > 0.0 else math.nan for value in values]
        chart.data.append(line("decrease" if len(runs) == 1 else run.name, (steps, fallen), *style(index)))
        if len(runs) > 1:
            continue
        promised = run.metrics.get("bsqh/promised_decrease")
        if promised is not None:
            chart.data.append(line("promised: ητ", promised, COLORS[2], "dot"))
        risen = [(step, number(-value)) for step, value in zip(steps, values, strict=True) if value < 0.0]
        if risen:
            chart.data.append(crosses("increase", risen, REJECTED, 6, "increase: %{y:.4g}"))
            chart.say("It may rise only where a constraint is being tightened.")
    return chart


def _support(runs: Sequence[Run]) -> Chart:
    """How many weights came and went between two readings."""
    chart = Chart(words.SUPPORT)
    for index, run in enumerate(runs):
        for way, (key, what) in enumerate((("entered", "became non-zero"), ("left", "became zero"))):
            if f"support/{key}" in run.metrics:
                color = COLORS[(way if len(runs) == 1 else index) % len(COLORS)]
                name = what if len(runs) == 1 else f"{run.name}: {what}"
                chart.data.append(line(name, run.metrics[f"support/{key}"], color, DASHES[way]))
    return chart


def _own(runs: Sequence[Run], part: str, about: Explained) -> Chart:
    """The network's own metrics that have ``part`` in their key, such as ``train_loss`` and ``val_loss``."""
    chart = Chart(about)
    keys = [key for key in _user_keys(runs) if part in key and not (part == "acc" and "loss" in key)]
    found = [run.metrics[key] for run in runs for key in keys if key in run.metrics]
    # A share is shown in per cent, anything else (an accuracy that already is in per cent, say) as it stands.
    shares = about.percent and all(0.0 <= y <= 1.0 for _, values in found for y in values if math.isfinite(y))
    for run_index, run in enumerate(runs):
        for key_index, key in enumerate(key for key in keys if key in run.metrics):
            # Runs by color and metrics by dash where there are several runs.
            color = COLORS[(key_index if len(runs) == 1 else run_index) % len(COLORS)]
            dash = "solid" if len(runs) == 1 else DASHES[key_index % len(DASHES)]
            name = key if len(runs) == 1 else f"{run.name}: {key}"
            chart.data.append(line(name, run.metrics[key], color, dash, percent=shares))
    if about.percent and not shares:
        chart.about = Explained(about.title, "as logged", about.note, about.healthy)
    return chart


def _single(runs: Sequence[Run], key: str, about: Explained) -> Chart:
    chart = Chart(about)
    for index, run in enumerate(runs):
        if key in run.metrics:
            name = about.title if len(runs) == 1 else run.name
            chart.data.append(line(name, run.metrics[key], *style(index), percent=about.percent))
    return chart


def _by_layer(runs: Sequence[Run], prefix: str, about: Explained) -> list[Chart]:
    """The layers of the only run, or the totals of all and the layers of each."""
    if len(runs) == 1:
        return [_layers(runs[0], prefix, about, about.title)]
    total = _single(runs, f"{prefix}/total", about)
    return [total, *(_layers(run, prefix, about, f"{about.title} by layer: {run.name}") for run in runs)]


def _layers(run: Run, prefix: str, about: Explained, title: str) -> Chart:
    chart = Chart(about, title)
    found = layer_keys(run.metrics, prefix)
    shown = display_names([layer for layer in found if layer != "total"])
    for index, layer in enumerate(shown):
        series = run.metrics[found[layer]]
        chart.data.append(line(shown[layer], series, *style(index), percent=about.percent, full=layer))
    if "total" in found:
        series = run.metrics[found["total"]]
        chart.data.append(line("all layers", series, TEXT_COLOR, width=2.6, percent=about.percent))
    return chart


def layer_keys(metrics: Mapping[str, Series], prefix: str) -> dict[str, str]:
    """The keys ``prefix/<layer>`` by layer, ``total`` among them."""
    return {key.removeprefix(f"{prefix}/"): key for key in metrics if key.startswith(f"{prefix}/")}


def _user_keys(runs: Sequence[Run]) -> list[str]:
    """Keys that are not this package's, in the order in which they come."""
    return list(dict.fromkeys(key for run in runs for key in run.metrics if not key.startswith(_KNOWN)))


def _finish(chart: Chart) -> Chart:
    """Axes with units, the legend, and how hovering shows values."""
    chart.layout = layout(chart.data, _y_axis(chart))
    every = max((trace.get("meta", {}).get("every", 1) for trace in chart.data), default=1)
    if every > 1:
        chart.say(f"Of long curves the lowest and the highest of every {every:,} readings are shown.")
    if not has_legend(chart.data):
        chart.say("Point at a line to see which it is; the thick one is the total.")
    if chart.layout["hovermode"] == "closest":
        for trace in chart.data:
            trace["hovertemplate"] = "step %{x}<br>" + trace["hovertemplate"]
    _tell_apart(chart)
    return chart


def _y_axis(chart: Chart) -> dict[str, Any]:
    about = chart.about
    values = [y for trace in chart.data for y in trace["y"] if y is not None]
    positive = [y for y in values if y > 0.0]
    # On a logarithmic axis zeros would be left out, so only where they are few.
    if about.log and values and min(values) >= 0.0 and len(positive) > 0.9 * len(values):
        if len(positive) < len(values):
            chart.say("Values of exactly 0 have no place on the logarithmic axis.")
        return logarithmic(about.unit, positive)
    axis = linear(about.unit, about.percent)
    # Zeros from nothing to everything; accuracies may lie close together.
    if about in (words.SPARSITY, words.MULTIPLY_ADDS):
        axis["range"] = [-0.02, 1.02]
    if about is words.TRIALS and max(values, default=math.inf) <= 10.0:
        axis["dtick"] = 1
    return axis


def _tell_apart(chart: Chart) -> None:
    """Few lines get rims, so that one upon another is seen; of lines that are the same throughout the note speaks."""
    lines = [trace for trace in chart.data if trace["mode"] == "lines" and "opacity" not in trace]
    if 1 < len(lines) <= _FEW:
        for index, trace in enumerate(lines):
            if trace["line"]["color"] != TEXT_COLOR:
                trace["line"]["width"] = 1.4 + 0.8 * (len(lines) - 1 - index)
    same: dict[tuple[Any, ...], list[str]] = {}
    for trace in lines:
        same.setdefault((tuple(trace["x"]), tuple(trace["y"])), []).append(html.unescape(trace["name"]))
    for names in same.values():
        if len(names) > 1:
            chart.say(f"{', '.join(names[:-1])} and {names[-1]} are the same throughout: one line covers the others.")
