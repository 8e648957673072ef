"""The benchmark still runs; its figures are no test's business."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.export.newer_torch import needs_newer_torch

for package in ("jsonargparse", "safetensors", "sklearn"):
    pytest.importorskip(package)

FILE = Path(__file__).parents[2] / "benchmarks" / "export.py"


@needs_newer_torch
def test_trains_once_and_prints_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("benchmarks_export", FILE)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    arguments = ["--networks", "digits", "lenet5", "--mnist", str(tmp_path / "none"), "--seconds", "0.1"]
    arguments += ["--output", str(tmp_path), "--fit", "--trainer.max_epochs", "2"]
    assert benchmark.main(arguments) == 0
    printed = capsys.readouterr().out
    for words in ("lenet5 is left out", "batches of 64", "test_accuracy", "accelerate, after shrink", "SmallLeNet"):
        assert words in printed
    (checkpoint,) = tmp_path.rglob("best.ckpt")
    before = checkpoint.stat().st_mtime_ns
    assert benchmark.main(arguments) == 0
    assert checkpoint.stat().st_mtime_ns == before
