"""The user's files are the user's."""

import pytest

from lightning_bsqh.cli import main

MODULE = """
import lightning as L, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(L.LightningModule):
    def __init__(self, width: int = 4):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.training_step(batch, batch_idx))

class Points(L.LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(32, 2)
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 8)

class WithoutTest(Points):
    def test_dataloader(self):
        return None
"""
CONFIG = """# written by hand
model: {class_path: NAME.Net}
data: {class_path: NAME.Points}
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, strategy: bsqh}
"""
HEAD = "bsqh/objective,bsqh/epsilon,bsqh/trials,bsqh/accepted,step,epoch\n"


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    """Name of a file with a network and data, in the present folder."""
    name = f"own_{request.node.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_config_in_the_present_folder(module, tmp_path):
    """fit --config config.yaml leaves that file as it was."""
    text = CONFIG.replace("NAME", module)
    (tmp_path / "config.yaml").write_text(text)
    try:
        main(["fit", "--config", "config.yaml", "--trainer.logger", "false"])
    except (SystemExit, RuntimeError) as error:
        assert "config.yaml" in str(error)
    assert (tmp_path / "config.yaml").read_text() == text


def test_config_where_the_run_is_kept(module, tmp_path):
    """Nor does a run from another file replace a config.yaml in the Trainer's default_root_dir."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "config.yaml").write_text("# notes of mine")
    (tmp_path / "mine.yaml").write_text(CONFIG.replace("NAME", module))
    args = ["fit", "--config", "mine.yaml", "--trainer.logger", "false", "--trainer.default_root_dir", "results"]
    try:
        main(args)
    except (SystemExit, RuntimeError) as error:
        assert "config.yaml" in str(error)
    assert (tmp_path / "results" / "config.yaml").read_text() == "# notes of mine"


def test_no_test_set(module, capsys):
    """A test_dataloader that returns None is no test set: the command ends with its summary."""
    args = f"fit --model {module}.Net --data {module}.WithoutTest --trainer.strategy bsqh --trainer.max_epochs 1"
    args += " --trainer.accelerator cpu --trainer.logger false --trainer.enable_progress_bar false"
    try:
        main(args.split())
    except TypeError as error:
        pytest.fail(f"a traceback: {error}")
    assert "sparsity" in capsys.readouterr().out


def run_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.csv").write_text(HEAD + "1.0,2.0,1,1,0,0\n0.9,2.0,1,1,1,0\n")
    return folder


def test_report_through_a_link(tmp_path):
    """A report.html that is a symlink does not send the report into the file behind it."""
    folder = run_folder(tmp_path)
    (tmp_path / "precious.txt").write_text("precious")
    (folder / "report.html").symlink_to(tmp_path / "precious.txt")
    try:
        main(["report", str(folder)])
    except SystemExit as error:
        assert "report.html" in str(error)
    assert (tmp_path / "precious.txt").read_text() == "precious"


def test_report_through_a_chosen_link(tmp_path):
    """--output that is a symlink does not either."""
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "out.html").symlink_to(tmp_path / "thesis.tex")
    try:
        main(["report", str(run_folder(tmp_path)), "--output", str(tmp_path / "out.html")])
    except SystemExit as error:
        assert "out.html" in str(error)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", ["metrics.csv", "hparams.yaml"])
def test_report_onto_its_input(tmp_path, name):
    """--output with the name of a file that the report is made of does not cost the run that file."""
    folder = run_folder(tmp_path)
    (folder / "hparams.yaml").write_text("width: 3\n")
    text = (folder / name).read_text()
    try:
        main(["report", str(folder), "--output", str(folder / name)])
    except SystemExit as error:
        assert name in str(error)
    assert (folder / name).read_text() == text
