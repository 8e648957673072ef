"""Single curves of a chart, as the plain dictionaries that plotly.js draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning_bsqh.report.metrics import Series, finite
from lightning_bsqh.report.names import shorten

#: A curve has no more points than about this; of a longer one the lowest and the highest of every n steps are shown.
LARGEST = 2_000

# Okabe and Ito's colors, which people with any kind of color vision can tell apart; further lines get other dashes.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot")
#: Replaced in the browser by the color of the page's text, which depends on light and dark.
TEXT_COLOR = "text"
REJECTED = "#D55E00"


def style(index: int) -> tuple[str, str]:
    """Color and dash of the line with this number."""
    return COLORS[index % len(COLORS)], DASHES[index // len(COLORS) % len(DASHES)]


def line(
    name: str,
    series: Series,
    color: str,
    dash: str = "solid",
    *,
    width: float = 1.8,
    percent: bool = False,
    full: str | None = None,
) -> dict[str, Any]:
    """A curve; a single point, such as a test at the end, is a mark.

    Args:
        name: What the legend says, shortened where it is long.
        series: Steps and values.
        color: Of the line.
        dash: Of the line.
        width: Of the line.
        percent: Whether the values are shares, shown in per cent.
        full: What is shown where the mouse is; None takes the name.
    """
    (steps, values), every = thin(series)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines" if len(steps) > 1 else "markers",
        "name": escaped(shorten(name, 40)),
        "x": steps,
        "y": [number(value) for value in values],
        "line": {"color": color, "dash": dash, "width": width},
        "marker": {"color": color, "size": 9, "symbol": "diamond"},
        "hovertemplate": f"{_in_lines(full or name)}: %{{y{':.2%' if percent else ':.4g'}}}<extra></extra>",
    }
    if every > 1:
        trace["meta"] = {"every": every}
        # Enough for any screen, and half the size.
        trace["y"] = [None if value is None else float(f"{value:.6g}") for value in trace["y"]]
    return trace


def crosses(name: str, points: Sequence[tuple[int, float | None]], color: str, size: int, hover: str) -> dict[str, Any]:
    """Marks at single points."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": escaped(shorten(name, 40)),
        "x": [step for step, _ in points],
        "y": [value for _, value in points],
        "marker": {"symbol": "x-thin", "size": size, "line": {"width": size / 4, "color": color}},
        "hovertemplate": f"{hover}<extra></extra>",
    }


def thin(series: Series, largest: int = LARGEST) -> tuple[Series, int]:
    """The lowest and the highest point of every n, with the first and the last, so that no spike is lost; and n.

    There are at most about ``largest`` points. Where a value is not finite, so is one of those kept.
    """
    steps, values = series
    every = -(-2 * len(steps) // largest)
    if len(steps) <= largest:
        return series, 1
    kept = {0, len(steps) - 1}
    for start in range(0, len(steps), every):
        part = range(start, min(start + every, len(steps)))
        whole = [index for index in part if math.isfinite(values[index])]
        kept |= {min(whole, key=values.__getitem__), max(whole, key=values.__getitem__)} if whole else {start}
        kept |= {next(index for index in part if index not in whole)} if 0 < len(whole) < len(part) else set()
    chosen = sorted(kept)
    return ([steps[i] for i in chosen], [values[i] for i in chosen]), every


def moving_mean(series: Series, window: int, points: int = LARGEST) -> Series:
    """The mean of each value and the ``window - 1`` before it; of fewer at the beginning.

    Values that are not finite are left out. At every n-th step only where there are more than ``points``.
    """
    steps, values = finite(series)
    every = -(-len(steps) // points) or 1
    chosen = [*range(0, len(steps), every)]
    if chosen and chosen[-1] != len(steps) - 1:
        chosen.append(len(steps) - 1)
    means = [math.fsum(values[max(i - window + 1, 0) : i + 1]) / min(i + 1, window) for i in chosen]
    return [steps[i] for i in chosen], means


def number(value: float) -> float | None:
    """JSON has neither nan nor infinity; null is a gap in the line."""
    return value if math.isfinite(value) else None


def escaped(text: str) -> str:
    """Plotly reads a little HTML in names, and braces in templates."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("%{", "% {")


def _in_lines(name: str, width: int = 36) -> str:
    """The full name in lines that fit on a phone."""
    return "<br>".join(escaped(name[start : start + width]) for start in range(0, len(name), width))
