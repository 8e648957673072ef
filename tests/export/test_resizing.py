import pytest
import torch
from torch import nn

from lightning_bsqh.export import resized, shrink
from lightning_bsqh.zoo import ResNet8
from tests.export.shrinking.made_networks import as_after_training, zero_out


def test_a_resnet_of_fewer_channels_is_a_resnet() -> None:
    model = zero_out(as_after_training(ResNet8()), 0.6, 0.2)
    x = torch.randn(2, 3, 32, 32)
    shrunk = shrink(model, x)
    fresh = ResNet8()
    other = resized(fresh, shrunk.state_dict()).eval()
    assert isinstance(other, ResNet8)
    assert other.block3.conv1.out_channels == shrunk.get_submodule("block3.conv1").out_channels < 64
    assert torch.equal(other(x), shrunk(x))
    assert fresh.block3.conv1.weight.shape == (64, 32, 3, 3)


def test_tensors_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="not those of a Linear"):
        resized(nn.Linear(2, 2), {"weight": torch.ones(2, 2)})
    with pytest.raises(ValueError, match="not those of a Linear"):
        resized(nn.Linear(2, 2), {"weight": torch.ones(2, 2), "bias": torch.ones(2), "other": torch.ones(2)})
