"""Runs what docs/export.md shows."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("onnxruntime")

from lightning_bsqh.export import save_sparse
from lightning_bsqh.export.command import add_arguments
from lightning_bsqh.zoo import LeNet5
from tests.export.newer_torch import needs_newer_torch

PATH = Path(__file__).parents[2] / "docs" / "export.md"
PAGE = PATH.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SNIPPETS = [text for language, text in BLOCKS if language == "python"]


def run(snippet: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(snippet, "docs/export.md", "exec"), names)
    return names


def _marks(snippet: str) -> list[pytest.MarkDecorator]:
    return [needs_newer_torch] if "to_onnx" in snippet or "to_pt2" in snippet else []


@pytest.mark.parametrize("number", [pytest.param(i, marks=_marks(text)) for i, text in enumerate(SNIPPETS)])
def test_snippets_run(number: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, tmp_path / "runs" / "best.ckpt")
    run(SNIPPETS[number])


def test_the_reader_reads_what_is_written(tmp_path: Path) -> None:
    (reader,) = (snippet for snippet in SNIPPETS if snippet.startswith("# reader.py"))
    assert len(reader.splitlines()) <= 35
    assert "lightning_bsqh" not in reader
    model = LeNet5().half()
    with torch.no_grad():
        for name, share in (("fc1", 0.98), ("fc2", 0.8), ("conv2", 0.5)):
            weight = model.get_submodule(name).weight
            weight[torch.rand(weight.shape) < share] = 0.0
    state = {**model.state_dict(), "again": model.fc1.weight.detach()}
    save_sparse(state, tmp_path / "x.safetensors")
    read = run(reader)["read"](tmp_path / "x.safetensors")
    assert list(read) == list(state)
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


def test_commands_are_those_of_the_command_line() -> None:
    commands = [line for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert commands
    for command in commands:
        program, name, *arguments = shlex.split(command)
        assert program == "lightning-bsqh"
        if name == "fit":
            recipe = PATH.parents[1] / arguments[arguments.index("--config") + 1]
            assert recipe.is_file()
            continue
        assert name == "export"
        parser.parse_args(arguments)
