from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_bsqh.export import accelerate
from lightning_bsqh.export.accelerating import trying as module
from lightning_bsqh.export.accelerating.kernels import candidates


def with_zeros(layer: nn.Module, share: float, rows: float, columns: float) -> nn.Module:
    with torch.no_grad():
        weight = layer.weight
        weight[torch.rand(weight.shape) < share] = 0.0
        weight[torch.rand(len(weight)) < rows] = 0.0
        weight[:, torch.rand(weight.shape[1]) < columns] = 0.0
    return layer


@settings(deadline=None, max_examples=60)
@given(
    st.booleans(),
    st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.integers(1, 3)),
    st.booleans(),
    st.sampled_from([0.3, 0.9, 1.0]),
    st.integers(0, 2**30),
)
def test_every_kernel_gives_what_the_layer_gives(linear, sizes, window, bias, share, seed) -> None:
    torch.manual_seed(seed)
    (outputs, inputs, batch), (kernel, padding, stride, length) = sizes, window
    if linear:
        layer: nn.Module = nn.Linear(inputs, outputs, bias=bias)
        x = torch.randn(batch, length, inputs, dtype=torch.float64)
    else:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias, dilation=2 if length == 3 else 1)
        x = torch.randn(batch, inputs, 8, 6, dtype=torch.float64)
    layer = with_zeros(layer, share, 0.3, 0.3).double().requires_grad_(False)
    for make in candidates(layer).values():
        assert torch.allclose(make(layer)(x), layer(x), rtol=0, atol=1e-12)


def pretended(monkeypatch: pytest.MonkeyPatch, milliseconds) -> None:
    """Durations by a function of the network instead of a clock."""
    monkeypatch.setattr(module, "latencies", lambda models, inputs, seconds: [milliseconds(m) for m in models])


def test_a_faster_kernel_is_used_and_a_slower_one_is_not(monkeypatch) -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    for layer in (network[0], network[2]):
        with_zeros(layer, 0.5, 0.0, 0.0)
    before = [p.clone() for p in network.parameters()]
    speed = {"CompressedRows": 0.5, "NonzeroPart": 0.95}

    def milliseconds(model: nn.Module) -> float:
        parts = list(model) if isinstance(model, nn.Sequential) else [model]
        return sum(speed.get(type(part).__name__, 1.0) for part in parts)

    pretended(monkeypatch, milliseconds)
    x = torch.randn(4, 8)
    result = accelerate(network, x)
    # The last layer has no zeros.
    assert [(layer.layer, layer.chosen) for layer in result.layers] == [
        ("0", "compressed rows"),
        ("2", "compressed rows"),
    ]
    assert torch.allclose(result.network(x), network(x), atol=1e-6)
    assert result.milliseconds == (4.0, 3.0)
    assert "(1.33 x)" in str(result)
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))

    speed["CompressedRows"] = 0.95
    result = accelerate(network, x)
    assert {layer.chosen for layer in result.layers} == {"dense"}
    assert torch.equal(result.network(x), network(x))


def test_the_whole_must_be_faster_too(monkeypatch) -> None:
    network = nn.Sequential(with_zeros(nn.Linear(8, 8), 0.5, 0.0, 0.0))
    speed = {"CompressedRows": 0.5}
    pretended(
        monkeypatch,
        lambda model: 1.0 if isinstance(model, nn.Sequential) else speed.get(type(model).__name__, 1.0),
    )
    result = accelerate(network, torch.randn(2, 8))
    assert type(result.network[0]) is nn.Linear
    assert result.milliseconds == (1.0, 1.0)
    assert result.layers[0].chosen == "dense"
    assert result.layers[0].milliseconds["compressed rows"] == 0.5


def test_kernels_that_fail_or_differ_are_named(monkeypatch) -> None:
    class Wrong(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1.0

    def fails(layer: nn.Module) -> nn.Module:
        raise NotImplementedError("not on this machine")

    found = {"wrong": Wrong, "fails": fails}
    monkeypatch.setattr(module, "candidates", lambda layer: found if isinstance(layer, nn.Linear) else {})
    (layer,) = accelerate(nn.Sequential(nn.Linear(3, 3)), torch.randn(2, 3), seconds=0.001).layers
    assert layer.failed.keys() == {"wrong", "fails"}
    assert "not on this machine" in str(layer)
    assert "differ" in str(layer)


def test_measured_for_real_it_gives_the_same() -> None:
    network = nn.Sequential(with_zeros(nn.Conv2d(3, 8, 3), 0.9, 0.5, 0.0), nn.Flatten(), nn.Linear(288, 64))
    with_zeros(network[2], 0.98, 0.0, 0.0)
    x = torch.randn(2, 3, 8, 8)
    network.train()
    result = accelerate(network, x, seconds=0.01)
    assert torch.allclose(result.network(x), network(x), atol=1e-5)
    assert network.training
    assert not result.network.training
    assert result.milliseconds[1] <= result.milliseconds[0]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="seconds must lie in"):
        accelerate(nn.Linear(2, 2), torch.ones(1, 2), seconds=0.0)
    with pytest.raises(ValueError, match="does not run"):
        accelerate(nn.Linear(2, 2), torch.ones(1, 3))
