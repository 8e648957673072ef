import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsqh import BSQHStrategy
from lightning_bsqh.zoo import ImageClassifier


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
