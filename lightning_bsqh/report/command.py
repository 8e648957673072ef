"""The command ``lightning-bsqh report``; its options are in ``lightning_bsqh_cli``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_bsqh.report.names import run_names
from lightning_bsqh.report.page import write_report


def run(options: argparse.Namespace) -> int:
    """Writes the report and says how to open it.

    Args:
        options: ``folders``, each with a name and "=" before it or not, and ``output``.

    Raises:
        SystemExit: If a folder is no run folder, the report cannot be written, or a package is not installed.
    """
    try:
        folders, names = _named(options.folders)
        path = write_report(folders, options.output, names)
    except (ModuleNotFoundError, ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    print(f"report  {path}")
    print(how_to_open(path))
    return 0


def how_to_open(report: Path) -> str:
    """How to look at a report, as a line for the console."""
    return f"Open it in any browser, no network needed: {report.resolve().as_uri()}"


def _named(typed: Sequence[str]) -> tuple[list[Path], list[str] | None]:
    """Folders and names; None where none is named."""
    parts = [("", text) if Path(text).exists() else _split(text) for text in typed]
    folders = [Path(folder) for _, folder in parts]
    if not any(name for name, _ in parts):
        return folders, None
    return folders, [name or own for (name, _), own in zip(parts, run_names(folders), strict=True)]


def _split(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    return (name, folder) if equals else ("", text)
