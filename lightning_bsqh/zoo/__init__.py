"""Networks and data modules of the recipes; nothing in the method depends on them."""

from lightning_bsqh.zoo.adam_classifier import AdamClassifier
from lightning_bsqh.zoo.classifier import ImageClassifier
from lightning_bsqh.zoo.function_regressor import FunctionRegressor
from lightning_bsqh.zoo.lenet5 import LeNet5, SmallLeNet
from lightning_bsqh.zoo.residual_euler import EulerStep, ResidualEuler
from lightning_bsqh.zoo.resnet import ResNet8, ResNet18, ResNet20

__all__ = [
    "AdamClassifier",
    "EulerStep",
    "FunctionRegressor",
    "ImageClassifier",
    "LeNet5",
    "ResNet8",
    "ResNet18",
    "ResNet20",
    "ResidualEuler",
    "SmallLeNet",
]
