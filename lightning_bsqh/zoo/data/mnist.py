"""MNIST from its four IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.zoo.data.batches import InMemoryDataModule, Normalize, TensorImages, split_indices

_IMAGE_MAGIC, _LABEL_MAGIC = 0x803, 0x801
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_PIXELS = 28
_ADVICE = " Replace it, or delete all four files to have them downloaded again."


class MNISTDataModule(InMemoryDataModule):
    """MNIST, or another data set in its format: 28x28 pixels, 10 classes, normalized to mean 0 and variance 1.

    Args:
        root: Folder with the four IDX files, plain or ``.gz``, directly or in a sub-folder
            ``MNIST/raw``. Where it holds none of them, torchvision downloads them into ``MNIST/raw``.
        batch_size: Images per batch.
        train_images: Number of images to train with; None takes all but the validation images.
        val_images: Number of the training images kept for validation, 0 for none.
        num_workers: Processes that prepare batches.

    Raises:
        ValueError: If an argument is out of its range, or a file is damaged (in ``setup``).
        FileNotFoundError: If only some of the four files are there (in ``prepare_data``).
    """

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        train_images: int | None = None,
        val_images: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.root = Path(root)
        self.train_images = train_images
        self.val_images = val_images

    @override
    def prepare_data(self) -> None:
        """Downloads the files if none is there."""
        if find_idx_files(self.root) is None:
            _download(self.root)

    @override
    def setup(self, stage: str) -> None:
        files = find_idx_files(self.root)
        if files is None:
            raise FileNotFoundError(f"{self.root} holds no MNIST files: call prepare_data() to download them.")
        normalize = Normalize(mean=[0.1307], std=[0.3081])
        if stage in ("fit", "validate") and self.train_set is None:
            images, labels = read_pair(*(files[name] for name in _FILES["train"]))
            train, val = split_indices(len(labels), self.train_images, self.val_images)
            self.train_set = TensorImages(images[train], labels[train], normalize)
            self.val_set = TensorImages(images[val], labels[val], normalize)
        if stage in ("test", "predict") and self.test_set is None:
            images, labels = read_pair(*(files[name] for name in _FILES["test"]))
            self.test_set = TensorImages(images, labels, normalize)


def find_idx_files(root: Path) -> dict[str, Path] | None:
    """Where the four files lie, by their plain names.

    Returns:
        The paths, or None if there is none of the four.

    Raises:
        FileNotFoundError: If ``root`` is a file, or only some of the four are there.
    """
    if root.exists() and not root.is_dir():
        raise FileNotFoundError(f"root must be a folder, but {root} is a file.")
    names = [name for pair in _FILES.values() for name in pair]
    for folder in (root, root / "MNIST" / "raw"):
        found = {}
        for name in names:
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    found[name] = path
                    break
        missing = [name for name in names if name not in found]
        if not missing:
            return found
        if found:
            raise FileNotFoundError(
                f"{folder} holds some of the four MNIST files, but {missing[0]} (or {missing[0]}.gz) is missing: put it"
                " there, or give an empty folder as root to have all four downloaded."
            )
    return None


def read_pair(image_file: Path, label_file: Path) -> tuple[Tensor, Tensor]:
    """Reads images ``[N, 1, 28, 28]`` uint8 and their labels ``[N]`` int64.

    Raises:
        ValueError: If a file is damaged or the two do not belong together; the message names the file.
    """
    images = read_idx(image_file, _IMAGE_MAGIC)
    labels = read_idx(label_file, _LABEL_MAGIC)
    if images.shape[1:] != (_PIXELS, _PIXELS):
        height, width = images.shape[1:]
        raise ValueError(f"{image_file} holds images of {height}x{width} pixels instead of {_PIXELS}x{_PIXELS}.")
    if len(images) != len(labels):
        raise ValueError(
            f"{image_file} holds {len(images)} images, but {label_file} {len(labels)} labels: they do not belong"
            " together; replace the wrong one."
        )
    if int(labels.max()) > 9:
        raise ValueError(f"{label_file} is damaged: it holds the label {int(labels.max())}, the largest is 9.{_ADVICE}")
    return images.unsqueeze(1), labels.to(torch.int64)


def read_idx(path: Path, magic: int) -> Tensor:
    """Reads one IDX file of unsigned bytes.

    Args:
        path: The file, compressed if its name ends in ``.gz``.
        magic: The number it must start with; its lowest byte is the number of dimensions.

    Returns:
        The array, uint8.

    Raises:
        ValueError: If the file is damaged.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: it cannot be decompressed ({error}).{_ADVICE}") from error
    header = 4 + 4 * (magic & 0xFF)
    if len(data) < header:
        raise ValueError(f"{path} is damaged: {len(data)} bytes are too few for an IDX file.{_ADVICE}")
    if int.from_bytes(data[:4], "big") != magic:
        raise ValueError(f"{path} is damaged: it starts with 0x{data[:4].hex()} instead of 0x{magic:08x}.{_ADVICE}")
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, header, 4)]
    expected = header + math.prod(shape)
    if expected == header:
        raise ValueError(f"{path} is damaged: its header says that it holds nothing.{_ADVICE}")
    if len(data) != expected:
        raise ValueError(f"{path} is damaged: it has {len(data)} bytes, its header asks for {expected}.{_ADVICE}")
    # A copy, since torch wants memory that can be written to.
    return torch.frombuffer(bytearray(data[header:]), dtype=torch.uint8).view(shape)


def _download(root: Path) -> None:
    try:
        from torchvision.datasets import MNIST
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{root} holds no MNIST files and torchvision, which would download them, is not installed: put the four"
            " IDX files there, or pip install torchvision"
        ) from error
    try:
        MNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"{root} holds no MNIST files and the download failed ({error}): put the four IDX files there."
        ) from error
