"""Layers of one's own choice and the gauss-seidel sweep in the Trainer (method §3, §5)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh import L0, BSQHStrategy, Cardinality
from tests.strategy.small_modules import SmallModule, WithAdam, assert_same, rejecting, weights_of


class Gated(SmallModule):
    """A layer that is not affine, with dropout and BatchNorm around it."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, 8)
        self.calls = 0

    @override
    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        hidden = self.net[:4](x)
        out = self.net[4](self.cell(hidden, hidden))
        self.log("hidden", hidden.mean(), on_step=True)
        return nn.functional.mse_loss(out, y)


class GatedWithAdam(Gated, WithAdam):
    pass


@pytest.mark.parametrize("sweep", ["jacobi", "gauss-seidel"])
def test_no_trace_of_layers_run_alone(make_trainer: Any, make_loader: Any, sweep: str) -> None:
    results = []
    for strategy, make in (("auto", GatedWithAdam), (rejecting(sweep=sweep, layers=["cell"]), Gated)):
        torch.manual_seed(0)
        module = make()
        trainer = make_trainer(strategy=strategy, max_steps=4)
        torch.manual_seed(1)
        trainer.fit(module, make_loader())
        results.append((weights_of(module), torch.get_rng_state(), trainer.callback_metrics))
    assert_same(results[0], results[1])


@pytest.mark.parametrize("sweep", ["jacobi", "gauss-seidel"])
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_trains(make_trainer: Any, make_loader: Any, sweep: str, precision: str) -> None:
    torch.manual_seed(0)
    module = Gated()
    before = weights_of(module)
    strategy = BSQHStrategy(Cardinality(0.5), sweep=sweep, layers=["cell"])
    trainer = make_trainer(strategy=strategy, max_epochs=6, precision=precision)
    trainer.fit(module, make_loader())
    optimizer = trainer.optimizers[0]
    assert optimizer.meets_constraint()
    assert optimizer.last_step.hamiltonian_gain >= 0.0
    assert not torch.equal(before["cell.weight_ih"], module.cell.weight_ih.detach())


def test_layers_by_name(make_trainer: Any, make_loader: Any) -> None:
    trainer = make_trainer(strategy=BSQHStrategy(L0(0.0), layers=["net"]), max_steps=2)
    module = SmallModule()
    trainer.fit(module, make_loader())
    assert [group["name"] for group in trainer.optimizers[0].param_groups] == ["net"]


def test_layers_that_do_not_exist_are_refused_before_training(make_trainer: Any, make_loader: Any) -> None:
    module = SmallModule()
    before = weights_of(module)
    with pytest.raises(ValueError, match=r"layers: the pattern 'conv\*' matches no module; there are: net, net.0"):
        make_trainer(strategy=BSQHStrategy(layers=["conv*"]), max_steps=2).fit(module, make_loader())
    assert_same(before, weights_of(module))
    with pytest.raises(TypeError, match=r"layers must be"):
        BSQHStrategy(layers="net")
