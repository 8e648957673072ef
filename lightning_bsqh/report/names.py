"""Names that fit into a chart or a table and still differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_bsqh.report.plot import short_names

_ELLIPSIS = "…"


def shorten(name: str, width: int) -> str:
    """The name with its middle left out, if it is longer than ``width`` characters."""
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    return name[:head] + _ELLIPSIS + name[len(name) - (width - 1 - head) :]


def display_names(names: Sequence[str], width: int = 28) -> dict[str, str]:
    """What to show for each name: without the path common to all, at most about ``width`` characters, all different.

    Where two names are the same after shortening, the later ones get a number.

    Args:
        names: Different names of layers.
        width: Number of characters above which the middle is left out, at least 5.
    """
    result: dict[str, str] = {}
    taken: set[str] = set()
    for name, short in short_names(names).items():
        shown, number = shorten(short, width), 1
        while shown in taken:
            number += 1
            shown = f"{shorten(short, width)} ({number})"
        taken.add(shown)
        result[name] = shown
    return result


def run_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of their parents as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    deepest = max(len(path) for path in parts)
    for count in range(1, deepest + 1):
        names = ["/".join(part for part in path[-count:] if part != "/") for path in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
