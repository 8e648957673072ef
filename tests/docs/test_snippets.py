"""Runs what the documentation shows: its snippets in a folder with its files, its commands as they are typed."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_bsqh import BSQHStrategy
from lightning_bsqh.cli.main import main
from tests.docs.pages import DOCS, GUIDE, PAGES, README, Block, blocks
from tests.export.newer_torch import HAS_EXPORT, WITHOUT_EXPORT

BLOCKS = {page: blocks(page) for page in PAGES}
FILES = [block for block in BLOCKS[GUIDE] if block.file is not None]
#: Snippets by what is done with them: those of one page have a test of their own, see tests/export.
ELSEWHERE = {DOCS / "export.md"}
NEEDS_DEVICES = {DOCS / "scale.md", DOCS / "tutorials" / "gpus.md"}
NEEDS_NAMES = {DOCS / "index.md", DOCS / "recipes.md"}
PYTHON = [b for page in PAGES if page not in ELSEWHERE for b in BLOCKS[page] if b.language == "python" and not b.file]
SNIPPETS = [block for block in PYTHON if block.page not in NEEDS_DEVICES | NEEDS_NAMES]
COMMANDS = [line for block in BLOCKS[GUIDE] if block.language == "bash" for line in block.text.splitlines()]
FITS = [command for command in COMMANDS if " fit " in command]
WATCHING = BLOCKS[DOCS / "tutorials" / "watching.md"]
REPORTS = [line for b in WATCHING if b.language == "bash" for line in b.text.splitlines() if " report runs/" in line]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the guide's files, as the working folder."""
    for block in FILES:
        (tmp_path / str(block.file)).write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # Restored after the test, whatever is put there meanwhile.
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    for name in ("my_model", "my_data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_the_pages_have_what_they_promise() -> None:
    assert {block.file for block in FILES} == {"my_model.py", "my_data.py", "my_config.yaml"}
    assert {block.name for block in SNIPPETS} == CHECKS.keys()
    assert (len(FITS), len(REPORTS)) == (2, 1)
    # Every snippet is complete: what it uses it imports.
    assert all(block.text.startswith(("import ", "from ")) for block in SNIPPETS)


def _zeros(model: torch.nn.Module, share: float = 0.9) -> None:
    weights = [p for p in model.parameters() if p.dim() >= 2]
    zeros, total = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    assert zeros == round(share * total)


def _adds_zeros(found: dict[str, Any]) -> None:
    _zeros(found["model"])
    assert float(found["trainer"].callback_metrics["train_loss"]) < math.log(2.0)


def _steps_by_hand(found: dict[str, Any]) -> None:
    assert found["trainer"].global_step == found["trainer"].optimizers[0].iterations == 200
    _adds_zeros(found)


def _trains_alone(found: dict[str, Any]) -> None:
    assert found["optimizer"].sparsity() == pytest.approx(0.9, abs=1e-3)
    assert found["optimizer"].iterations == 200
    assert float(found["loss"]) < math.log(2.0)


def _can_be_watched(found: dict[str, Any]) -> None:
    csv_logger, wandb_logger = found["loggers"]
    wandb_logger.experiment.finish()
    assert len(list(Path("runs/wandb").glob("offline-run-*"))) == 1
    main(shlex.split(REPORTS[0])[1:])
    report = (Path(csv_logger.log_dir) / "report.html").read_text(encoding="utf-8")
    assert "PMP residual" in report
    assert "blocks.0.inner" in report


def _regularises_by_name(found: dict[str, Any]) -> None:
    blocks = found["model"].blocks
    assert sum(int((block.inner.weight == 0).all(1).sum()) for block in blocks) == 32
    assert sum(int((block.outer.weight == 0).sum()) for block in blocks) == round(0.9 * 2048)
    assert bool((found["model"].last.weight != 0).all())


def _has_blocks_as_layers(found: dict[str, Any]) -> None:
    (optimizer,) = found["trainer"].optimizers
    assert [group["name"] for group in optimizer.param_groups] == ["first", "blocks.0", "blocks.1", "last"]


def _iterates_on_all_data(found: dict[str, Any]) -> None:
    optimizer = found["optimizer"] if "optimizer" in found else found["trainer"].optimizers[0]
    assert 1 < optimizer.iterations <= 100
    assert optimizer.finished
    assert optimizer.last_step.objective_after < 0.6


def _follows_the_rule(found: dict[str, Any]) -> None:
    (optimizer,) = found["trainer"].optimizers
    assert type(optimizer.augmentation).__name__ == "DoubleAndHalve"
    # It has moved, by factors of two and within the bound.
    assert optimizer.augmentation.epsilon != 62.5
    assert math.log2(optimizer.augmentation.epsilon / 62.5).is_integer()
    assert optimizer.augmentation.epsilon >= 15.625
    assert found["rule"].epsilon == 62.5
    assert optimizer.augmentation.state_dict().keys() == {"epsilon", "accepted"}


def _asks_a_price(found: dict[str, Any]) -> None:
    weights = torch.cat([p.detach().flatten() for p in found["model"].parameters() if p.dim() >= 2])
    assert float((weights < 0).float().mean()) < 0.4
    assert found["trainer"].optimizers[0].sparsity() > 0.0


def _writes_once_per_batch(found: dict[str, Any]) -> None:
    assert len(Path("losses.txt").read_text(encoding="utf-8").splitlines()) == found["trainer"].global_step == 20


def _has_more_zeros(found: dict[str, Any]) -> None:
    _zeros(found["model"], 0.95)


def _keeps_the_ends_dense(found: dict[str, Any]) -> None:
    model = found["model"]
    assert bool((model.first.weight != 0).all())
    assert bool((model.last.weight != 0).all())
    _zeros(model.blocks)


def _keeps_the_last_dense(found: dict[str, Any]) -> None:
    assert bool((found["model"].last.weight != 0).all())
    _zeros(torch.nn.ModuleList([found["model"].first, found["model"].blocks]))


def _prunes(found: dict[str, Any]) -> None:
    _zeros(found["model"])


def _accumulates(found: dict[str, Any]) -> None:
    assert found["trainer"].global_step == 200
    _adds_zeros(found)


def _goes_on(found: dict[str, Any]) -> None:
    assert found["second"].global_step == 200
    _zeros(found["again"])


def _removes_neurons(found: dict[str, Any]) -> None:
    before, after = (sum(p.numel() for p in found[name].parameters()) for name in ("model", "small"))
    assert after <= before - 32 * 64  # of each of 32 neurons 32 weights in and 32 out, and their biases
    assert Path("small.safetensors").is_file()


def _writes_onnx(found: dict[str, Any]) -> None:
    assert Path("rings.onnx").is_file()


def _learns_to_count(found: dict[str, Any]) -> None:
    assert found["trainer"].optimizers[0].sparsity() == pytest.approx(0.8, abs=1e-3)
    assert float(found["trainer"].callback_metrics["train_loss"]) < 0.9 * math.log(16.0)
    assert bool((found["model"].network.transformer.wte.weight != 0).all())


#: What each snippet must leave, by its page and heading.
CHECKS = {
    "guide: One line in an existing project": _adds_zeros,
    "guide: Without Lightning": _trains_alone,
    "fine-tuning: Fine-tune a trained network": _adds_zeros,
    "groups-and-export: Train zeros in groups": _removes_neurons,
    "groups-and-export: Another runtime": _writes_onnx,
    "transformers: Transformers": _learns_to_count,
    "watching: Callbacks and loggers": _can_be_watched,
    "dense_layers: Keep first and last layer dense": _keeps_the_ends_dense,
    "sparsity: Choose the sparsity": _has_more_zeros,
    "batch_size: Choose the batch size": _accumulates,
    "precision: Mixed precision: bf16 and fp16": _adds_zeros,
    "resume: Stop and resume": _goes_on,
    "migrate: From Adam and pruning": _prunes,
    "migrate: From Lightning's ModelPruning": _keeps_the_last_dense,
    "by_name: Several regularizers by name": _regularises_by_name,
    "layers: Layers that are not affine": _has_blocks_as_layers,
    "full_batch: Full-batch mode": _iterates_on_all_data,
    "manual: Manual optimization": _steps_by_hand,
    "own_rule: A rule for ε of your own": _follows_the_rule,
    "own_regularizer: A regularizer of your own": _asks_a_price,
    "trial_loss: A training step that acts on the world outside": _writes_once_per_batch,
}
#: What a snippet imports that an installation may lack.
_EXTRAS = {
    "WandbLogger": "wandb",
    "transformers": "transformers",
    "save_sparse": "safetensors",
    "to_onnx": "onnxruntime",
}


@pytest.mark.parametrize("block", SNIPPETS, ids=lambda block: block.name)
@pytest.mark.filterwarnings("ignore")
def test_snippet(block: Block, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(project)
    for word, package in _EXTRAS.items():
        if word in block.text:
            pytest.importorskip(package)
    if "to_onnx" in block.text and not HAS_EXPORT:
        pytest.skip(WITHOUT_EXPORT)
    if "WandbLogger" in block.text:
        # Else the service of an earlier run would look for relative folders where that was.
        importlib.import_module("wandb").teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")  # the logger sets another and leaves it
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    found: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(block.text, block.name, "exec"), found)
    CHECKS[block.name](found)


def _trainers(block: Block) -> list[ast.Call]:
    calls = [node for node in ast.walk(ast.parse(block.text)) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func).rpartition(".")[2] == "Trainer"]


@pytest.mark.parametrize("page", sorted(NEEDS_DEVICES), ids=lambda page: page.stem)
def test_what_needs_more_devices_has_arguments_that_a_trainer_knows(page: Path) -> None:
    trainers = [call for block in BLOCKS[page] if block.language == "python" for call in _trainers(block)]
    assert trainers
    known = inspect.signature(L.Trainer).parameters
    for call in trainers:
        assert {keyword.arg for keyword in call.keywords} <= known.keys(), ast.unparse(call)
        (strategy,) = (keyword.value for keyword in call.keywords if keyword.arg == "strategy")
        made = eval(ast.unparse(strategy), {"BSQHStrategy": BSQHStrategy})
        assert made == "bsqh" or isinstance(made, BSQHStrategy)


@pytest.mark.parametrize("command", FITS)
@pytest.mark.filterwarnings("ignore")
def test_command(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jsonargparse")
    monkeypatch.setattr(sys, "argv", ["lightning-bsqh"])
    program, *arguments = shlex.split(command)
    assert program == "lightning-bsqh"
    main([*arguments, "--trainer.enable_progress_bar", "false"])
    printed = capsys.readouterr().out
    assert "test_accuracy" in printed
    found = re.search(r"sparsity +(\d\.\d+)", printed)
    assert found is not None
    assert float(found[1]) == pytest.approx(0.8 if "0.8" in command else 0.9, abs=2e-4)


class Module(L.LightningModule):
    """Any LightningModule whose training_step returns a loss."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])


def _one_line(text: str) -> torch.nn.Module:
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    batches = [(x, (x[:, 0] > 0).long())]
    exec(text, {"model": Module(network), "data": DataLoader(batches, batch_size=None)})
    return network


@pytest.mark.filterwarnings("ignore")
def test_one_line_is_enough() -> None:
    (text,), (same,) = (
        [b.text for b in blocks(page) if b.language == "python"] for page in (README, DOCS / "index.md")
    )
    assert text == same
    _zeros(_one_line(text))


@pytest.mark.filterwarnings("ignore")
def test_options_at_a_glance_run_one_after_the_other() -> None:
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    names = {"model": network, "batches": [(x, (x[:, 0] > 0).long())], "criterion": torch.nn.functional.cross_entropy}
    texts = [block.text for block in BLOCKS[DOCS / "recipes.md"] if block.language == "python"]
    assert len(texts) == 3
    for text in texts:
        exec(text, names)
    assert names["optimizer"].iterations > 1
