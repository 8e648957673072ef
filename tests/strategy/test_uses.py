"""Budget by the Trainer: the costs are those of the first forward."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsqh import BSQHStrategy
from lightning_bsqh.regularizers import Budget, Cardinality


class Images(L.LightningModule):
    def __init__(self, last: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(64, 3)
        self.last = nn.Linear(3, 3) if last is None else last

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.last(self.fc(torch.relu(self.conv(x)).flatten(1))), y)


class Bare(nn.Module):
    """Uses its weight by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def data() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(60, 1, 6, 6, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(60) % 3), batch_size=12)


def used(module: Images) -> float:
    """The share of the multiply-adds that is left, counted by hand."""
    uses = {module.conv: 16, module.fc: 1, module.last: 1}
    left = sum(times * int(torch.count_nonzero(layer.weight)) for layer, times in uses.items())
    return left / sum(times * layer.weight.numel() for layer, times in uses.items())


@pytest.mark.parametrize("batch_mode", ["mini", "full"])
def test_the_budget_is_that_of_the_multiply_adds(make_trainer, batch_mode: str) -> None:
    torch.manual_seed(0)
    module = Images()
    budget = Budget(0.3, ramp=(0.0, 0.0))
    strategy = BSQHStrategy(budget, batch_mode=batch_mode)
    trainer: L.Trainer = make_trainer(strategy, max_epochs=3)
    trainer.fit(module, data())
    # What is left over is less than the dearest weight costs.
    assert 0.3 - 16 / (16 * 36 + 192 + 9) < used(module) <= 0.3
    assert budget.needs_costs, "the user's own stays as it was"
    assert trainer.optimizers[0].meets_constraint()
    assert not any(layer._forward_hooks for layer in module.modules())


def test_by_name_and_with_a_layer_frozen(make_trainer) -> None:
    torch.manual_seed(0)
    module = Images()
    module.last.requires_grad_(False)
    by_name = {"conv": Budget(0.5, ramp=(0.0, 0.0)), "fc": Cardinality(0.5, ramp=(0.0, 0.0))}
    make_trainer(BSQHStrategy(by_name), max_epochs=1).fit(module, data())
    assert int(torch.count_nonzero(module.conv.weight)) == 18
    assert int(torch.count_nonzero(module.fc.weight)) == 96
    assert int(torch.count_nonzero(module.last.weight)) == 9


def test_a_training_goes_on_from_a_checkpoint(make_trainer, tmp_path) -> None:
    states = []
    for parts in ((4,), (2, 4)):
        torch.manual_seed(0)
        module, path = Images(), None
        for epochs in parts:
            trainer = make_trainer(BSQHStrategy(Budget(0.3), total_steps=20), max_epochs=epochs)
            trainer.fit(module, data(), ckpt_path=path)
            path = tmp_path / "half.ckpt"
            trainer.save_checkpoint(path)
        states.append(module.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


def test_a_weight_whose_uses_cannot_be_seen_is_named(make_trainer) -> None:
    with pytest.raises(ValueError, match=r"how often last\.weight is used"):
        make_trainer(BSQHStrategy(Budget(0.3)), max_epochs=1).fit(Images(Bare()), data())
    with pytest.raises(ValueError, match=r"with_costs"):
        Budget(0.3, ramp=(0.0, 0.0)).project_([torch.ones(3)], [1.0])
