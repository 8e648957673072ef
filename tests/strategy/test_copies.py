"""Optimizers and Trainers that are copied, pickled or saved, in the middle of a training too."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh import BSQHOptimizer, BSQHStrategy, Cardinality
from tests.strategy.small_modules import SmallModule


def by_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def by_torch(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("options", [{}, {"sweep": "gauss-seidel"}, {"batch_mode": "full"}])
@pytest.mark.parametrize("again", [copy.deepcopy, by_pickle, by_torch])
def test_a_copy_goes_on_like_the_original(again: Callable[[Any], Any], options: dict[str, Any]) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    optimizer = BSQHOptimizer(net, regularizer=Cardinality(0.5), total_steps=8, **options)
    x, y = torch.randn(12, 4).double(), torch.randn(12, 1).double()

    def steps(net: nn.Module, optimizer: BSQHOptimizer, n: int) -> list[Tensor]:
        for _ in range(n):
            optimizer.step(lambda: nn.functional.mse_loss(net(x), y))
        return [p.detach().clone() for p in net.parameters()]

    steps(net, optimizer, 3)
    other, its = again((net, optimizer))
    before = steps(net, optimizer, 0)
    found = steps(other, its, 5)
    assert all(map(torch.equal, before, net.parameters()))
    assert all(map(torch.equal, found, steps(net, optimizer, 5)))
    assert its.iterations == 8


class Pickling(SmallModule):
    """Pickled by its name, so it is none of a test's own."""

    size = 0

    @override
    def on_train_epoch_end(self) -> None:
        self.size = len(pickle.dumps(self.trainer))


@pytest.mark.parametrize("options", [{}, {"batch_mode": "full"}, {"sweep": "gauss-seidel"}])
def test_a_trainer_is_pickled_while_it_fits(make_trainer: Any, make_loader: Any, options: dict[str, Any]) -> None:
    module = Pickling()
    make_trainer(BSQHStrategy(**options), max_epochs=2, enable_progress_bar=True).fit(module, make_loader())
    assert module.size > 1000
