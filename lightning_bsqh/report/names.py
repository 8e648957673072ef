"""Names that fit into a chart, a table or a picture and still differ: the only place where names are shortened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_ELLIPSIS = "…"
# What a logger calls a run by itself; it says nothing without the folder above.
_NUMBERED = re.compile(r"version_\d+")


def shorten(name: str, width: int, ellipsis: str = _ELLIPSIS) -> str:
    """The name with its middle left out, if it is longer than ``width`` characters."""
    if len(name) <= width:
        return name
    left = width - len(ellipsis)
    head = left // 2
    return name[:head] + ellipsis + name[len(name) - (left - head) :]


def display_names(names: Sequence[str], width: int = 28, ellipsis: str = _ELLIPSIS) -> dict[str, str]:
    """What to show for each name: without the path common to all, at most about ``width`` characters, all different.

    Where two names are the same after shortening, the later ones get a number.

    Args:
        names: Different names of layers.
        width: Number of characters above which the middle is left out, at least 8.
        ellipsis: What stands for the middle, such as "..." where a font may lack the usual sign.
    """
    result: dict[str, str] = {}
    taken: set[str] = set()
    for name, short in short_names(names).items():
        shown, number = shorten(short, width, ellipsis), 1
        while shown in taken:
            number += 1
            shown = f"{shorten(short, width, ellipsis)} ({number})"
        taken.add(shown)
        result[name] = shown
    return result


def short_names(layers: Sequence[str]) -> dict[str, str]:
    """Layers' names without the module path that all have in common, by their full names."""
    paths = [name.split(".") for name in layers]
    shared = 0
    while all(len(path) > shared + 1 for path in paths) and len({path[shared] for path in paths}) == 1:
        shared += 1
    return {name: ".".join(path[shared:]) for name, path in zip(layers, paths, strict=True)}


def run_names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of their parents as it takes to tell them apart and to say something."""
    parts = [folder.resolve().parts for folder in folders]
    deepest = max(len(path) for path in parts)
    first = 2 if any(_NUMBERED.fullmatch(path[-1]) for path in parts) else 1
    for count in range(first, deepest + 1):
        names = ["/".join(part for part in path[-count:] if part != "/") for path in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
