"""The parts of the sweeps of a LightningModule that need no Trainer."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from lightning_bsqh.strategy.sweeps import loss_of, silence
from lightning_bsqh.sweeps.base import check_loss


def test_loss_of_a_tensor_a_dict_and_none() -> None:
    loss = torch.ones(())
    assert loss_of(loss) is loss
    assert loss_of({"loss": loss, "x": 1}) is loss
    assert loss_of(None) is None


@pytest.mark.parametrize("output", [{}, {"Loss": 1.0}, {"loss": None, "x": 1}])
def test_a_dict_without_loss(output: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="without the key 'loss'") as raised:
        loss_of(output)
    assert str(sorted(output)) in str(raised.value)


def test_check_loss_returns_the_loss_itself() -> None:
    loss = torch.ones((), requires_grad=True) * 2.0
    assert check_loss(loss, "closure") is loss
    # A trial has no graph, and none is kept of one that has.
    assert not check_loss(loss, "closure", adjoint=False).requires_grad
    assert check_loss(torch.ones(1, 1), "closure", adjoint=False).shape == (1, 1)


@pytest.mark.parametrize(
    ("loss", "error", "words"),
    [
        (3.0, TypeError, "mine must return the loss as a scalar tensor, got float"),
        (None, TypeError, "got NoneType"),
        (torch.ones(2), ValueError, "real scalar loss, got shape (2,)"),
        (torch.ones(0), ValueError, "real scalar loss, got shape (0,)"),
        (torch.ones((), dtype=torch.int64), ValueError, "dtype torch.int64"),
        (torch.ones((), dtype=torch.complex64), ValueError, "dtype torch.complex64"),
        (torch.ones(()), ValueError, "without an autograd graph"),
    ],
)
def test_check_loss_refuses(loss: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        check_loss(loss, "mine")
    assert words in str(raised.value)


class Parent(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.child = L.LightningModule()
        self.other = nn.Linear(2, 2)
        self.spoken: list[Any] = []


class Stub:
    """Stands in for the Trainer: silence touches its loggers only."""

    def __init__(self) -> None:
        self.loggers: list[Any] = [object(), object()]


@pytest.fixture
def parent() -> Parent:
    module = Parent()
    module._trainer = Stub()  # type: ignore[assignment]
    return module


def test_silence_turns_off_and_on(parent: Parent) -> None:
    loggers = parent.trainer.loggers
    with silence(parent, parent.modules()):
        assert parent.log("a", 1.0) is None  # type: ignore[func-returns-value]
        assert parent.log_dict({"a": 1.0}) is None  # type: ignore[func-returns-value]
        parent.child.log("a", 1.0)
        parent.print("a")
        assert all(isinstance(logger, DummyLogger) for logger in parent.trainer.loggers)
        assert len(parent.trainer.loggers) == 2
        parent.trainer.loggers[0].log_metrics({"a": 1.0})
        parent.trainer.loggers[0].experiment.add_image("a")
    assert parent.trainer.loggers is loggers
    for module in (parent, parent.child):
        assert not {"log", "log_dict", "print"} & vars(module).keys()


def test_silence_ends_with_an_exception_and_keeps_the_users_own(parent: Parent) -> None:
    loggers = parent.trainer.loggers
    parent.log = parent.spoken.append  # type: ignore[method-assign, assignment]
    own = vars(parent)["log"]

    def fail() -> None:
        parent.log("a", 1.0)
        raise KeyError

    with pytest.raises(KeyError), silence(parent, parent.modules()):
        fail()
    assert vars(parent)["log"] is own
    assert parent.spoken == []
    assert parent.trainer.loggers is loggers
