"""The handwritten digits that scikit-learn carries: nothing to download."""

from __future__ import annotations

import torch
from typing_extensions import override

from lightning_bsqh.zoo.data.batches import InMemoryDataModule, Normalize, TensorImages, split_indices

_TEST_IMAGES = 360


class DigitsDataModule(InMemoryDataModule):
    """1,797 digits of 8x8 pixels, gray values in [0, 1]; 360 of them, always the same, are the test set.

    Args:
        batch_size: Images per batch.
        val_images: Number of the other 1,437 images kept for validation, 0 for none.
        num_workers: Processes that prepare batches.
        shuffle: Whether training batches are drawn at random, an incomplete last one dropped; if not they are the same
            in every epoch and hold all images, as full-batch mode wants them.

    Raises:
        TypeError: If ``shuffle`` is no bool.
        ValueError: If an argument is out of its range.
        ModuleNotFoundError: If scikit-learn is not installed (in ``setup``).
    """

    def __init__(self, batch_size: int = 64, val_images: int = 100, num_workers: int = 0, shuffle: bool = True) -> None:
        super().__init__(batch_size, num_workers, shuffle)
        self.val_images = val_images

    @override
    def setup(self, stage: str) -> None:
        if self.train_set is not None:
            return
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "DigitsDataModule reads scikit-learn's digits: pip install scikit-learn"
            ) from error
        digits = load_digits()
        images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(digits.target).to(torch.int64)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        test, rest = order[:_TEST_IMAGES], order[_TEST_IMAGES:]
        train, val = split_indices(len(rest), None, self.val_images)
        scale = Normalize(mean=[0.0], std=[1.0], scale=16.0)
        self.train_set = TensorImages(images[rest[train]], labels[rest[train]], scale)
        self.val_set = TensorImages(images[rest[val]], labels[rest[val]], scale)
        self.test_set = TensorImages(images[test], labels[test], scale)
