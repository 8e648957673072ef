"""EMAWeightAveraging under bSQH: the averages have exactly the zeros of the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from typing_extensions import override

from lightning_bsqh import BSQHOptimizer, BSQHStrategy, Cardinality
from lightning_bsqh.trainer_access import averaged_model_of
from tests.strategy.small_modules import SmallModule, assert_same, weights_of

if not hasattr(callbacks, "EMAWeightAveraging"):
    pytest.skip("Lightning has these callbacks from 2.6 on", allow_module_level=True)


class Follows(L.Callback):
    """The average by hand, and what is averaged; before the averaging callback in the list."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}
        self.present: dict[str, Tensor] = {}

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self.present = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        optimizer: Any = trainer.optimizers[0]
        sparse = {id(w) for weights in optimizer.regularized_weights().values() for w in weights}
        for name, parameter in pl_module.named_parameters():
            value, before = self.present[name], self.average.get(name, self.present[name])
            after = self.decay * before + (1.0 - self.decay) * value
            if id(parameter) in sparse:
                after = torch.where((value == 0) | (before == 0), value, after)
            self.average[name] = after


def strategy() -> BSQHStrategy:
    return BSQHStrategy(Cardinality(sparsity=0.75, ramp=(0.0, 0.5)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: callbacks.EMAWeightAveraging(decay=0.8),
        lambda: callbacks.WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.8)),
    ],
)
def test_average_on_the_support(make_trainer: Any, make_loader: Any, make: Any) -> None:
    module, follows = SmallModule(), Follows(0.8)
    trainer = make_trainer(strategy(), max_epochs=6, callbacks=[follows, make()])
    trainer.fit(module, make_loader())
    weights = {name: p for name, p in module.named_parameters() if p.dim() == 2}
    assert sum(int((w == 0).sum()) for w in weights.values()) == 30
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), follows.average[name])
        if name in weights:
            assert_same(parameter == 0, follows.present[name] == 0)
    assert any(not torch.equal(p, follows.present[name]) for name, p in module.named_parameters())


def test_equal_weights_are_averaged_equally(make_trainer: Any, make_loader: Any) -> None:
    class Keeps(L.Callback):
        def __init__(self) -> None:
            self.values: list[Tensor] = []

        @override
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
            self.values.append(pl_module.net[4].bias.detach().clone())

    module, keeps = SmallModule(), Keeps()
    make_trainer(strategy(), max_epochs=2, callbacks=[keeps, callbacks.WeightAveraging()]).fit(module, make_loader())
    torch.testing.assert_close(module.net[4].bias.detach(), torch.stack(keeps.values).mean(0))


def test_validation_and_checkpoints_have_the_average(make_trainer: Any, make_loader: Any, tmp_path: Path) -> None:
    class Validates(SmallModule):
        def __init__(self) -> None:
            super().__init__()
            self.zeros: list[int] = []

        @override
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.zeros.append(sum(int((p == 0).sum()) for p in self.parameters() if p.dim() == 2))

    module = Validates()
    saved = ModelCheckpoint(tmp_path, filename="last")
    options = {"callbacks": [callbacks.EMAWeightAveraging(decay=0.9), saved], "enable_checkpointing": True}
    make_trainer(strategy(), max_epochs=6, **options).fit(module, make_loader(), make_loader(samples=8))
    assert module.zeros[-3:] == [30, 30, 30]
    state = torch.load(saved.best_model_path, weights_only=False)
    assert_same(state["state_dict"], weights_of(module))


def test_resumed(make_trainer: Any, make_loader: Any, tmp_path: Path) -> None:
    class Save(L.Callback):
        @override
        def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.current_epoch == 3:
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    def run(more: list[Any], path: Path | None = None) -> Any:
        torch.manual_seed(0)
        module = SmallModule()
        trainer = make_trainer(strategy(), max_epochs=8, callbacks=[callbacks.EMAWeightAveraging(decay=0.8), *more])
        trainer.fit(module, make_loader(), ckpt_path=path)
        return weights_of(module)

    whole = run([Save()])
    assert_same(run([], tmp_path / "a.ckpt"), whole)


def test_the_callback_still_keeps_its_model_there(make_trainer: Any, make_loader: Any) -> None:
    """If this fails, Lightning has changed what trainer_access.averaged_model_of stands on."""
    callback = callbacks.EMAWeightAveraging()
    assert averaged_model_of(callback) is None
    assert averaged_model_of(L.Callback()) is None
    trainer = make_trainer(strategy(), callbacks=[callback])
    module = SmallModule()
    trainer.fit(module, make_loader())
    model = averaged_model_of(callback)
    assert isinstance(model, AveragedModel)
    assert int(model.n_averaged) == 3
    assert isinstance(trainer.optimizers[0], BSQHOptimizer)
