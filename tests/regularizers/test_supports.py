"""Constraints that say which weights may be non-zero: rows, shares, blocks of groups, N:M, budgets (method §3)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_bsqh import (
    L2,
    NM,
    Box,
    BSQHOptimizer,
    Budget,
    Cardinality,
    Regularizer,
    check_regularizer,
    foreach,
)
from lightning_bsqh.regularizers import selection
from lightning_bsqh.regularizers.by_name import ByName
from lightning_bsqh.regularizers.erdos_renyi import erdos_renyi_counts
from tests.problems import cross_entropy, data, smooth_network
from tests.reference import twin

AT_ONCE = (0.0, 0.0)
VALUE = st.sampled_from([0.0, 0.5, -0.5, 1.0, -1.0]) | st.floats(-2, 2, width=32)
WEIGHT = st.sampled_from([0.25, 0.5, 1.0, 2.0]) | st.floats(0.125, 5, width=32)


def pairs(n: int) -> st.SearchStrategy[list[tuple[float, float]]]:
    """Points z and metric D of n weights."""
    return st.lists(st.tuples(VALUE, WEIGHT), min_size=n, max_size=n)


def parts(values: list[tuple[float, float]], shapes: list[tuple[int, ...]]) -> tuple[list[Tensor], list[Tensor]]:
    z, d = torch.tensor(values, dtype=torch.float64).T
    sizes = [math.prod(shape) for shape in shapes]
    return tuple([p.reshape(s) for p, s in zip(t.split(sizes), shapes, strict=True)] for t in (z, d))  # type: ignore[return-value]


def maximised(regularizer: Regularizer, z: list[Tensor], d: list[Tensor], waits: bool = True) -> list[Tensor]:
    found = [t.clone() for t in z]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(selection, "_on_host", lambda scores: waits)
        monkeypatch.setattr(foreach, "joins", lambda tensors: not waits and len(tensors) > 1)
        regularizer.prox_(found, d, 0.7)
        assert bool(regularizer.admits(found))
    return found


def distance(u: list[Tensor], z: list[Tensor], d: list[Tensor]) -> float:
    return math.fsum(float((m * (a - b).square()).sum()) for a, b, m in zip(u, z, d, strict=True))


def nearest(z: list[Tensor], d: list[Tensor], permitted: Callable[[list[Tensor]], Tensor]) -> float:
    """The least distance over all supports that are permitted, by trying them.

    ``permitted`` gets, for each tensor, the masks of all supports, with the supports as the first dim.
    """
    sizes = [t.numel() for t in z]
    every = (torch.arange(2 ** sum(sizes)).unsqueeze(1) >> torch.arange(sum(sizes))) % 2 == 1
    masks = [m.reshape(-1, *t.shape) for m, t in zip(every.split(sizes, 1), z, strict=True)]
    lost = torch.cat([(m * t.square()).flatten() for t, m in zip(z, d, strict=True)])
    return float((~every[permitted(masks)]).double().matmul(lost).min())


def same(found: list[Tensor], expected: Iterable[np.ndarray]) -> bool:
    return all((a.numpy() == b).all() for a, b in zip(found, expected, strict=True))


@settings(deadline=None, max_examples=40)
@given(values=pairs(12), sparsity=st.floats(0, 0.99), minimum=st.integers(0, 2), waits=st.booleans())
def test_rows(values: list[tuple[float, float]], sparsity: float, minimum: int, waits: bool) -> None:
    z, d = parts(values, [(2, 3), (2, 1, 3)])
    found = maximised(Cardinality(sparsity, AT_ONCE, scope="row", minimum=minimum), z, d, waits)
    count = max(3 - round(sparsity * 3), minimum)
    assert same(found, twin.of_each_row([t.numpy() for t in z], [t.numpy() for t in d], lambda n: count))
    best = nearest(z, d, lambda masks: torch.stack([(m.flatten(2).sum(2) <= count).all(1) for m in masks]).all(0))
    assert distance(found, z, d) <= best + 1e-12


def test_every_output_has_the_same_fan_in() -> None:
    w = torch.randn(5, 4, 3, 3)
    Cardinality(0.75, AT_ONCE, scope="row").project_([w], [1.0])
    assert torch.count_nonzero(w.flatten(1), 1).tolist() == [9] * 5


@settings(deadline=None, max_examples=200)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=6),
    share=st.floats(0.01, 1),
    minimum=st.integers(0, 3),
)
def test_erdos_renyi_shares(shapes: list[tuple[int, int]], share: float, minimum: int) -> None:
    sizes = [a * b for a, b in shapes]
    least = [min(minimum, n) for n in sizes]
    kept = max(round(share * sum(sizes)), sum(least))
    counts = erdos_renyi_counts(tuple(shapes), kept, minimum)
    assert sum(counts) == kept
    assert all(few <= count <= n for few, count, n in zip(least, counts, sizes, strict=True))
    # One factor for all that are neither full nor at their minimum, up to the rounding.
    free = [(c, sum(s)) for c, few, n, s in zip(counts, least, sizes, shapes, strict=True) if few < c < n]
    for (c, total), (other, its_total) in itertools.product(free, repeat=2):
        assert (c - 1) / total <= (other + 1) / its_total + 1e-9


@settings(deadline=None, max_examples=30)
@given(values=pairs(11), sparsity=st.floats(0, 0.99), waits=st.booleans())
def test_erdos_renyi_keeps_the_best_of_each(values: list[tuple[float, float]], sparsity: float, waits: bool) -> None:
    shapes: list[tuple[int, ...]] = [(3, 3), (1, 2)]
    z, d = parts(values, shapes)
    found = maximised(Cardinality(sparsity, AT_ONCE, scope="erdos_renyi"), z, d, waits)
    counts = erdos_renyi_counts(tuple(shapes), max(11 - round(sparsity * 11), 2), 1)
    best = nearest(z, d, lambda masks: (masks[0].sum((1, 2)) <= counts[0]) & (masks[1].sum((1, 2)) <= counts[1]))
    assert distance(found, z, d) <= best + 1e-12


@settings(deadline=None, max_examples=25)
@given(
    values=pairs(18),
    sparsity=st.floats(0, 0.99),
    scope=st.sampled_from(["global", "layer"]),
    multiple=st.integers(2, 3),
    waits=st.booleans(),
)
def test_multiples_of_groups(
    values: list[tuple[float, float]], sparsity: float, scope: str, multiple: int, waits: bool
) -> None:
    z, d = parts(values, [(5, 2), (4, 2)])
    regularizer = Cardinality(sparsity, AT_ONCE, scope=scope, groups="output", multiple=multiple)
    found = maximised(regularizer, z, d, waits)
    blocks = [math.ceil(len(t) / multiple) for t in z]

    def used(masks: list[Tensor]) -> list[int]:
        return [max(math.ceil(int(m.any(1).sum()) / multiple), 1) for m in masks]

    def demand(n: int) -> int:
        return n - round(sparsity * n)

    def permitted(masks: list[Tensor]) -> bool:
        if scope == "layer":
            return all(u <= max(demand(n), 1) for u, n in zip(used(masks), blocks, strict=True))
        return sum(used(masks)) <= max(demand(sum(blocks)), 2)

    assert permitted([u != 0 for u in found])
    best = math.inf
    for rows in itertools.product([False, True], repeat=9):
        masks = [torch.tensor(r).view(-1, 1).expand(-1, 2) for r in (rows[:5], rows[5:])]
        if permitted(masks):
            best = min(best, distance([t * m for t, m in zip(z, masks, strict=True)], z, d))
    assert distance(found, z, d) <= best + 1e-12
    if all(bool((t != 0).all()) for t in z):
        counts = [int((u != 0).any(1).sum()) for u in found]
        assert all(c % multiple == 0 or c == len(t) for c, t in zip(counts, z, strict=True))


@settings(deadline=None, max_examples=60)
@given(values=pairs(14), n=st.integers(1, 2), step=st.integers(0, 9), waits=st.booleans())
def test_n_of_m(values: list[tuple[float, float]], n: int, step: int, waits: bool) -> None:
    z, d = parts(values, [(2, 4), (1, 3, 2)])
    regularizer = NM(n, 3, ramp=(0.0, 0.9)).at(step, 10)
    found = maximised(regularizer, z, d, waits)
    # Two groups of three and of one in each row of the first, two of three in the second.
    share = 1.0 - (1.0 - step // 2 * 2 / 9) ** 3 if step < 9 else 1.0
    needed = round(share * 6)
    assert same(found, twin.n_of_m([t.numpy() for t in z], [t.numpy() for t in d], n, 3, needed))

    def permitted(masks: list[Tensor]) -> Tensor:
        first, second = masks
        groups = [*(first[:, row, part] for row in (0, 1) for part in (slice(3), slice(3, 4))), *second[:, 0].unbind(2)]
        return torch.stack([g.sum(1) <= n for g in groups]).sum(0) >= needed

    assert distance(found, z, d) <= nearest(z, d, permitted) + 1e-12


@pytest.mark.parametrize("shape", [(8, 16), (8, 16, 3, 3), (6, 7), (4, 3, 5, 5)])
def test_two_of_four_along_the_channels(shape: tuple[int, ...]) -> None:
    w = torch.randn(shape)
    NM(2, 4, ramp=AT_ONCE).project_([w], [1.0])
    for start in range(0, shape[1], 4):
        group = w[:, start : start + 4]
        assert bool((torch.count_nonzero(group, 1) == min(2, group.shape[1])).all())


@settings(deadline=None, max_examples=60)
@given(
    values=pairs(11),
    costs=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    share=st.floats(0.01, 1.0),
    minimum=st.integers(0, 2),
    waits=st.booleans(),
)
def test_budget(
    values: list[tuple[float, float]], costs: tuple[int, int], share: float, minimum: int, waits: bool
) -> None:
    z, d = parts(values, [(2, 3), (5, 1)])
    found = maximised(Budget(share, AT_ONCE, minimum=minimum).with_costs(costs), z, d, waits)
    least = sum(c * minimum for c in costs)
    budget = max(int(share * (6 * costs[0] + 5 * costs[1]) + 1e-9), least)
    if share < 1.0:
        expected = twin.within_budget([t.numpy() for t in z], [t.numpy() for t in d], costs, budget, minimum)
        assert same(found, expected)

    def cost(masks: list[Tensor]) -> Tensor:
        first, second = (c * m.flatten(1).sum(1).clamp(min=minimum) for c, m in zip(costs, masks, strict=True))
        return first + second

    own = int(cost([(u != 0).unsqueeze(0) for u in found]))
    assert own <= budget
    # Exact for what it costs; and what is left of the budget buys less than one weight.
    assert distance(found, z, d) <= nearest(z, d, lambda masks: cost(masks) <= own) + 1e-12
    lost = max(float((m * (u == 0) * t.square()).max()) for u, t, m in zip(found, z, d, strict=True))
    assert distance(found, z, d) <= nearest(z, d, lambda masks: cost(masks) <= budget) + lost + 1e-12


CHECKED: list[tuple[Regularizer, tuple[float, ...]]] = [
    (Cardinality(0.5, scope="row"), ()),
    (Cardinality(0.5, scope="erdos_renyi"), ()),
    (Cardinality(0.5, groups="output", multiple=2), ()),
    (NM(1, 2), ()),
    (NM(1, 2) + L2(rho=0.3), ()),
    (Box(-0.4, 1.1, NM(1, 2)), (-0.4, 1.1)),
    (Box(-0.4, 1.1, Cardinality(0.5, scope="row")), (-0.4, 1.1)),
]


@pytest.mark.parametrize(("regularizer", "values"), CHECKED, ids=lambda value: str(value)[:60])
def test_brute_force_of_all_methods(regularizer: Regularizer, values: tuple[float, ...]) -> None:
    check_regularizer(regularizer, problems=6, values=values)
    check_regularizer(Budget(0.5).with_costs([3, 3]), problems=4, shapes=[((1, 2), (2, 1))])


@pytest.mark.parametrize(
    "regularizer",
    [
        Cardinality(0.7, scope="row"),
        Cardinality(0.7, scope="erdos_renyi"),
        Cardinality(0.5, groups="output", multiple=4),
        NM(2, 4),
        Budget(0.3).with_costs([1, 1, 1]),
    ],
    ids=lambda r: str(r)[:40],
)
@pytest.mark.parametrize("sweep", ["jacobi", "gauss-seidel"])
def test_a_training_meets_it(regularizer: Regularizer, sweep: str) -> None:
    network = smooth_network()
    x, y = data()
    optimizer = BSQHOptimizer(network, regularizer=regularizer, total_steps=24, sweep=sweep)
    first = cross_entropy(network, x, y).item()
    for step in range(24):
        optimizer.step(lambda: cross_entropy(network, x, y))
        weights = [w for layer in optimizer.regularized_weights().values() for w in layer]
        assert bool(optimizer.regularizer.at(step, 24).admits(weights))
    assert optimizer.meets_constraint()
    assert cross_entropy(network, x, y).item() < first
    assert all(bool(layer.weight.any()) for layer in network if isinstance(layer, nn.Linear))


def test_costs_reach_the_budget_through_what_holds_it() -> None:
    budget = Budget(0.5, AT_ONCE)
    for outer in (Box(-1.0, 1.0, budget), budget + L2(rho=0.1), ByName({"a": budget}, ["a", "a"])):
        assert outer.needs_costs
        known = outer.with_costs([2, 5])
        assert not known.needs_costs
        u = [torch.ones(2, 2), torch.ones(1, 2)]
        known.prox_(u, [1.0, 1.0], 1.0)
        assert bool(known.admits(u))
        # Nine of eighteen: the one that the second keeps in any case, and two of the first.
        assert [int(torch.count_nonzero(t)) for t in u] == [2, 1]
    assert L2().with_costs([1]) is not None
    assert not L2().needs_costs


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"groups='output' cannot be used with scope='row'"):
        Cardinality(scope="row", groups="output")
    with pytest.raises(ValueError, match="multiple=8 needs groups"):
        Cardinality(multiple=8)
    with pytest.raises(ValueError, match="1 <= n <= m <= 1024, got n=4, m=2"):
        NM(4, 2)
    with pytest.raises(ValueError, match=r"needs tensors with input channels.*\(3,\)"):
        NM(ramp=AT_ONCE).project_([torch.ones(3)], [1.0])
    with pytest.raises(ValueError, match="with_costs"):
        Budget(0.5, AT_ONCE).project_([torch.ones(3)], [1.0])
    with pytest.raises(ValueError, match="costs for 1 tensors, but there are 2"):
        Budget(0.5, AT_ONCE).with_costs([1]).project_([torch.ones(3), torch.ones(2)], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"multiply_adds must lie in \(0, 1\], got 0"):
        Budget(0)
    with pytest.raises(ValueError, match=r"costs\[1\] must be at least 1 and at most 1e\+15, got 0"):
        Budget().with_costs([1, 0])
