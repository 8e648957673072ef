"""Networks drawn at random: the smaller one gives the same as the one that it comes from."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_bsqh.export import resized, shrink, shrink_report
from tests.export.shrinking.made_networks import Front, Halves, Heads, Padded, networks, zero_out


def largest_gap(first: torch.Tensor, second: torch.Tensor) -> float:
    first, second = first.detach(), second.detach()
    return float((first - second).abs().max() / max(1.0, float(first.abs().max())))


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(networks())
def test_the_smaller_network_gives_the_same(network: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    shrunk = shrink(network, torch.randn(2, 2, 6, 6, dtype=torch.float64))
    # Before the network runs: InstanceNorm of torch 2.4 changes its running statistics by rounding in eval mode, too.
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    # Another batch size, other and larger numbers than those that shrink has compared.
    x = 3.0 * torch.randn(5, 2, 6, 6, dtype=torch.float64)
    assert largest_gap(network(x), shrunk(x)) <= 1e-11
    report = shrink_report(shrunk)
    assert report.parameters[1] == sum(p.numel() for p in shrunk.parameters())
    assert report.difference <= report.tolerance == 1e-12
    # The tensors of the smaller one fit into the class of the first, where its forward writes out no sizes.
    if not any(
        isinstance(m, Front | Padded | Halves) or getattr(m, "kind", "") in ("view", "reshape", "function")
        for m in network.modules()
    ):
        assert largest_gap(shrunk(x), resized(network, shrunk.state_dict())(x)) <= 1e-12
    assert all(kept.count > 0 and kept.reason for kept in report.kept)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(0, 2**30), st.sampled_from([0.0, 0.5, 0.9]))
def test_heads_of_attention(heads: int, seed: int, rows: float) -> None:
    torch.manual_seed(seed)
    network = zero_out(nn.Sequential(nn.Linear(4, 6), Heads(6, heads), nn.ReLU(), nn.Linear(6, 2)), rows, 0.0).double()
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    shrunk = shrink(network, x)
    assert largest_gap(network(x), shrunk(x)) <= 1e-12
