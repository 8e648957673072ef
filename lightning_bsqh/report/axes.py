"""Axes of the charts: units, logarithms, epochs above, and where the target was reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_bsqh.report.curves import TEXT_COLOR, style
from lightning_bsqh.report.metrics import settled
from lightning_bsqh.report.reading import Run

# With more lines than this the box of all values at one step would cover the chart: the nearest line alone is shown.
_MOST_IN_ONE_BOX = 7
# A longer legend would take more room than the curves.
_LONGEST_LEGEND = 12
_MOST_EPOCHS = 10


def layout(traces: Sequence[Mapping[str, Any]], y_axis: Mapping[str, Any]) -> dict[str, Any]:
    """A chart's layout, with steps below and its own vertical axis."""
    return {
        "xaxis": {"title": {"text": "step (batches)"}, "automargin": True, "tickformat": ",d", "hoverformat": ",d"},
        "yaxis": dict(y_axis),
        "hovermode": "x unified" if len(traces) <= _MOST_IN_ONE_BOX else "closest",
        "showlegend": 1 < len(traces) <= _LONGEST_LEGEND,
    }


def has_legend(traces: Sequence[Any]) -> bool:
    """Whether so many lines can have one."""
    return len(traces) <= _LONGEST_LEGEND


def logarithmic(unit: str, positive: Sequence[float]) -> dict[str, Any]:
    """A vertical axis that says that it is logarithmic."""
    return {
        "title": {"text": f"{unit} (logarithmic)"},
        "automargin": True,
        "type": "log",
        **_ticks(min(positive), max(positive)),
    }


def linear(unit: str, percent: bool) -> dict[str, Any]:
    """A plain vertical axis."""
    return {"title": {"text": unit}, "automargin": True, **({"tickformat": ".0%"} if percent else {})}


def epoch_axis(runs: Sequence[Run], last_step: int) -> dict[str, Any] | None:
    """A second horizontal axis, above, with the ends of epochs; None where the runs do not tell, or do not agree."""
    told = [run.epochs for run in runs if run.epochs]
    # The file of a run that was cut off ends within an epoch.
    whole = [{epoch: end for epoch, end in epochs.items() if epoch < max(epochs)} or epochs for epochs in told]
    ends: dict[int, int] = {}
    for epochs in whole:
        if any(ends.get(epoch, end) != end for epoch, end in epochs.items()):
            return None
        ends |= epochs
    longest = max(told, key=lambda epochs: max(epochs.values()), default={})
    ends |= {epoch: end for epoch, end in longest.items() if epoch not in ends}
    shown = [epoch for epoch in ends if epoch % _nice(len(ends) / _MOST_EPOCHS) == 0 and ends[epoch] <= last_step + 1]
    if not shown:
        return None
    return {
        "title": {"text": "epochs done", "standoff": 4},
        "overlaying": "x",
        "side": "top",
        "matches": "x",
        "showgrid": False,
        "tickvals": [ends[epoch] for epoch in shown],
        "ticktext": [f"{epoch:,}" for epoch in shown],
    }


def targets(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Upright lines at the steps from which each run has the zeros of its end, and what is written there."""
    shapes: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, run in enumerate(runs):
        series = run.metrics.get("sparsity/total", ([], []))
        step = settled(series)
        if step is None:
            continue
        color = TEXT_COLOR if len(runs) == 1 else style(index)[0]
        place = {"xref": "x", "yref": "paper"}
        mark = {"color": color, "width": 1.3, "dash": "dot"}
        shapes.append({"type": "line", **place, "x0": step, "x1": step, "y0": 0, "y1": 1, "line": mark})
        if len(runs) == 1:
            words = f"{100 * series[1][-1]:.4g} % zeros reached"
            # Along the line, where it covers the fewest curves.
            text = {"text": words, "textangle": -90, "showarrow": False, "font": {"size": 10}}
            annotations.append({**place, "x": step, "y": 0.02, "xanchor": "right", "yanchor": "bottom", **text})
    return shapes, annotations


def _nice(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 and so on that is no less."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= least:
                return digit * power
        power *= 10


def _ticks(low: float, high: float) -> dict[str, Any]:
    """Ticks of a logarithmic axis: powers of ten, or 1, 2 and 5 times them where there are few."""
    if high / 100.0 > low:
        return {"exponentformat": "power", "dtick": 1 if high / 1e7 < low else 2}
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [float(f"{digit}e{power}") for power in decades for digit in (1, 2, 5)]
    return {"tickvals": [value for value in values if 0.0 < value < math.inf], "tickformat": ",~r"}
