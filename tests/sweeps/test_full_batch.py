"""Full-batch mode without Lightning: J and G of the whole data, and no evaluation that is known already."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsqh import L0, Backtracking, BSQHOptimizer, Cardinality, Curvature
from lightning_bsqh.sweeps.full_batch_options import number_of_rows
from lightning_bsqh.sweeps.micro_batch import AdjointChoice
from lightning_bsqh.sweeps.weighted_mean import WeightedMean
from tests.counting import Counts
from tests.problems import cross_entropy, data, smooth_network
from tests.strategy.small_modules import AlwaysTooLarge

ITERATIONS = 50
SAMPLES = 96
Batches = list[tuple[Tensor, Tensor]]


def batches_of(size: int) -> Batches:
    x, y = data(SAMPLES)
    return list(zip(x.split(size), y.split(size), strict=True))


def make(network: nn.Module, **options: Any) -> BSQHOptimizer:
    options = {"regularizer": L0(rho=1e-4), "metric": "euclidean", "batch_mode": "full", **options}
    return BSQHOptimizer(network, **options)


def train(
    size: int, iterations: int = ITERATIONS, network: nn.Module | None = None, **options: Any
) -> tuple[BSQHOptimizer, list[float], list[Tensor], list[tuple[int, int]]]:
    """The optimizer, J after each iteration, the weights at the end and the evaluations of each iteration."""
    network = network or smooth_network()
    counts = Counts(network)
    optimizer = make(network, **options)
    batches, objectives, evaluations = batches_of(size), [], []
    for _ in range(iterations):
        optimizer.step(lambda batch: cross_entropy(network, *batch), batches=batches)
        assert optimizer.last_step is not None
        objectives.append(optimizer.last_step.objective_after)
        evaluations.append(counts.take())
    return optimizer, objectives, [p.detach().clone() for p in network.parameters()], evaluations


def in_one_batch(iterations: int = ITERATIONS, **options: Any) -> tuple[list[float], list[Tensor]]:
    """The same in mini-batch mode on a batch that is all the data: what full-batch mode has to equal."""
    network = smooth_network()
    optimizer = make(network, batch_mode="mini", **options)
    x, y = data(SAMPLES)
    objectives = []
    for _ in range(iterations):
        optimizer.step(lambda: cross_entropy(network, x, y))
        assert optimizer.last_step is not None
        objectives.append(optimizer.last_step.objective_after)
    return objectives, [p.detach() for p in network.parameters()]


# ---------------------------------------------------------------------- J and G


@pytest.mark.parametrize("size", [1, 7, 64, SAMPLES])
def test_loss_and_gradient_are_those_of_one_batch(size: int) -> None:
    network = smooth_network()
    expected = cross_entropy(network, *data(SAMPLES))
    gradients = torch.autograd.grad(expected, list(network.parameters()))
    # So small an ε that nothing is accepted: grad stays what the sweeps left.
    optimizer = make(network, augmentation=AlwaysTooLarge(), max_trials=1)
    loss = optimizer.step(lambda batch: cross_entropy(network, *batch), batches=batches_of(size))
    assert loss is not None
    assert abs(loss.item() - expected.item()) < 1e-10
    for p, gradient in zip(network.parameters(), gradients, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, gradient, rtol=0.0, atol=1e-10)


# Left to the modes, start, lengths and averaging differ.
LENGTHS = {"metric": "rms", "averaging": 0.0, "augmentation": Curvature(epsilon=62.5, longest=0.3, shortest=0.0)}
REJECTIONS = {"augmentation": Backtracking(1e-2, sigma=3.0, zeta=0.3)}


@pytest.mark.parametrize(
    ("size", "options"),
    [
        *((size, {}) for size in (1, 7, 64, SAMPLES)),
        *((size, options) for size in (7, SAMPLES) for options in (LENGTHS, REJECTIONS)),
    ],
)
def test_same_trajectory_for_all_sizes(size: int, options: dict[str, Any]) -> None:
    objectives, weights = in_one_batch(**options)
    _, found, found_weights, _ = train(size, **options)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(objectives), rtol=0.0, atol=1e-9)
    torch.testing.assert_close(found_weights, weights, rtol=0.0, atol=1e-9)


def test_one_micro_batch_is_bit_identical_to_one_batch() -> None:
    objectives, weights = in_one_batch()
    _, found, found_weights, _ = train(SAMPLES)
    assert found == objectives
    assert all(map(torch.equal, found_weights, weights))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_weighted_mean_of_any_partition(sizes: list[int]) -> None:
    values = torch.randn(sum(sizes), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(sizes)))
    mean = WeightedMean()
    for part in values.split(sizes):
        mean.add(part[:, 0].mean().item(), len(part), [part.mean(0), None])
    assert mean.samples == sum(sizes)
    assert mean.loss == pytest.approx(values[:, 0].mean().item(), abs=1e-14)
    gradient, none = mean.gradients
    torch.testing.assert_close(gradient, values.mean(0), rtol=0.0, atol=1e-14)
    assert none is None


def test_weighted_mean_counts_a_missing_gradient_as_zero() -> None:
    mean = WeightedMean()
    mean.add(1.0, 3, [torch.ones(2), None])
    mean.add(2.0, 1, [None, torch.ones(2)])
    assert mean.loss == 1.25
    assert [g.tolist() for g in mean.gradients if g is not None] == [[0.75, 0.75], [0.25, 0.25]]


def test_weighted_mean_takes_sparse_gradients() -> None:
    mean = WeightedMean()
    for row in (0, 1):
        mean.add(0.0, 1, [torch.sparse_coo_tensor(torch.tensor([[row]]), torch.ones(1), (2,))])
    assert mean.gradients[0] is not None
    assert mean.gradients[0].tolist() == [0.5, 0.5]


# ---------------------------------------------------------------------- evaluations


def calm() -> Backtracking:
    """A constant ε with which every first trial is accepted here."""
    return Backtracking(epsilon=5.0, zeta=1.0, schedule=False)


def test_one_micro_batch_costs_one_forward_and_one_backward() -> None:
    optimizer, _, _, evaluations = train(SAMPLES, augmentation=calm())
    assert optimizer.last_step is not None
    assert optimizer.last_step.trials == 1
    # Only the very first forward is no trial's.
    assert evaluations == [(2, 1)] + (ITERATIONS - 1) * [(1, 1)]


def test_several_micro_batches_take_the_adjoint_along_if_most_first_trials_are_accepted() -> None:
    _, _, _, evaluations = train(32, augmentation=calm())
    # In the first iteration nobody knows whether the data repeat; the second has seen it, so all later ones know.
    assert evaluations[:2] == [(6, 3), (6, 6)]
    assert evaluations[2:] == (ITERATIONS - 2) * [(3, 3)]


def test_several_micro_batches_go_forward_again_if_trials_are_rejected() -> None:
    # Every acceptance makes ε so small that the next trials fail.
    rule = Backtracking(epsilon=1.0, sigma=10.0, zeta=1e-3, schedule=False)
    network = smooth_network()
    counts = Counts(network)
    optimizer = make(network, augmentation=rule, max_trials=20)
    for k in range(20):
        optimizer.step(lambda batch: cross_entropy(network, *batch), batches=batches_of(32))
        assert optimizer.last_step is not None
        assert optimizer.last_step.accepted
        forwards, backwards = counts.take()
        if k >= 3:
            assert optimizer.last_step.trials >= 2
            assert forwards == 3 * (1 + optimizer.last_step.trials)
            assert backwards == 3


@pytest.mark.parametrize("size", [SAMPLES, 32])
def test_after_a_rejection_nothing_is_evaluated_again(size: int) -> None:
    parts = SAMPLES // size
    optimizer, _, weights, evaluations = train(size, 4, augmentation=AlwaysTooLarge(), max_trials=3)
    assert optimizer.last_step is not None
    assert not optimizer.last_step.accepted
    assert [forwards for forwards, _ in evaluations] == [4 * parts, 3 * parts, 3 * parts, 3 * parts]
    assert [backwards for _, backwards in evaluations] == [parts, 0, 0, 0]
    assert all(map(torch.equal, weights, smooth_network().parameters()))


@pytest.mark.parametrize("size", [SAMPLES, 32])
def test_reuse_changes_nothing(size: int) -> None:
    for options in ({}, {**REJECTIONS, "max_trials": 2}):
        _, objectives, weights, evaluations = train(size, **options)
        _, again, weights_again, more = train(size, reuse=False, **options)
        assert again == objectives
        assert all(map(torch.equal, weights, weights_again))
        assert sum(f for f, _ in more) > sum(f for f, _ in evaluations)


class Rescaling(nn.Module):
    """Changes the network's function in a way that is told by the parameters of a part that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.network = smooth_network()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.offset = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.network(x) + self.offset


def of_part(module: Rescaling, **options: Any) -> BSQHOptimizer:
    module.scale.requires_grad_(False)
    return make(module, **options)


def change_weight(module: Rescaling) -> None:
    with torch.no_grad():
        module.network[0].weight.mul_(0.5)


def change_weight_behind_autograd(module: Rescaling) -> None:
    module.network[0].weight.data = 0.5 * module.network[0].weight.data


def change_frozen(module: Rescaling) -> None:
    module.scale.data.fill_(0.5)


def change_attribute(module: Rescaling) -> None:
    module.offset = 0.5


def write_same_weight(module: Rescaling) -> None:
    with torch.no_grad():
        module.network[0].weight.copy_(module.network[0].weight.clone())


def freeze(module: Rescaling) -> None:
    module.network[0].weight.requires_grad_(False)


@pytest.mark.parametrize("size", [SAMPLES, 32])
@pytest.mark.parametrize(
    "change", [change_weight, change_weight_behind_autograd, change_frozen, change_attribute, write_same_weight, freeze]
)
def test_what_others_change_is_noticed(change: Callable[[Rescaling], None], size: int) -> None:
    results = []
    for reuse in (True, False):
        module = Rescaling()
        optimizer = of_part(module, reuse=reuse)
        losses = []
        for k in range(6):
            if k == 4:
                change(module)
            loss = optimizer.step(lambda batch: cross_entropy(module, *batch), batches=batches_of(size))  # noqa: B023
            losses.append(loss)
        results.append((losses, [p.detach() for p in module.parameters()]))
    assert results[0][0] == results[1][0]
    assert all(map(torch.equal, results[0][1], results[1][1]))


@pytest.mark.parametrize("first_changed", [0, 1, 2])
@pytest.mark.parametrize("in_place", [True, False])
def test_changed_data_are_noticed_wherever_they_are(first_changed: int, in_place: bool) -> None:
    results = []
    for reuse in (True, False):
        network = smooth_network()
        optimizer = make(network, reuse=reuse)
        batches, losses = [(x.clone(), y) for x, y in batches_of(32)], []
        for k in range(6):
            if k == 4:
                x, y = batches[first_changed]
                batches[first_changed] = (x.mul_(0.5) if in_place else 0.5 * x, y)
            losses.append(optimizer.step(lambda batch: cross_entropy(network, *batch), batches=batches))  # noqa: B023
        results.append((losses, [p.detach() for p in network.parameters()]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0.0, atol=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("sizes", [(32, 48), (48, 32), (SAMPLES, 32), (32, SAMPLES)])
def test_another_number_of_micro_batches(sizes: tuple[int, int]) -> None:
    _, expected = in_one_batch(8)
    network = smooth_network()
    optimizer = make(network)
    for k in range(8):
        optimizer.step(lambda batch: cross_entropy(network, *batch), batches=batches_of(sizes[k >= 4]))
    torch.testing.assert_close([p.detach() for p in network.parameters()], expected, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_micro_batch_less(missing: int) -> None:
    results = []
    for reuse in (True, False):
        network = smooth_network()
        optimizer = make(network, reuse=reuse)
        for k in range(8):
            batches = [b for i, b in enumerate(batches_of(32)) if k < 4 or i != missing]
            optimizer.step(lambda batch: cross_entropy(network, *batch), batches=batches)  # noqa: B023
        results.append([p.detach() for p in network.parameters()])
    torch.testing.assert_close(*results, rtol=0.0, atol=1e-12)


class Noisy(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(layer, *smooth_network()).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("size", [SAMPLES, 32])
@pytest.mark.parametrize("layer", [nn.Dropout(0.2), nn.BatchNorm1d(6)], ids=["dropout", "batchnorm"])
def test_nothing_is_reused_with_random_numbers_or_running_statistics(layer: nn.Module, size: int) -> None:
    optimizer, _, _, evaluations = train(size, 8, network=Noisy(layer), metric="rms")
    assert optimizer.last_step is not None
    parts = SAMPLES // size
    assert all(forwards >= 2 * parts and backwards == parts for forwards, backwards in evaluations)


def test_batchnorm_keeps_the_statistics_of_one_forward_a_pass() -> None:
    norm = nn.BatchNorm1d(6).double()
    train(32, 5, network=Noisy(norm))
    assert norm.num_batches_tracked is not None
    assert norm.num_batches_tracked.item() == 15
    expected = torch.zeros(6, dtype=torch.float64)
    for _ in range(5):
        for x, _ in batches_of(32):
            expected = 0.9 * expected + 0.1 * x.mean(0)
    assert norm.running_mean is not None
    torch.testing.assert_close(norm.running_mean, expected)


def test_who_listens_to_gradients_hears_them_once_a_pass() -> None:
    network = smooth_network()
    heard: list[Tensor] = []
    network[0].weight.register_hook(heard.append)
    train(32, 4, network=network)
    assert len(heard) == 4 * 3


def test_adjoint_choice_is_the_cheaper_one() -> None:
    choice = AdjointChoice(memory=4)
    assert not choice.along  # nothing is known yet
    for trials, along in [(1, True), (2, False), (1, True), (1, True), (3, False), (1, False), (1, False), (1, False)]:
        choice.observe(trials)
        assert choice.along is along
    choice.observe(1)
    assert choice.along


# ---------------------------------------------------------------------- data


def test_a_data_loader_that_shuffles() -> None:
    x, y = data(SAMPLES)
    loader = DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True)
    network = smooth_network()
    optimizer = make(network)
    for _ in range(ITERATIONS):
        optimizer.step(lambda batch: cross_entropy(network, *batch), batches=loader)
    _, expected = in_one_batch()
    torch.testing.assert_close([p.detach() for p in network.parameters()], expected, rtol=0.0, atol=1e-9)


def test_a_closure_over_all_data_needs_no_batches() -> None:
    network = smooth_network()
    counts = Counts(network)
    optimizer = make(network, augmentation=calm())
    for _ in range(ITERATIONS):
        optimizer.step(lambda: cross_entropy(network, *data(SAMPLES)))
    assert counts.take() == (ITERATIONS + 1, ITERATIONS)
    assert all(map(torch.equal, network.parameters(), in_one_batch(augmentation=calm())[1]))


def test_parameters_without_their_module() -> None:
    network = smooth_network()
    optimizer = make(list(network.parameters()))  # type: ignore[arg-type]
    for _ in range(ITERATIONS):
        optimizer.step(lambda batch: cross_entropy(network, *batch), batches=batches_of(7))
    expected = in_one_batch()[1]
    torch.testing.assert_close([p.detach() for p in network.parameters()], expected, rtol=0.0, atol=1e-9)


def test_count_samples() -> None:
    network = smooth_network()
    optimizer = make(network, count_samples=lambda batch: len(batch["classes"]))
    batches = [{"unused": torch.zeros(3, 2), "x": x, "classes": y} for x, y in batches_of(7)]
    for _ in range(5):
        optimizer.step(lambda batch: cross_entropy(network, batch["x"], batch["classes"]), batches=batches)
    torch.testing.assert_close([p.detach() for p in network.parameters()], in_one_batch(5)[1], rtol=0.0, atol=1e-12)


def test_first_dimension() -> None:
    x = torch.zeros(5, 2)
    for batch in (x, [x, torch.zeros(7)], {"a": "text", "b": (torch.tensor(1.0), x)}, (3, [[], [x]])):
        assert number_of_rows(batch) == 5
    with pytest.raises(ValueError, match=r"type str cannot be told.*count_samples"):
        number_of_rows("text")


# ---------------------------------------------------------------------- stopping, checkpoints


def test_converges_below_kappa() -> None:
    network = smooth_network()
    optimizer = make(network, kappa=1e-5, augmentation=Backtracking(epsilon=10.0, schedule=False))
    taus = []
    while not optimizer.finished:
        optimizer.step(lambda batch: cross_entropy(network, *batch), batches=batches_of(32))
        assert optimizer.last_step is not None
        if optimizer.last_step.accepted:
            taus.append(optimizer.last_step.tau)
    assert optimizer.converged
    assert taus[-1] < 1e-5
    assert min(taus[:-1]) >= 1e-5
    rule = Backtracking(epsilon=10.0, schedule=False)
    again = make(smooth_network(), kappa=1e-5, augmentation=rule)
    again.load_state_dict(optimizer.state_dict())
    assert again.converged
    stricter = make(smooth_network(), kappa=1e-6, augmentation=rule)
    stricter.load_state_dict(optimizer.state_dict())
    assert not stricter.converged


def test_does_not_converge_while_a_constraint_tightens() -> None:
    network = smooth_network()
    # With so large an ε all steps are short.
    rule = Backtracking(epsilon=1e9, schedule=False)
    optimizer = make(
        network, regularizer=Cardinality(sparsity=0.5, ramp=(0.2, 0.6)), augmentation=rule, max_iterations=10
    )
    converged = []
    while not optimizer.finished:
        optimizer.step(lambda batch: cross_entropy(network, *batch), batches=batches_of(32))
        converged.append(optimizer.converged)
    assert len(converged) >= 6
    assert not any(converged[:6])
    assert optimizer.sparsity() == 0.5


def test_max_iterations_is_the_length_of_the_training() -> None:
    network = smooth_network()
    optimizer = BSQHOptimizer(network, batch_mode="full", max_iterations=7, kappa=0.0)
    assert optimizer.total_steps == 7
    assert isinstance(optimizer.regularizer, Cardinality)
    while not optimizer.finished:
        optimizer.step(lambda batch: cross_entropy(network, *batch), batches=batches_of(32))
    assert optimizer.iterations == 7
    assert not optimizer.converged
    assert optimizer.meets_constraint()


@pytest.mark.parametrize("size", [SAMPLES, 32])
def test_resumed_is_bit_identical(size: int) -> None:
    network = smooth_network()
    optimizer = make(network, metric="rms")
    for k in range(12):
        if k == 6:
            weights = {name: value.clone() for name, value in network.state_dict().items()}
            state = copy.deepcopy(optimizer.state_dict())
        optimizer.step(lambda batch: cross_entropy(network, *batch), batches=batches_of(size))
    other = smooth_network(seed=3)
    other.load_state_dict(weights)
    resumed = make(other, metric="rms")
    resumed.load_state_dict(state)
    for _ in range(6):
        resumed.step(lambda batch: cross_entropy(other, *batch), batches=batches_of(size))
    assert all(map(torch.equal, other.parameters(), network.parameters()))
    assert resumed.last_step == optimizer.last_step


# ---------------------------------------------------------------------- bad input


OPTIONS: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"batch_mode": "whole"}, ValueError, ["batch_mode", "'whole'", "'mini' or 'full'"]),
    ({"kappa": -1.0}, ValueError, ["kappa", "-1.0", "[0, inf)"]),
    ({"kappa": math.nan}, ValueError, ["kappa", "nan"]),
    ({"kappa": "0"}, TypeError, ["kappa", "'0'"]),
    ({"max_iterations": 0}, ValueError, ["max_iterations", "0", "at least 1"]),
    ({"max_iterations": 1.5}, TypeError, ["max_iterations", "1.5"]),
    ({"count_samples": 3}, TypeError, ["count_samples", "3"]),
    ({"reuse": 1}, TypeError, ["reuse", "1"]),
    ({"batch_mode": "mini", "max_iterations": 5}, ValueError, ["max_iterations=5", "batch_mode='full'"]),
    ({"batch_mode": "mini", "count_samples": len}, ValueError, ["count_samples", "batch_mode='full'"]),
]


@pytest.mark.parametrize(("options", "error", "words"), OPTIONS, ids=lambda value: str(value)[:40])
def test_options(options: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        make(smooth_network(), **options)
    assert all(word in str(raised.value) for word in words)


def test_batches_without_a_length() -> None:
    network = smooth_network()
    with pytest.raises(TypeError, match=r"batches must have a length.*generator"):
        make(network).step(lambda batch: cross_entropy(network, *batch), batches=(b for b in batches_of(32)))


def test_no_batches() -> None:
    network = smooth_network()
    with pytest.raises(ValueError, match="at least one micro-batch"):
        make(network).step(lambda batch: cross_entropy(network, *batch), batches=[])


def test_batches_in_mini_batch_mode() -> None:
    network = smooth_network()
    with pytest.raises(ValueError, match="batches is for batch_mode='full'"):
        make(network, batch_mode="mini").step(lambda batch: cross_entropy(network, *batch), batches=batches_of(32))


@pytest.mark.parametrize("count", [0, 2.0, None, True])
def test_count_samples_gives_no_number(count: Any) -> None:
    network = smooth_network()
    with pytest.raises(ValueError, match="count_samples must return the number of samples"):
        make(network, count_samples=lambda batch: count).step(
            lambda batch: cross_entropy(network, *batch), batches=batches_of(32)
        )


def test_a_loss_that_is_not_finite_at_the_start() -> None:
    network = smooth_network()
    with pytest.raises(ValueError, match="loss is nan at the first batch"):
        make(network).step(lambda batch: math.nan * cross_entropy(network, *batch), batches=batches_of(32))


def test_a_pass_with_a_loss_that_is_not_finite_is_skipped() -> None:
    network = smooth_network()
    optimizer = make(network)
    factors = [1.0, 1.0, 1.0]
    batches = [(i, *batch) for i, batch in enumerate(batches_of(32))]

    def loss(batch: tuple[int, Tensor, Tensor]) -> Tensor:
        return factors[batch[0]] * cross_entropy(network, *batch[1:])

    optimizer.step(loss, batches=batches)
    before = [p.detach().clone() for p in network.parameters()]
    factors[1] = math.inf
    optimizer.step(loss, batches=batches)
    assert optimizer.last_step is not None
    assert optimizer.last_step.skipped
    assert optimizer.skipped == 1
    assert all(map(torch.equal, network.parameters(), before))


class Bent(nn.Module):
    """Has a layer that is not affine, so that its true K is summed over the micro-batches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 8)
        self.cell = nn.GRUCell(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inner(x))
        return self.head(self.cell(x, x.sin()))


@pytest.mark.parametrize("size", [1, 7, 64])
def test_layers_that_are_not_affine(size: int) -> None:
    results = []
    for micro in (SAMPLES, size):
        torch.manual_seed(0)
        network = Bent().double()
        rule = Backtracking(epsilon=0.05, sigma=1.5, zeta=0.9, schedule=False)
        optimizer, objectives, weights, _ = train(micro, 12, network, augmentation=rule, layers=["cell"])
        assert optimizer.last_step is not None
        assert optimizer.last_step.hamiltonian_gain >= 0.0
        results.append((objectives, weights))
    assert results[0][0] == sorted(results[0][0], reverse=True)
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-12)


def test_gauss_seidel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sweep='gauss-seidel' cannot be used with batch_mode='full'"):
        make(smooth_network(), sweep="gauss-seidel")
