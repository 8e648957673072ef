"""The page: summary, charts, layer table, masks and settings in one HTML file."""

from __future__ import annotations

import base64
import importlib.util
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_bsqh.report import contents
from lightning_bsqh.report.charts import charts
from lightning_bsqh.report.files import MARK, check_output, write_page
from lightning_bsqh.report.reading import Run, read_runs


def write_report(
    folders: Sequence[str | Path], output: str | Path | None = None, names: Sequence[str] | None = None
) -> Path:
    """Writes the report of one run, or of several side by side.

    An earlier report under the same name is replaced; any other file, and what a symbolic link leads to, stays.

    Args:
        folders: Run folders.
        output: The file to write, folders above it made if needed; None takes ``report.html`` in the first run folder.
        names: What to call the runs; None takes the folders' names.

    Returns:
        Where the report lies.

    Raises:
        ModuleNotFoundError: If jinja2 is not installed.
        RunFolderError: If a folder is not a run folder, or is given twice.
        ValueError: If ``output`` is a folder, a link or a file that is no report, or ``folders`` is empty, or the names
            are not as many, or not different.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise ModuleNotFoundError('The report needs jinja2: pip install "lightning-bsqh[report]"')
    if folders:
        path = Path(folders[0]) / "report.html" if output is None else Path(output)
        # Before the runs are read, which may take a while.
        check_output(path)
    write_page(path, page(read_runs(folders, names)))
    return path


def page(runs: Sequence[Run]) -> str:
    """The whole page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("lightning_bsqh.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    made = charts(runs)

    def part(name: str) -> Markup:
        return Markup(loader.get_source(environment, name)[0])

    return environment.get_template("page.html").render(
        runs=runs,
        mark=Markup(MARK),
        contents=contents,
        charts=made,
        data=Markup(_json([chart.as_json for chart in made])),
        plotly=Markup(_plotly()),
        style=part("style.css"),
        script=part("page.js"),
    )


def _plotly() -> str:
    """plotly.js, compressed to half a megabyte, which the page's script unpacks; without it a network were needed."""
    script = Path(__file__).parent / "vendor" / "plotly-basic.min.js"
    return base64.b64encode(zlib.compress(script.read_bytes(), 9)).decode()


def _json(content: Any) -> str:
    # "</script>" within the data would end it.
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
