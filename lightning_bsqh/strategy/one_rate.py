"""The length of a step in the places where other optimizers have a learning rate."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from lightning_bsqh.namespace import LRSchedulerConfig
from lightning_bsqh.optimizer import BSQHOptimizer


class OneRate:
    """What all groups of an optimizer have in common, as one group: 1/(2ε) is the same for all layers.

    Args:
        optimizer: Whose groups they are.
    """

    def __init__(self, optimizer: BSQHOptimizer) -> None:
        self._of = optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """One group, without parameters and without a name."""
        group = self._of.param_groups[0]
        return [{"params": [], **{k: v for k, v in group.items() if k not in ("params", "name")}}]

    @property
    def defaults(self) -> dict[str, Any]:
        """Those of the optimizer."""
        return self._of.defaults


# LearningRateMonitor names its curves after the class.
OneRate.__name__ = BSQHOptimizer.__name__


class NoSchedule(LRScheduler):
    """Stands where the module had a scheduler: tells the length of the step, and never changes anything."""

    def __init__(self, rate: OneRate) -> None:
        # Not torch's own __init__, which would take hold of the optimizer's step.
        self.optimizer: Any = rate
        self.base_lrs = self.get_last_lr()
        self.last_epoch = 0

    @override
    def step(self, *args: Any, **kwargs: Any) -> None:
        return None

    @override
    def get_lr(self) -> list[Any]:
        return self.get_last_lr()

    @override
    def get_last_lr(self) -> list[Any]:
        return [group["lr"] for group in self.optimizer.param_groups]

    @override
    def state_dict(self) -> dict[str, Any]:
        return {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        return None


def stand_in(scheduler: dict[str, Any], rate: OneRate) -> LRSchedulerConfig:
    """What the Trainer gets instead of a scheduler of the user's, under its name."""
    kept = {key: scheduler[key] for key in ("name", "interval", "frequency") if scheduler.get(key) is not None}
    return LRSchedulerConfig(NoSchedule(rate), **kept)


def show_one_rate(optimizer: BSQHOptimizer) -> OneRate:
    """Makes LearningRateMonitor draw one curve instead of an equal one for each layer.

    It looks for what an optimizer wraps, under the name ``optimizer``, and draws that one's groups.
    """
    rate = OneRate(optimizer)
    vars(optimizer)["optimizer"] = rate
    return rate


def hide_one_rate(optimizer: object) -> None:
    """Takes back what :func:`show_one_rate` did."""
    vars(optimizer).pop("optimizer", None)
