"""A network that starts from trained weights, and is made sparse from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsqh import BSQHStrategy, Cardinality
from lightning_bsqh.export import save_sparse
from lightning_bsqh.zoo import ImageClassifier
from lightning_bsqh.zoo.trained_weights import load_weights
from tests.strategy.small_modules import assert_same, weights_of


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))


def loader(shuffle: bool = True) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(256, 1, 4, 4, generator=generator)
    rule = torch.randn(16, 4, generator=generator)
    return DataLoader(TensorDataset(images, (images.flatten(1) @ rule).argmax(1)), batch_size=32, shuffle=shuffle)


def accuracy(module: ImageClassifier) -> float:
    module.eval()
    with torch.no_grad():
        hits = [(module(x).argmax(1) == y).float().mean() for x, y in loader(shuffle=False)]
    return float(torch.stack(hits).mean())


@pytest.fixture
def trained(make_trainer: Any, tmp_path: Path) -> Path:
    """The checkpoint of a dense training."""
    trainer = make_trainer(BSQHStrategy(Cardinality(sparsity=0.0)), max_epochs=30)
    trainer.fit(ImageClassifier(network(), num_classes=4), loader())
    trainer.save_checkpoint(tmp_path / "dense.ckpt")
    return tmp_path / "dense.ckpt"


def test_a_trained_network_made_sparse(make_trainer: Any, trained: Path) -> None:
    def run(weights: str | None) -> float:
        torch.manual_seed(1)
        module = ImageClassifier(network(), num_classes=4, weights=weights)
        strategy = BSQHStrategy(Cardinality(sparsity=0.7, ramp=(0.0, 0.5)), epsilon=250.0)
        trainer = make_trainer(strategy, max_epochs=4)
        trainer.fit(module, loader())
        assert trainer.optimizers[0].sparsity() == pytest.approx(0.7, abs=0.01)
        return accuracy(module)

    dense = ImageClassifier(network(), num_classes=4, weights=str(trained))
    assert accuracy(dense) > 0.95
    # Far ahead of what the same few epochs give from the start.
    assert run(str(trained)) > run(None) + 0.1


def test_the_first_step_does_not_shake_the_network(make_trainer: Any, trained: Path) -> None:
    module = ImageClassifier(network(), num_classes=4, weights=str(trained))
    before = accuracy(module)
    strategy = BSQHStrategy(Cardinality(sparsity=0.7, ramp=(0.0, 0.5)), epsilon=250.0, total_steps=100)
    make_trainer(strategy, max_steps=3).fit(module, loader())
    assert accuracy(module) > before - 0.03


def test_a_checkpoint_and_a_state_dict_alike(trained: Path, tmp_path: Path) -> None:
    first, second = network(), network()
    load_weights(first, trained)
    torch.save(first.state_dict(), tmp_path / "weights.pt")
    load_weights(second, tmp_path / "weights.pt")
    assert_same(weights_of(first), weights_of(second))


def test_a_sparse_file(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    first, second, file = network(), network(), tmp_path / "weights.safetensors"
    save_sparse({f"network.{name}": value for name, value in first.state_dict().items()}, file)
    load_weights(second, file)
    assert_same(weights_of(first), weights_of(second))
    file.write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"weights\.safetensors cannot be read"):
        load_weights(second, file)


def test_weights_of_another_network(trained: Path, tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(16, 33), nn.BatchNorm1d(33), nn.ReLU(), nn.Linear(33, 4))
    before = weights_of(wide)
    with pytest.raises(ValueError, match=r"dense\.ckpt holds the weights of another network.*1\.weight"):
        load_weights(wide, trained)
    assert_same(weights_of(wide), before)
    with pytest.raises(ValueError, match="differ in name"):
        ImageClassifier(nn.Flatten(), num_classes=4, weights=str(trained))
    with pytest.raises(FileNotFoundError):
        load_weights(wide, tmp_path / "none.ckpt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b"half a file", "cannot be read"),
        (torch.zeros(3), "holds no state_dict"),
        ({"state_dict": 3}, "holds no state_dict"),
        ({"1.weight": torch.zeros(32, 16)}, "weights of another network"),
    ],
    ids=["empty", "garbage", "a tensor", "no dict", "too few"],
)
def test_files_that_are_no_weights(tmp_path: Path, content: Any, words: str) -> None:
    file, own = tmp_path / "weights.pt", network()
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    with pytest.raises(ValueError, match=f"weights.pt.*{words}"):
        load_weights(own, file)
    assert_same(dict(own.state_dict()), before)


def test_a_folder_is_no_file_of_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        load_weights(network(), tmp_path)
