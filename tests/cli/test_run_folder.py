"""What a command leaves and what it leaves alone: the user's files, earlier runs, numbers of runs."""

import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("jsonargparse")

from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_bsqh.cli.log_config import save_beside
from lightning_bsqh.cli.main import main
from lightning_bsqh.cli.run_folder import name_run

MODULE = """
import lightning as L, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(L.LightningModule):
    def __init__(self, width: int = 4, fails: str = ""):
        super().__init__()
        if fails == "init":
            raise ValueError("a fault of the user's program")
        self.fails, self.net = fails, nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 2))
    def training_step(self, batch, batch_idx):
        if self.fails == f"step {batch_idx}":
            raise ValueError("a fault of the user's program")
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True)
        return loss
    def test_step(self, batch, batch_idx):
        if self.fails == "test":
            raise ValueError("a fault of the user's program")
        self.log("test_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

class Points(L.LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(32, 2)
        return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), 8)

class Tested(Points):
    test_dataloader = Points.train_dataloader

class WithoutTest(Points):
    def test_dataloader(self):
        return None

class WithoutBatches(Points):
    def test_dataloader(self):
        return []
"""


@pytest.fixture
def module(tmp_path, monkeypatch, request) -> Iterator[str]:
    """Name of a file with a network and data, in the present folder."""
    monkeypatch.setattr(sys, "argv", ["lightning-bsqh"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "own_" + "".join(letter if letter.isalnum() else "_" for letter in request.node.name)
    (tmp_path / f"{name}.py").write_text(MODULE)
    yield name
    sys.modules.pop(name, None)


def _fit(module: str, *more: str, data: str = "Points", logger: str = "CSVLogger") -> None:
    args = ["fit", f"--model={module}.Net", f"--data={module}.{data}", "--trainer.strategy=bsqh"]
    args += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    args += ["--trainer.enable_checkpointing=false", "--trainer.enable_model_summary=false"]
    args += [f"--trainer.logger={logger}"] + ([] if logger == "false" else ["--trainer.logger.save_dir=runs"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main([*args, *more])


def _versions() -> list[str]:
    return sorted(path.name for path in Path("runs/lightning_logs").glob("*"))


@pytest.mark.parametrize("existing", ["# mine\n", None])
def test_the_users_config_stays(module, existing: str | None) -> None:
    if existing is None:
        Path("config.yaml").symlink_to("elsewhere.yaml")
    else:
        Path("config.yaml").write_text(existing)
    _fit(module, logger="false")
    assert not Path("elsewhere.yaml").exists()
    assert existing is None or Path("config.yaml").read_text() == existing
    assert "max_epochs: 1" in Path("config_2.yaml").read_text()
    # The same again is not kept twice.
    _fit(module, logger="false")
    assert not Path("config_3.yaml").exists()


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=6))
@settings(max_examples=30, deadline=None)
def test_save_beside_loses_nothing(tmp_path_factory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("beside")
    for text in texts:
        before = {path: path.read_text() for path in folder.iterdir()}
        written = save_beside(folder / "x.yaml", text)
        assert all(path.read_text() == content for path, content in before.items())
        assert (written is None) == (text in before.values())
    assert {path.read_text() for path in folder.iterdir()} == set(texts)


@pytest.mark.parametrize("data", ["WithoutTest", "WithoutBatches", "Points"])
def test_without_a_test_set_the_summary_is_printed(module, data: str, capsys) -> None:
    _fit(module, data=data, logger="false")
    printed = capsys.readouterr().out
    assert "sparsity" in printed
    assert "test_loss" not in printed


def test_a_test_that_fails_does_not_take_the_summary_with_it(module, capsys) -> None:
    with pytest.raises(ValueError, match="a fault of the user's program"):
        _fit(module, "--model.fails=test", data="Tested")
    assert "sparsity" in capsys.readouterr().out
    assert _versions() == ["version_0"]


@pytest.mark.parametrize(
    "fault",
    [
        "--model.fails=step 0",
        "--trainer.strategy=lightning_bsqh.BSQHStrategy --trainer.strategy.max_trials=0",
        "--trainer.strategy=lightning_bsqh.BSQHStrategy --trainer.strategy.layers=[nothing.*]",
    ],
)
@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger"])
def test_a_run_that_never_began_uses_up_no_number(module, fault: str, logger: str) -> None:
    if logger == "TensorBoardLogger":
        pytest.importorskip("tensorboard")
    more = [fault] if "step" in fault else fault.split()
    with pytest.raises((ValueError, SystemExit)):
        _fit(module, *more, logger=logger)
    assert _versions() == []
    _fit(module, logger=logger)
    assert _versions() == ["version_0"]
    assert (Path("runs/lightning_logs/version_0") / "config.yaml").is_file()


def test_a_run_that_began_is_kept(module) -> None:
    with pytest.raises(ValueError, match="a fault of the user's program"):
        _fit(module, "--model.fails=step 2")
    assert _versions() == ["version_0"]


def test_named_runs(module, capsys) -> None:
    _fit(module, "--name=first try")
    assert _versions() == ["first try"]
    assert "runs/lightning_logs/first try" in capsys.readouterr().out
    metrics = Path("runs/lightning_logs/first try/metrics.csv").read_text()
    with pytest.raises(SystemExit):
        _fit(module, "--name=first try")
    assert "There is a run in runs/lightning_logs/first try already" in capsys.readouterr().err
    assert Path("runs/lightning_logs/first try/metrics.csv").read_text() == metrics


def test_an_earlier_runs_metrics_are_not_replaced(module, capsys) -> None:
    _fit(module)
    metrics = Path("runs/lightning_logs/version_0/metrics.csv").read_text()
    with pytest.raises(SystemExit):
        _fit(module, "--trainer.logger.version=0")
    assert "give another --name" in capsys.readouterr().err
    assert Path("runs/lightning_logs/version_0/metrics.csv").read_text() == metrics


@pytest.mark.parametrize(
    ("logger", "where"),
    [
        ({"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "a"}}, "version"),
        ({"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": "a"}}, "version"),
        ({"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {}}, "name"),
        ({"class_path": "lightning.pytorch.loggers.MLFlowLogger", "init_args": {}}, "run_name"),
    ],
)
def test_every_logger_gets_the_name_where_it_belongs(logger: dict, where: str) -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    config = jsonargparse.dict_to_namespace({"logger": [logger], "default_root_dir": None})
    name_run(config, "mine")
    assert config.logger[0].init_args[where] == "mine"


@pytest.mark.parametrize("name", ["", " ", "a/b", "..", "a\\b"])
def test_refuses_bad_names(name: str) -> None:
    with pytest.raises(ValueError, match="name must be a plain name"):
        name_run(Namespace(), name)


def test_a_name_needs_a_logger_that_takes_one(module, capsys) -> None:
    with pytest.raises(SystemExit):
        _fit(module, "--name=a", logger="false")
    assert "needs a logger, but trainer.logger is false" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        _fit(module, "--name=a", "--trainer.logger=lightning.pytorch.loggers.logger.DummyLogger", logger="false")
    assert "not known to the logger lightning.pytorch.loggers.logger.DummyLogger" in capsys.readouterr().err
