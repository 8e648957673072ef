from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from lightning_bsqh.export import runtimes, shrink, to_onnx, to_pt2
from lightning_bsqh.zoo import SmallLeNet
from tests.export.newer_torch import needs_newer_torch
from tests.export.shrinking.made_networks import zero_out

pytestmark = needs_newer_torch


@pytest.fixture(scope="module")
def digits() -> Tensor:
    datasets = pytest.importorskip("sklearn.datasets")
    return torch.from_numpy(datasets.load_digits().images[:200]).float().unsqueeze(1) / 16.0


def test_onnx_runtime_reads_the_digits_as_torch_does(tmp_path: Path, digits: Tensor) -> None:
    import onnxruntime

    network = zero_out(SmallLeNet(), 0.5, 0.0)
    shrunk = shrink(network, digits[:4])
    written = to_onnx(shrunk, digits[:1], tmp_path / "digits.onnx")
    assert written.batch_size is None
    assert written.difference <= 1e-4
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits.onnx"]
    assert written.bytes == written.path.stat().st_size
    session = onnxruntime.InferenceSession(written.path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: digits.numpy()})
    assert torch.allclose(torch.as_tensor(logits), network(digits), atol=1e-5)
    dense = to_onnx(network, digits[:1], tmp_path / "dense.onnx")
    assert written.bytes < dense.bytes


def test_pt2_comes_back_without_pickle(tmp_path: Path, digits: Tensor) -> None:
    shrunk = shrink(zero_out(SmallLeNet(), 0.5, 0.0), digits[:4])
    written = to_pt2(shrunk, digits[:1], tmp_path / "digits.pt2")
    assert written.batch_size is None
    assert torch.equal(torch.export.load(written.path).module()(digits), shrunk(digits))
    with zipfile.ZipFile(written.path) as archive:
        assert not any(b"\x80\x02" in archive.read(name)[:8] for name in archive.namelist())
        assert not any("pkl" in name for name in archive.namelist())


class Fixed(nn.Module):
    """Takes batches of three only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(3, 4))


@pytest.mark.parametrize(("write", "suffix"), [(to_onnx, "onnx"), (to_pt2, "pt2")])
def test_a_network_that_takes_one_batch_size(tmp_path: Path, write, suffix: str) -> None:
    assert write(Fixed(), torch.randn(3, 4), tmp_path / f"x.{suffix}").batch_size == 3


class Choice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(("write", "suffix"), [(to_onnx, "onnx"), (to_pt2, "pt2")])
def test_bad_input_leaves_nothing(tmp_path: Path, write, suffix: str, monkeypatch, capfd) -> None:
    path = tmp_path / f"x.{suffix}"
    with pytest.raises(ValueError, match=r"cannot be exported: .*control flow that depends on values") as error:
        write(Choice(), torch.ones(3), path)
    assert len(str(error.value).splitlines()) == 1
    assert "GraphModule" not in "".join(capfd.readouterr()), "no pages of torch's"
    with pytest.raises(ValueError, match="does not run"):
        write(nn.Linear(2, 2), torch.ones(3, 5), path)
    with pytest.raises(ValueError, match="on the CPU"):
        write(nn.Linear(2, 2), (torch.ones(3, 2), 7), path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(runtimes, "tolerance", lambda outputs: -1.0)
    with pytest.raises(RuntimeError, match="differ by"):
        write(nn.Linear(2, 2), torch.ones(3, 2), path)
    assert not list(tmp_path.iterdir())
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        write(nn.Linear(2, 2), torch.ones(3, 2), path)
    assert path.read_text() == "mine"


def test_without_onnx(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        to_onnx(nn.Linear(2, 2), torch.ones(1, 2), tmp_path / "x.onnx")
