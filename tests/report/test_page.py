import csv
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

pytest.importorskip("plotly")

from lightning_bsqh.report import read_runs, write_report
from lightning_bsqh.report.charts import LARGEST, charts, moving_mean, thin
from tests.report.made_runs import LAYERS, made_weights, make_metrics, make_run


class _Reader(HTMLParser):
    """Texts of table cells, pictures, links to anywhere, and the charts' data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.titles: list[str] = []
        self._in_cell = self._in_charts = False
        self.charts: list[dict] = []
        self._json = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [value for key in ("src", "href") if (value := found.get(key))]
        if "title" in found:
            self.titles.append(found["title"] or "")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True
        if tag == "img":
            self.images.append(found)
        self._in_charts = tag == "script" and found.get("id") == "charts"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False
        if self._in_charts:
            self._in_charts, self.charts = False, json.loads(self._json)

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data
        if self._in_charts:
            self._json += data

    def row(self, first: str) -> list[str]:
        return next(row[1:] for row in self.rows if row and row[0] == first)

    def chart(self, title: str) -> dict:
        return next(chart for chart in self.charts if chart["title"] == title)


def _read(*folders: Path) -> _Reader:
    return _Reader(write_report(folders).read_text(encoding="utf-8"))


def _column(folder: Path, key: str) -> list[tuple[int, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [(int(row["step"]), float(row[key])) for row in csv.DictReader(file) if row[key]]


def _points(trace: dict) -> list[tuple[int, float]]:
    return list(zip(trace["x"], trace["y"], strict=True))


def test_curves_show_what_the_file_holds(tmp_path) -> None:
    folder = make_run(tmp_path)
    page = _read(folder)
    for title, name, key in [
        ("Objective", "each batch", "bsqh/objective"),
        ("Augmentation ε", "ε of the last trial", "bsqh/epsilon"),
        ("Step length τ", "Step length τ", "bsqh/tau"),
        ("Decrease of the objective per step", "promised: ητ", "bsqh/promised_decrease"),
        ("Multiply-adds left", "Multiply-adds left", "multiply_adds/share"),
        ("Weights that came and went", "became non-zero", "support/entered"),
        ("Weights that came and went", "became zero", "support/left"),
        ("Trials per iteration", "Trials per iteration", "bsqh/trials"),
        ("Weights left", "Weights left", "nonzero/total"),
        ("Loss", "train_loss", "train_loss"),
        ("Loss", "val_loss", "val_loss"),
        ("Accuracy", "val_accuracy", "val_accuracy"),
        ("Accuracy", "test_accuracy", "test_accuracy"),
        ("Zero weights", "all layers", "sparsity/total"),
        ("Zero weights", "conv1", "sparsity/network.conv1"),
        ("Hamiltonian", "fc1", "hamiltonian/network.fc1"),
        ("Gain of K, augmented Hamiltonian", "fc1", "augmented_hamiltonian/gain/network.fc1"),
        ("PMP residual", "conv1", "pmp_residual/network.conv1"),
        ("PMP residual", "all layers", "pmp_residual/total"),
    ]:
        (trace,) = (trace for trace in page.chart(title)["data"] if trace["name"] == name)
        assert _points(trace) == _column(folder, key), title
    # On a logarithmic axis: gaps and crosses where the loss has risen.
    decrease, _, increase = page.chart("Decrease of the objective per step")["data"]
    fallen = [(step, value if value > 0 else None) for step, value in _column(folder, "bsqh/loss_decrease")]
    assert _points(decrease) == fallen
    assert _points(increase) == [(29, 0.02), (59, 0.02)]
    assert not any("/" in chart["title"] for chart in page.charts)  # all have titles in words
    rejected = page.chart("Augmentation ε")["data"][1]
    assert rejected["x"] == list(range(0, 60, 10))
    assert rejected["customdata"] == [2] * 6
    for title, kind in [("Augmentation ε", "log"), ("Step length τ", "log"), ("Zero weights", None)]:
        assert page.chart(title)["layout"]["yaxis"].get("type") == kind
    assert all(chart["layout"]["yaxis"]["title"]["text"] for chart in page.charts)


def test_tables_and_pictures(tmp_path) -> None:
    page = _read(make_run(tmp_path))
    assert page.row("test_accuracy") == ["98.61 %"]
    assert page.row("val_accuracy") == ["95.90 % (best 95.90 %, step 59)"]
    assert page.row("iterations logged") == ["60"]
    assert page.row("accepted trials among them") == ["60"]
    assert page.row("rejected trials among them") == ["12"]
    assert page.row("weights exactly zero, in the checkpoint") == ["43.10 %"]  # 25 of 58
    assert page.row("checkpoint") == ["checkpoints/best.ckpt, step 40"]
    assert page.row("conv1.weight") == ["2 × 1 × 3 × 3", "18", "5", "27.78 %", "0 of 2"]
    assert page.row("fc1.weight") == ["4 × 10", "40", "20", "50.00 %", "2 of 4"]
    assert page.row("trainer.strategy.init_args.eta") == ["0.0001"]
    assert not any(row and row[0].endswith("epsilon") for row in page.rows)  # null
    assert [image["alt"] for image in page.images] == [
        "network.conv1.weight, 2 × 1 × 3 × 3: 5 of 18 weights are zero",
        "network.fc1.weight, 4 × 10: 20 of 40 weights are zero",
    ]


def test_nothing_is_fetched(tmp_path) -> None:
    path = write_report([make_run(tmp_path)])
    assert path == tmp_path / "report.html"
    text = path.read_text(encoding="utf-8")
    assert all(address.startswith("data:image/png") for address in _Reader(text).addresses)
    assert "default-src 'none'" in text


def test_only_runs_of_bsqh_are_called_so(tmp_path) -> None:
    ours, other = make_run(tmp_path / "ours"), tmp_path / "adam"
    other.mkdir()
    (other / "metrics.csv").write_text("epoch,sparsity/total,step,train_loss\n0,0.0,0,1.0\n0,0.0,1,0.5\n")
    sentence = "by the batch sequential quadratic Hamiltonian method"
    assert f"Trained {sentence}" in write_report([ours]).read_text(encoding="utf-8")
    assert f"ours trained {sentence}" in write_report([ours, other]).read_text(encoding="utf-8")
    assert sentence not in write_report([other]).read_text(encoding="utf-8")


def test_several_runs_side_by_side(tmp_path) -> None:
    strategy = {"class_path": "lightning_bsqh.BSQHStrategy", "init_args": {"eta": 0.5}}
    first = make_run(tmp_path / "a" / "version_0")
    weights = made_weights() | {"network.conv1.weight": torch.ones(3, 1, 3, 3), "network.fc2.weight": torch.ones(2, 4)}
    settings = {"seed_everything": 0, "trainer": {"strategy": strategy}}
    layers = [*LAYERS, "network.fc2"]
    second = make_run(tmp_path / "b" / "version_0", weights, settings, steps=40, scale=3.0, layers=layers)
    page = _read(first, second)
    assert (first / "report.html").is_file()
    assert not (second / "report.html").exists()
    names = ["a/version_0", "b/version_0"]
    for title, key in [("Augmentation ε", "bsqh/epsilon"), ("Zero weights", "sparsity/total")]:
        traces = {trace["name"]: trace for trace in page.chart(title)["data"]}
        for name, folder in zip(names, (first, second), strict=True):
            assert _points(traces[name]) == _column(folder, key)
        assert traces[names[0]]["line"] != traces[names[1]]["line"]
    by_layer = page.chart("Zero weights by layer: b/version_0")["data"]
    assert [trace["name"] for trace in by_layer] == ["conv1", "fc1", "fc2", "all layers"]
    assert page.row("iterations logged") == ["60", "40"]
    assert page.row("fc1.weight") == ["4 × 10", "40", *(["20", "50.00 %", "2 of 4"] * 2)]
    # Tensors of another shape, or that one run lacks, have rows of their own.
    assert page.row("conv1.weight") == ["2 × 1 × 3 × 3", "18", "5", "27.78 %", "0 of 2", "–", "–", "–"]
    assert page.row("fc2.weight") == ["2 × 4", "8", "–", "–", "–", "0", "0.00 %", "0 of 2"]
    assert page.row("trainer.strategy.init_args.eta") == ["0.0001", "0.5"]
    text = (first / "report.html").read_text(encoding="utf-8")
    assert text.index("<h3>Different</h3>") < text.index("init_args.eta") < text.index("<h3>Alike</h3>")
    assert len(page.images) == 5


def test_names_that_collide_after_shortening(tmp_path) -> None:
    layers = [f"network.a_long_encoder_name.{m}.a_long_projection_name" for m in ("first", "other")] + ["network.b"]
    weights = {f"{layer}.weight": torch.ones(2, 2) for layer in layers}
    page = _read(make_run(tmp_path, layers=layers, weights=weights))
    traces = page.chart("Zero weights")["data"]
    assert len({trace["name"] for trace in traces}) == 4
    for layer, trace in zip(layers, traces, strict=False):
        assert len(trace["name"]) <= 32
        assert f"{layer}: %{{y" in trace["hovertemplate"].replace("<br>", "")  # in lines, but in full
        assert _points(trace) == _column(tmp_path, f"sparsity/{layer}")
        assert f"{layer}.weight" in page.titles
    firsts = [row[0] for row in page.rows if row and "_name" in row[0]]
    assert len(set(firsts)) == 2


def test_many_layers_have_no_legend(tmp_path) -> None:
    page = _read(make_metrics(tmp_path, layers=[f"network.layer{i}" for i in range(30)]))
    chart = page.chart("Zero weights")
    assert not chart["layout"]["showlegend"]
    assert chart["layout"]["hovermode"] == "closest"
    assert len({(trace["line"]["color"], trace["line"]["dash"]) for trace in chart["data"]}) == 25  # 24 and the total
    # Without a checkpoint the table has what was logged last.
    assert page.row("layer29") == [f"{100 * (59 + 29) / 120:.2f} %"]


def test_what_is_not_finite_or_strange_is_no_danger(tmp_path) -> None:
    folder = tmp_path / "<script>alert(1)<b>{{charts}}"
    folder.mkdir()
    key = "</script><img src=x>"
    lines = [f"step,bsqh/epsilon,{key},train_loss", "0,1.0,1.0,nan", "1,0.0,2.0,inf", "2,-1.0,,0.5"]
    (folder / "metrics.csv").write_text("\n".join(lines), encoding="utf-8")
    page = _read(folder)
    assert page.chart("Loss")["data"][0]["y"] == [None, None, 0.5]
    assert "type" not in page.chart("Augmentation ε")["layout"]["yaxis"]
    assert page.images == []
    assert page.chart(key)["data"][0]["y"] == [1.0, 2.0]
    assert "<script>alert" not in (folder / "report.html").read_text(encoding="utf-8")


def test_only_a_few_metrics(tmp_path) -> None:
    (tmp_path / "metrics.csv").write_text("sparsity/total,step,score\n0.5,3,\n,4,7.5\n", encoding="utf-8")
    assert [chart["title"] for chart in _read(tmp_path).charts] == ["Zero weights", "score"]


def test_accuracy_in_per_cent_is_shown_as_it_stands(tmp_path) -> None:
    (tmp_path / "metrics.csv").write_text("bsqh/epsilon,step,val_acc\n1,3,\n,4,75.0\n", encoding="utf-8")
    page = _read(tmp_path)
    assert page.row("val_acc") == ["75"]
    assert "tickformat" not in page.chart("Accuracy")["layout"]["yaxis"]


def test_long_curves_are_thinned_and_the_page_says_so(tmp_path) -> None:
    steps = LARGEST * 2 + 5
    text = "bsqh/epsilon,step\n" + "\n".join(f"{1.0 + i},{i}" for i in range(steps))
    (tmp_path / "metrics.csv").write_text(text, encoding="utf-8")
    (chart,) = charts(read_runs([tmp_path]))
    assert chart.data[0]["x"][:2] == [0, 3]
    assert chart.data[0]["x"][-1] == steps - 1
    assert "one point in 3 is shown" in chart.note
    assert thin(([], [])) == (([], []), 1)


def test_moving_mean() -> None:
    assert moving_mean([1.0, 2.0, 6.0, 4.0], 2) == [1.0, 1.5, 4.0, 5.0]


def test_charts_are_what_plotly_knows(tmp_path) -> None:
    from plotly import graph_objects

    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    for chart in [*charts(read_runs(folders[:1])), *charts(read_runs(folders))]:
        data = [trace if trace.get("line", {}).get("color") != "text" else trace | {"line": {}, "marker": {}}
                for trace in chart.data]  # fmt: skip
        graph_objects.Figure(data=data, layout=chart.layout)  # raises for an unknown property or value


def test_output_elsewhere(tmp_path) -> None:
    folder = make_run(tmp_path / "run")
    path = write_report([folder], tmp_path / "new" / "my.html")
    assert path.is_file()
    assert not (folder / "report.html").exists()
    with pytest.raises(ValueError, match="output must be a file, got the folder"):
        write_report([folder], tmp_path)


def test_colours_of_the_page_are_defined_for_light_and_dark() -> None:
    import lightning_bsqh.report as package

    style = (Path(package.__file__).parent / "style.css").read_text(encoding="utf-8")
    used = set(re.findall(r"var\((--\w+)\)", style)) - {"--share"}
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    for colour in used:
        assert f"{colour}:" in light
        assert f"{colour}:" in dark


def test_without_plotly(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lightning-bsqh\[report\]"'):
        write_report([make_run(tmp_path)])
