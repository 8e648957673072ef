"""The ramp of the cardinality constraint, and that tightening never sticks."""

from __future__ import annotations

import itertools
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_bsqh import BSQHOptimizer, Cardinality, Curvature
from lightning_bsqh.regularizers import selection
from tests.problems import cross_entropy, data, smooth_network


@settings(deadline=None, max_examples=100)
@given(total=st.integers(1, 500), sparsity=st.floats(0, 0.99), start=st.floats(0, 1), width=st.floats(0, 1))
def test_ramp_rises_to_the_target_and_stays(total: int, sparsity: float, start: float, width: float) -> None:
    regularizer = Cardinality(sparsity, ramp=(start, min(start + width, 1.0)))
    demanded = [regularizer.sparsity_at(step, total) for step in range(total)]
    assert demanded == sorted(demanded)
    assert demanded[-1] == sparsity
    assert all(0.0 <= value <= sparsity for value in demanded)


def test_between_tightenings_the_demand_is_constant() -> None:
    demanded = [Cardinality(0.9).sparsity_at(step, 2000) for step in range(2000)]
    changes = [step for step in range(1, 2000) if demanded[step] != demanded[step - 1]]
    assert changes[0] >= 100
    assert changes[-1] == 1000
    assert min(b - a for a, b in pairwise(changes)) >= 10


@pytest.mark.parametrize("total", [1, 2, 3, 10, 120])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.983])
def test_target_is_met_to_the_weight(total: int, sparsity: float) -> None:
    network = smooth_network()
    x, y = data()
    optimizer = BSQHOptimizer(network, regularizer=Cardinality(sparsity), total_steps=total)
    for _ in range(total):
        optimizer.step(lambda: cross_entropy(network, x, y))
    weights = [p for p in network.parameters() if p.dim() >= 2]
    n = sum(w.numel() for w in weights)
    assert sum(int((w == 0).sum()) for w in weights) == round(sparsity * n)
    assert all(int(torch.count_nonzero(p)) == p.numel() for p in network.parameters() if p.dim() < 2)


def test_tightening_never_sticks() -> None:
    """Even if no trial is ever better than the inadmissible w, every demand of the ramp is met at once."""
    network = smooth_network()
    x, y = data()
    total = 60
    # Far too small an ε and one trial only: nearly everything is rejected.
    rule = Curvature(epsilon=1e-6, epsilon_max=1e-5)
    optimizer = BSQHOptimizer(network, regularizer=Cardinality(0.9), augmentation=rule, total_steps=total, max_trials=1)
    n = sum(p.numel() for p in network.parameters() if p.dim() >= 2)
    rejected = 0
    for step in range(total):
        optimizer.step(lambda: cross_entropy(network, x, y))
        report = optimizer.last_step
        rejected += not report.accepted
        demanded = round(optimizer.regularizer.sparsity_at(step, total) * n)
        assert sum(int((p == 0).sum()) for p in network.parameters() if p.dim() >= 2) >= demanded
        assert math.isfinite(cross_entropy(network, x, y).item())
    assert rejected > total // 2


def test_projection_is_the_measure_while_tightening() -> None:
    """An accepted step from an inadmissible w lowers the loss of w or that of w's projection."""
    network = smooth_network()
    x, y = data()
    total = 40
    optimizer = BSQHOptimizer(network, regularizer=Cardinality(0.95, ramp=(0.1, 0.9)), total_steps=total)
    seen = 0
    for _ in range(total):
        loss = cross_entropy(network, x, y).item()
        optimizer.step(lambda: cross_entropy(network, x, y))
        report = optimizer.last_step
        if report.accepted:
            assert report.objective_after < report.objective_before
        if report.accepted and report.tightened and report.objective_before != loss:
            seen += 1
            assert report.objective_before > loss
    assert seen > 0


def test_needs_the_length_of_the_training() -> None:
    network = smooth_network()
    optimizer = BSQHOptimizer(network, regularizer=Cardinality(0.9))
    with pytest.raises(ValueError, match="total_steps must be given"):
        optimizer.step(lambda: cross_entropy(network, *data()))
    at_once = BSQHOptimizer(network, regularizer=Cardinality(0.9, ramp=(0.0, 0.0)))
    at_once.step(lambda: cross_entropy(network, *data()))
    assert at_once.sparsity() == pytest.approx(0.9, abs=0.005)


@settings(deadline=None, max_examples=150)
@given(
    values=st.lists(st.tuples(st.floats(-2, 2), st.floats(0.125, 5)), min_size=18, max_size=18),
    sparsity=st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    groups=st.sampled_from(["output", "input"]),
    low=st.sampled_from([-math.inf, -0.5]),
)
def test_no_choice_of_groups_is_better(
    values: list[tuple[float, float]], sparsity: float, groups: str, low: float
) -> None:
    z, d = torch.tensor(values, dtype=torch.float64).T
    # Of different sizes: as many weights may be lost with one group as with two others.
    shapes = [(3, 2, 2), (2, 3)]
    points, metric = ([part.view(s) for part, s in zip(t.split([12, 6]), shapes, strict=True)] for t in (z, d))
    axis = 0 if groups == "output" else 1
    sizes = [s[axis] for s in shapes]
    regularizer = Cardinality(sparsity, ramp=(0.0, 0.0), groups=groups, minimum=0)
    found = [p.clone() for p in points]
    regularizer.prox_in_box_(found, metric, 0.7, low, 1.0)
    assert regularizer.admits(found)
    nonzero = sum(int((u != 0).movedim(axis, 0).flatten(1).any(1).sum()) for u in found)
    kept = sum(sizes) - round(sparsity * sum(sizes))
    assert nonzero <= kept

    def distance(u: list[torch.Tensor]) -> float:
        return sum(float((m * (a - p).square()).sum()) for m, a, p in zip(metric, u, points, strict=True))

    for chosen in itertools.combinations(range(sum(sizes)), kept):
        candidate = [p.clamp(low, 1.0) for p in points]
        for i in set(range(sum(sizes))) - set(chosen):
            tensor, index = (0, i) if i < sizes[0] else (1, i - sizes[0])
            candidate[tensor].select(axis, index).zero_()
        assert regularizer.admits(candidate)
        assert distance(found) <= distance(candidate) + 1e-12


@settings(deadline=None, max_examples=150)
@given(
    values=st.lists(st.tuples(st.sampled_from([0.0, 1.0, -1.0]) | st.floats(-2, 2), st.floats(0.125, 5)), min_size=9),
    sizes=st.tuples(st.integers(0, 4), st.integers(1, 4)),
    sparsity=st.floats(0, 0.99),
    minimum=st.integers(0, 3),
    low=st.sampled_from([-math.inf, -0.5]),
    waits=st.booleans(),
)
def test_no_support_is_better_that_leaves_every_tensor_its_minimum(
    values: list[tuple[float, float]],
    sizes: tuple[int, int],
    sparsity: float,
    minimum: int,
    low: float,
    waits: bool,
) -> None:
    lengths = [*sizes, 9 - sum(sizes)]
    z, d = torch.tensor(values[:9], dtype=torch.float64).T
    regularizer = Cardinality(sparsity, ramp=(0.0, 0.0), minimum=minimum)
    found = [part.clone() for part in z.split(lengths)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(selection, "_on_host", lambda scores: waits)
        regularizer.prox_in_box_(found, d.split(lengths), 0.7, low, 1.0)
    assert regularizer.admits(found)
    least = [min(minimum, n) for n in lengths]
    count = max(9 - round(sparsity * 9), sum(least))
    clipped = z.clamp(low, 1.0)
    owner = [i for i, n in enumerate(lengths) for _ in range(n)]
    best = math.inf
    for support in itertools.combinations(range(9), count):
        if all(sum(owner[i] == t for i in support) >= few for t, few in enumerate(least)):
            u = torch.zeros_like(z)
            u[list(support)] = clipped[list(support)]
            assert regularizer.admits(u.split(lengths))
            best = min(best, float((d * (u - z).square()).sum()))
    assert float((d * (torch.cat(found) - z).square()).sum()) <= best + 1e-12
    if sparsity * 9 >= 0.5:
        assert sum(max(int(torch.count_nonzero(u)), few) for u, few in zip(found, least, strict=True)) <= count


def test_only_what_would_have_been_emptied_changes() -> None:
    weights = [torch.tensor([5.0, 4.0, 3.0, 2.0]), torch.tensor([0.3, 0.2, 0.1])]

    def kept(sparsity: float, minimum: int, scope: str = "global") -> list[list[float]]:
        u = [w.clone() for w in weights]
        Cardinality(sparsity, ramp=(0.0, 0.0), scope=scope, minimum=minimum).prox_(u, [1.0, 1.0], 1.0)
        return [t[t != 0].tolist() for t in u]

    assert kept(0.3, 0) == kept(0.3, 1) == [[5.0, 4.0, 3.0, 2.0], [pytest.approx(0.3)]]
    assert kept(0.5, 0) == [[5.0, 4.0, 3.0, 2.0][: 7 - round(3.5)], []]
    assert kept(0.5, 1) == [[5.0, 4.0], [pytest.approx(0.3)]]
    assert kept(0.5, 2) == [[5.0, 4.0], pytest.approx([0.3, 0.2])]
    # Where the minima together are more than the demand leaves, they are what is kept.
    assert kept(0.9, 1) == [[5.0], [pytest.approx(0.3)]]
    assert kept(0.9, 0, "layer") == [[], []]
    assert kept(0.9, 1, "layer") == [[5.0], [pytest.approx(0.3)]]


@pytest.mark.parametrize("groups", [None, "output"])
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("ramp", [(0.0, 0.0), (0.05, 0.5)])
def test_no_layer_of_a_training_is_emptied(groups: str | None, scope: str, ramp: tuple[float, float]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = data()
    regularizer = Cardinality(0.97, ramp=ramp, scope=scope, groups=groups)
    optimizer = BSQHOptimizer(network, regularizer=regularizer, total_steps=20)
    for _ in range(20):
        optimizer.step(lambda: cross_entropy(network, x, y))
        assert all(bool(layer.weight.any()) for layer in network if isinstance(layer, nn.Linear))
    assert optimizer.meets_constraint()


def test_no_filters_are_emptied_whichever_tensors_have_an_r_of_their_own() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.Tanh(), nn.Conv1d(4, 4, 3), nn.Flatten(), nn.Linear(8, 3)
    ).double()
    x, y = data()
    regularizer = {"1": Cardinality(0.9, groups="output"), "3": Cardinality(0.9, groups="output")}
    optimizer = BSQHOptimizer(network, regularizer=regularizer, total_steps=12)
    for _ in range(12):
        optimizer.step(lambda: cross_entropy(network, x, y))
    assert [int((network[i].weight != 0).flatten(1).any(1).sum()) for i in (1, 3)] == [1, 1]
    assert optimizer.meets_constraint()


def test_target_of_groups_is_met_to_the_group() -> None:
    network = smooth_network()
    x, y = data()
    optimizer = BSQHOptimizer(network, regularizer=Cardinality(0.4, groups="output"), total_steps=30)
    for _ in range(30):
        optimizer.step(lambda: cross_entropy(network, x, y))
    # 12 + 8 + 3 rows, of which round(9.2) are zero.
    assert sum(int((layer.weight == 0).all(1).sum()) for layer in network if hasattr(layer, "weight")) == 9
    assert optimizer.meets_constraint()


def test_groups_that_are_none() -> None:
    with pytest.raises(ValueError, match="groups must be 'output' or 'input', got 'rows'"):
        Cardinality(groups="rows")
    with pytest.raises(ValueError, match=r"groups='input' needs tensors with more than 1 dimensions.*\(3,\)"):
        Cardinality(groups="input").admits([torch.zeros(3)])
    assert repr(Cardinality(0.5, groups="input")) == "Cardinality(sparsity=0.5, ramp=(0.05, 0.5), groups='input')"


@settings(deadline=None)
@given(
    patterns=st.lists(st.lists(st.sampled_from([0.0, 1.0, -2.0]), min_size=1, max_size=6), min_size=2, max_size=4),
    sparsity=st.floats(0.0, 0.99),
    minimum=st.integers(0, 3),
)
def test_one_vector_is_judged_and_thinned_as_the_tensors_are(
    patterns: list[list[float]], sparsity: float, minimum: int
) -> None:
    tensors = [torch.tensor(pattern) for pattern in patterns]
    vector = torch.cat(tensors)
    regularizer = Cardinality(sparsity, ramp=(0.0, 0.0), minimum=minimum)
    whole = regularizer.on_vector_with_minimum([t.numel() for t in tensors])
    assert whole is not None
    assert bool(whole.admits([vector])) == bool(regularizer.admits(tensors))
    whole.prox_([vector], [1.0], 1.0)
    regularizer.prox_(tensors, [1.0] * len(tensors), 1.0)
    assert torch.equal(vector, torch.cat(tensors))
    assert whole.leaves_enough([vector])
