"""The parts of the sweeps of a LightningModule that need no Trainer."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from torch import nn

from lightning_bsqh.network.silence import silence
from lightning_bsqh.strategy.log import Log
from lightning_bsqh.strategy.sweeps import loss_of
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
    """Stands in for the Trainer: only its loggers are touched."""

    def __init__(self, loggers: list[Any]) -> None:
        self.loggers = loggers


class Writing(Logger):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Any] = []

    name, version = "writing", 0

    @property
    def experiment(self) -> Any:
        return self

    def add_image(self, image: Any) -> None:
        self.written.append(image)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.written.append(metrics)

    def log_hyperparams(self, *args: Any, **options: Any) -> None:
        self.written.append(args)

    def log_image(self, image: Any) -> None:
        self.written.append(image)

    def save(self) -> None:
        self.written.append("saved")


@pytest.fixture
def parent(tmp_path: Path) -> Parent:
    module = Parent()
    module._trainer = Stub([Writing(), CSVLogger(tmp_path)])  # type: ignore[assignment]
    return module


def write(module: L.LightningModule) -> None:
    """All the ways in which a training_step may speak."""
    module.log("a", 1.0)
    module.log_dict({"a": 1.0})
    module.print("a")
    logger: Any = module.trainer.loggers[0]
    logger.log_metrics({"a": 1.0})
    logger.log_image("a")
    logger.experiment.add_image("a")
    logger.save()
    module.trainer.loggers[1].log_metrics({"a": 1.0})
    module.trainer.loggers[1].save()


def test_instead_turns_off_and_on(parent: Parent, tmp_path: Path) -> None:
    loggers = list(parent.trainer.loggers)
    log = Log()
    with silence(), log.instead(parent, parent.modules()):
        write(parent)
        parent.child.log("a", 1.0)
        assert parent.trainer.loggers == loggers
        assert isinstance(parent.trainer.loggers[1], CSVLogger)
        assert type(parent.trainer.loggers[1]).__name__ == "CSVLogger"
        assert parent.trainer.loggers[1].log_dir == str(tmp_path / "lightning_logs" / "version_0")
    assert [name for _, name, _, _ in log.calls] == ["log", "log_dict", "print", "log"]
    assert log.went_outside
    assert [type(logger) for logger in parent.trainer.loggers] == [Writing, CSVLogger]
    assert loggers[0].written == []
    assert list(tmp_path.iterdir()) == []
    for module in (parent, parent.child):
        assert not {"log", "log_dict", "print"} & vars(module).keys()
    loggers[0].log_metrics({"a": 2.0})
    assert loggers[0].written == [{"a": 2.0}]


def test_other_threads_are_heard(parent: Parent, capsys: Any) -> None:
    def speak() -> None:
        parent.trainer.loggers[0].log_metrics({"a": 1.0})
        print("heard")
        logging.getLogger("other").warning("heard, too")

    with silence(), Log().instead(parent, parent.modules()):
        print("not heard")
        thread = threading.Thread(target=speak)
        thread.start()
        thread.join()
    assert parent.trainer.loggers[0].written == [{"a": 1.0}]  # type: ignore[attr-defined]
    assert capsys.readouterr().out == "heard\n"


def test_a_logger_that_cannot_be_changed_is_replaced(parent: Parent) -> None:
    class Fixed(Writing):
        __slots__ = ("more",)

        def __init_subclass__(cls, **options: Any) -> None:
            raise TypeError("final")

    loggers = [Fixed()]
    parent.trainer.loggers = loggers
    log = Log()
    with silence(), log.instead(parent, parent.modules()):
        parent.trainer.loggers[0].log_metrics({"a": 1.0})
    assert log.went_outside
    assert parent.trainer.loggers is loggers
    assert loggers[0].written == []


def test_instead_ends_with_an_exception_and_keeps_the_users_own(parent: Parent) -> None:
    parent.log = parent.spoken.append  # type: ignore[method-assign, assignment]
    own = vars(parent)["log"]

    def fail() -> None:
        parent.log("a", 1.0)
        raise KeyError

    with pytest.raises(KeyError), silence(), Log().instead(parent, parent.modules()):
        fail()
    assert vars(parent)["log"] is own
    assert parent.spoken == []
    assert type(parent.trainer.loggers[0]) is Writing
