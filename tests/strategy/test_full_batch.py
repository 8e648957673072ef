"""Full-batch mode in the Trainer: an epoch is an iteration, its batches are micro-batches."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torchmetrics
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from typing_extensions import override

from lightning_bsqh import L0, Backtracking, BSQHOptimizer, BSQHStrategy, Cardinality, Curvature
from lightning_bsqh.callbacks import AugmentationMonitor, SparsityMonitor
from lightning_bsqh.strategy import full_batch as lightning_full_batch
from lightning_bsqh.strategy.full_batch import _OnHost
from tests.counting import Counts
from tests.problems import cross_entropy, data, smooth_network
from tests.strategy.small_modules import (
    AlwaysTooLarge,
    Record,
    SmallModule,
    assert_same,
    weights_of,
)
from tests.strategy.test_no_trace import CountingLogger, trace

ITERATIONS = 50
SAMPLES = 96


class Classes(L.LightningModule):
    """A smooth network in float64 that logs its loss, and whatever else a test asks for."""

    def __init__(self, first: nn.Module | None = None, metric: bool = False, direct: bool = False) -> None:
        super().__init__()
        self.network = nn.Sequential(first or nn.Identity(), *smooth_network()).double()
        self.counts = Counts(self.network)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3) if metric else None
        self.direct = direct
        self.hooks = Record()

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        output = self.network(x)
        loss = nn.functional.cross_entropy(output, y)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"twice": 2.0 * loss})
        if self.accuracy is not None:
            self.log("accuracy", self.accuracy(output, y), on_step=True, on_epoch=False)
            self.log("all_accuracy", self.accuracy, on_step=False, on_epoch=True)
        if self.direct and self.logger is not None:
            self.logger.log_metrics({"direct": float(loss.detach())})
        return {"loss": loss, "output": output}

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.network(batch[0]), batch[1]))

    @override
    def on_after_backward(self) -> None:
        assert all(p.grad is not None for p in self.parameters())
        self.hooks.add("on_after_backward")

    @override
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.hooks.add("on_before_optimizer_step")

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert outputs["output"].shape == (len(batch[0]), 3)
        self.hooks.add(float(outputs["loss"]))


class EveryEpoch(L.Callback):
    """Keeps what each iteration reported, and what it evaluated."""

    def __init__(self) -> None:
        self.reports: list[Any] = []
        self.evaluations: list[tuple[int, int]] = []

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.reports.append(trainer.optimizers[0].last_step)  # type: ignore[attr-defined]
        if isinstance(pl_module, Classes):
            self.evaluations.append(pl_module.counts.take())


def loader(size: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data(SAMPLES)), batch_size=size, **options)


def full(**options: Any) -> BSQHStrategy:
    return BSQHStrategy(**{"regularizer": L0(rho=1e-4), "metric": "euclidean", "batch_mode": "full", **options})


@pytest.fixture
def fit(make_trainer: Callable[..., L.Trainer]) -> Callable[..., tuple[L.Trainer, Any, EveryEpoch]]:
    def run(
        size: int | Any, module: L.LightningModule | None = None, epochs: int = ITERATIONS, **options: Any
    ) -> tuple[L.Trainer, Any, EveryEpoch]:
        module = module or Classes()
        history = EveryEpoch()
        trainer_options = options.pop("trainer", {})
        callbacks = [history, *trainer_options.pop("callbacks", [])]
        validation = trainer_options.pop("validation", None)
        strategy = full(**options)
        trainer = make_trainer(strategy, **{"max_epochs": epochs, "callbacks": callbacks, **trainer_options})
        trainer.fit(module, loader(size) if isinstance(size, int) else size, validation)
        return trainer, module, history

    return run


def in_one_batch(iterations: int, **options: Any) -> tuple[list[float], list[Tensor]]:
    """J after each iteration and the weights at the end, without Lightning and on one batch of all data."""
    network = smooth_network()
    options = {"regularizer": L0(rho=1e-4), "metric": "euclidean", "total_steps": iterations, **options}
    optimizer = BSQHOptimizer(network, **options)
    objectives = []
    for _ in range(iterations):
        optimizer.step(lambda: cross_entropy(network, *data(SAMPLES)))
        assert optimizer.last_step is not None
        objectives.append(optimizer.last_step.objective_after)
    return objectives, [p.detach() for p in network.parameters()]


# ---------------------------------------------------------------------- J, G and the trajectory


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 7, 64, SAMPLES])
def test_same_trajectory_for_all_sizes(fit: Any, size: int) -> None:
    trainer, module, history = fit(size)
    objectives, weights = in_one_batch(ITERATIONS)
    found = [report.objective_after for report in history.reports]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(objectives), rtol=0.0, atol=1e-9)
    torch.testing.assert_close([p.detach() for p in module.parameters()], weights, rtol=0.0, atol=1e-9)
    assert trainer.optimizers[0].iterations == ITERATIONS
    assert trainer.global_step == ITERATIONS * len(loader(size))


def test_ramp_and_schedule_count_iterations(fit: Any) -> None:
    # Left to the modes, start, lengths and averaging differ.
    rule = Curvature(epsilon=62.5, longest=0.3, shortest=0.0)
    options = {"regularizer": Cardinality(sparsity=0.8), "metric": "rms", "augmentation": rule, "averaging": 0.0}
    trainer, module, _ = fit(7, epochs=20, **options)
    _, weights = in_one_batch(20, **options)
    assert trainer.optimizers[0].total_steps == 20
    torch.testing.assert_close([p.detach() for p in module.parameters()], weights, rtol=0.0, atol=1e-9)


def test_count_samples(fit: Any) -> None:
    class Named(Classes):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step((batch["x"], batch["y"]), batch_idx)

        @override
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            return

    x, y = data(SAMPLES)
    batches = [{"weights": torch.zeros(1, 2), "x": a, "y": b} for a, b in zip(x.split(7), y.split(7), strict=True)]
    ready = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    _, module, _ = fit(ready, Named(), epochs=10, count_samples=lambda batch: len(batch["y"]))
    torch.testing.assert_close([p.detach() for p in module.parameters()], in_one_batch(10)[1], rtol=0.0, atol=1e-9)


# ---------------------------------------------------------------------- evaluations


def calm() -> Backtracking:
    """A constant ε with which every first trial is accepted here."""
    return Backtracking(epsilon=5.0, zeta=1.0, schedule=False)


def test_one_micro_batch_costs_one_forward_and_one_backward(fit: Any) -> None:
    _, _, history = fit(SAMPLES, augmentation=calm())
    assert {report.trials for report in history.reports} == {1}
    assert history.evaluations == [(2, 1)] + (ITERATIONS - 1) * [(1, 1)]


def test_one_micro_batch_with_rejections(fit: Any) -> None:
    rule = Backtracking(epsilon=1.0, sigma=10.0, zeta=1e-3, schedule=False)
    _, _, history = fit(SAMPLES, epochs=10, augmentation=rule, max_trials=2)
    first = True
    assert {report.accepted for report in history.reports} == {True, False}
    was_accepted = True
    for report, (forwards, backwards) in zip(history.reports, history.evaluations, strict=True):
        assert forwards == report.trials + first
        # After a rejection even the backward is known.
        assert backwards == int(was_accepted)
        first, was_accepted = False, report.accepted


def test_several_micro_batches_take_the_adjoint_along(fit: Any) -> None:
    _, _, history = fit(32, augmentation=calm())
    assert history.evaluations == [(6, 3), (6, 6)] + (ITERATIONS - 2) * [(3, 3)]


def test_metrics_are_no_reason_to_go_forward_again(fit: Any) -> None:
    # Lightning makes a note of a metric in the module when it is logged for the first time.
    assert fit(32, Classes(metric=True), 8)[2].evaluations[3:] == 5 * [(3, 3)]
    assert fit(SAMPLES, Classes(metric=True), 8)[2].evaluations[2:] == 6 * [(1, 1)]


def test_several_micro_batches_with_rejections_go_forward_again(fit: Any) -> None:
    rule = Backtracking(epsilon=1.0, sigma=10.0, zeta=1e-3, schedule=False)
    _, _, history = fit(32, epochs=12, augmentation=rule, max_trials=20)
    for report, evaluations in list(zip(history.reports, history.evaluations, strict=True))[3:]:
        assert report.trials >= 2
        assert evaluations == (3 * (1 + report.trials), 3)


@pytest.mark.parametrize("size", [SAMPLES, 32])
def test_after_a_rejection_nothing_is_evaluated_again(fit: Any, size: int) -> None:
    _, module, history = fit(size, epochs=4, augmentation=AlwaysTooLarge(), max_trials=3)
    parts = SAMPLES // size
    assert history.evaluations == [(4 * parts, parts)] + 3 * [(3 * parts, 0)]
    assert all(map(torch.equal, module.parameters(), smooth_network().parameters()))


@pytest.mark.parametrize("size", [SAMPLES, 32])
@pytest.mark.parametrize(
    "what", ["dropout", "batchnorm", "shuffle", "trial_loss", "direct logging", "own backward", "reuse=False"]
)
def test_nothing_is_reused_if_it_might_be_another_function(fit: Any, size: int, what: str) -> None:
    class WithTrialLoss(Classes):
        def trial_loss(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    class WithBackward(Classes):
        @override
        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            loss.backward()

    modules: dict[str, Callable[[], Classes]] = {
        "dropout": lambda: Classes(nn.Dropout(0.1)),
        "batchnorm": lambda: Classes(nn.BatchNorm1d(6)),
        "trial_loss": WithTrialLoss,
        "direct logging": lambda: Classes(direct=True),
        "own backward": WithBackward,
    }
    _, _, history = fit(
        loader(size, shuffle=what == "shuffle"),
        modules.get(what, Classes)(),
        epochs=6,
        metric="rms",
        reuse=what != "reuse=False",
        trainer={"logger": CountingLogger()},
    )
    parts = SAMPLES // size
    for report, evaluations in zip(history.reports, history.evaluations, strict=True):
        assert evaluations == (parts * (1 + report.trials), parts)


# ---------------------------------------------------------------------- no trace, of trials and of reuse


@pytest.mark.parametrize("batch_size", [24, 8])
def test_rejected_trials_leave_no_trace(make_trainer: Any, make_loader: Any, batch_size: int) -> None:
    ordinary = trace(make_trainer, "auto", make_loader(batch_size=batch_size))
    strategy = full(regularizer=L0(rho=0.0), augmentation=AlwaysTooLarge(), max_trials=3)
    with pytest.warns(UserWarning, match="Adam"):
        bsqh = trace(make_trainer, strategy, make_loader(batch_size=batch_size))
    assert bsqh["optimizer"].last_step.trials == 3
    for what in ("global_step", "logged", "callback_metrics", "metrics", "weights", "random", "generator", "hooks"):
        assert_same(bsqh[what], ordinary[what])
    for what in ("fired", "printed", "attributes"):
        assert_same(bsqh[what], ordinary[what])


@pytest.mark.parametrize("size", [SAMPLES, 32])
@pytest.mark.parametrize(("metric", "direct"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("rule", [None, Backtracking(1e-2, sigma=3.0, zeta=0.3)], ids=["accepted", "rejections"])
def test_reuse_changes_nothing_that_can_be_seen(fit: Any, size: int, metric: bool, direct: bool, rule: Any) -> None:
    seen, forwards = [], []
    for reuse in (True, False):
        logger = CountingLogger()
        options = {"logger": logger, "log_every_n_steps": 1, "validation": loader(40)}
        trainer, module, history = fit(
            size,
            Classes(metric=metric, direct=direct),
            12,
            augmentation=rule,
            max_trials=2,
            reuse=reuse,
            trainer=options,
        )
        forwards.append(sum(f for f, _ in history.evaluations))
        seen.append(
            (logger.calls, module.hooks.items, weights_of(module), dict(trainer.callback_metrics), history.reports)
        )
    assert len(seen[0][0]) >= 12
    assert_same(seen[0], seen[1])
    assert forwards[0] < forwards[1] or direct


class Annealed(Classes):
    """Its function changes with an attribute that a hook sets."""

    factor = 1.0

    @override
    def on_train_epoch_start(self) -> None:
        self.factor = 1.0 + 0.1 * (self.current_epoch // 3)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = super().training_step(batch, batch_idx)
        return {**output, "loss": self.factor * output["loss"]}


@pytest.mark.parametrize("size", [SAMPLES, 32])
def test_a_changed_attribute_is_noticed(fit: Any, size: int) -> None:
    weights = [weights_of(fit(size, Annealed(), 9, reuse=reuse)[1]) for reuse in (True, False)]
    assert_same(weights[0], weights[1])


class Halving(Classes):
    """Changes its gradients after every backward."""

    @override
    def on_after_backward(self) -> None:
        super().on_after_backward()
        for p in self.parameters():
            assert p.grad is not None
            p.grad.mul_(0.5)


@pytest.mark.parametrize("size", [SAMPLES, 32])
@pytest.mark.parametrize("rule", [None, Backtracking(1e-2, sigma=3.0, zeta=0.3)], ids=["accepted", "rejections"])
def test_hooks_that_change_gradients_do_so_once(fit: Any, size: int, rule: Any) -> None:
    options = {"augmentation": rule, "max_trials": 2}
    weights = [weights_of(fit(size, Halving(), 9, reuse=reuse, **options)[1]) for reuse in (True, False)]
    assert_same(weights[0], weights[1])


class Drifting(Dataset):  # type: ignore[type-arg]
    """Whose last samples change in the fifth epoch."""

    def __init__(self, first_changed: int) -> None:
        self.x, self.y = data(SAMPLES)
        self.first_changed = first_changed
        self.reads = 0

    def __len__(self) -> int:
        return SAMPLES

    @override
    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        changed = index >= self.first_changed and self.reads > 4 * SAMPLES
        return (0.5 if changed else 1.0) * self.x[index], self.y[index]


@pytest.mark.parametrize("first_changed", [0, 40, 95])
def test_data_that_change_within_a_pass(fit: Any, first_changed: int) -> None:
    runs = [fit(DataLoader(Drifting(first_changed), batch_size=32), epochs=8, reuse=reuse) for reuse in (True, False)]
    for a, b in zip(runs[0][1].parameters(), runs[1][1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-12)
    assert runs[0][2].evaluations[3] == (3, 3)
    assert runs[0][2].evaluations[4][0] > 3


class WritesIntoBatch(Classes):
    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        batch[0].mul_(2.0)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("size", [SAMPLES, 32])
def test_a_training_step_that_writes_into_its_batch(fit: Any, size: int) -> None:
    x, y = data(SAMPLES)
    expected = fit(DataLoader(TensorDataset(2.0 * x, y), batch_size=size), epochs=6)[1]
    assert_same(weights_of(fit(size, WritesIntoBatch(), 6)[1]), weights_of(expected))


def test_batches_without_a_loss_are_left_out(fit: Any) -> None:
    class Skipping(Classes):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

        @override
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            return

    x, y = data(SAMPLES)
    rest = torch.cat([torch.arange(32), torch.arange(64, 96)])
    expected = fit(DataLoader(TensorDataset(x[rest], y[rest]), batch_size=32), epochs=6)[1]
    assert_same(weights_of(fit(32, Skipping(), 6)[1]), weights_of(expected))


# ---------------------------------------------------------------------- the Trainer around it


def test_stops_at_max_iterations(fit: Any) -> None:
    trainer, _, _ = fit(32, epochs=-1, max_iterations=7)
    assert trainer.optimizers[0].iterations == 7
    assert trainer.current_epoch == 7
    assert trainer.optimizers[0].total_steps == 7


def test_stops_below_kappa(fit: Any) -> None:
    trainer, _, history = fit(32, epochs=400, kappa=1e-3, augmentation=Backtracking(1.0, zeta=1.0, schedule=False))
    assert trainer.optimizers[0].converged
    assert trainer.current_epoch == len(history.reports) < 400
    assert history.reports[-1].tau < 1e-3 <= min(report.tau for report in history.reports[:-1])


def test_a_finished_training_goes_on_only_if_asked_to(fit: Any, tmp_path: Path) -> None:
    trainer, _, _ = fit(32, epochs=-1, max_iterations=4)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    for limit, expected in ((4, 4), (6, 6)):
        again = L.Trainer(
            accelerator="cpu",
            strategy=full(max_iterations=limit),
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        again.fit(Classes(), loader(32), ckpt_path=tmp_path / "a.ckpt")
        assert again.optimizers[0].iterations == expected  # type: ignore[attr-defined]


def test_validation_checkpoints_and_early_stopping(fit: Any, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=1)
    stopping = EarlyStopping("val_loss", patience=2, min_delta=0.05)
    options = {"validation": loader(40), "callbacks": [checkpoint, stopping], "enable_checkpointing": True}
    trainer, module, history = fit(32, epochs=100, trainer=options)
    assert stopping.stopped_epoch > 0
    assert len(history.reports) == stopping.stopped_epoch + 1
    x, y = data(SAMPLES)
    assert checkpoint.best_model_score is not None
    saved = torch.load(checkpoint.best_model_path, weights_only=True)
    module.load_state_dict(saved["state_dict"])
    assert checkpoint.best_model_score.item() == pytest.approx(cross_entropy(module.network, x, y).item(), abs=1e-6)
    # Validation follows the iteration, so it has seen its weights.
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(history.reports[-1].objective_after, abs=0.1)


class SaveAndStop(L.Callback):
    def __init__(self, path: Path, epoch: int) -> None:
        self.path, self.epoch = path, epoch

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch + 1 == self.epoch:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


@pytest.mark.parametrize("size", [SAMPLES, 32])
@pytest.mark.parametrize("layer", [None, nn.Dropout(0.1), nn.BatchNorm1d(6)], ids=["plain", "dropout", "batchnorm"])
def test_resumed_is_bit_identical(make_trainer: Any, tmp_path: Path, size: int, layer: nn.Module | None) -> None:
    def run(callbacks: list[Any], path: Path | None = None) -> tuple[Any, ...]:
        torch.manual_seed(3)
        module = Classes(layer)
        if layer is not None:
            layer.load_state_dict(nn.BatchNorm1d(6).double().state_dict() if layer.state_dict() else {})
        trainer = make_trainer(full(metric="rms", max_iterations=12), max_epochs=-1, callbacks=callbacks)
        trainer.fit(module, loader(size), ckpt_path=path, weights_only=True)
        optimizer = trainer.optimizers[0]
        return weights_of(module), optimizer.state_dict(), vars(optimizer.last_step), trainer.global_step

    whole = run([])
    run([SaveAndStop(tmp_path / "a.ckpt", 5)])
    assert_same(run([], tmp_path / "a.ckpt"), whole)


def test_resumed_within_an_epoch_begins_with_the_next_whole_pass(fit: Any, make_trainer: Any, tmp_path: Path) -> None:
    class Crash(L.Callback):
        @override
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 7:
                trainer.save_checkpoint(tmp_path / "a.ckpt")
                raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(32, epochs=5, trainer={"callbacks": [Crash()]})
    trainer = make_trainer(full(), max_epochs=5)
    with pytest.warns(UserWarning, match="A pass over the data began with batch 1"):
        trainer.fit(Classes(), loader(32), ckpt_path=tmp_path / "a.ckpt")
    assert trainer.optimizers[0].iterations == 4


def test_batches_on_a_device_wait_on_the_host(fit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_host(tensor: Tensor) -> _OnHost:
        moved.append(tensor)
        return _OnHost(tensor.clone(), tensor.device)

    moved: list[Tensor] = []
    expected = [weights_of(fit(size, epochs=6)[1]) for size in (32, SAMPLES)]
    monkeypatch.setattr(lightning_full_batch, "_to_host", to_host)
    _, module, history = fit(32, epochs=6)
    assert_same(weights_of(module), expected[0])
    # From the second pass on nothing new is seen.
    assert len(moved) == 3 * 2
    assert history.evaluations[2:] == 4 * [(3, 3)], "still known to be the same"
    moved.clear()
    assert_same(weights_of(fit(SAMPLES, epochs=6)[1]), expected[1])
    assert not moved


def test_max_steps_within_a_pass_warns(fit: Any) -> None:
    with pytest.warns(UserWarning, match="ended within a pass over the data"):
        trainer, _, _ = fit(32, epochs=-1, trainer={"max_steps": 8})
    assert trainer.optimizers[0].iterations == 2
    assert trainer.optimizers[0].total_steps == 2


def test_a_sharper_limit_of_batches(fit: Any) -> None:
    x, y = data(SAMPLES)
    expected = fit(DataLoader(TensorDataset(x[:64], y[:64]), batch_size=32), epochs=5)[1]
    found = fit(32, epochs=5, trainer={"limit_train_batches": 2})[1]
    assert_same(weights_of(found), weights_of(expected))


def test_monitor_logs_every_iteration_once(fit: Any, tmp_path: Path) -> None:
    monitor = AugmentationMonitor()
    logger = CSVLogger(tmp_path, name="", version="")
    _, _, history = fit(32, epochs=6, trainer={"callbacks": [monitor, SparsityMonitor()], "logger": logger})
    assert monitor.accepted_trials == sum(report.accepted for report in history.reports)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["bsqh/epsilon"]]
    assert [int(row["step"]) for row in rows] == [2, 5, 8, 11, 14, 17]
    for row, report in zip(rows, history.reports, strict=True):
        assert float(row["bsqh/objective"]) == pytest.approx(report.objective_after)


def test_progress_bar_shows_epsilon_throughout(fit: Any) -> None:
    shown: list[bool] = []

    class Watch(TQDMProgressBar):
        @override
        def get_metrics(self, *args: Any, **kwargs: Any) -> Any:
            metrics = super().get_metrics(*args, **kwargs)
            shown.append("bsqh/epsilon" in metrics)
            return metrics

    options = {"callbacks": [AugmentationMonitor(), Watch()], "enable_progress_bar": True}
    fit(32, epochs=3, trainer=options)
    assert all(shown[3:])
    assert len(shown) >= 9


def test_an_optimizer_of_the_module_s_own(make_trainer: Any) -> None:
    class Own(Classes):
        @override
        def configure_optimizers(self) -> Any:
            return BSQHOptimizer(
                self, regularizer=L0(rho=1e-4), metric="euclidean", batch_mode="full", max_iterations=6
            )

    module = Own()
    make_trainer(BSQHStrategy(), max_epochs=-1).fit(module, loader(7))
    torch.testing.assert_close([p.detach() for p in module.parameters()], in_one_batch(6)[1], rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_precisions(make_trainer: Any, make_loader: Any, precision: str) -> None:
    trainer = make_trainer(full(metric="rms"), max_epochs=4, precision=precision)
    trainer.fit(SmallModule(), make_loader())
    assert trainer.optimizers[0].iterations == 4


def test_from_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.setattr(sys, "argv", ["x"])
    config = tmp_path / "config.yaml"
    config.write_text(
        "trainer:\n  accelerator: cpu\n  strategy:\n    class_path: lightning_bsqh.BSQHStrategy\n    init_args:\n"
        "      batch_mode: full\n      kappa: 1e-6\n      max_iterations: 3\n      reuse: false\n"
        "      count_samples: builtins.len\n",
        encoding="utf-8",
    )
    cli = LightningCLI(SmallModule, run=False, save_config_callback=None, args=["--config", str(config)])
    strategy = cli.trainer.strategy
    assert isinstance(strategy, BSQHStrategy)
    assert strategy._options.batch_mode == "full"
    assert strategy._options.kappa == 1e-6
    assert strategy._options.max_iterations == 3
    assert strategy._options.count_samples is len


# ---------------------------------------------------------------------- bad input


class Endless(IterableDataset):  # type: ignore[type-arg]
    @override
    def __iter__(self) -> Any:
        x, y = data(SAMPLES)
        yield from zip(x, y, strict=True)


def test_a_loader_without_a_length_is_refused_before_the_first_iteration(make_trainer: Any) -> None:
    module = Classes()
    with pytest.raises(MisconfigurationException, match=r"batch_mode='full' needs .* known length.*DataLoader"):
        make_trainer(full(), max_epochs=2).fit(module, DataLoader(Endless(), batch_size=32))
    assert module.counts.take() == (0, 0)
    # A limit makes the length known.
    make_trainer(full(), max_epochs=2, limit_train_batches=3).fit(module, DataLoader(Endless(), batch_size=32))
    assert module.counts.take()[0] > 0


def test_a_batch_whose_samples_cannot_be_counted(make_trainer: Any) -> None:
    with pytest.raises(ValueError, match="count_samples"):
        make_trainer(full(), max_epochs=1).fit(Classes(), DataLoader([torch.tensor(1.0)], batch_size=None))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"batch_mode": "all"}, "batch_mode"), ({"kappa": -1.0}, "kappa"), ({"max_iterations": 0}, "max_iterations")],
)
def test_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        full(**options)
