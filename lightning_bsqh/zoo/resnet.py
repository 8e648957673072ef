"""Residual networks for images of 32x32 pixels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside a shortcut.

    The shortcut is the identity where the shapes agree, else a strided 1x1 convolution with BatchNorm.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
        shortcut: What to use where the shapes differ, instead of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if shortcut is not None:
            self.shortcut = shortcut
        elif stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    @override
    def forward(self, x: Tensor) -> Tensor:
        """From ``[N, in_channels, H, W]`` to ``[N, out_channels, ceil(H/stride), ceil(W/stride)]``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class PaddedShortcut(nn.Module):
    """A shortcut without parameters: takes every second pixel, and fills up with channels of zeros.

    Args:
        extra_channels: Number of channels to add.
    """

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.extra_channels = extra_channels

    @override
    def forward(self, x: Tensor) -> Tensor:
        """From ``[N, C, H, W]`` to ``[N, C + extra_channels, ceil(H/2), ceil(W/2)]``."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.extra_channels))


class ResNet8(nn.Module):
    """Three residual blocks of 16, 32 and 64 channels: 78,042 parameters, 77,360 of them weights.

    Args:
        num_classes: Number of logits; the parameter counts hold for 10.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.block1 = BasicBlock(16, 16)
        self.block2 = BasicBlock(16, 32, stride=2)
        self.block3 = BasicBlock(32, 64, stride=2)
        self.fc = nn.Linear(64, num_classes)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, 3, 32, 32]``, floating point."""
        x = F.relu(self.bn(self.conv(images)))
        x = self.block3(self.block2(self.block1(x)))
        return self.fc(x.mean(dim=(2, 3)))


class ResNet18(nn.Module):
    """The usual ResNet-18 for 32x32 images, with a 3x3 stem and no pooling before the stages.

    11,173,962 parameters: four stages of two blocks with 64, 128, 256 and 512 channels.

    Args:
        num_classes: Number of logits; the parameter count holds for 10.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(64)
        self.stage1 = nn.Sequential(BasicBlock(64, 64), BasicBlock(64, 64))
        self.stage2 = nn.Sequential(BasicBlock(64, 128, stride=2), BasicBlock(128, 128))
        self.stage3 = nn.Sequential(BasicBlock(128, 256, stride=2), BasicBlock(256, 256))
        self.stage4 = nn.Sequential(BasicBlock(256, 512, stride=2), BasicBlock(512, 512))
        self.fc = nn.Linear(512, num_classes)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, 3, 32, 32]``, floating point."""
        x = F.relu(self.bn(self.conv(images)))
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.fc(x.mean(dim=(2, 3)))


class ResNet20(nn.Module):
    """The ResNet-20 of He et al. (2016) for CIFAR: 269,722 parameters, 268,336 of them weights.

    Three stages of three blocks with 16, 32 and 64 channels; the shortcuts between the stages have no parameters.

    Args:
        num_classes: Number of logits; the parameter counts hold for 10.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.stage1 = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 16), BasicBlock(16, 16))
        self.stage2 = nn.Sequential(
            BasicBlock(16, 32, stride=2, shortcut=PaddedShortcut(16)), BasicBlock(32, 32), BasicBlock(32, 32)
        )
        self.stage3 = nn.Sequential(
            BasicBlock(32, 64, stride=2, shortcut=PaddedShortcut(32)), BasicBlock(64, 64), BasicBlock(64, 64)
        )
        self.fc = nn.Linear(64, num_classes)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of images ``[N, 3, 32, 32]``, floating point."""
        x = F.relu(self.bn(self.conv(images)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(x.mean(dim=(2, 3)))
