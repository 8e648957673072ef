"""What the command line does with a WandbLogger."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytest.importorskip("jsonargparse")
pytest.importorskip("wandb")

import wandb

from lightning_bsqh.cli.lightning_cli import BSQHCLI
from tests.wandb_files import final_state
from tests.zoo.made_data import make_mnist


@pytest.fixture
def arguments(tmp_path, monkeypatch) -> Iterator[list[str]]:
    """A complete command line with a WandbLogger that is not told to be offline; nobody is logged in."""
    monkeypatch.setattr(sys, "argv", ["lightning-bsqh"])
    monkeypatch.chdir(tmp_path)
    make_mnist(tmp_path / "made")
    monkeypatch.setenv("WANDB_MODE", "online")  # so that it is put back after the test
    wandb.teardown()  # W&B reads the environment once per process
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    yield [
        "fit", "--model", "lightning_bsqh.zoo.ImageClassifier", "--model.network", "lightning_bsqh.zoo.LeNet5",
        "--data", "lightning_bsqh.zoo.data.MNISTDataModule", "--data.root", str(tmp_path / "made"),
        "--data.batch_size", "10", "--data.val_images", "10", "--trainer.max_epochs", "1", "--trainer.accelerator",
        "cpu", "--trainer.strategy", "bsqh", "--trainer.enable_progress_bar", "false",
        "--trainer.enable_model_summary", "false", "--trainer.enable_checkpointing", "false",
        "--trainer.callbacks", "lightning_bsqh.callbacks.PictureMonitor",
        "--trainer.logger", "WandbLogger", "--trainer.logger.save_dir", str(tmp_path),
    ]  # fmt: skip
    wandb.teardown()


def _close() -> Path:
    folder = Path(wandb.run.dir).parent
    wandb.finish()
    return folder


def test_the_run_has_the_configuration(arguments, tmp_path, capsys) -> None:
    BSQHCLI([*arguments, "--trainer.logger.offline", "true", "--seed_everything", "7"])
    run = final_state(_close())
    config, saved = run["config"], yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["seed_everything"] == 7
    assert config["data"]["init_args"]["batch_size"] == 10
    for key in ("model", "data", "trainer"):
        assert config[key] == saved[key]
    assert "config" not in config
    assert 0.0 <= run["summary"]["best/val_accuracy"] <= 1.0
    assert "test_accuracy" in capsys.readouterr().out


def test_without_a_key_the_run_is_offline(arguments) -> None:
    with pytest.warns(
        UserWarning, match=r"No API key.*written offline.*wandb sync FOLDER.*To get one, run `wandb login`"
    ):
        BSQHCLI(arguments)
    assert os.environ["WANDB_MODE"] == "offline"
    assert final_state(_close())["summary"]["final/sparsity"] == pytest.approx(0.9, abs=1e-4)
