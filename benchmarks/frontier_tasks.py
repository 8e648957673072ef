"""What benchmarks/frontier.py trains: networks, data and the figure that tells how good one is."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsqh.zoo import LeNet5, ResNet8, SmallLeNet
from lightning_bsqh.zoo.data import CIFAR10DataModule, DigitsDataModule, MNISTDataModule
from lightning_bsqh.zoo.data.batches import InMemoryDataModule

#: Characters of a text that stand for all others.
_VOCABULARY = 96
_LENGTH = 64


@dataclass(frozen=True)
class Task:
    """One network on one set of data.

    Attributes:
        title: For the table.
        network: Makes it.
        data: Gives loaders for training and batches for validation and test.
        epochs: The budget.
        rates: Learning rates that SGD tries.
        is_text: Whether the figure is bits per character, less is better; else the share of right answers.
    """

    title: str
    network: Callable[[], nn.Module]
    data: Data
    epochs: int
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.2)
    is_text: bool = False


class Data:
    """Loaders for training, and fixed batches for validation and test.

    Args:
        train: Makes a loader that draws with torch's default generator.
        held_out: Batches by ``"val"`` and ``"test"``.
    """

    def __init__(
        self, train: Callable[[], DataLoader[Any]], held_out: dict[str, Sequence[tuple[Tensor, Tensor]]]
    ) -> None:
        self.train = train
        self.held_out = held_out


class Classifier(pl.LightningModule):
    """Cross-entropy over the last dimension of the logits; the optimizer comes from the method."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.optimizers_of: Callable[[pl.LightningModule], Any] | None = None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return loss(self.network, *batch)

    def configure_optimizers(self) -> Any:
        return None if self.optimizers_of is None else self.optimizers_of(self)


def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits = network(x)
    return functional.cross_entropy(logits.flatten(0, -2), y.flatten())


@torch.no_grad()
def figure(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], is_text: bool) -> float:
    """Bits per character, or the share of right answers, in evaluation mode."""
    network.eval()
    total, count = 0.0, 0
    for x, y in batches:
        value = (
            loss(network, x, y) / torch.log(torch.tensor(2.0))
            if is_text
            else (network(x).argmax(-1) == y).float().mean()
        )
        total, count = total + float(value) * len(y), count + len(y)
    return total / count


# ---------------------------------------------------------------- images


def images(module: InMemoryDataModule, rows: Callable[[Tensor], Tensor] = lambda x: x) -> Data:
    """Data of one of the package's data modules.

    Args:
        module: With a validation split.
        rows: What is done to its images.
    """
    module.prepare_data()
    module.setup("fit")
    module.setup("test")

    def batches(chosen: Any) -> list[tuple[Tensor, Tensor]]:
        parts = [list(range(i, min(i + 1000, len(chosen)))) for i in range(0, len(chosen), 1000)]
        return [(rows(x), y) for x, y in (chosen.__getitems__(part) for part in parts)]

    def collate(batch: Any) -> tuple[Tensor, Tensor]:
        return rows(batch[0]), batch[1]

    def train() -> DataLoader[Any]:
        assert module.train_set is not None
        return DataLoader(
            module.train_set, batch_size=module.batch_size, shuffle=True, drop_last=True, collate_fn=collate
        )

    return Data(train, {"val": batches(module.val_set), "test": batches(module.test_set)})


class RowsLSTM(nn.Module):
    """Reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


# ---------------------------------------------------------------- text


class Characters(nn.Module):
    """A causal transformer of two layers on characters; from ``[N, T]`` to logits ``[N, T, 96]``."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(_VOCABULARY, width), nn.Embedding(_LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, _VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        steps = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(steps, device=tokens.device)
        x = self.token(tokens) + self.place(torch.arange(steps, device=tokens.device))
        return self.head(self.norm(self.encoder(x, mask=mask, is_causal=True)))


def text(characters: int = 1_200_000, batch_size: int = 64) -> Data:
    """Modules of Python's own standard library, in the order of their names; every tenth window is held out."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    content = "".join(p.read_text(encoding="utf-8", errors="replace") for p in sorted(folder.glob("*.py")))
    codes = torch.tensor([min(ord(c) - 31, _VOCABULARY - 1) if ord(c) >= 32 else 0 for c in content[:characters]])
    windows = codes[: len(codes) // (_LENGTH + 1) * (_LENGTH + 1)].view(-1, _LENGTH + 1)
    place = torch.arange(len(windows)) % 20
    parts = {"train": windows[place % 10 != 0], "val": windows[place == 0], "test": windows[place == 10]}

    def pairs(chosen: Tensor) -> TensorDataset:
        return TensorDataset(chosen[:, :-1], chosen[:, 1:])

    held_out = {name: list(DataLoader(pairs(parts[name]), batch_size=256)) for name in ("val", "test")}
    return Data(
        lambda: DataLoader(pairs(parts["train"]), batch_size=batch_size, shuffle=True, drop_last=True), held_out
    )


def make_task(name: str, mnist: str | None, cifar10: str | None) -> Task:
    """The task of that name.

    Raises:
        ValueError: If the folder of its data was not given.
    """
    if name == "digits":
        return Task("digits, small LeNet", SmallLeNet, images(DigitsDataModule(val_images=200)), 20)
    if name == "lstm":
        data = images(DigitsDataModule(val_images=200), lambda x: x.flatten(1).view(len(x), 8, 8))
        return Task("digits' rows, LSTM", RowsLSTM, data, 30, (0.03, 0.1, 0.3, 1.0))
    if name == "text":
        return Task("Python's library, transformer", Characters, text(), 3, (0.03, 0.1, 0.3, 1.0), is_text=True)
    if name == "mnist" and mnist:
        return Task("MNIST, LeNet-5", LeNet5, images(MNISTDataModule(mnist, val_images=5000)), 5)
    if name == "cifar10" and cifar10:
        data = images(CIFAR10DataModule(cifar10, train_images=20_000, val_images=5000, augment=True))
        return Task("CIFAR-10, ResNet-8", ResNet8, data, 10, (0.03, 0.1, 0.3, 1.0))
    raise ValueError(f"task {name!r} needs the folder of its data: --{name} FOLDER.")
