"""Manual optimization: ``loss = self.optimizers().step(closure)`` is one iteration, like a training_step's own loss."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from typing_extensions import override

from lightning_bsqh import BSQHStrategy
from tests.strategy.small_modules import Record, SmallModule, accepting_late, assert_same, weights_of
from tests.strategy.test_no_trace import CountingLogger


class Manual(SmallModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.events = Record()

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        def closure() -> Any:
            loss = self.loss(batch)
            self.log("loss", loss)
            return loss

        loss = self.optimizers().step(closure)
        assert loss is not None
        self.events.add(float(loss))

    @override
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        assert all(p.grad is not None for p in self.parameters())
        self.events.add("before step")

    @override
    def on_after_backward(self) -> None:
        self.events.add("after backward")


class Automatic(SmallModule):
    def __init__(self) -> None:
        super().__init__()
        self.events = Record()

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    @override
    def on_train_batch_end(self, outputs: Any, *args: Any) -> None:
        self.events.add(float(outputs["loss"]))


def test_same_as_automatic_optimization(make_trainer: Any, make_loader: Any) -> None:
    ends = []
    for kind in (Automatic, Manual):
        torch.manual_seed(0)
        module, logger = kind(), CountingLogger()
        trainer = make_trainer(accepting_late(metric="rms"), max_epochs=3, logger=logger, log_every_n_steps=1)
        trainer.fit(module, make_loader())
        losses = [event for event in module.events.items if isinstance(event, float)]
        optimizer = trainer.optimizers[0]
        logged = [metrics["loss"] for metrics, _ in logger.calls if "loss" in metrics]
        assert trainer.global_step == optimizer.iterations == optimizer.total_steps == 9
        ends.append((weights_of(module), losses, logged, optimizer.last_step.loss, optimizer.last_step.trials))
    assert_same(*ends)
    assert module.events.items[:3] == ["after backward", "before step", ends[1][1][0]]


def test_several_steps_in_one_batch(make_trainer: Any, make_loader: Any) -> None:
    class Twice(Manual):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for _ in range(2):
                self.optimizers().step(lambda: self.loss(batch))

    trainer = make_trainer(BSQHStrategy(total_steps=12), max_epochs=2)
    trainer.fit(Twice(), make_loader())
    assert trainer.global_step == trainer.optimizers[0].iterations == 12


class Ordinary(Manual):
    """As the documentation of Lightning shows it."""

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


class BackwardInside(Manual):
    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        def closure() -> Any:
            loss = self.loss(batch)
            self.manual_backward(loss)
            return loss

        self.optimizers().step(closure)


@pytest.mark.parametrize("kind", [Ordinary, BackwardInside])
def test_steps_without_a_closure_for_trials(make_trainer: Any, make_loader: Any, kind: Any) -> None:
    module = kind()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    with pytest.raises(MisconfigurationException, match=r"loss = self\.optimizers\(\)\.step\(closure\)"):
        make_trainer(BSQHStrategy()).fit(module, make_loader())
    assert_same({name: p.detach() for name, p in module.named_parameters()}, before)


def test_a_closure_that_returns_no_loss(make_trainer: Any, make_loader: Any) -> None:
    class Vector(Manual):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.optimizers().step(lambda: self.loss(batch).expand(2))

    with pytest.raises(ValueError, match=r"The closure of self\.optimizers\(\)\.step\(closure\) must return a real"):
        make_trainer(BSQHStrategy()).fit(Vector(), make_loader())


def test_never_stepping_is_said(make_trainer: Any, make_loader: Any) -> None:
    class Forgets(Manual):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss(batch)

    with pytest.warns(UserWarning, match="has never stepped"):
        make_trainer(BSQHStrategy()).fit(Forgets(), make_loader())


def test_bfloat16(make_trainer: Any, make_loader: Any) -> None:
    class Half(Manual):
        @override
        def loss(self, batch: Any) -> Any:
            kinds.add(self.net[0](batch[0]).dtype)
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    kinds: set[torch.dtype] = set()
    trainer = make_trainer(BSQHStrategy(), precision="bf16-mixed")
    trainer.fit(Half(), make_loader())
    assert kinds == {torch.bfloat16}
    assert isinstance(trainer, L.Trainer)
    assert trainer.optimizers[0].iterations == 3
