"""The classifier with an optimizer of its own, for comparisons."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from typing_extensions import override

from lightning_bsqh._validation import number
from lightning_bsqh.namespace import MisconfigurationException
from lightning_bsqh.zoo.classifier import ImageClassifier


class AdamClassifier(ImageClassifier):
    """Trains a network by cross-entropy with Adam, whose learning rate falls to 0 along a cosine, step by step.

    Args:
        network: From images ``[N, C, H, W]``, floating point, to logits ``[N, num_classes]``.
        num_classes: Number of classes, at least 2.
        lr: Learning rate at the start, > 0.

    Raises:
        TypeError: If ``lr`` is no number.
        ValueError: If an argument is out of its range.
    """

    def __init__(self, network: nn.Module, num_classes: int = 10, lr: float = 1e-3) -> None:
        super().__init__(network, num_classes)
        self.lr = number("lr", lr, low=0.0, open_low=True)

    @override
    def configure_optimizers(self) -> Any:
        """Adam and its schedule.

        Raises:
            MisconfigurationException: If the length of the training is not known.
        """
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < float("inf"):
            raise MisconfigurationException(
                "AdamClassifier needs the length of the training for its schedule: give the Trainer max_steps or"
                " max_epochs."
            )
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
