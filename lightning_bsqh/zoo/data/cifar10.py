"""CIFAR-10 from image files in one folder per class, packed or not, or as torchvision downloads it."""

from __future__ import annotations

import gzip
import os
import platform
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.zoo.data.batches import InMemoryDataModule, Normalize, TensorImages, split_indices

_CLASSES = 10
_PIXELS = 32
_SUFFIXES = (".jpg", ".jpeg", ".png")
_MAX_SHIFT = 3


class CIFAR10DataModule(InMemoryDataModule):
    """CIFAR-10, or another data set of 10 classes of 32x32 color images, normalized per channel.

    Args:
        root: Folder with ``train/`` and ``test/``, each with one folder of images (JPEG or PNG) per
            class, as torchvision's ImageFolder takes them; or with the same packed as ``train.tar.gz``
            and ``test.tar.gz``; or what torchvision's CIFAR10 downloads. Where it holds none of them,
            torchvision downloads the data.
        batch_size: Images per batch.
        train_images: Number of images to train with, from a permutation that is always the same; None
            takes all but the validation images.
        val_images: Number of the training images kept for validation, 0 for none.
        augment: Whether training images are flipped and shifted by up to 3 pixels, at random.
        cache_dir: Writable folder for the decoded images (about 150 and 30 MB), which saves the
            decoding in later runs; None keeps none.
        num_workers: Processes that prepare batches.

    Raises:
        ValueError: If an argument is out of its range, or data are damaged (in ``setup``).
        FileNotFoundError: If only one of the training and test data is there (in ``prepare_data``).
    """

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        train_images: int | None = None,
        val_images: int = 0,
        augment: bool = True,
        cache_dir: str | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.root = Path(root)
        self.train_images = train_images
        self.val_images = val_images
        self.augment = augment
        self.cache_dir = None if cache_dir is None else Path(cache_dir)

    @override
    def prepare_data(self) -> None:
        """Downloads the data if there are none."""
        if find_image_sources(self.root) is None:
            # Checks what is there already and downloads only what is not.
            _torchvision(self.root, train=True, download=True)

    @override
    def setup(self, stage: str) -> None:
        normalize = Normalize(mean=[0.4914, 0.4822, 0.4465], std=[0.2470, 0.2435, 0.2616])
        if stage in ("fit", "validate") and self.train_set is None:
            images, labels = self._read("train")
            train, val = split_indices(len(labels), self.train_images, self.val_images)
            transform = FlipAndShift(normalize) if self.augment else normalize
            self.train_set = TensorImages(images[train], labels[train], transform)
            self.val_set = TensorImages(images[val], labels[val], normalize)
        if stage in ("test", "predict") and self.test_set is None:
            self.test_set = TensorImages(*self._read("test"), normalize)

    def _read(self, split: str) -> tuple[Tensor, Tensor]:
        sources = find_image_sources(self.root)
        if sources is None:
            return _from_torchvision(self.root, train=split == "train")
        source = sources[split]
        if self.cache_dir is None:
            return read_images(source)
        return _cached(source, self.cache_dir / f"cifar10-{split}.pt")


class FlipAndShift:
    """Flips each image with probability 1/2 and shifts it by up to 3 pixels along both axes.

    Pixels that come in from outside are 0 after normalization. Draws from torch's default generator.

    Args:
        normalize: Applied first.
    """

    def __init__(self, normalize: Normalize) -> None:
        self.normalize = normalize

    def __call__(self, images: Tensor) -> Tensor:
        """From ``[N, C, H, W]``, any dtype, to float32 of the same shape."""
        images = self.normalize(images)
        n, _, height, width = images.shape
        shift = torch.randint(0, 2 * _MAX_SHIFT + 1, (2, n, 1))
        flip = torch.rand(n, 1) < 0.5
        padded = torch.nn.functional.pad(images, [_MAX_SHIFT] * 4)
        rows = shift[0] + torch.arange(height)
        columns = shift[1] + torch.arange(width)
        columns = torch.where(flip, columns.flip(1), columns)
        # Two gathers (whole rows, then columns) for the batch; no loop over images.
        channels = images.shape[1]
        picked = padded.gather(2, rows[:, None, :, None].expand(n, channels, height, padded.shape[3]))
        return picked.gather(3, columns[:, None, None, :].expand(n, channels, height, width))


def find_image_sources(root: Path) -> dict[str, Path] | None:
    """The folders or archives of the training and the test images.

    Returns:
        Paths by ``"train"`` and ``"test"``, or None if there is neither.

    Raises:
        FileNotFoundError: If ``root`` is a file, or only one of the two is there.
    """
    if root.exists() and not root.is_dir():
        raise FileNotFoundError(f"root must be a folder, but {root} is a file.")
    found = {}
    for split in ("train", "test"):
        if (root / split).is_dir():
            found[split] = root / split
        elif (root / f"{split}.tar.gz").is_file():
            found[split] = root / f"{split}.tar.gz"
    if len(found) == 1:
        missing = "test" if "train" in found else "train"
        raise FileNotFoundError(
            f"{root} holds {next(iter(found.values())).name}, but {missing}/ (or {missing}.tar.gz) is missing: put it"
            " there, or give an empty folder as root to have CIFAR-10 downloaded."
        )
    return found or None


def read_images(source: Path) -> tuple[Tensor, Tensor]:
    """Decodes all images of one folder or archive, sorted by class and name.

    Returns:
        Images ``[N, 3, 32, 32]`` uint8 and labels ``[N]`` int64, the position of the class among the
        sorted class names.

    Raises:
        ValueError: If an image or the archive is damaged, or the classes are not 10.
        ModuleNotFoundError: If torchvision is not installed.
        RuntimeError: If this Python cannot keep an archive from writing outside the folder that it is unpacked into.
    """
    if source.is_dir():
        return _read_folder(source, source)
    if not hasattr(tarfile, "data_filter"):
        raise RuntimeError(
            f"{source} is not unpacked: Python {platform.python_version()} has no filters for archives, those from"
            f" 3.10.12 and 3.11.4 on have. Unpack it yourself into {source.parent}/{source.name.partition('.')[0]}/,"
            " with one folder per class."
        )
    with tempfile.TemporaryDirectory() as folder:
        try:
            # With the filter, nothing can be unpacked to anywhere else.
            shutil.unpack_archive(source, folder, "gztar", filter="data")
        except (shutil.ReadError, tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{source} is damaged: it cannot be unpacked ({error}); replace it.") from error
        inside = Path(folder)
        # The classes may lie below a folder such as train/.
        while len(below := [path for path in inside.iterdir() if path.is_dir()]) == 1:
            inside = below[0]
        return _read_folder(inside, source)


def _read_folder(folder: Path, source: Path) -> tuple[Tensor, Tensor]:
    """The images of a folder with one folder per class; ``source`` is what errors name."""
    try:
        from torchvision.datasets import ImageFolder
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"Decoding {source} needs torchvision: pip install torchvision") from error
    try:
        found = ImageFolder(str(folder), is_valid_file=lambda path: Path(path).suffix.lower() in _SUFFIXES)
    except FileNotFoundError as error:
        raise ValueError(f"{source}: {error}") from error
    if len(found.classes) != _CLASSES:
        raise ValueError(
            f"{source} holds images of {len(found.classes)} classes (one folder each) instead of {_CLASSES}."
        )
    images = torch.stack([_decode(found.loader, Path(path), source) for path, _ in found.samples])
    return images.permute(0, 3, 1, 2).contiguous(), torch.tensor(found.targets)


def _decode(load: Callable[[str], Any], path: Path, source: Path) -> Tensor:
    """One image ``[32, 32, 3]`` uint8."""
    name = f"{path.parent.name}/{path.name}"
    try:
        image = load(str(path))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{source}: the image {name} is damaged ({error}); replace it.") from error
    if image.size != (_PIXELS, _PIXELS):
        raise ValueError(f"{source}: the image {name} is {image.size[0]}x{image.size[1]} pixels, not 32x32.")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(_PIXELS, _PIXELS, 3)


def _cached(source: Path, cache: Path) -> tuple[Tensor, Tensor]:
    """What ``read_images`` gives, from the cache file if that was made from the same files."""
    stamp = _stamp(source)
    if cache.is_file():
        try:
            content: dict[str, Any] = torch.load(cache, weights_only=True)
        except Exception:  # torch.load promises no particular one for a file that is not whole
            content = {}
        if content.get("stamp") == stamp:
            return content["images"], content["labels"]
    images, labels = read_images(source)
    cache.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and moved, so that several processes never see half a file.
    part = cache.with_name(f"{cache.name}.{os.getpid()}.part")
    torch.save({"stamp": stamp, "images": images, "labels": labels}, part)
    part.replace(cache)
    return images, labels


def _stamp(source: Path) -> list[int]:
    files = [source] if source.is_file() else [path for path in source.glob("*/*") if path.is_file()]
    stats = [path.stat() for path in files]
    return [len(stats), sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)]


def _from_torchvision(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    data = _torchvision(root, train=train, download=False)
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(data.targets)


def _torchvision(root: Path, train: bool, download: bool) -> Any:
    try:
        from torchvision.datasets import CIFAR10
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{root} holds no images and torchvision, which would download CIFAR-10, is not installed: put"
            " train.tar.gz and test.tar.gz there, or pip install torchvision"
        ) from error
    try:
        return CIFAR10(str(root), train=train, download=download)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"{root} holds no images and CIFAR-10 could not be {'downloaded' if download else 'read'} ({error}): put"
            " train.tar.gz and test.tar.gz there, or folders train/ and test/ with one folder per class."
        ) from error
