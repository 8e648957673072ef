"""Data modules of the recipes. Those of images keep them in memory and hand out whole batches."""

from lightning_bsqh.zoo.data.cifar10 import CIFAR10DataModule
from lightning_bsqh.zoo.data.digits import DigitsDataModule
from lightning_bsqh.zoo.data.mnist import MNISTDataModule
from lightning_bsqh.zoo.data.sine import SineDataModule

__all__ = ["CIFAR10DataModule", "DigitsDataModule", "MNISTDataModule", "SineDataModule"]
