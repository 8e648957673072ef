import pytest
import torch
from torch import nn

from lightning_bsqh.zoo import LeNet5, ResNet8, ResNet18, ResNet20, SmallLeNet


@pytest.mark.parametrize(
    ("network", "parameters", "weights", "shape"),
    [
        (LeNet5, 61_706, 61_470, (1, 28, 28)),
        (SmallLeNet, 38_282, 38_160, (1, 8, 8)),
        (ResNet8, 78_042, 77_360, (3, 32, 32)),
        (ResNet20, 269_722, 268_336, (3, 32, 32)),
        (ResNet18, 11_173_962, 11_164_352, (3, 32, 32)),
    ],
)
def test_size_and_shape(network: type[nn.Module], parameters: int, weights: int, shape: tuple[int, ...]) -> None:
    net = network()
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert sum(p.numel() for p in net.parameters() if p.dim() >= 2) == weights
    assert net(torch.zeros(2, *shape)).shape == (2, 10)
    assert network(num_classes=7)(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("network", [LeNet5, SmallLeNet, ResNet8, ResNet20])
def test_every_parameter_gets_a_gradient(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = network()
    shape = {LeNet5: (1, 28, 28), SmallLeNet: (1, 8, 8)}
    net(torch.randn(4, *shape.get(network, (3, 32, 32)))).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_lenet5_names() -> None:
    assert [name for name, _ in LeNet5().named_children()] == ["conv1", "conv2", "fc1", "fc2", "fc3"]


def test_resnet8_halves_the_image_twice() -> None:
    net = ResNet8()
    sizes = []
    for block in (net.block1, net.block2, net.block3):
        block.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    net(torch.zeros(1, 3, 32, 32))
    assert sizes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert isinstance(net.block1.shortcut, nn.Identity)
    assert [type(m) for m in net.block2.shortcut] == [nn.Conv2d, nn.BatchNorm2d]


def test_resnet20_has_twenty_layers_and_shortcuts_without_parameters() -> None:
    net = ResNet20()
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == 20
    sizes = []
    for stage in (net.stage1, net.stage2, net.stage3):
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    net(torch.zeros(1, 3, 32, 32))
    assert sizes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    x = torch.randn(2, 16, 4, 5)
    y = net.stage2[0].shortcut(x)
    assert y.shape == (2, 32, 2, 3)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2])
    assert bool((y[:, 16:] == 0).all())
