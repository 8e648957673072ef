"""Projects that import ``pytorch_lightning``, each in its own process: the name is fixed at the first import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytorch_lightning")
ROOT = Path(__file__).parents[2]

OURS = """
import warnings; warnings.filterwarnings("ignore")
import pytorch_lightning as pl, torch
from torch.utils.data import DataLoader, TensorDataset
class Net(pl.LightningModule):
    def __init__(self, width: int = 32):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))
    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.net(x), y)
        self.log("train_loss", loss)
        return loss
    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)]
    def train_dataloader(self):
        x = torch.randn(160, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)
OPTIONS = dict(accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
               enable_progress_bar=False, enable_model_summary=False)
def zeros(net):
    weights = [p for p in net.parameters() if p.dim() == 2]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
"""


def run(script: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LIGHTNING_BSQH")}
    paths = [str(ROOT), *([os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [])]
    variables = {**kept, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, env=variables, text=True, capture_output=True, check=False
    )


def output(script: str, cwd: Path, **environment: str) -> str:
    done = run(script, cwd, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("strategy", ['"bsqh"', "lightning_bsqh.BSQHStrategy()"])
def test_training_by_changing_one_line(tmp_path: Path, strategy: str) -> None:
    script = f"""{OURS}
import lightning_bsqh, sys
net, trainer = Net(), pl.Trainer(strategy={strategy}, gradient_clip_val=1.0, accumulate_grad_batches=4, **OPTIONS)
trainer.fit(net)
assert isinstance(trainer.strategy, pl.strategies.Strategy)
assert trainer.global_step == 10
assert "lightning.pytorch" not in sys.modules
print(round(zeros(net), 2))
"""
    assert output(script, tmp_path) == "0.9\n"


@pytest.mark.slow
def test_callbacks_and_checkpoints(tmp_path: Path) -> None:
    script = f"""{OURS}
import lightning_bsqh, os
from lightning_bsqh.callbacks import BSQHMonitor, SparseCheckpoint
options = dict(OPTIONS, enable_checkpointing=True, logger=pl.loggers.CSVLogger("runs"), log_every_n_steps=1)
saved = SparseCheckpoint(monitor="train_loss", dirpath="kept")
trainer = pl.Trainer(strategy="bsqh", callbacks=[BSQHMonitor(every_n_steps=1), saved], **options)
trainer.fit(Net())
assert trainer.checkpoint_callbacks == [saved], trainer.checkpoint_callbacks
text = open(trainer.log_dir + "/metrics.csv").read()
assert "bsqh/epsilon" in text, text
resumed = pl.Trainer(strategy="bsqh", **dict(OPTIONS, max_epochs=3))
resumed.fit(Net(), ckpt_path=saved.best_model_path)
print(resumed.global_step)
"""
    assert output(script, tmp_path) == "60\n"


def test_class_paths_of_lightning_cli(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse")
    (tmp_path / "mine.yaml").write_text(
        "trainer:\n  max_epochs: 1\n  logger: false\n  enable_checkpointing: false\n  accelerator: cpu\n"
        "  callbacks:\n  - class_path: lightning_bsqh.callbacks.BSQHMonitor\n"
        "  strategy:\n    class_path: lightning_bsqh.BSQHStrategy\n    init_args:\n      max_trials: 3\n"
        "      regularizer:\n        class_path: lightning_bsqh.L0\n        init_args: {rho: 1.0e-4}\n",
        encoding="utf-8",
    )
    script = f"""{OURS}
from pytorch_lightning.cli import LightningCLI
cli = LightningCLI(Net, args=["fit", "--config", "mine.yaml"])
print(type(cli.trainer.strategy).__mro__[2].__module__, cli.trainer.optimizers[0].max_trials)
"""
    assert output(script, tmp_path).split()[-2:] == ["pytorch_lightning.strategies.single_device", "3"]


@pytest.mark.slow
def test_the_command_takes_the_name_from_the_environment(tmp_path: Path) -> None:
    pytest.importorskip("jsonargparse")
    (tmp_path / "project.py").write_text(OURS, encoding="utf-8")
    script = """
from lightning_bsqh_cli import main
main("fit --model project.Net --trainer.strategy bsqh --trainer.max_epochs 1 --name a".split())
"""
    assert "sparsity" in output(script, tmp_path, LIGHTNING_BSQH_NAMESPACE="pytorch_lightning")


# ---------------------------------------------------------------------- both names in one process


@pytest.mark.parametrize(
    ("first", "strategy", "error"),
    [
        ("pytorch_lightning", '"bsqh"', "MisconfigurationException"),
        pytest.param("lightning.pytorch", "BSQHStrategy()", "ValueError", marks=pytest.mark.slow),
    ],
)
def test_a_trainer_of_the_other_name(tmp_path: Path, first: str, strategy: str, error: str) -> None:
    second = ({"pytorch_lightning", "lightning.pytorch"} - {first}).pop()
    script = f"""
import {first}, {second} as other
from lightning_bsqh import BSQHStrategy
other.Trainer(strategy={strategy}, accelerator="cpu", logger=False)
"""
    done = run(script, tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert error in last
    assert f"for a Trainer of {first}" in last
    assert f"import {second} before lightning_bsqh, or set the environment variable" in last


@pytest.mark.slow
def test_the_environment_decides_between_both(tmp_path: Path) -> None:
    script = f"""{OURS}
import lightning.pytorch, lightning_bsqh
net = Net()
pl.Trainer(strategy="bsqh", **OPTIONS).fit(net)
print(round(zeros(net), 2))
"""
    assert output(script, tmp_path, LIGHTNING_BSQH_NAMESPACE="pytorch_lightning") == "0.9\n"
    assert output(f"import lightning.pytorch\n{script}", tmp_path, LIGHTNING_BSQH_NAMESPACE="pytorch_lightning")
