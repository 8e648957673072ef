"""By default neither biases nor the parameters of normalizations are regularized, whatever their shape or name."""

import pytest
import torch
from torch import nn

from lightning_bsqh import BSQHOptimizer


class LayerNorm2d(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) * self.weight + self.bias


class ResponseNormalisation(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))


class Scaled(nn.Module):
    """A convolution whose output has a factor per channel."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3)
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))


class Affine(nn.Module):
    """A factor and a summand per feature, in the place of a normalization."""

    def __init__(self, features):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, features))
        self.shift = nn.Parameter(torch.zeros(1, 1, features))


def convnext():
    from torchvision.models.convnext import CNBlock

    return CNBlock(8, 1e-6, 0.0)


NETS = {
    "attention-bias": (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), {"in_proj_weight", "out_proj.weight"}),
    "layer-norm-2d": (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), LayerNorm2d(4)), {"0.weight"}),
    "response-normalisation": (lambda: nn.Sequential(nn.Linear(4, 4), ResponseNormalisation(4)), {"0.weight"}),
    "affine": (lambda: nn.Sequential(nn.Linear(4, 4), Affine(4)), {"0.weight"}),
    "convnext": (convnext, {"block.0.weight", "block.3.weight", "block.5.weight"}),
    "layer-scale": (lambda: Scaled(4), {"conv.weight"}),
}


@pytest.mark.parametrize("what", NETS)
def test_regularised(what):
    """Only what multiplies features with features is regularized."""
    make, right = NETS[what]
    net = make()
    names = {id(p): name for name, p in net.named_parameters()}
    found = BSQHOptimizer(net, total_steps=9).regularized_weights()
    assert {names[id(w)] for layer in found.values() for w in layer} == right
