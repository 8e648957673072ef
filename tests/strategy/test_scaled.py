"""precision="16-mixed": a scaled adjoint sweep, unscaled G and trials; on the CPU with a scaler, on CUDA as it is."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.amp import GradScaler
from typing_extensions import override

from lightning_bsqh import L0, Backtracking, BSQHStrategy
from lightning_bsqh.strategy import passes
from tests.strategy.small_modules import SmallModule, WithAdam, assert_same, weights_of
from tests.strategy.test_accumulation import loader
from tests.strategy.test_drop_in import said


def scaled(start: float = 1024.0) -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", GradScaler("cpu", init_scale=start))


class InFull(L.LightningModule):
    """Leaves autocast, so that nothing but the scaler is different from full precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.scales: list[tuple[float, float]] = []

    def network(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.autocast("cpu", enabled=False):
            return nn.functional.mse_loss(self.network(batch[0]), batch[1])

    @override
    def on_after_backward(self) -> None:
        self.scales.append((self._largest(), 0.0))

    @override
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.scales:
            self.scales[-1] = (self.scales[-1][0], self._largest())

    def _largest(self) -> float:
        return max((float(p.grad.abs().max()) for p in self.parameters() if p.grad is not None), default=0.0)


class Recurrent(InFull):
    """With a layer whose true Hamiltonian is evaluated from recorded adjoints."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.cell = nn.Linear(5, 1).double(), nn.LSTM(1, 5, batch_first=True).double()

    @override
    def network(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.cell(x[..., None])[0][:, -1])
        return out


def strategy(**options: Any) -> BSQHStrategy:
    rule = Backtracking(epsilon=0.5, sigma=4.0, zeta=0.5, schedule=False)
    return BSQHStrategy(L0(rho=1e-4), augmentation=rule, metric="euclidean", **options)


@pytest.mark.parametrize("kind", [InFull, Recurrent])
@pytest.mark.parametrize(
    ("options", "window"),
    [({}, 1), ({}, 3), ({"sweep": "gauss-seidel"}, 1)],
    ids=["batches", "windows", "gauss-seidel"],
)
def test_a_scaler_alone_changes_nothing(
    make_trainer: Any, monkeypatch: pytest.MonkeyPatch, kind: Any, options: Any, window: int
) -> None:
    # The loss is not in half precision here: its changes count as they are.
    monkeypatch.setattr(passes, "_REDUCED", {})
    ends = []
    for more in ({}, {"plugins": [scaled()]}):
        module = kind()
        named = {"layers": ["cell"]} if kind is Recurrent else {}
        trainer = make_trainer(strategy(**options, **named), max_epochs=3, accumulate_grad_batches=window, **more)
        assert said(lambda trainer=trainer, module=module: trainer.fit(module, loader(8))) == []
        assert trainer.optimizers[0].accepted > 0
        assert trainer.global_step == trainer.optimizers[0].iterations == 18 // window
        ends.append(list(map(torch.Tensor.detach, module.parameters())))
        # Hooks after backward see scaled gradients, those before the step unscaled ones, as always.
        for after, before in module.scales[window - 1 :: window]:
            assert after == pytest.approx(before * (1024.0 if more else 1.0))
    # A scale that is a power of two is exact.
    assert_same(*ends)


def test_infinite_gradients_skip_the_batch_and_lower_the_scale(make_trainer: Any) -> None:
    class Overflows(InFull):
        @override
        def on_after_backward(self) -> None:
            super().on_after_backward()
            if self.trainer.fit_loop.batch_idx in (0, 2):
                self.net[0].bias.grad[0] = float("inf")

    module = Overflows()
    trainer = make_trainer(strategy(), plugins=[scaled()])
    trainer.fit(module, loader(8))
    optimizer = trainer.optimizers[0]
    assert (optimizer.skipped, optimizer.iterations, trainer.global_step) == (2, 6, 6)
    assert trainer.precision_plugin.scaler.get_scale() == 256.0
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())


def test_a_batch_without_a_loss(make_trainer: Any) -> None:
    class Skips(InFull):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    trainer = make_trainer(strategy(), plugins=[scaled()])
    trainer.fit(Skips(), loader(8))
    assert trainer.global_step == trainer.optimizers[0].iterations == 6


@pytest.mark.parametrize("window", [1, 2])
def test_training_under_autocast(make_trainer: Any, make_loader: Any, window: int) -> None:
    class Half(SmallModule):
        @override
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            kinds.add(self.net[0](batch[0]).dtype)
            return self.loss(batch)

    kinds: set[torch.dtype] = set()
    module = Half()
    before = weights_of(module)
    trainer = make_trainer(BSQHStrategy(), max_epochs=6, accumulate_grad_batches=window, plugins=[scaled()])
    trainer.fit(module, make_loader())
    # In trials, too.
    assert kinds == {torch.float16}
    assert trainer.optimizers[0].accepted > 0
    assert trainer.optimizers[0].sparsity() == pytest.approx(0.9, abs=0.02)
    assert any(not torch.equal(before[name], p) for name, p in module.named_parameters())
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_the_scale_is_resumed(make_trainer: Any, tmp_path: Any) -> None:
    trainer = make_trainer(strategy(), max_epochs=1, plugins=[scaled(64.0)])
    trainer.fit(InFull(), loader(8))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    resumed = make_trainer(strategy(), max_epochs=2, plugins=[scaled(4096.0)])
    resumed.fit(InFull(), loader(8), ckpt_path=tmp_path / "a.ckpt")
    assert resumed.precision_plugin.scaler.get_scale() == 64.0
    assert resumed.global_step == 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="16-mixed without a plugin of one's own needs CUDA")
def test_on_cuda(make_trainer: Any, make_loader: Any) -> None:
    losses = []
    for precision in ("16-mixed", "32-true"):
        torch.manual_seed(0)
        module = WithAdam()
        trainer = make_trainer(BSQHStrategy(), accelerator="cuda", precision=precision, max_epochs=10)
        trainer.fit(module, make_loader(samples=64))
        assert trainer.optimizers[0].sparsity() == pytest.approx(0.9, abs=0.02)
        losses.append(trainer.optimizers[0].last_step.loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.5)
