from __future__ import annotations

import copy
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from lightning_bsqh.export import accelerate
from lightning_bsqh.export.accelerating import trying
from lightning_bsqh.export.accelerating.eight_bits import INT8_TOLERANCE, Int8, int8_candidates


class Rough(nn.Module):
    """Gives what a layer gives, times 1 + ``off``."""

    off = 0.01

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (1.0 + self.off)


class Same(Rough):
    off = 0.0


class Wrong(Rough):
    off = 2.0 * INT8_TOLERANCE


def pretended(monkeypatch, kernels: dict, **milliseconds: float) -> nn.Module:
    """A layer, the kernels that are tried for it, and durations instead of a clock."""

    def measured(models, inputs, seconds) -> list[float]:
        parts = [model[0] if isinstance(model, nn.Sequential) else model for model in models]
        return [milliseconds.get(type(part).__name__, 4.0) for part in parts]

    exact = {name: kind for name, kind in kernels.items() if name != "int8"}
    rounded = {name: kind for name, kind in kernels.items() if name == "int8"}
    monkeypatch.setattr(trying, "latencies", measured)
    monkeypatch.setattr(trying, "check_torchao", lambda: None)
    monkeypatch.setattr(trying, "candidates", lambda layer: exact if type(layer) is nn.Linear else {})
    monkeypatch.setattr(trying, "int8_candidates", lambda layer: rounded if type(layer) is nn.Linear else {})
    return nn.Sequential(nn.Linear(3, 2))


def test_int8_is_used_only_where_it_is_asked_for(monkeypatch) -> None:
    network, x = pretended(monkeypatch, {"int8": Rough}, Rough=1.0), torch.randn(5, 3)
    assert accelerate(network, x).layers == []
    result = accelerate(network, x, int8=True)
    (layer,) = result.layers
    assert layer.chosen == "int8"
    assert 0.005 < layer.differences["int8"] < 0.011
    assert 0.005 < result.difference < 0.011
    assert type(result.network[0]) is Rough
    assert type(network[0]) is nn.Linear
    assert "int8 1.0000 ms (off by 1.0%) → int8" in str(result)


def test_int8_must_be_faster_than_what_gives_the_same(monkeypatch) -> None:
    kernels, x = {"exact": Same, "int8": Rough}, torch.randn(5, 3)
    for rough, chosen in ((1.9, "exact"), (1.0, "int8"), (5.0, "exact")):
        network = pretended(monkeypatch, kernels, Same=2.0, Rough=rough)
        (layer,) = accelerate(network, x, int8=True).layers
        assert layer.chosen == chosen
    network = pretended(monkeypatch, kernels, Same=4.0, Rough=3.9)
    assert accelerate(network, x, int8=True).layers[0].chosen == "dense"


def test_int8_that_is_far_off_is_not_used(monkeypatch) -> None:
    network = pretended(monkeypatch, {"int8": Wrong}, Wrong=1.0)
    result = accelerate(network, torch.full((5, 3), 9.0), int8=True)
    assert "its outputs differ by" in result.layers[0].failed["int8"]
    assert type(result.network[0]) is nn.Linear


def test_why_nothing_is_used_is_said(monkeypatch) -> None:
    network, x = pretended(monkeypatch, {"int8": Rough}, Rough=1.0), torch.randn(5, 3)
    monkeypatch.setattr(trying, "_objection", lambda *_: "the reason")
    result = accelerate(network, x, int8=True)
    assert result.unused == "the reason"
    assert "nothing is used: the reason" in str(result)
    assert type(result.network[0]) is nn.Linear


def test_which_layers_can_be_rounded() -> None:
    assert int8_candidates(nn.Linear(3, 2)).keys() == {"int8", "int8, compiled"}
    for layer in (nn.Conv2d(1, 1, 1), nn.Linear(3, 2).double(), nn.Bilinear(2, 2, 2)):
        assert int8_candidates(layer) == {}


def test_without_torchao(monkeypatch) -> None:
    network, x = nn.Sequential(nn.Linear(3, 2)), torch.randn(5, 3)
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .lightning-bsqh\[int8\]"):
        accelerate(network, x, int8=True)
    accelerate(network, x, seconds=0.001)
    with pytest.raises(TypeError, match="int8 must be True or False"):
        accelerate(network, x, int8=8)


def test_a_torchao_of_another_time(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", ModuleType("torchao"))
    monkeypatch.setitem(sys.modules, "torchao.quantization", ModuleType("torchao.quantization"))
    with pytest.raises(RuntimeError, match="a torchao that fits torch"):
        accelerate(nn.Sequential(nn.Linear(3, 2)), torch.randn(5, 3), int8=True)


def with_zeros() -> tuple[nn.Linear, Tensor]:
    layer = nn.Linear(64, 32)
    with torch.no_grad():
        layer.weight[torch.rand(32, 64) < 0.9] = 0.0
        layer.weight[3] = 0.0
    return layer, torch.randn(17, 64)


def test_torchao_rounds_and_keeps_zeros() -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    layer, x = with_zeros()
    expected = layer(x).detach()
    rounded = Int8(layer)(x)
    assert 0.0 < (rounded - expected).abs().max() / expected.abs().max() < INT8_TOLERANCE
    assert torch.equal(rounded[:, 3], expected[:, 3]), "a row of zeros gives its bias"
    assert torch.equal(layer(x), expected), "the layer stays as it is"
    assert torch.equal(copy.deepcopy(Int8(layer))(x), rounded)


# Half a minute, since torch.compile is at work.
@pytest.mark.slow
def test_torchao_as_it_is_and_compiled() -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    layer, x = with_zeros()
    result = accelerate(nn.Sequential(layer), x, seconds=0.01, int8=True)
    (tried,) = result.layers
    assert "int8" in tried.milliseconds
    # Without a compiler on the machine it cannot be compiled.
    assert ("int8, compiled" in tried.milliseconds) != ("int8, compiled" in tried.failed)
    assert result.difference <= INT8_TOLERANCE
