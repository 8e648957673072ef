"""Many tensors at once: what the private functions of torch give is what one tensor after the other gives."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_bsqh import (
    L0,
    L1,
    L2,
    Box,
    Cardinality,
    Discrete,
    ElasticNet,
    GroupL0,
    LHalf,
    LTwoThirds,
    Regularizer,
    foreach,
)
from lightning_bsqh.regularizers import selection

REGULARIZERS: dict[str, Regularizer] = {
    "l0": L0(rho=0.3),
    "l1": L1(rho=0.4),
    "l2": L2(rho=0.2),
    "elastic": ElasticNet(0.3, 0.2),
    "half": LHalf(rho=0.2),
    "two thirds": LTwoThirds(rho=0.2),
    "rows": GroupL0(rho=0.6),
    "cardinality": Cardinality(0.6, ramp=(0.0, 0.0)),
    "cardinality per layer": Cardinality(0.6, ramp=(0.0, 0.0), scope="layer"),
    "cardinality of columns": Cardinality(0.6, ramp=(0.0, 0.0), groups="input"),
    "levels": Discrete.ternary(0.7, ramp=(0.0, 0.0)),
    "some on levels": Discrete.ternary(0.7).at(40, 100),
    "box": Box(-0.5, 0.8),
    "box, l0": Box(-0.5, 0.8, L0(rho=0.3)),
    "box, l1": Box(-0.5, 0.8, L1(rho=0.3)),
    "box, half": Box(-0.5, 0.8, LHalf(rho=0.2)),
    "box, rows": Box(-0.5, 0.8, GroupL0(rho=0.6)),
    "box, cardinality": Box(-0.5, 0.8, Cardinality(0.6, ramp=(0.0, 0.0))),
    "box, some on levels": Box(-0.5, 0.8, Discrete.ternary(0.7).at(40, 100)),
}
SHAPES = [(4, 3), (3, 2, 2), (1, 5), (6, 1), (2, 2)]


def problem(seed: int, coarse: bool, mixed: bool) -> tuple[list[Tensor], list[Tensor | float]]:
    """Points and metric; ``coarse`` makes ties and zeros, ``mixed`` has numbers among the metric's tensors."""
    generator = torch.Generator().manual_seed(seed)
    points = [4.0 * torch.rand(shape, generator=generator) - 2.0 for shape in SHAPES]
    metric: list[Tensor | float] = [torch.rand(shape, generator=generator) + 0.1 for shape in SHAPES]
    if coarse:
        points = [(2.0 * p).round() / 2.0 for p in points]
        metric = [torch.ones(shape) for shape in SHAPES]
    if mixed:
        metric[1], metric[3] = 1.0, 0.5
    return points, metric


def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes on the CPU the ways that are meant for a device where a call is dear and the host must not wait."""
    monkeypatch.setattr(foreach, "joins", lambda tensors: len(tensors) > 1)
    monkeypatch.setattr(selection, "_on_host", lambda scores: False)


def close(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-5, atol=0.0) for a, b in zip(first, second, strict=True))


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", REGULARIZERS)
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10_000), coarse=st.booleans(), mixed=st.booleans())
def test_an_accelerator_gets_the_same_bits(name: str, seed: int, coarse: bool, mixed: bool) -> None:
    points, metric = problem(seed, coarse, mixed)
    regularizer = REGULARIZERS[name]
    found = [p.clone() for p in points]
    regularizer.prox_(found, metric, 0.7)
    with pytest.MonkeyPatch.context() as monkeypatch:
        as_on_an_accelerator(monkeypatch)
        joined = [p.clone() for p in points]
        regularizer.prox_(joined, metric, 0.7)
        # The vector instructions for powers and cosines round otherwise at the end of a tensor.
        assert same(found, joined) or (("half" in name or "thirds" in name) and close(found, joined))
        assert bool(regularizer.admits(joined))
        penalty = float(regularizer.penalty(joined))
        projected = [p.clone() for p in points]
        regularizer.project_(projected, metric)
    assert penalty == pytest.approx(float(regularizer.penalty(found)), rel=1e-6)
    regularizer.project_(points, metric)
    assert same(projected, points)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, float("inf")]) | st.floats(0, 3, width=32), min_size=1), st.data())
def test_a_selection_without_waiting_is_that_of_the_host(scores: list[float], draw: st.DataObject) -> None:
    count = draw.draw(st.integers(0, len(scores)))
    expected = selection.keep_largest(torch.tensor(scores), count)
    with pytest.MonkeyPatch.context() as monkeypatch:
        as_on_an_accelerator(monkeypatch)
        assert torch.equal(selection.keep_largest(torch.tensor(scores), count), expected)


class Waiting(torch.utils._python_dispatch.TorchDispatchMode):
    """Refuses what makes the host wait for a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = str(function)
        assert not any(word in name for word in ("_local_scalar", "aten.nonzero", "aten.index.", "masked_select")), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", REGULARIZERS)
def test_nothing_waits_for_an_accelerator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_an_accelerator(monkeypatch)
    points, metric = problem(0, coarse=True, mixed=True)
    regularizer = REGULARIZERS[name]
    with Waiting():
        regularizer.prox_(points, metric, 0.7)
        regularizer.project_(points, metric)
        regularizer.penalty(points)
        regularizer.admits(points)
    assert not isinstance(regularizer.admits(points), float)


def test_what_torch_calls_private_is_there() -> None:
    """Every function of ``_foreach`` that we use, by what it gives: its name or meaning may change without notice."""
    tensors = [torch.tensor([-2.0, 0.0, 3.0]), torch.tensor([[0.5]])]
    assert [t.tolist() for t in foreach.squares(tensors)] == [[4.0, 0.0, 9.0], [[0.25]]]
    assert [t.tolist() for t in foreach.times(tensors, 2.0)] == [[-4.0, 0.0, 6.0], [[1.0]]]
    assert foreach.times([1.0, 2.0], 3.0) == [3.0, 6.0]
    assert [t.tolist() for t in foreach.shares([torch.tensor([1.0, 3.0])], 1.0)] == [[0.5, 0.75]]
    assert [t.tolist() for t in foreach.quotients(2.0, [torch.tensor([1.0, 4.0])])] == [[2.0, 0.5]]
    soft = [t.clone() for t in tensors]
    foreach.soften_(soft, [torch.tensor([1.0, 1.0, 0.5]), 1.0 * torch.ones(1, 1)])
    assert [t.tolist() for t in soft] == [[-1.0, 0.0, 2.5], [[0.0]]]
    foreach.multiply_(soft, [2.0, 3.0])
    assert soft[0].tolist() == [-2.0, 0.0, 5.0]
    foreach.copy_(soft, tensors)
    assert same(soft, tensors)
    assert foreach.scaled(torch.tensor([1.0, 2.0]), [3.0, 4.0]).tolist() == [3.0, 8.0]
    assert bool(foreach.no_larger(torch.tensor([1.0, 2.0]), [1.0, 2.0]))
    assert not bool(foreach.no_larger(torch.tensor([1.0, 2.5]), [1.0, 2.0]))
    empty: list[Tensor] = []
    for change in (foreach.multiply_, foreach.copy_, foreach.soften_):
        change(empty, empty)
    assert foreach.squares(empty) == foreach.shares(empty, 1.0) == foreach.quotients(1.0, empty) == empty
    assert float(foreach.added(foreach.scalars(empty))) == 0.0
