from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_bsqh.export import shrink, shrink_report
from lightning_bsqh.zoo import ImageClassifier, LeNet5, ResNet8, ResNet20
from tests.export.shrinking.made_networks import as_after_training, zero_out


def zero_rows(weight: Tensor, *rows: int) -> None:
    with torch.no_grad():
        weight[list(rows)] = 0.0


def test_lenet5_loses_filters_and_neurons_and_what_reads_them() -> None:
    network = LeNet5()
    zero_rows(network.conv1.weight, 0, 4, 5)
    zero_rows(network.conv2.weight, *range(8))
    zero_rows(network.fc1.weight, *range(84))
    zero_rows(network.fc2.weight, *range(60))
    shrunk = shrink(network, torch.randn(2, 1, 28, 28))
    shapes = {name: tuple(p.shape) for name, p in shrunk.named_parameters() if p.dim() > 1}
    # conv2 and fc1 do not pad, so what zero filters still give goes into their biases.
    assert shapes == {
        "conv1.weight": (3, 1, 5, 5),
        "conv2.weight": (8, 3, 5, 5),
        "fc1.weight": (36, 200),
        "fc2.weight": (24, 36),
        "fc3.weight": (10, 24),
    }
    report = shrink_report(shrunk)
    assert report.removed == {"conv1": 3, "conv2": 8, "fc1": 84, "fc2": 60}
    assert report.kept == []
    assert report.parameters == (61_706, sum(p.numel() for p in shrunk.parameters()))
    assert report.difference <= report.tolerance == 1e-5
    assert "conv1: 6 → 3 filters" in str(report)
    assert type(shrunk.get_submodule("conv1")) is nn.Conv2d
    # It trains on, as any network.
    shrunk(torch.randn(2, 1, 28, 28)).sum().backward()


@pytest.mark.parametrize("network", [ResNet8, ResNet20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_residual_networks(network, dtype: torch.dtype) -> None:
    model = zero_out(as_after_training(network()), 0.5, 0.0).to(dtype)
    shrunk = shrink(model, torch.randn(2, 3, 32, 32, dtype=dtype))
    report = shrink_report(shrunk)
    assert report.parameters[1] < 0.6 * report.parameters[0]
    # What is added to other channels goes with them only, and that is said.
    assert any("meets in add" in kept.reason for kept in report.kept)
    x = torch.randn(3, 3, 32, 32, dtype=dtype)
    assert torch.allclose(model(x), shrunk(x), rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-11)


def test_unstructured_zeros_that_leave_an_input_unread() -> None:
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    zero_rows(network[2].weight.T, 1, 2, 3)
    shrunk = shrink(network, torch.randn(5, 4))
    assert shrink_report(shrunk).removed == {"0": 3}


def test_one_constant_channel_stands_for_all_before_padding() -> None:
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 2, 3, padding=1)).double()
    zero_rows(network[0].weight, 1, 3, 4)
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    shrunk = shrink(network, x)
    report = shrink_report(shrunk)
    assert report.removed == {"0": 2}
    (kept,) = report.kept
    assert (kept.layer, kept.count) == ("0", 1)
    assert "whose padding is no such constant" in kept.reason
    with torch.no_grad():
        network[0].bias[1] = network[0].bias[3] = network[0].bias[4] = 0.0
    assert shrink_report(shrink(network, x)).removed == {"0": 3}


def test_what_is_folded_needs_a_bias() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3, bias=False))
    zero_rows(network[0].weight, 0, 1)
    shrunk = shrink(network, torch.randn(1, 1, 8, 8))
    assert shrunk.get_submodule("1").bias.shape == (2,)


class Cycle(nn.Module):
    """Residual blocks whose first channels only keep each other alive."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.outer, self.last = (nn.Linear(a, b) for a, b in ((3, 4), (4, 4), (4, 4), (4, 2)))
        with torch.no_grad():
            # Channels 0 and 1 are read by neurons 0 and 1 alone, which write to nothing else; nobody else reads them.
            self.inner.weight[2:, :2] = 0.0
            self.outer.weight[2:, :2] = 0.0
            self.last.weight[:, :2] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x + self.outer(F.relu(self.inner(x))))


def test_channels_that_only_feed_each_other_go() -> None:
    assert shrink_report(shrink(Cycle().double(), torch.randn(3, 3).double())).removed == {
        "first": 2,
        "inner": 2,
        "outer": 2,
    }


class TextClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner, self.last = nn.Embedding(10, 6), nn.Linear(6, 4), nn.Linear(4, 2)
        zero_rows(self.embedding.weight.T, 1, 2)
        with torch.no_grad():
            self.embedding.weight[:, 3] = 0.7

    def forward(self, words: Tensor) -> Tensor:
        return self.last(F.relu(self.inner(self.embedding(words))).mean(1))


def test_embeddings_lose_constant_columns() -> None:
    shrunk = shrink(TextClassifier().double(), torch.randint(0, 10, (3, 5)))
    assert shrink_report(shrunk).removed == {"embedding": 3}
    assert shrunk.get_submodule("embedding").embedding_dim == 3


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.inner, self.outer = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0) -> Tensor:
        x = self.first(x)
        x = self.norm(x + self.attention(x, x, x)[0])
        x = scale * x + self.outer(F.gelu(self.inner(x)))
        return x if mask is None else x * mask


def test_what_cannot_be_removed_is_named_with_its_reason() -> None:
    network = Attention()
    zero_rows(network.first.weight, 0, 1)
    zero_rows(network.inner.weight, 0, 1, 2, 3)
    zero_rows(network.attention.in_proj_weight, 5)
    report = shrink_report(shrink(network, torch.randn(2, 3, 8)))
    assert report.removed == {"inner": 4}
    reasons = {kept.layer: kept.reason for kept in report.kept}
    assert reasons.keys() == {"first", "attention.in_proj_weight"}
    assert "is used by attention" in reasons["first"]
    assert "belongs to a MultiheadAttention" in reasons["attention.in_proj_weight"]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.last.weight = self.step.weight
        zero_rows(self.step.weight, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.step(self.step(x)))


def test_shared_modules_and_parameters_stay() -> None:
    report = shrink_report(shrink(Shared(), torch.randn(2, 4)))
    assert report.parameters[0] == report.parameters[1]
    assert {kept.layer for kept in report.kept} == {"step.weight", "last.weight"}


def test_hooks_and_parametrizations_stay() -> None:
    hooked = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    hooked[0].register_forward_hook(lambda module, inputs, output: output + 1.0)
    parametrized = nn.Sequential(
        nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2)
    )
    for network in (hooked, parametrized):
        x = torch.randn(3, 4)
        assert torch.allclose(network(x), shrink(network, x)(x), atol=1e-6)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = self.b(F.relu(y, inplace=True))
        return z + y


def test_what_is_overwritten_while_others_read_it() -> None:
    network = InPlace().double()
    zero_rows(network.a.weight, 0, 1)
    x = torch.randn(5, 3).double()
    assert torch.equal(network(x), shrink(network, x)(x))


def test_the_model_stays_as_it_was() -> None:
    model = ImageClassifier(zero_out(as_after_training(ResNet8()), 0.5, 0.0))
    model.train()
    model.network.bn.eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    shrunk = shrink(model, torch.randn(2, 3, 32, 32))
    assert not shrunk.training
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with torch.no_grad():
        for parameter in shrunk.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_everything_zero_still_leaves_a_network() -> None:
    network = zero_out(LeNet5(), 1.0, 1.0)
    x = torch.randn(2, 1, 28, 28)
    shrunk = shrink(network, x)
    assert torch.allclose(network(x), shrunk(x))
    assert all(p.numel() > 0 for p in shrunk.parameters())


class Choice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (Choice(), torch.ones(2), "cannot be traced"),
        (Noise(), torch.ones(2), "other outputs on the same inputs"),
        (nn.Linear(2, 3), torch.ones(2, 5), "does not run on example_inputs"),
        (nn.Linear(2, 3), (torch.ones(2, 2), torch.ones(2)), "does not run on example_inputs"),
        (nn.Linear(2, 3), "x", "must be a tensor"),
        (nn.Linear(2, 3), (), "must be a tensor"),
        (nn.Linear(2, 3), torch.ones(0, 2), "at least one sample"),
    ],
)
def test_bad_input(model, inputs, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        shrink(model, inputs)
    with pytest.raises(TypeError, match=r"nn\.Module, got int"):
        shrink(3, torch.ones(2))


def test_outputs_that_differ_are_never_returned(monkeypatch) -> None:
    from lightning_bsqh.export.shrinking.layers import MixingLayer

    monkeypatch.setattr(MixingLayer, "_put", lambda self, weight, bias: self._module.weight.data.add_(1.0))
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    zero_rows(network[0].weight, 0)
    with pytest.raises(RuntimeError, match="differ by"):
        shrink(network, torch.randn(2, 3))


def test_report_only_of_what_shrink_returned() -> None:
    with pytest.raises(ValueError, match="must be what shrink has returned"):
        shrink_report(nn.Linear(2, 2))
    shrunk = copy.deepcopy(shrink(nn.Linear(2, 2), torch.ones(1, 2)))
    assert shrink_report(shrunk).parameters == (6, 6)
