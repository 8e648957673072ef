"""The page: summary, charts, layer table, masks and settings in one HTML file."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from lightning_bsqh.report.charts import Chart, charts, layer_keys
from lightning_bsqh.report.masks import draw_mask
from lightning_bsqh.report.names import display_names
from lightning_bsqh.report.reading import Run, Weights, read_runs

# What tells one training from another; the other settings are folded away.
_MAIN_SETTINGS = ("seed_everything", "model.", "data.", "trainer.strategy", "trainer.max_")
_NOTHING = "–"


def write_report(folders: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Writes the report of one run, or of several side by side.

    Args:
        folders: Run folders.
        output: The file to write, folders above it made if needed; None takes ``report.html`` in the first run folder.

    Returns:
        Where the report lies.

    Raises:
        ModuleNotFoundError: If plotly is not installed.
        RunFolderError: If a folder is not a run folder, or is given twice.
        ValueError: If ``output`` is a folder, or ``folders`` is empty.
    """
    if importlib.util.find_spec("plotly") is None:
        raise ModuleNotFoundError('The report draws with plotly: pip install "lightning-bsqh[report]"')
    runs = read_runs(folders)
    path = runs[0].folder / "report.html" if output is None else Path(output)
    if path.is_dir():
        raise ValueError(
            f"output must be a file, got the folder {path}: name a file in it, such as {path}/report.html."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(runs), encoding="utf-8")
    return path


def page(runs: Sequence[Run]) -> str:
    """The whole page as text."""
    # Plotly's own doing: 5 MB of script, without which the page would need the network.
    from plotly.offline import get_plotlyjs

    made = charts(runs)
    names = ", ".join(run.name for run in runs)
    body = [
        f"<h1>{'Run' if len(runs) == 1 else 'Runs'} {escape(names)}</h1>",
        f'<p class="faint">{escape(_method(runs))}</p>',
        *(f'<p class="warning">{escape(run.name)}: {escape(note)}</p>' for run in runs for note in run.notes),
        "<h2>Summary</h2>",
        _summary(runs),
        "<h2>Curves</h2>",
        '<div class="grid">',
        *(_chart_card(index, chart) for index, chart in enumerate(made)),
        "</div>",
        "<h2>Layers</h2>",
        _layer_table(runs),
        _masks(runs),
        "<h2>Settings</h2>",
        _settings(runs),
    ]
    parts = {
        "title": escape(f"lightning-bsqh: {names}"),
        "style": _part("style.css"),
        "body": "\n".join(body),
        "charts": _json([chart.as_json for chart in made]),
        "plotly": get_plotlyjs(),
        "script": _part("page.js"),
    }
    # In one pass, so that nothing in a part is taken for a placeholder.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _part("page.html"))


def _method(runs: Sequence[Run]) -> str:
    """Which of the runs bSQH has trained, as far as their metrics tell."""
    trained = [run.name for run in runs if "bsqh/epsilon" in run.metrics]
    if not trained:
        return "Written by lightning-bsqh."
    who = "Trained" if len(trained) == len(runs) else f"{', '.join(trained)} trained"
    return f"{who} by the batch sequential quadratic Hamiltonian method (lightning-bsqh)."


def _part(name: str) -> str:
    return resources.files("lightning_bsqh.report").joinpath(name).read_text(encoding="utf-8")


def _json(content: Any) -> str:
    # "</script>" within the data would end it.
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _chart_card(index: int, chart: Chart) -> str:
    return (
        f'<section class="card"><h3>{escape(chart.title)}</h3><p class="note">{escape(chart.note)}</p>'
        f'<div class="chart" id="chart-{index}" role="img" aria-label="{escape(chart.title)}"></div></section>'
    )


def _table(head: Sequence[str], rows: Iterable[str], numbers_from: int = 1, above: str = "") -> str:
    """A table in a box that scrolls by itself where the window is narrow.

    Args:
        head: Titles of the columns, as HTML.
        rows: Rows as HTML.
        numbers_from: The first column whose title stands to the right, as numbers do.
        above: A row above the titles, as HTML.
    """
    cells = "".join(
        f"<th{' class=number' if index >= numbers_from else ''}>{text}</th>" for index, text in enumerate(head)
    )
    return (
        f'<div class="scroll"><table><thead>{above}<tr>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _summary(runs: Sequence[Run]) -> str:
    summaries = [_summary_of(run) for run in runs]
    names = list(dict.fromkeys(name for summary in summaries for name in summary))
    rows = (
        f"<tr><td>{escape(name)}</td>"
        + "".join(f'<td class="number words">{escape(summary.get(name, _NOTHING))}</td>' for summary in summaries)
        + "</tr>"
        for name in names
    )
    return _table(["", *(escape(run.name) for run in runs)], rows)


def _summary_of(run: Run) -> dict[str, str]:
    """What came out, in words and numbers, by what it is."""
    summary: dict[str, str] = {}
    # Tests first: they tell what came out.
    own = [key for key in run.metrics if "/" not in key]
    for key in sorted(own, key=lambda key: (not key.startswith("test"), not key.startswith("val"), key)):
        steps, values = run.metrics[key]
        share = "acc" in key and all(0.0 <= value <= 1.0 for value in values)
        shown = [f"{100.0 * value:.2f} %" if share else f"{value:.4g}" for value in values]
        summary[key] = shown[-1]
        if len(values) > 1 and share:
            best = max(range(len(values)), key=values.__getitem__)
            summary[key] += f" (best {shown[best]}, step {steps[best]:,})"
    if "sparsity/total" in run.metrics:
        summary["weights exactly zero, at the end"] = f"{100.0 * run.metrics['sparsity/total'][1][-1]:.2f} %"
    if "nonzero/total" in run.metrics:
        summary["weights left, at the end"] = f"{run.metrics['nonzero/total'][1][-1]:,.0f}"
    if run.weights:
        counted = [weights for weights in run.weights if weights.counted]
        size, zeros = sum(w.nonzero.numel() for w in counted), sum(w.zeros for w in counted)
        summary["weights exactly zero, in the checkpoint"] = f"{100.0 * zeros / max(size, 1):.2f} %"
    if "bsqh/accepted" in run.metrics and "bsqh/trials" in run.metrics:
        accepted, trials = run.metrics["bsqh/accepted"][1], run.metrics["bsqh/trials"][1]
        summary["iterations logged"] = f"{len(trials):,}"
        summary["accepted trials among them"] = f"{sum(accepted):,.0f}"
        summary["rejected trials among them"] = f"{sum(trials) - sum(accepted):,.0f}"
    if "bsqh/skipped" in run.metrics:
        summary["skipped batches"] = f"{run.metrics['bsqh/skipped'][1][-1]:,.0f}"
    if "bsqh/epsilon" in run.metrics:
        summary["final ε"] = f"{run.metrics['bsqh/epsilon'][1][-1]:.4g}"
    if run.checkpoint is not None:
        step = "" if run.checkpoint_step is None else f", step {run.checkpoint_step:,}"
        summary["checkpoint"] = f"{run.checkpoint.relative_to(run.folder)}{step}"
    return summary


def _tensor_rows(runs: Sequence[Run]) -> dict[str, list[Weights | None]]:
    """The tensors of all runs by name, None where a run has none of the name."""
    found = [{weights.name: weights for weights in run.weights} for run in runs]
    names = dict.fromkeys(name for tensors in found for name in tensors)
    return {name: [tensors.get(name) for tensors in found] for name in names}


def _named(name: str, shown: str) -> str:
    return f'<span title="{escape(name)}">{escape(shown)}</span>'


def _share(zeros: float) -> str:
    return f'<td class="number bar" style="--share:{100.0 * zeros:.2f}%">{100.0 * zeros:.2f} %</td>'


def _shape(weights: Weights) -> str:
    return " × ".join(str(size) for size in weights.nonzero.shape)


def _layer_table(runs: Sequence[Run]) -> str:
    """Name, shape and zeros of every weight tensor of the checkpoints; without any, the last logged shares."""
    tensors = _tensor_rows(runs)
    if not tensors:
        return _logged_layers(runs)
    shown = display_names(list(tensors), width=32)
    columns = ["zeros", "share zero", "empty filters or rows"]
    head = ["tensor in the checkpoint", "shape", "weights", *(columns * len(runs))]
    above = "".join(f'<th class="run" colspan="{len(columns)}">{escape(run.name)}</th>' for run in runs)
    rows = []
    for name, of_runs in tensors.items():
        # One row for each shape: networks may differ from run to run.
        for shape in dict.fromkeys(_shape(weights) for weights in of_runs if weights is not None):
            of_shape = [w if w is not None and _shape(w) == shape else None for w in of_runs]
            rows.append(f"<tr>{_layer_row(name, shown[name], shape, of_shape)}</tr>")
    return _table(head, rows, above=f'<tr><th colspan="3"></th>{above}</tr>' if len(runs) > 1 else "")


def _layer_row(name: str, shown: str, shape: str, of_runs: Sequence[Weights | None]) -> str:
    present = [weights for weights in of_runs if weights is not None]
    size = present[0].nonzero.numel()
    label = _named(name, shown)
    if not any(weights.counted for weights in present):
        label += ' <span class="faint">(not regularised)</span>'
    cells = [f'<td class="first">{label}</td><td class="number">{shape}</td><td class="number">{size:,}</td>']
    for weights in of_runs:
        if weights is None:
            cells.append(f'<td class="number">{_NOTHING}</td>' * 3)
            continue
        cells.append(f'<td class="number">{weights.zeros:,}</td>{_share(weights.zeros / size)}')
        cells.append(f'<td class="number">{weights.zero_slices:,} of {len(weights.nonzero):,}</td>')
    return "".join(cells)


def _logged_layers(runs: Sequence[Run]) -> str:
    layers = list(dict.fromkeys(layer for run in runs for layer in layer_keys(run.metrics, "sparsity")))
    shown = display_names([layer for layer in layers if layer != "total"], width=32) | {"total": "all layers"}
    rows = []
    for layer in layers:
        cells = []
        for run in runs:
            series = run.metrics.get(f"sparsity/{layer}")
            cells.append(f'<td class="number">{_NOTHING}</td>' if series is None else _share(series[1][-1]))
        rows.append(f'<tr><td class="first">{_named(layer, shown[layer])}</td>{"".join(cells)}</tr>')
    head = ["layer", *("share zero, last logged" + (f": {escape(r.name)}" if len(runs) > 1 else "") for r in runs)]
    return _table(head, rows)


def _masks(runs: Sequence[Run]) -> str:
    tensors = _tensor_rows(runs)
    if not tensors:
        return ""
    shown = display_names(list(tensors), width=32)
    cards = []
    legend = [
        "<h2>Masks</h2>",
        '<p class="faint"><span class="key kept"></span> weight left &ensp; <span class="key zero"></span> exactly'
        " zero; in between where a pixel is a mean.</p>",
    ]
    for name, of_runs in tensors.items():
        figures = []
        for run, weights in zip(runs, of_runs, strict=True):
            if weights is None:
                continue
            mask = draw_mask(weights.nonzero)
            # Whole screen pixels for each weight, so that a pattern is not blurred.
            scale = max(1, min(320 // mask.width, 240 // mask.height, 12))
            said = f"{name}, {_shape(weights)}: {weights.zeros:,} of {weights.nonzero.numel():,} weights are zero"
            heading = "" if len(runs) == 1 else f"<strong>{escape(run.name)}</strong><br>"
            figures.append(
                f'<figure>{heading}<div class="scroll"><img src="{mask.uri}" width="{scale * mask.width}"'
                f' height="{scale * mask.height}" alt="{escape(said)}" title="{escape(said)}"></div>'
                f'<figcaption class="caption">{_shape(weights)}; {escape(mask.caption)}</figcaption></figure>'
            )
        cards.append(
            f'<section class="card"><h3>{_named(name, shown[name])}</h3><div class="masks">{"".join(figures)}</div>'
            "</section>"
        )
    return "\n".join([*legend, '<div class="grid">', *cards, "</div>"])


def _settings(runs: Sequence[Run]) -> str:
    files = [_NOTHING if run.settings_file is None else run.settings_file.name for run in runs]
    if not any(run.settings for run in runs):
        return '<p class="faint">The run folder holds neither config.yaml nor hparams.yaml.</p>'
    # A key that starts with an underscore is Lightning's own note.
    texts = [{key: _setting(v) for key, v in run.settings.items() if v is not None and key[0] != "_"} for run in runs]
    keys = list(dict.fromkeys(key for settings in texts for key in settings))
    # hparams.yaml holds less than config.yaml, and no file nothing: what is missing there is no difference.
    told = [text for text, file in zip(texts, files, strict=True) if file == "config.yaml"] or texts
    differing = [key for key in keys if len({settings.get(key) for settings in told}) > 1]
    main = [key for key in keys if key.startswith(_MAIN_SETTINGS) and key not in differing]
    rest = [key for key in keys if key not in differing and key not in main]

    def table(chosen: Sequence[str]) -> str:
        rows = (
            f"<tr{' class=differs' if key in differing else ''}>"
            + f'<td class="value">{escape(key)}</td>'
            + "".join(f'<td class="value">{escape(settings.get(key, _NOTHING))}</td>' for settings in texts)
            + "</tr>"
            for key in chosen
        )
        return _table(["setting", *(escape(run.name) for run in runs)], rows, numbers_from=len(runs) + 1)

    sources = (
        ", ".join(dict.fromkeys(files))
        if len(runs) == 1
        else ", ".join(f"{run.name}: {file}" for run, file in zip(runs, files, strict=True))
    )
    parts = [f'<p class="faint">From {escape(sources)}; what is null is left out.</p>']
    if differing:
        parts += ["<h3>Different</h3>", table(differing)]
    if main:
        parts += ["<h3>Alike</h3>" if len(runs) > 1 else "", table(main)]
    if rest:
        parts += [f"<details><summary>{len(rest)} more settings</summary>{table(rest)}</details>"]
    return "\n".join(parts)


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
