"""Runs what docs/guide.md shows: its files are written into a folder, its snippets run there, its commands typed."""

from __future__ import annotations

import math
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_bsqh.cli import main

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"


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


def _blocks() -> list[Block]:
    blocks, heading, language, lines = [], "", None, []
    for line in GUIDE.read_text(encoding="utf-8").splitlines():
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


BLOCKS = _blocks()
SNIPPETS = [block for block in BLOCKS if block.language == "python" and block.file is None]
COMMANDS = [line for block in BLOCKS if block.language == "bash" for line in block.text.splitlines()]


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
    assert len(COMMANDS) == 2
    # Every snippet is complete: what it uses it imports.
    assert all(block.text.startswith("import ") for block in SNIPPETS)


def _adds_zeros(found: dict[str, Any]) -> None:
    weights = [p for p in found["model"].parameters() if p.dim() >= 2]
    zeros, total = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    assert zeros == round(0.9 * total)
    assert float(found["trainer"].callback_metrics["train_loss"]) < math.log(2.0)


def _trains_alone(found: dict[str, Any]) -> None:
    assert found["optimizer"].sparsity() == pytest.approx(0.9, abs=1e-3)
    assert found["optimizer"].iterations == 200
    assert float(found["loss"]) < math.log(2.0)


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
    found: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(block.text, f"{GUIDE.name}: {block.heading}", "exec"), found)
    CHECKS[block.heading](found)


@pytest.mark.parametrize("command", COMMANDS)
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


def test_the_readme_leads_here() -> None:
    readme = (GUIDE.parents[1] / "README.md").read_text(encoding="utf-8")
    assert "docs/guide.md" in readme
