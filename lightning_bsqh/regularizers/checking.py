"""Tests a regularizer's value, prox and projection against brute force on small random problems."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_bsqh._validation import integer, number
from lightning_bsqh.regularizers.base import MetricWeight, Regularizer

#: Iterations that a ramp is looked at in: its start, its middle and its end.
_STEPS, _TOTAL = (0, 3, 9), 10
_DTYPE = torch.float64


@dataclass(frozen=True)
class _Problem:
    """The points z, the metric D and ε of one maximization, and the regularizer as of one iteration."""

    regularizer: Regularizer
    points: list[Tensor]
    metric: list[MetricWeight]
    epsilon: float

    def distance(self, u: Sequence[Tensor]) -> float:
        """‖u − z‖²_D."""
        parts = zip(u, self.points, self.metric, strict=True)
        return math.fsum(float((d * (a - z).square()).sum()) for a, z, d in parts)

    def value(self, u: Sequence[Tensor]) -> float:
        """−ρR(u) − ε‖u − z‖²_D."""
        return -float(self.regularizer.penalty(u)) - self.epsilon * self.distance(u)

    def __str__(self) -> str:
        metric = [d.tolist() if isinstance(d, Tensor) else d for d in self.metric]
        return f"z={_lists(self.points)}, D={metric}, epsilon={self.epsilon!r}"


def check_regularizer(
    regularizer: Regularizer,
    *,
    problems: int = 60,
    shapes: Sequence[Sequence[tuple[int, ...]]] = (((2, 2),), ((1, 2), (2, 1))),
    values: Sequence[float] = (),
    tolerance: float = 1e-9,
    seed: int = 0,
) -> None:
    """Compares a regularizer with brute force (method §3); meant for tests of a user's own one.

    On random small problems in double precision, zeros and ties among them, with several D and ε, it checks
    that ``penalty`` is a finite number and changes nothing; that ``prox_`` gives an admissible point with
    −ρR(u) − ε‖u − z‖²_D at least as large as at any other admissible point tried; that ``project_`` gives
    an admissible point (the same point, if it is one) and no admissible point tried is nearer; and that the
    scalar metric 1.0 means what a tensor of ones means. Points tried have all combinations of 0, z_i, û_i
    as coordinates, one coordinate on a grid between −3 and 3, or are random. A maximizer that survives is
    not proved to be one.

    Args:
        regularizer: What to check; looked at in the first, the fourth and the last of 10 iterations.
        problems: Number of random problems, at least 1.
        shapes: Shapes of the tensors of one problem, taken in turn; a few elements in all.
        values: Further values for a coordinate to try, such as the levels or ends of a constraint.
        tolerance: By how much a tried point may be better, relative to the terms of the value.
        seed: Seed of the problems, so that a failure comes back.

    Raises:
        AssertionError: If a check fails; the message holds the counterexample.
        TypeError: If ``regularizer`` is no Regularizer or an option has the wrong type.
        ValueError: If an option is out of its range.
    """
    if not isinstance(regularizer, Regularizer):
        raise TypeError(f"regularizer must be a Regularizer, got {regularizer!r}.")
    integer("problems", problems, low=1)
    number("tolerance", tolerance, low=0.0)
    if not shapes:
        raise ValueError(f"shapes must hold at least one sequence of shapes, got {shapes!r}.")
    extra = tuple(number(f"values[{i}]", v, low=-math.inf, open_low=True) for i, v in enumerate(values))
    generator = torch.Generator().manual_seed(integer("seed", seed, low=0))
    for index in range(problems):
        problem = _draw(regularizer, shapes[index % len(shapes)], extra, generator)
        _check_penalty(problem)
        _check_prox(problem, extra, tolerance, generator)
        _check_project(problem, extra, tolerance, generator)


def _draw(
    regularizer: Regularizer, shapes: Sequence[tuple[int, ...]], values: Sequence[float], generator: torch.Generator
) -> _Problem:
    def pick(choices: Sequence[float]) -> float:
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    points: list[Tensor] = []
    metric: list[MetricWeight] = []
    coarse = bool(pick((0, 1)))
    for shape in shapes:
        # Multiples of a half make ties and zeros, within a problem and at a threshold.
        z = 4.0 * torch.rand(shape, generator=generator, dtype=_DTYPE) - 2.0
        points.append((2.0 * z).round() / 2.0 if coarse else z)
        d = 0.1 + 2.0 * torch.rand(shape, generator=generator, dtype=_DTYPE)
        metric.append(torch.ones_like(d) if coarse else d)
    held = regularizer.at(int(pick(_STEPS)), _TOTAL).held_in(metric)
    # ε for which R and the distance weigh about the same, where R has a price at all.
    ones = [torch.ones_like(z) for z in points]
    price = float(held.penalty(ones)) / max(sum(z.numel() for z in points), 1)
    scale = price if math.isfinite(price) and price > 0.0 else 1.0
    return _Problem(held, points, metric, scale * pick((0.05, 0.25, 0.5, 1.0, 2.0, 10.0)))


def _check_penalty(problem: _Problem) -> None:
    for u in (problem.points, [torch.zeros_like(z) for z in problem.points]):
        before = _copies(u)
        value = problem.regularizer.penalty(u)
        if (isinstance(value, Tensor) and value.dim() > 0) or not math.isfinite(value):
            what = "it must be a finite number, or a finite tensor without dimensions"
            _fail(problem, f"penalty is {value!r} at u={_lists(u)}: {what}")
        if not _same(u, before):
            _fail(problem, f"penalty changes the weights from {_lists(before)} to {_lists(u)}")


def _check_prox(problem: _Problem, values: Sequence[float], tolerance: float, generator: torch.Generator) -> None:
    found = _copies(problem.points)
    metric = [d.clone() if isinstance(d, Tensor) else d for d in problem.metric]
    problem.regularizer.prox_(found, metric, problem.epsilon)
    if not _same([torch.as_tensor(d) for d in metric], [torch.as_tensor(d) for d in problem.metric]):
        _fail(problem, "prox_ changes the metric")
    _check_point(problem, found, "prox_")
    value = problem.value(found)
    slack = tolerance * (abs(value) + float(problem.regularizer.penalty(problem.points)) + problem.epsilon)
    for u in _candidates(problem, found, values, generator):
        other = problem.value(u)
        if other > value + slack and problem.regularizer.admits(u):
            _fail(
                problem,
                f"prox_ gives u={_lists(found)} with -R(u) - epsilon*|u-z|^2_D = {value!r}, but u={_lists(u)} has"
                f" {other!r}",
            )
    if all(isinstance(d, Tensor) and bool((d == 1.0).all()) for d in metric):
        scalar = _copies(problem.points)
        problem.regularizer.prox_(scalar, [1.0] * len(scalar), problem.epsilon)
        if not all(torch.allclose(a, b) for a, b in zip(scalar, found, strict=True)):
            _fail(problem, f"prox_ gives {_lists(found)} with D as tensors of ones, but {_lists(scalar)} with D=1.0")


def _check_project(problem: _Problem, values: Sequence[float], tolerance: float, generator: torch.Generator) -> None:
    found = _copies(problem.points)
    problem.regularizer.project_(found, problem.metric)
    _check_point(problem, found, "project_")
    distance = problem.distance(found)
    for u in _candidates(problem, found, values, generator):
        other = problem.distance(u)
        if other < distance - tolerance * (1.0 + distance) and problem.regularizer.admits(u):
            _fail(
                problem,
                f"project_ moves z to u={_lists(found)} at the squared distance {distance!r}, but the admissible"
                f" u={_lists(u)} has {other!r}",
            )


def _check_point(problem: _Problem, u: Sequence[Tensor], method: str) -> None:
    if not all(bool(torch.isfinite(a).all()) for a in u):
        _fail(problem, f"{method} gives u={_lists(u)}, which is not finite")
    if not problem.regularizer.admits(u):
        _fail(problem, f"{method} gives u={_lists(u)}, which admits() refuses")


def _candidates(
    problem: _Problem, found: Sequence[Tensor], values: Sequence[float], generator: torch.Generator
) -> Iterator[list[Tensor]]:
    """Points that a maximizer has to be at least as good as."""
    z, u = _flat(problem.points), _flat(found)
    if z.numel() <= 4:
        for combination in itertools.product(*zip([0.0] * z.numel(), z.tolist(), u.tolist(), strict=True)):
            yield _unflat(torch.tensor(combination, dtype=_DTYPE), problem.points)
    grid = [*values, *torch.linspace(-3.0, 3.0, 49, dtype=_DTYPE).tolist()]
    for i in range(z.numel()):
        near = [(1.0 - t) * float(u[i]) + t * goal for goal in (0.0, float(z[i])) for t in (1e-3, 0.05, 0.3)]
        for value in (*grid, *near):
            point = u.clone()
            point[i] = value
            yield _unflat(point, problem.points)
    table = torch.tensor(grid, dtype=_DTYPE)
    for spread in (0.01, 0.1, 1.0):
        for _ in range(10):
            yield _unflat(u + spread * torch.randn(u.shape, generator=generator, dtype=_DTYPE), problem.points)
    for _ in range(60):
        yield _unflat(table[torch.randint(len(grid), u.shape, generator=generator)], problem.points)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def _unflat(values: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = values.split([t.numel() for t in like])
    return [part.view(t.shape) for part, t in zip(parts, like, strict=True)]


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.clone() for t in tensors]


def _same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _lists(tensors: Sequence[Tensor]) -> list[list[float]]:
    return [t.tolist() for t in tensors]


def _fail(problem: _Problem, what: str) -> None:
    raise AssertionError(f"{problem.regularizer!r}: {what} ({problem}).")
