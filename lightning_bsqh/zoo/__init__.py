"""Networks and data modules of the recipes; nothing in the method depends on them."""

from lightning_bsqh.zoo.classifier import ImageClassifier
from lightning_bsqh.zoo.lenet5 import LeNet5, SmallLeNet
from lightning_bsqh.zoo.residual_euler import EulerStep, ResidualEuler
from lightning_bsqh.zoo.resnet import ResNet8, ResNet18

__all__ = ["EulerStep", "ImageClassifier", "LeNet5", "ResNet8", "ResNet18", "ResidualEuler", "SmallLeNet"]
