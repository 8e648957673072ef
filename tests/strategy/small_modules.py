"""The modules, loggers and rules that the tests of the strategy share."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh import L0, Augmentation, Backtracking, BSQHStrategy
from lightning_bsqh.method.augmentation import Trial


class SmallModule(L.LightningModule):
    """A regression net without configure_optimizers; tests override what they look at."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)


class WithAdam(SmallModule):
    """The same with an ordinary optimizer that moves nothing: what an ordinary training leaves."""

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.0)


#: What the records hold. Not in the objects, so that a trial's undoing does not reach it.
_ITEMS: dict[int, list[Any]] = {}


class Record:
    """Keeps what a forward saw, those of trials included."""

    def __init__(self) -> None:
        _ITEMS[id(self)] = []

    @property
    def items(self) -> list[Any]:
        return _ITEMS[id(self)]

    def add(self, item: Any) -> None:
        _ITEMS[id(self)].append(item)


class AlwaysTooLarge(Augmentation):
    """Keeps ε so small that every trial overshoots and is rejected."""

    def __init__(self) -> None:
        super().__init__(epsilon=1e-6, schedule=False)

    @override
    def observe(self, trial: Trial) -> None:
        assert not trial.accepted


def rejecting(max_trials: int = 3, **options: Any) -> BSQHStrategy:
    """Every trial is rejected, so that w stays and all batches can be compared with lr=0."""
    return BSQHStrategy(L0(rho=0.0), augmentation=AlwaysTooLarge(), max_trials=max_trials, **options)


def accepting_late(max_trials: int = 12, **options: Any) -> BSQHStrategy:
    """Some rejections on every batch, then an acceptance."""
    rule = Backtracking(epsilon=0.01, sigma=10.0, zeta=1e-3, schedule=False)
    return BSQHStrategy(L0(rho=0.0), augmentation=rule, max_trials=max_trials, **options)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of parameters and buffers."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_same(first: Any, second: Any) -> None:
    """Bitwise equality of nests of tensors and plain values; NaN equals itself."""
    if isinstance(first, Tensor):
        torch.testing.assert_close(first, second, rtol=0.0, atol=0.0, equal_nan=True)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    else:
        assert first == second
