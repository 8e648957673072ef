import csv
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from lightning_bsqh.report import plot
from lightning_bsqh.report.plot import plot_training, read_metrics, rejections, short_names


def _write(path: Path, layers: int = 3, steps: int = 60, objective: float = 2.0, leave_out: str = "") -> Path:
    """A file as CSVLogger writes it: one row per call, most cells empty."""
    rows = []
    for step in range(steps):
        # In every tenth iteration the first two trials were rejected, in the 20th all of them.
        trials, accepted = (6, 0) if step == 20 else (3, 1) if step % 10 == 0 else (1, 1)
        values = {"objective": objective / (step + 1), "epsilon": 100.0 + step, "trials": trials, "accepted": accepted}
        rows.append({"step": step} | {f"bsqh/{key}": value for key, value in values.items()})
        rows.append({"step": step, "epoch": 0, "train_loss": 1.0})
        if step % 5 == 4:
            sparsity = {f"sparsity/network.layer{i}": step / steps for i in range(layers)}
            rows.append({"step": step, "sparsity/total": step / steps, **sparsity})
    keys = sorted({key for row in rows for key in row if key != leave_out})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(("layers", "steps", "objective"), [(3, 200, 2.0), (9, 60, 2.0), (1, 5, -1.0)])
def test_writes_a_picture(tmp_path, layers: int, steps: int, objective: float) -> None:
    from PIL import Image

    png = tmp_path / "training.png"
    plot_training(_write(tmp_path / "metrics.csv", layers, steps, objective), png)
    with Image.open(png) as image:
        assert image.size == (1350, 1350)
        assert len(image.convert("RGB").getcolors(1_000_000)) > 50


def test_draws_what_was_measured(tmp_path, monkeypatch) -> None:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    plot_training(_write(tmp_path / "metrics.csv"), tmp_path / "training.png")
    objective, epsilon, sparsity = figures[0].axes
    assert (objective.get_yscale(), epsilon.get_yscale(), sparsity.get_yscale()) == ("log", "log", "linear")
    assert objective.get_shared_x_axes().joined(objective, sparsity)
    assert objective.lines[0].get_ydata()[0] == 2.0
    assert list(epsilon.lines[0].get_ydata()) == [100.0 + step for step in range(60)]
    assert [tuple(point) for point in epsilon.collections[0].get_offsets()] == [
        (step, 100.0 + step) for step in range(0, 60, 10)
    ]
    assert "16 trials in 6 iterations" in epsilon.get_legend().get_texts()[1].get_text()
    assert [line.get_label() for line in sparsity.lines] == ["layer0", "layer1", "layer2", "all layers"]
    assert max(sparsity.lines[-1].get_ydata()) == pytest.approx(100 * 59 / 60)
    assert all(axes.get_ylabel() for axes in figures[0].axes)
    assert sparsity.get_xlabel() == "iteration (batches)"
    styles = {(line.get_color(), line.get_linestyle()) for line in sparsity.lines}
    assert len(styles) == 4


def test_leaves_pyplot_alone(tmp_path) -> None:
    before = "matplotlib.pyplot" in sys.modules
    plot_training(_write(tmp_path / "metrics.csv"), tmp_path / "training.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_read_metrics_and_rejections(tmp_path) -> None:
    metrics = read_metrics(_write(tmp_path / "metrics.csv"))
    assert "epoch" not in metrics
    assert metrics["sparsity/total"][0] == list(range(4, 60, 5))
    assert rejections(metrics) == {0: 2, 10: 2, 20: 6, 30: 2, 40: 2, 50: 2}


@pytest.mark.parametrize(
    ("layers", "short"),
    [
        (["network.conv1", "network.fc"], ["conv1", "fc"]),
        (["network.block1.conv1", "network.block1.conv2"], ["conv1", "conv2"]),
        (["net.a", "network.a"], ["net.a", "network.a"]),
        (["network", "network.a"], ["network", "network.a"]),
        (["network.only"], ["only"]),
        ([], []),
    ],
)
def test_short_names(layers: list[str], short: list[str]) -> None:
    assert short_names(layers) == dict(zip(layers, short, strict=True))


def test_missing_metrics_are_named(tmp_path) -> None:
    file = _write(tmp_path / "metrics.csv", leave_out="bsqh/epsilon")
    with pytest.raises(ValueError, match="no values of bsqh/epsilon: train with the callbacks AugmentationMonitor"):
        plot_training(file, tmp_path / "training.png")


def test_without_matplotlib(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        plot.plot_training(tmp_path / "metrics.csv", tmp_path / "training.png")
