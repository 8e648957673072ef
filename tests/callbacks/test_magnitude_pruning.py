import itertools

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_bsqh import L2, BSQHStrategy
from lightning_bsqh.callbacks import MagnitudePruning, SparsityMonitor
from tests.callbacks.small import SmallModule, loader


def _zeros(module: nn.Module) -> Tensor:
    """Which of the 56 weights are zero, as one vector."""
    return torch.cat([p.detach().flatten() == 0 for p in module.parameters() if p.dim() >= 2])


class Masks(L.Callback):
    """Keeps which weights were zero after every step; placed after the pruning."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args) -> None:
        self.steps.append(_zeros(pl_module))


class MomentumModule(SmallModule):
    """With an optimizer that moves weights even where their gradient is zero."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05, weight_decay=0.1)


def _fit(make_trainer, pruning: MagnitudePruning, module: L.LightningModule | None = None, **options) -> list[Tensor]:
    masks = Masks()
    trainer = make_trainer(callbacks=[pruning, masks], **{"max_epochs": 5, **options})
    trainer.fit(MomentumModule() if module is None else module, loader())
    return masks.steps


def test_a_cubic_rise_to_the_exact_number(make_trainer) -> None:
    module = MomentumModule()
    steps = _fit(make_trainer, MagnitudePruning(0.75, ramp=(0.2, 0.8), interval=1), module)
    # 20 steps: the ramp goes from number 4 to number 16.
    expected = [round(0.75 * (1 - (1 - min(max(k - 4, 0) / 12, 1)) ** 3) * 56) for k in range(20)]
    assert [int(mask.sum()) for mask in steps] == expected
    assert int(_zeros(module).sum()) == 42
    # The biases are not pruned.
    assert bool((module.first.bias != 0).all())


def test_what_is_pruned_stays_pruned(make_trainer) -> None:
    steps = _fit(make_trainer, MagnitudePruning(0.75, ramp=(0.2, 0.8), interval=1))
    for before, after in itertools.pairwise(steps):
        assert bool(after[before].all())


def test_the_smallest_go_first(make_trainer) -> None:
    module = SmallModule(own_optimizer=True)
    sizes = torch.cat([p.detach().flatten().abs() for p in (module.first.weight, module.second.weight)])
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
    (mask,) = _fit(make_trainer, MagnitudePruning(0.25, ramp=(0.0, 0.0)), module, max_steps=1, max_epochs=-1)
    assert torch.equal(mask.nonzero().flatten(), sizes.argsort()[:14].sort().values)


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"limit_train_batches": 3, "max_epochs": 4}])
def test_other_trainers(make_trainer, options) -> None:
    steps = _fit(make_trainer, MagnitudePruning(0.5), **options)
    assert int(steps[-1].sum()) == 28


def test_beside_bsqh(make_trainer) -> None:
    steps = _fit(make_trainer, MagnitudePruning(0.5), SmallModule(), strategy=BSQHStrategy(L2(rho=1e-6)))
    assert int(steps[-1].sum()) == 28
    assert not torch.equal(steps[0], steps[-1])


def test_beside_bsqh_only_what_it_regularises(make_trainer) -> None:
    module = SmallModule()
    _fit(make_trainer, MagnitudePruning(0.5), module, strategy=BSQHStrategy(L2(rho=1e-6), regularize=["first"]))
    assert int((module.first.weight == 0).sum()) == 16
    assert int((module.second.weight == 0).sum()) == 0


def test_frozen_weights_are_left_alone(make_trainer) -> None:
    module = SmallModule(own_optimizer=True)
    module.first.weight.requires_grad_(False)
    before = module.first.weight.clone()
    _fit(make_trainer, MagnitudePruning(0.5), module)
    assert torch.equal(module.first.weight, before)
    assert int((module.second.weight == 0).sum()) == 12


def test_a_resumed_run_goes_on_as_it_would_have(make_trainer, tmp_path) -> None:
    options = {"max_epochs": 5, "enable_checkpointing": True}
    checkpoint = L.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    through = MomentumModule()
    make_trainer(callbacks=[MagnitudePruning(0.75), checkpoint], **options).fit(through, loader())
    resumed = MomentumModule()
    trainer = make_trainer(callbacks=[MagnitudePruning(0.75)], **{**options, "enable_checkpointing": False})
    trainer.fit(resumed, loader(), ckpt_path=tmp_path / "epoch=1.ckpt")
    for name, value in through.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_can_be_used_again(make_trainer) -> None:
    pruning = MagnitudePruning(0.5)
    first, second = _fit(make_trainer, pruning), _fit(make_trainer, pruning)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_monitor_after_it_sees_what_is_left(make_trainer) -> None:
    trainer = make_trainer(callbacks=[MagnitudePruning(0.5), SparsityMonitor()], max_epochs=5)
    trainer.fit(MomentumModule(), loader())
    assert float(trainer.callback_metrics["sparsity/total"]) == 0.5


def test_damaged_weights_are_not_hidden(make_trainer) -> None:
    module = SmallModule(own_optimizer=True)
    module.first.weight.data[0, 0] = float("nan")
    _fit(make_trainer, MagnitudePruning(0.5, ramp=(0.0, 0.0)), module)
    assert int(module.first.weight.isnan().sum()) > 0


def test_warns_if_the_training_ends_within_the_ramp(make_trainer) -> None:
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args) -> None:
            trainer.should_stop = trainer.global_step >= 6

    trainer = make_trainer(callbacks=[MagnitudePruning(0.5, ramp=(0.0, 0.9), interval=1), Stop()], max_epochs=5)
    with pytest.warns(UserWarning, match=r"within the ramp of MagnitudePruning\(sparsity=0\.5\): \d+\.\d\d %"):
        trainer.fit(MomentumModule(), loader())


def test_refusals(make_trainer) -> None:
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\), got 1\.0"):
        MagnitudePruning(1.0)
    with pytest.raises(ValueError, match="ramp must be a pair"):
        MagnitudePruning(0.5, ramp=(0.5,))
    with pytest.raises(ValueError, match="interval must be at least 1"):
        MagnitudePruning(0.5, interval=0)
    endless = make_trainer(callbacks=[MagnitudePruning(0.5)], max_epochs=-1)
    with pytest.raises(MisconfigurationException, match="needs the length of the training"):
        endless.fit(MomentumModule(), loader())
    frozen = MomentumModule()
    for layer in (frozen.first, frozen.second):
        layer.weight.requires_grad_(False)
    with pytest.raises(MisconfigurationException, match="nothing to prune"):
        make_trainer(callbacks=[MagnitudePruning(0.5)]).fit(frozen, loader())
