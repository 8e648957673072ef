import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from lightning_bsqh.zoo.data import CIFAR10DataModule
from lightning_bsqh.zoo.data import cifar10 as module
from lightning_bsqh.zoo.data.batches import Normalize
from lightning_bsqh.zoo.data.cifar10 import FlipAndShift
from tests.zoo.made_data import CIFAR_CLASSES, make_cifar10, png_bytes


def _ready(root, **options) -> CIFAR10DataModule:
    data = CIFAR10DataModule(str(root), batch_size=10, **options)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


@pytest.mark.parametrize("packed", [True, False])
def test_reads_the_images(tmp_path, packed: bool) -> None:
    written = make_cifar10(tmp_path, packed=packed)
    data = _ready(tmp_path)
    assert len(data.train_set) == 40
    assert data.val_dataloader() == []
    for index in range(20):
        path = f"test/{CIFAR_CLASSES[index // 2]}/{index % 2:04d}.png"
        assert torch.equal(data.test_set.images[index], written[path])
        assert int(data.test_set.labels[index]) == index // 2
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (10, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64


def test_reads_a_fixed_choice_of_training_images(tmp_path) -> None:
    make_cifar10(tmp_path)
    first = _ready(tmp_path, train_images=12, val_images=5)
    second = _ready(tmp_path, train_images=12)
    assert torch.equal(first.train_set.images, second.train_set.images)
    assert len(first.val_set) == 5
    chosen = torch.cat([first.train_set.images, first.val_set.images]).flatten(1)
    assert len(torch.unique(chosen, dim=0)) == 17


def test_cache(tmp_path, monkeypatch) -> None:
    root, cache = tmp_path / "data", tmp_path / "cache"
    make_cifar10(root)
    first = _ready(root, cache_dir=str(cache))
    assert sorted(path.name for path in cache.iterdir()) == ["cifar10-test.pt", "cifar10-train.pt"]
    decode, decoded = module.read_images, []
    monkeypatch.setattr(module, "read_images", lambda source: decoded.append(source.name) or decode(source))
    second = _ready(root, cache_dir=str(cache))
    assert decoded == []
    assert torch.equal(first.train_set.images, second.train_set.images)
    assert torch.equal(first.train_set.labels, second.train_set.labels)
    # Other data, or a file that is not whole: decoded anew.
    make_cifar10(root, train=3)
    (cache / "cifar10-test.pt").write_bytes(b"half")
    assert len(_ready(root, cache_dir=str(cache)).train_set) == 30
    assert sorted(decoded) == ["test.tar.gz", "train.tar.gz"]


def test_augmentation_flips_and_shifts() -> None:
    torch.manual_seed(0)
    image = torch.randint(1, 256, (1, 1, 8, 8), dtype=torch.uint8)
    out = FlipAndShift(Normalize([0.0], [1.0]))(image.expand(2000, 2, 8, 8)) * 255.0
    assert out.dtype == torch.float32
    assert torch.equal(out[:, 0], out[:, 1])  # all channels move alike
    padded = torch.nn.functional.pad(image[0, 0].float(), [3] * 4)
    allowed = {}
    for dy in range(7):
        for dx in range(7):
            window = padded[dy : dy + 8, dx : dx + 8]
            allowed[(dy, dx, False)], allowed[(dy, dx, True)] = window, window.flip(1)
    stacked = torch.stack(list(allowed.values()))
    matches = (out[:, 0].round()[:, None] == stacked[None]).flatten(2).all(2)
    assert torch.equal(matches.sum(1), torch.ones(2000, dtype=torch.long))
    counts = matches.sum(0)
    assert counts.min() > 3  # all 98 outcomes occur, about 20 times each
    assert counts.max() < 50


def test_only_training_images_are_augmented(tmp_path) -> None:
    make_cifar10(tmp_path)
    data = _ready(tmp_path, val_images=10)
    assert isinstance(data.train_set.transform, FlipAndShift)
    for images in (data.val_set, data.test_set):
        assert torch.equal(images[0][0], images[0][0])
    plain = _ready(tmp_path, augment=False)
    assert torch.equal(plain.train_set[0][0], plain.train_set[0][0])


def test_half_of_the_data_missing(tmp_path) -> None:
    make_cifar10(tmp_path)
    (tmp_path / "test.tar.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds train.tar.gz, but test/ \(or test.tar.gz\) is missing"):
        CIFAR10DataModule(str(tmp_path)).prepare_data()
    with pytest.raises(FileNotFoundError, match="root must be a folder"):
        CIFAR10DataModule(str(tmp_path / "train.tar.gz")).prepare_data()


def test_a_python_that_cannot_unpack_safely_is_told(tmp_path, monkeypatch) -> None:
    # As Python up to 3.10.11 and 3.11.3.
    make_cifar10(tmp_path, packed=True)
    monkeypatch.delattr("tarfile.data_filter")
    with pytest.raises(RuntimeError, match=r"train\.tar\.gz is not unpacked: Python .* yourself into .*train/"):
        CIFAR10DataModule(str(tmp_path)).setup("fit")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no archive"])
def test_damaged_archive_is_named(tmp_path, damage) -> None:
    make_cifar10(tmp_path)
    archive = tmp_path / "train.tar.gz"
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ValueError, match=r"train.tar.gz is damaged: it cannot be unpacked"):
        _ready(tmp_path)


def test_damaged_image_is_named(tmp_path) -> None:
    make_cifar10(tmp_path, packed=False)
    image = tmp_path / "train" / "cat" / "0001.png"
    good = image.read_bytes()
    for bad in (b"no image", good[: len(good) // 2]):
        image.write_bytes(bad)
        with pytest.raises(ValueError, match=r"the image cat/0001.png is damaged"):
            _ready(tmp_path)
    image.write_bytes(png_bytes(torch.zeros(3, 20, 30, dtype=torch.uint8)))
    with pytest.raises(ValueError, match=r"cat/0001.png is 30x20 pixels, not 32x32"):
        _ready(tmp_path)


def test_wrong_number_of_classes(tmp_path) -> None:
    make_cifar10(tmp_path, packed=False)
    shutil.rmtree(tmp_path / "train" / "dog")
    with pytest.raises(ValueError, match="holds images of 9 classes"):
        _ready(tmp_path)


def test_empty_folder_downloads(tmp_path, monkeypatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    calls = []

    def cifar10(root: str, train: bool, download: bool) -> SimpleNamespace:
        calls.append((train, download))
        size = 30 if train else 20
        return SimpleNamespace(data=np.zeros((size, 32, 32, 3), dtype=np.uint8), targets=[3] * size)

    monkeypatch.setattr(datasets, "CIFAR10", cifar10)
    data = _ready(tmp_path)
    assert data.train_set.images.shape == (30, 3, 32, 32)
    assert data.test_set.labels.tolist() == [3] * 20
    assert calls == [(True, True), (True, False), (False, False)]


def test_failed_download_says_what_to_do(tmp_path, monkeypatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    def cifar10(root: str, train: bool, download: bool) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets, "CIFAR10", cifar10)
    with pytest.raises(RuntimeError, match=r"could not be downloaded \(no network\): put train.tar.gz"):
        CIFAR10DataModule(str(tmp_path)).prepare_data()
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install torchvision"):
        CIFAR10DataModule(str(tmp_path)).prepare_data()
