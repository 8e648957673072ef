"""Small data sets in the formats that the data modules read, made for the tests."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def idx_bytes(array: Tensor) -> bytes:
    """A uint8 array in the IDX format."""
    header = bytes([0, 0, 8, array.dim()]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.numpy().tobytes()


def make_mnist(folder: Path, train: int = 40, test: int = 20, compressed: bool = True) -> dict[str, Tensor]:
    """Writes the four files; label k comes with images of a bright square that depends on k."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    arrays = {}
    for prefix, count in (("train", train), ("t10k", test)):
        labels = (torch.arange(count) % 10).to(torch.uint8)
        images = torch.randint(0, 50, (count, 28, 28), generator=generator, dtype=torch.uint8)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[2 * label : 2 * label + 6, 4:24] = 200
        arrays[f"{prefix}-images-idx3-ubyte"] = images
        arrays[f"{prefix}-labels-idx1-ubyte"] = labels
    for name, array in arrays.items():
        data = idx_bytes(array)
        if compressed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)
    return arrays


def png_bytes(image: Tensor) -> bytes:
    """An image ``[3, H, W]`` uint8 as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, format="png")
    return buffer.getvalue()


def make_cifar10(folder: Path, train: int = 4, test: int = 2, packed: bool = True) -> dict[str, Tensor]:
    """Writes ``train`` and ``test`` images per class; returns them by ``"split/class/name"``."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    written = {}
    for split, count in (("train", train), ("test", test)):
        files = {}
        for class_name in CIFAR_CLASSES:
            for number in range(count):
                image = torch.randint(0, 256, (3, 32, 32), generator=generator, dtype=torch.uint8)
                path = f"{split}/{class_name}/{number:04d}.png"
                files[path] = png_bytes(image)
                written[path] = image
        if packed:
            with tarfile.open(folder / f"{split}.tar.gz", "w:gz") as archive:
                for path, data in files.items():
                    member = tarfile.TarInfo(path)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        else:
            for path, data in files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(data)
    return written
