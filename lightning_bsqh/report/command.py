"""The command ``lightning-bsqh report``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_bsqh.report.page import write_report


def main(args: Sequence[str] | None = None) -> None:
    """Runs ``lightning-bsqh report``.

    Args:
        args: The arguments after ``report``; None takes ``sys.argv``.

    Raises:
        SystemExit: If an argument is wrong, a folder is no run folder, the report cannot be written, or plotly is not
            installed.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-bsqh report",
        description="Writes one HTML file about a run, or about several side by side: curves, zeros per layer, masks"
        " and settings. It opens in a browser without a network.",
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN_FOLDER", help="folder with a metrics.csv")
    parser.add_argument(
        "--output", type=Path, default=None, metavar="FILE", help="file to write (default: RUN_FOLDER/report.html)"
    )
    options = parser.parse_args(args)
    try:
        path = write_report(options.folders, options.output)
    except (ModuleNotFoundError, ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    print(f"report  {path}")
    print(how_to_open(path))


def how_to_open(report: Path) -> str:
    """How to look at a report, as a line for the console."""
    return f"Open it in any browser, no network needed: {report.resolve().as_uri()}"
