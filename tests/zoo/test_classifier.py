import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsqh import L2, BSQHStrategy
from lightning_bsqh.zoo import AdamClassifier, FunctionRegressor, ImageClassifier, ResidualEuler


def _network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


def _loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(25, 1, 2, 2, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(25) % 3), batch_size=10)


def test_trains_and_evaluates(tmp_path) -> None:
    torch.manual_seed(0)
    model = ImageClassifier(_network(), num_classes=3)
    before = model.network[1].weight.clone()
    trainer = L.Trainer(
        strategy=BSQHStrategy(), accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, _loader(), _loader())
    assert not torch.equal(before, model.network[1].weight)
    assert {"train_loss", "val_loss", "val_accuracy"} <= trainer.callback_metrics.keys()


def test_test_metrics_are_those_of_the_whole_set(tmp_path) -> None:
    torch.manual_seed(0)
    model = ImageClassifier(_network(), num_classes=3)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    (metrics,) = trainer.test(model, _loader(), verbose=False)
    images, labels = _loader().dataset.tensors
    with torch.no_grad():
        logits = model(images)
    # The last batch is smaller: a mean of means would be off.
    assert metrics["test_accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert metrics["test_loss"] == pytest.approx(float(F.cross_entropy(logits, labels)))
    predicted = torch.cat(trainer.predict(model, _loader()))
    assert torch.equal(predicted, logits.argmax(1))


def test_brings_no_optimizer_and_keeps_its_settings() -> None:
    model = ImageClassifier(_network(), num_classes=3)
    assert dict(model.hparams) == {"num_classes": 3}
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        ImageClassifier(_network(), num_classes=1)


def test_adam_falls_along_a_cosine(make_trainer) -> None:
    class Rates(L.Callback):
        def __init__(self) -> None:
            self.rates: list[float] = []

        def on_train_batch_start(self, trainer: L.Trainer, *args) -> None:
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = Rates()
    make_trainer(max_epochs=2, callbacks=[rates]).fit(AdamClassifier(_network(), num_classes=3, lr=0.1), _loader())
    assert rates.rates == pytest.approx([0.05 * (1 + math.cos(math.pi * k / 6)) for k in range(6)])


def test_adam_refuses() -> None:
    with pytest.raises(ValueError, match="lr must lie in"):
        AdamClassifier(_network(), lr=0.0)


def test_adam_needs_the_length_of_the_training(make_trainer) -> None:
    with pytest.raises(MisconfigurationException, match="needs the length"):
        make_trainer(max_epochs=-1).fit(AdamClassifier(_network(), num_classes=3), _loader())


def test_regressor_learns_and_is_tested(make_trainer) -> None:
    model = FunctionRegressor(ResidualEuler(width=3, depth=2))
    x = torch.linspace(-1.0, 1.0, 40)
    data = DataLoader(TensorDataset(x, x.sin()), batch_size=16)
    trainer = make_trainer(strategy=BSQHStrategy(L2(rho=1e-6)), max_epochs=10)
    (before,) = trainer.test(model, data, verbose=False)
    trainer.fit(model, data)
    (after,) = trainer.test(model, data, verbose=False)
    assert after["test_loss"] < before["test_loss"]
    with torch.no_grad():
        assert after["test_loss"] == pytest.approx(float((model(x) - x.sin()).square().mean()))
