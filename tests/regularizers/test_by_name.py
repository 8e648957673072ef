"""Several regularizers at once: each acts on the tensors that its pattern claims, and on no others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_bsqh import (
    L0,
    L1,
    L2,
    Box,
    BSQHOptimizer,
    BSQHStrategy,
    Cardinality,
    Discrete,
    GroupL0,
    Regularizer,
    check_regularizer,
    pmp_residual,
)
from lightning_bsqh.regularizers import ByName
from tests.problems import cross_entropy, data, smooth_network

# The smooth network's layers are "0" [12, 6], "2" [8, 12] and "4" [3, 8].
MIXED: dict[str, Regularizer] = {"2": GroupL0(rho=5e-3), "4*": L1(rho=1e-3), "0.bias": Cardinality(0.5)}


def zeros_by_name(network: nn.Module) -> dict[str, int]:
    return {name: int((p == 0).sum()) for name, p in network.named_parameters()}


def train(optimizer: BSQHOptimizer, network: nn.Module, steps: int) -> None:
    x, y = data()
    for _ in range(steps):
        optimizer.step(lambda: cross_entropy(network, x, y))


def test_each_acts_on_its_own() -> None:
    network = smooth_network()
    regularizer = {"0": Cardinality(0.75), "4": Box(-0.1, 0.1), "2.bias": Discrete.ternary(0.05)}
    optimizer = BSQHOptimizer(network, regularizer=regularizer, total_steps=60)
    train(optimizer, network, 60)
    # 54 of the first layer's 72 weights; a bias claimed by name; the middle layer's weights as they like.
    zeros = zeros_by_name(network)
    assert zeros["0.weight"] == 54
    assert zeros["2.weight"] == zeros["0.bias"] == zeros["4.bias"] == 0
    assert bool((network[4].weight.abs() <= 0.1).all())
    assert float(network[2].weight.detach().abs().max()) > 0.1
    assert set(network[2].bias.tolist()) <= {-0.05, 0.0, 0.05}
    assert optimizer.meets_constraint()


def test_counts_what_is_claimed_and_nothing_else() -> None:
    network = smooth_network()
    optimizer = BSQHOptimizer(network, regularizer=MIXED, total_steps=10)
    weights = optimizer.regularized_weights()
    assert {name: [w.shape for w in ws] for name, ws in weights.items()} == {
        "0": [(12,)],
        "2": [(8, 12)],
        "4": [(3, 8)],
    }
    with torch.no_grad():
        network[0].weight.zero_()
        network[2].weight.zero_()
    assert optimizer.sparsity() == 96 / (12 + 96 + 24)


def test_meets_the_constraint_only_if_all_are_met() -> None:
    network = smooth_network()
    optimizer = BSQHOptimizer(network, regularizer={"0": Cardinality(0.5), "4": Box(-9, 9)}, total_steps=10)
    assert not optimizer.meets_constraint()
    with torch.no_grad():
        network[0].weight[:6] = 0.0
    assert optimizer.meets_constraint()
    with torch.no_grad():
        network[4].weight[0, 0] = 10.0
    assert not optimizer.meets_constraint()


def test_one_pattern_for_everything_is_the_regularizer_itself() -> None:
    trained = []
    for regularizer in (Cardinality(0.8), {"*": Cardinality(0.8)}):
        network = smooth_network()
        train(BSQHOptimizer(network, regularizer=regularizer, total_steps=40), network, 40)
        trained.append(network.state_dict())
    assert all(torch.equal(value, trained[1][name]) for name, value in trained[0].items())


def test_a_price_per_layer() -> None:
    """With L1 of one price everywhere, splitting it up by layers changes nothing but the order of a sum."""
    trained = []
    for regularizer in (L1(1e-3), {"0": L1(1e-3), "[24]": L1(1e-3)}):
        network = smooth_network()
        train(BSQHOptimizer(network, regularizer=regularizer, total_steps=40), network, 40)
        trained.append(network.state_dict())
    assert all(torch.allclose(value, trained[1][name], rtol=1e-9) for name, value in trained[0].items())


def test_resumes_to_the_bit() -> None:
    network = smooth_network()
    optimizer = BSQHOptimizer(network, regularizer=MIXED, total_steps=40)
    train(optimizer, network, 17)
    weights, state = copy.deepcopy(network.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(optimizer, network, 23)
    resumed = smooth_network(seed=5)
    resumed.load_state_dict(weights)
    again = BSQHOptimizer(resumed, regularizer=MIXED, total_steps=40)
    again.load_state_dict(state)
    train(again, resumed, 23)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_needs_the_length_if_one_of_them_does() -> None:
    network = smooth_network()
    optimizer = BSQHOptimizer(network, regularizer={"0": L0(), "4": Cardinality()})
    with pytest.raises(ValueError, match=r"total_steps must be given: the ramp of \{'0': L0\(rho=1e-05\), '4': Card"):
        train(optimizer, network, 1)
    train(BSQHOptimizer(network, regularizer={"0": L0(), "4": L1()}), network, 1)


def test_parameters_added_later_stay_free() -> None:
    network, later = smooth_network(), nn.Linear(6, 6).double()
    optimizer = BSQHOptimizer(network, regularizer={"*": L0(1e6)})
    optimizer.add_param_group({"params": list(later.parameters())})
    x, y = data()
    optimizer.step(lambda: cross_entropy(network, later(x), y))
    assert optimizer.sparsity() == 1.0
    assert int((later.weight == 0).sum()) == 0


@settings(deadline=None, max_examples=60)
@given(owners=st.lists(st.sampled_from("abc"), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_the_maximiser_is_that_of_each_part(owners: list[str], seed: int) -> None:
    parts = {"a": L0(0.1), "b": GroupL0(0.5), "c": Cardinality(0.5, ramp=(0.0, 0.0))}
    generator = torch.Generator().manual_seed(seed)
    points = [torch.randn(2, i + 1, generator=generator, dtype=torch.float64) for i in range(len(owners))]
    metric = [torch.rand(z.shape, generator=generator, dtype=torch.float64) + 0.1 for z in points]
    found = [z.clone() for z in points]
    regularizer = ByName(parts, owners)
    regularizer.prox_(found, metric, 0.7)
    price = 0.0
    for name, part in parts.items():
        own = [i for i, owner in enumerate(owners) if owner == name]
        expected = [points[i].clone() for i in own]
        part.prox_(expected, [metric[i] for i in own], 0.7)
        assert all(torch.equal(found[i], z) for i, z in zip(own, expected, strict=True))
        assert regularizer.restricted_to(own).penalty(expected) == part.penalty(expected)
        price += part.penalty(expected)
    assert regularizer.penalty(found) == pytest.approx(price)


def test_brute_force() -> None:
    parts = {"a": L0(0.1), "b": Cardinality(0.5), "c": Box(-0.5, 1.0)}
    shapes = [((1, 2), (1,), (1, 1))]
    check_regularizer(ByName(parts, ["a", "b", "c"]), shapes=shapes, values=(-0.5, 1.0), problems=20)
    check_regularizer(ByName(parts, ["b", "a", "b"]), shapes=shapes, problems=20)


def test_couples_only_what_is_not_alone() -> None:
    assert not ByName({"a": Cardinality(), "b": L0()}, ["a", "b"]).couples_tensors
    assert ByName({"a": Cardinality(), "b": L0()}, ["a", "b", "a"]).couples_tensors
    assert not ByName({"a": Cardinality(scope="layer"), "b": L0()}, ["a", "b", "a"]).couples_tensors


# ---------------------------------------------------------------------- the certificate


def test_certificate_takes_every_layer_by_its_own_regularizer() -> None:
    """Where nothing is coupled, a layer's numbers are those of its own regularizer alone."""
    network = smooth_network()
    x, y = data()
    regularizer = {"0": L0(2e-2), "2": GroupL0(5e-2), "4.bias": L2(0.1)}

    def certificate(r: Any, regularize: list[str] | None = None) -> Any:
        return pmp_residual(network, lambda: cross_entropy(network, x, y), regularizer=r, regularize=regularize)

    together = certificate(regularizer)
    for layer, pattern in (("0", "0"), ("2", "2"), ("4", "4.bias")):
        alone = certificate(regularizer[pattern], [pattern])
        found, expected = together.layers[layer], alone.layers[layer]
        assert found.residual == pytest.approx(expected.residual, rel=1e-12)
        assert found.hamiltonian == pytest.approx(expected.hamiltonian, rel=1e-12)
        assert torch.allclose(found.gains, expected.gains, rtol=1e-12, atol=0.0)
    assert together.total == pytest.approx(sum(layer.residual for layer in together.layers.values()), rel=1e-12)
    assert not together.coupled


def test_certificate_of_coupled_parts() -> None:
    network = smooth_network()
    x, y = data()
    regularizer = {"[02]": Cardinality(0.5), "4": L1(1e-2)}
    optimizer = BSQHOptimizer(network, regularizer=regularizer, total_steps=30)
    train(optimizer, network, 30)

    def certificate(r: Any) -> Any:
        return pmp_residual(network, lambda: cross_entropy(network, x, y), regularizer=r, epsilon=3.0)

    result = certificate(regularizer)
    assert result.coupled
    assert result.total >= -1e-12
    assert sum(layer.residual for layer in result.layers.values()) == pytest.approx(result.total, rel=1e-9)
    # What the optimizer made of the mapping is taken as well, and so is what holds in one iteration.
    assert certificate(optimizer.regularizer) == result
    assert certificate(optimizer.regularizer.at(29, 30)).total == result.total
    # Before the ramp has begun nothing is demanded of "[02]", and the whole gain is G²/(4ε) there.
    assert certificate(optimizer.regularizer.at(0, 30)).total > result.total


# ---------------------------------------------------------------------- what is refused


REFUSED: list[tuple[Any, dict[str, Any], type[Exception], list[str]]] = [
    ({"conv*": L0()}, {}, ValueError, ["regularizer", "'conv*'", "matches no layer and no parameter", "0, 2, 4"]),
    ({"*": L0(), "4": L1()}, {}, ValueError, ["'*'", "'4'", "'4.weight'", "both claim"]),
    ({"4": L1(), "4.weight": L0()}, {}, ValueError, ["'4'", "'4.weight'", "both claim"]),
    ({"*.bias": L1(), "0.b*": L0()}, {}, ValueError, ["'*.bias'", "'0.b*'", "'0.bias'", "both claim"]),
    ({"0": L0(), "!*": L1()}, {}, ValueError, ["'!*'", "no weight that R acts on by default"]),
    ({"0": L0()}, {"regularize": ["0"]}, ValueError, ["regularize=['0']", "leave regularize out"]),
    ({}, {}, ValueError, ["regularizer is an empty dict", "L0(rho=0.0)"]),
    ({"0": 1e-5}, {}, TypeError, ["regularizer['0'] must be a Regularizer", "1e-05"]),
    ({"": L0()}, {}, ValueError, ["a pattern must be a name", "''"]),
    ({3: L0()}, {}, ValueError, ["a pattern must be a name", "3"]),
    ([L0()], {}, TypeError, ["regularizer must be a Regularizer", "dict of them by name patterns", "[L0"]),
]


@pytest.mark.parametrize(("regularizer", "options", "error", "words"), REFUSED, ids=lambda case: str(case)[:40])
def test_refusals(regularizer: Any, options: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    network = smooth_network()
    x, y = data()
    calls: list[Callable[[], Any]] = [
        lambda: BSQHOptimizer(network, regularizer=regularizer, **options),
        lambda: pmp_residual(network, lambda: cross_entropy(network, x, y), regularizer=regularizer, **options),
    ]
    if not any(word in str(words) for word in ("both claim", "matches", "by default")):
        # What is wrong without regard to names is found before there is a model.
        calls.append(lambda: BSQHStrategy(regularizer=regularizer, **options))
    for call in calls:
        with pytest.raises(error) as raised:
            call()
        assert all(word in str(raised.value) for word in words), str(raised.value)
