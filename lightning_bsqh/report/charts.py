"""The charts of the report, as the plain dictionaries that plotly.js draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_bsqh.report.names import display_names, shorten
from lightning_bsqh.report.plot import Series, rejections
from lightning_bsqh.report.reading import Run

#: A curve has no more points than this; of a longer one every n-th is shown, and the last.
LARGEST = 10_000

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart; further lines get other dashes.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("solid", "dash", "dot", "dashdot")
#: Replaced in the browser by the colour of the page's text, which depends on light and dark.
TEXT_COLOUR = "text"
_REJECTED = "#D55E00"
# With more lines than this the box of all values at one step would cover the chart: the nearest line alone is shown.
_MOST_IN_ONE_BOX = 7
# A longer legend would take more room than the curves.
_LONGEST_LEGEND = 12


@dataclass
class Chart:
    """One chart.

    Attributes:
        title: What it shows.
        note: A sentence below the title; may be empty.
        data: The traces, for ``Plotly.newPlot``.
        layout: The layout, for ``Plotly.newPlot``.
    """

    title: str
    note: str
    data: list[dict[str, Any]] = field(default_factory=list)
    layout: dict[str, Any] = field(default_factory=dict)

    @property
    def as_json(self) -> dict[str, Any]:
        """What the page's script gets."""
        return {"title": self.title, "data": self.data, "layout": self.layout}


@dataclass(frozen=True)
class _Single:
    """A chart of one metric: its key, title, unit, sentence, whether its axis is logarithmic if it can be, or in %."""

    key: str
    title: str
    unit: str
    note: str
    log: bool = False
    percent: bool = False


@dataclass(frozen=True)
class _ByLayer:
    """A chart of ``prefix/<layer>`` and ``prefix/total``."""

    prefix: str
    title: str
    unit: str
    note: str
    log: bool = False
    percent: bool = False


_SINGLES = (
    _Single("bsqh/tau", "Step length τ", "τ = ‖û − w‖²_D", "Squared length of the last trial's step.", log=True),
    _Single("bsqh/trials", "Trials per iteration", "trials", "1 means that the first trial was accepted."),
    _Single("nonzero/total", "Weights left", "non-zero weights", "", log=True),
)
_LAYERED = (
    _ByLayer(
        "pmp_residual", "PMP residual", "residual, loss units",
        "Zero where the weights satisfy the maximum condition; below zero where a constraint has just been tightened.",
        log=True,
    ),
    _ByLayer("hamiltonian", "Hamiltonian", "H, loss units", "At the weights before the step, on the step's own batch."),
    _ByLayer(
        "augmented_hamiltonian/gain", "Gain of K, augmented Hamiltonian", "K(û) − K(w), loss units",
        "Below zero where a constraint has just been tightened, or a layer gives up weights for others.", log=True,
    ),
)  # fmt: skip
_SPARSITY = _ByLayer(
    "sparsity", "Zero weights", "share of exact zeros", "Exact zeros among the regularised weights.", percent=True
)
_MULTIPLY_ADDS = _Single(
    "multiply_adds/share", "Multiply-adds left", "share of multiply-adds",
    "Of linear and convolutional layers, if zeros are skipped.", percent=True,
)  # fmt: skip
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


def charts(runs: Sequence[Run]) -> list[Chart]:
    """All charts that the runs have values for, the most telling first.

    With one run, layers are the lines of a chart. With several, runs are the lines, and what there is by layer has a
    chart of the totals and one of the layers for each run.
    """
    made = [_objective(runs), _own(runs, "loss", "Loss", "loss", log=True), _epsilon(runs), *_by_layer(runs, _SPARSITY)]
    made += [_own(runs, "acc", "Accuracy", "share of samples that are right", percent=True)]
    made += [_decrease(runs), *(_single(runs, single) for single in _SINGLES)]
    made += [_single(runs, _MULTIPLY_ADDS), _support(runs)]
    made += [chart for layered in _LAYERED for chart in _by_layer(runs, layered)]
    others = [key for key in _user_keys(runs) if "loss" not in key and "acc" not in key]
    made += [_single(runs, _Single(key, key, key, "")) for key in others]
    if any(sum(run.metrics.get("bsqh/skipped", ([], []))[1]) for run in runs):
        made += [_single(runs, _Single("bsqh/skipped", "Skipped batches", "batches so far", "Loss not finite."))]
    made = [chart for chart in made if chart.data]
    # One range for all, so that charts can be compared one below the other.
    steps = [step for chart in made for trace in chart.data for step in trace["x"]]
    for chart in made:
        chart.layout["xaxis"]["range"] = [min(steps, default=0), max(steps, default=1) * 1.02]
    return made


def _objective(runs: Sequence[Run]) -> Chart:
    chart = Chart("Objective", "J after the step, on the step's own batch.")
    for index, run in enumerate(runs):
        steps, values = run.metrics.get("bsqh/objective", ([], []))
        if not steps:
            continue
        colour, dash = _style(index)
        window = max(len(values) // 50, 1)
        if len(runs) == 1:
            faint = window > 1
            chart.data.append(_line("each batch", (steps, values), colour, width=1.0 if faint else 1.8))
            chart.data[-1]["opacity"] = 0.4 if faint else 1.0
        if window > 1 or len(runs) > 1:
            name = f"mean of the last {window}" if len(runs) == 1 else run.name
            chart.data.append(_line(name, (steps, moving_mean(values, window)), colour, dash))
    if len(runs) > 1:
        chart.note += " Mean of the last 2 % of the steps."
    return _finish(chart, "objective J, loss units", log=True)


def _epsilon(runs: Sequence[Run]) -> Chart:
    chart = Chart("Augmentation ε", "A cross marks an iteration with rejected trials.")
    for index, run in enumerate(runs):
        series = run.metrics.get("bsqh/epsilon", ([], []))
        if not series[0]:
            continue
        colour, dash = _style(index)
        chart.data.append(_line("ε of the last trial" if len(runs) == 1 else run.name, series, colour, dash))
        rejected = rejections(run.metrics) if {"bsqh/accepted", "bsqh/trials"} <= run.metrics.keys() else {}
        at = dict(zip(*series, strict=True))
        steps = [step for step in rejected if step in at]
        if steps:
            mark = _REJECTED if len(runs) == 1 else colour
            chart.data.append({
                "type": "scatter", "mode": "markers", "name": "rejected" if len(runs) == 1 else f"{run.name}: rejected",
                "x": steps, "y": [_finite(at[step]) for step in steps], "customdata": [rejected[s] for s in steps],
                "marker": {"symbol": "x-thin", "size": 8, "line": {"width": 2, "color": mark}},
                "hovertemplate": "%{customdata} rejected<extra></extra>", "showlegend": len(runs) == 1,
            })  # fmt: skip
    return _finish(chart, "ε", log=True)


def _decrease(runs: Sequence[Run]) -> Chart:
    """What each step brought, against what the acceptance test promises; on a logarithmic axis, rises as crosses."""
    title = "Decrease of the objective per step"
    chart = Chart(title, "On the step's own batch, against what the acceptance test promises.")
    rises = False
    for index, run in enumerate(runs):
        steps, values = run.metrics.get("bsqh/loss_decrease", ([], []))
        if not steps:
            continue
        colour, dash = _style(index)
        fallen = [value if value > 0.0 else math.nan for value in values]
        chart.data.append(_line("decrease" if len(runs) == 1 else run.name, (steps, fallen), colour, dash))
        if len(runs) > 1:
            continue
        promised = run.metrics.get("bsqh/promised_decrease")
        if promised is not None:
            chart.data.append(_line("promised: ητ", promised, _COLOURS[2], "dot"))
        risen = [(step, -value) for step, value in zip(steps, values, strict=True) if value < 0.0]
        rises = bool(risen)
        if risen:
            chart.data.append({
                "type": "scatter", "mode": "markers", "name": "increase",
                "x": [step for step, _ in risen], "y": [value for _, value in risen],
                "marker": {"symbol": "x-thin", "size": 6, "line": {"width": 1.5, "color": _REJECTED}},
                "hovertemplate": "increase: %{y:.4g}<extra></extra>",
            })  # fmt: skip
    if rises:
        chart.note += " It may rise only where a constraint is being tightened."
    return _finish(chart, "J(w) − J(û), loss units", log=True)


def _support(runs: Sequence[Run]) -> Chart:
    """How many weights came and went between two readings."""
    chart = Chart("Weights that came and went", "Between one reading and the next.")
    for index, run in enumerate(runs):
        for way, (key, what) in enumerate((("entered", "became non-zero"), ("left", "became zero"))):
            if f"support/{key}" in run.metrics:
                colour = _COLOURS[(way if len(runs) == 1 else index) % len(_COLOURS)]
                name = what if len(runs) == 1 else f"{run.name}: {what}"
                chart.data.append(_line(name, run.metrics[f"support/{key}"], colour, _DASHES[way]))
    return _finish(chart, "weights")


def _own(runs: Sequence[Run], part: str, title: str, unit: str, *, log: bool = False, percent: bool = False) -> Chart:
    """The network's own metrics that have ``part`` in their key, such as ``train_loss`` and ``val_loss``."""
    chart = Chart(title, "")
    keys = [key for key in _user_keys(runs) if part in key and not (part == "acc" and "loss" in key)]
    for run_index, run in enumerate(runs):
        for key_index, key in enumerate(key for key in keys if key in run.metrics):
            # Runs by colour and metrics by dash where there are several runs.
            colour = _COLOURS[(key_index if len(runs) == 1 else run_index) % len(_COLOURS)]
            dash = "solid" if len(runs) == 1 else _DASHES[key_index % len(_DASHES)]
            name = key if len(runs) == 1 else f"{run.name}: {key}"
            chart.data.append(_line(name, run.metrics[key], colour, dash, percent=percent))
    # A share is shown in per cent, anything else (an accuracy that already is in per cent, say) as it stands.
    shares = all(0.0 <= y <= 1.0 for trace in chart.data for y in trace["y"] if y is not None)
    if percent and not shares:
        for trace in chart.data:
            trace["hovertemplate"] = trace["hovertemplate"].replace(":.2%", ":.4g")
    return _finish(chart, unit, log=log, percent=percent and shares)


def _single(runs: Sequence[Run], single: _Single) -> Chart:
    chart = Chart(single.title, single.note)
    for index, run in enumerate(runs):
        if single.key in run.metrics:
            colour, dash = _style(index)
            name = single.title if len(runs) == 1 else run.name
            chart.data.append(_line(name, run.metrics[single.key], colour, dash, percent=single.percent))
    _finish(chart, single.unit, log=single.log, percent=single.percent)
    if single.unit == "trials" and _largest(chart) <= 10.0:
        chart.layout["yaxis"]["dtick"] = 1
    return chart


def _by_layer(runs: Sequence[Run], layered: _ByLayer) -> list[Chart]:
    """The layers of the only run, or the totals of all and the layers of each."""
    if len(runs) == 1:
        return [_layers(runs[0], layered, layered.title)]
    total = Chart(layered.title, layered.note)
    for index, run in enumerate(runs):
        series = run.metrics.get(f"{layered.prefix}/total")
        if series is not None:
            total.data.append(_line(run.name, series, *_style(index), percent=layered.percent))
    _finish(total, layered.unit, log=layered.log, percent=layered.percent)
    return [total, *(_layers(run, layered, f"{layered.title} by layer: {run.name}") for run in runs)]


def _layers(run: Run, layered: _ByLayer, title: str) -> Chart:
    chart = Chart(title, layered.note)
    found = layer_keys(run.metrics, layered.prefix)
    shown = display_names([layer for layer in found if layer != "total"])
    index = 0
    for layer, key in found.items():
        if layer == "total":
            continue
        colour, dash = _style(index)
        index += 1
        chart.data.append(_line(shown[layer], run.metrics[key], colour, dash, percent=layered.percent, full=layer))
    if "total" in found:
        series = run.metrics[found["total"]]
        chart.data.append(_line("all layers", series, TEXT_COLOUR, width=2.6, percent=layered.percent))
    return _finish(chart, layered.unit, log=layered.log, percent=layered.percent)


def layer_keys(metrics: Mapping[str, Series], prefix: str) -> dict[str, str]:
    """The keys ``prefix/<layer>`` by layer, ``total`` among them."""
    return {key.removeprefix(f"{prefix}/"): key for key in metrics if key.startswith(f"{prefix}/")}


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and the ``window - 1`` before it; of fewer at the beginning."""
    return [math.fsum(values[max(i - window + 1, 0) : i + 1]) / min(i + 1, window) for i in range(len(values))]


def thin(series: Series, largest: int = LARGEST) -> tuple[Series, int]:
    """Every n-th point and the last, so that there are at most about ``largest``; and n."""
    steps, values = series
    every = -(-len(steps) // largest) if steps else 1
    if every == 1:
        return series, 1
    kept = list(range(0, len(steps), every))
    if kept[-1] != len(steps) - 1:
        kept.append(len(steps) - 1)
    return ([steps[i] for i in kept], [values[i] for i in kept]), every


def _user_keys(runs: Sequence[Run]) -> list[str]:
    """Keys that are not this package's, in the order in which they come."""
    return list(dict.fromkeys(key for run in runs for key in run.metrics if not key.startswith(_KNOWN)))


def _style(index: int) -> tuple[str, str]:
    return _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]


def _finite(value: float) -> float | None:
    """JSON has neither nan nor infinity; null is a gap in the line."""
    return value if math.isfinite(value) else None


def _line(
    name: str,
    series: Series,
    colour: str,
    dash: str = "solid",
    *,
    width: float = 1.8,
    percent: bool = False,
    full: str | None = None,
) -> dict[str, Any]:
    (steps, values), every = thin(series)
    trace: dict[str, Any] = {
        "type": "scatter",
        # A single point, such as a test at the end, would be no line.
        "mode": "lines" if len(steps) > 1 else "markers",
        "name": _escaped(shorten(name, 40)),
        "x": steps,
        "y": [_finite(value) for value in values],
        "line": {"color": colour, "dash": dash, "width": width},
        "marker": {"color": colour, "size": 9, "symbol": "diamond"},
        "hovertemplate": f"{_in_lines(full or name)}: %{{y{':.2%' if percent else ':.4g'}}}<extra></extra>",
    }
    if every > 1:
        trace["meta"] = {"every": every}
    return trace


def _in_lines(name: str, width: int = 36) -> str:
    """The full name in lines that fit on a phone."""
    return "<br>".join(_escaped(name[start : start + width]) for start in range(0, len(name), width))


def _escaped(text: str) -> str:
    """Plotly reads a little HTML in names, and braces in templates."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("%{", "% {")


def _finish(chart: Chart, unit: str, *, log: bool = False, percent: bool = False) -> Chart:
    """Axes with units, the legend, and how hovering shows values."""
    values = [y for trace in chart.data for y in trace["y"] if y is not None]
    y_axis: dict[str, Any] = {"title": {"text": unit}, "automargin": True}
    positive = [y for y in values if y > 0.0]
    # On a logarithmic axis zeros would be left out, so only where they are few.
    if log and values and min(values) >= 0.0 and len(positive) > 0.9 * len(values):
        y_axis |= {"type": "log"}
        y_axis |= _ticks(min(positive), max(positive))
        if len(positive) < len(values):
            chart.note = f"{chart.note} Values of exactly 0 have no place on the logarithmic axis.".strip()
    elif percent:
        y_axis |= {"tickformat": ".0%"}
        # Zeros from nothing to everything; accuracies may lie close together.
        if chart.title.startswith((_SPARSITY.title, _MULTIPLY_ADDS.title)):
            y_axis |= {"range": [-0.02, 1.02]}
    every = max((trace.get("meta", {}).get("every", 1) for trace in chart.data), default=1)
    if every > 1:
        chart.note = f"{chart.note} Of long curves one point in {every} is shown.".strip()
    chart.layout = {
        "xaxis": {"title": {"text": "step (batches)"}, "automargin": True, "tickformat": ",d", "hoverformat": ",d"},
        "yaxis": y_axis,
        "hovermode": "x unified" if len(chart.data) <= _MOST_IN_ONE_BOX else "closest",
        "showlegend": 1 < len(chart.data) <= _LONGEST_LEGEND,
    }
    if len(chart.data) > _LONGEST_LEGEND:
        chart.note = f"{chart.note} Point at a line to see which it is; the thick one is the total.".strip()
    if chart.layout["hovermode"] == "closest":
        for trace in chart.data:
            trace["hovertemplate"] = "step %{x}<br>" + trace["hovertemplate"]
    return chart


def _largest(chart: Chart) -> float:
    return max((y for trace in chart.data for y in trace["y"] if y is not None), default=math.inf)


def _ticks(low: float, high: float) -> dict[str, Any]:
    """Ticks of a logarithmic axis: powers of ten, or 1, 2 and 5 times them where there are few."""
    if high > 100.0 * low:
        return {"exponentformat": "power", "dtick": 1 if high < 1e7 * low else 2}
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return {"tickvals": [float(f"{digit}e{power}") for power in decades for digit in (1, 2, 5)], "tickformat": ",~r"}
