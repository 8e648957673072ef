import sys

import pytest
import torch

pytest.importorskip("sklearn")

from lightning_bsqh.zoo.data import DigitsDataModule


def test_split_of_all_images() -> None:
    data = DigitsDataModule()
    data.setup("fit")
    sets = [data.train_set, data.val_set, data.test_set]
    assert [len(s) for s in sets] == [1337, 100, 360]
    every = torch.cat([torch.cat([s.images.flatten(1), s.labels[:, None].to(torch.uint8)], 1) for s in sets])
    assert len(every) == 1797
    # Nothing is in two sets: the digits hold no image twice.
    assert len(torch.unique(every, dim=0)) == 1797
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (64, 1, 8, 8)
    assert images.dtype == torch.float32
    assert images.min() == 0.0
    assert images.max() == 1.0
    assert labels.dtype == torch.int64


def test_the_test_set_does_not_depend_on_options() -> None:
    first, second = DigitsDataModule(), DigitsDataModule(batch_size=7, val_images=0)
    first.setup("fit")
    torch.rand(3)
    second.setup("fit")
    assert torch.equal(first.test_set.images, second.test_set.images)
    assert len(second.train_set) == 1437
    assert second.val_dataloader() == []


def test_in_a_fixed_order_for_full_batch_mode() -> None:
    data = DigitsDataModule(batch_size=1000, val_images=0, shuffle=False)
    data.setup("fit")
    first, second = list(data.train_dataloader()), list(data.train_dataloader())
    assert [len(labels) for _, labels in first] == [1000, 437]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    # More images asked for than there are: one batch with all of them.
    data.batch_size = 5000
    assert [len(labels) for _, labels in data.train_dataloader()] == [1437]
    with pytest.raises(TypeError, match="shuffle must be True or False, got 1"):
        DigitsDataModule(shuffle=1)


def test_without_scikit_learn(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        DigitsDataModule().setup("fit")
