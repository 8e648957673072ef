"""What a trial may not do (method §6), measured against an ordinary training that moves nothing."""

from __future__ import annotations

import gc
import io
import random
import weakref
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from contextlib import redirect_stdout
from random import Random
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from typing_extensions import override

from tests.strategy.small_modules import (
    Record,
    SmallModule,
    WithAdam,
    accepting_late,
    assert_same,
    rejecting,
    weights_of,
)

BATCHES = 3
EPOCHS = 2


class CountingLogger(Logger):
    """Keeps every call of log_metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[dict[str, float], int | None]] = []

    @property
    @override
    def name(self) -> str:
        return "counting"

    @property
    @override
    def version(self) -> str:
        return "0"

    @override
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.calls.append((dict(metrics), step))

    @override
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        return


class RecordingDropout(nn.Module):
    """Dropout that keeps its masks; draws from every kind of global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.masks = Record()

    @override
    def forward(self, x: Tensor) -> Tensor:
        mask = (torch.rand_like(x) < 0.5).to(x.dtype)
        self.masks.add((mask, float(np.random.rand()), random.random()))
        return 2.0 * x * mask


class Everything(L.LightningModule):
    """Logs, counts, draws and remembers in all the ways that a user's module may."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = RecordingDropout()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), self.dropout, nn.Linear(8, 1))
        self.error = torchmetrics.MeanSquaredError()
        self.values = torchmetrics.CatMetric()
        self.auroc = torchmetrics.AUROC(task="binary")
        self.collection = torchmetrics.MetricCollection([torchmetrics.MeanAbsoluteError(), torchmetrics.R2Score()])
        self.listed = [torchmetrics.MeanMetric()]
        self.by_name = {"a": torchmetrics.MeanMetric()}
        self.generator = torch.Generator().manual_seed(3)
        self.counter = 0
        self.history: list[float] = []
        self.table: dict[str, float] = {}
        self.names: set[int] = set()
        self.average: float | None = None
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))
        self.forwards = Record()
        self.hooks = Record()
        self.gradients = Record()

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.forwards.add(batch_idx)
        noise = 0.01 * torch.randn(y.shape, generator=self.generator)
        prediction = self.net(x) + noise
        loss = nn.functional.mse_loss(prediction, y)
        self.counter += 1
        self.history.append(1.0)
        self.table[f"{self.counter}"] = 1.0
        self.names.add(self.counter)
        self.average = 1.0 if self.average is None else 0.5 * self.average
        self.latest = float(loss.detach())
        self.seen += 1
        self.replaced = self.replaced + 1
        self.collection(prediction, y)
        self.listed[0].update(loss)
        self.by_name["a"].update(loss)
        self.log("error", self.error(prediction, y), on_step=True, on_epoch=True)
        self.values.update(prediction)
        self.auroc.update(prediction.flatten(), (y > 0).long().flatten())
        self.log("auroc", self.auroc, on_step=False, on_epoch=True)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("calls", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
        self.log_dict({"first": loss, "second": 2.0 * loss}, on_step=True, on_epoch=True)
        if self.logger is not None:
            self.logger.log_metrics({"direct": self.latest}, step=self.global_step)
        self.print("one line")
        return loss

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.0)

    @override
    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.hooks.add("on_before_zero_grad")

    @override
    def on_before_backward(self, loss: Tensor) -> None:
        self.hooks.add("on_before_backward")

    @override
    def on_after_backward(self) -> None:
        self.hooks.add("on_after_backward")

    @override
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.hooks.add("on_before_optimizer_step")

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.hooks.add("on_train_batch_start")

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.hooks.add("on_train_batch_end")
        gradients = {name: None if p.grad is None else p.grad.clone() for name, p in self.named_parameters()}
        self.gradients.add((gradients, self.global_step, float(outputs["loss"]), random_state()))


def random_state() -> Any:
    """All global generators, as comparable values."""
    keys = np.random.get_state()
    return torch.get_rng_state(), [keys[0], torch.from_numpy(keys[1].astype("int64")), *keys[2:]], random.getstate()


def metric_states(module: nn.Module) -> dict[str, Any]:
    """Update counts and states of all torchmetrics objects, those in plain containers included."""
    metrics: dict[str, torchmetrics.Metric] = {
        name: child for name, child in module.named_modules() if isinstance(child, torchmetrics.Metric)
    }
    metrics["listed"] = module.listed[0]
    metrics["by_name"] = module.by_name["a"]
    return {
        name: (metric._update_count, {key: getattr(metric, key) for key in metric._defaults})
        for name, metric in metrics.items()
    }


def trace(make_trainer: Callable[..., L.Trainer], strategy: Any, loader: Any) -> dict[str, Any]:
    """Trains ``Everything`` and collects whatever an observer could see; metrics just before they are reset."""
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    module, logger = Everything(), CountingLogger()
    fired = Record()
    for name, parameter in module.named_parameters():
        parameter.register_hook(lambda gradient, name=name: fired.add(("hook", name)))
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: fired.add(("accumulated", name)))
    module.net[3].register_full_backward_hook(lambda *_: fired.add("module"))
    metrics: list[Any] = []
    trainer = make_trainer(
        strategy,
        max_epochs=EPOCHS,
        limit_train_batches=BATCHES,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[_AtEpochEnd(lambda: metrics.append(_copy(metric_states(module))))],
    )
    with redirect_stdout(io.StringIO()) as printed:
        trainer.fit(module, loader)
    return {
        "module": module,
        "optimizer": trainer.optimizers[0],
        "global_step": trainer.global_step,
        "logged": logger.calls,
        "callback_metrics": dict(trainer.callback_metrics),
        "metrics": metrics,
        "weights": weights_of(module),
        "masks": module.dropout.masks.items,
        "random": random_state(),
        "generator": module.generator.get_state(),
        "hooks": module.hooks.items,
        "fired": fired.items,
        "steps": module.gradients.items,
        "printed": printed.getvalue(),
        "attributes": {
            name: getattr(module, name)
            for name in ("counter", "history", "table", "names", "average", "latest", "seen", "replaced")
        },
    }


class _AtEpochEnd(L.Callback):
    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.call()


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return type(value)(map(_copy, value)) if isinstance(value, (list, tuple)) else value


@pytest.fixture
def pair(make_trainer: Any, make_loader: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The traces of an ordinary training that moves nothing, and of one whose trials are all rejected."""
    ordinary = trace(make_trainer, "auto", make_loader(shuffle=True))
    with pytest.warns(UserWarning, match="Adam"):
        bsqh = trace(make_trainer, rejecting(), make_loader(shuffle=True))
    assert bsqh["optimizer"].last_step.trials == 3
    assert len(bsqh["module"].forwards.items) == EPOCHS * BATCHES * 4, "one forward sweep and three trials per batch"
    return ordinary, bsqh


@pytest.mark.parametrize(
    "what",
    [
        "global_step",
        "logged",
        "callback_metrics",
        "metrics",
        "weights",
        "random",
        "generator",
        "hooks",
        "fired",
        "steps",
        "printed",
        "attributes",
    ],
)
def test_rejected_trials_leave_what_one_forward_and_backward_leaves(pair: Any, what: str) -> None:
    ordinary, bsqh = pair
    assert isinstance(ordinary[what], Tensor) or ordinary[what], "the comparison would be empty"
    assert_same(bsqh[what], ordinary[what])


def test_trials_draw_the_same_random_numbers_as_the_forward_sweep(pair: Any) -> None:
    ordinary, bsqh = pair
    for index, expected in enumerate(ordinary["masks"]):
        for drawn in bsqh["masks"][4 * index : 4 * index + 4]:
            assert_same(drawn, expected)


def test_one_batch_that_is_accepted_after_rejections(make_trainer: Any, make_loader: Any) -> None:
    ordinary = trace(make_trainer, "auto", make_loader(batch_size=24))
    with pytest.warns(UserWarning, match="Adam"):
        bsqh = trace(make_trainer, accepting_late(), make_loader(batch_size=24))
    report = bsqh["optimizer"].last_step
    assert report.accepted
    assert report.trials > 1
    # The second epoch starts from other weights, so values are compared where they do not depend on them.
    for what in ("global_step", "random", "generator", "hooks", "fired", "printed"):
        assert_same(bsqh[what], ordinary[what])
    assert len(bsqh["logged"]) == len(ordinary["logged"])
    assert_same(bsqh["logged"][0], ordinary["logged"][0])
    assert_same(bsqh["metrics"][0], ordinary["metrics"][0])
    assert_same(bsqh["steps"][0], ordinary["steps"][0])
    assert bsqh["attributes"]["counter"] == EPOCHS
    assert bsqh["attributes"]["seen"] == EPOCHS


def test_global_step_advances_by_one_per_batch_accepted_or_not(make_trainer: Any, make_loader: Any) -> None:
    class Watch(L.Callback):
        def __init__(self) -> None:
            self.seen: list[tuple[int, bool]] = []

        @override
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            self.seen.append((trainer.global_step, trainer.optimizers[0].last_step.accepted))  # type: ignore[attr-defined]

    watch = Watch()
    # Three trials reach an acceptance from one batch's ε and not from another's.
    trainer = make_trainer(accepting_late(max_trials=3), max_epochs=4, callbacks=[watch])
    trainer.fit(SmallModule(), make_loader())
    assert [step for step, _ in watch.seen] == list(range(1, 13))
    assert {accepted for _, accepted in watch.seen} == {True, False}


class Remembering(SmallModule):
    """Keeps weak references to the activations of each forward, and whether they carried a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.activations = Record()

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = self.net[0](batch[0])
        self.activations.add((weakref.ref(hidden), hidden.requires_grad))
        return nn.functional.mse_loss(self.net[1:](hidden), batch[1])


def test_trials_build_no_graph_and_nothing_is_kept_after_the_batch(make_trainer: Any, make_loader: Any) -> None:
    alive: list[int] = []

    class Watch(L.Callback):
        @override
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            gc.collect()
            alive.append(sum(ref() is not None for ref, _ in pl_module.activations.items))

    module = Remembering()
    make_trainer(rejecting(), callbacks=[Watch()]).fit(module, make_loader())
    assert [graph for _, graph in module.activations.items] == [True, False, False, False] * 3
    assert alive == [0, 0, 0]


def test_a_batch_is_not_held_beyond_its_step(make_trainer: Any, make_loader: Any) -> None:
    class Watching(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.batches, self.alive = Record(), Record()

        @override
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            gc.collect()
            self.alive.add(sum(ref() is not None for ref in self.batches.items))
            self.batches.add(weakref.ref(batch[0]))

    module = Watching()
    make_trainer(rejecting()).fit(module, make_loader())
    gc.collect()
    assert module.alive.items == [0, 0, 0]
    assert module.batches.items[-1]() is None


def losses_of_trials(module_class: type[SmallModule]) -> type[SmallModule]:
    """The module with the batch that each sweep saw recorded, as a checksum per sweep."""

    class Recording(module_class):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.sums = Record()

        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.sums.add(self.checksum)
            return loss

    return Recording


class NoisyInPlace(SmallModule):
    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        x.add_(torch.randn_like(x))
        self.checksum = float(x.sum())
        return self.loss((x, y))


class NoisyNow(SmallModule):
    """Writes into some batches only, and not into the first."""

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        if batch_idx == 1:
            x.add_(1.0)
        self.checksum = float(x.sum())
        return self.loss((x, y))


class Popping(SmallModule):
    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        y = batch.pop("y")
        x = batch["x"]
        self.checksum = float(x.sum())
        assert "y" not in batch
        return self.loss((x, y))


class PoppingAList(SmallModule):
    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        y = batch.pop()
        self.checksum = float(batch[0].sum())
        return self.loss((batch[0], y))


@pytest.mark.parametrize(("module_class", "sweeps"), [(NoisyInPlace, [4] * 6), (NoisyNow, [4, 1, 4, 4, 4, 4])])
def test_trials_see_the_batch_as_it_came(
    make_trainer: Any, make_loader: Any, module_class: Any, sweeps: list[int]
) -> None:
    """One that training_step has unexpectedly written into has no trials; from then on a copy is kept."""
    module = losses_of_trials(module_class)()
    # A fresh copy per batch, so that the data set itself is not written to.
    loader = make_loader(collate_fn=lambda rows: [torch.stack([r[i] for r in rows]).clone() for i in range(2)])
    trainer = make_trainer(rejecting(), max_epochs=2)
    trainer.fit(module, loader)
    assert trainer.global_step == 6
    sums = iter(module.sums.items)
    for count in sweeps:
        assert len({next(sums) for _ in range(count)}) == 1
    assert next(sums, None) is None


Pair = namedtuple("Pair", ["x", "y"])


@pytest.mark.parametrize("kind", [dict, OrderedDict, UserDict])
def test_a_batch_that_training_step_takes_apart(make_trainer: Any, make_loader: Any, kind: Any) -> None:
    def collate(rows: Any) -> Any:
        return kind({"x": torch.stack([r[0] for r in rows]), "y": torch.stack([r[1] for r in rows])})

    module = losses_of_trials(Popping)()
    trainer = make_trainer(rejecting())
    trainer.fit(module, make_loader(collate_fn=collate))
    assert len(module.sums.items) == 12
    assert trainer.optimizers[0].last_step.trials == 3


def test_a_list_that_training_step_takes_apart(make_trainer: Any, make_loader: Any) -> None:
    module = losses_of_trials(PoppingAList)()
    make_trainer(rejecting()).fit(module, make_loader())
    assert len(module.sums.items) == 12


def test_a_named_tuple_keeps_its_type(make_trainer: Any, make_loader: Any) -> None:
    class Named(SmallModule):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            batch.x.add_(1.0)
            self.checksum = float(batch.x.sum())
            return self.loss((batch.x, batch.y))

    def collate(rows: Any) -> Any:
        return Pair(torch.stack([r[0] for r in rows]), torch.stack([r[1] for r in rows]))

    module = losses_of_trials(Named)()
    make_trainer(rejecting()).fit(module, make_loader(collate_fn=collate))
    for batch in range(3):
        assert len(set(module.sums.items[4 * batch : 4 * batch + 4])) == 1


class OwnGenerator(SmallModule):
    """Draws from generators of its own, in one of the three kinds that there are."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.drawn = Record()
        self.torch_generator = torch.Generator().manual_seed(0) if kind == "torch" else None
        self.numpy_generator = np.random.default_rng(0) if kind == "numpy" else None
        self.python_generator = Random(0) if kind == "python" else None

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.torch_generator is not None:
            number = float(torch.rand((), generator=self.torch_generator))
        elif self.numpy_generator is not None:
            number = float(self.numpy_generator.random())
        else:
            assert self.python_generator is not None
            number = self.python_generator.random()
        self.drawn.add(number)
        return self.loss(batch) * (1.0 + number)


@pytest.mark.parametrize("kind", ["torch", "numpy", "python"])
def test_generators_of_the_module_draw_the_same_in_trials(make_trainer: Any, make_loader: Any, kind: str) -> None:
    module = OwnGenerator(kind)
    make_trainer(rejecting()).fit(module, make_loader())
    generator, array_generator, plain_generator = torch.Generator().manual_seed(0), np.random.default_rng(0), Random(0)
    for batch in range(3):
        expected = {
            "torch": float(torch.rand((), generator=generator)),
            "numpy": float(array_generator.random()),
            "python": plain_generator.random(),
        }[kind]
        assert module.drawn.items[4 * batch : 4 * batch + 4] == [expected] * 4


def test_trials_begin_where_the_forward_sweep_began(make_trainer: Any, make_loader: Any) -> None:
    """A loss that depends on a counter or a queue: J_B(û) and J_B(w) must be the same function."""

    class Annealed(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.counter = 0
            self.seen = Record()
            self.register_buffer("queue", torch.zeros(()))

        @override
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.seen.add((self.counter, float(self.queue)))
            self.counter += 1
            self.queue += 1
            return self.loss(batch)

    module = Annealed()
    make_trainer(rejecting()).fit(module, make_loader())
    assert module.seen.items == [(k, float(k)) for k in range(3) for _ in range(4)]


def test_trial_loss_is_what_trials_call(make_trainer: Any, make_loader: Any) -> None:
    class Own(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.steps, self.trials = Record(), Record()

        @override
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.steps.add(batch_idx)
            return self.loss(batch)

        def trial_loss(self, batch: Any, batch_idx: int) -> Tensor:
            self.trials.add((batch_idx, batch[0].shape, torch.is_grad_enabled(), self.training))
            return self.loss(batch)

    module = Own()
    trainer = make_trainer(rejecting())
    trainer.fit(module, make_loader())
    assert module.steps.items == [0, 1, 2]
    assert module.trials.items == [(k, torch.Size([8, 4]), False, True) for k in range(3) for _ in range(3)]


def test_trial_loss_without_batch_idx_in_training_step(make_trainer: Any, make_loader: Any) -> None:
    class Own(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.trials = Record()

        @override
        def training_step(self, batch: Any) -> Tensor:  # type: ignore[override]
            return self.loss(batch)

        def trial_loss(self, batch: Any, batch_idx: int) -> Tensor:
            self.trials.add(batch_idx)
            return self.loss(batch)

    module = Own()
    make_trainer(rejecting(max_trials=1)).fit(module, make_loader())
    assert module.trials.items == [0, 1, 2]


def test_an_exception_in_a_trial_leaves_the_module_speaking(make_trainer: Any, make_loader: Any) -> None:
    class Failing(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.forwards = Record()

        @override
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.forwards.add(batch_idx)
            if len(self.forwards.items) == 2:
                raise KeyError("a bug of the user's in the second call")
            return self.loss(batch)

    module = Failing()
    logger = CountingLogger()
    trainer = make_trainer(rejecting(), logger=logger)
    with pytest.raises(KeyError, match="second call"):
        trainer.fit(module, make_loader())
    assert trainer.loggers == [logger]
    assert not {"log", "log_dict", "print"} & vars(module).keys()


def test_a_log_of_the_user_on_the_instance_comes_back(make_trainer: Any, make_loader: Any) -> None:
    module = SmallModule()
    module.log = own = lambda *a, **k: None  # type: ignore[method-assign]
    make_trainer(rejecting()).fit(module, make_loader())
    assert module.log is own


def test_gradients_after_the_step_are_those_of_the_forward_sweep(make_trainer: Any, make_loader: Any) -> None:
    class Kept(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.after_backward, self.after_step = Record(), Record()

        def _gradients(self) -> list[Tensor]:
            return [p.grad.clone() for p in self.parameters() if p.grad is not None]

        @override
        def on_after_backward(self) -> None:
            self.after_backward.add(self._gradients())

        @override
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.after_step.add(self._gradients())

    module = Kept()
    make_trainer(accepting_late()).fit(module, make_loader())
    assert len(module.after_backward.items) == 3
    assert_same(module.after_step.items, module.after_backward.items)


def test_validation_and_training_mode_are_left_alone(make_trainer: Any, make_loader: Any) -> None:
    module = WithAdam()
    module.net[3].eval()
    with pytest.warns(UserWarning, match="Adam"):
        make_trainer(rejecting()).fit(module, make_loader())
    assert not module.net[3].training
    assert module.net[1].training
