"""LightningCLI and its parts; apart, as they need jsonargparse."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_bsqh.namespace.chosen import NAME

if TYPE_CHECKING or NAME == "lightning.pytorch":
    from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, Namespace, SaveConfigCallback
else:
    from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI, Namespace, SaveConfigCallback
