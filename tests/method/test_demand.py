"""What R demands of tensors that come, go and come back, and of a training whose length changes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_bsqh import L1, Cardinality
from lightning_bsqh.method.demand import Demand
from lightning_bsqh.regularizers.by_name import ByName

NAMES = ["a", "b", "c"]
RULE = Cardinality(0.75, ramp=(0.0, 0.5), interval=1)


def test_nothing_changes_for_those_who_stay() -> None:
    demand = Demand(NAMES)
    for step in range(20):
        demand.begin(NAMES, step, 20)
        held = demand.at(RULE, NAMES, step, 20)
        assert isinstance(held, Cardinality)
        assert held.sparsity_at(step, 20) == RULE.sparsity_at(step, 20)
    assert demand.in_full(RULE, NAMES) is RULE


@settings(max_examples=100, deadline=None)
@given(
    plan=st.lists(st.sets(st.sampled_from(NAMES), min_size=1), min_size=12, max_size=12),
    lengths=st.lists(st.integers(12, 40), min_size=12, max_size=12),
    resumed=st.integers(0, 11),
)
def test_generated_plans(plan: list[set[str]], lengths: list[int], resumed: int) -> None:
    """The share of a tensor never falls, is 0 where it joins, and 1 with the last step at the latest."""
    demand, total = Demand(NAMES), lengths[0]
    shares: dict[str, list[float]] = {name: [] for name in NAMES}
    for step, present in enumerate(plan):
        demand.lengthen(step, total, lengths[step])
        total = lengths[step]
        if step == resumed:
            state, demand = demand.state_dict(), Demand(NAMES)
            demand.load_state_dict(state)
        names = [name for name in NAMES if name in present]
        demand.begin(names, step, total)
        for name in names:
            shares[name].append(demand.share(name, step, total))
        held = demand.at(RULE, names, step, total)
        apart = len({demand.share(name, step, total) for name in names}) > 1
        assert isinstance(held, ByName) or not apart
    for name, reached in shares.items():
        assert all(0.0 <= share <= 1.0 for share in reached)
        assert all(later >= earlier - 1e-12 for earlier, later in pairwise(reached)), name
    for name in plan[-1]:
        assert demand.share(name, total - 1, total) > 1.0 - 1e-12


def test_one_that_joins_begins_where_it_comes() -> None:
    demand = Demand(NAMES)
    for step in range(20):
        names = NAMES[:2] if step < 12 else NAMES
        demand.begin(names, step, 20)
    assert demand.share("c", 12, 20) == 0.0
    held = demand.at(RULE, NAMES, 12, 20)
    assert isinstance(held, ByName)
    assert held.owners[0] == held.owners[1] != held.owners[2]
    assert demand.share("c", 19, 20) == demand.share("a", 19, 20) == 1.0


def test_patterns_keep_what_they_claim() -> None:
    """A regularizer by name is asked only for the tensors that are there."""
    by_name = ByName({"x": L1(rho=0.5), "y": RULE}, ["x", "y", "x"])
    demand = Demand(NAMES)
    demand.begin(["a"], 0, 20)
    assert isinstance(demand.at(by_name, ["a"], 0, 20), L1)
    demand.begin(["a", "b"], 6, 20)
    held = demand.at(by_name, ["a", "b"], 6, 20)
    assert isinstance(held, ByName)
    assert len(held.owners) == 2


def test_no_tensor_at_all() -> None:
    demand = Demand(NAMES)
    demand.begin([], 0, None)
    assert demand.in_full(RULE, []).admits([])


def test_an_unknown_length() -> None:
    demand = Demand(NAMES)
    for step in range(4):
        demand.begin(NAMES if step > 1 else NAMES[:1], step, None)
        demand.at(L1(rho=0.1), NAMES if step > 1 else NAMES[:1], step, None)
