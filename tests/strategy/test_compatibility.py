"""BSQHStrategy with what Lightning users have in their projects (method §7)."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from typing_extensions import override

from lightning_bsqh import L0, Backtracking, BSQHOptimizer, BSQHStrategy, Cardinality
from tests.strategy.small_modules import Record, SmallModule, WithAdam, assert_same, weights_of


def optimizer_of(trainer: L.Trainer) -> BSQHOptimizer:
    optimizer = trainer.optimizers[0]
    assert isinstance(optimizer, BSQHOptimizer)
    return optimizer


def assert_trained(trainer: L.Trainer, before: dict[str, Tensor], steps: int) -> None:
    """Every step was one iteration, something was accepted, and the parameters are finite and other ones."""
    assert trainer.global_step == steps
    optimizer = optimizer_of(trainer)
    assert optimizer.iterations == steps
    assert optimizer.last_step is not None
    assert optimizer.skipped == 0
    after = weights_of(trainer.lightning_module)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(bool(torch.isfinite(value).all()) for value in after.values())


def fit(trainer: L.Trainer, module: L.LightningModule, *data: Any, steps: int = 3, **options: Any) -> L.Trainer:
    before = weights_of(module)
    trainer.fit(module, *data, **options)
    assert_trained(trainer, before, steps)
    return trainer


# ---------------------------------------------------------------------- training_step


class Returning(SmallModule):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.outputs = Record()

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        return {
            "tensor": loss,
            "dict": {"loss": loss, "extra": 3, "prediction": loss.detach()},
            "shape [1]": loss.reshape(1),
        }[self.kind]

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.outputs.add(outputs)


@pytest.mark.parametrize("kind", ["tensor", "dict", "shape [1]"])
def test_what_training_step_returns(make_trainer: Any, make_loader: Any, kind: str) -> None:
    module = Returning(kind)
    fit(make_trainer(BSQHStrategy()), module, make_loader())
    assert all("loss" in outputs for outputs in module.outputs.items)
    if kind == "dict":
        assert all(outputs["extra"] == 3 for outputs in module.outputs.items)


@pytest.mark.filterwarnings("ignore:.*returned `None`")
def test_none_skips_the_batch(make_trainer: Any, make_loader: Any) -> None:
    class Skipping(SmallModule):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch) if batch_idx != 1 else None

    fit(make_trainer(BSQHStrategy()), Skipping(), make_loader())


# ---------------------------------------------------------------------- configure_optimizers


class Configured(SmallModule):
    def __init__(self, configure: Any) -> None:
        super().__init__()
        self.configure = configure

    @override
    def configure_optimizers(self) -> Any:
        return self.configure(self)


def messages(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(entry.message) for entry in caught if "BSQHStrategy" in str(entry.message) or "ε" in str(entry.message)]


def fit_and_catch(trainer: L.Trainer, module: L.LightningModule, loader: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(trainer, module, loader)
    return messages(caught)


def adam(module: SmallModule) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.25)


def adam_and_step(module: SmallModule) -> Any:
    optimizer = adam(module)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def adam_and_plateau(module: SmallModule) -> Any:
    optimizer = adam(module)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


def adam_and_bare_scheduler(module: SmallModule) -> Any:
    optimizer = adam(module)
    return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)}


@pytest.mark.parametrize("configure", [lambda module: None, lambda module: []])
def test_a_module_that_names_no_optimizer(make_trainer: Any, make_loader: Any, configure: Any) -> None:
    assert fit_and_catch(make_trainer(BSQHStrategy()), Configured(configure), make_loader()) == []


def test_a_module_without_configure_optimizers(make_trainer: Any, make_loader: Any) -> None:
    module = SmallModule()
    assert fit_and_catch(make_trainer(BSQHStrategy()), module, make_loader()) == []
    assert "configure_optimizers" not in vars(module)


@pytest.mark.parametrize(
    ("configure", "names"),
    [
        (adam, ["Adam(lr=0.25)"]),
        (adam_and_step, ["Adam(lr=0.25)", "StepLR"]),
        (adam_and_plateau, ["Adam(lr=0.25)", "ReduceLROnPlateau"]),
        (adam_and_bare_scheduler, ["Adam(lr=0.25)", "ExponentialLR"]),
        (lambda module: (adam(module),), ["Adam(lr=0.25)"]),
    ],
)
def test_another_optimizer_is_named_in_one_warning(
    make_trainer: Any, make_loader: Any, configure: Any, names: list[str]
) -> None:
    trainer = make_trainer(BSQHStrategy())
    (message,) = fit_and_catch(trainer, Configured(configure), make_loader())
    for name in names:
        assert name in message
    assert "ignored" in message
    # Code that asks for a scheduler finds one in its place.
    assert len(trainer.lr_scheduler_configs) == len(names) - 1


@pytest.mark.parametrize("as_list", [False, True])
def test_an_optimizer_of_ours_is_used(make_trainer: Any, make_loader: Any, as_list: bool) -> None:
    made: list[BSQHOptimizer] = []

    def configure(module: SmallModule) -> Any:
        made.append(BSQHOptimizer(module, regularizer=L0(rho=1e-3), metric="euclidean", total_steps=7))
        return made if as_list else made[0]

    trainer = make_trainer(BSQHStrategy())
    assert fit_and_catch(trainer, Configured(configure), make_loader()) == []
    assert len(made) == 1
    assert trainer.optimizers[0] is made[0]
    assert made[0].total_steps == 7


def test_an_optimizer_of_ours_keeps_its_regularizer(make_trainer: Any, make_loader: Any) -> None:
    """It learns the length from the Trainer, but its regularizer is the user's choice."""
    regularizer = L0(rho=1e-3)
    trainer = make_trainer(BSQHStrategy())
    fit(trainer, Configured(lambda module: BSQHOptimizer(module, regularizer=regularizer)), make_loader())
    assert optimizer_of(trainer).regularizer is regularizer
    assert optimizer_of(trainer).total_steps == 3


def test_an_optimizer_of_ours_without_options_gets_the_defaults(make_trainer: Any, make_loader: Any) -> None:
    trainer = make_trainer(BSQHStrategy())
    fit(trainer, Configured(BSQHOptimizer), make_loader())
    assert isinstance(optimizer_of(trainer).regularizer, Cardinality)


def test_an_optimizer_of_ours_with_a_ramp_learns_the_length(make_trainer: Any, make_loader: Any) -> None:
    trainer = make_trainer(BSQHStrategy(), max_epochs=2)
    module = Configured(lambda module: BSQHOptimizer(module, regularizer=Cardinality(sparsity=0.5)))
    fit(trainer, module, make_loader(), steps=6)
    assert optimizer_of(trainer).total_steps == 6
    assert optimizer_of(trainer).sparsity() == 0.5


def test_only_the_parameters_that_the_user_optimizes_are_trained(make_trainer: Any, make_loader: Any) -> None:
    module = Configured(lambda module: torch.optim.SGD(module.net[4].parameters(), lr=0.1))
    first = module.net[0].weight.detach().clone()
    trainer = make_trainer(BSQHStrategy(Cardinality(sparsity=0.5)))
    fit(trainer, module, make_loader())
    assert torch.equal(module.net[0].weight, first)
    assert [group["name"] for group in trainer.optimizers[0].param_groups] == ["net.4"]
    assert int((module.net[4].weight == 0).sum()) == 4


def test_frozen_parameters_stay_and_count_for_nothing(make_trainer: Any, make_loader: Any) -> None:
    module = SmallModule()
    module.net[0].requires_grad_(False)
    frozen = module.net[0].weight.detach().clone()
    trainer = make_trainer(BSQHStrategy(Cardinality(sparsity=0.5)))
    fit(trainer, module, make_loader())
    assert torch.equal(module.net[0].weight, frozen)
    assert optimizer_of(trainer).sparsity() == 0.5
    assert set(optimizer_of(trainer).regularized_weights()) == {"net.4"}


def test_shared_parameters_are_trained_once(make_trainer: Any, make_loader: Any) -> None:
    class Tied(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.net = nn.Sequential(self.first, nn.Tanh(), self.second, nn.Linear(4, 1))

    module = Tied()
    trainer = make_trainer(BSQHStrategy(Cardinality(sparsity=0.5)))
    fit(trainer, module, make_loader())
    parameters = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert len({id(p) for p in parameters}) == len(parameters) == len(list(module.parameters()))
    assert module.second.weight is module.first.weight
    assert int((module.first.weight == 0).sum()) + int((module.net[3].weight == 0).sum()) == 10


def test_estimated_stepping_batches_in_the_users_own_configure_optimizers(make_trainer: Any, make_loader: Any) -> None:
    asked: list[float] = []

    def configure(module: SmallModule) -> Any:
        asked.append(module.trainer.estimated_stepping_batches)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=int(asked[-1]))]

    trainer = make_trainer(BSQHStrategy(), max_epochs=2)
    with pytest.warns(UserWarning, match="OneCycleLR"):
        fit(trainer, Configured(configure), make_loader(), steps=6)
    assert asked == [6]


def test_a_user_who_overrides_optimizer_step(make_trainer: Any, make_loader: Any) -> None:
    """The warm-up of Lightning's documentation: sets a learning rate, then steps."""

    class WarmUp(SmallModule):
        @override
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            for group in optimizer.param_groups:
                group["lr"] = 0.1
            optimizer.step(closure=optimizer_closure)

    fit(make_trainer(BSQHStrategy()), WarmUp(), make_loader())


# ---------------------------------------------------------------------- strategy and Trainer


def test_by_name(make_trainer: Any, make_loader: Any) -> None:
    trainer = make_trainer("bsqh")
    assert isinstance(trainer.strategy, BSQHStrategy)
    assert trainer.strategy.root_device == torch.device("cpu")
    fit(trainer, SmallModule(), make_loader())


def test_one_instance_in_two_trainers(make_trainer: Any, make_loader: Any) -> None:
    strategy = BSQHStrategy(Cardinality(sparsity=0.5))
    results = []
    for epochs in (2, 2, 3):
        torch.manual_seed(3)
        module = SmallModule()
        # Lightning itself refuses accelerator="cpu" for an instance that has had an accelerator before.
        trainer = make_trainer(strategy, max_epochs=epochs, accelerator="auto")
        fit(trainer, module, make_loader(), steps=3 * epochs)
        assert optimizer_of(trainer).total_steps == 3 * epochs
        results.append(weights_of(module))
    assert_same(results[1], results[0])


def test_one_rule_in_two_strategies_does_not_carry_over(make_trainer: Any, make_loader: Any) -> None:
    rule = Backtracking(epsilon=100.0)
    make_trainer(BSQHStrategy(augmentation=rule)).fit(SmallModule(), make_loader())
    assert rule.epsilon == 100.0


def test_two_fits_of_one_trainer(make_trainer: Any, make_loader: Any) -> None:
    module = SmallModule()
    trainer = make_trainer(BSQHStrategy(), max_epochs=1)
    trainer.fit(module, make_loader())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, make_loader())
    assert trainer.global_step == 6


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"fast_dev_run": True}, 1),
        ({"fast_dev_run": 2}, 2),
        ({"overfit_batches": 2, "max_epochs": 3}, 6),
        ({"limit_train_batches": 2}, 2),
        ({"limit_train_batches": 0.34}, 1),
        ({"max_steps": 5}, 5),
        ({"max_steps": 5, "max_epochs": -1}, 5),
        ({"max_epochs": 3, "max_steps": 100}, 9),
        ({"max_epochs": 3, "val_check_interval": 2}, 9),
        ({"val_check_interval": 0.5, "check_val_every_n_epoch": 1}, 3),
        ({"val_check_interval": 4, "check_val_every_n_epoch": None, "max_epochs": 3}, 9),
        ({"precision": "32-true"}, 3),
        ({"precision": "64-true"}, 3),
        ({"precision": "bf16-mixed"}, 3),
        ({"barebones": True}, 3),
        ({"deterministic": True}, 3),
        ({"detect_anomaly": True}, 3),
        ({"inference_mode": False}, 3),
        ({"reload_dataloaders_every_n_epochs": 1, "max_epochs": 2}, 6),
        ({"use_distributed_sampler": False, "sync_batchnorm": False}, 3),
        ({"log_every_n_steps": 1, "logger": True}, 3),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else str(value),
)
def test_options_of_the_trainer(make_trainer: Any, make_loader: Any, options: dict[str, Any], steps: int) -> None:
    pytest.importorskip("tensorboard")
    module = Validated()
    if "barebones" in options:
        trainer = L.Trainer(strategy=BSQHStrategy(), accelerator="cpu", max_epochs=1, barebones=True)
    else:
        trainer = make_trainer(BSQHStrategy(), **options)
    fit(trainer, module, make_loader(), make_loader(), steps=steps)
    expected = torch.float64 if options.get("precision") == "64-true" else torch.float32
    assert next(module.parameters()).dtype == expected
    assert optimizer_of(trainer).total_steps == steps
    assert optimizer_of(trainer).sparsity() == pytest.approx(0.9)


class Validated(SmallModule):
    """With all loops, and self.log in each of them."""

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), prog_bar=True)

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0])


class Stream(IterableDataset):  # type: ignore[type-arg]
    @override
    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            x = torch.randn(4, generator=generator)
            yield x, x.sum(dim=0, keepdim=True)


def test_a_stream_without_length(make_trainer: Any) -> None:
    trainer = make_trainer(BSQHStrategy(), max_epochs=2)
    with pytest.warns(UserWarning, match="length of the training is not known.*L0"):
        fit(trainer, SmallModule(), DataLoader(Stream(), batch_size=5), steps=8)
    assert isinstance(optimizer_of(trainer).regularizer, L0)


def test_a_stream_with_max_steps(make_trainer: Any) -> None:
    trainer = make_trainer(BSQHStrategy(), max_steps=6)
    fit(trainer, SmallModule(), DataLoader(Stream(), batch_size=5), steps=6)
    assert optimizer_of(trainer).total_steps == 6
    assert optimizer_of(trainer).sparsity() == pytest.approx(0.9)


def test_a_stream_with_the_length_told(make_trainer: Any) -> None:
    trainer = make_trainer(BSQHStrategy(Cardinality(sparsity=0.5), total_steps=4))
    fit(trainer, SmallModule(), DataLoader(Stream(), batch_size=5), steps=4)
    assert optimizer_of(trainer).sparsity() == 0.5


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("sparsity", [0.0, 0.31, 0.9, 0.99])
@pytest.mark.parametrize("minimum", [None, 0])
def test_the_target_is_reached_to_the_weight(
    make_trainer: Any, make_loader: Any, steps: int, sparsity: float, minimum: int | None
) -> None:
    module = SmallModule()
    chosen = {} if minimum is None else {"minimum": minimum}
    trainer = make_trainer(BSQHStrategy(Cardinality(sparsity=sparsity, **chosen)), max_steps=steps)
    trainer.fit(module, make_loader())
    zeros = sum(int((layer.weight == 0).sum()) for layer in (module.net[0], module.net[4]))
    # By default each of the two tensors keeps one weight in any case.
    assert zeros == (round(sparsity * 40) if minimum == 0 else min(round(sparsity * 40), 38))
    assert trainer.global_step == steps


def test_a_batch_of_one_and_a_ragged_last_batch(make_trainer: Any, make_loader: Any) -> None:
    class NoNorm(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(4, 1))

    fit(make_trainer(BSQHStrategy()), NoNorm(), make_loader(samples=5, batch_size=2))


# ---------------------------------------------------------------------- callbacks, loggers, profilers


def test_learning_rate_monitor_shows_the_step_length(make_trainer: Any, make_loader: Any, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer = make_trainer(
        BSQHStrategy(), logger=logger, log_every_n_steps=1, callbacks=[LearningRateMonitor("step")], max_epochs=2
    )
    fit(trainer, SmallModule(), make_loader(), steps=6)
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    # All layers have the same, so it is one curve.
    assert [name for name in rows[0].split(",") if name.startswith("lr-")] == ["lr-BSQHOptimizer"]
    assert optimizer_of(trainer).param_groups[0]["lr"] == 0.5 / optimizer_of(trainer).last_step.epsilon  # type: ignore[union-attr]


def test_early_stopping(make_trainer: Any, make_loader: Any) -> None:
    callback = EarlyStopping("val_loss", patience=1, mode="max", min_delta=1e9)
    trainer = make_trainer(BSQHStrategy(), max_epochs=9, callbacks=[callback])
    fit(trainer, Validated(), make_loader(), make_loader(), steps=6)
    assert callback.stopped_epoch == 1


def test_model_checkpoint(make_trainer: Any, make_loader: Any, tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "best", monitor="val_loss", save_last=True)
    often = ModelCheckpoint(tmp_path / "often", filename="{step}", every_n_train_steps=2, save_top_k=-1)
    trainer = make_trainer(BSQHStrategy(), max_epochs=2, callbacks=[best, often], enable_checkpointing=True)
    fit(trainer, Validated(), make_loader(), make_loader(), steps=6)
    assert Path(best.best_model_path).is_file()
    assert sorted(path.stem for path in (tmp_path / "often").iterdir()) == ["step=2", "step=4", "step=6"]
    loaded = Validated.load_from_checkpoint(tmp_path / "often" / "step=6.ckpt")
    assert_same(weights_of(loaded), weights_of(trainer.lightning_module))


@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_progress_bars(make_trainer: Any, make_loader: Any, bar: Any, capsys: Any) -> None:
    pytest.importorskip("rich")
    trainer = make_trainer(
        BSQHStrategy(), callbacks=[bar()], enable_progress_bar=True, enable_model_summary=True, max_epochs=2
    )
    fit(trainer, Validated(), make_loader(), make_loader(), steps=6)
    capsys.readouterr()


@pytest.mark.parametrize(("name", "kind"), [("simple", SimpleProfiler), ("advanced", AdvancedProfiler)])
def test_profilers_see_one_training_step_per_batch(
    make_trainer: Any, make_loader: Any, name: str, kind: Any, capsys: Any
) -> None:
    trainer = make_trainer(BSQHStrategy(), profiler=name)
    assert isinstance(trainer.profiler, kind)
    fit(trainer, SmallModule(), make_loader())
    capsys.readouterr()
    if name == "simple":
        recorded = trainer.profiler.recorded_durations  # type: ignore[attr-defined]
        (key,) = [key for key in recorded if key.endswith("BSQHStrategy.training_step")]
        assert len(recorded[key]) == 3


def test_csv_logger_has_one_value_per_step(make_trainer: Any, make_loader: Any, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    fit(make_trainer(BSQHStrategy(), logger=logger, log_every_n_steps=1), Validated(), make_loader(), make_loader())
    header, *rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("loss_step")
    assert sum(bool(row.split(",")[column]) for row in rows) == 3


def test_backbone_finetuning(make_trainer: Any, make_loader: Any) -> None:
    class Backbone(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
            self.net = nn.Sequential(self.backbone, nn.Linear(8, 1))

    module = Backbone()
    first = module.backbone[0].weight.detach().clone()
    trainer = make_trainer(
        BSQHStrategy(Cardinality(sparsity=0.5)),
        max_epochs=4,
        callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=2, verbose=False)],
    )
    fit(trainer, module, make_loader(), steps=12)
    assert not torch.equal(module.backbone[0].weight, first)
    assert int((module.backbone[0].weight == 0).sum()) + int((module.net[1].weight == 0).sum()) == 20


# ---------------------------------------------------------------------- other loops


def test_validate_test_and_predict(make_trainer: Any, make_loader: Any) -> None:
    module = Validated()
    trainer = make_trainer(BSQHStrategy())
    for when in ("before", "after"):
        assert trainer.validate(module, make_loader(), verbose=False)[0].keys() == {"val_loss"}, when
        assert trainer.test(module, make_loader(), verbose=False)[0].keys() == {"test_loss"}
        assert [p.shape for p in trainer.predict(module, make_loader())] == [(8, 1)] * 3
        if when == "before":
            fit(trainer, module, make_loader(), make_loader())


@pytest.mark.parametrize("make", [SmallModule, WithAdam])
def test_after_fit_the_module_trains_as_before(make_trainer: Any, make_loader: Any, make: Any) -> None:
    class Ordinary(make):  # type: ignore[misc, valid-type]
        pass

    module = Ordinary()
    before = set(vars(module))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_trainer(BSQHStrategy()).fit(module, make_loader())
    ordinary = Ordinary()
    if make is WithAdam:
        make_trainer().fit(ordinary, make_loader())
        trainer = make_trainer()
        trainer.fit(module, make_loader())
        assert type(trainer.optimizers[0]) is torch.optim.Adam
    else:
        make_trainer(BSQHStrategy()).fit(ordinary, make_loader())
    # What Lightning itself leaves on a module aside, nothing is new.
    own = {"configure_optimizers", "log", "log_dict", "print", "training_step", "automatic_optimization"}
    assert not own & (set(vars(module)) - before)
    assert module.automatic_optimization
    copy.deepcopy(module.net)


def test_a_module_with_an_optimizer_of_its_own_really_trains_afterwards(make_trainer: Any, make_loader: Any) -> None:
    module = Configured(adam)
    with pytest.warns(UserWarning, match="Adam"):
        make_trainer(BSQHStrategy()).fit(module, make_loader())
    zeros = int((module.net[0].weight == 0).sum())
    trainer = make_trainer()
    trainer.fit(module, make_loader())
    assert trainer.global_step == 3
    assert int((module.net[0].weight == 0).sum()) < zeros


# ---------------------------------------------------------------------- kinds of networks and losses


class Penalised(SmallModule):
    """A gradient penalty: the loss itself takes derivatives, with respect to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Softplus(), nn.Linear(8, 1))

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0].requires_grad_()
        prediction = self.net(x)
        (slope,) = torch.autograd.grad(prediction.sum(), x, create_graph=True)
        return nn.functional.mse_loss(prediction, batch[1]) + 0.1 * slope.square().mean()


def test_a_loss_that_takes_gradients(make_trainer: Any, make_loader: Any) -> None:
    module = Penalised()
    batch = next(iter(make_loader(batch_size=24)))
    first = float(module.training_step(batch, 0).detach())
    trainer = make_trainer(BSQHStrategy(L0(rho=0.0)), max_epochs=10)
    fit(trainer, module, make_loader(), steps=30)
    assert float(module.training_step(batch, 0).detach()) < first


def test_a_penalty_on_every_other_batch(make_trainer: Any, make_loader: Any) -> None:
    class Lazy(Penalised):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) if batch_idx % 2 else self.loss(batch)

    fit(make_trainer(BSQHStrategy()), Lazy(), make_loader())


class Sequence(SmallModule):
    """Token sequences through an embedding and the given core."""

    def __init__(self, core: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8, padding_idx=0)
        self.kind = core
        if core == "lstm":
            self.core: nn.Module = nn.LSTM(8, 8, batch_first=True)
        elif core == "gru":
            self.core = nn.GRU(8, 8, num_layers=2, dropout=0.1, batch_first=True)
        elif core == "attention":
            self.core = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        else:
            self.core = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 11)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = self.embedding(batch[0])
        if self.kind == "attention":
            x = self.core(x, x, x)[0]
        else:
            x = self.core(x)
            x = x[0] if isinstance(x, tuple) else x
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), batch[0].flatten())


@pytest.mark.parametrize("core", ["lstm", "gru", "attention", "transformer"])
def test_sequence_models(make_trainer: Any, core: str) -> None:
    tokens = torch.randint(0, 11, (24, 5))
    trainer = make_trainer(BSQHStrategy(Cardinality(sparsity=0.5)), max_epochs=2)
    fit(trainer, Sequence(core), DataLoader(TensorDataset(tokens), batch_size=8), steps=6)
    weights = [w for layer in optimizer_of(trainer).regularized_weights().values() for w in layer]
    total = sum(w.numel() for w in weights)
    assert sum(int((w == 0).sum()) for w in weights) == round(0.5 * total)


def test_sparse_gradients(make_trainer: Any) -> None:
    class Sparse(Sequence):
        def __init__(self) -> None:
            super().__init__("lstm")
            self.embedding = nn.Embedding(11, 8, sparse=True)

    tokens = torch.randint(0, 11, (24, 5))
    fit(make_trainer(BSQHStrategy()), Sparse(), DataLoader(TensorDataset(tokens), batch_size=8))


def test_a_parameter_that_gets_no_gradient(make_trainer: Any, make_loader: Any) -> None:
    class Unused(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(3, 3)

    module = Unused()
    before = module.unused.weight.detach().clone()
    fit(make_trainer(BSQHStrategy(L0(rho=0.0))), module, make_loader())
    assert torch.equal(module.unused.weight, before)


def test_resnet18(make_trainer: Any) -> None:
    torchvision = pytest.importorskip("torchvision")

    class Images(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torchvision.models.resnet18(num_classes=10)

        @override
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    module = Images()
    data = TensorDataset(torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,)))
    trainer = make_trainer(BSQHStrategy())
    fit(trainer, module, DataLoader(data, batch_size=4), steps=2)
    assert int(module.net.bn1.num_batches_tracked) == 2
    assert optimizer_of(trainer).sparsity() == pytest.approx(0.9, abs=1e-6)


def _skip_unless_lightning_can_compile(make_trainer: Any, make_loader: Any) -> None:
    """Some versions of torch cannot compile Lightning's own self.log, whatever the strategy."""

    class WithAdam(Validated):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    try:
        make_trainer("auto", max_steps=1).fit(torch.compile(WithAdam(), backend="eager"), make_loader())
    except torch._dynamo.exc.InternalTorchDynamoError as error:
        pytest.skip(f"torch {torch.__version__} fails with Adam, too: {error!r:.80}")


@pytest.mark.parametrize("what", ["module", "net"])
def test_compiled(make_trainer: Any, make_loader: Any, what: str) -> None:
    torch.manual_seed(0)
    plain = Validated()
    trainer = make_trainer(BSQHStrategy(), max_epochs=2)
    fit(trainer, plain, make_loader(), steps=6)

    if what == "module":
        _skip_unless_lightning_can_compile(make_trainer, make_loader)
    torch.manual_seed(0)
    module = Validated()
    compiled: Any = module
    if what == "module":
        compiled = torch.compile(module, backend="eager")
    else:
        module.net = torch.compile(module.net, backend="aot_eager")  # type: ignore[assignment]
    trainer = make_trainer(BSQHStrategy(), max_epochs=2)
    trainer.fit(compiled, make_loader())
    assert trainer.global_step == 6
    for first, second in zip(plain.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(second, first)
    assert optimizer_of(trainer).sparsity() == pytest.approx(0.9)


def test_says_why_a_demand_could_not_be_met(make_trainer: Any, make_loader: Any) -> None:
    class Normed(SmallModule):
        """A row of zeros has no direction, so that the loss is not a number."""

        def __init__(self) -> None:
            super().__init__()
            self.net[0] = nn.utils.parametrizations.weight_norm(self.net[0])

    strategy = BSQHStrategy(Cardinality(0.98, ramp=(0.0, 0.0)))
    with pytest.warns(match="last trials were rejected: with so many zeros the loss is not finite"):
        make_trainer(strategy, max_steps=3).fit(Normed(), make_loader())


def test_warns_if_stopped_within_the_ramp(make_trainer: Any, make_loader: Any) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 2

    trainer = make_trainer(BSQHStrategy(), max_epochs=10, callbacks=[Stop()])
    with pytest.warns(UserWarning, match=r"ended before Cardinality\(sparsity=0.9"):
        trainer.fit(Validated(), make_loader())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The training ended before")
        make_trainer(BSQHStrategy(), max_epochs=2).fit(Validated(), make_loader())
