"""What the data modules share: images in memory, drawn a whole batch at a time."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lightning_bsqh.namespace import pl

#: A batch: images ``[N, C, H, W]`` float32 and labels ``[N]`` int64.
Batch = tuple[Tensor, Tensor]
#: From raw images ``[N, C, H, W]`` of any dtype to float32 images of the same shape.
Transform = Callable[[Tensor], Tensor]


class TensorImages(Dataset[Batch]):
    """Labeled images in memory, each transformed when it is drawn.

    A DataLoader asks for all images of a batch at once (``__getitems__``), so a batch costs one
    indexing operation instead of N.

    Args:
        images: ``[N, C, H, W]``, any dtype.
        labels: ``[N]``, int64.
        transform: What turns images into floats; may be random.
    """

    def __init__(self, images: Tensor, labels: Tensor, transform: Transform) -> None:
        self.images = images
        self.labels = labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    @override
    def __getitem__(self, index: int) -> Batch:
        """One image ``[C, H, W]`` and its label, a scalar."""
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> Batch:
        """Images ``[len(indices), C, H, W]`` and labels ``[len(indices)]``, already one batch."""
        chosen = torch.as_tensor(indices)
        return self.transform(self.images[chosen]), self.labels[chosen]


def _collate(batch: Batch | Sequence[Batch]) -> Batch:
    # TensorImages has made the batch already; a dataset put around it (a Subset of old) may hand over single samples.
    if isinstance(batch, tuple):
        return batch
    return torch.stack([image for image, _ in batch]), torch.stack([label for _, label in batch])


class Normalize:
    """Turns pixels into floats: (x / scale − mean) / std, per channel.

    Args:
        mean: Of each channel, after division by ``scale``.
        std: Of each channel, after division by ``scale``.
        scale: Value of a white pixel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], scale: float = 255.0) -> None:
        self.mean = torch.tensor(mean).view(-1, 1, 1) * scale
        self.factor = 1.0 / (torch.tensor(std).view(-1, 1, 1) * scale)

    def __call__(self, images: Tensor) -> Tensor:
        """From ``[N, C, H, W]``, any dtype, to float32 of the same shape."""
        return (images.to(torch.float32) - self.mean) * self.factor


def split_indices(images: int, train_images: int | None, val_images: int) -> tuple[Tensor, Tensor]:
    """Shares out a training set, in the order of a permutation that is always the same (seed 0).

    Args:
        images: Number of images there are.
        train_images: Number of images to train with, from the front; None takes what is left.
        val_images: Number of images to validate with, from the end.

    Returns:
        Indices for training and for validation, int64, without overlap.

    Raises:
        ValueError: If there are fewer images than asked for.
    """
    if train_images is not None and train_images < 1:
        raise ValueError(f"train_images must be at least 1 or None, got {train_images}.")
    if val_images < 0:
        raise ValueError(f"val_images must be at least 0, got {val_images}.")
    if val_images + (train_images or 1) > images:
        raise ValueError(
            f"train_images={train_images} and val_images={val_images} ask for more than the {images} training images"
            " there are."
        )
    order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    end = images - val_images
    return order[: end if train_images is None else train_images], order[end:]


class InMemoryDataModule(pl.LightningDataModule):
    """Loaders for data sets that are kept in memory; a subclass fills them in ``setup``.

    Training batches are shuffled by torch's default generator (``seed_everything`` fixes them) and
    an incomplete last one is dropped, unless ``shuffle`` is off. Without a validation set there is no
    validation loop: the test set never stands in for it.

    Args:
        batch_size: Images per batch, at least 1.
        num_workers: Processes that prepare batches; 0 prepares them in the main process, which is
            the fastest for all but heavy augmentation.
        shuffle: Whether training batches are drawn at random. If not they are the same in every epoch and none is
            dropped, as full-batch mode wants them.

    Raises:
        TypeError: If ``shuffle`` is no bool.
        ValueError: If an argument is out of its range.
    """

    def __init__(self, batch_size: int, num_workers: int, shuffle: bool = True) -> None:
        super().__init__()
        if not isinstance(shuffle, bool):
            raise TypeError(f"shuffle must be True or False, got {shuffle!r}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        if num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, got {num_workers}.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.shuffle = shuffle
        self.train_set: TensorImages | None = None
        self.val_set: TensorImages | None = None
        self.test_set: TensorImages | None = None

    @override
    @abstractmethod
    def setup(self, stage: str) -> None:
        """Reads what ``stage`` ("fit", "validate", "test" or "predict") needs, once."""

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches of exactly ``batch_size`` images; or all images in a fixed order."""
        train_set = self._ready(self.train_set, "fit")
        if self.shuffle and len(train_set) < self.batch_size:
            raise ValueError(f"batch_size={self.batch_size} is more than the {len(train_set)} training images.")
        return self._loader(train_set, training=True)

    @override
    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """All validation images in a fixed order; an empty list if there are none."""
        if self.val_set is None or len(self.val_set) == 0:
            # Lightning asks whether the empty list is intended. It is.
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
            return []
        return self._loader(self.val_set)

    @override
    def test_dataloader(self) -> DataLoader[Batch]:
        """All test images in a fixed order."""
        return self._loader(self._ready(self.test_set, "test"))

    @override
    def predict_dataloader(self) -> DataLoader[Batch]:
        """The same as the test loader."""
        return self.test_dataloader()

    def _ready(self, images: TensorImages | None, stage: str) -> TensorImages:
        if images is None:
            raise RuntimeError(f'{type(self).__name__}: call prepare_data() and setup("{stage}") first.')
        return images

    def _loader(self, images: TensorImages, training: bool = False) -> DataLoader[Batch]:
        return DataLoader(
            images,
            batch_size=self.batch_size,
            shuffle=training and self.shuffle,
            drop_last=training and self.shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=_collate,
        )
