import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Subset
from typing_extensions import override

from lightning_bsqh.zoo.data.batches import InMemoryDataModule, Normalize, TensorImages, split_indices


def _images(count: int = 11) -> TensorImages:
    """Image k has all pixels k and label k."""
    values = torch.arange(count)
    return TensorImages(values.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2), values, lambda x: x.float())


class _Data(InMemoryDataModule):
    @override
    def setup(self, stage: str) -> None:
        self.train_set, self.val_set, self.test_set = _images(11), _images(3), _images(5)


def _labels(loader: DataLoader) -> list[int]:
    return [label for _, labels in loader for label in labels.tolist()]


def test_batches_hold_the_images_of_their_labels() -> None:
    data = _Data(batch_size=4, num_workers=0)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [len(labels) for _, labels in batches] == [4, 4]  # the incomplete one is dropped
    for images, labels in batches:
        assert images.shape == (4, 1, 2, 2)
        assert images.dtype == torch.float32
        assert torch.equal(images[:, 0, 0, 0].long(), labels)
    assert _labels(data.test_dataloader()) == list(range(5))
    assert _labels(data.val_dataloader()) == list(range(3))


def test_shuffling_follows_the_default_generator() -> None:
    data = _Data(batch_size=4, num_workers=0)
    data.setup("fit")
    loader = data.train_dataloader()
    L.seed_everything(1, verbose=False)
    first, second = _labels(loader), _labels(loader)
    L.seed_everything(1, verbose=False)
    again = _labels(loader)
    assert first == again
    assert first != second


def test_single_images_and_subsets() -> None:
    images = _images()
    image, label = images[3]
    assert image.shape == (1, 2, 2)
    assert int(label) == 3
    data = _Data(batch_size=2, num_workers=0)
    assert _labels(data._loader(Subset(images, [7, 2, 5]))) == [7, 2, 5]


def test_no_validation_set_means_no_validation_loop() -> None:
    data = _Data(batch_size=2, num_workers=0)
    data.setup("fit")
    data.val_set = None
    assert data.val_dataloader() == []


def test_normalise() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1)
    out = Normalize(mean=[0.5, 0.25], std=[0.5, 0.25])(images)
    assert torch.allclose(out.flatten(), torch.tensor([-1.0, 3.0]))


def test_split_is_fixed_and_disjoint() -> None:
    train, val = split_indices(20, None, 5)
    again, _ = split_indices(20, None, 5)
    assert torch.equal(train, again)
    assert sorted(torch.cat([train, val]).tolist()) == list(range(20))
    few, _ = split_indices(20, 7, 0)
    assert torch.equal(few, train[:7])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((20, 0, 0), "train_images must be at least 1 or None, got 0"),
        ((20, None, -1), "val_images must be at least 0, got -1"),
        ((20, 16, 5), "train_images=16 and val_images=5 ask for more than the 20"),
        ((20, None, 20), "ask for more than the 20"),
    ],
)
def test_split_refuses_what_it_cannot_give(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_indices(*arguments)


def test_bad_options_and_order_of_calls() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        _Data(batch_size=0, num_workers=0)
    with pytest.raises(ValueError, match="num_workers must be at least 0, got -1"):
        _Data(batch_size=1, num_workers=-1)
    with pytest.raises(RuntimeError, match=r'setup\("fit"\) first'):
        _Data(batch_size=1, num_workers=0).train_dataloader()
    data = _Data(batch_size=12, num_workers=0)
    data.setup("fit")
    with pytest.raises(ValueError, match="batch_size=12 is more than the 11 training images"):
        data.train_dataloader()
