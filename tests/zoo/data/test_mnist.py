import gzip
import sys

import pytest
import torch

from lightning_bsqh.zoo.data import MNISTDataModule
from tests.zoo.made_data import idx_bytes, make_mnist

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def _ready(root, **options) -> MNISTDataModule:
    data = MNISTDataModule(str(root), batch_size=10, **options)
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    return data


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("sub_folder", ["", "MNIST/raw"])
def test_reads_the_files(tmp_path, compressed: bool, sub_folder: str) -> None:
    arrays = make_mnist(tmp_path / sub_folder, compressed=compressed)
    data = _ready(tmp_path)
    images, labels = next(iter(data.test_dataloader()))
    raw = arrays["t10k-images-idx3-ubyte"][:10].unsqueeze(1)
    assert torch.allclose(images, (raw / 255.0 - 0.1307) / 0.3081, atol=1e-5)
    assert torch.equal(labels, arrays["t10k-labels-idx1-ubyte"][:10].long())
    batches = list(data.train_dataloader())
    assert len(batches) == 4
    drawn = torch.cat([images for images, _ in batches])
    for image, label in zip(drawn, torch.cat([labels for _, labels in batches]).tolist(), strict=True):
        # Each image came with its own label.
        assert image[0, 2 * label : 2 * label + 6, 4:24].min() > 1.0
    assert data.val_dataloader() == []


def test_validation_images_come_from_the_training_set(tmp_path) -> None:
    make_mnist(tmp_path)
    data = _ready(tmp_path, val_images=8, train_images=20)
    assert len(data.train_set) == 20
    assert len(data.val_set) == 8
    seen = torch.cat([data.train_set.images, data.val_set.images]).flatten(1)
    assert len(torch.unique(seen, dim=0)) == 28
    assert len(data.test_set) == 20


def test_missing_file_is_named(tmp_path) -> None:
    make_mnist(tmp_path)
    (tmp_path / f"{TRAIN_LABELS}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{TRAIN_LABELS} \(or {TRAIN_LABELS}.gz\) is missing"):
        MNISTDataModule(str(tmp_path)).prepare_data()


def test_root_is_a_file(tmp_path) -> None:
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(FileNotFoundError, match="root must be a folder"):
        MNISTDataModule(str(path)).prepare_data()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: gzip.compress(data)[:-20], "cannot be decompressed"),
        (lambda data: b"no gzip at all", "cannot be decompressed"),
        (lambda data: gzip.compress(data)[:40] + b"\0" * 200 + gzip.compress(data)[240:], "cannot be decompressed"),
        (lambda data: gzip.compress(data[:2]), "2 bytes are too few"),
        (lambda data: gzip.compress(b"\1" + data[1:]), "starts with 0x01000803 instead of 0x00000803"),
        (lambda data: gzip.compress(data[:-1]), "its header asks for"),
        (lambda data: gzip.compress(data + b"\0"), "its header asks for"),
        (lambda data: gzip.compress(idx_bytes(torch.zeros(0, 28, 28, dtype=torch.uint8))), "holds nothing"),
        (
            lambda data: gzip.compress(idx_bytes(torch.zeros(40, 8, 8, dtype=torch.uint8))),
            "8x8 pixels instead of 28x28",
        ),
    ],
)
def test_damaged_file_is_named(tmp_path, damage, message: str) -> None:
    arrays = make_mnist(tmp_path)
    (tmp_path / f"{TRAIN_IMAGES}.gz").write_bytes(damage(idx_bytes(arrays[TRAIN_IMAGES])))
    with pytest.raises(ValueError, match=message) as error:
        _ready(tmp_path)
    assert f"{TRAIN_IMAGES}.gz" in str(error.value)


def test_files_that_do_not_belong_together(tmp_path) -> None:
    arrays = make_mnist(tmp_path)
    labels = arrays[TRAIN_LABELS]
    (tmp_path / f"{TRAIN_LABELS}.gz").write_bytes(gzip.compress(idx_bytes(labels[:-1])))
    with pytest.raises(ValueError, match=rf"{TRAIN_IMAGES}.gz holds 40 images, but .*{TRAIN_LABELS}.gz 39 labels"):
        _ready(tmp_path)
    (tmp_path / f"{TRAIN_LABELS}.gz").write_bytes(gzip.compress(idx_bytes(labels + 1)))
    with pytest.raises(ValueError, match=rf"{TRAIN_LABELS}.gz is damaged: it holds the label 10"):
        _ready(tmp_path)


def test_empty_folder_downloads(tmp_path, monkeypatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    calls = []

    def mnist(root: str, download: bool) -> None:
        calls.append(root)
        make_mnist(tmp_path / "MNIST" / "raw")

    monkeypatch.setattr(datasets, "MNIST", mnist)
    assert len(_ready(tmp_path).train_set) == 40
    _ready(tmp_path)
    assert calls == [str(tmp_path)]


def test_failed_download_says_what_to_do(tmp_path, monkeypatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    def mnist(root: str, download: bool) -> None:
        raise RuntimeError("Error downloading")

    monkeypatch.setattr(datasets, "MNIST", mnist)
    with pytest.raises(RuntimeError, match=r"the download failed .* put the four IDX files there"):
        MNISTDataModule(str(tmp_path)).prepare_data()
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install torchvision"):
        MNISTDataModule(str(tmp_path)).prepare_data()
