"""What cannot work is refused with one clear sentence before or at the first batch; the module stays as it was."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh import L0, L1, L2, Backtracking, BSQHOptimizer, BSQHStrategy, Cardinality, Curvature
from tests.strategy.small_modules import SmallModule, WithAdam, assert_same, rejecting, weights_of

NAN, INF = math.nan, math.inf

# ---------------------------------------------------------------------- options

OPTIONS: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"eta": -0.1}, ValueError, ["eta", "-0.1", "[0, inf)"]),
    ({"eta": NAN}, ValueError, ["eta", "nan", "[0, inf)"]),
    ({"eta": INF}, ValueError, ["eta", "inf", "[0, inf)"]),
    ({"eta": "1"}, TypeError, ["eta", "'1'", "[0, inf)"]),
    ({"eta": True}, TypeError, ["eta", "True", "[0, inf)"]),
    ({"max_trials": 0}, ValueError, ["max_trials", "0", "at least 1"]),
    ({"max_trials": 2.0}, TypeError, ["max_trials", "2.0", "at least 1"]),
    ({"total_steps": 0}, ValueError, ["total_steps", "0", "at least 1"]),
    ({"total_steps": 1.5}, TypeError, ["total_steps", "1.5", "at least 1"]),
    ({"metric": "adam"}, ValueError, ["metric", "'adam'", "euclidean", "rms"]),
    ({"epsilon": 0.0}, ValueError, ["epsilon", "0.0", "[1e-08, 1e+12]"]),
    ({"epsilon": -1.0}, ValueError, ["epsilon", "-1.0", "[1e-08, 1e+12]"]),
    ({"epsilon": INF}, ValueError, ["epsilon", "inf", "[1e-08, 1e+12]"]),
    ({"epsilon": "62"}, TypeError, ["epsilon", "'62'"]),
    ({"epsilon": 1.0, "augmentation": Curvature()}, ValueError, ["epsilon=1.0", "Curvature"]),
    ({"augmentation": 3.0}, TypeError, ["augmentation", "3.0", "Backtracking()"]),
    ({"augmentation": Curvature}, TypeError, ["augmentation", "Curvature"]),
    ({"regularizer": 1e-5}, TypeError, ["regularizer", "1e-05", "L0(rho=1e-5)"]),
    ({"regularizer": L0}, TypeError, ["regularizer", "L0"]),
    ({"regularizer": {}}, ValueError, ["regularizer", "empty", "L0(rho=0.0)"]),
    ({"regularizer": {"conv*": L0}}, TypeError, ["regularizer['conv*']", "L0(rho=1e-5)"]),
    ({"regularizer": {"*": L0()}, "regularize": ["*"]}, ValueError, ["regularize=['*']", "leave regularize out"]),
]


def assert_says(message: str, words: list[str]) -> None:
    for word in words:
        assert word in message


@pytest.mark.parametrize(("options", "error", "words"), OPTIONS, ids=lambda value: str(value)[:40])
def test_options_of_the_strategy(options: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        BSQHStrategy(**options)
    assert_says(str(raised.value), words)


@pytest.mark.parametrize(("options", "error", "words"), OPTIONS, ids=lambda value: str(value)[:40])
def test_options_of_the_optimizer(options: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        BSQHOptimizer(nn.Linear(2, 2), **options)
    assert_says(str(raised.value), words)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: L0(rho=-1.0), ValueError, ["rho", "-1.0", "[0, inf)"]),
        (lambda: L1(rho=NAN), ValueError, ["rho", "nan", "[0, inf)"]),
        (lambda: L2(rho=INF), ValueError, ["rho", "inf", "[0, inf)"]),
        (lambda: L0(rho=None), TypeError, ["rho", "None", "[0, inf)"]),  # type: ignore[arg-type]
        (lambda: Cardinality(sparsity=-0.1), ValueError, ["sparsity", "-0.1", "[0, 1"]),
        (lambda: Cardinality(sparsity=1.0), ValueError, ["sparsity", "1.0", "[0, 1)"]),
        (lambda: Cardinality(sparsity=95), ValueError, ["sparsity", "95", "[0, 1"]),
        (lambda: Cardinality(ramp=(0.5, 0.1)), ValueError, ["ramp[1]", "0.1", "[0.5, 1]"]),
        (lambda: Cardinality(ramp=(-0.1, 0.1)), ValueError, ["ramp[0]", "-0.1", "[0, 1]"]),
        (lambda: Cardinality(ramp=(0.1, 1.1)), ValueError, ["ramp[1]", "1.1", "[0.1, 1]"]),
        (lambda: Cardinality(ramp=0.5), ValueError, ["ramp", "0.5", "pair"]),  # type: ignore[arg-type]
        (lambda: Cardinality(ramp=(0.1, 0.2, 0.3)), ValueError, ["ramp", "pair"]),  # type: ignore[arg-type]
        (lambda: Cardinality(interval=0), ValueError, ["interval", "0", "at least 1"]),
        (lambda: Backtracking(sigma=1.0), ValueError, ["sigma", "1.0", "(1, inf)"]),
        (lambda: Backtracking(zeta=0.0), ValueError, ["zeta", "0.0", "(0, 1]"]),
        (lambda: Backtracking(zeta=1.1), ValueError, ["zeta", "1.1", "(0, 1]"]),
        (lambda: Backtracking(epsilon=-1.0), ValueError, ["epsilon", "-1.0", "[1e-08, 1e+12]"]),
        (lambda: Backtracking(epsilon_min=0.0), ValueError, ["epsilon_min", "0.0", "(0, inf)"]),
        (lambda: Backtracking(epsilon_min=2.0, epsilon_max=1.0), ValueError, ["epsilon_max", "1.0", "[2, inf)"]),
        (lambda: Curvature(safety=0.5), ValueError, ["safety", "0.5", "(0.5, inf)"]),
        (lambda: Curvature(outlier=1.0), ValueError, ["outlier", "1.0", "(1, inf)"]),
        (lambda: Curvature(smoothing=0.0), ValueError, ["smoothing", "0.0", "(0, 1]"]),
        (lambda: Curvature(smoothing=1.5), ValueError, ["smoothing", "1.5", "(0, 1]"]),
        (lambda: Curvature(epsilon=0.0), ValueError, ["epsilon", "0.0", "[1e-08, 1e+12]"]),
    ],
)
def test_options_of_regularizers_and_rules(make: Callable[[], Any], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as raised:
        make()
    assert_says(str(raised.value), words)


def test_numpy_numbers_and_the_ends_of_the_ranges_are_taken() -> None:
    np = pytest.importorskip("numpy")
    BSQHStrategy(L0(rho=np.float64(1e-5)), eta=0.0, max_trials=1, total_steps=1, epsilon=1e-8)
    Cardinality(sparsity=0.0, ramp=(0.0, 0.0), interval=1)
    Cardinality(ramp=[0.0, 1.0])  # type: ignore[arg-type]  # a list is what YAML gives


# ---------------------------------------------------------------------- modules and Trainers


@pytest.mark.parametrize(
    ("regularizer", "words"),
    [
        ({"conv*": L0(), "net.*": L1()}, ["'conv*'", "matches no layer", "net.0, net.1, net.4"]),
        ({"net.*": L0(), "net.4": L1()}, ["'net.*'", "'net.4'", "both claim", "'net.4.weight'"]),
    ],
)
def test_patterns_are_checked_before_the_first_batch(
    make_trainer: Any, make_loader: Any, regularizer: dict[str, Any], words: list[str]
) -> None:
    class Untouched(SmallModule):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise AssertionError("a batch was trained on")

    with pytest.raises(ValueError, match="regularizer") as raised:
        make_trainer(BSQHStrategy(regularizer)).fit(Untouched(), make_loader())
    assert_says(str(raised.value), words)


class Manual(SmallModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters())


class Several(SmallModule):
    @override
    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.net[0].parameters()), torch.optim.SGD(self.net[4].parameters(), lr=0.1)]


class OwnIterator(SmallModule):
    @override
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        return self.loss(next(dataloader_iter)[0])


class Returns(SmallModule):
    """Its training_step returns what ``make`` makes of the loss."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.make(self.loss(batch))


class Frozen(SmallModule):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Averaging(SmallModule):
    """Brings a callback of its own, which the Trainer attaches later than its own ones."""

    @override
    def configure_callbacks(self) -> Any:
        return [StochasticWeightAveraging(swa_lrs=0.1)]


def refused(
    trainer: L.Trainer, module: SmallModule, loader: Any, error: Any, words: list[str], *, one_forward: bool = False
) -> None:
    """Fits, expects the error and that the module is as before, but for buffers after a forward sweep."""
    before, attributes = weights_of(module), {k: v for k, v in vars(module).items() if not k.startswith("_")}
    with pytest.raises(error) as raised:
        trainer.fit(module, loader)
    message = str(raised.value)
    assert_says(message, words)
    assert "\n" not in message
    if one_forward:
        before = {name: value for name, value in before.items() if name in dict(module.named_parameters())}
    after = weights_of(module)
    assert_same({name: after[name] for name in before}, before)
    assert "configure_optimizers" not in vars(module)
    assert vars(module).keys() >= attributes.keys()
    assert not {"log", "log_dict", "print", "training_step"} & vars(module).keys()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Several, ["Several", "2 optimizers", "Adam, SGD"]),
        (OwnIterator, ["dataloader_iter", "(batch, batch_idx)"]),
        (Averaging, ["StochasticWeightAveraging", "exact zeros"]),
    ],
)
def test_modules_that_cannot_work(make_trainer: Any, make_loader: Any, make: Any, words: list[str]) -> None:
    refused(make_trainer(BSQHStrategy()), make(), make_loader(), MisconfigurationException, words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"callbacks": [StochasticWeightAveraging(swa_lrs=0.1)]}, ["StochasticWeightAveraging", "exact zeros"]),
    ],
)
def test_trainers_that_cannot_work(make_trainer: Any, make_loader: Any, options: Any, words: list[str]) -> None:
    refused(make_trainer(BSQHStrategy(), **options), SmallModule(), make_loader(), MisconfigurationException, words)


@pytest.mark.parametrize(
    ("chosen", "options", "words"),
    [
        ({"batch_mode": "full"}, {"accumulate_grad_batches": 2}, ["accumulate_grad_batches", "batch_mode='full'"]),
        ({"sweep": "gauss-seidel"}, {"accumulate_grad_batches": 2}, ["accumulate_grad_batches", "sweep='jacobi'"]),
        (
            {"sweep": "gauss-seidel"},
            {"callbacks": [GradientAccumulationScheduler({0: 1, 1: 2})]},
            ["accumulate_grad_batches", "sweep='jacobi'"],
        ),
        ({"batch_mode": "full"}, {"plugins": [MixedPrecision("16-mixed", "cpu")]}, ["16-mixed", "batch_mode='full'"]),
    ],
)
def test_options_that_do_not_go_with_the_trainer_s(
    make_trainer: Any, make_loader: Any, chosen: Any, options: Any, words: list[str]
) -> None:
    trainer = make_trainer(BSQHStrategy(**chosen), **options)
    refused(trainer, SmallModule(), make_loader(), MisconfigurationException, words)


@pytest.mark.parametrize(
    ("chosen", "options", "words"),
    [
        ({"batch_mode": "full"}, {}, ["Manual", "manual optimization", "batch_mode='full'"]),
        ({}, {"plugins": [MixedPrecision("16-mixed", "cpu")]}, ["Manual", "manual optimization", "16-mixed"]),
    ],
)
def test_manual_optimization_that_cannot_work(
    make_trainer: Any, make_loader: Any, chosen: Any, options: Any, words: list[str]
) -> None:
    refused(make_trainer(BSQHStrategy(**chosen), **options), Manual(), make_loader(), MisconfigurationException, words)


def test_half_precision_throughout_is_refused(make_trainer: Any, make_loader: Any) -> None:
    module = SmallModule()
    with pytest.raises(MisconfigurationException, match="16-true"):
        make_trainer(BSQHStrategy(), precision="16-true").fit(module, make_loader())
    assert next(module.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda loss: loss.expand(3), ValueError, ["training_step", "scalar", "(3,)", "loss.mean()"]),
        (lambda loss: loss.detach(), ValueError, ["training_step", "graph"]),
        (lambda loss: {"loss": loss.detach()}, ValueError, ["training_step", "graph"]),
        (lambda loss: loss * NAN, ValueError, ["nan", "first batch"]),
        (lambda loss: loss + INF, ValueError, ["inf", "first batch"]),
        (lambda loss: float(loss.detach()), TypeError, ["training_step", "scalar tensor", "float"]),
        (lambda loss: (loss, loss), TypeError, ["training_step", "tuple"]),
        (lambda loss: loss.long(), ValueError, ["training_step", "int64"]),
        (lambda loss: {"error": loss}, ValueError, ["training_step", "'loss'", "error"]),
        (lambda loss: {"loss": None}, ValueError, ["training_step", "'loss'"]),
        (lambda loss: {"loss": float(loss.detach())}, TypeError, ["training_step", "float"]),
    ],
    ids=lambda value: str(value) if isinstance(value, list) else "",
)
def test_losses_that_cannot_work(make_trainer: Any, make_loader: Any, make: Any, error: Any, words: list[str]) -> None:
    refused(make_trainer(BSQHStrategy()), Returns(make), make_loader(), error, words, one_forward=True)


def test_no_trainable_parameter(make_trainer: Any, make_loader: Any) -> None:
    refused(make_trainer(BSQHStrategy()), Frozen(), make_loader(), ValueError, ["no trainable parameter"])


def test_a_pattern_that_matches_nothing(make_trainer: Any, make_loader: Any) -> None:
    trainer = make_trainer(BSQHStrategy(regularize=["conv*"]))
    refused(trainer, SmallModule(), make_loader(), ValueError, ["regularize", "'conv*'", "net.0", "net.4"])


def test_a_ramp_without_a_known_length(make_trainer: Any) -> None:
    trainer = make_trainer(BSQHStrategy(Cardinality(sparsity=0.5)), max_epochs=-1, limit_train_batches=2)
    with pytest.raises(ValueError, match=re.escape("total_steps")):
        trainer.fit(SmallModule(), _endless())


def test_a_trial_loss_that_is_no_scalar(make_trainer: Any, make_loader: Any) -> None:
    class Vector(SmallModule):
        def trial_loss(self, batch: Any, batch_idx: int) -> Tensor:
            return self.loss(batch).expand(3)

    with pytest.raises(ValueError, match=r"trial_loss must return a real scalar loss, got shape \(3,\)"):
        make_trainer(BSQHStrategy()).fit(Vector(), make_loader())


def test_a_refused_module_trains_with_another_strategy(make_trainer: Any, make_loader: Any) -> None:
    module = WithAdam()
    with pytest.raises(MisconfigurationException):
        make_trainer(BSQHStrategy(), callbacks=[StochasticWeightAveraging(swa_lrs=0.1)]).fit(module, make_loader())
    trainer = make_trainer()
    trainer.fit(module, make_loader())
    assert type(trainer.optimizers[0]) is torch.optim.Adam
    assert trainer.global_step == 3


def _endless() -> Any:
    class Endless(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
        @override
        def __iter__(self) -> Any:
            while True:
                yield torch.randn(4), torch.randn(1)

    return torch.utils.data.DataLoader(Endless(), batch_size=4)


# ---------------------------------------------------------------------- numbers that go wrong later


class Spoilt(SmallModule):
    """Spoils the loss, the gradient or the trial of one batch."""

    def __init__(self, where: str, value: float, batch: int = 1) -> None:
        super().__init__()
        self.where, self.value, self.at = where, value, batch

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if batch_idx != self.at:
            return loss
        if self.where == "loss":
            return loss * self.value
        if self.where == "gradient":
            # The value is that of the loss; its derivative is not finite.
            spoilt = self.net[4].weight.sum() * 0.0
            return loss + _SpoiltGradient.apply(spoilt, self.value)
        return loss if torch.is_grad_enabled() else loss * self.value


class _SpoiltGradient(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, value: float) -> Tensor:
        ctx.value = value
        return torch.zeros_like(x)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient + ctx.value, None


class States(L.Callback):
    """Parameters, optimizer state, epsilon and report after each batch."""

    def __init__(self) -> None:
        self.parameters: list[Any] = []
        self.states: list[Any] = []
        self.reports: list[Any] = []
        self.steps: list[int] = []

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        optimizer = trainer.optimizers[0]
        self.parameters.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})
        saved = optimizer.state_dict()
        states = {
            index: {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
            for index, state in saved["state"].items()
        }
        self.states.append((states, saved["bsqh"]["augmentation"], [dict(g) for g in saved["param_groups"]]))
        self.reports.append(optimizer.last_step)  # type: ignore[attr-defined]
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_later_batch_that_is_not_finite_is_skipped(
    make_trainer: Any, make_loader: Any, where: str, value: float
) -> None:
    states = States()
    trainer = make_trainer(BSQHStrategy(), callbacks=[states])
    trainer.fit(Spoilt(where, value), make_loader())
    assert trainer.optimizers[0].skipped == 1
    assert states.steps == [1, 2, 3]
    assert [report.skipped for report in states.reports] == [False, True, False]
    assert states.reports[1].trials == 0
    assert not states.reports[1].accepted
    assert_same(states.parameters[1], states.parameters[0])
    assert_same(states.states[1], states.states[0])
    assert all(bool(torch.isfinite(p).all()) for p in states.parameters[2].values())


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_trial_that_is_not_finite_is_a_rejection(make_trainer: Any, make_loader: Any, value: float) -> None:
    states = States()
    rule = Backtracking(epsilon=100.0, sigma=2.0, zeta=0.5, schedule=False)
    strategy = BSQHStrategy(L0(rho=0.0), augmentation=rule, max_trials=4)
    trainer = make_trainer(strategy, callbacks=[states])
    trainer.fit(Spoilt("trial", value), make_loader())
    report = states.reports[1]
    assert (report.accepted, report.trials, report.skipped, report.tau) == (False, 4, False, 0.0)
    assert trainer.optimizers[0].skipped == 0
    assert_same(states.parameters[1], states.parameters[0])
    assert states.states[1][1]["epsilon"] == pytest.approx(states.states[0][1]["epsilon"] * 2.0**4)
    assert math.isfinite(report.objective_after)


def test_a_gradient_that_is_not_finite_at_the_first_batch_is_skipped(make_trainer: Any, make_loader: Any) -> None:
    states = States()
    trainer = make_trainer(BSQHStrategy(), callbacks=[states])
    trainer.fit(Spoilt("gradient", NAN, batch=0), make_loader())
    assert [report.skipped for report in states.reports] == [True, False, False]
    assert trainer.optimizers[0].skipped == 1


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_a_skipped_batch_runs_no_trial_and_goes_on(make_trainer: Any, make_loader: Any) -> None:
    class Skips(SmallModule):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 0 else self.loss(batch)

    states = States()
    trainer = make_trainer(rejecting(), callbacks=[states])
    trainer.fit(Skips(), make_loader())
    # A batch that the user skips is not one that went wrong.
    assert trainer.optimizers[0].skipped == 0
    assert [report.trials for report in states.reports] == [0, 3, 3]
    assert states.steps == [1, 2, 3]
