"""What to_onnx and to_pt2 say where torch cannot do what they need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from lightning_bsqh.export import to_onnx, to_pt2


def _export(model: Any, args: Any = (), f: Any = None, *, dynamo: bool = False) -> None:
    raise AssertionError("not called")


def test_they_ask_for_a_newer_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "export", _export)
    monkeypatch.setattr(torch.export.ExportedProgram, "example_inputs", property(lambda program: None))
    for write in (to_onnx, to_pt2):
        file = tmp_path / write.__name__
        said = rf"{write.__name__} needs a newer torch than {torch.__version__}: pip install -U torch\."
        with pytest.raises(RuntimeError, match=said.replace("+", r"\+")):
            write(nn.Linear(2, 2), torch.ones(1, 2), file)
        assert not file.exists()
