"""Where a training_step runs and what it is given: in a trial the same as in the forward sweep."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_bsqh.trainer_access import is_within_batch, metrics_as_before, metrics_of
from tests.network.made_things import change, nests, picture
from tests.strategy.small_modules import Record, SmallModule, rejecting
from tests.strategy.test_no_trace import CountingLogger

QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "trainer.log_dir": lambda m: m.trainer.log_dir,
    "logger.log_dir": lambda m: m.logger.log_dir,
    "logger.save_dir": lambda m: m.logger.save_dir,
    "logger.name": lambda m: (m.logger.name, m.logger.version),
    "logger.root_dir": lambda m: m.logger.root_dir,
    "kinds": lambda m: [type(each).__name__ for each in m.loggers],
    "instance": lambda m: isinstance(m.logger, (CSVLogger, TensorBoardLogger)),
    "identity": lambda m: id(m.logger),
    "global_step": lambda m: (m.global_step, m.trainer.current_epoch),
}


class Asking(SmallModule):
    def __init__(self) -> None:
        super().__init__()
        self.answers = Record()

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.answers.add((batch_idx, {name: question(self) for name, question in QUESTIONS.items()}))
        self.logger.log_metrics({"direct": 1.0})  # type: ignore[union-attr]
        self.logger.experiment  # noqa: B018
        return self.loss(batch)


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_same_answers(make_trainer: Any, make_loader: Any, tmp_path: Path, kind: Any) -> None:
    module, logger = Asking(), kind(tmp_path)
    make_trainer(rejecting(), logger=logger).fit(module, make_loader())
    assert type(logger) is kind
    assert len(module.answers.items) == 12
    for batch in range(3):
        answers = [answer for index, answer in module.answers.items if index == batch]
        assert all(answer == answers[0] for answer in answers)
    assert not (tmp_path / "None").exists()


def test_loggers_hear_of_the_forward_sweep_only(make_trainer: Any, make_loader: Any) -> None:
    class Direct(SmallModule):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.trainer.loggers[0].log_metrics({"direct": float(batch_idx)})
            return self.loss(batch)

    logger = CountingLogger()
    make_trainer(rejecting(), logger=logger, log_every_n_steps=100).fit(Direct(), make_loader())
    assert [metrics["direct"] for metrics, _ in logger.calls if "direct" in metrics] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("where", ["callback_metrics", "logged_metrics", "progress_bar_metrics"])
@pytest.mark.parametrize("full", [False, True])
def test_metrics_are_those_that_the_forward_sweep_saw(
    make_trainer: Any, make_loader: Any, where: str, full: bool
) -> None:
    class Logging(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.seen = Record()

        @override
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            metrics = {name: float(value) for name, value in getattr(self.trainer, where).items()}
            self.seen.add(((self.current_epoch, batch_idx), metrics))
            loss = self.loss(batch)
            self.log("loss", loss + batch_idx, prog_bar=True, on_step=True, on_epoch=True)
            return loss

    module = Logging()
    mode = {"batch_mode": "full"} if full else {}
    trainer = make_trainer(rejecting(**mode), max_epochs=2, logger=CountingLogger(), log_every_n_steps=1)
    trainer.fit(module, make_loader())
    assert len(module.seen.items) > 6
    for step in {step for step, _ in module.seen.items}:
        # In the second epoch of full-batch mode nothing runs again that is known.
        found = [metrics for at, metrics in module.seen.items if at == step]
        assert all(metrics == found[0] for metrics in found), step
    assert trainer.callback_metrics["loss_step"] > 2.0


def test_the_trainer_still_asks_its_connector_for_metrics(make_trainer: Any) -> None:
    """If this fails, Lightning has changed what trainer_access.metrics_as_before stands on."""
    trainer = make_trainer("auto")
    before = metrics_of(trainer)
    before.callback["a"], before.logged["b"], before.progress_bar["c"] = 1, 2, 3
    with metrics_as_before(trainer, before):
        assert trainer.callback_metrics["a"] == 1
        assert trainer.logged_metrics["b"] == 2
        assert trainer.progress_bar_metrics["c"] == 3
    assert "a" not in trainer.callback_metrics


def test_gradients_are_off_in_a_trial(make_trainer: Any, make_loader: Any) -> None:
    class Asks(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.seen = Record()

        @override
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.seen.add(torch.is_grad_enabled())
            return self.loss(batch)

    module = Asks()
    make_trainer(rejecting()).fit(module, make_loader())
    assert module.seen.items == [True, False, False, False] * 3


# ---------------------------------------------------------------------- the batch


class Box:
    """A batch of a class of one's own, with anything in it."""

    def __init__(self, x: Tensor, y: Tensor, more: Any) -> None:
        self.x, self.y, self.more = x, y, more


class Rewriting(SmallModule):
    """Changes everything in its batch, at random but in every sweep in the same way, and notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given = Record()

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.given.add((batch_idx, picture(batch.more)))
        change(batch.more, random.Random(batch_idx))
        batch.x, y = 2.0 * batch.x, vars(batch).pop("y")
        return nn.functional.mse_loss(self.net(batch.x), y)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(more=nests)
def test_a_trial_is_given_what_the_forward_sweep_was_given(make_trainer: Any, more: Any) -> None:
    torch.manual_seed(0)
    module = Rewriting()
    batches = [Box(torch.randn(8, 4), torch.randn(8, 1), more) for _ in range(3)]
    trainer = make_trainer(rejecting())
    trainer.fit(module, DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch))  # type: ignore[arg-type]
    for index in range(3):
        given_here = [seen for at, seen in module.given.items if at == index]
        assert all(seen == given_here[0] for seen in given_here)
        assert len(given_here) in (1, 4)
    assert all(not hasattr(batch, "y") for batch in batches), "as the forward sweep has left it"


@pytest.mark.parametrize("mode", ["mini", "full"])
def test_arrays_and_fields_of_a_batch(make_trainer: Any, mode: str) -> None:
    class Doubling(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.sums = Record()

        @override
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            np.multiply(batch["x"], 2, out=batch["x"])
            batch["box"].x = 2 * batch["box"].x
            self.sums.add((batch_idx, float(batch["x"].sum()), float(batch["box"].x.sum())))
            return self.loss((torch.from_numpy(batch["x"].copy()) + batch["box"].x, batch["box"].y))

    def collate(rows: Any) -> Any:
        return {"x": torch.stack(rows).numpy(), "box": Box(torch.stack(rows), torch.ones(len(rows), 1), None)}

    rows = list(torch.randn(16, 4).unbind())
    module = Doubling()
    strategy = rejecting(batch_mode="full", count_samples=lambda b: len(b["x"])) if mode == "full" else rejecting()
    make_trainer(strategy, max_epochs=2).fit(module, DataLoader(rows, 8, collate_fn=collate))  # type: ignore[arg-type]
    for index in range(2):
        assert len({(x, box) for at, x, box in module.sums.items if at == index}) == 1
    assert len(module.sums.items) >= 12


def test_the_loops_still_say_whether_a_batch_is_done(make_trainer: Any, make_loader: Any) -> None:
    """If this fails, Lightning has changed what trainer_access.is_within_batch stands on."""
    seen = []

    class Asks(SmallModule):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if torch.is_grad_enabled():
                seen.append(is_within_batch(self.trainer))
            return self.loss(batch)

        @override
        def on_train_batch_end(self, *args: Any) -> None:
            seen.append(is_within_batch(self.trainer))

    trainer = make_trainer(rejecting(), max_steps=2)
    trainer.fit(Asks(), make_loader())
    assert seen == [True, False, True, False]
    assert not is_within_batch(trainer)
