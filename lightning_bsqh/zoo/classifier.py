"""A plain LightningModule around any network that gives logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lightning_bsqh.namespace import pl
from lightning_bsqh.zoo.trained_weights import load_weights


class ImageClassifier(pl.LightningModule):
    """Trains a network by cross-entropy; has no optimizer of its own, the strategy brings it.

    Args:
        network: From images ``[N, C, H, W]``, floating point, to logits ``[N, num_classes]``.
        num_classes: Number of classes, at least 2.
        weights: File to start from: a checkpoint of an ImageClassifier, or the ``state_dict`` of the network. None
            starts from the network as it is.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If ``num_classes`` is less than 2, or the weights are of another network.
    """

    def __init__(self, network: nn.Module, num_classes: int = 10, weights: str | None = None) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}.")
        # Not the weights: what is loaded from a checkpoint starts from that.
        self.save_hyperparameters(ignore=["network", "weights"])
        if weights is not None:
            load_weights(network, weights)
        self.network = network
        # Micro: the share of correct images, whatever their class.
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, C, H, W]``."""
        return self.network(images)

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy in nats of a batch (images ``[N, C, H, W]``, labels ``[N]`` int64)."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs ``val_loss`` and ``val_accuracy`` (a share in [0, 1]) over the epoch."""
        self._evaluate("val", batch, self.val_accuracy)

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs ``test_loss`` and ``test_accuracy`` (a share in [0, 1]) over the epoch."""
        self._evaluate("test", batch, self.test_accuracy)

    @override
    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The most likely classes ``[N]``, int64."""
        return self(batch[0]).argmax(dim=1)

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor], accuracy: MulticlassAccuracy) -> None:
        images, labels = batch
        logits = self(images)
        accuracy(logits, labels)
        self.log(f"{stage}_loss", F.cross_entropy(logits, labels), batch_size=len(labels))
        self.log(f"{stage}_accuracy", accuracy, prog_bar=True, batch_size=len(labels))
