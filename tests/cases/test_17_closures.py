"""The optimizer without Lightning takes what closures users write, or says what is wrong with one."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from lightning_bsqh import L0, BSQHOptimizer
from tests.cases.helpers import noted, points, works_or_names


def small():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("keep", [False, True], ids=["once", "retained-graph"])
def test_closure_that_calls_backward(keep):
    """The closure that LBFGS takes works, or the message says that backward is not to be called."""
    net, (x, y) = small(), points(32)
    optimizer = BSQHOptimizer(net, total_steps=9)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward(retain_graph=keep)
        return loss

    right = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), net[0].weight)[0]
    before = net[0].weight.detach().clone()
    if works_or_names(lambda: optimizer.step(closure), "closure"):
        assert not torch.equal(before, net[0].weight)
        torch.testing.assert_close(net[0].weight.grad, right)


def test_group_added_later():
    """The gradients of a group that is added later are those of the present loss in every step."""
    net, (x, y) = small(), points(32)
    net[0].requires_grad_(False)
    optimizer = BSQHOptimizer(net, regularizer=L0(rho=0.0))
    net[0].requires_grad_(True)
    optimizer.add_param_group({"params": list(net[0].parameters()), "name": "0"})
    for _ in range(4):
        right = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), net[0].weight)[0]
        optimizer.step(lambda: nn.functional.cross_entropy(net(x), y))
        torch.testing.assert_close(net[0].weight.grad, right)


def test_parameters_of_a_batchnorm():
    """BSQHOptimizer(net.parameters()) does not count trials in BatchNorm, or warns that it cannot help it."""
    net, (x, y) = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), points(32)
    with noted() as warnings:
        optimizer = BSQHOptimizer(net.parameters(), regularizer=L0(rho=0.0))
        for _ in range(5):
            optimizer.step(lambda: nn.functional.cross_entropy(net(x), y))
    assert int(net[1].num_batches_tracked) == 5 or any("module" in t or "buffer" in t for t in warnings)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_autocast_in_the_closure(kind):
    """A recurrent layer under torch.autocast inside the closure trains."""
    first, gru, last = nn.Linear(8, 8), kind(8, 8, batch_first=True), nn.Linear(8, 3)
    net, (x, y) = nn.ModuleList([first, gru, last]), points(32)

    def closure():
        with torch.autocast("cpu", torch.bfloat16):
            out = last(gru(first(x)[:, None])[0][:, -1])
        return nn.functional.cross_entropy(out.float(), y)

    closure().backward()
    try:
        BSQHOptimizer(net, regularizer=L0(rho=0.0), layers=["1"]).step(closure)
    except (RuntimeError, ValueError) as error:
        pytest.fail(f"autocast is lost: {error}")


def test_gradients_per_sample():
    """torch.func.vmap(grad(...)) of a network with max pooling works in a closure as it does without the optimizer."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(1))
    x = torch.randn(4, 1, 8, 8)
    net(x)

    def closure():
        each = vmap(grad(lambda z: functional_call(net, dict(net.named_parameters()), (z[None],)).sum()))(x)
        return net(x).square().mean() + each.square().sum()

    closure().backward()
    try:
        BSQHOptimizer(net, regularizer=L0(rho=0.0)).step(closure)
    except RuntimeError as error:
        pytest.fail(f"works without the optimizer only: {error}")


def test_float16():
    """Parameters in half precision are refused by name, or the training gets somewhere."""
    net, (x, y) = small().half(), points(64)

    def loss():
        return nn.functional.cross_entropy(net(x.half()).float(), y)

    def call():
        optimizer = BSQHOptimizer(net, regularizer=L0(rho=0.0), total_steps=60)
        for _ in range(60):
            optimizer.step(loss)

    before = float(loss())
    if works_or_names(call, "float16", "half"):
        assert float(loss()) < 0.8 * before
