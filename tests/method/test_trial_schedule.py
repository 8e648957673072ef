"""Steps that are not tested by a trial: when there are any, what they cost, and how they are taken back."""

from __future__ import annotations

import copy
import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_bsqh import BSQHOptimizer, BSQHStrategy, Cardinality
from tests.problems import cross_entropy, data, smooth_network
from tests.strategy.small_modules import Record, SmallModule

X, Y = data()
PARTS = [slice(0, 32), slice(32, 64), slice(64, 96)]


class Training:
    """Steps of a small network; the loss of some batches is multiplied by a factor.

    Args:
        factors: By the number of the step.
        options: Of the optimizer.
    """

    def __init__(self, factors: dict[int, float] | None = None, **options: Any) -> None:
        self.network = smooth_network()
        options = {"regularizer": Cardinality(0.5), "total_steps": 200, "trial_every": "auto", **options}
        self.optimizer = BSQHOptimizer(self.network, **options)
        self.factors = factors or {}
        self.calls = 0

    def loss(self) -> torch.Tensor:
        self.calls += 1
        step = self.optimizer.iterations
        part = PARTS[step % 3]
        return self.factors.get(step, 1.0) * cross_entropy(self.network, X[part], Y[part])

    def run(self, steps: int) -> Training:
        for _ in range(steps):
            self.optimizer.step(self.loss)
        return self

    def weights(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.network.parameters()]

    def until_untested(self, after: int = 120) -> Training:
        """To the first step after so many that is not tested, and is followed by another such step."""
        self.run(after)
        while self.optimizer.last_step.trials or self.optimizer._training.schedule.is_due:
            self.run(1)
        return self


def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_by_default_every_step_is_tested() -> None:
    training = Training(trial_every=1)
    for _ in range(100):
        training.run(1)
        assert training.optimizer.last_step.trials >= 1
    assert not any("before" in state for state in training.optimizer.state.values())


@pytest.mark.parametrize("trial_every", [2, 3, "auto"])
def test_how_often(trial_every: int | str) -> None:
    training = Training(trial_every=trial_every)
    longest = 8 if trial_every == "auto" else trial_every
    gap, gaps = 0, []
    for step in range(200):
        calls = training.calls
        training.run(1)
        report = training.optimizer.last_step
        # One forward sweep, and one for every trial, a projection aside.
        assert training.calls - calls >= 1 + report.trials
        gap += 1
        if report.trials:
            gaps.append(gap)
            gap = 0
        else:
            assert step >= 50
            assert report.accepted
            assert not report.tightened
            assert training.calls - calls == 1
            assert math.isnan(report.loss_decrease)
    assert max(gaps) == longest
    assert training.optimizer.accepted == 200


@pytest.mark.parametrize("factor", [1e6, math.nan, math.inf])
def test_a_step_that_went_astray_is_taken_back(factor: float) -> None:
    training = Training().until_untested()
    before = training.weights()
    accepted, skipped, epsilon = (
        training.optimizer.accepted,
        training.optimizer.skipped,
        training.optimizer.augmentation.epsilon,
    )
    training.run(1)
    assert not equal(training.weights(), before)
    training.factors = {training.optimizer.iterations: factor}
    training.run(1)
    report = training.optimizer.last_step
    assert equal(training.weights(), before)
    assert (report.accepted, report.skipped, report.trials) == (False, True, 0)
    assert training.optimizer.accepted == accepted
    # What is counted as skipped are batches with a loss that is not finite.
    assert training.optimizer.skipped - skipped == int(not math.isfinite(factor))
    assert training.optimizer.augmentation.epsilon > epsilon
    training.run(1)
    assert training.optimizer.last_step.trials >= 1


def test_weights_that_somebody_else_has_changed_stay() -> None:
    training = Training().until_untested()
    training.run(1)
    with torch.no_grad():
        training.network[0].weight.mul_(2.0)
    changed = training.weights()
    training.factors = {training.optimizer.iterations: math.nan}
    training.run(1)
    assert equal(training.weights(), changed)


def test_a_gradient_far_longer_than_usual_is_tested() -> None:
    training = Training().until_untested()
    # So long that D does not follow, and still not a loss that is far above the others.
    hooks = [p.register_hook(lambda g: 100.0 * g) for p in training.network.parameters()]
    training.run(1)
    for hook in hooks:
        hook.remove()
    assert training.optimizer.last_step.trials >= 1


@settings(max_examples=25, deadline=None)
@given(
    saved_at=st.integers(40, 110),
    odd=st.dictionaries(st.integers(45, 125), st.sampled_from([1e3, math.nan]), max_size=3),
    trial_every=st.sampled_from([3, "auto"]),
)
def test_resumed_equals_uninterrupted(saved_at: int, odd: dict[int, float], trial_every: int | str) -> None:
    training = Training(odd, trial_every=trial_every).run(saved_at)
    saved = copy.deepcopy((training.network.state_dict(), training.optimizer.state_dict()))
    training.run(130 - saved_at)
    resumed = Training(odd, trial_every=trial_every)
    resumed.network.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    resumed.run(130 - saved_at)
    assert equal(training.weights(), resumed.weights())
    assert training.optimizer.augmentation.epsilon == resumed.optimizer.augmentation.epsilon
    assert training.optimizer.accepted == resumed.optimizer.accepted


def test_a_copy_takes_back_as_well() -> None:
    training = Training().until_untested()
    before = training.weights()
    training.run(1)
    twin = copy.deepcopy(training)
    twin.factors = {twin.optimizer.iterations: math.nan}
    twin.run(1)
    assert equal(twin.weights(), before)


@pytest.mark.parametrize(
    ("option", "kind", "words"),
    [
        (0, ValueError, "trial_every must be at least 1"),
        (2.5, TypeError, "trial_every must be an integer"),
        (True, TypeError, "trial_every must be an integer"),
        ("often", ValueError, "trial_every must be 'auto' or an integer of at least 1, got 'often'"),
    ],
)
def test_bad_options(option: Any, kind: type[Exception], words: str) -> None:
    for make in (lambda: BSQHStrategy(trial_every=option), lambda: BSQHOptimizer(smooth_network(), trial_every=option)):
        with pytest.raises(kind, match=words):
            make()


@pytest.mark.parametrize("other", [{"batch_mode": "full"}, {"sweep": "gauss-seidel"}])
def test_where_every_step_has_to_be_tested(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="trial_every=4 is for batch_mode='mini' with sweep='jacobi'"):
        BSQHStrategy(trial_every=4, **other)
    assert BSQHStrategy(trial_every="auto", **other) is not None


@pytest.mark.parametrize(
    "change",
    [{"interval": "x"}, {"untested": None}, {"loss_spread": []}],
    ids=lambda change: next(iter(change)),
)
def test_a_damaged_state_is_refused(change: dict[str, Any]) -> None:
    training = Training().run(3)
    state = training.optimizer.state_dict()
    state["bsqh"]["trial_schedule"] = {**state["bsqh"]["trial_schedule"], **change}
    with pytest.raises(ValueError, match="trial_schedule"):
        Training().optimizer.load_state_dict(state)


def test_weights_of_another_shape_are_refused() -> None:
    training = Training().until_untested()
    state = copy.deepcopy(training.optimizer.state_dict())
    state["state"][0]["before"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"before of a parameter in .* has the shape"):
        Training().optimizer.load_state_dict(state)


class Counting(SmallModule):
    """Counts the runs of training_step, those of trials included."""

    def __init__(self) -> None:
        super().__init__()
        self.record = Record()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.record.add(torch.is_grad_enabled())
        return super().training_step(batch, batch_idx)


def test_in_a_trainer(make_trainer: Any, make_loader: Any) -> None:
    module = Counting()
    # On batches of eight samples averages are often rejected, after which every step is tested.
    trainer = make_trainer(BSQHStrategy(trial_every="auto", averaging=0.0), max_epochs=80)
    trainer.fit(module, make_loader())
    forwards, trials = module.record.items.count(True), module.record.items.count(False)
    assert trainer.global_step == forwards == 240
    assert 50 <= trials < 200
    assert sum(int((p == 0).sum()) for p in module.parameters() if p.dim() > 1) == round(0.9 * 40)


@pytest.mark.parametrize(("accumulate", "averaging"), [(1, 0.0), (3, None)])
def test_a_checkpoint_between_untested_steps(
    make_trainer: Any, make_loader: Any, tmp_path: Any, accumulate: int, averaging: float | None
) -> None:
    class StopsAfterUntested(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.should_stop = any("before" in state for state in trainer.optimizers[0].state.values())

    def fit(*callbacks: pl.Callback, **options: Any) -> tuple[Any, nn.Module]:
        torch.manual_seed(0)
        module = SmallModule()
        strategy = BSQHStrategy(total_steps=240, trial_every="auto", averaging=averaging)
        trainer = make_trainer(strategy, max_epochs=60, accumulate_grad_batches=accumulate, callbacks=list(callbacks))
        trainer.fit(module, make_loader(samples=24 * accumulate), weights_only=True, **options)
        return trainer, module

    _, whole = fit()
    trainer, _ = fit(StopsAfterUntested())
    assert trainer.current_epoch < 60
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    assert any("before" in state for state in trainer.optimizers[0].state.values())
    _, resumed = fit(ckpt_path=tmp_path / "half.ckpt")
    assert equal(list(whole.parameters()), list(resumed.parameters()))
