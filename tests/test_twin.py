"""The optimizer and its readable twin, side by side for 100 steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.func import functional_call

from lightning_bsqh import (
    L0,
    L1,
    L2,
    Backtracking,
    Box,
    BSQHOptimizer,
    Cardinality,
    Curvature,
    Discrete,
    ElasticNet,
    GroupL0,
    LHalf,
    LTwoThirds,
)
from tests.problems import cross_entropy, data, smooth_network
from tests.reference.twin import (
    BacktrackingTwin,
    ByName,
    CurvatureTwin,
    Groups,
    InBox,
    Levels,
    Penalty,
    Ramp,
    RampOfRows,
    RampWithL2,
    Twin,
)

STEPS = 100
#: Where the loss of one batch is a thousandfold in trainings that do not test every step.
ODD = (72, 90)

REGULARIZERS = {
    "l0": (L0(rho=2e-4), Penalty("l0", 2e-4)),
    "l1": (L1(rho=1e-3), Penalty("l1", 1e-3)),
    "l2": (L2(rho=1e-3), Penalty("l2", 1e-3)),
    "cardinality": (Cardinality(sparsity=0.8), Ramp(0.8, STEPS)),
    "cardinality per layer": (Cardinality(sparsity=0.8, scope="layer"), Ramp(0.8, STEPS, per_layer=True)),
    "elastic net": (ElasticNet(rho_l1=1e-3, rho_l2=2e-3), Penalty("elastic", (1e-3, 2e-3))),
    "l half": (LHalf(rho=5e-4), Penalty("half", 5e-4)),
    "l two thirds": (LTwoThirds(rho=5e-4), Penalty("two_thirds", 5e-4)),
    "rows": (GroupL0(rho=5e-3), Groups(rho=5e-3)),
    "columns by size": (GroupL0(rho=3e-4, groups="input", weight="size"), Groups(rho=3e-4, dim=1, by_size=True)),
    "ternary": (Discrete.ternary(0.3), Levels((-0.3, 0.0, 0.3), STEPS)),
    "levels at once": (Discrete([-0.5, -0.2, 0.1, 0.4, 0.8], ramp=(0.0, 0.0)), Levels((-0.5, -0.2, 0.1, 0.4, 0.8))),
    "box": (Box(-0.3, 0.2), InBox(-0.3, 0.2)),
    "box, l0": (Box(-0.3, 0.2, L0(rho=2e-4)), InBox(-0.3, 0.2, Penalty("l0", 2e-4))),
    "box, l1": (Box(0.05, 0.4, L1(rho=1e-3)), InBox(0.05, 0.4, Penalty("l1", 1e-3))),
    "box, l half": (Box(0.0, 0.3, LHalf(rho=5e-4)), InBox(0.0, 0.3, Penalty("half", 5e-4))),
    "box, cardinality": (Box(-0.3, 0.2, Cardinality(0.8)), Ramp(0.8, STEPS, low=-0.3, high=0.2)),
    "cardinality and decay": (Cardinality(sparsity=0.8) + L2(rho=2e-3), RampWithL2(0.8, STEPS, rho=2e-3)),
    "cardinality of rows": (Cardinality(sparsity=0.6, groups="output"), RampOfRows(0.6, STEPS)),
    "by name": (
        {"2": GroupL0(rho=5e-3), "[04]": Cardinality(0.8)},
        ByName([(Groups(rho=5e-3), [1]), (Ramp(0.8, STEPS), [0, 2])]),
    ),
}
# The small starts make rejections; smaller ones would make the trajectory chaotic and the comparison idle.
DEFAULT = ("rms", "curvature")
# Rules and metrics that make test drives, with small starts; the default with both, all others make test-all.
OFTEN = (DEFAULT, ("euclidean", "backtracking"), ("rms", "lengths"))
STARTS = {"euclidean": {"small": 0.1, "large": 20.0}, "rms": {"small": 5.0, "large": 200.0}}
RULES = {
    "backtracking": lambda e: (Backtracking(epsilon=e, sigma=1.5, zeta=0.97), BacktrackingTwin(e, 1.5, 0.97)),
    "curvature": lambda e: (
        Curvature(epsilon=e, floor=0.2, longest=math.inf, shortest=0.0),
        CurvatureTwin(e, floor=0.2),
    ),
    "lengths": lambda e: (
        Curvature(epsilon=e, longest=0.3, shortest=0.1),
        CurvatureTwin(e, longest=0.3, shortest=0.1),
    ),
    "rms": lambda e: (Curvature(), CurvatureTwin(10_000.0, longest=0.3, shortest=0.12)),
    "euclidean": lambda e: (Curvature(), CurvatureTwin(5.0)),
}


CASES = [
    pytest.param(
        name,
        metric,
        rule,
        start,
        marks=() if (metric, rule) in OFTEN[: 3 if start == "small" else 1] else pytest.mark.slow,
    )
    for rule in ("backtracking", "curvature", "lengths")
    for metric in STARTS
    for name in REGULARIZERS
    for start in ("small", "large")
]


@pytest.mark.parametrize(("name", "metric", "rule", "start"), CASES)
def test_same_trajectory_as_the_twin(name: str, metric: str, rule: str, start: str) -> None:
    compare(smooth_network(), name, metric, rule, STARTS[metric][start])


@pytest.mark.parametrize("averaging", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("metric", ["rms", "euclidean"])
@pytest.mark.parametrize("name", ["l0", "cardinality"])
def test_averages_of_the_gradient(name: str, metric: str, averaging: float) -> None:
    compare(smooth_network(), name, metric, "curvature", STARTS[metric]["small"], averaging=averaging)


@pytest.mark.parametrize("metric", ["rms", "euclidean"])
@pytest.mark.parametrize("name", ["l0", "cardinality", "box, l half", "by name"])
def test_what_is_left_to_the_metric(name: str, metric: str) -> None:
    compare(smooth_network(), name, metric, metric, math.nan)


@pytest.mark.parametrize("name", ["l0", "cardinality", "cardinality per layer", "rows"])
def test_layers_that_no_gradient_reaches_at_first(name: str) -> None:
    network = smooth_network()
    with torch.no_grad():
        for parameter in list(network.parameters())[-2:]:
            parameter.zero_()
    compare(network, name, "rms", "curvature", STARTS["rms"]["large"])


@pytest.mark.parametrize("name", ["l0", "cardinality", "ternary"])
@pytest.mark.parametrize("start", ["small", "large"])
def test_single_batches_with_a_gradient_far_longer_than_usual(name: str, start: str) -> None:
    seen = compare(smooth_network(), name, "rms", "curvature", STARTS["rms"][start], outlier=30.0)
    assert seen["too_long"] > 5


@pytest.mark.parametrize("trial_every", [pytest.param(3, marks=pytest.mark.slow), 8])
@pytest.mark.parametrize("metric", ["euclidean", "rms"])
@pytest.mark.parametrize("name", ["l0", "l1", "cardinality", "rows", "box, l half", "cardinality and decay"])
def test_untested_steps_and_what_takes_them_back(name: str, metric: str, trial_every: int) -> None:
    # Calm needs accepted steps, and a small network on batches of noise has few along an average of them.
    seen = compare(
        smooth_network(),
        name,
        metric,
        "curvature",
        STARTS[metric]["large"],
        trial_every=trial_every,
        averaging=0.3,
    )
    assert seen["untested"] > 15
    assert seen["back"] >= 1


def compare(
    network: torch.nn.Module,
    name: str,
    metric: str,
    rule: str,
    epsilon: float,
    outlier: float = 1.0,
    trial_every: int = 1,
    averaging: float | None = None,
) -> dict[str, int]:
    """Drives both.

    Args:
        network: Is trained.
        name: Of the regularizer.
        metric: Of the optimizer.
        rule: Its name.
        epsilon: ε⁰.
        outlier: Factor of the loss in every ninth iteration.
        trial_every: Of the optimizer.
        averaging: Of the optimizer.

    Returns:
        In how many iterations the rule found the gradient too long for its ε, a step was not tested, was taken back.
    """
    names = [n for n, _ in network.named_parameters()]
    x, y = data()
    batches = [slice(0, 32), slice(32, 64), slice(64, 96)]
    regularizer, penalty = REGULARIZERS[name]
    augmentation, twin_rule = RULES[rule](epsilon)
    optimizer = BSQHOptimizer(
        network,
        regularizer=regularizer,
        augmentation=augmentation,
        metric=metric,
        total_steps=STEPS,
        trial_every=trial_every,
        averaging=averaging,
    )
    shapes = [p.detach().numpy().copy() for p in network.parameters()]
    twin = Twin(
        u=shapes,
        regularized=[i for i, p in enumerate(shapes) if p.ndim >= 2],
        regularizer=penalty,
        rule=twin_rule,
        metric=metric,
        total=STEPS,
        trial_every=trial_every,
        averaging=averaging,
    )
    accepted = []
    seen = {"too_long": 0, "untested": 0, "back": 0}
    for step in range(STEPS):
        batch, factor = batches[step % 3], outlier if step % 9 == 8 else 1.0
        factor = 1000.0 if step in ODD and trial_every > 1 else factor

        def loss_and_gradient(
            u: list[np.ndarray], batch: slice = batch, factor: float = factor
        ) -> tuple[float, list[np.ndarray]]:
            tensors = [torch.tensor(a, requires_grad=True) for a in u]
            outputs = functional_call(network, dict(zip(names, tensors, strict=True)), (x[batch],))
            loss = factor * torch.nn.functional.cross_entropy(outputs, y[batch])
            gradient = torch.autograd.grad(loss, tensors)
            return loss.item(), [g.numpy() for g in gradient]

        expected = twin.step(loss_and_gradient)
        optimizer.step(lambda batch=batch, factor=factor: factor * cross_entropy(network, x[batch], y[batch]))
        report = optimizer.last_step
        assert report is not None
        accepted.append(report.accepted)
        seen["too_long"] += expected["too_long"]
        seen["untested"] += report.accepted and not report.trials
        seen["back"] += report.skipped
        assert report.skipped == expected.get("back", False)
        assert report.accepted == expected["accepted"]
        assert report.trials == expected["trials"]
        np.testing.assert_allclose(report.epsilon, expected["epsilon"], rtol=1e-7)
        np.testing.assert_allclose(report.tau, expected["tau"], rtol=1e-6, atol=1e-18)
        np.testing.assert_allclose(report.loss_decrease, expected["loss_decrease"], rtol=1e-6, atol=1e-13)
        if "gain" in expected:
            # û maximizes the K along the gradient that it was made of.
            np.testing.assert_allclose(report.hamiltonian_gain, expected["gain"], rtol=1e-6, atol=1e-12)
            assert report.hamiltonian_gain >= -1e-12 or report.tightened
    for parameter, reference in zip(network.parameters(), twin.u, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), reference, rtol=1e-7, atol=1e-9)
        assert (parameter.detach().numpy() == 0).tolist() == (reference == 0).tolist()
    assert any(accepted)
    return seen
