"""The check that users run on their own regularizers: it passes all of ours and finds what is wrong."""

from __future__ import annotations

import pytest
import torch

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
    check_regularizer,
)

OURS: list[tuple[Regularizer, tuple[float, ...]]] = [
    (L0(rho=1e-5), ()),
    (L1(rho=2.0), ()),
    (L2(rho=0.3), ()),
    (ElasticNet(rho_l1=0.5, rho_l2=0.2), ()),
    (LHalf(rho=0.7), ()),
    (LTwoThirds(rho=1e-3), ()),
    (GroupL0(rho=0.5), ()),
    (GroupL0(rho=0.5, groups="input", weight="size"), ()),
    (Cardinality(0.5), ()),
    (Cardinality(0.5, scope="layer"), ()),
    (Discrete.ternary(0.7), (-0.7, 0.7)),
    (Discrete.binary(0.7, ramp=(0.0, 0.0)), (-0.7, 0.7)),
    (Box(-0.4, 1.1, Discrete([-1.0, -0.25, 1.0])), (-0.4, -0.25, 1.1)),
    (Box(-0.4, 1.1), (-0.4, 1.1)),
    (Box(-0.4, 1.1, L0(rho=1.0)), (-0.4, 1.1)),
    (Box(-0.4, 1.1, LTwoThirds(rho=1.0)), (-0.4, 1.1)),
    (Box(-0.4, 1.1, GroupL0(rho=1.0)), (-0.4, 1.1)),
    (Box(-0.4, 1.1, Cardinality(0.5, scope="layer")), (-0.4, 1.1)),
]


@pytest.mark.parametrize(("regularizer", "values"), OURS, ids=lambda value: str(value)[:60])
def test_ours_pass(regularizer: Regularizer, values: tuple[float, ...]) -> None:
    check_regularizer(regularizer, problems=24, values=values)


class WrongThreshold(L0):
    """Forgets the square: keeps where εD|z| > ρ."""

    def prox_(self, points, metric, epsilon):
        for z, d in zip(points, metric, strict=True):
            z.masked_fill_(epsilon * d * z.abs() <= self.rho, 0.0)


class EpsilonHalved(L1):
    """The prox for ε/2, the other convention."""

    def prox_(self, points, metric, epsilon):
        super().prox_(points, metric, epsilon / 2.0)


class NoMetric(L2):
    """Leaves D out."""

    def prox_(self, points, metric, epsilon):
        super().prox_(points, [1.0] * len(points), epsilon)


class ScalarMetricIgnored(L0):
    """Treats a scalar D as 2."""

    def prox_(self, points, metric, epsilon):
        super().prox_(points, [d if isinstance(d, torch.Tensor) else 2.0 for d in metric], epsilon)


class ClipFirst(Box):
    """Thresholds the clipped point by its own size: the cost of clipping is left out."""

    def prox_(self, points, metric, epsilon):
        self.project_(points, metric)
        self.regularizer.prox_(points, metric, epsilon)


class ClipsMetric(L1):
    def prox_(self, points, metric, epsilon):
        super().prox_(points, metric, epsilon)
        for d in metric:
            if isinstance(d, torch.Tensor):
                d.clamp_(max=0.5)


class TensorPenalty(L1):
    def penalty(self, weights):
        return super().penalty(weights).view(1)


class NotFinite(L1):
    def prox_(self, points, metric, epsilon):
        for z in points:
            z.mul_(float("nan"))


class NotAdmissible(Discrete):
    def prox_(self, points, metric, epsilon):
        return


class FarProjection(Discrete):
    """Projects onto a level, but not the nearest."""

    def project_(self, weights, metric):
        for w in weights:
            w.fill_(self.levels[0])

    def prox_(self, points, metric, epsilon):
        super().project_(points, metric)


@pytest.mark.parametrize(
    ("regularizer", "words"),
    [
        (WrongThreshold(rho=0.3), ["prox_ gives", "epsilon", "L0(rho=0.3)"]),
        (EpsilonHalved(rho=0.3), ["prox_ gives"]),
        (NoMetric(rho=0.3), ["prox_ gives"]),
        (ScalarMetricIgnored(rho=0.3), ["D=1.0"]),
        (ClipFirst(-0.25, 0.25, L0(rho=1.0)), ["prox_ gives"]),
        (ClipsMetric(rho=0.3), ["changes the metric"]),
        (TensorPenalty(rho=0.3), ["penalty is", "finite number"]),
        (NotFinite(rho=0.3), ["not finite"]),
        (NotAdmissible([-1.0, 1.0], ramp=(0.0, 0.0)), ["admits() refuses"]),
        (FarProjection([-1.0, 1.0], ramp=(0.0, 0.0)), ["project_ moves z", "squared distance"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_wrong_ones_are_named_with_a_counterexample(regularizer: Regularizer, words: list[str]) -> None:
    with pytest.raises(AssertionError) as raised:
        check_regularizer(regularizer)
    assert all(word in str(raised.value) for word in [*words, "z=[", "D=["]), str(raised.value)


def test_a_failure_comes_back_with_its_seed() -> None:
    def message(seed: int) -> str:
        with pytest.raises(AssertionError) as raised:
            check_regularizer(NoMetric(rho=0.3), seed=seed)
        return str(raised.value)

    assert message(3) == message(3) != message(4)


def test_refusals() -> None:
    with pytest.raises(TypeError, match="regularizer must be a Regularizer, got 1"):
        check_regularizer(1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^problems must be at least 1 and at most 1e\+15, got 0\.$"):
        check_regularizer(L0(), problems=0)
    with pytest.raises(ValueError, match=r"values\[0\] must lie in"):
        check_regularizer(L0(), values=[float("nan")])
    with pytest.raises(ValueError, match="shapes must hold"):
        check_regularizer(L0(), shapes=[])
