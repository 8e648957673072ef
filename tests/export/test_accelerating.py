from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx, nn

from lightning_bsqh.export import accelerate, shrink
from lightning_bsqh.export.accelerating import trying as module
from lightning_bsqh.export.accelerating import two_of_four, whole
from lightning_bsqh.export.accelerating.fusing import fuse_norms
from lightning_bsqh.export.accelerating.in_place import in_place
from lightning_bsqh.export.accelerating.kernels import candidates
from lightning_bsqh.export.accelerating.memory_format import channels_last
from lightning_bsqh.export.accelerating.two_of_four import TwoOfFour, TwoOfFourFilters, is_two_of_four
from lightning_bsqh.regularizers import NM
from lightning_bsqh.zoo import ResNet8
from tests.export.shrinking.made_networks import as_after_training, networks


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


def as_nm_leaves_it(layer: nn.Module) -> nn.Module:
    NM(2, 4, ramp=(0.0, 0.0)).project_([layer.weight.detach()], [1.0])
    return layer


def test_what_sparse_tensor_cores_take() -> None:
    layer = as_nm_leaves_it(nn.Linear(8, 6))
    assert is_two_of_four(layer.weight)
    assert not is_two_of_four(nn.Linear(8, 6).weight)
    assert not is_two_of_four(torch.zeros(2, 6))
    filters = as_nm_leaves_it(nn.Conv2d(8, 6, 3))
    assert is_two_of_four(filters.weight)
    along_the_places = nn.Conv2d(8, 6, (1, 4))
    along_the_places.weight.data[..., 2:] = 0.0
    assert not is_two_of_four(along_the_places.weight)
    for kind in (layer, filters):
        assert "two of four" not in candidates(kind), "they are CUDA's"


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 2), st.integers(0, 1)),
    st.tuples(st.integers(1, 3), st.integers(1, 2)),
    st.booleans(),
    st.integers(0, 2**30),
)
def test_windows_times_two_of_four_are_the_convolution(sizes, kernel, padding, stride, bias, seed) -> None:
    """With the matrix as it is: the product of the tensor cores is torch's business."""
    torch.manual_seed(seed)
    outputs, groups, dilation = sizes
    layer = nn.Conv2d(4 * groups, outputs, kernel, stride, padding, dilation, bias=bias)
    layer = as_nm_leaves_it(layer).double().requires_grad_(False)
    x = torch.randn(2, 4 * groups, 9, 8, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        rows: list[torch.Tensor] = []
        patch.setattr(two_of_four, "semi_structured", lambda weight: rows.append(weight) or weight)
        made = TwoOfFourFilters(layer)
    assert torch.allclose(made(x), layer(x), rtol=0, atol=1e-12)
    # What torch packs: of every four neighbors in a row at most two.
    (row,) = rows
    assert bool(((row != 0).view(outputs, -1, 4).sum(2) <= 2).all())


def test_a_linear_layer_needs_no_windows(monkeypatch) -> None:
    monkeypatch.setattr(two_of_four, "semi_structured", lambda weight: weight.clone())
    layer, x = as_nm_leaves_it(nn.Linear(8, 6)), torch.randn(2, 3, 8)
    assert torch.equal(TwoOfFour(layer)(x), layer(x))


CUDA_LAYERS = [
    (lambda: nn.Linear(512, 256), (64, 512)),
    (lambda: nn.Conv2d(64, 128, 1, stride=2), (4, 64, 16, 16)),
    (lambda: nn.Conv2d(64, 128, 3, padding=1), (4, 64, 16, 16)),
]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="sparse tensor cores are those of a CUDA device")
@pytest.mark.parametrize(("make", "shape"), CUDA_LAYERS, ids=["linear", "1x1", "3x3"])
def test_two_of_four_on_cuda(make, shape) -> None:
    layer = as_nm_leaves_it(make()).half().cuda()
    x = torch.randn(shape, device="cuda", dtype=torch.float16)
    result = accelerate(nn.Sequential(layer), x, seconds=0.05)
    (tried,) = result.layers
    assert "two of four" in tried.milliseconds or "two of four" in tried.failed
    assert torch.allclose(result.network(x), layer(x), atol=1e-2)
    if "two of four" in tried.milliseconds:
        assert torch.allclose(candidates(layer)["two of four"](layer)(x), layer(x), atol=1e-2)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="seconds must lie in"):
        accelerate(nn.Linear(2, 2), torch.ones(1, 2), seconds=0.0)
    with pytest.raises(ValueError, match="does not run"):
        accelerate(nn.Linear(2, 2), torch.ones(1, 3))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(networks())
def test_norms_become_part_of_the_layer_before(network: nn.Module) -> None:
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    small = shrink(network, x)
    expected = small(x)
    norms = sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in small.modules())
    fused = fuse_norms(small)
    assert torch.allclose(small(x), expected, rtol=1e-10, atol=1e-10)
    assert sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in small.modules()) == norms - len(fused)


def test_all_norms_of_a_resnet_go() -> None:
    assert len(fuse_norms(shrink(as_after_training(ResNet8()), torch.randn(2, 3, 32, 32)))) == 9
    assert fuse_norms(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval()) == []


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(networks(), st.integers(1, 3))
def test_in_place_and_channels_last_change_no_output(network: nn.Module, batch: int) -> None:
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    small = shrink(network, x)
    other = torch.randn(batch, 2, 6, 6, dtype=torch.float64)
    expected, before = small(other), other.clone()
    in_place(small, (x,))
    assert torch.allclose(small(other), expected, rtol=1e-12, atol=1e-12)
    channels_last(small, (x,))
    outputs = unless_it_is_a_view(small, other)
    assert outputs is None or torch.allclose(outputs, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(other, before)


def unless_it_is_a_view(network: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """The outputs; None where a view asks for the usual order of memory, as accelerate finds out itself."""
    try:
        return network(x)
    except RuntimeError as error:
        if "view" not in str(error):
            raise
        return None


def test_only_what_nothing_else_reads_is_overwritten() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            a, wide = self.a(x), self.c(x)
            twice = torch.relu(a) + a  # a is read twice
            spread = wide + self.b(x)  # one of them is smaller than the sum
            return twice, spread, torch.relu(x), self.b(x) + 1.0

    traced = fx.symbolic_trace(Reads())
    x = torch.randn(3, 4)
    expected, before = traced(x), x.clone()
    assert in_place(traced, (x,)) == 1
    assert all(torch.equal(p, q) for p, q in zip(traced(x), expected, strict=True))
    assert torch.equal(x, before)


def test_a_step_is_kept_only_where_it_is_faster(monkeypatch) -> None:
    network = shrink(as_after_training(ResNet8()), torch.randn(2, 3, 32, 32))

    def milliseconds(model: nn.Module) -> float:
        norms = sum("Norm" in type(module).__name__ for module in model.modules())
        written = sum(str(node.target).endswith("_") for node in model.graph.nodes)
        ordered = sum(node.target == "contiguous" for node in model.graph.nodes)
        return 100.0 + norms - 2.0 * written + ordered

    monkeypatch.setattr(whole, "latencies", lambda models, inputs, seconds: [milliseconds(m) for m in models])
    monkeypatch.setattr(module, "latencies", lambda models, inputs, seconds: [2.0 - i for i in range(len(models))])
    images = torch.randn(2, 3, 32, 32)
    result = accelerate(network, images)
    assert [(step.count, step.used) for step in result.steps] == [(9, True), (1, False), (10, True)]
    assert torch.allclose(result.network(images), network(images), atol=1e-4)
    for words in ("BatchNorm put into the layer before (9): 109.0000 → 100.0000 ms", "channels last", "not used"):
        assert words in str(result)
    # If the whole is not faster, nothing of it is used.
    monkeypatch.setattr(module, "latencies", lambda models, inputs, seconds: [1.0 + i for i in range(len(models))])
    result = accelerate(network, images)
    assert not any(step.used for step in result.steps)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in result.network.modules())


def test_a_step_that_fails_is_named(monkeypatch) -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(2, 3, 3), nn.Linear(48, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.conv(x).view(x.shape[0], -1))

    def spoils(network: fx.GraphModule, inputs: tuple) -> int:
        network.fc.bias.data.add_(1.0)
        return 1

    monkeypatch.setitem(whole.STEPS, "spoilt", spoils)
    network = fx.symbolic_trace(Flat())
    images = torch.randn(2, 2, 6, 6)
    result = accelerate(network, images, seconds=0.01)
    assert {step.name: step.failed for step in result.steps if step.failed}.keys() == {"channels last", "spoilt"}
    assert "channels last: not used, view size is not compatible" in str(result)
    assert torch.allclose(result.network(images), network(images), atol=1e-6)
