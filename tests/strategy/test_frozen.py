"""What is frozen stays as it is to the bit; what is unfrozen later is trained, gently; what is resumed goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh import L0, L1, L2, Box, BSQHOptimizer, BSQHStrategy, Cardinality, Discrete, ElasticNet
from tests.strategy.small_modules import assert_same, weights_of

MODES: dict[str, dict[str, Any]] = {
    "mini": {},
    "full": {"batch_mode": "full"},
    "gauss-seidel": {"sweep": "gauss-seidel"},
}
REGULARIZERS = {
    "Cardinality": lambda: Cardinality(0.75),
    "per layer": lambda: Cardinality(0.5, scope="layer"),
    "L1": lambda: L1(rho=0.01),
    "L2": lambda: L2(rho=0.1),
    "elastic net": lambda: ElasticNet(0.01, 0.01),
    "box": lambda: Box(-0.05, 0.05),
    "levels": lambda: Discrete.ternary(0.2),
    "by name": lambda: {"parts.0.*": L1(rho=0.01), "parts.2.*": Cardinality(0.5)},
}

#: Kinds of layers of four features; all can be frozen, and are affine or not.
PARTS = {
    "linear": lambda: nn.Linear(4, 4),
    "norm": lambda: nn.BatchNorm1d(4),
    "recurrent": lambda: Gated(),
    "convolution": lambda: Convolved(),
}


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 4)

    @override
    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.cell(x, x)
        return hidden


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x[:, None])[:, 0]
        return out


class Parts(L.LightningModule):
    """Layers that are frozen and unfrozen by a plan: for every epoch the numbers of those that are frozen."""

    def __init__(self, kinds: list[str], plan: list[set[int]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(PARTS[kind]() for kind in kinds)
        self.head, self.plan = nn.Linear(4, 1), plan
        self.moved: list[list[bool]] = []

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        for part in self.parts:
            x = part(x)
        return nn.functional.mse_loss(self.head(x), y)

    @override
    def on_train_epoch_start(self) -> None:
        for number, part in enumerate(self.parts):
            part.requires_grad_(number not in self.plan[self.current_epoch])
        self.before = [weights(part) for part in self.parts]

    @override
    def on_train_epoch_end(self) -> None:
        now = [weights(part) for part in self.parts]
        self.moved.append([not torch.equal(a, b) for a, b in zip(self.before, now, strict=True)])


def weights(part: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in part.parameters()])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_generated_plans(make_trainer: Any, make_loader: Any, data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(sorted(PARTS)), min_size=3, max_size=3))
    numbers = st.sets(st.integers(0, 2), max_size=3)
    plan = data.draw(st.lists(numbers, min_size=4, max_size=4))
    mode = data.draw(st.sampled_from(sorted(MODES)))
    regularizer = REGULARIZERS[data.draw(st.sampled_from(sorted(set(REGULARIZERS) - {"by name"})))]()
    torch.manual_seed(0)
    module = Parts(kinds, plan)
    make_trainer(BSQHStrategy(regularizer, **MODES[mode]), max_epochs=4).fit(module, make_loader())
    for frozen, moved in zip(plan, module.moved, strict=True):
        assert not any(moved[i] for i in frozen)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("mode", MODES)
def test_frozen_in_the_middle(make_trainer: Any, make_loader: Any, regularizer: str, mode: str) -> None:
    module = Parts(["linear", "norm", "linear"], [set(), {0}, {0, 1}, {0, 1}, {1}, set()])
    strategy = BSQHStrategy(REGULARIZERS[regularizer](), **MODES[mode])
    make_trainer(strategy, max_epochs=6).fit(module, make_loader())
    assert [moved[0] for moved in module.moved[1:4]] == [False] * 3
    assert [moved[1] for moved in module.moved[2:5]] == [False] * 3
    # Unfrozen, they move again; in full-batch mode an iteration may be rejected.
    assert mode == "full" or (module.moved[4][0] and module.moved[5][1])


class Finetuned(L.LightningModule):
    def __init__(self, everything: bool) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
        self.net, self.everything = nn.Linear(8, 1), everything
        self.zeros: list[float] = []

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(torch.relu(self.backbone(batch[0]))), batch[1])

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([p for p in self.parameters() if self.everything or p.requires_grad], 1e-2)

    @override
    def on_train_batch_end(self, *args: Any) -> None:
        both = torch.cat([self.backbone[i].weight.flatten() for i in (0, 3)])
        self.zeros.append(float((both == 0).float().mean()))


class ByHand(L.Callback):
    """Freezes the backbone until that epoch, without telling the optimizer."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.backbone.requires_grad_(trainer.current_epoch >= self.epoch)  # type: ignore[union-attr]


def finetuning(epoch: int) -> BackboneFinetuning:
    return BackboneFinetuning(epoch, lambda _: 1.0, backbone_initial_lr=1e-3, verbose=False)


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_layer_that_joins_late_has_a_ramp_of_its_own(make_trainer: Any, make_loader: Any, by_hand: bool) -> None:
    module = Finetuned(everything=by_hand)
    callback = ByHand(6) if by_hand else finetuning(6)
    strategy = BSQHStrategy(Cardinality(0.75, interval=1))
    make_trainer(strategy, max_epochs=12, callbacks=[callback]).fit(module, make_loader())
    assert module.zeros[:18] == [0.0] * 18
    # Its ramp is in its own half of the training, in the same shares.
    assert module.zeros[18] == 0.0
    assert 0.0 < module.zeros[22] < 0.75
    assert module.zeros[-1] == 0.75
    assert float((module.net.weight == 0).float().mean()) == 0.75


@pytest.mark.parametrize("epoch", [2, 4])
def test_a_resumed_finetuning_is_the_uninterrupted_one(
    make_trainer: Any, make_loader: Any, tmp_path: Path, epoch: int
) -> None:
    class Save(L.Callback):
        @override
        def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.current_epoch == epoch - 1:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    ends = []
    for checkpoint in (None, tmp_path / "a.ckpt"):
        torch.manual_seed(0)
        module = Finetuned(everything=False)
        callbacks = [finetuning(3), *([Save()] if checkpoint is None else [])]
        trainer = make_trainer(BSQHStrategy(Cardinality(0.5)), max_epochs=6, callbacks=callbacks)
        trainer.fit(module, make_loader(), ckpt_path=checkpoint)
        regularized = trainer.optimizers[0].regularized_weights()
        ends.append((weights_of(module), {name: len(tensors) for name, tensors in regularized.items()}))
    assert_same(*ends)


def test_without_lightning() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    network[0].requires_grad_(False)
    optimizer = BSQHOptimizer(network, regularizer=Cardinality(0.5, ramp=(0.0, 0.4)), total_steps=20)
    x = torch.randn(16, 4)
    first = network[0].weight.clone()
    for step in range(20):
        if step == 10:
            assert torch.equal(network[0].weight, first)
            assert set(optimizer.regularized_weights()) == {"2", "4"}
            network[0].requires_grad_(True)
            network[2].requires_grad_(False)
            second = network[2].weight.clone()
        optimizer.step(lambda: (network(x) - x.sum(1, keepdim=True)).square().mean())
        if step == 10:
            assert int((network[0].weight == 0).sum()) == 0
    assert torch.equal(network[2].weight, second)
    assert int((network[0].weight == 0).sum()) == 16
    assert optimizer.meets_constraint()


def test_a_group_added_by_hand_is_regularised_by_its_role() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm([4, 4]))
    spare = nn.ModuleDict({"fc": nn.Linear(4, 4), "norm": nn.LayerNorm([4, 4])})
    optimizer = BSQHOptimizer(network, regularizer=L0(rho=0.0), total_steps=9)
    optimizer.add_param_group({"params": list(spare.parameters()), "name": "late"})
    x = torch.randn(3, 4, 4)
    optimizer.step(lambda: spare["norm"](spare["fc"](network(x))).square().mean() + network(x).mean())
    known = {id(p): name for name, p in [*network.named_parameters(), *spare.named_parameters()]}
    assert "fc.weight" in {known[id(w)] for ws in optimizer.regularized_weights().values() for w in ws}
