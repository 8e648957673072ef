"""Regularizers on pieces of tensors do what they do on the whole ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_bsqh import (
    L0,
    L1,
    L2,
    NM,
    Box,
    Budget,
    Cardinality,
    Discrete,
    ElasticNet,
    GroupL0,
    LHalf,
    LTwoThirds,
    Regularizer,
)
from lightning_bsqh.network.shards import Shards

#: The last leaves the third process without a row, and one tensor has no element at all.
SHAPES = [(7, 5), (6, 2, 3), (40, 30), (0, 4), (2, 9)]
PROCESSES = 3


class Processes:
    """Some threads that add tensors up as processes do."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(PROCESSES, timeout=60.0)
        self._given: list[Tensor] = [torch.zeros(0)] * PROCESSES

    def run(self, work: Callable[[int, Callable[[Tensor], None]], Any]) -> list[Any]:
        """What ``work(rank, add_)`` gives in each."""
        found: list[Any] = [None] * PROCESSES
        errors: list[BaseException] = []

        def one(rank: int) -> None:
            try:
                found[rank] = work(rank, lambda tensor: self._add_(rank, tensor))
            except BaseException as error:
                errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(PROCESSES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return found

    def _add_(self, rank: int, tensor: Tensor) -> None:
        self._given[rank] = tensor.clone()
        self._barrier.wait()
        total = torch.stack(self._given).sum(0)
        self._barrier.wait()
        tensor.copy_(total)


def pieces(whole: Tensor, rank: int) -> tuple[int, Tensor]:
    rows = -(-whole.shape[0] // PROCESSES)
    start = min(rank * rows, whole.shape[0])
    return start, whole[start : start + rows].clone()


def joined(parts: list[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(rows) for rows in zip(*parts, strict=True)]


def run_on_shards(
    regularizer: Regularizer, points: list[Tensor], metric: list[Tensor], epsilon: float
) -> tuple[list[Tensor], float, list[bool]]:
    """û of all processes, Σ of their penalties, and which of them find it admissible."""

    def work(rank: int, add_: Callable[[Tensor], None]) -> Any:
        own = [pieces(z, rank) for z in points]
        shards = Shards(tuple(z.shape for z in points), tuple(s for s, _ in own), torch.device("cpu"), add_)
        part = regularizer.on_shards(shards)
        weights = [w for _, w in own]
        part.prox_(weights, [pieces(d, rank)[1] for d in metric], epsilon)
        return weights, float(part.penalty(weights)), bool(part.admits(weights))

    found = Processes().run(work)
    return joined([f[0] for f in found]), sum(f[1] for f in found), [f[2] for f in found]


def problem(kind: str, seed: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Points and metric; coarse ones have many ties."""
    generator = torch.Generator().manual_seed(seed)
    points = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    metric = [torch.rand(shape, generator=generator, dtype=dtype) + 0.5 for shape in SHAPES]
    if kind == "coarse":
        return [(2.0 * z).round() for z in points], [torch.ones_like(d) for d in metric]
    if kind == "one small":
        # Competition would empty it.
        points[0] *= 1e-3
    return points, metric


WITH_PARTS = [
    L0(0.3),
    L1(0.3),
    L2(0.3),
    ElasticNet(0.2, 0.1),
    LHalf(0.3),
    LTwoThirds(0.3),
    GroupL0(0.5),
    GroupL0(0.2, weight="size"),
    Box(-0.5, 0.7),
    Box(-0.5, 0.7, L0(0.1)),
    *(Cardinality(s, ramp=(0.0, 0.0), scope=scope) for s in (0.5, 0.97) for scope in ("global", "layer", "row")),
    Cardinality(0.9, ramp=(0.0, 0.0), scope="erdos_renyi"),
    Cardinality(0.97, ramp=(0.0, 0.0), minimum=0),
    Cardinality(0.97, ramp=(0.0, 0.0), minimum=3),
    Cardinality(0.6, ramp=(0.0, 0.0), groups="output"),
    Cardinality(0.6, ramp=(0.0, 0.0), groups="output", scope="layer"),
    Box(-0.5, 0.7, Cardinality(0.8, ramp=(0.0, 0.0))),
    Cardinality(0.8, ramp=(0.0, 0.0)) + L2(0.1),
    *(Discrete([-1.0, 0.0, 0.5], ramp=(0.0, 1.0)).at(step, 9) for step in (0, 3, 8)),
    Box(-0.7, 0.6, Discrete([-1.0, 0.0, 0.5], ramp=(0.0, 1.0)).at(3, 9)),
    Discrete([0.0, 1.0], ramp=(0.0, 0.0)) + L2(0.1),
    *(NM(2, 4, ramp=(0.0, 1.0)).at(step, 9) for step in (0, 3, 8)),
    Box(-0.5, 0.7, NM(1, 3, ramp=(0.0, 0.0))),
    *(Budget(b, ramp=(0.0, 0.0), minimum=m).with_costs([5, 2, 1, 7, 3]) for b, m in ((0.3, 1), (0.02, 0), (1e-6, 3))),
    Budget(0.5, ramp=(0.0, 1.0)).with_costs([4, 2, 1, 1, 2]).at(3, 9),
    Budget(0.4, ramp=(0.0, 0.0)).with_costs([1, 1, 1, 1, 1]) + L2(0.1),
]


@pytest.mark.parametrize("regularizer", WITH_PARTS, ids=repr)
@pytest.mark.parametrize("kind", ["smooth", "coarse", "one small"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pieces_are_treated_as_the_whole(regularizer: Regularizer, kind: str, dtype: torch.dtype) -> None:
    for seed in range(3):
        points, metric = problem(kind, seed, dtype)
        expected = [z.clone() for z in points]
        regularizer.prox_(expected, metric, 0.7)
        found, penalty, admitted = run_on_shards(regularizer, points, metric, 0.7)
        for ours, theirs in zip(found, expected, strict=True):
            # An arc cosine depends on where in a vector it is computed, in the last bits.
            torch.testing.assert_close(ours, theirs, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0.0)
            assert torch.equal(ours == 0, theirs == 0)
        assert penalty == pytest.approx(float(regularizer.penalty(expected)), rel=1e-6)
        assert all(admitted)


def test_a_point_that_is_not_admissible_as_a_whole() -> None:
    regularizer = Cardinality(0.5, ramp=(0.0, 0.0))
    points, _ = problem("smooth", 0, torch.float64)

    def work(rank: int, add_: Callable[[Tensor], None]) -> bool:
        own = [pieces(z, rank) for z in points]
        shards = Shards(tuple(z.shape for z in points), tuple(s for s, _ in own), torch.device("cpu"), add_)
        # The first process alone has zeros, not enough of them for all.
        return bool(regularizer.on_shards(shards).admits([w * (rank > 0) for _, w in own]))

    assert Processes().run(work) == [False] * PROCESSES


@pytest.mark.parametrize(
    "regularizer",
    [
        GroupL0(groups="input"),
        Cardinality(groups="input"),
        Cardinality(groups="output", multiple=4),
        GroupL0(groups="input") + L2(0.1),
    ],
    ids=repr,
)
def test_what_couples_rows_is_refused(regularizer: Regularizer) -> None:
    shards = Shards((torch.Size((4, 4)),), (0,), torch.device("cpu"), lambda _: None)
    with pytest.raises(ValueError, match=r"cannot be used with shard='fsdp'.*or train without"):
        regularizer.on_shards(shards)
