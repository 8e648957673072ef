import csv
import hashlib
import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_bsqh.report import read_runs, write_report
from lightning_bsqh.report.charts import charts
from lightning_bsqh.report.curves import LARGEST, moving_mean, thin
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
    assert chart.data[0]["x"][:3] == [0, 4, 5]
    assert chart.data[0]["x"][-1] == steps - 1
    assert "the lowest and the highest of every 5 readings are shown" in chart.note
    assert thin(([], [])) == (([], []), 1)


@given(st.lists(st.floats(), max_size=400), st.integers(10, 60))
def test_no_spike_is_lost_by_thinning(values: list[float], largest: int) -> None:
    (steps, kept), every = thin((list(range(len(values))), values), largest)
    assert steps == sorted(set(steps))
    assert len(steps) <= 1.5 * largest + 3
    finite = [value for value in values if math.isfinite(value)]
    assert (
        [min(finite), max(finite)] == [f(v for v in kept if math.isfinite(v)) for f in (min, max)] if finite else True
    )
    assert any(map(math.isfinite, kept)) == bool(finite)
    assert all(math.isfinite(value) for value in kept) == (len(finite) == len(values))
    assert every == 1 or len(values) > largest


def test_moving_mean() -> None:
    assert moving_mean(([0, 1, 2, 3], [1.0, 2.0, 6.0, 4.0]), 2) == ([0, 1, 2, 3], [1.0, 1.5, 4.0, 5.0])
    # At some steps only, but with all values between, and without those that are no numbers.
    values = [float(i) for i in range(1000)]
    assert moving_mean((list(range(1001)), [math.nan, *values]), 10, points=4) == (
        [1, 251, 501, 751, 1000],
        [0.0, 245.5, 495.5, 745.5, 994.5],
    )
    assert moving_mean(([], []), 3) == ([], [])


def test_charts_are_what_plotly_knows(tmp_path) -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")

    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    for chart in [*charts(read_runs(folders[:1])), *charts(read_runs(folders))]:
        # Raises for an unknown property or value. The page's script gives lines of the text's color theirs.
        known = json.loads(json.dumps([chart.data, chart.layout]).replace('"color": "text"', '"color": "black"'))
        graph_objects.Figure(data=known[0], layout=known[1])


def test_output_elsewhere(tmp_path) -> None:
    folder = make_run(tmp_path / "run")
    path = write_report([folder], tmp_path / "new" / "my.html")
    assert path.is_file()
    assert not (folder / "report.html").exists()
    with pytest.raises(ValueError, match="output must be a file, got the folder"):
        write_report([folder], tmp_path)
    # An earlier report is replaced, without anything left beside it.
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", "<p>left over</p>"), encoding="utf-8")
    assert "left over" not in write_report([folder], path).read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["my.html"]


def test_a_report_names_the_runs_as_told(tmp_path) -> None:
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    text = write_report(folders, names=["dense", "sparse"]).read_text(encoding="utf-8")
    assert "<h1>Runs dense, sparse</h1>" in text
    for names in (["one"], ["same", "same"], ["", "b"]):
        with pytest.raises(ValueError, match="names must be 2 different names"):
            write_report(folders, names=names)


def test_epochs_stand_above_where_the_runs_agree(tmp_path) -> None:
    first, second = make_metrics(tmp_path / "a"), make_metrics(tmp_path / "b", steps=40)
    for folders in ([first], [first, second]):
        axis = charts(read_runs(folders))[0].layout["xaxis2"]
        assert (axis["side"], axis["matches"], axis["title"]["text"]) == ("top", "x", "epochs done")
        assert dict(zip(axis["ticktext"], axis["tickvals"], strict=True)) == {"1": 20, "2": 40, "3": 60}
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "metrics.csv").write_text("bsqh/epsilon,step,epoch\n1,29,0\n1,59,1\n1,89,2\n", encoding="utf-8")
    assert "xaxis2" not in charts(read_runs([first, tmp_path / "c"]))[0].layout


def test_many_epochs_have_few_ticks(tmp_path) -> None:
    rows = "\n".join(f"1,{10 * epoch + 9},{epoch}" for epoch in range(300))
    (tmp_path / "metrics.csv").write_text(f"bsqh/epsilon,step,epoch\n{rows}\n", encoding="utf-8")
    axis = charts(read_runs([tmp_path]))[0].layout["xaxis2"]
    assert axis["ticktext"] == ["50", "100", "150", "200", "250", "300"]
    assert axis["tickvals"] == [500, 1000, 1500, 2000, 2500, 3000]


def _reaches(folder: Path, at: int, steps: int = 100) -> Path:
    folder.mkdir()
    rows = "\n".join(f"{min(0.95 * i / at, 0.95)},{i}" for i in range(steps))
    (folder / "metrics.csv").write_text(f"sparsity/total,step\n{rows}\n", encoding="utf-8")
    return folder


def test_where_the_target_was_reached_is_marked(tmp_path) -> None:
    first, second = _reaches(tmp_path / "a", 40), _reaches(tmp_path / "b", 70)
    (chart,) = charts(read_runs([first]))
    assert [(shape["x0"], shape["x1"], shape["yref"]) for shape in chart.layout["shapes"]] == [(40, 40, "paper")]
    assert [note["text"] for note in chart.layout["annotations"]] == ["95 % zeros reached"]
    assert _read(first).row("that share reached at step") == ["40"]
    both = charts(read_runs([first, second]))[0]
    assert [shape["x0"] for shape in both.layout["shapes"]] == [40, 70]
    assert [shape["line"]["color"] for shape in both.layout["shapes"]] == [t["line"]["color"] for t in both.data]
    assert "dotted upright line" in both.note
    # Still on its way, so nothing was reached.
    assert charts(read_runs([make_run(tmp_path / "c")]))[0].layout["shapes"] == []


def test_every_chart_of_ours_says_what_is_healthy(tmp_path) -> None:
    folder = make_run(tmp_path)
    text = write_report([folder]).read_text(encoding="utf-8")
    assert text.count("In a healthy run:") == len(charts(read_runs([folder])))
    assert "the rise at the end is the schedule" in " ".join(text.split())


def test_logarithmic_axes_say_so(tmp_path) -> None:
    for chart in charts(read_runs([make_run(tmp_path)])):
        axis = chart.layout["yaxis"]
        assert (axis.get("type") == "log") == axis["title"]["text"].endswith("(logarithmic)")


def test_lines_upon_one_another_can_be_told_apart(tmp_path) -> None:
    rows = "\n".join(f"{1 / (i + 1)},{1 / (i + 1)},{2 / (i + 1)},1,{i}" for i in range(20))
    text = f"a_loss,b_loss,c_loss,bsqh/epsilon,step\n{rows}\n"
    (tmp_path / "metrics.csv").write_text(text, encoding="utf-8")
    (chart,) = (chart for chart in charts(read_runs([tmp_path])) if chart.title == "Loss")
    widths = [trace["line"]["width"] for trace in chart.data]
    assert widths == sorted(set(widths), reverse=True)
    assert chart.note.startswith("a_loss and b_loss are the same throughout")


def test_the_page_is_less_than_1_mb(tmp_path) -> None:
    # Most of it is plotly.js; 300 times as many rows are no more points.
    text = "bsqh/epsilon,bsqh/tau,step\n" + "\n".join(f"{1.0 + i},{1 / (i + 1)},{i}" for i in range(30_000))
    (tmp_path / "metrics.csv").write_text(text, encoding="utf-8")
    assert write_report([tmp_path]).stat().st_size < 800_000


def test_the_bundle_of_plotly_is_the_one_that_is_told() -> None:
    import lightning_bsqh.report as package

    folder = Path(package.__file__).parent / "vendor"
    script = (folder / "plotly-basic.min.js").read_bytes()
    assert hashlib.sha256(script).hexdigest() in (folder / "README.md").read_text(encoding="utf-8")
    assert b"MIT" in script[:300]


def test_colors_of_the_page_are_defined_for_light_and_dark() -> None:
    import lightning_bsqh.report as package

    style = (Path(package.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    used = set(re.findall(r"var\((--\w+)\)", style)) - {"--share"}
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    for color in used:
        assert f"{color}:" in light
        assert f"{color}:" in dark


def test_without_jinja2(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "lightning-bsqh\[report\]"'):
        write_report([make_run(tmp_path)])


def test_tables_of_the_command_export(tmp_path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    (first / "export.csv").write_text(',trained,shrunk,ratio\n<b>parameters,"61,706","9,077",6.80 x\n')
    (second / "export.csv").write_text("mine,of,another,kind\n1,2,3,4\n")
    page = write_report([first, second]).read_text(encoding="utf-8")
    rows = _Reader(page).rows
    assert ["<b>parameters", "61,706", "9,077", "6.80 x"] in rows
    assert "another" not in page.split("<script", 1)[0]
    assert "Without its zeros" not in write_report([second]).read_text(encoding="utf-8")
