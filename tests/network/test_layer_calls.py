"""States and adjoints at the boundaries: the layer alone gives the network's own gradient, whatever its shape."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lightning_bsqh.network.layer_calls import Boundaries, recording
from lightning_bsqh.network.layers import find_layers


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Record:
    value: Tensor
    note: str


class Cell(nn.Module):
    """Not affine; two inputs, one of them named, and outputs that depend on each other."""

    def __init__(self, container: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4) / 2)
        self.container = container

    def forward(self, x: Tensor, *, context: Tensor) -> Any:
        first = torch.tanh(x @ self.weight + context)
        second = torch.sin(first @ self.weight)
        match self.container:
            case "tuple":
                return first, second
            case "namedtuple":
                return Pair(first, second)
            case "list":
                return [first, second]
            case "dict":
                return {"first": first, "second": second, "count": 2}
            case "ordered":
                return OrderedDict(first=first, second=[second, None])
            case _:
                return Record(first, "x"), second


def parts(output: Any) -> tuple[Tensor, Tensor]:
    if isinstance(output, dict):
        second = output["second"]
        return output["first"], second if isinstance(second, Tensor) else second[0]
    first, second = output
    return first.value if isinstance(first, Record) else first, second


class Network(nn.Module):
    """Calls its cell twice and writes into a state in place."""

    def __init__(self, container: str) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.cell = Cell(container)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        a, b = parts(self.cell(x, context=x.cos()))
        b += 0.5
        x = a * x
        c, d = parts(self.cell(x, context=b))
        b.mul_(2.0)
        return (c * d + b).square().mean()


def recorded(network: nn.Module, loss: Any, choice: Any = "leaf") -> tuple[Boundaries, list[Any]]:
    layers = find_layers(network, layers=choice)
    boundaries = Boundaries(layers, [torch.device("cpu")])
    with recording(boundaries):
        value = loss()
    value.backward()
    return boundaries, layers


@pytest.mark.parametrize("container", ["tuple", "namedtuple", "list", "dict", "ordered", "dataclass"])
def test_gradient_of_the_layer_alone_is_that_of_the_network(container: str) -> None:
    network = Network(container).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    boundaries, layers = recorded(network, lambda: network(x))
    (layer,) = [layer for layer in layers if layer.name == "cell"]
    calls = boundaries.calls(layer)
    assert len(calls) == 2
    weight = network.cell.weight
    total = sum(call.again().gradients_of([weight])[0] for call in calls)
    torch.testing.assert_close(total, weight.grad, rtol=1e-12, atol=1e-14)
    # The Hamiltonian's own derivative, by differences.
    direction = torch.randn_like(weight)
    values = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            weight.add_(direction, alpha=sign * 1e-6)
        values.append(boundaries.alignment(layer))
        with torch.no_grad():
            weight.sub_(direction, alpha=sign * 1e-6)
    slope = (values[0] - values[1]) / 2e-6
    assert slope == pytest.approx(-float((total * direction).sum()), rel=1e-6)


def test_recording_does_not_change_loss_and_gradient() -> None:
    network = Network("tuple").double()
    x = torch.randn(5, 4, dtype=torch.float64)
    expected = torch.autograd.grad(network(x), list(network.parameters()))
    recorded(network, lambda: network(x))
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0)


def test_lstm_and_tied_layers() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Embedding(7, 6)
            self.lstm = nn.LSTM(6, 6, num_layers=2, dropout=0.3)
            self.decoder = nn.Linear(6, 7, bias=False)
            self.decoder.weight = self.encoder.weight

    network = Tied().double()
    tokens = torch.randint(7, (5, 3))

    def loss() -> Tensor:
        states, (h, _) = network.lstm(network.encoder(tokens))
        return (network.decoder(states).logsumexp(-1) + h.square().sum()).mean()

    boundaries, layers = recorded(network, loss)
    assert [layer.name for layer in layers] == ["encoder", "lstm"]
    for layer in layers:
        parameters = list(layer.parameters.values())
        found = [call.again().gradients_of(parameters) for call in boundaries.calls(layer)]
        for index, parameter in enumerate(parameters):
            # The same dropout masks, although numbers have been drawn since.
            total = sum(f[index] for f in found)
            torch.testing.assert_close(total, parameter.grad, rtol=1e-10, atol=1e-12)
    assert len(boundaries.calls(layers[0])) == 2


def test_running_a_layer_leaves_no_trace() -> None:
    block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Tanh())
    network = nn.Sequential(OrderedDict(block=block, head=nn.Linear(3, 1)))
    x = torch.randn(8, 3)
    boundaries, layers = recorded(network, lambda: network(x).square().mean(), ["block"])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    first = boundaries.alignment(layers[0])
    torch.testing.assert_close(boundaries.alignment(layers[0]), first, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


class Weird(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> torch.distributions.Normal:
        return torch.distributions.Normal(x + self.mean, 1.0)


def test_an_output_that_is_no_nest_of_tensors() -> None:
    network = nn.Sequential(OrderedDict(inner=nn.Linear(2, 2), weird=Weird()))
    x = torch.randn(4, 2)

    def loss() -> Tensor:
        return -network(x).log_prob(x).mean()

    with pytest.raises(TypeError, match=r"'weird' returned Normal.*must return a tensor or a nest"):
        recorded(network, loss, ["weird"])
    # Nobody asked for it as a layer of its own: it is linearized.
    boundaries, layers = recorded(network, loss)
    assert boundaries.calls(layers[1]) == []


def test_a_chosen_layer_that_is_never_called() -> None:
    network = nn.Sequential(OrderedDict(outer=nn.Sequential(nn.Linear(2, 2), nn.Tanh())))
    x = torch.randn(4, 2)
    boundaries, layers = recorded(network, lambda: network.outer[0](x).mean(), ["outer"])
    with pytest.raises(ValueError, match=r"'outer' was not called in the forward sweep"):
        boundaries.calls(layers[0])


def test_no_hook_is_left() -> None:
    network = Network("tuple")
    with pytest.raises(RuntimeError):
        recorded(network, lambda: network(torch.randn(5, 3)))
    assert not network.cell._forward_hooks
    assert not network.cell._forward_pre_hooks


def test_an_output_that_is_written_into_afterwards() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bend = nn.GRUCell(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bend(x) + 0.0
            z = self.bend(y)
            z += y
            z.mul_(3.0)
            return z.square().mean()

    network = InPlace().double()
    x = torch.randn(5, 4, dtype=torch.float64)
    boundaries, (layer,) = recorded(network, lambda: network(x))
    parameters = list(layer.parameters.values())
    found = [call.again().gradients_of(parameters) for call in boundaries.calls(layer)]
    for index, parameter in enumerate(parameters):
        total = sum(f[index] for f in found)
        torch.testing.assert_close(total, parameter.grad, rtol=1e-12, atol=1e-14)
