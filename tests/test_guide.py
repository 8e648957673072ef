"""Runs what docs/guide.md shows: its files are written into a folder, its snippets run there, its commands typed."""

from __future__ import annotations

import math
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_bsqh.cli.main import main

README = Path(__file__).parents[1] / "README.md"
GUIDE = README.parent / "docs" / "guide.md"


@dataclass(frozen=True)
class Block:
    """A fenced block: the heading above it, its language and its text."""

    heading: str
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that it is, if its first line is a comment with nothing but a name."""
        match = re.match(r"# (\w+\.(?:py|yaml))\n", self.text)
        return match[1] if match else None


def _blocks(file: Path) -> list[Block]:
    blocks, heading, language, lines = [], "", None, []
    for line in file.read_text(encoding="utf-8").splitlines():
        if language is None:
            heading = line.lstrip("# ") if line.startswith("#") else heading
            if line.startswith("```"):
                language, lines = line[3:], []
        elif line == "```":
            blocks.append(Block(heading, language, "\n".join(lines) + "\n"))
            language = None
        else:
            lines.append(line)
    assert language is None, "a block is not closed"
    return blocks


BLOCKS = _blocks(GUIDE)
SNIPPETS = [block for block in BLOCKS if block.language == "python" and block.file is None]
COMMANDS = [line for block in BLOCKS if block.language == "bash" for line in block.text.splitlines()]
FITS = [command for command in COMMANDS if " fit " in command]
REPORTS = [command for command in COMMANDS if " report " in command]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the guide's files, as the working folder."""
    for block in BLOCKS:
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # Restored after the test, whatever is put there meanwhile.
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    for name in ("my_model", "my_data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_the_guide_has_what_it_promises() -> None:
    assert {block.file for block in BLOCKS if block.file} == {"my_model.py", "my_data.py", "my_config.yaml"}
    assert {block.language for block in BLOCKS} == {"python", "yaml", "bash"}
    assert {block.heading for block in SNIPPETS} == CHECKS.keys()
    assert (len(FITS), len(REPORTS), len(COMMANDS)) == (2, 1, 3)
    # Every snippet is complete: what it uses it imports.
    assert all(block.text.startswith("import ") for block in SNIPPETS)


def _adds_zeros(found: dict[str, Any]) -> None:
    weights = [p for p in found["model"].parameters() if p.dim() >= 2]
    zeros, total = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    assert zeros == round(0.9 * total)
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
    pytest.importorskip("plotly")
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


#: What each snippet must leave, by its heading.
CHECKS = {
    "One line in an existing project": _adds_zeros,
    "Without Lightning": _trains_alone,
    "A trained network, made sparse": _adds_zeros,
    "Manual optimization": _steps_by_hand,
    "Watching the training": _can_be_watched,
    "Several regularisers by name": _regularises_by_name,
    "Layers that are not affine": _has_blocks_as_layers,
    "Full batch": _iterates_on_all_data,
    "A rule for ε of your own": _follows_the_rule,
    "A regulariser of your own": _asks_a_price,
    "trial_loss": _writes_once_per_batch,
}


@pytest.mark.parametrize("block", SNIPPETS, ids=lambda block: block.heading)
@pytest.mark.filterwarnings("ignore")
def test_snippet(block: Block, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(project)
    if "WandbLogger" in block.text:
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")  # the logger sets another and leaves it
        monkeypatch.setenv("WANDB_SILENT", "true")
        monkeypatch.setenv("WANDB_CONSOLE", "off")
    found: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(block.text, f"{GUIDE.name}: {block.heading}", "exec"), found)
    CHECKS[block.heading](found)


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


@pytest.mark.filterwarnings("ignore")
def test_the_readme_leads_here_and_its_snippets_run() -> None:
    assert "docs/guide.md" in README.read_text(encoding="utf-8")
    one_line, *others = [block.text for block in _blocks(README) if block.language == "python"]
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    batches = [(x, (x[:, 0] > 0).long())]
    network = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    exec(one_line, {"model": Module(network), "data": DataLoader(batches, batch_size=None)})  # type: ignore[arg-type]
    assert sum(int((p == 0).sum()) for p in network.parameters() if p.dim() == 2) == round(0.9 * 32)
    # One after the other, as a reader has them.
    assert len(others) == 3
    names = {"model": network, "batches": batches, "criterion": torch.nn.functional.cross_entropy}
    for text in others:
        exec(text, names)
    assert names["optimizer"].iterations > 1
